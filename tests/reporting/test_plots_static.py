import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import matplotlib as mpl
import pytest
from made_up import make_report
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from src.reporting import plots_static, style

NAMES = ["front", "recalls", "effects", "importance", "parallel", "curves", "progress"]


def drawn(make, report):
    with mpl.rc_context(plots_static.STYLE):
        figure = make(report)
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
    return figure


@pytest.fixture(scope="module")
def files(small, tmp_path_factory):
    return plots_static.write(small, tmp_path_factory.mktemp("pictures") / "deep")


def test_each_picture_is_a_png_of_160_dpi_and_an_svg(files):
    assert [path.name for path in files] == [
        f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")
    ]
    for path in files:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.info["dpi"] == pytest.approx((160, 160), abs=0.1)
                assert 3.4 * 160 <= picture.width <= 12 * 160
                assert len(picture.convert("RGB").getcolors(1 << 24)) > 2
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_same_report_gives_the_same_files(bare, tmp_path):
    first, second = (
        plots_static.write(bare, tmp_path / "a"),
        plots_static.write(bare, tmp_path / "b"),
    )
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_study_with_one_run_shows_its_point_and_leaves_out_the_rest(bare, tmp_path):
    assert [path.name for path in plots_static.write(bare, tmp_path)] == ["front.png", "front.svg"]


def test_the_front_has_a_panel_a_cost_with_units_and_directions(report):
    panels = drawn(plots_static.front, report).axes
    titles = [axes.get_xlabel().replace("\n", " ") for axes in panels]
    assert titles == [
        "FLOPs (multiply-adds), lower is better",
        "parameters, lower is better",
        "latency relative to the reference net, lower is better",
    ]
    quality = "balanced accuracy (validation, chosen epoch), higher is better"
    assert panels[0].get_ylabel().replace("\n", " ") == quality
    assert panels[0].get_xscale() == panels[1].get_xscale() == "log"


def test_ten_named_points_have_numbers_that_do_not_overlap_and_a_key_below(report):
    table = report.table.copy()
    members = table.index[table["state"] == "front"][:10]
    table.loc[members, "chosen"] = [f"best under {number}k parameters" for number in range(10)]
    figure = drawn(plots_static.front, replace(report, table=table))
    for axes in figure.axes:
        texts = [mpl.text.Text.get_window_extent(text) for text in axes.texts]
        assert len(texts) >= 10
        for place, box in enumerate(texts):
            assert not any(box.overlaps(other) for other in texts[:place])
    key = [text.get_text() for text in figure.legends[0].get_texts()]
    labels = table.loc[members, "label"]
    assert all(any(f": {label} (" in entry for entry in key) for label in labels)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_cut_off(small, name):
    figure = drawn(plots_static.PICTURES[name], small)
    box = figure.get_tightbbox().padded(-0.05)
    width, height = figure.get_size_inches()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= width
    assert box.y1 <= height


def test_studies_side_by_side_have_fronts_of_their_own(two_studies):
    entries = [
        text.get_text() for text in drawn(plots_static.front, two_studies).legends[0].get_texts()
    ]
    assert {"front of dense_size", "front of frontier"} <= set(entries)
    lines = drawn(plots_static.progress, two_studies).axes[0].lines
    assert [line.get_label() for line in lines] == ["dense_size", "frontier"]
    assert lines[0].get_linestyle() != lines[1].get_linestyle()


def test_pruned_curves_end_where_they_ended(report):
    axes = drawn(plots_static.curves, report).axes[0]
    lengths = sorted(len(line.get_xdata()) for line in axes.lines)
    assert lengths == sorted(report.curves.groupby("run_id").size())


def test_curves_say_that_they_are_means_where_trials_had_several_seeds(report):
    said = []
    for repeats in (1, 3):
        several = replace(report, table=report.table.assign(repeats=repeats))
        said.append(
            drawn(plots_static.curves, several).legends[0].get_title().get_text().replace("\n", " ")
        )
    assert said == ["", style.CURVES_OF_SEEDS]


def test_infinite_figures_stop_no_picture(report):
    table = report.table.copy()
    table.loc[table.index[table["state"] == "dominated"][0], "quality"] = math.inf
    table.loc[table.index[table["state"] == "dominated"][1], list(report.costs)] = math.inf
    for make in (plots_static.front, plots_static.PICTURES["parallel"]):
        assert drawn(make, replace(report, table=table)) is not None


def test_a_dollar_in_a_name_is_a_dollar(small):
    table = small.table.assign(label=small.table["label"] + " $\\frac$")
    entries = [
        text.get_text()
        for text in drawn(plots_static.front, replace(small, table=table)).legends[0].get_texts()
    ]
    assert any("$\\frac$" in entry for entry in entries)


def test_thousands_of_points_do_not_swell_the_svg(tmp_path):
    large = make_report(4000, seed=5)
    with mpl.rc_context(plots_static.STYLE):
        plots_static.front(large).savefig(tmp_path / "front.svg")
    assert (tmp_path / "front.svg").stat().st_size < 2e6
