"""Probabilities to answers: expected values by scipy and by hand."""

import numpy as np
import pytest
from scipy.special import softmax

from src.deployment.description import Decision
from src.deployment.predict import NO_NUMBER, columns, predictions_frame

CLASSES = ("bkl", "mel", "nv")
P = np.array([[0.2, 0.3, 0.5], [0.1, 0.125, 0.775], [0.0, 1.0, 0.0], [0.4, 0.1, 0.5]], np.float32)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_calibrated_is_the_softmax_of_tempered_logarithms(temperature: float) -> None:
    some = P[[0, 1, 3]]
    found = predictions_frame(
        some, CLASSES, Decision("mel", 0.125, "sensitivity >= 0.8", temperature), None
    )
    expected = softmax(np.log(some.astype(float)) / temperature, axis=1)
    np.testing.assert_allclose(
        found[[f"calibrated/{name}" for name in CLASSES]], expected, rtol=1e-12
    )
    np.testing.assert_allclose(
        found["confidence"], expected[:, 2], rtol=1e-12
    )  # nv is on top of each


def test_a_picture_counts_from_the_threshold_on_by_its_own_probability() -> None:
    found = predictions_frame(
        P, CLASSES, Decision("mel", 0.125, "", 5.0), None
    )  # 0.125 is exact in single precision
    assert found["decision"].tolist() == ["mel", "mel", "mel", "not mel"]
    above = predictions_frame(
        P, CLASSES, Decision("mel", float(np.nextafter(0.125, 1)), "", 5.0), None
    )
    assert above["decision"].tolist() == ["mel", "not mel", "mel", "not mel"]


def test_decision_and_most_probable_class_are_two_answers() -> None:
    found = predictions_frame(P, CLASSES, Decision("mel", 0.25, ""), None)
    assert found.loc[0, ["top", "decision"]].tolist() == ["nv", "mel"]
    assert found.loc[1, "top"] == "nv"


def test_unsure_is_below_the_chosen_confidence() -> None:
    found = predictions_frame(P, CLASSES, None, 0.5)
    assert found["unsure"].tolist() == [False, False, False, False]  # 0.5 is not below 0.5
    assert predictions_frame(P, CLASSES, None, 0.51)["unsure"].tolist() == [
        True,
        False,
        False,
        True,
    ]


def test_unsure_looks_at_the_calibrated_probability() -> None:
    softened = softmax(np.log(P[1].astype(float)) / 5)[2]
    found = predictions_frame(P[1:2], CLASSES, Decision("mel", 0.5, "", 5.0), softened + 0.01)
    assert P[1, 2] > softened + 0.01
    assert found["unsure"].tolist() == [True]


def test_without_a_stored_decision_nothing_is_decided_or_calibrated() -> None:
    found = predictions_frame(P, CLASSES, None, None)
    assert found["decision"].isna().all()
    assert found["unsure"].isna().all()
    assert found["confidence"].tolist() == P.max(axis=1).tolist()
    assert not [name for name in found if name.startswith("calibrated/")]


def test_of_equally_probable_classes_the_first_is_on_top() -> None:
    assert predictions_frame(np.array([[0.4, 0.4, 0.2]], np.float32), CLASSES, None, None)[
        "top"
    ].tolist() == ["bkl"]


def test_what_is_no_number_is_a_problem_and_no_answer() -> None:
    broken = np.array([[np.nan, np.nan, np.nan], [0.2, 0.3, 0.5]], np.float32)
    found = predictions_frame(broken, CLASSES, Decision("mel", 0.1, "", 2.0), 0.9)
    assert found["problem"].tolist() == [NO_NUMBER, ""]
    assert found.drop(columns="problem").iloc[0].isna().all()
    assert found.loc[1, ["top", "decision", "unsure"]].tolist() == ["nv", "mel", True]


@pytest.mark.parametrize(
    "decision", [None, Decision("mel", 0.2, ""), Decision("mel", 0.2, "", 1.3)]
)
def test_the_columns_are_those_of_the_answers(decision: Decision | None) -> None:
    assert columns(CLASSES, decision) == ["image", *predictions_frame(P, CLASSES, decision, 0.5)]
