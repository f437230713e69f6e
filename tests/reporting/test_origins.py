"""Compressed trials beside what they were made from: in the record, the pictures, the page and the files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import COSTS, QUALITY, make_report, with_compressed
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from src.metrics.registry import Objective
from src.reporting import collect, page, plots_html, plots_static, style
from src.reporting import collect as front
from src.reporting import collect as origins
from src.reporting import text as narrative
from src.reporting.record import Report
from src.reporting.style import ORIGIN
from src.tracking.store import Store

FLOPS = "efficiency/flops"
OBJECTIVES = [Objective("val/balanced_accuracy", "maximize"), Objective(FLOPS, "minimize")]
STORE = Store(uri="sqlite:////nowhere/mlflow.db", experiment="derm")


@pytest.fixture(scope="module")
def compressed() -> Report:
    return with_compressed()


def run(
    run_id: str, parent: str | None, quality: float, flops: float, **tags: str
) -> dict[str, object]:
    figures = {
        f"metrics.{QUALITY}": quality,
        f"metrics.{FLOPS}": flops,
        "metrics.efficiency/size_mb": flops / 1e6,
    }
    said = {
        "tags.kind": "run",
        "tags.study": "s",
        "tags.model": "custom",
        "tags.trial": "0",
        **tags,
    }
    row = {
        "run_id": run_id,
        "parent_id": parent,
        "status": "FINISHED",
        "end_time": pd.Timestamp("2026-11-21", tz="UTC"),
    }
    return row | figures | said


def a_study() -> pd.DataFrame:
    """A trial, the same one compressed as another trial, and one that compressed a run of another study."""
    made = {"tags.origin": "aaaaaaaa", "tags.compression": "int8", "tags.lost_on": "test"}
    return pd.DataFrame(
        [
            run("parent", None, np.nan, np.nan) | {"tags.kind": "study"},
            run("aaaaaaaa", "parent", 0.7, 8e6),
            run("bbbbbbbb", "parent", 0.69, 8e6, **made) | {"metrics.efficiency/size_mb": 2.0},
            run(
                "cccccccc",
                "parent",
                0.6,
                2e6,
                **made | {"tags.origin": "dddddddd", "tags.compression": "half"},
            ),
            run("dddddddd", None, 0.65, 4e6) | {"tags.study": "t"},
            # made from the trial, by the command line: it stands below it, and is no seed of it
            run("eeeeeeee", "aaaaaaaa", 0.68, 8e6, **made),
        ]
    )


def test_a_study_knows_its_origins_and_takes_no_compressed_run_for_a_seed() -> None:
    found = collect.study(a_study(), "s", STORE)
    assert set(found.trials["run_id"]) == {"aaaaaaaa", "bbbbbbbb", "cccccccc"}
    assert set(found.origins["run_id"]) == {"aaaaaaaa", "dddddddd"}
    assert found.runs_of("aaaaaaaa") == ["aaaaaaaa"]
    assert found.before(pd.Timestamp("2026-11-22", tz="UTC")).origins.equals(found.origins)


def test_rows_hold_their_origin_s_figures_and_are_called_by_their_compression() -> None:
    table = front.compared(collect.study(a_study(), "s", STORE), OBJECTIVES, []).set_index("run_id")
    assert table["compression"].to_dict() == {
        "aaaaaaaa": "",
        "bbbbbbbb": "int8",
        "cccccccc": "half",
    }
    assert table.at["bbbbbbbb", "label"] == "custom int8 #0"
    assert table.at["cccccccc", f"origin/{FLOPS}"] == 4e6
    assert table.at["cccccccc", f"origin/{QUALITY}"] == 0.65
    assert table.at["cccccccc", "origin_label"] == "custom dddddd"
    assert np.isnan(table.at["aaaaaaaa", f"origin/{FLOPS}"])
    assert front.costs_of(table, OBJECTIVES) == [FLOPS, "efficiency/size_mb"]


def test_without_origins_nothing_changes() -> None:
    runs = a_study().drop(columns=["tags.origin", "tags.compression", "tags.lost_on"])
    table = front.compared(collect.study(runs, "s", STORE), OBJECTIVES, [])
    assert not [name for name in table if "origin" in str(name) or "compression" in str(name)]
    assert front.costs_of(table, OBJECTIVES) == [FLOPS]
    report = make_report(12)
    assert origins.joins(report, FLOPS).empty
    assert origins.lost(report).empty
    assert "table-lost" not in {each.key for each in page.tables(report)}


def test_lines_run_from_the_origin_wherever_it_stands(compressed: Report) -> None:
    found = origins.joins(compressed, FLOPS)
    table = compressed.table.set_index("run_id")
    assert found["outside"].tolist() == [False, False, True]
    for _, line in found.iterrows():
        assert (line["to_x"], line["to_y"]) == tuple(table.loc[line["run_id"], [FLOPS, "quality"]])
        if not line["outside"]:
            assert (line["from_x"], line["from_y"]) == tuple(
                table.loc[line["origin"], [FLOPS, "quality"]]
            )
    assert found["from_x"].iloc[2] == pytest.approx(2 * found["to_x"].iloc[2])
    sizes = origins.joins(compressed, "efficiency/size_mb")
    np.testing.assert_allclose(sizes["to_x"] / sizes["from_x"], 0.25)


def test_what_was_lost_is_in_points_beside_the_shares_of_cost(
    compressed: Report, tmp_path: Path
) -> None:
    found = origins.lost(compressed)
    assert found["metric"].tolist() == ["balanced_accuracy", "recall/mel"] * 3
    first = found.iloc[0]
    assert (first["size"], first["latency"], first["FLOPs"]) == (0.25, 0.5, 1.0)
    assert first[["lost", "low", "high"]].tolist() == pytest.approx([1.0, 0.0, 2.0])
    assert found.iloc[5][["lost", "low", "high"]].tolist() == pytest.approx([8.0, 5.0, 11.0])
    assert set(found["split"]) == {"test"}
    names = {path.name for path in page.write_tables(compressed, tmp_path)}
    assert "lost.csv" in names
    assert len(pd.read_csv(tmp_path / "lost.csv")) == 6


def joined(figure: Figure, panel: int = 0) -> list[list[float]]:
    lines = figure.axes[panel].get_lines()
    return [
        line.get_xydata().ravel().tolist()
        for line in lines
        if same_color(line.get_color(), ORIGIN.colour)
    ]


def test_the_findings_say_who_surely_loses_less_than_a_point(compressed: Report) -> None:
    # balanced accuracy: intervals of 1 point each side around 1, -0.2 and 4; melanoma recall: 3
    # around 2, -0.4 and 8
    accuracy, recall = origins.said(compressed)
    labels = compressed.table.set_index("run_id")["label"]
    small, large = (next(label for label in labels if kind in label) for kind in ("static", "half"))
    assert accuracy.startswith(
        "Of 3 compressed models beside their origins: custom onnx_int8_static"
    )
    assert "loses surely less than a point of balanced accuracy (test); " in accuracy
    assert accuracy.endswith(f"{large} loses surely more than a point; of 1 it is not settled.")
    assert small.split()[1] in accuracy
    assert recall.endswith(
        f"{large} loses surely more than a point of recall of mel (test); of 2 it is not settled."
    )
    assert origins.said(make_report(10)) == []


def test_the_static_front_joins_each_with_its_origin(compressed: Report) -> None:
    figure = plots_static.front(compressed)
    assert figure is not None
    wanted = origins.joins(compressed, FLOPS)[["from_x", "from_y", "to_x", "to_y"]]
    assert joined(figure) == wanted.to_numpy(dtype=float).tolist()
    texts = [
        text.get_text().replace("\n", " ")
        for legend in figure.legends
        for text in legend.get_texts()
    ]
    assert "from a model to its compression (onnx_int8_static, prune_half)" in texts
    assert origins.OUTSIDE in texts
    assert "MB" in figure.axes[1].get_xlabel()
    plain = plots_static.front(make_report(40, seed=5))
    assert plain is not None
    assert not joined(plain)
    assert origins.OUTSIDE not in [
        text.get_text() for legend in plain.legends for text in legend.get_texts()
    ]


def test_the_page_s_front_joins_them_on_every_axis_and_names_the_compression(
    compressed: Report,
) -> None:
    section = plots_html.front(compressed)
    assert section is not None
    assert "compressed" in section.text
    [picture] = section.pictures
    by_name = {trace.name: number for number, trace in enumerate(picture.figure.data)}
    lines = next(
        number for name, number in by_name.items() if name and name.startswith(origins.LEGEND)
    )
    points = by_name[origins.OUTSIDE]
    for view, cost in zip(picture.views, compressed.costs, strict=True):
        wanted = origins.joins(compressed, cost)
        assert view.traces[lines]["x"][:3] == [
            wanted["from_x"].iloc[0],
            wanted["to_x"].iloc[0],
            None,
        ], cost
        assert len(view.traces[lines]["x"]) == len(view.traces[lines]["y"]) == 9
        assert view.traces[points]["x"] == [wanted["from_x"].iloc[2]]
        assert origins.OUTSIDE in view.traces[points]["hovertext"][0]
    told = [text for trace in picture.figure.data for text in (trace.hovertext or ())]
    assert any("compressed (onnx_int8_static) from custom" in text for text in told)


def test_the_tables_of_the_front_have_a_column_for_it(compressed: Report) -> None:
    by_key = {each.key: each for each in page.tables(compressed)}
    shown = by_key["table-front"]
    assert shown.head[:3] == ["label", "compression", "made from"]
    kinds = {row[0].text: row[1].text for row in shown.rows}
    assert "onnx_int8_static" in kinds.values()
    assert len(by_key["table-lost"].rows) == 6
    assert "| model | compression |" in page.markdown(compressed)
    assert "Model & Compression &" in page.latex(compressed)
    assert r"onnx\_int8\_static &" in page.latex(compressed)
    assert r"\begin{tabular}{llr" in page.latex(compressed)
    plain = make_report(40, seed=5)
    assert "ompression" not in page.markdown(plain) + page.latex(plain)
    members = style.members(compressed)
    assert len(shown.rows) == len(members)


def test_a_net_and_its_compression_are_not_taken_for_the_same_net() -> None:
    rows = {
        "label": ["a", "b"],
        "front": True,
        FLOPS: 1e6,
        "efficiency/params": 1e5,
        COSTS[3]: [1.0, 0.5],
    }
    objectives = [*OBJECTIVES, Objective("efficiency/latency_ratio", "minimize")]
    assert len(narrative.same_nets(pd.DataFrame(rows), objectives)) == 1
    assert not narrative.same_nets(pd.DataFrame(rows | {"compression": ["", "int8"]}), objectives)
