"""Sentences follow from figures."""

import pandas as pd
import pytest

from src.metrics.registry import Limit, Objective
from src.reporting import text
from src.reporting.decisions import Answer

FLOOR = Limit("val/recall/mel", ">=", 0.8)


def row(metric: str, estimate: float, low: float, high: float) -> dict:
    return {
        "run_id": "a",
        "split": "test",
        "metric": metric,
        "estimate": estimate,
        "low": low,
        "high": high,
        "images": 31,
    }


@pytest.mark.parametrize(
    ("estimate", "low", "high", "verdict"),
    [
        (0.9, 0.81, 0.97, ">= 0.8 is kept with its whole interval (31 images)"),
        (
            0.9,
            0.75,
            0.97,
            ">= 0.8 is kept by the estimate, but the interval allows both (31 images)",
        ),
        (
            0.7,
            0.55,
            0.85,
            ">= 0.8 is not kept by the estimate, but the interval allows both (31 images)",
        ),
        (0.6, 0.5, 0.79, ">= 0.8 is not kept (31 images)"),
    ],
)
def test_whether_a_floor_holds_on_test_is_said_as_surely_as_the_interval_allows(
    estimate, low, high, verdict
) -> None:
    intervals = pd.DataFrame(
        [row("balanced_accuracy", 0.6, 0.55, 0.65), row("recall/mel", estimate, low, high)]
    )
    table = pd.DataFrame({"run_id": ["a"], "label": ["custom #1"]})
    answers = [
        Answer("best", "?", "a", ""),
        Answer("cheapest", "?", "a", ""),
        Answer("none", "?", "", ""),
    ]
    [told] = text.on_test(answers, table, intervals, [FLOOR], "balanced_accuracy")
    assert told == (
        f"custom #1 on test: balanced accuracy 0.600 [0.550, 0.650]; recall of mel {estimate:.3f} "
        f"[{low:.3f}, {high:.3f}], {verdict}."
    )


def test_nothing_is_said_of_a_model_that_was_not_tested() -> None:
    table = pd.DataFrame({"run_id": ["a"], "label": ["custom #1"]})
    empty = pd.DataFrame(columns=["run_id", "split", "metric"])
    assert (
        text.on_test([Answer("best", "?", "a", "")], table, empty, [FLOOR], "balanced_accuracy")
        == []
    )


def test_the_opening_counts_every_trial() -> None:
    table = pd.DataFrame({"state": ["front", "pruned", "failed", "pruned", "dominated"]})
    objectives = [
        Objective("val/balanced_accuracy", "maximize"),
        Objective("efficiency/flops", "minimize"),
    ]
    told = text.opening(table, objectives, [FLOOR], 0.5)
    assert told.startswith("5 trials: 1 on the front, 1 dominated, 2 stopped early, 1 failed.")
    assert (
        "more balanced accuracy (validation) and less FLOPs, keeping val/recall/mel >= 0.8" in told
    )


def test_compared_studies_are_ordered_by_hypervolume_and_new_points_named() -> None:
    comparison = pd.DataFrame(
        {
            "study": ["a", "b"],
            "trials": [3, 4],
            "front": [1, 2],
            "hypervolume": [0.2, 0.5],
            "new_points": [0, 1],
        }
    )
    [told] = text.compared(comparison, [])
    assert told.index("b 0.500") < told.index("a 0.200")
    assert told.endswith("Nothing on the front of a is new.")
    assert text.compared(comparison.head(1), []) == []
