import math

import pandas as pd
import pytest
from rich.console import Console

from src.metrics.registry import Limit, Objective, melanoma_class, recorded_name
from src.reporting.comparison import compare, notes, render, render_lost

OBJECTIVES = [
    Objective("val/balanced_accuracy", "maximize"),
    Objective("efficiency/flops", "minimize"),
]


def runs() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run_id": ["small", "big", "worse", "dead"],
            "status": ["FINISHED", "FINISHED", "FINISHED", "FAILED"],
            "tags.model": ["custom", "mobilenetv3_small", "custom", "custom"],
            "tags.trial": ["0", "1", "2", "3"],
            "tags.failure": [None, None, None, "OutOfMemoryError"],
            # what the last epoch had must not matter, nor what a dead run had
            "metrics.val/balanced_accuracy": [0.1, 0.2, 0.9, 0.9],
            "metrics.best/val/balanced_accuracy": [0.50, 0.60, 0.55, 0.99],
            "metrics.best/val/accuracy": [0.7, 0.8, 0.7, 0.9],
            "metrics.best/val/recall/mel": [0.9, 0.5, 0.3, 0.9],
            "metrics.efficiency/flops": [30037824.0, 4.1e9, 5e9, 1.0],
            "metrics.efficiency/params": [691911.0, 23.5e6, 1e6, 10.0],
        }
    )


def test_front_is_read_at_the_chosen_epoch_and_failed_runs_stay_in_the_table() -> None:
    table = compare(runs(), OBJECTIVES)
    assert table["run_id"].tolist() == ["big", "worse", "small", "dead"]
    assert table["front"].tolist() == [True, False, True, False]
    assert table["failure"].tolist()[-1] == "OutOfMemoryError"


def test_limits_keep_runs_off_the_front() -> None:
    table = compare(runs(), OBJECTIVES, [Limit("val/recall/mel", ">=", 0.8)]).set_index("run_id")
    assert table["feasible"].to_dict() == {
        "big": False,
        "worse": False,
        "small": True,
        "dead": False,
    }
    assert table.index[table["front"]].tolist() == ["small"]
    assert not compare(runs(), OBJECTIVES, [Limit("test/auroc", ">=", 0.8)])["feasible"].any()


def test_names_are_of_the_chosen_epoch_for_validation_only() -> None:
    assert recorded_name("val/loss") == "best/val/loss"
    assert recorded_name("efficiency/flops") == "efficiency/flops"


def noted(**tags: str) -> str:
    frame = runs().assign(**{f"tags.{name}": value for name, value in tags.items()})
    return "\n".join(notes(compare(frame, OBJECTIVES)))


def test_notes_warn_of_leaks_and_of_what_cannot_be_compared() -> None:
    clean = noted(split="grouped", grouped_by="lesion", split_fingerprint="f")
    assert "multiply-add counts as one" in clean
    assert clean.count("\n") == 0
    assert "LEAKS" in noted(split="image (leaking)", grouped_by="lesion", split_fingerprint="f")
    assert "may leak" in noted(split="grouped", grouped_by="image", split_fingerprint="f")
    mixed = runs().assign(**{"tags.split_fingerprint": ["f", "g", "f", "f"]})
    assert "different images" in "\n".join(notes(compare(mixed, OBJECTIVES)))
    unvalidated = runs().drop(columns=[name for name in runs() if "val/" in name])
    assert "No validation split" in "\n".join(notes(compare(unvalidated, OBJECTIVES)))


def test_melanoma_goes_by_several_names() -> None:
    for name in ("mel", "MEL", "malignant"):
        assert melanoma_class(pd.DataFrame({f"test/recall/{name}": [1.0]}), "test") == name
    assert melanoma_class(pd.DataFrame({"test/recall/nv": [1.0]}), "test") == "mel"


def test_table_fits_100_columns_and_shows_every_run() -> None:
    console = Console(width=100, record=True, file=None)
    with console.capture() as captured:
        console.print(render(compare(runs(), OBJECTIVES), "a study", "val"))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert "mobilenetv3_small  " in text
    assert "custom #0" in text  # one of several runs of that model
    assert "30M" in text
    assert "692k" in text
    assert "4.1G" in text
    assert "FAILED" in text
    assert text.count("yes") == 2
    assert "nan" not in text.lower().replace("finan", "")


@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
@pytest.mark.parametrize("name", ["best/val/balanced_accuracy", "efficiency/flops"])
def test_an_infinite_objective_is_a_missing_one(name: str, infinite: float) -> None:
    with_infinity, without = runs(), runs()
    with_infinity.loc[2, f"metrics.{name}"] = infinite
    without.loc[2, f"metrics.{name}"] = math.nan
    found = compare(with_infinity, OBJECTIVES)
    pd.testing.assert_frame_equal(found, compare(without, OBJECTIVES))
    table = found.set_index("run_id")
    assert table.index[table["front"]].tolist() == [
        "big",
        "small",
    ]  # as if the third run had not been there
    assert math.isnan(table.at["worse", name])


def test_what_a_compression_cost_is_shown_in_points() -> None:
    name = "metrics.compression/lost"
    made = runs().assign(
        **{
            "tags.compression": [None, None, "onnx_int8_static", None],
            "tags.origin": [None, None, "0123456789abcdef", None],
            "tags.lost_on": [None, None, "test", None],
            f"{name}/balanced_accuracy": [math.nan, math.nan, 0.0123, math.nan],
            f"{name}/balanced_accuracy/low": [math.nan, math.nan, -0.004, math.nan],
            f"{name}/balanced_accuracy/high": [math.nan, math.nan, 0.03, math.nan],
            f"{name}/recall/mel": [math.nan, math.nan, -0.02, math.nan],
        }
    )
    drawn = render_lost(compare(made, OBJECTIVES))
    assert drawn is not None
    console = Console(width=100, record=True)
    console.print(drawn)
    (line,) = [line for line in console.export_text().splitlines() if "onnx_int8_static" in line]
    assert line.split() == [
        "custom",
        "#2",
        "onnx_int8_static",
        "1.2",
        "[-0.4,",
        "3.0]",
        "-",
        "-2.0",
        "test",
        "01234567",
    ]
    assert render_lost(compare(runs(), OBJECTIVES)) is None
