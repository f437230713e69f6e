"""Thresholds chosen on validation and applied to test, by hand and in general."""

import numpy as np
import pandas as pd
import pytest
from clinical_cases import frame, made_up, scored
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from src.metrics.bootstrap import evaluate, gather, intervals
from src.metrics.settings import AuditSettings
from src.metrics.thresholds import ARGMAX, TargetRate, Threshold, choose, decide, points, rates


def reached(score: np.ndarray, own: np.ndarray, threshold: float) -> tuple[float, float]:
    positive = score >= threshold
    return float(positive[own].mean()), float((~positive[~own]).mean())


def test_the_strictest_threshold_with_enough_sensitivity() -> None:
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.2, 0.85, 0.65, 0.4, 0.3, 0.1])
    own = np.arange(10) < 5
    # four of five pass 0.6, with 0.85 and 0.65 of the others
    assert choose(score, own, TargetRate("sensitivity", 0.8)) == Threshold(
        0.6, 0.8, pytest.approx(0.6)
    )
    # at most one other may pass: 0.7 lets 0.85 through and finds three
    assert choose(score, own, TargetRate("specificity", 0.8)) == Threshold(0.7, 0.6, 0.8)


@given(scored(), st.floats(0.01, 0.99), st.sampled_from(["sensitivity", "specificity"]))
@settings(max_examples=60, deadline=None)
def test_no_other_threshold_is_better(
    case: tuple[np.ndarray, np.ndarray], least: float, measure: str
) -> None:
    score, own = case
    found = choose(score, own, TargetRate(measure, least))  # type: ignore[arg-type]
    assert (found.sensitivity, found.specificity) == pytest.approx(reached(score, own, found.value))
    at = 0 if measure == "sensitivity" else 1
    pairs = [reached(score, own, each) for each in [*np.unique(score), np.inf]]
    enough = [pair for pair in pairs if pair[at] >= least - 1e-9]
    assert (found.sensitivity, found.specificity)[at] >= least - 1e-9
    assert (found.sensitivity, found.specificity)[1 - at] == pytest.approx(
        max(pair[1 - at] for pair in enough)
    )


@given(scored(), st.floats(0.01, 0.98), st.floats(0.001, 0.5))
@settings(max_examples=30, deadline=None)
def test_more_sensitivity_never_takes_a_stricter_threshold(
    case: tuple[np.ndarray, np.ndarray], least: float, more: float
) -> None:
    score, own = case
    higher = min(least + more, 0.99)
    lax, strict = (choose(score, own, TargetRate("sensitivity", each)) for each in (higher, least))
    assert lax.value <= strict.value
    first, second = (
        choose(score, own, TargetRate("specificity", each)) for each in (least, higher)
    )
    assert first.value <= second.value
    assert first.sensitivity >= second.sensitivity


def test_ties_are_decided_alike() -> None:
    own = np.array([True, True, False, False])
    found = choose(np.full(4, 0.5), own, TargetRate("sensitivity", 0.8))
    assert (found.value, found.sensitivity, found.specificity) == (0.5, 1, 0)
    assert found.problem == "only a threshold that every image passes"


def test_a_wish_that_only_silence_fulfils() -> None:
    own = np.array([True, False])
    found = choose(np.array([0.2, 0.9]), own, TargetRate("specificity", 0.9))
    assert (found.value, found.sensitivity, found.specificity) == (np.inf, 0, 1)
    assert found.problem == "only a threshold that no image passes"


@pytest.mark.parametrize(
    ("own", "lacks"), [([True, True], "others"), ([False, False], "the class"), ([], "the class")]
)
def test_one_kind_of_images_gives_no_threshold(own: list[bool], lacks: str) -> None:
    found = choose(
        np.linspace(0, 1, len(own)), np.array(own, dtype=bool), TargetRate("sensitivity", 0.8)
    )
    assert np.isnan(found.value)
    assert found.problem == f"validation has no images of {lacks}"


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_rates_are_those_of_the_confusion_matrix(seed: int) -> None:
    given_ = gather(made_up(seed, images=40, nets=1))
    positive = decide(given_, "mel", [Threshold(0.4, 0, 0)])
    (rejected, alarms), (missed, hits) = confusion_matrix(
        given_.target == 1, positive[0], labels=[False, True]
    )
    expected = [hits / (hits + missed), rejected / (rejected + alarms)]
    expected += [hits / max(hits + alarms, 1) if hits + alarms else np.nan]
    expected += [rejected / max(rejected + missed, 1) if rejected + missed else np.nan]
    found = evaluate(given_, rates(given_, "mel", positive))[0]
    assert found.tolist() == pytest.approx([float(each) for each in expected], nan_ok=True)


def test_the_most_probable_class_has_the_recorded_recall_and_its_interval() -> None:
    test = made_up(1)
    found = points(gather(test), None, "mel", AuditSettings(samples=100, seed=4)).set_index(
        "measure"
    )
    there = intervals(test, samples=100, seed=4).set_index("metric")
    assert set(found["rule"]) == {ARGMAX}
    assert found["val"].isna().all()
    for here, name in (
        ("sensitivity", "recall/mel"),
        ("specificity", "specificity/mel"),
        ("ppv", "precision/mel"),
    ):
        row, other = found.loc[here], there.loc[name]
        assert row["estimate"] == pytest.approx(other["estimate"])
        assert row["low"] <= other["low"] + 1e-9  # or wider, by the exact interval
        assert row["high"] >= other["high"] - 1e-9


def test_val_chooses_and_test_reports() -> None:
    val, test = made_up(5), made_up(6)
    settings_ = AuditSettings(samples=100, sensitivity=0.7, specificity=0.85)
    table = points(gather(test), gather(val), "mel", settings_).set_index(["rule", "measure"])
    rule = "sensitivity >= 0.7"
    chosen = [choose(*scores_of(each), TargetRate("sensitivity", 0.7)).value for each in val]
    written = [float(each) for each in table.loc[(rule, "sensitivity"), "threshold"].split()]
    assert written == pytest.approx(chosen, rel=1e-3)
    for column, frames in (("val", val), ("estimate", test)):
        pairs = [
            reached(*scores_of(each), value) for each, value in zip(frames, chosen, strict=True)
        ]
        found = table.loc[[(rule, "sensitivity"), (rule, "specificity")], column]
        assert found.to_list() == pytest.approx(np.mean(pairs, axis=0).tolist())
    assert table.loc[(rule, "sensitivity"), "val"] >= 0.7
    assert table.loc[("specificity >= 0.85", "specificity"), "val"] >= 0.85


def scores_of(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return table["p/mel"].to_numpy(dtype=float), (table["label"] == "mel").to_numpy()


def test_without_the_class_on_validation_the_rule_says_so() -> None:
    test = made_up(6, nets=1)
    val = [table[table["label"] != "mel"] for table in made_up(5, nets=1)]
    table = points(gather(test), gather(val), "mel", AuditSettings(samples=100))
    chosen = table[table["rule"] != ARGMAX]
    assert chosen[["val", "estimate", "low", "high"]].isna().all(axis=None)
    assert set(chosen["problem"]) == {"validation has no images of the class"}


def test_a_perfect_rate_has_an_exact_interval_over_lesions() -> None:
    target = np.array([0, 0, 1, 1, 1, 1, 1, 1])
    right = frame(np.eye(2)[target], target, ("nv", "mel"), np.array([0, 1, 2, 2, 3, 3, 4, 4]))
    row = (
        points(gather([right]), None, "mel", AuditSettings(samples=100))
        .set_index("measure")
        .loc["sensitivity"]
    )
    assert (row["estimate"], row["high"], row["interval"], row["groups"]) == (1, 1, "exact", 3)
    assert row["low"] == pytest.approx(
        0.025 ** (1 / 3)
    )  # all of three right is that likely at this rate
