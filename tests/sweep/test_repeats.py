"""Seeds of one configuration: the test against a rival, dropping, mean and spread."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_ind

from src.metrics.registry import PRIMARY, Limit, Objective
from src.sweep.repeats import (
    Repeated,
    aggregate,
    is_dropped,
    is_significantly_worse,
    pooled_variance,
)

UP = Objective(f"val/{PRIMARY}", "maximize")
MELANOMA = Objective("val/recall/mel", "maximize")
FLOPS = Objective("efficiency/flops", "minimize")
LOSS = Objective("val/loss", "minimize")


def repeated(
    values: list[float], metric: Objective = UP, first: int = 0, **cost: float
) -> Repeated:
    seeds = {first + number: {metric.metric: value} for number, value in enumerate(values)}
    return Repeated(seeds, {f"efficiency/{name}": value for name, value in cost.items()})


VALUES = st.lists(st.integers(0, 20).map(float), min_size=2, max_size=6)


@settings(max_examples=60)
@given(VALUES, VALUES)
def test_two_configurations_alone_are_compared_by_the_t_test(
    values: list[float], rival: list[float]
) -> None:
    pvalue = ttest_ind(rival, values, equal_var=True, alternative="greater").pvalue
    pooled = pooled_variance([values, rival])
    expected = bool(pvalue <= 0.1) and sum(rival) / len(rival) > sum(values) / len(values)
    assert is_significantly_worse(values, rival, pooled, "maximize") is expected
    opposite = [[-value for value in group] for group in (values, rival)]
    assert is_significantly_worse(*opposite, pooled, "minimize") is expected


def test_one_seed_is_compared_by_the_spread_of_the_others() -> None:
    # Variances 2 and 2 with one degree of freedom each: the deviation of a difference of two
    # single seeds is 2, and the upper tenth of t with 2 degrees of freedom starts at 1.886.
    others = [[0.0, 2.0], [10.0, 12.0]]
    for lead, expected in ((3.7, False), (3.8, True)):
        pooled = pooled_variance([[5.0], [5.0 + lead], *others, [math.nan, 1.0]])
        assert pooled == (2.0, 2)
        assert is_significantly_worse([5.0], [5.0 + lead], pooled, "maximize") is expected
    assert not is_significantly_worse([math.nan], [9.0], pooled, "maximize")
    unknown, alike = pooled_variance([[0.0], [9.0]]), pooled_variance([[4.0, 4.0]])
    assert not is_significantly_worse([0.0], [9.0], unknown, "maximize")
    assert is_significantly_worse([0.0], [9.0], alike, "maximize")


WEAK, MIDDLE, STRONG = [0.30, 0.31, 0.32, 0.33], [0.40, 0.42, 0.44, 0.46], [0.60, 0.64, 0.68, 0.72]


def test_with_one_objective_the_best_mean_is_the_rival() -> None:
    for direction, dropped in (("maximize", [True, False]), ("minimize", [False, True])):
        objective = Objective("val/loss", direction)  # type: ignore[arg-type]
        middle, strong = repeated(MIDDLE, LOSS), repeated(STRONG, LOSS)
        pairs = ((middle, strong), (strong, middle))
        assert [is_dropped(one, [other], [objective]) for one, other in pairs] == dropped
    # Behind the second best (t = 3.9), but not behind the best, whose seeds differ (t = 0.5):
    candidate, second = repeated([0.5, 0.5, 0.5, 0.5]), repeated([0.51, 0.52, 0.53, 0.54])
    best = repeated([0.0, 0.9, 0.9, 0.54])
    assert is_dropped(candidate, [second], [UP])
    assert not is_dropped(candidate, [second, best], [UP])


@pytest.mark.parametrize(("rival", "dropped"), [([0.9], False), ([0.9, 0.91], True)])
def test_one_seed_of_the_candidate_is_enough_but_not_of_the_rival(
    rival: list[float], dropped: bool
) -> None:
    rivals = [repeated(WEAK), repeated(rival, first=3)]
    assert is_dropped(repeated([0.5]), rivals, [UP]) is dropped
    assert not is_dropped(repeated([0.89]), rivals, [UP])


@pytest.mark.parametrize(
    ("rival", "dropped"),
    [
        (repeated(STRONG, flops=10), True),
        (repeated(STRONG, flops=9), True),
        (repeated(STRONG, flops=11), False),  # dearer: both may stand on the front
        (repeated(STRONG), False),  # its cost is not known
        (repeated(WEAK, flops=1), False),
        (repeated(MIDDLE, flops=1), False),  # equal
    ],
)
def test_with_several_objectives_a_rival_must_cost_no_more(rival: Repeated, dropped: bool) -> None:
    assert is_dropped(repeated(MIDDLE, flops=10), [rival], [UP, FLOPS]) is dropped


def test_with_several_objectives_one_rival_must_be_better_in_each() -> None:
    def both(accuracy: list[float], recall: list[float]) -> Repeated:
        pairs = zip(accuracy, recall, strict=True)
        return Repeated(
            {seed: {UP.metric: a, MELANOMA.metric: r} for seed, (a, r) in enumerate(pairs)}
        )

    candidate = both(MIDDLE, MIDDLE)
    assert is_dropped(candidate, [both(STRONG, STRONG)], [UP, MELANOMA])
    assert not is_dropped(candidate, [both(STRONG, WEAK), both(WEAK, STRONG)], [UP, MELANOMA])


@pytest.mark.parametrize("rivals", [[], [Repeated({})], [repeated([math.nan] * 4)]])
def test_nobody_is_dropped_for_nothing(rivals: list[Repeated]) -> None:
    assert not is_dropped(repeated(WEAK), rivals, [UP])
    assert not is_dropped(repeated(WEAK, flops=3), rivals, [FLOPS])  # a cost alone has no seeds


SEEDS = st.lists(st.integers(0, 100), min_size=4, max_size=8)


@settings(max_examples=40)
@given(SEEDS, SEEDS)
def test_two_configurations_never_drop_each_other(first: list[int], second: list[int]) -> None:
    one, other = (repeated([float(value) for value in values]) for values in (first, second))
    assert not (is_dropped(one, [other], [UP]) and is_dropped(other, [one], [UP]))


# With limits: recall at least 0.8 and loss at most 2, over four seeds

LIMITS = (Limit("val/recall/mel", ">=", 0.8), Limit("val/loss", "<=", 2.0))
GOOD_RECALL = [0.8, 0.9, 0.85, 1.0]


def limited(
    accuracy: list[float], recall: list[float], flops: float = 1.0, loss: float = 1.0
) -> Repeated:
    shared = {FLOPS.metric: flops, "best/val/loss": loss}
    seeds = {
        seed: {UP.metric: a, "best/val/recall/mel": r, **shared}
        for seed, (a, r) in enumerate(zip(accuracy, recall, strict=True))
    }
    return Repeated(seeds, {FLOPS.metric: flops})


KEEPS, BREAKS = limited(WEAK, [0.8, 0.85, 0.9, 0.95]), limited(STRONG, [0.7, 0.6, 0.5, 0.4])
DEAR, CHEAP = limited(WEAK, [0.9] * 4, flops=9.0), limited(STRONG, [0.7] * 4)
LITTLE = limited(WEAK, [0.7] * 4, loss=2.0)  # violation 1/8
MUCH = limited(STRONG, [0.75] * 4, loss=3.0)  # 1/16 + 1/2


@pytest.mark.parametrize(
    ("candidate", "rivals", "objectives", "dropped"),
    [
        # One that breaks a limit does not drop one that keeps it, but the other way round.
        (KEEPS, [BREAKS], [UP], False),
        (KEEPS, [BREAKS], [UP, FLOPS], False),
        (BREAKS, [KEEPS], [UP], True),
        (BREAKS, [KEEPS], [UP, FLOPS], True),
        # A lower cost does not save one that breaks a limit.
        (CHEAP, [DEAR], [UP, FLOPS], True),
        (CHEAP, [DEAR], [FLOPS], True),
        (DEAR, [CHEAP], [FLOPS], False),
        # A violation with one of four seeds is not significant: t = 1.
        (limited(STRONG, [0.1, 1.0, 1.0, 1.0]), [limited(WEAK, [0.9] * 4)], [UP], False),
        (limited(WEAK, [0.1, 1.0, 1.0, 1.0]), [limited(STRONG, [0.9] * 4)], [UP], True),
        # Of two that break limits the smaller total violation wins.
        (MUCH, [LITTLE], [UP], True),
        (LITTLE, [MUCH], [UP], False),
        # Among those that keep the limits all is as without.
        (limited(WEAK, GOOD_RECALL), [limited(STRONG, GOOD_RECALL)], [UP], True),
        (limited(STRONG, GOOD_RECALL), [limited(WEAK, GOOD_RECALL)], [UP], False),
        # One with the best mean of all that breaks a limit is no rival.
        (
            limited(WEAK, GOOD_RECALL),
            [limited([9.0] * 4, [0.1] * 4), limited(STRONG, GOOD_RECALL)],
            [UP],
            True,
        ),
    ],
)
def test_limits_decide_first(
    candidate: Repeated, rivals: list[Repeated], objectives: list[Objective], dropped: bool
) -> None:
    assert is_dropped(candidate, rivals, objectives, limits=LIMITS) is dropped


@pytest.mark.parametrize(("recall", "dropped"), [(0.78, False), (0.71, False), (0.50, True)])
def test_a_first_seed_that_just_breaks_a_limit_does_not_drop(recall: float, dropped: bool) -> None:
    # The variance over seeds is 0.0024, and all rivals keep the limit with every seed. The upper
    # tenth of t with 12 degrees of freedom starts at 1.356: 0.8 - 1.356 * sqrt(2 * 0.0024) = 0.706.
    recalls = [0.89, 0.95, 0.95, 1.01]
    assert pooled_variance([recalls] * 4) == pytest.approx((0.0024, 12))
    rivals = [limited(WEAK, recalls, flops=9.0)] * 4
    candidate = limited([0.9], [recall], flops=1.0)
    assert is_dropped(candidate, rivals, [UP, FLOPS], limits=LIMITS) is dropped


def test_without_limits_only_the_objectives_count() -> None:
    assert is_dropped(KEEPS, [BREAKS], [UP])
    assert is_dropped(KEEPS, [BREAKS], [UP, FLOPS])


def test_aggregate_by_hand() -> None:
    means, spreads = aggregate(
        [{"a": 1.0, "b": 5.0}, {"a": 2.0, "b": 5.0}, {"a": 6.0, "b": 5.0, "c": 1.0}]
    )
    assert means == {"a": 3.0, "b": 5.0}  # not all have c
    assert spreads == pytest.approx({"a": math.sqrt((4 + 1 + 9) / 2), "b": 0.0})
    assert aggregate([]) == ({}, {})
    assert aggregate([{"a": 2.0}]) == ({"a": 2.0}, {})
    means, spreads = aggregate([{"a": math.nan}, {"a": 1.0}])
    assert math.isnan(means["a"])
    assert math.isnan(spreads["a"])


@settings(max_examples=40)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_aggregate_agrees_with_numpy(values: list[float]) -> None:
    means, spreads = aggregate([{"a": value} for value in values])
    assert means["a"] == pytest.approx(np.mean(values), abs=1e-9)
    assert spreads["a"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
