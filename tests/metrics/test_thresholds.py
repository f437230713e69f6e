"""Thresholds chosen on validation and applied to test, by hand and in general."""

import math

import numpy as np
import pandas as pd
import pytest
from clinical_cases import frame, made_up, scored
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from src.metrics.bootstrap import ARGMAX, evaluate, gather, intervals
from src.metrics.settings import AuditSettings
from src.metrics.thresholds import (
    TargetRate,
    Threshold,
    choose,
    lesions_to_settle,
    points,
    rates,
    rule_text,
)


def rates_at(score: np.ndarray, positive: np.ndarray, threshold: float) -> tuple[float, float]:
    passed = score >= threshold
    return float(passed[positive].mean()), float((~passed[~positive]).mean())


SCORE = [0.9, 0.8, 0.7, 0.6, 0.2, 0.85, 0.65, 0.4, 0.3, 0.1]
FIVE = [1] * 5 + [0] * 5


@pytest.mark.parametrize(
    ("score", "positive", "measure", "expected", "problem"),
    [
        # four of five pass 0.6, with 0.85 and 0.65 of the others
        (SCORE, FIVE, "sensitivity", 0.6, ""),
        # at most one other may pass: 0.7 lets 0.85 through and finds three
        (SCORE, FIVE, "specificity", 0.7, ""),
        ([0.5] * 4, [1, 1, 0, 0], "sensitivity", 0.5, "every image passes"),
        ([0.2, 0.9], [1, 0], "specificity", np.inf, "no image passes"),
        ([0, 1], [1, 1], "sensitivity", np.nan, "validation has no images of others"),
        ([0, 1], [0, 0], "sensitivity", np.nan, "validation has no images of the class"),
        ([], [], "sensitivity", np.nan, "validation has no images of the class"),
    ],
)
def test_the_best_threshold_by_hand_and_the_problem_of_one_of_no_use(
    score: list[float], positive: list[int], measure: str, expected: float, problem: str
) -> None:
    target = TargetRate(measure, 0.8)  # type: ignore[arg-type]
    chosen = choose(np.array(score, dtype=float), np.array(positive, dtype=bool), target)
    assert chosen.value == pytest.approx(expected, nan_ok=True)
    assert chosen.problem.endswith(problem)
    assert bool(chosen.problem) == bool(problem)


@given(scored(), st.floats(0.01, 0.99), st.sampled_from(["sensitivity", "specificity"]))
@settings(max_examples=40)
def test_no_other_threshold_is_better(
    case: tuple[np.ndarray, np.ndarray], least: float, measure: str
) -> None:
    score, positive = case
    chosen = choose(score, positive, TargetRate(measure, least))  # type: ignore[arg-type]
    both = rates_at(score, positive, chosen.value)
    at = 0 if measure == "sensitivity" else 1
    pairs = [rates_at(score, positive, value) for value in [*np.unique(score), np.inf]]
    assert both[at] >= least - 1e-9
    best = max(pair[1 - at] for pair in pairs if pair[at] >= least - 1e-9)
    assert both[1 - at] == pytest.approx(best)


@given(scored(), st.floats(0.01, 0.98), st.floats(0.001, 0.5))
@settings(max_examples=20)
def test_more_sensitivity_never_takes_a_higher_threshold(
    case: tuple[np.ndarray, np.ndarray], least: float, more: float
) -> None:
    for measure, order in (("sensitivity", -1), ("specificity", 1)):
        targets = [TargetRate(measure, rate) for rate in (least, min(least + more, 0.99))]  # type: ignore[arg-type]
        first, second = (choose(*case, target) for target in targets)
        assert order * first.value <= order * second.value


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_rates_are_those_of_the_confusion_matrix(seed: int) -> None:
    predictions = gather(made_up(seed, images=40, nets=1))
    positive = predictions.probability[0, :, 1] >= 0.4
    matrix = confusion_matrix(predictions.target == 1, positive, labels=[False, True])
    (rejected, alarms), (missed, hits) = matrix.tolist()
    expected = [hits / (hits + missed), rejected / (rejected + alarms)]
    expected += [hits / (hits + alarms) if hits + alarms else np.nan]
    expected += [rejected / (rejected + missed) if rejected + missed else np.nan]
    values = evaluate(predictions, rates(predictions, "mel", [Threshold(0.4)]))[0]
    assert values.tolist() == pytest.approx(expected, nan_ok=True)


def test_the_most_probable_class_has_the_recorded_recall_and_its_interval() -> None:
    test = made_up(1)
    table = points(gather(test), None, "mel", AuditSettings(samples=100, seed=4))
    recorded = intervals(test, samples=100, seed=4).set_index("metric")
    assert set(table["rule"]) == {ARGMAX}
    assert table["val"].isna().all()
    names = {"sensitivity": "recall", "specificity": "specificity", "ppv": "precision"}
    for measure, name in names.items():
        row, other = table.set_index("measure").loc[measure], recorded.loc[f"{name}/mel"]
        assert row["estimate"] == pytest.approx(other["estimate"])
        assert row["low"] <= other["low"] + 1e-9  # or wider, by the exact interval
        assert row["high"] >= other["high"] - 1e-9
    # a perfect rate has an exact interval over lesions
    target = np.array([0, 0, 1, 1, 1, 1, 1, 1])
    right = frame(np.eye(2)[target], target, ("nv", "mel"), np.array([0, 1, 2, 2, 3, 3, 4, 4]))
    table = points(gather([right]), None, "mel", AuditSettings(samples=100))
    row = table.set_index("measure").loc["sensitivity"]
    assert (row["estimate"], row["high"], row["interval"], row["groups"]) == (1, 1, "exact", 3)
    # all of three right is that likely at this rate
    assert row["low"] == pytest.approx(0.025 ** (1 / 3))
    assert rule_text("argmax") == "the most probable class"
    assert rule_text("balanced") == "the decision rule balanced"
    assert rule_text("sensitivity >= 0.8") == "the threshold chosen for sensitivity >= 0.8"


def test_thresholds_are_chosen_on_val_and_applied_to_test() -> None:
    val, test = made_up(5), made_up(6)
    audit = AuditSettings(samples=100, sensitivity=0.7, specificity=0.85)
    table = points(gather(test), gather(val), "mel", audit).set_index(["rule", "measure"])
    rule = "sensitivity >= 0.7"
    chosen = [choose(*scores_of(net), TargetRate("sensitivity", 0.7)).value for net in val]
    texts = table.loc[(rule, "sensitivity"), "threshold"].split()
    assert [float(text) for text in texts] == pytest.approx(chosen, rel=1e-3)
    for column, nets in (("val", val), ("estimate", test)):
        pairs = [rates_at(*scores_of(net), at) for net, at in zip(nets, chosen, strict=True)]
        values = table.loc[[(rule, "sensitivity"), (rule, "specificity")], column]
        assert values.to_list() == pytest.approx(np.mean(pairs, axis=0).tolist())
    assert table.loc[(rule, "sensitivity"), "val"] >= 0.7
    assert table.loc[("specificity >= 0.85", "specificity"), "val"] >= 0.85
    without = [net[net["label"] != "mel"] for net in val]
    table = points(gather(test), gather(without), "mel", audit)
    chosen_rows = table[table["rule"] != ARGMAX]
    assert chosen_rows[["val", "estimate", "low", "high"]].isna().all(axis=None)
    assert set(chosen_rows["problem"]) == {"validation has no images of the class"}


def scores_of(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return table["p/mel"].to_numpy(dtype=float), (table["label"] == "mel").to_numpy()


@pytest.mark.parametrize(("share", "goal"), [(0.75, 0.8), (0.84, 0.8), (0.6, 0.8), (0.95, 0.9)])
def test_the_lesions_that_settle_a_recall_are_the_first_whose_wilson_interval_does(
    share: float, goal: float
) -> None:
    """SciPy's Wilson interval, at the numbers of lesions where the share is a whole number."""
    needed = lesions_to_settle(share, 0, goal)
    per = 100 // math.gcd(round(100 * share), 100)  # lesions of the smallest whole case
    for lesions in range(per, 2000, per):
        test = binomtest(round(share * lesions), lesions)
        low, high = test.proportion_ci(0.95, method="wilson")
        assert (low <= goal <= high) == (lesions < needed)
    assert lesions_to_settle(share, 30, goal) == max(needed - 30, 0)
    assert lesions_to_settle(0.8, 50, 0.8) == math.inf
    assert math.isnan(lesions_to_settle(math.nan, 50, 0.8))
    assert lesions_to_settle(0.5, 500, 0.8) == 0
