"""The bootstrap against the recorded metrics, binomial quantiles and simulations."""

import math
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from clinical_cases import answers, frame
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, binomtest

from src.core.errors import ConfigError, UserError
from src.metrics import bootstrap
from src.metrics.bootstrap import DifferentImagesError, gather, intervals
from src.metrics.classification import ClassificationMetrics
from src.metrics.curves import area as curve_area
from src.metrics.curves import average_precision
from src.metrics.settings import AuditSettings

ENDS = ["estimate", "low", "high"]


@st.composite
def predictions(draw: st.DrawFn) -> pd.DataFrame:
    classes, images = draw(st.integers(2, 4)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    # few different scores: ties in the argmax and in the ranks, and classes without images
    score = rng.integers(1, 4, size=(images, classes)).astype(np.float32)
    target = rng.integers(draw(st.integers(1, classes)), size=images)
    groups = rng.integers(0, 8, size=images)
    return frame(score / score.sum(axis=1, keepdims=True), target, "abcd"[:classes], groups)


def recorded(table: pd.DataFrame) -> dict[str, float]:
    classes = tuple(column.removeprefix("p/") for column in table if column.startswith("p/"))
    metrics = ClassificationMetrics(classes)
    probability = torch.tensor(table[[f"p/{name}" for name in classes]].to_numpy(dtype=np.float32))
    metrics.update(probability, torch.tensor([classes.index(label) for label in table["label"]]))
    return metrics.compute()


@given(predictions())
@settings(max_examples=30)
def test_estimates_and_samples_are_the_recorded_metrics_of_their_images(
    table: pd.DataFrame,
) -> None:
    estimates = intervals([table], samples=5).set_index("metric")["estimate"]
    # the recorded AUROC is in single precision
    assert estimates.dropna().to_dict() == pytest.approx(recorded(table), abs=1e-6)
    gathered = gather([table])
    drawn: list[np.ndarray] = []

    def integers(high: int, size: tuple[int, int]) -> np.ndarray:
        drawn.append(np.random.default_rng(0).integers(high, size=size))
        return drawn[0]

    rng: Any = SimpleNamespace(integers=integers)
    statistics = bootstrap.metric_statistics(gathered, gathered.metrics)
    values = bootstrap.resample(gathered, [statistics], 2, rng)[:, 0]
    for groups, row in zip(drawn[0], values, strict=True):
        images = np.concatenate([np.flatnonzero(gathered.group == group) for group in groups])
        of_sample = pd.Series(row, gathered.metrics).dropna().to_dict()
        assert of_sample == pytest.approx(recorded(table.iloc[images]), abs=1e-6)


def test_undefined_metrics_are_missing_and_count_in_no_mean() -> None:
    # three classes, none of the third, which is never predicted: two right of two, one right of two
    table = frame(np.eye(3)[[0, 0, 1, 0]], np.array([0, 0, 1, 1]), "abc")
    rows = intervals([table], samples=200).set_index("metric")
    assert rows.loc[["recall/c", "precision/c", "f1/c"], ENDS].isna().all(axis=None)
    assert rows.loc["balanced_accuracy", "estimate"] == 0.75
    assert rows.loc["recall/c", "images"] == 0
    assert rows.loc["recall/b", ["images", "groups"]].tolist() == [2, 2]
    assert rows.loc["specificity/c", "images"] == 4
    # some samples have no image of class b; those that have give 0, 1/2 or 1
    assert rows.loc["recall/b", ["low", "high"]].tolist() == [0, 1]
    # one group has no interval but the exact one of a share, and images without a group are groups
    one = [answers(np.array([True, False]), ["a", "a"])]
    rows = intervals(one, ["accuracy", "macro_f1"]).set_index("metric")
    ends = beta.ppf([0.025, 0.975], [0.5, 1.5], [1.5, 0.5])
    assert rows.loc["accuracy", ENDS].tolist() == pytest.approx([0.5, *ends])
    assert rows.loc["macro_f1", ["low", "high"]].isna().all()
    table = answers(np.ones(4, dtype=bool)).assign(group=["a", "a", None, None])
    assert gather([table]).groups == 3


def test_an_interval_is_the_binomial_one_for_independent_images() -> None:
    # 400 images, 300 right: drawn with replacement the number that are right is binomial(400, 3/4)
    row = intervals([answers(np.arange(400) < 300)], ["accuracy"], samples=20_000).iloc[0]
    expected = binom.ppf([0.025, 0.975], 400, 0.75) / 400
    assert [row["low"], row["high"]] == pytest.approx(expected, abs=1.01 / 400)


def test_a_group_counts_once_however_many_images_it_has() -> None:
    # ten copies of each image in its group give the estimate and the interval of one copy
    right = np.random.default_rng(5).random(60) < 0.7
    right[1::2] = right[::2]  # both classes in each group
    pairs = np.repeat(np.arange(30), 2)
    single = intervals([answers(right, pairs)], ["accuracy"]).iloc[0]
    often = intervals([answers(np.tile(right, 10), np.tile(pairs, 10))], ["accuracy"]).iloc[0]
    assert often[ENDS].tolist() == pytest.approx(single[ENDS].tolist())
    ungrouped = intervals([answers(np.tile(right, 10))], ["accuracy"]).iloc[0]
    # sqrt(20), if all are copies
    assert often["high"] - often["low"] > 2.5 * (ungrouped["high"] - ungrouped["low"])


def coverage(clustered: bool, by_group: bool, metric: str = "accuracy", truth: float = 0.7) -> int:
    """How many of 120 simulated intervals contain the truth; 80 groups of 4 images."""
    hits = 0
    for simulation in range(120):
        rng = np.random.default_rng([simulation, clustered])
        chance = np.repeat(rng.beta(0.7, 0.3, size=80), 4) if clustered else np.full(320, 0.7)
        group = np.repeat(np.arange(80), 4) if by_group else np.arange(320)
        table = answers(rng.random(320) < chance, group)
        row = intervals([table], [metric], samples=300, seed=simulation).iloc[0]
        hits += bool(row["low"] <= truth <= row["high"])
    return hits


def test_intervals_contain_the_truth_as_often_as_their_level() -> None:
    # of 120 intervals that contain the truth with probability 0.95, fewer do in one of 1,000 tests
    fewest = binom.ppf(0.001, 120, 0.95)
    assert coverage(clustered=False, by_group=False) >= fewest
    assert coverage(clustered=True, by_group=True, metric="balanced_accuracy") >= fewest
    # images of a group correlate by 1/2 (a beta of sum 1): drawn one by one, 1.96 standard errors
    # become 1.24, which contain the truth in 78.5% of all cases
    assert coverage(clustered=True, by_group=False) < binom.ppf(0.001, 120, 0.90)


def test_a_mean_over_classes_is_as_sure_as_its_rarest_class() -> None:
    # of 100, 50 and n lesions 0.8, 0.7 and all are recognised: all of n, however they are drawn
    for rare, is_exact in ((9, True), (10, False)):
        target = np.repeat([0, 1, 2], [100, 50, rare])
        right = np.concatenate([np.arange(100) < 80, np.arange(50) < 35, np.full(rare, True)])
        table = frame(np.eye(3)[np.where(right, target, (target + 1) % 3)], target, "abc")
        row = intervals([table], ["balanced_accuracy"]).iloc[0]
        parts = [
            binomtest(k, n).proportion_ci(method="exact").low for k, n in ((80, 100), (35, 50))
        ]
        below = np.hypot.reduce([0.8 - parts[0], 0.7 - parts[1], 1 - 0.025 ** (1 / rare)])
        assert math.isclose(row["low"], (2.5 - below) / 3) == is_exact
    # one lesion of a class says nothing of others
    target = np.repeat([0, 1, 2], [100, 50, 1])
    table = frame(np.eye(3)[np.where(np.arange(1, 152) % 5, target, 0)], target, "abc")
    row = intervals([table], ["balanced_accuracy"]).iloc[0]
    assert row["estimate"] > 0.8
    assert row[["low", "high"]].isna().all()


@pytest.mark.parametrize(("lesions", "low"), [(3, 0.025 ** (1 / 3)), (9, 0.025 ** (1 / 9))])
def test_areas_of_few_lesions_have_the_exact_interval(lesions: int, low: float) -> None:
    # all melanomas have higher scores than all others: a draw has no other area
    target = np.repeat([0, 1], [50, lesions])
    table = frame(np.eye(2)[target] * 0.8 + 0.1, target, ("nv", "mel"))
    curves = {"auroc": curve_area, "average_precision": average_precision}
    gathered, settings = gather([table]), AuditSettings(samples=200)
    parts = [bootstrap.curve_statistics(gathered, "mel", curves)]
    rows = bootstrap.estimates(gathered, parts, settings)
    rows.loc["auroc"] = intervals([table], ["auroc"]).set_index("metric").loc["auroc"]
    assert list(rows.index) == ["auroc/mel", "average_precision/mel", "auroc"]
    for row in rows[["estimate", "low", "high"]].to_numpy(dtype=float):
        assert row == pytest.approx([1, low, 1])


def test_the_interval_of_isic_accuracy_is_of_the_top_classes_whatever_the_rule_decides() -> None:
    # by the top class no lesion of c is recognised, by the rule all are
    target = np.repeat([0, 1, 2], [100, 50, 4])
    table = frame(np.eye(3)[np.where(target == 2, 0, target)], target, "abc")
    gathered = gather([table.assign(**{"decision/balanced": table["label"]})])
    isic = bootstrap.isic_balanced_accuracy(gathered)
    row = bootstrap.estimates(gathered, [isic], AuditSettings(samples=100)).iloc[0]
    below = np.hypot(1 - 0.025 ** (1 / 100), 1 - 0.025 ** (1 / 50))
    assert row[ENDS].tolist() == pytest.approx([2 / 3, (2 - below) / 3, (3 - 0.025 ** (1 / 4)) / 3])


def test_seeds_add_their_spread() -> None:
    right = np.arange(200) < 150
    seeds = [answers(np.roll(right, 7) & (np.arange(200) >= worse)) for worse in (0, 20, 40, 60)]
    row = intervals(seeds, ["accuracy"], 20_000).iloc[0]
    alone = [intervals([seed], ["accuracy"]).iloc[0] for seed in seeds]
    rates = np.array([of_seed["estimate"] for of_seed in alone])
    assert row["estimate"] == pytest.approx(rates.mean())
    assert row["seeds"] == 4
    same = intervals([seeds[0]] * 4, ["accuracy"]).iloc[0]  # equal seeds have no spread to add
    assert same[ENDS].tolist() == alone[0][ENDS].tolist()
    assert row["seed_sd"] == pytest.approx(rates.std(ddof=1))
    assert row["seed_values"].split() == [f"{rate:.4f}" for rate in rates]
    # the images' normal error, and Student's of the seeds less what the images explain of it
    hits = np.array([(seed["p/nv"] > 0.5) == (seed["label"] == "nv") for seed in seeds])
    images = hits.mean(axis=0).var() / 200
    explained = (hits - hits.mean(axis=0)).var(axis=1).sum() / 200 / 3
    rng = np.random.default_rng(0)
    errors = math.sqrt(images) * rng.standard_normal(200_000)
    errors += math.sqrt((rates.var(ddof=1) - explained) / 4) * rng.standard_t(3, 200_000)
    assert row["high"] == pytest.approx(rates.mean() + np.quantile(errors, 0.975), abs=0.01)
    assert row["low"] == pytest.approx(rates.mean() + np.quantile(errors, 0.025), abs=0.01)
    gathered = gather([answers(np.arange(4) < 3), answers(np.arange(4) < 1)])
    accuracy = bootstrap.metric_statistics(gathered, ["accuracy"])
    assert bootstrap.evaluate(gathered, accuracy).tolist() == [[0.75], [0.25]]


def test_intervals_of_few_seeds_hold_for_other_seeds() -> None:
    # accuracies of seeds around 0.75; drawing three seeds with replacement covers 75%
    covered = 0
    for simulation in range(100):
        rng = np.random.default_rng(simulation)
        image, rates = rng.random(300), np.clip(rng.normal(0.75, 0.08, 3), 0, 1)
        row = intervals([answers(image < rate) for rate in rates], ["accuracy"], 300).iloc[0]
        covered += row["low"] <= 0.75 <= row["high"]
    assert binom.ppf(0.01, 100, 0.94) <= covered


def test_the_seed_decides_and_neither_the_order_of_rows_nor_chunks_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    probability, target = rng.dirichlet(np.ones(3), size=50), rng.integers(3, size=50)
    table = frame(probability, target, "abc", rng.integers(20, size=50))
    first = intervals([table, table], samples=100, seed=4)
    assert not first.equals(intervals([table, table], samples=100, seed=5))
    monkeypatch.setattr(bootstrap, "CELLS", 1100)  # 22 samples of 50 images
    shuffled = table.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(first, intervals([table, shuffled], samples=100, seed=4))


TABLE = answers(np.ones(6, dtype=bool))


LESS = TABLE.drop(index=3)


def with_probability(value: float) -> pd.DataFrame:
    """One image has this probability of the second class."""
    return TABLE.assign(**{"p/mel": TABLE["p/mel"].where(TABLE.index != 2, value)})


@pytest.mark.parametrize(
    ("tables", "options", "error", "message"),
    [
        ([TABLE], {"metrics": ["accurcy"]}, ConfigError, "'accurcy'"),
        ([TABLE], {"samples": 0}, ConfigError, "samples: must be at least 1"),
        ([TABLE], {"level": 95}, ConfigError, "level: must be between 0 and 1, but got 95"),
        ([], {}, UserError, "no predictions"),
        ([TABLE.iloc[:0]], {}, UserError, "no image"),
        ([TABLE.drop(columns="group")], {}, UserError, "no column group"),
        ([TABLE.drop(columns="p/mel")], {}, UserError, "p/<class>"),
        ([pd.concat([TABLE, TABLE[:1]])], {}, UserError, "image i0000 is in it twice"),
        ([TABLE.assign(label="mole")], {}, UserError, "label 'mole'"),
        *(
            (
                [TABLE, with_probability(value)],
                {},
                UserError,
                r"probabilities of 1 of \d+ images are not finite",
            )
            for value in (np.nan, np.inf)
        ),
        ([TABLE, LESS], {}, DifferentImagesError, "predictions 2 lacks image i0003"),
        ([LESS, TABLE], {}, DifferentImagesError, "predictions 1 lacks image i0003"),
        *(
            (
                [TABLE, TABLE.assign(**{column: value})],
                {},
                DifferentImagesError,
                f"i0000 has another {column} in predictions 2",
            )
            for column, value in (("label", "mel"), ("group", "g1"))
        ),
        (
            [TABLE, TABLE.rename(columns={"p/mel": "p/df"}).assign(label="nv")],
            {},
            DifferentImagesError,
            "predictions 2 has other classes",
        ),
    ],
)
def test_bad_input_is_named(
    tables: list[pd.DataFrame], options: dict[str, Any], error: type[UserError], message: str
) -> None:
    with pytest.raises(error, match=message):
        intervals(tables, **options)


def test_a_split_of_ham10000_takes_a_fraction_of_a_second() -> None:
    rng = np.random.default_rng(0)
    target = rng.choice(7, size=2000, p=[0.67, 0.11, 0.11, 0.05, 0.03, 0.02, 0.01])
    group = np.concatenate([np.arange(1500), rng.integers(1500, size=500)])
    table = frame(rng.dirichlet(np.ones(7), size=2000), target, "abcdefg", group)
    quick = [name for name in gather([table]).metrics if name != "auroc"]
    for metrics, seconds in ((quick, 0.3), (["auroc"], 3.0)):
        times = []
        for _ in range(2):
            start = time.process_time()
            intervals([table], metrics, samples=2000)
            times.append(time.process_time() - start)
        assert min(times) < seconds


@given(st.integers(1, 60), st.integers(0, 1000), st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=40)
def test_a_share_gets_the_wider_interval_end_by_end(lesions: int, part: int, level: float) -> None:
    estimate, basis = part / 1000, np.arange(lesions)
    least, most = bootstrap.clopper_pearson(estimate, lesions, level)
    assert 0 <= least <= estimate <= most <= 1
    for values, (low, high, kind) in (
        ([estimate] * 3, (least, most, "exact")),
        ([0.0, 1.0] * 50, (0.0, 1.0, "bootstrap") if lesions > 1 else (least, most, "exact")),
        ([np.nan], (least, most, "exact")),
    ):
        shares = [(estimate, lesions)]
        row = bootstrap.interval(np.array(values), estimate, basis, level, shares)
        assert row == (estimate, pytest.approx(low), pytest.approx(high), kind, lesions, lesions)


@pytest.mark.parametrize(("hits", "lesions"), [(15, 16), (7, 20)])
def test_the_exact_interval_has_binomial_tails_of_a_fortieth(hits: int, lesions: int) -> None:
    low, high = bootstrap.clopper_pearson(hits / lesions, lesions, 0.95)
    assert binom.sf(hits - 1, lesions, low) == pytest.approx(0.025)
    assert binom.cdf(hits, lesions, high) == pytest.approx(0.025)
