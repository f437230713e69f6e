"""Statistics of ROC and precision-recall curves against scikit-learn, torchmetrics and hand arithmetic."""

import numpy as np
import pytest
import torch
from clinical_cases import frame, made_up, scored
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics.functional.classification import (
    binary_sensitivity_at_specificity,
    binary_specificity_at_sensitivity,
)

from src.metrics import curves
from src.metrics.bootstrap import estimates, gather, intervals
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
    assert list(curves.fixed((0.9, 0.975))) == [
        "sensitivity_at_spec90",
        "sensitivity_at_spec97.5",
        "specificity_at_sens90",
        "specificity_at_sens97.5",
    ]


def test_intervals_are_those_of_the_other_bootstrap() -> None:
    """The area is computed there too, in another way; the draws are the same, so everything must agree."""
    tables = made_up(3, names=("benign", "malignant"))
    there = intervals(tables, ["auroc"], samples=100, seed=5).iloc[0]
    given_ = gather(tables)
    wanted = [curves.statistics(given_, "malignant", {"auroc": curves.area})]
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
        given_, [curves.statistics(given_, "mel", curves.CURVES)], AuditSettings(samples=100)
    )["estimate"]
    assert found.to_list() == pytest.approx([0.5, 0.5, 0.18, 0.02])
