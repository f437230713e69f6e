"""Verdicts on the recall, and the names of evaluations."""

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
