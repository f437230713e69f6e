"""Verdicts on the recall, and the names of evaluations."""

from dataclasses import replace

import numpy as np
import pytest

from src.reporting.clinical.results import EvaluateSettings, RecallVerdict


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
def test_the_interval_decides(low: float, high: float, outcome: str) -> None:
    figures = (0.8, low, high, 0.5, 9, 9)
    assert RecallVerdict("argmax", "mel", 0.80, *figures).outcome == outcome
    useless = RecallVerdict("argmax", "mel", 0.80, *figures, problem="every image passes")
    assert useless.outcome == "UNDECIDED"


def test_a_verdict_in_a_sentence() -> None:
    failed = RecallVerdict("argmax", "mel", 0.8, 0.59, 0.5, 0.68, np.nan, 222, 122)
    assert failed.text == (
        "FAIL: recall of mel by the most probable class is 0.590 [0.500, 0.680] on 222 images of "
        "122 lesions; the whole interval is below the goal of 0.8."
    )
    nothing = RecallVerdict("argmax", "mel", 0.8, *[np.nan] * 4, 0, 0)
    assert "is not known (0 images of 0 lesions)" in nothing.text
    problem = "only a threshold that no image passes"
    useless = RecallVerdict("argmax", "mel", 0.8, 0.5, *[np.nan] * 3, 2, 1, problem)
    assert "no interval" in useless.text
    assert f"on validation it is {problem}" in useless.text


def test_choices_are_part_of_the_name() -> None:
    assert EvaluateSettings(test=True, own_root="/own", folder="x").choices == ()
    changed = {"part": "val", "mapping": "/some/mine.yaml", "unknown": "list", "overlap": "keep"}
    choices = EvaluateSettings(**changed).choices  # type: ignore[arg-type]
    assert choices == ("part=val", "labels=mine", "unknown=list", "overlap=keep")


def test_an_undecided_verdict_says_how_many_lesions_would_decide() -> None:
    undecided = RecallVerdict("argmax", "mel", 0.8, 0.75, 0.62, 0.85, 0.9, 60, 50)
    # (1.96 / 0.05)^2 * 0.8 * 0.2 is 245.9
    assert undecided.more_lesions == 246 - 50
    assert (
        "About 196 more lesions of mel would decide, if the recall stays the same."
        in undecided.text
    )
    # of 99%: (2.576 / 0.05)^2 * 0.8 * 0.2 is 424.7
    assert replace(undecided, level=0.99).more_lesions == 425 - 50
    enough = replace(undecided, lesions=300)  # seeds that differ widen the interval
    assert enough.more_lesions == 0
    assert "More lesions alone would not decide" in enough.text
    equal = replace(undecided, recall=0.8)
    assert equal.more_lesions == np.inf
    failed, useless = replace(undecided, high=0.79), replace(undecided, problem="only ...")
    for verdict in (failed, useless, replace(undecided, recall=np.nan)):
        assert np.isnan(verdict.more_lesions)
    for verdict in (equal, failed, useless):
        assert "more lesions" not in verdict.text.lower()
