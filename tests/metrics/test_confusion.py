import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from src.metrics.classification import overall, per_class

# true and predicted labels of 2 to 7 classes, any of which may be absent from either
LABELS = st.integers(2, 7).flatmap(
    lambda k: st.tuples(
        st.just(k),
        st.lists(st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)), min_size=1, max_size=40),
    )
)


def split(pairs: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    true, predicted = zip(*pairs, strict=True)
    return list(true), list(predicted)


def matrix_of(k: int, pairs: list[tuple[int, int]]) -> np.ndarray:
    return sk.confusion_matrix(*split(pairs), labels=range(k))


@given(LABELS)
def test_overall_is_scikit_learns(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    true, predicted = split(drawn[1])
    measured = overall(matrix_of(*drawn))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are predicted and absent
        assert measured["accuracy"] == pytest.approx(sk.accuracy_score(true, predicted))
        assert measured["balanced_accuracy"] == pytest.approx(
            sk.balanced_accuracy_score(true, predicted)
        )
        assert measured["macro_f1"] == pytest.approx(sk.f1_score(true, predicted, average="macro"))


@given(LABELS)
def test_per_class_is_scikit_learns_and_nan_where_undefined(
    drawn: tuple[int, list[tuple[int, int]]],
) -> None:
    k, pairs = drawn
    true, predicted = split(pairs)
    measured = per_class(matrix_of(k, pairs))
    options = {"labels": range(k), "average": None, "zero_division": math.nan}
    np.testing.assert_allclose(measured["recall"], sk.recall_score(true, predicted, **options))
    np.testing.assert_allclose(
        measured["precision"], sk.precision_score(true, predicted, **options)
    )
    np.testing.assert_allclose(measured["f1"], sk.f1_score(true, predicted, **options))
    for label in range(k):  # specificity is the recall of "not this class"
        others, guesses = [t != label for t in true], [p != label for p in predicted]
        expected = sk.recall_score(others, guesses, zero_division=math.nan)
        np.testing.assert_allclose(measured["specificity"][label], expected)


def test_by_hand() -> None:
    matrix = np.array(
        [[8, 2, 0], [1, 3, 0], [0, 0, 0]]
    )  # the third class is neither there nor predicted
    measured = per_class(matrix)
    np.testing.assert_allclose(measured["recall"], [8 / 10, 3 / 4, math.nan])
    np.testing.assert_allclose(measured["precision"], [8 / 9, 3 / 5, math.nan])
    np.testing.assert_allclose(measured["f1"], [16 / 19, 6 / 9, math.nan])
    np.testing.assert_allclose(measured["specificity"], [3 / 4, 8 / 10, 1])
    assert overall(matrix) == pytest.approx(
        {
            "accuracy": 11 / 14,
            "balanced_accuracy": (8 / 10 + 3 / 4) / 2,
            "macro_f1": (16 / 19 + 6 / 9) / 2,
        }
    )


def test_nothing_counted_is_nothing_known() -> None:
    assert all(math.isnan(value) for value in overall(np.zeros((3, 3), dtype=int)).values())
