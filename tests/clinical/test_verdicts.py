"""The recall that must be reached: when it is said to be, and when nothing is said."""

import numpy as np
import pandas as pd
import pytest

from src.reporting.clinical.record import RecallVerdict, judge, verdicts


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (0.80, 0.95, "PASS"),
        (0.81, 0.95, "PASS"),
        (0.79, 0.95, "UNDECIDED"),
        (0.60, 0.80, "UNDECIDED"),
        (0.60, 0.79, "FAIL"),
        (np.nan, np.nan, "UNDECIDED"),
    ],
)
def test_an_interval_that_holds_the_goal_decides_nothing(
    low: float, high: float, outcome: str
) -> None:
    assert judge(low, high, 0.80) == outcome


def row(rule: str, measure: str, estimate: float, problem: str = "") -> dict[str, object]:
    spread = {"low": estimate - 0.05, "high": estimate + 0.05}
    return {
        "rule": rule,
        "measure": measure,
        "estimate": estimate,
        **spread,
        "images": 30,
        "groups": 20,
        "problem": problem,
    }


def test_only_recall_by_the_class_and_by_the_threshold_for_it_is_judged() -> None:
    rows = [
        row(rule, measure, 0.9)
        for rule in ("argmax", "sensitivity >= 0.8")
        for measure in ("sensitivity", "ppv")
    ]
    rows.append(row("specificity >= 0.9", "sensitivity", 0.9))
    found = verdicts(pd.DataFrame(rows), "mel", 0.8)
    assert [(each.rule, each.outcome) for each in found] == [
        ("argmax", "PASS"),
        ("sensitivity >= 0.8", "PASS"),
    ]


def test_a_verdict_in_words() -> None:
    failed = RecallVerdict("argmax", "mel", 0.8, 0.59, 0.5, 0.68, 222, 122, "FAIL")
    assert failed.text == (
        "FAIL: recall of mel by the most probable class is 0.590 [0.500, 0.680] on 222 images of 122 lesions; "
        "the whole interval is below the goal of 0.8."
    )
    unknown = RecallVerdict("argmax", "mel", 0.8, np.nan, np.nan, np.nan, 0, 0, "UNDECIDED")
    assert "is not known (0 images of 0 lesions)" in unknown.text
    alone = RecallVerdict(
        "argmax",
        "mel",
        0.8,
        0.5,
        np.nan,
        np.nan,
        2,
        1,
        "UNDECIDED",
        "only a threshold that no image passes",
    )
    assert "no interval" in alone.text
    assert "only a threshold that no image passes fulfils it on validation" in alone.text
