import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score

from src.core.errors import ConfigError, UserError
from src.metrics.bootstrap import (
    DifferentImagesError,
    adjusted_interval,
    clopper_pearson,
    gather,
    intervals,
    metric_values,
    resampled_metrics,
)
from src.metrics.classification import ClassificationMetrics


def frame(
    probability: np.ndarray, target: np.ndarray, group: Sequence[object] | None = None
) -> pd.DataFrame:
    classes = [f"c{number}" for number in range(probability.shape[1])]
    table = pd.DataFrame({"image_id": [f"i{number}" for number in range(len(target))]})
    table["group"] = (
        [f"g{number}" for number in range(len(target))] if group is None else list(group)
    )
    table["label"] = [classes[label] for label in target]
    for number, name in enumerate(classes):
        table[f"p/{name}"] = probability[:, number]
    return table


def answers(right: np.ndarray, group: np.ndarray | None = None) -> pd.DataFrame:
    """Two classes in turn; each image answered right or wrong."""
    target = np.arange(len(right)) % 2
    said = np.where(right, target, 1 - target)
    return frame(np.eye(2)[said], target, group)


@st.composite
def predictions(draw: st.DrawFn) -> pd.DataFrame:
    classes, images = draw(st.integers(2, 4)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    # few different scores, so that there are ties in the argmax and in the ranks, and classes
    # without images
    score = rng.integers(1, 4, size=(images, classes)).astype(np.float32)
    target = rng.integers(draw(st.integers(1, classes)), size=images)
    return frame(score / score.sum(axis=1, keepdims=True), target, rng.integers(0, 8, size=images))


def recorded(table: pd.DataFrame) -> dict[str, float]:
    classes = tuple(column.removeprefix("p/") for column in table if column.startswith("p/"))
    metrics = ClassificationMetrics(classes)
    probability = torch.tensor(table[[f"p/{name}" for name in classes]].to_numpy(dtype=np.float32))
    metrics.update(probability, torch.tensor([classes.index(label) for label in table["label"]]))
    return metrics.compute()


@given(predictions())
@settings(max_examples=60, deadline=None)
def test_estimates_are_the_recorded_metrics(table: pd.DataFrame) -> None:
    found = intervals([table], samples=5).set_index("metric")["estimate"]
    assert found.dropna().to_dict() == pytest.approx(
        recorded(table), abs=1e-6
    )  # its AUROC is in single precision


@given(predictions(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_a_resampling_is_the_recorded_metric_of_the_drawn_images(
    table: pd.DataFrame, random: object
) -> None:
    told = gather([table])
    ordered = table.sort_values("image_id")

    class Fixed:  # draws what the test draws itself
        def integers(self, high: int, size: tuple[int, int]) -> np.ndarray:
            self.drawn = np.random.default_rng(0).integers(high, size=size)
            return self.drawn

    rng = Fixed()
    values = resampled_metrics(told, told.metrics, 3, rng)[:, 0]  # type: ignore[arg-type]
    for drawn, row in zip(rng.drawn, values, strict=True):
        images = np.concatenate([np.flatnonzero(told.group == group) for group in drawn])
        expected = recorded(ordered.iloc[images])
        found = {
            name: value
            for name, value in zip(told.metrics, row, strict=True)
            if not np.isnan(value)
        }
        assert found == pytest.approx(expected, abs=1e-6)


def test_estimates_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    target = rng.integers(5, size=400)
    probability = rng.dirichlet(np.ones(5), size=400) + 0.3 * np.eye(5)[target]
    probability /= probability.sum(axis=1, keepdims=True)
    found = intervals([frame(probability, target)], samples=5).set_index("metric")["estimate"]
    said = probability.argmax(axis=1)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(target, said))
    assert found["recall/c2"] == pytest.approx(recall_score(target, said, average=None)[2])
    assert found["auroc"] == pytest.approx(
        roc_auc_score(target, probability, multi_class="ovr"), abs=1e-6
    )
    two = probability[:, :2] / probability[:, :2].sum(axis=1, keepdims=True)
    binary = intervals([frame(two, target % 2)], ["auroc"], samples=5)["estimate"][0]
    assert binary == pytest.approx(roc_auc_score(target % 2, two[:, 1]), abs=1e-6)


def test_what_is_undefined_is_missing_and_counts_in_no_mean() -> None:
    # three classes, none of the third, which is never predicted: two right of two, one right of two
    table = frame(np.eye(3)[[0, 0, 1, 0]], np.array([0, 0, 1, 1]))
    found = intervals([table], samples=200).set_index("metric")
    for name in ("recall/c2", "precision/c2", "f1/c2"):
        assert found.loc[name, ["estimate", "low", "high"]].isna().all()
    assert found.loc["balanced_accuracy", "estimate"] == 0.75
    assert found.loc["recall/c2", "images"] == 0
    assert found.loc["recall/c1", ["images", "groups"]].tolist() == [2, 2]
    assert found.loc["specificity/c2", "images"] == 4
    # some samples have no image of class 1; those that have give 0, 1/2 or 1
    assert found.loc["recall/c1", ["low", "high"]].tolist() == [0, 1]


def test_one_group_gives_no_interval() -> None:
    found = intervals([answers(np.array([True, False]), np.array(["a", "a"]))], ["accuracy"])
    assert found["estimate"][0] == 0.5
    assert found[["low", "high"]].isna().all(axis=None)


def test_images_without_a_group_stand_alone() -> None:
    told = gather([answers(np.ones(4, dtype=bool), np.array(["a", "a", None, None], dtype=object))])
    assert told.groups == 3


def test_an_interval_is_the_binomial_one_for_independent_images() -> None:
    # 400 images, 300 right: drawn with replacement the number that are right is binomial(400, 3/4)
    found = intervals([answers(np.arange(400) < 300)], ["accuracy"], samples=20_000).iloc[0]
    expected = binom.ppf([0.025, 0.975], 400, 0.75) / 400
    assert [found["low"], found["high"]] == pytest.approx(expected, abs=1.01 / 400)


def test_a_group_counts_once_however_many_images_it_has() -> None:
    # ten copies of each image in its group: the estimate and the interval are those of one copy
    # each
    right = np.random.default_rng(5).random(60) < 0.7
    right[1::2] = right[::2]  # both classes in each group
    pairs = np.repeat(np.arange(30), 2)
    once = intervals([answers(right, pairs)], ["accuracy"])
    often = intervals([answers(np.tile(right, 10), np.tile(pairs, 10))], ["accuracy"])
    assert often.loc[0, ["estimate", "low", "high"]].tolist() == pytest.approx(
        once.loc[0, ["estimate", "low", "high"]].tolist()
    )
    single = intervals([answers(np.tile(right, 10))], ["accuracy"])
    assert (often["high"] - often["low"])[0] > 2.5 * (single["high"] - single["low"])[
        0
    ]  # sqrt(20), if all are copies


def coverage(clustered: bool, by_group: bool, metric: str = "accuracy", truth: float = 0.7) -> int:
    """How many of 120 simulated intervals hold the truth; 80 groups of 4 images."""
    held = 0
    for simulation in range(120):
        rng = np.random.default_rng([simulation, clustered])
        chance = np.repeat(rng.beta(0.7, 0.3, size=80), 4) if clustered else np.full(320, 0.7)
        group = np.repeat(np.arange(80), 4) if by_group else np.arange(320)
        found = intervals(
            [answers(rng.random(320) < chance, group)], [metric], samples=300, seed=simulation
        )
        held += bool(found["low"][0] <= truth <= found["high"][0])
    return held


# of 120 intervals that hold the truth with probability 0.95, fewer than these hold it in one of
# 1,000 tests
FEWEST = binom.ppf(0.001, 120, 0.95)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    assert coverage(clustered=False, by_group=False) >= FEWEST
    assert coverage(clustered=True, by_group=True) >= FEWEST
    assert coverage(clustered=True, by_group=True, metric="balanced_accuracy") >= FEWEST


def test_resampling_images_of_clusters_one_by_one_would_be_too_sure() -> None:
    # images of a group correlate by 1/2 (a beta of sum 1): the variance is 1 + 3/2 times that of
    # independent ones, so that 1.96 standard errors become 1.24, which hold the truth in 78.5% of
    # all cases
    assert coverage(clustered=True, by_group=False) < binom.ppf(0.001, 120, 0.90)


def test_seeds_add_their_spread() -> None:
    right = np.arange(200) < 150
    seeds = [answers(np.roll(right, 7) & (np.arange(200) >= worse)) for worse in (0, 20, 40, 60)]
    found = intervals(seeds, ["accuracy"]).iloc[0]
    alone = [intervals([seed], ["accuracy"]).iloc[0] for seed in seeds]
    assert found["estimate"] == pytest.approx(np.mean([one["estimate"] for one in alone]))
    assert found["seeds"] == 4
    same = intervals([seeds[0]] * 4, ["accuracy"]).iloc[0]
    assert (same["low"], same["high"]) == (
        alone[0]["low"],
        alone[0]["high"],
    )  # equal seeds have no spread to add
    # variance of a mean of 4 seeds, drawn with replacement, and that of the images, both by
    # arithmetic
    rates = np.array([one["estimate"] for one in alone])
    images = (
        np.mean([(seed["p/c0"] > 0.5) == (seed["label"] == "c0") for seed in seeds], axis=0).var()
        / 200
    )
    expected = 2 * 1.96 * np.sqrt(rates.var() / 4 + images)
    assert found["high"] - found["low"] == pytest.approx(expected, rel=0.15)


def test_the_seed_decides_and_the_order_of_rows_does_not() -> None:
    rng = np.random.default_rng(0)
    table = frame(
        rng.dirichlet(np.ones(3), size=50), rng.integers(3, size=50), rng.integers(20, size=50)
    )
    first = intervals([table, table], samples=100, seed=4)
    pd.testing.assert_frame_equal(
        first, intervals([table, table.sample(frac=1, random_state=1)], samples=100, seed=4)
    )
    assert not first.equals(intervals([table, table], samples=100, seed=5))


def test_bad_input_is_named() -> None:
    table = answers(np.ones(6, dtype=bool))
    with pytest.raises(ConfigError, match="'accurcy'"):
        intervals([table], ["accurcy"])
    with pytest.raises(ConfigError, match="samples: must be at least 1"):
        intervals([table], samples=0)
    with pytest.raises(ConfigError, match="level: must be between 0 and 1, but got 95"):
        intervals([table], level=95)
    with pytest.raises(UserError, match="no predictions"):
        intervals([])
    with pytest.raises(UserError, match="no image"):
        intervals([table.iloc[:0]])
    with pytest.raises(UserError, match="no column group"):
        intervals([table.drop(columns="group")])
    with pytest.raises(UserError, match="p/<class>"):
        intervals([table.drop(columns="p/c1")])
    with pytest.raises(UserError, match="image i0 is in it twice"):
        intervals([pd.concat([table, table.iloc[:1]])])
    with pytest.raises(UserError, match="label 'mole'"):
        intervals([table.assign(label="mole")])


def test_seeds_must_be_of_the_same_images() -> None:
    table = answers(np.ones(6, dtype=bool))
    with pytest.raises(DifferentImagesError, match="predictions 2 lacks image i3"):
        gather([table, table.drop(index=3)])
    with pytest.raises(DifferentImagesError, match="predictions 1 lacks image i3"):
        gather([table.drop(index=3), table])
    with pytest.raises(DifferentImagesError, match="image i0 has another label in predictions 2"):
        gather([table, table.assign(label="c1")])
    with pytest.raises(DifferentImagesError, match="image i0 has another group in predictions 2"):
        gather([table, table.assign(group="g1")])
    with pytest.raises(DifferentImagesError, match="predictions 2 has other classes"):
        gather([table, table.rename(columns={"p/c1": "p/c7"}).assign(label="c0")])


def test_samples_in_chunks_are_the_samples_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    table = frame(rng.dirichlet(np.ones(3), size=50), rng.integers(3, size=50))
    whole = intervals([table], samples=100)
    monkeypatch.setattr("src.metrics.bootstrap.CELLS", 1100)  # 22 samples of 50 groups
    pd.testing.assert_frame_equal(whole, intervals([table], samples=100))


def test_a_split_of_ham10000_takes_a_fraction_of_a_second() -> None:
    rng = np.random.default_rng(0)
    target = rng.choice(7, size=2000, p=[0.67, 0.11, 0.11, 0.05, 0.03, 0.02, 0.01])
    group = np.concatenate([np.arange(1500), rng.integers(1500, size=500)])
    table = frame(rng.dirichlet(np.ones(7), size=2000), target, group)
    quick = [name for name in gather([table]).metrics if name != "auroc"]
    for metrics, seconds in ((quick, 0.3), (["auroc"], 3.0)):
        spent = []
        for _ in range(3):
            start = time.process_time()
            intervals([table], metrics, samples=2000)
            spent.append(time.process_time() - start)
        assert min(spent) < seconds


def test_measured_keeps_the_seeds_apart() -> None:
    told = gather([answers(np.arange(4) < 3), answers(np.arange(4) < 1)])
    assert metric_values(told, ["accuracy"]).tolist() == [[0.75], [0.25]]


@given(
    st.integers(1, 60),
    st.integers(0, 1000).map(lambda part: part / 1000),
    st.sampled_from([0.8, 0.95, 0.99]),
)
@settings(max_examples=40, deadline=None)
def test_a_share_gets_the_wider_interval_end_by_end(
    lesions: int, estimate: float, level: float
) -> None:
    least, most = clopper_pearson(estimate, lesions, level)
    assert 0 <= least <= estimate <= most <= 1
    basis = np.arange(lesions)
    assert adjusted_interval(estimate, estimate, estimate, basis, level, share=True) == (
        least,
        most,
        "exact",
    )
    assert adjusted_interval(0.0, 1.0, estimate, basis, level, share=True) == (
        0.0,
        1.0,
        "bootstrap",
    )
    assert adjusted_interval(np.nan, np.nan, estimate, basis, level, share=True) == (
        least,
        most,
        "exact",
    )


def test_the_exact_interval_is_that_of_the_tables() -> None:
    # Clopper and Pearson for 15 of 16 and 7 of 20, by binomial tails of 2.5%
    for found, lesions in ((15, 16), (7, 20)):
        low, high = clopper_pearson(found / lesions, lesions, 0.95)
        assert binom.sf(found - 1, lesions, low) == pytest.approx(0.025)
        assert binom.cdf(found, lesions, high) == pytest.approx(0.025)
