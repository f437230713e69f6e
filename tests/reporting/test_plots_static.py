"""Charts as PNG and SVG files."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import matplotlib as mpl
import pytest
from made_up import make_report
from PIL import Image

from src.reporting import charts, plots_static

NAMES = ["front", "recalls", "roc", "layers", "effects"]
NAMES += ["importance", "parallel", "curves", "progress"]
NAMES += ["front_by_cost"]


def drawn(chart):
    with mpl.rc_context(fname=plots_static.STYLE):
        figure = plots_static.draw(chart)
        figure.draw_without_rendering()
    return figure


def legend(figure):
    legends = [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]
    return [text.get_text() for one in legends for text in one.get_texts()]


@pytest.fixture(scope="module")
def written(small, tmp_path_factory, module_patch):
    """The files of all charts, and the figures that were drawn for them."""
    figures, draw = {}, plots_static.draw

    def draw_and_keep(chart):
        figures[chart.key] = draw(chart)
        return figures[chart.key]

    module_patch.setattr(plots_static, "draw", draw_and_keep)
    files = plots_static.write(charts.charts(small), tmp_path_factory.mktemp("pictures") / "deep")
    module_patch.setattr(plots_static, "draw", draw)
    return files, figures


@pytest.fixture(scope="module")
def files(written):
    return written[0]


@pytest.fixture(scope="module")
def figures(written):
    return written[1]


def test_every_picture_is_a_png_of_160_dpi_and_an_svg(files):
    expected = [f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")]
    assert [path.name for path in files] == expected
    for path in files:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.info["dpi"] == pytest.approx((160, 160), abs=0.1)
                assert 3.4 * 160 <= picture.width <= 12 * 160
                assert len(picture.convert("RGB").getcolors(1 << 24)) > 2
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_same_report_gives_the_same_files(bare, tmp_path):
    every = charts.charts(bare)
    first, second = (plots_static.write(every, tmp_path / name) for name in "ab")
    assert [path.name for path in first] == [
        *("front.png", "front.svg", "front_by_cost.png", "front_by_cost.svg")
    ]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_cut_off(figures, name):
    figure = figures[name]
    box = figure.get_tightbbox().padded(-0.05)
    width, height = figure.get_size_inches()
    assert min(box.x0, box.y0) >= 0
    assert box.x1 <= width
    assert box.y1 <= height


def test_the_front_has_a_panel_per_cost_with_units_and_directions(figures):
    panels = figures["front_by_cost"].axes
    titles = [axes.get_xlabel().replace("\n", " ") for axes in panels]
    assert titles == [
        "FLOPs (multiply-adds) ↓",
        "parameters ↓",
        "latency relative to the reference net ↓",
    ]
    quality = "balanced accuracy (validation) ↑"
    assert panels[0].get_ylabel().replace("\n", " ") == quality
    assert panels[0].get_xscale() == panels[1].get_xscale() == "log"
    assert "model.net." in figures["effects"].axes[-4].get_xlabel()


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.9e6, 55e6, [1e6, 3e6, 1e7, 3e7]),
        (0.25, 2.9, [0.5, 1, 2]),
        (2e3, 9e9, [1e4, 1e6, 1e8]),  # seven decades
        (1.1e5, 1.9e5, [1.2e5, 1.4e5, 1.6e5, 1.8e5]),  # no power of ten
    ],
)
def test_a_logarithmic_axis_has_two_to_four_ticks(low, high, ticks):
    values = plots_static.LogLocator().tick_values(low, high)
    assert 2 <= len(values) <= plots_static.MOST_LOG_TICKS
    assert list(values) == pytest.approx(ticks)


def test_the_front_alone_is_600_px_wide_with_names_and_legend_inside(figures, small):
    figure = figures["front"]
    [axes] = figure.axes
    assert 580 <= figure.get_size_inches()[0] * plots_static.DPI <= 680
    assert "\n" not in axes.get_xlabel() + axes.get_ylabel()
    labels = small.table.loc[(small.table["chosen"] != "") | small.table["knee"], "label"]
    names = {text.get_text().removesuffix(" (knee)") for text in axes.texts}
    assert names == set(labels)
    entries = [text.get_text() for text in axes.get_legend().get_texts()]
    assert not [entry for entry in entries if any(name in entry for name in names)]
    inside = axes.get_window_extent()
    for text in (*axes.texts, axes.get_legend()):
        box = text.get_window_extent()
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
        assert inside.y0 <= box.y0
        assert box.y1 <= inside.y1


def test_ten_named_points_have_numbers_that_do_not_overlap_and_a_legend(report):
    table = report.table.copy()
    members = table.index[table["state"] == "front"][:10]
    table.loc[members, "chosen"] = [f"best under {number}k parameters" for number in range(10)]
    figure = drawn(charts.front(replace(report, table=table)))
    for axes in figure.axes:
        boxes = [mpl.text.Text.get_window_extent(text) for text in axes.texts]
        assert len(boxes) >= 10
        for position, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:position])
    entries = [entry.replace("\n", " ") for entry in legend(figure)]
    for label in table.loc[members, "label"]:
        assert any(f": {label} (" in entry for entry in entries)


def test_studies_side_by_side_have_lines_of_different_styles(two_studies):
    entries = " ".join(legend(drawn(charts.front(two_studies))))
    assert "front of dense_size" in entries
    assert "front of frontier" in entries
    figure = drawn(charts.progress(two_studies))
    lines = figure.axes[0].lines
    assert legend(figure) == ["dense_size", "frontier"]
    assert lines[0].get_linestyle() != lines[1].get_linestyle()


def test_a_dollar_in_a_name_is_a_dollar(small):
    table = small.table.assign(label=small.table["label"] + " $\\frac$")
    [axes] = drawn(charts.front(replace(small, table=table))).axes
    assert any("$\\frac$" in text.get_text() for text in axes.texts)


def test_thousands_of_points_do_not_swell_the_svg(tmp_path):
    chart = charts.front(make_report(4000, seed=5))
    plots_static.write([chart], tmp_path)
    assert (tmp_path / "front.svg").stat().st_size < 2e6
