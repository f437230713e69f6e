import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, false_discovery_control

from src.core.errors import ConfigError, UserError
from src.metrics.bootstrap import DifferentImagesError
from src.metrics.paired import degradation, holm, mcnemar, paired_difference


def answers(right: np.ndarray, group: np.ndarray | None = None) -> pd.DataFrame:
    """Two classes in turn; each image answered right or wrong, with probability 0.9."""
    target = np.arange(len(right)) % 2
    sure = np.where(np.where(right, target, 1 - target) == 1, 0.9, 0.1)
    table = pd.DataFrame({"image_id": [f"i{number}" for number in range(len(right))]})
    table["group"] = np.arange(len(right)) if group is None else group
    return table.assign(
        label=np.where(target == 1, "mel", "nv"), **{"p/nv": 1 - sure, "p/mel": sure}
    )


def test_a_difference_by_hand() -> None:
    # 10 images: a gets 0..7 right, b 4..9; labels alternate
    a, b = answers(np.arange(10) < 8), answers(np.arange(10) >= 4)
    assert paired_difference([a], [b], "accuracy").difference == pytest.approx(0.8 - 0.6)
    # of class mel (odd numbers): a 1 3 5 7, b 5 7 9; of 5
    assert paired_difference([a], [b], "recall/mel").difference == pytest.approx(4 / 5 - 3 / 5)


def test_the_interval_is_the_one_of_a_mean_of_differences() -> None:
    # accuracy is a mean: the variance of the difference is that of -1, 0, 1 over 300 images
    rng = np.random.default_rng(0)
    right_a, right_b = rng.random(300) < 0.8, rng.random(300) < 0.7
    found = paired_difference([answers(right_a)], [answers(right_b)], "accuracy", samples=20_000)
    each = right_a.astype(float) - right_b
    assert found.high - found.low == pytest.approx(2 * 1.96 * each.std() / math.sqrt(300), rel=0.03)
    # two-sided p of the normal distribution at that many standard errors
    z = each.mean() / (each.std() / math.sqrt(300))
    assert found.p_bootstrap == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.25)


def test_the_same_images_for_both_make_a_sharp_test() -> None:
    # b is a with 15 images more wrong: the samples share the images, so all of them find b worse
    right = np.random.default_rng(1).random(300) < 0.8
    worse = right & ~np.isin(np.arange(300), np.flatnonzero(right)[:15])
    found = paired_difference([answers(right)], [answers(worse)], "accuracy")
    assert found.low > 0
    assert found.p_bootstrap == 2 / 2001
    # resampled on their own the two would overlap: 0.05 is 1.5 standard errors of a difference of
    # two such rates
    assert found.high - found.low < 2 * 1.96 * math.sqrt(2 * 0.8 * 0.2 / 300) / 2


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=25), st.integers(0, 9)
)
@settings(max_examples=40, deadline=None)
def test_swapping_the_models_mirrors_the_difference(
    images: list[tuple[bool, bool]], seed: int
) -> None:
    a, b = (answers(np.array(right)) for right in zip(*images, strict=True))
    there = paired_difference([a], [b], "balanced_accuracy", samples=199, seed=seed)
    back = paired_difference([b], [a], "balanced_accuracy", samples=199, seed=seed)
    assert [-back.difference, -back.high, -back.low] == pytest.approx(
        [*there[:3]], abs=1e-12, nan_ok=True
    )
    assert back.p_bootstrap == pytest.approx(there.p_bootstrap)
    assert 0 < there.p_bootstrap <= 1
    if there.p_bootstrap < 0.04:
        assert there.low >= 0 or there.high <= 0
    only_a, only_b, p = mcnemar([a], [b])
    assert mcnemar([b], [a]) == (only_b, only_a, pytest.approx(p))


def test_equal_models_do_not_differ() -> None:
    table = answers(np.arange(40) < 30)
    assert paired_difference([table], [table], "accuracy") == (0, 0, 0, 1)
    assert mcnemar([table], [table]) == (0, 0, 1.0)


def test_of_true_differences_of_zero_few_are_found() -> None:
    # images of a group share what a and b get right, so that only resampling by group keeps the
    # error rate
    found = {"group": 0, "image": 0}
    for simulation in range(120):
        rng = np.random.default_rng(simulation)
        right = [np.repeat(rng.random(60) < 0.7, 4) for _ in range(2)]
        for kind, group in (("group", np.repeat(np.arange(60), 4)), ("image", np.arange(240))):
            a, b = (answers(one, group) for one in right)
            found[kind] += paired_difference([a], [b], "accuracy", samples=199).p_bootstrap <= 0.05
    assert found["group"] <= binom.ppf(0.999, 120, 0.05)
    # four copies of each image: the standard error is twice what the images say, so one in three
    # seems different
    assert found["image"] > binom.ppf(0.999, 120, 0.15)


def test_seeds_are_resampled_for_each_model() -> None:
    right = np.arange(200) < 150
    a = [answers(right & (np.arange(200) >= lost)) for lost in (0, 10, 20, 30)]
    b = [answers(right & (np.arange(200) >= lost)) for lost in (5, 15, 25)]
    found = paired_difference(a, b, "accuracy")
    assert found.difference == pytest.approx(
        (150 + 140 + 130 + 120) / 800 - (145 + 135 + 125) / 600
    )
    # the seeds' part alone: variances of means of 4 and of 3, drawn with replacement, add up
    seeds = np.var([0, 10, 20, 30]) / 4 + np.var([5, 15, 25]) / 3
    assert found.high - found.low > 2 * 1.96 * math.sqrt(seeds) / 200 * 0.95
    # one seed each leaves the images' part
    assert paired_difference(a[:1], b[:1], "accuracy").high < found.high


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
    found = mcnemar([answers(right_a)], [answers(right_b)])
    assert (found.only_a, found.only_b) == (only_a, only_b)
    assert found.p == pytest.approx(p)


def test_mcnemar_asks_the_mean_over_seeds() -> None:
    # two of three seeds are right on image 0, all with probability 0.9: their mean is
    seeds = [answers(np.array([first, True])) for first in (True, True, False)]
    assert mcnemar(seeds, [answers(np.array([False, False]))]).only_a == 2
    assert mcnemar(seeds[1:] + seeds[2:], [answers(np.array([False, False]))]).only_a == 1


def test_holm_by_hand() -> None:
    # ascending: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1; the last is raised to the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02, np.nan, 0.03]) == pytest.approx([0.04, np.nan, 0.04], nan_ok=True)
    assert holm([]).tolist() == []
    assert np.isnan(holm([np.nan])).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_as_the_procedure_does(p: list[float], alpha: float) -> None:
    # in ascending order, reject while p <= alpha / (tests left)
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
    shuffled = b.sample(frac=1, random_state=0)
    assert paired_difference([a], [b], "accuracy") == paired_difference([a], [shuffled], "accuracy")
    assert mcnemar([a], [b]) == mcnemar([a], [shuffled])
    with pytest.raises(DifferentImagesError, match=r"^custom #2 lacks image i3 \(1 differ\)"):
        paired_difference([a], [b.drop(index=3)], "accuracy", names=("custom #1", "custom #2"))
    with pytest.raises(DifferentImagesError, match="^custom #2, seed 2 lacks image i3"):
        mcnemar([a], [b, b.drop(index=3)], ("custom #1", "custom #2"))
    with pytest.raises(DifferentImagesError, match="another label"):
        mcnemar([a], [b.assign(label="nv")])


def test_bad_input_is_named() -> None:
    table = answers(np.arange(12) < 8)
    with pytest.raises(UserError, match="no predictions"):
        paired_difference([table], [], "accuracy")
    with pytest.raises(ConfigError, match="'loss'"):
        paired_difference([table], [table], "loss")
    with pytest.raises(ConfigError, match="samples"):
        paired_difference([table], [table], "accuracy", samples=0)
    with pytest.raises(ConfigError, match="level"):
        paired_difference([table], [table], "accuracy", level=1)


def test_one_lesion_tells_nothing() -> None:
    a, b = (answers(np.array(right), np.zeros(2)) for right in ([True, True], [True, False]))
    found = paired_difference([a], [b], "accuracy")
    assert found.difference == 0.5
    assert np.isnan(found[1:]).all()


def test_the_seed_decides() -> None:
    rng = np.random.default_rng(0)
    a, b = ([answers(rng.random(50) < 0.7) for _ in range(2)] for _ in range(2))
    assert paired_difference(a, b, "macro_f1", seed=3) == paired_difference(
        a, b, "macro_f1", seed=3
    )
    assert paired_difference(a, b, "macro_f1", seed=3) != paired_difference(
        a, b, "macro_f1", seed=4
    )


def test_nets_made_from_one_another_are_drawn_by_their_seed() -> None:
    # three seeds of very different skill, each made worse by the same 6 of 300 images: every sample
    # loses about 0.02
    rng = np.random.default_rng(4)
    before = [rng.random(300) < skill for skill in (0.5, 0.7, 0.9)]
    lost = [right & ~np.isin(np.arange(300), np.flatnonzero(right)[:6]) for right in before]
    frames = [[answers(right) for right in side] for side in (before, lost)]
    paired = paired_difference(*frames, "accuracy", made_from=True)
    assert paired.difference == pytest.approx(6 / 300)
    # of each seed 6 of 300 images differ: the standard error is at most that of one such share
    assert paired.high - paired.low < 2 * 1.96 * math.sqrt(0.02 * 0.98 / 300) * 1.1
    apart = paired_difference(*frames, "accuracy")
    assert apart.high - apart.low > 0.2  # seeds that differ by 0.2 each, drawn apart
    same = paired_difference(frames[0], frames[0], "accuracy", made_from=True)
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="3 nets cannot have been made from 2"):
        paired_difference(frames[0], frames[1][:2], "accuracy", made_from=True)


def test_degradation_is_the_difference_on_the_same_images() -> None:
    before, after = answers(np.arange(7) >= 0), answers(np.arange(7) != 1)
    assert set(degradation([before], [before]).values()) == {0.0}
    lost = degradation([before], [after])  # one melanoma of three, one image of seven
    assert lost["compression/lost/recall/mel"] == pytest.approx(1 / 3)
    assert lost["compression/lost/accuracy"] == pytest.approx(1 / 7)
    assert lost["compression/lost/balanced_accuracy"] == pytest.approx(1 / 6)
    low, high = (lost[f"compression/lost/accuracy/{end}"] for end in ("low", "high"))
    assert 0 <= low <= 1 / 7 <= high
    names = ("accuracy", "balanced_accuracy", "recall/mel")
    assert set(lost) == {
        f"compression/lost/{name}{end}" for name in names for end in ("", "/low", "/high")
    }


def test_degradation_without_a_melanoma_class_has_no_recall() -> None:
    frame = (
        answers(np.arange(8) < 6).replace({"label": {"mel": "x"}}).rename(columns={"p/mel": "p/x"})
    )
    lost = degradation([frame], [frame])
    assert not any("recall" in name or math.isnan(value) for name, value in lost.items())
