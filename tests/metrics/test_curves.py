"""Curves against scikit-learn, torchmetrics, isic-challenge-scoring and hand arithmetic."""

import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from clinical_cases import frame, made_up, scored
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)
from torchmetrics.functional.classification import (
    binary_sensitivity_at_specificity,
    binary_specificity_at_sensitivity,
)

from src.metrics import curves
from src.metrics.bootstrap import evaluate, gather
from src.metrics.bootstrap import isic_balanced_accuracy as balanced_accuracy

Case = tuple[np.ndarray, np.ndarray]  # scores, and which images are of the class


def value(
    curve: curves.Curve, score: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """A statistic where the groups are the images."""
    roc = curves.RocCurve(score, positive, np.arange(len(positive)), len(positive))
    weights = np.ones(len(positive)) if weights is None else weights
    return float(curve(*roc.counts(weights[:, None]))[0])


@given(scored(), st.integers(0, 10**6))
@settings(max_examples=30)
def test_areas_are_those_of_scikit_learn_with_weights_and_ties(case: Case, seed: int) -> None:
    score, positive = case
    weights = np.random.default_rng(seed).integers(0, 3, size=len(positive)).astype(float)
    weights[:2] = 1
    expected = roc_auc_score(positive, score, sample_weight=weights)
    assert value(curves.area, *case, weights) == pytest.approx(expected)
    expected = average_precision_score(positive, score, sample_weight=weights)
    assert value(curves.average_precision, *case, weights) == pytest.approx(expected)
    # the ISIC 2024 metric: the partial area of the reverse problem, with scikit-learn's
    # correction undone
    corrected = roc_auc_score(~positive, -score, max_fpr=0.2)
    expected = 0.02 + 0.18 / 0.5 * (corrected - 0.5)
    assert value(curves.pauc, *case) == pytest.approx(expected, abs=1e-12)


def test_partial_areas_by_hand() -> None:
    positive = np.array([True] * 5 + [False] * 5)
    # four of five first, two others, the fifth, three others: the curve steps at 1 - specificity
    # 0.4 from 0.8 to 1
    stepped = np.array([10, 9, 8, 7, 4, 6, 5, 3, 2, 1], dtype=float)
    scores = [positive.astype(float), np.ones(10), (~positive).astype(float), stepped]
    areas = [value(curves.pauc, score, positive) for score in scores]
    assert areas == pytest.approx([0.2, 0.02, 0.0, 0.6 * 0.2])
    # chance: the triangle of 0.2 x 0.2 on a block of 0.2 x 0.8
    areas = [value(curves.area_above_sensitivity, score, positive) for score in scores]
    assert areas == pytest.approx([1.0, 0.18, 0.0, 0.4 * 0.8 + 0.6])


@given(scored(), st.sampled_from([0.05, 0.5, 0.8, 0.9, 0.95]))
@settings(max_examples=30)
def test_fixed_points_are_those_of_torchmetrics(case: Case, least: float) -> None:
    tensors = torch.tensor(case[0], dtype=torch.float64), torch.tensor(case[1]).long()
    best, _ = binary_sensitivity_at_specificity(*tensors, min_specificity=least)
    point = value(partial(curves.sensitivity_at, least), *case)
    assert point == pytest.approx(float(best), abs=1e-6)
    best, _ = binary_specificity_at_sensitivity(*tensors, min_sensitivity=least)
    point = value(partial(curves.specificity_at, least), *case)
    assert point == pytest.approx(float(best), abs=1e-6)


def test_a_rate_that_is_just_reached_counts() -> None:
    positive = np.array([True] * 100 + [False] * 100)
    score = np.concatenate([np.arange(100, 200), np.arange(100)]).astype(float)
    score[7:100] = -np.arange(1, 94)  # seven of the class first, its others last
    score[:7] = 1000
    # 0.07 * 100 is a bit more than 7 in floating point
    assert value(partial(curves.specificity_at, 0.07), score, positive) == 1
    assert value(partial(curves.sensitivity_at, 0.95), score, positive) == 0.07


FIXED = curves.fixed_points((0.9, 0.975))


@given(scored())
@settings(max_examples=30)
def test_only_the_order_of_scores_counts(case: Case) -> None:
    score, positive = case
    for curve in (curves.CURVES | FIXED).values():
        assert value(curve, np.exp(3 * score) - 5, positive) == value(curve, score, positive)
    rates = ("sensitivity_at_spec", "specificity_at_sens")
    assert list(FIXED) == [f"{rate}{percent}" for rate in rates for percent in ("90", "97.5")]
    reverse = value(curves.area, -score, positive)
    assert reverse == pytest.approx(1 - value(curves.area, score, positive))


@pytest.mark.parametrize("kind", [True, False])
def test_one_kind_of_images_defines_no_area(kind: bool) -> None:
    score, positive = np.array([0.1, 0.2, 0.3]), np.full(3, kind)
    areas = [curves.area, curves.pauc, curves.area_above_sensitivity]
    for curve in (*areas, FIXED["sensitivity_at_spec90"]):
        assert np.isnan(value(curve, score, positive))
    precision = value(curves.average_precision, score, positive)
    assert precision == pytest.approx(1.0 if kind else np.nan, nan_ok=True)


@given(scored())
@settings(max_examples=30)
def test_points_are_those_of_scikit_learn(case: Case) -> None:
    score, positive = case
    nets = [
        frame(np.stack([1 - one, one], axis=1), positive.astype(int), ("nv", "mel"))
        for one in (1 - score, score)
    ]
    predictions, name = gather(nets), "`class` == 'mel' and seed == 1"
    points = curves.roc(predictions).query(name)[
        ["false_positive_rate", "sensitivity", "threshold"]
    ]
    np.testing.assert_array_equal(points.to_numpy().T, roc_curve(positive, score))
    points = curves.precision_recall(predictions).query(name)
    expected = precision_recall_curve(positive, score, drop_intermediate=True)
    for column, values in zip(("precision", "recall"), expected[:2], strict=True):
        np.testing.assert_array_equal(points[column], values)
    np.testing.assert_array_equal(points["threshold"][:-1], expected[2])


def test_a_class_without_images_has_no_curve() -> None:
    tables = [table[table["label"] != "nv"] for table in made_up(4)]
    predictions = gather(tables)
    assert set(curves.roc(predictions)["class"]) == {"bkl", "mel"}
    alone = gather([table[table["label"] == "mel"] for table in tables])
    assert curves.roc(alone).empty
    columns = ["class", "seed", "recall", "precision", "threshold"]
    assert list(curves.precision_recall(alone)) == columns
    assert np.isinf(curves.precision_recall(predictions)["threshold"]).sum() == 4


LABELS = "aaaabbbbbccc"
# rows a, b, c of probabilities in per cent; the second and the eleventh image are undecided
PROBABILITIES = [
    [70, 40, 30, 60, 10, 20, 40, 25, 30, 10, 20, 50],
    [20, 40, 50, 30, 80, 60, 30, 50, 30, 10, 40, 25],
    [10, 20, 20, 10, 10, 20, 30, 25, 40, 80, 40, 25],
]
# per_category of isic_challenge_scoring.ClassificationScore 5.6.0 for these predictions
NAMES = ["accuracy", "sensitivity", "specificity", "dice", "ppv", "npv", "auc", "auc_sens_80", "ap"]
PER_CATEGORY = pd.DataFrame(
    {
        "a": [5 / 6, 0.5, 1.0, 2 / 3, 1.0, 0.8, 0.875, 0.715, 0.7928571428571429],
        "b": [0.75, 0.4, 1.0, 4 / 7, 1.0, 0.7, 11 / 14, 0.4928571428571429, 0.7722222222222223],
        "c": [5 / 6, 1 / 3, 1.0, 0.5, 1.0, 9 / 11, 8 / 9, 0.7266666666666667, 13 / 18],
    },
    index=NAMES,
)


def undecided() -> pd.DataFrame:
    target = np.array(["abc".index(label) for label in LABELS])
    return frame(np.array(PROBABILITIES).T / 100, target, "abc")


def test_isic_scores_are_those_of_the_package() -> None:
    first, predictions = undecided(), gather([undecided()])
    scores = curves.isic_scores(predictions).set_index("class")
    expected = PER_CATEGORY.assign(macro_average=PER_CATEGORY.mean(axis=1)).T
    np.testing.assert_allclose(scores[NAMES], expected)
    # a: 2 of 4 (one of the others is undecided), b: 3 of 5, c: 1 of 3 (one undecided)
    balanced = evaluate(predictions, balanced_accuracy(predictions)).item()
    assert balanced == pytest.approx((2 / 4 + 3 / 5 + 1 / 3) / 3)
    # several nets are averaged
    second = first.assign(**{"p/a": first["p/b"], "p/b": first["p/a"]})
    other = curves.isic_scores(gather([second])).set_index("class")
    both = curves.isic_scores(gather([first, second])).set_index("class")
    pd.testing.assert_frame_equal(both, (scores + other) / 2)
    # without images of c
    predictions = gather([first[first["label"] != "c"]])
    balanced = evaluate(predictions, balanced_accuracy(predictions)).item()
    assert balanced == pytest.approx((2 / 4 + 3 / 5) / 2)
    row = curves.isic_scores(predictions).set_index("class").loc["c"]
    assert row["sensitivity"] == row["ppv"] == row["dice"] == row["npv"] == 1
    assert row[["auc", "auc_sens_80", "ap"]].isna().all()


@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(8, 40))
@settings(max_examples=10)
def test_the_installed_package_agrees(seed: int, classes: int, images: int) -> None:
    scoring = pytest.importorskip(
        "isic_challenge_scoring.classification", reason="isic-challenge-scoring is absent"
    )
    rng = np.random.default_rng(seed)
    target = np.concatenate([np.arange(classes), rng.integers(classes, size=images - classes)])
    share = rng.integers(1, 5, size=(images, classes)).astype(float)  # few values: ties
    table = frame(share / share.sum(axis=1, keepdims=True), target, "abcd"[:classes])
    names = list("abcd"[:classes])
    truth = pd.DataFrame(np.eye(classes)[target], columns=names)
    predicted = table[[f"p/{name}" for name in names]].astype(float).set_axis(names, axis=1)
    weights = pd.DataFrame({"score_weight": 1.0, "validation_weight": 1.0}, index=truth.index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        score = scoring.ClassificationScore(
            truth, predicted, weights, scoring.ClassificationMetric.BALANCED_ACCURACY
        )
    predictions = gather([table])
    scores = curves.isic_scores(predictions).set_index("class")
    np.testing.assert_allclose(
        scores.loc[names].to_numpy(float), score.per_category.to_numpy(float)
    )
    assert evaluate(predictions, balanced_accuracy(predictions)).item() == pytest.approx(
        score.aggregate["balanced_accuracy"]
    )
