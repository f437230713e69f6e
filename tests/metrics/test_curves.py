"""Curves against scikit-learn, torchmetrics, isic-challenge-scoring and hand arithmetic."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from clinical_cases import frame, made_up, scored
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, roc_auc_score
from torchmetrics.functional.classification import (
    binary_sensitivity_at_specificity,
    binary_specificity_at_sensitivity,
)

from src.metrics import curves
from src.metrics.bootstrap import (
    curve_statistics,
    estimates,
    evaluate,
    gather,
    intervals,
    isic_balanced_accuracy,
)
from src.metrics.settings import AuditSettings


def of(
    curve: curves.Curve, score: np.ndarray, own: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """A statistic where every image is a group of its own."""
    ranking = curves.RocCurve(score, own, np.arange(len(own)), len(own))
    weights = np.ones(len(own)) if weights is None else weights
    return float(curve(*ranking.counts(weights[:, None]))[0])


@given(scored(), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_areas_are_those_of_scikit_learn_with_weights_and_ties(
    case: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    score, own = case
    weights = np.random.default_rng(seed).integers(0, 3, size=len(own)).astype(float)
    weights[:2] = 1
    assert of(curves.area, score, own, weights) == pytest.approx(
        roc_auc_score(own, score, sample_weight=weights)
    )
    expected = average_precision_score(own, score, sample_weight=weights)
    assert of(curves.average_precision, score, own, weights) == pytest.approx(expected)


@given(scored())
@settings(max_examples=40, deadline=None)
def test_pauc_is_the_isic_2024_metric(case: tuple[np.ndarray, np.ndarray]) -> None:
    score, own = case
    # the challenge's own route: the reverse problem's partial area, with scikit-learn's correction
    # undone
    corrected = roc_auc_score(~own, -score, max_fpr=0.2)
    assert of(curves.pauc, score, own) == pytest.approx(
        0.02 + 0.18 / 0.5 * (corrected - 0.5), abs=1e-12
    )


def test_partial_areas_by_hand() -> None:
    own = np.array([True] * 5 + [False] * 5)
    perfect, constant, reverse = own.astype(float), np.ones(10), (~own).astype(float)
    assert [of(curves.pauc, score, own) for score in (perfect, constant, reverse)] == pytest.approx(
        [0.2, 0.02, 0.0]
    )
    # chance: the triangle of 0.2 x 0.2 on a block of 0.2 x 0.8
    areas = [
        of(curves.area_above_sensitivity, score, own) for score in (perfect, constant, reverse)
    ]
    assert areas == pytest.approx([1.0, 0.18, 0.0])
    # four of five first, two others, the fifth, three others: the curve steps at 1 - specificity
    # 0.4 from 0.8 to 1
    stepped = np.array([10, 9, 8, 7, 4, 6, 5, 3, 2, 1], dtype=float)
    assert of(curves.pauc, stepped, own) == pytest.approx(0.6 * 0.2)
    assert of(curves.area_above_sensitivity, stepped, own) == pytest.approx(0.4 * 0.8 + 0.6)


@given(scored(), st.sampled_from([0.05, 0.5, 0.8, 0.9, 0.95]))
@settings(max_examples=40, deadline=None)
def test_fixed_points_are_those_of_torchmetrics(
    case: tuple[np.ndarray, np.ndarray], least: float
) -> None:
    score, own = case
    scores, target = torch.tensor(score, dtype=torch.float64), torch.tensor(own).long()
    best, _ = binary_sensitivity_at_specificity(scores, target, min_specificity=least)
    assert of(curves.sensitivity_at(least), score, own) == pytest.approx(float(best), abs=1e-6)
    best, _ = binary_specificity_at_sensitivity(scores, target, min_sensitivity=least)
    assert of(curves.specificity_at(least), score, own) == pytest.approx(float(best), abs=1e-6)


def test_a_wanted_value_that_is_just_reached_counts() -> None:
    own = np.array([True] * 100 + [False] * 100)
    score = np.concatenate([np.arange(100, 200), np.arange(100)]).astype(float)
    score[7:100] = -np.arange(1, 94)  # seven first... of the class, the others of it last
    score[:7] = 1000
    assert (
        of(curves.specificity_at(0.07), score, own) == 1
    )  # 0.07 * 100 is a bit more than 7 in floating point
    assert of(curves.sensitivity_at(0.95), score, own) == 0.07


@given(scored())
@settings(max_examples=40, deadline=None)
def test_only_the_order_of_scores_counts(case: tuple[np.ndarray, np.ndarray]) -> None:
    score, own = case
    for curve in (*curves.CURVES.values(), curves.sensitivity_at(0.9), curves.specificity_at(0.8)):
        assert of(curve, np.exp(3 * score) - 5, own) == of(curve, score, own)
    assert of(curves.area, -score, own) == pytest.approx(1 - of(curves.area, score, own))


@pytest.mark.parametrize("kind", [True, False])
def test_one_kind_of_images_defines_no_area(kind: bool) -> None:
    score, own = np.array([0.1, 0.2, 0.3]), np.full(3, kind)
    for curve in (
        curves.area,
        curves.pauc,
        curves.area_above_sensitivity,
        curves.sensitivity_at(0.9),
    ):
        assert np.isnan(of(curve, score, own))
    assert of(curves.average_precision, score, own) == pytest.approx(
        1.0 if kind else np.nan, nan_ok=True
    )


def test_fixed_statistics_are_named_by_per_cent() -> None:
    assert list(curves.fixed_points((0.9, 0.975))) == [
        "sensitivity_at_spec90",
        "sensitivity_at_spec97.5",
        "specificity_at_sens90",
        "specificity_at_sens97.5",
    ]


def test_intervals_are_those_of_the_other_bootstrap() -> None:
    """Both compute the area from the same draws, in two ways: everything must agree."""
    tables = made_up(3, names=("benign", "malignant"))
    there = intervals(tables, ["auroc"], samples=100, seed=5).iloc[0]
    given_ = gather(tables)
    wanted = [curve_statistics(given_, "malignant", {"auroc": curves.area})]
    here = estimates(given_, wanted, AuditSettings(samples=100, seed=5)).loc["auroc/malignant"]
    assert here[["estimate", "low", "high"]].to_list() == pytest.approx(
        there[["estimate", "low", "high"]].to_list()
    )
    kinds = [tables[0][tables[0]["label"] == kind] for kind in ("benign", "malignant")]
    rarer = min(kinds, key=lambda kind: kind["group"].nunique())
    assert here[["images", "groups", "seeds"]].to_list() == [
        len(rarer),
        rarer["group"].nunique(),
        2,
    ]


def test_a_net_that_tells_nothing_has_an_area_of_a_half() -> None:
    same = frame(np.full((10, 2), 0.5), np.arange(10) % 2, ("nv", "mel"))
    given_ = gather([same])
    found = estimates(
        given_, [curve_statistics(given_, "mel", curves.CURVES)], AuditSettings(samples=100)
    )["estimate"]
    assert found.to_list() == pytest.approx([0.5, 0.5, 0.18, 0.02])


def test_the_area_below_the_points_is_the_auroc() -> None:
    given = gather(made_up(4))
    points = curves.roc(given)
    for name in given.classes:
        areas = evaluate(given, curve_statistics(given, name, {"auroc": curves.area}))[:, 0]
        for seed, area in enumerate(areas):
            rows = points[(points["class"] == name) & (points["seed"] == seed)]
            assert auc(rows["false_positive_rate"], rows["sensitivity"]) == pytest.approx(area)


def test_each_point_is_what_its_threshold_gives() -> None:
    tables = made_up(4, images=60)
    given = gather(tables)
    own = (tables[1]["label"] == "mel").to_numpy()
    score = tables[1]["p/mel"].to_numpy()
    for row in curves.roc(given).query("`class` == 'mel' and seed == 1").itertuples():
        positive = score >= row.threshold
        assert (row.false_positive_rate, row.sensitivity) == pytest.approx(
            (positive[~own].mean(), positive[own].mean())
        )
    for row in curves.precision_recall(given).query("`class` == 'mel' and seed == 1").itertuples():
        positive = score >= row.threshold
        assert row.recall == pytest.approx(positive[own].mean())
        assert row.precision == pytest.approx(own[positive].mean() if positive.any() else 1)


def test_a_class_without_images_has_no_curve() -> None:
    tables = [table[table["label"] != "nv"] for table in made_up(4)]
    given = gather(tables)
    assert set(curves.roc(given)["class"]) == {"bkl", "mel"}
    alone = gather([table[table["label"] == "mel"] for table in tables])
    assert curves.roc(alone).empty
    assert list(curves.precision_recall(alone)) == curves.PRECISION_RECALL_COLUMNS
    assert np.isinf(curves.precision_recall(given)["threshold"]).sum() == 4


LABELS = "aaaabbbbbccc"
# the second and the eleventh image are undecided
PROBABILITIES = [
    (0.7, 0.2, 0.1),
    (0.4, 0.4, 0.2),
    (0.3, 0.5, 0.2),
    (0.6, 0.3, 0.1),
    (0.1, 0.8, 0.1),
    (0.2, 0.6, 0.2),
    (0.4, 0.3, 0.3),
    (0.25, 0.5, 0.25),
    (0.3, 0.3, 0.4),
    (0.1, 0.1, 0.8),
    (0.2, 0.4, 0.4),
    (0.5, 0.25, 0.25),
]
# per_category of isic_challenge_scoring.ClassificationScore 5.6.0 for these predictions
NAMES = ("accuracy", "sensitivity", "specificity", "dice", "ppv", "npv", "auc", "auc_sens_80", "ap")
PER_CATEGORY = {
    "a": dict(
        zip(
            NAMES, (5 / 6, 0.5, 1.0, 2 / 3, 1.0, 0.8, 0.875, 0.715, 0.7928571428571429), strict=True
        )
    ),
    "b": dict(
        zip(
            NAMES,
            (0.75, 0.4, 1.0, 4 / 7, 1.0, 0.7, 11 / 14, 0.4928571428571429, 0.7722222222222223),
            strict=True,
        )
    ),
    "c": dict(
        zip(
            NAMES,
            (5 / 6, 1 / 3, 1.0, 0.5, 1.0, 9 / 11, 8 / 9, 0.7266666666666667, 13 / 18),
            strict=True,
        )
    ),
}


def case() -> pd.DataFrame:
    target = np.array(["abc".index(label) for label in LABELS])
    return frame(np.array(PROBABILITIES), target, "abc")


def test_the_packages_own_figures() -> None:
    found = curves.isic_scores(gather([case()])).set_index("class")
    for name, expected in PER_CATEGORY.items():
        assert found.loc[name].to_dict() == pytest.approx(expected)
    assert found.loc["macro_average"].to_dict() == pytest.approx(
        pd.DataFrame(PER_CATEGORY).mean(axis=1).to_dict()
    )


def test_balanced_accuracy_calls_a_tie_wrong() -> None:
    given_ = gather([case()])
    # a: 2 of 4 (one of the others is undecided), b: 3 of 5, c: 1 of 3 (one undecided)
    assert evaluate(given_, isic_balanced_accuracy(given_)).item() == pytest.approx(
        (2 / 4 + 3 / 5 + 1 / 3) / 3
    )


def test_a_class_without_images_is_left_out_and_a_rate_of_nothing_is_one() -> None:
    table = case()
    table = table[table["label"] != "c"]
    given_ = gather([table])
    assert evaluate(given_, isic_balanced_accuracy(given_)).item() == pytest.approx(
        (2 / 4 + 3 / 5) / 2
    )
    row = curves.isic_scores(given_).set_index("class").loc["c"]
    assert row["sensitivity"] == row["ppv"] == row["dice"] == row["npv"] == 1
    assert row[["auc", "auc_sens_80", "ap"]].isna().all()


def test_several_nets_are_averaged() -> None:
    first = case()
    second = first.assign(**{"p/a": first["p/b"], "p/b": first["p/a"]})
    alone = [curves.isic_scores(gather([each])).set_index("class") for each in (first, second)]
    both = curves.isic_scores(gather([first, second])).set_index("class")
    pd.testing.assert_frame_equal(both, (alone[0] + alone[1]) / 2)


@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(8, 40))
@settings(max_examples=10, deadline=None)
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
    said = table[[f"p/{name}" for name in names]].astype(float).set_axis(names, axis=1)
    weights = pd.DataFrame({"score_weight": 1.0, "validation_weight": 1.0}, index=truth.index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        score = scoring.ClassificationScore(
            truth, said, weights, scoring.ClassificationMetric.BALANCED_ACCURACY
        )
    given_ = gather([table])
    found = curves.isic_scores(given_).set_index("class")
    np.testing.assert_allclose(found.loc[names].to_numpy(float), score.per_category.to_numpy(float))
    assert evaluate(given_, isic_balanced_accuracy(given_)).item() == pytest.approx(
        score.aggregate["balanced_accuracy"]
    )
