"""Paired comparisons by hand, against normal and binomial distributions, and by simulation."""

import math
from typing import Any

import numpy as np
import pytest
from clinical_cases import answers, frame
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, false_discovery_control

from src.core.errors import ConfigError, UserError
from src.metrics.bootstrap import DifferentImagesError
from src.metrics.paired import degradation, holm, mcnemar, paired_difference


def test_a_difference_by_hand() -> None:
    # 10 images: a gets 0..7 right, b 4..9; labels alternate
    a, b = answers(np.arange(10) < 8), answers(np.arange(10) >= 4)
    assert paired_difference([a], [b], "accuracy").difference == pytest.approx(0.8 - 0.6)
    # of class mel (odd numbers): a 1 3 5 7, b 5 7 9; of 5
    assert paired_difference([a], [b], "recall/mel").difference == pytest.approx(4 / 5 - 3 / 5)
    assert paired_difference([a], [a], "accuracy") == (0, 0, 0, 1)
    assert mcnemar(a, a) == (0, 0, 1.0)
    # one lesion has no interval
    a, b = (answers(np.array(right), np.zeros(2)) for right in ([True, True], [True, False]))
    result = paired_difference([a], [b], "accuracy")
    assert result.difference == 0.5
    assert np.isnan(result[1:]).all()


def test_the_interval_is_the_one_of_a_mean_of_differences() -> None:
    # accuracy is a mean: the variance of the difference is that of -1, 0, 1 over 300 images
    rng = np.random.default_rng(0)
    right_a, right_b = rng.random(300) < 0.8, rng.random(300) < 0.7
    result = paired_difference([answers(right_a)], [answers(right_b)], "accuracy", samples=20_000)
    gaps = right_a.astype(float) - right_b
    error = gaps.std() / math.sqrt(300)
    assert result.high - result.low == pytest.approx(2 * 1.96 * error, rel=0.03)
    # two-sided p of the normal distribution at that many standard errors
    p = math.erfc(gaps.mean() / error / math.sqrt(2))
    assert result.p_bootstrap == pytest.approx(p, rel=0.25)


def test_the_same_images_for_both_make_a_sharp_test() -> None:
    # b is a with 15 images more wrong: the samples share the images, so all of them find b worse
    right = np.random.default_rng(1).random(300) < 0.8
    worse = right & ~np.isin(np.arange(300), np.flatnonzero(right)[:15])
    result = paired_difference([answers(right)], [answers(worse)], "accuracy")
    assert result.low > 0
    assert result.p_bootstrap == 2 / 2001
    # drawn separately the two would overlap: 0.05 is 1.5 standard errors of such a difference
    assert result.high - result.low < 2 * 1.96 * math.sqrt(2 * 0.8 * 0.2 / 300) / 2


@pytest.mark.parametrize("lesions", [3, 30])
def test_nets_that_decide_alike_may_differ_on_other_lesions(lesions: int) -> None:
    # no draw of the melanomas has a difference; by the rule of three at most 3.7 / lesions
    a = answers(np.arange(2 * lesions) % 3 > 0)
    result = paired_difference([a], [a.assign(**{"p/nv": a["p/nv"] * 0.99})], "recall/mel")
    reach = binomtest(0, lesions).proportion_ci(method="exact").high
    assert result == pytest.approx((0, -reach, reach, 1))
    # of few melanomas in 300 lesions no metric of melanoma, and no mean over classes, is sure
    target = (np.arange(300) < lesions).astype(int)
    rare = frame(np.eye(2)[target], target, "ab")
    other = rare.assign(**{"p/a": rare["p/a"] * 0.99})
    for metric in ("f1/b", "precision/b", "recall/b"):
        assert paired_difference([rare], [other], metric).high == pytest.approx(reach)
    for metric in ("macro_f1", "auroc", "balanced_accuracy"):
        assert paired_difference([rare], [other], metric).high > reach / 2
    assert paired_difference([rare], [other], "accuracy").high < 0.013


@pytest.mark.parametrize("lesions", [3, 5, 6, 40])
@pytest.mark.parametrize("others", [0, 30])
def test_no_test_of_few_differing_lesions_is_surer_than_the_sign_test(
    lesions: int, others: int
) -> None:
    # a recognises these melanomas and b none of them; both recognise the others
    right = np.ones(2 * (lesions + others), bool)
    wrong = right.copy()
    wrong[1 : 2 * lesions : 2] = False
    result = paired_difference([answers(right)], [answers(wrong)], "recall/mel")
    assert result.p_bootstrap >= binomtest(lesions, lesions).pvalue
    assert (result.low > 0) == (lesions > 5)


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=25), st.integers(0, 9)
)
@settings(max_examples=25)
def test_swapping_the_models_mirrors_the_difference(
    images: list[tuple[bool, bool]], seed: int
) -> None:
    a, b = (answers(np.array(right)) for right in zip(*images, strict=True))
    there = paired_difference([a], [b], "balanced_accuracy", samples=199, seed=seed)
    back = paired_difference([b], [a], "balanced_accuracy", samples=199, seed=seed)
    mirrored = [-back.difference, -back.high, -back.low]
    assert mirrored == pytest.approx([*there[:3]], abs=1e-12, nan_ok=True)
    assert back.p_bootstrap == pytest.approx(there.p_bootstrap)
    assert 0 < there.p_bootstrap <= 1
    if there.p_bootstrap < 0.04:
        assert there.low >= 0 or there.high <= 0
    only_a, only_b, p = mcnemar(a, b)
    assert mcnemar(b, a) == (only_b, only_a, pytest.approx(p))


def test_few_true_differences_of_zero_are_significant() -> None:
    # images of a group share what a and b get right: only groups keep the error rate
    significant = {"group": 0, "image": 0}
    for simulation in range(120):
        rng = np.random.default_rng(simulation)
        right = [np.repeat(rng.random(60) < 0.7, 4) for _ in range(2)]
        for kind, group in (("group", np.repeat(np.arange(60), 4)), ("image", np.arange(240))):
            a, b = (answers(of_model, group) for of_model in right)
            p = paired_difference([a], [b], "accuracy", samples=199).p_bootstrap
            significant[kind] += p <= 0.05
    assert significant["group"] <= binom.ppf(0.999, 120, 0.05)
    # four copies of each image: the standard error is twice what the images say, so one in three
    assert significant["image"] > binom.ppf(0.999, 120, 0.15)


def test_each_model_has_the_error_of_its_seeds() -> None:
    right = np.arange(200) < 150
    a = [answers(right & (np.arange(200) >= lost)) for lost in (0, 10, 20, 30)]
    b = [answers(right & (np.arange(200) >= lost)) for lost in (5, 15, 25)]
    result = paired_difference(a, b, "accuracy")
    assert result.difference == pytest.approx(135 / 200 - 135 / 200)
    # at least that of the seeds alone by the normal distribution, half of it by the images
    seeds = np.var([0, 10, 20, 30], ddof=1) / 4 + np.var([5, 15, 25], ddof=1) / 3
    assert result.high - result.low > 2 * 1.96 * math.sqrt(seeds) / 200 * 0.95
    # one seed each leaves the images' part
    assert paired_difference(a[:1], b[:1], "accuracy").high < result.high


def test_models_whose_seeds_differ_are_rarely_found_different() -> None:
    # the seeds of both models have accuracies around 0.75; three of each
    significant = 0
    for simulation in range(100):
        rng = np.random.default_rng(simulation)
        image = rng.random(300)  # what makes an image hard, for all nets
        rates = np.clip(rng.normal(0.75, 0.05, 6), 0, 1)
        nets = [answers(image < rate) for rate in rates]
        significant += paired_difference(nets[:3], nets[3:], "accuracy", 99).p_bootstrap <= 0.05
    assert significant <= binom.ppf(0.99, 100, 0.05)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (5, 0, 2 / 2**5),
        (1, 4, 2 * (1 + 5) / 2**5),
        (8, 2, 2 * (1 + 10 + 45) / 2**10),
        (3, 3, 1.0),
    ],
)
def test_mcnemar_by_the_binomial_distribution(only_a: int, only_b: int, p: float) -> None:
    # images: a alone right, b alone right, both, none
    right_a = np.array([True] * only_a + [False] * only_b + [True] * 7 + [False] * 2)
    right_b = np.array([False] * only_a + [True] * only_b + [True] * 7 + [False] * 2)
    result = mcnemar(answers(right_a), answers(right_b))
    assert result == (only_a, only_b, pytest.approx(p))


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        # ascending: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1; the last is raised to the one before
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02, np.nan, 0.03], [0.04, np.nan, 0.04]),
        ([], []),
        ([np.nan], [np.nan]),
    ],
)
def test_holm_by_hand(p: list[float], adjusted: list[float]) -> None:
    assert holm(p).tolist() == pytest.approx(adjusted, nan_ok=True)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_as_the_procedure_does(p: list[float], alpha: float) -> None:
    # in ascending order, reject while p <= alpha / (remaining tests)
    rejected = []
    for done, value in enumerate(sorted(p)):
        if value > alpha / (len(p) - done) + 1e-12:
            break
        rejected.append(value)
    adjusted = holm(p)
    near = np.isclose(adjusted, alpha)  # rounding
    expected = np.array([value <= max(rejected, default=-1) for value in p])
    assert ((adjusted <= alpha) == expected)[~near].all()
    # between the false discovery rate's and Bonferroni's
    assert (adjusted <= np.minimum(np.array(p) * len(p), 1) + 1e-12).all()
    assert (adjusted >= false_discovery_control(p) - 1e-12).all()


def test_other_images_are_refused_and_another_order_is_not() -> None:
    a, b = answers(np.arange(12) < 8), answers(np.arange(12) < 5)
    shuffled, less = b.sample(frac=1, random_state=0), b.drop(index=3)
    assert paired_difference([a], [b], "accuracy") == paired_difference([a], [shuffled], "accuracy")
    assert mcnemar(a, b) == mcnemar(a, shuffled)
    names = ("custom #1", "custom #2")
    with pytest.raises(DifferentImagesError, match=r"^custom #2 lacks image i0003 \(1 differ\)"):
        paired_difference([a], [less], "accuracy", names=names)
    with pytest.raises(DifferentImagesError, match="^custom #2, seed 2 lacks image i0003"):
        paired_difference([a], [b, less], "accuracy", names=names)
    with pytest.raises(DifferentImagesError, match="another label"):
        mcnemar(a, b.assign(label="nv"))


@pytest.mark.parametrize(
    ("nets", "metric", "options", "error", "message"),
    [
        (0, "accuracy", {}, UserError, "no predictions"),
        (1, "loss", {}, ConfigError, "'loss'"),
        (1, "accuracy", {"samples": 0}, ConfigError, "samples"),
        (1, "accuracy", {"level": 1}, ConfigError, "level"),
        (2, "accuracy", {"made_from": True}, ValueError, "1 nets cannot have been made from 2"),
    ],
)
def test_bad_input_is_named(
    nets: int, metric: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    table = answers(np.arange(12) < 8)
    with pytest.raises(error, match=message):
        paired_difference([table], [table] * nets, metric, **options)


def test_the_seed_decides() -> None:
    rng = np.random.default_rng(0)
    a, b = ([answers(rng.random(50) < 0.7) for _ in range(2)] for _ in range(2))
    results = [paired_difference(a, b, "macro_f1", samples=300, seed=seed) for seed in (3, 3, 4)]
    assert results[0] == results[1] != results[2]


def test_nets_made_from_one_another_are_drawn_by_their_seed() -> None:
    # three seeds of very different skill, each made worse by the same 6 of 300 images: every sample
    # loses about 0.02
    rng = np.random.default_rng(4)
    before = [rng.random(300) < skill for skill in (0.5, 0.7, 0.9)]
    after = [right & ~np.isin(np.arange(300), np.flatnonzero(right)[:6]) for right in before]
    frames = [[answers(right) for right in side] for side in (before, after)]
    paired = paired_difference(*frames, "accuracy", made_from=True)
    assert paired.difference == pytest.approx(6 / 300)
    # of each seed 6 of 300 images differ: the standard error is at most that of one such share
    assert paired.high - paired.low < 2 * 1.96 * math.sqrt(0.02 * 0.98 / 300) * 1.1
    apart = paired_difference(*frames, "accuracy")
    assert apart.high - apart.low > 0.2  # seeds that differ by 0.2, drawn separately
    same = paired_difference(frames[0], frames[0], "accuracy", made_from=True)
    assert same[:3] == (0, 0, 0)


def test_degradation_is_the_difference_on_the_same_images() -> None:
    before, after = answers(np.arange(7) >= 0), answers(np.arange(7) != 1)
    assert set(degradation([before], [before]).values()) == {0.0}
    lost = degradation([before], [after])  # one melanoma of three, one image of seven
    shares = {"accuracy": 1 / 7, "balanced_accuracy": 1 / 6, "recall/mel": 1 / 3}
    names = [f"{name}{end}" for name in shares for end in ("", "/low", "/high")]
    assert set(lost) == {f"compression/lost/{name}" for name in names}
    for name, share in shares.items():
        assert lost[f"compression/lost/{name}"] == pytest.approx(share)
    low, high = (lost[f"compression/lost/accuracy/{end}"] for end in ("low", "high"))
    assert 0 <= low <= 1 / 7 <= high
    with pytest.raises(DifferentImagesError, match="^the origin, seed 2 lacks image i0003"):
        degradation([before, before.drop(index=3)], [after, after])
    other = before.replace({"label": {"mel": "x"}}).rename(columns={"p/mel": "p/x"})
    assert not any("recall" in name for name in degradation([other], [other]))  # no melanoma class
