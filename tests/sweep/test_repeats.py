import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.metrics.registry import Direction, Limit, Objective
from src.sweep.repeats import Repeated, aggregate, clearly_behind, is_dropped

UP = Objective("val/balanced_accuracy", "maximize")
MELANOMA = Objective("val/recall/mel", "maximize")
FLOPS = Objective("efficiency/flops", "minimize")
LOSS = Objective("val/loss", "minimize")


@pytest.mark.parametrize(
    ("own", "rival", "p", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0.5, 0.7, 0.9, 1.1], 0.1, True),  # 4 of 4: 1/16
        ([0.1, 0.2, 0.3], [0.5, 0.7, 0.9], 0.1, False),  # 3 of 3: 1/8, not to be reached
        ([0.1, 0.2, 0.3], [0.5, 0.7, 0.9], 0.125, True),
        ([0.1, 0.2, 0.3, 0.4], [0.5, 0.7, 0.9, 1.1], 0.05, False),
        ([0.5, 0.7, 0.9, 1.1], [0.1, 0.2, 0.3, 0.4], 0.1, False),  # ahead
        (
            [0.1, 0.2, 0.3, 1.0],
            [0.5, 0.7, 0.9, 0.9],
            0.1,
            False,
        ),  # leads +4 +5 +6 -1: W = 9, 2 of 16 as high: 1/8
        (
            [0.0, 0.0, 0.0, 0.0, 0.1],
            [0.2, 0.3, 0.4, 0.5, 0.0],
            0.1,
            True,
        ),  # only the smallest is negative: 2/32
        (
            [0.1, 0.2, 0.3, 0.4],
            [0.5, 0.7, 0.9, 0.4],
            0.1,
            False,
        ),  # an equal pair tells nothing: 3 are left
        ([0.1, 0.2, 0.3, math.nan], [0.5, 0.7, 0.9, 0.4], 0.1, False),
        ([0.2] * 5, [0.2] * 5, 0.1, False),
        ([0.25] * 4, [0.5] * 4, 0.1, True),  # equal leads are exact too: 1/16
        ([], [], 0.1, False),
    ],
)
def test_clearly_behind_by_counting(
    own: list[float], rival: list[float], p: float, expected: bool
) -> None:
    assert clearly_behind(own, rival, "maximize", p) is expected
    assert (
        clearly_behind([-value for value in own], [-value for value in rival], "minimize", p)
        is expected
    )


@given(st.permutations(range(1, 8)), st.lists(st.sampled_from([-1, 1]), min_size=7, max_size=7))
def test_clearly_behind_is_the_share_of_signings_that_do_as_well(
    sizes: list[int], signs: list[int]
) -> None:
    leads = [size * sign for size, sign in zip(sizes, signs, strict=True)]
    reached = sum(lead for lead in leads if lead > 0)
    as_high = sum(
        sum(s for s in range(1, 8) if code >> (s - 1) & 1) >= reached for code in range(2**7)
    )
    assert clearly_behind([0.0] * 7, leads, "maximize") == (as_high / 2**7 <= 0.1)


def test_different_numbers_of_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        clearly_behind([0.1], [0.1, 0.2], "maximize")


def repeated(
    values: list[float], metric: Objective = UP, first: int = 0, **cost: float
) -> Repeated:
    seeds = {first + number: {metric.metric: value} for number, value in enumerate(values)}
    return Repeated(seeds, {f"efficiency/{name}": value for name, value in cost.items()})


WEAK, MIDDLE, STRONG = [0.30, 0.31, 0.32, 0.33], [0.40, 0.42, 0.44, 0.46], [0.60, 0.64, 0.68, 0.72]


@pytest.mark.parametrize(
    ("direction", "dropped"), [("maximize", [True, False]), ("minimize", [False, True])]
)
def test_with_one_objective_the_best_mean_is_the_rival(
    direction: Direction, dropped: list[bool]
) -> None:
    objective = Objective("val/loss", direction)
    own, other = repeated(MIDDLE, LOSS), repeated(STRONG, LOSS)
    assert [is_dropped(own, [other], [objective]), is_dropped(other, [own], [objective])] == dropped


def test_only_the_best_rival_counts_with_one_objective() -> None:
    # behind the second best in each seed, but not behind the best, who has one bad seed
    own, second = repeated([0.5, 0.5, 0.5, 0.5]), repeated([0.51, 0.52, 0.53, 0.54])
    best = repeated([0.4, 0.9, 0.9, 0.9])
    assert is_dropped(own, [second], [UP])
    assert not is_dropped(own, [second, best], [UP])


def test_pairs_are_by_seed() -> None:
    own = repeated([0.5, 0.5, 0.5, 0.5, 0.5], first=0)
    shifted = repeated([0.6, 0.7, 0.8, 0.9, 1.0], first=2)  # seeds 2, 3 and 4 are shared: too few
    assert not is_dropped(own, [shifted], [UP])
    # a rival with a seed or two is no rival, though its mean is the best
    lucky, steady = repeated([0.99]), repeated(STRONG)
    assert is_dropped(own, [lucky, steady], [UP])


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

    own = both(MIDDLE, MIDDLE)
    assert is_dropped(own, [both(STRONG, STRONG)], [UP, MELANOMA])
    assert not is_dropped(own, [both(STRONG, WEAK), both(WEAK, STRONG)], [UP, MELANOMA])


@pytest.mark.parametrize("rivals", [[], [Repeated({})], [repeated([math.nan] * 4)]])
def test_nobody_is_dropped_for_nothing(rivals: list[Repeated]) -> None:
    assert not is_dropped(repeated(WEAK), rivals, [UP])
    assert not is_dropped(repeated(WEAK, flops=3), rivals, [FLOPS])  # a cost alone has no seeds


@given(
    st.lists(st.integers(0, 100), min_size=4, max_size=8),
    st.lists(st.integers(0, 100), min_size=4, max_size=8),
)
def test_two_configurations_never_drop_each_other(own: list[int], other: list[int]) -> None:
    pair = repeated([float(value) for value in own]), repeated([float(value) for value in other])
    assert not (is_dropped(pair[0], [pair[1]], [UP]) and is_dropped(pair[1], [pair[0]], [UP]))


class TestWithLimits:
    """Recall at least 0.8 and loss at most 2, over four seeds: all clear, or all but one."""

    LIMITS = (Limit("val/recall/mel", ">=", 0.8), Limit("val/loss", "<=", 2.0))

    def make(
        self, accuracy: list[float], recall: list[float], flops: float = 1.0, loss: float = 1.0
    ) -> Repeated:
        fixed = {FLOPS.metric: flops, "best/val/loss": loss}
        pairs = zip(accuracy, recall, strict=True)
        seeds = {
            seed: {UP.metric: a, "best/val/recall/mel": r, **fixed}
            for seed, (a, r) in enumerate(pairs)
        }
        return Repeated(seeds, {FLOPS.metric: flops})

    def dropped(
        self, own: Repeated, *rivals: Repeated, objectives: tuple[Objective, ...] = (UP,)
    ) -> bool:
        return is_dropped(own, list(rivals), list(objectives), limits=self.LIMITS)

    def test_one_that_breaks_a_limit_does_not_push_out_one_that_keeps_it(self) -> None:
        keeps, breaks = (
            self.make(WEAK, [0.8, 0.85, 0.9, 0.95]),
            self.make(STRONG, [0.7, 0.6, 0.5, 0.4]),
        )
        for objectives in ((UP,), (UP, FLOPS)):
            assert is_dropped(keeps, [breaks], list(objectives))  # as it was
            assert not self.dropped(keeps, breaks, objectives=objectives)
            assert self.dropped(breaks, keeps, objectives=objectives)

    def test_cost_does_not_save_one_that_breaks_a_limit(self) -> None:
        keeps = self.make(WEAK, [0.9] * 4, flops=9.0)
        assert self.dropped(self.make(STRONG, [0.7] * 4, flops=1.0), keeps, objectives=(UP, FLOPS))
        assert self.dropped(self.make(STRONG, [0.7] * 4, flops=1.0), keeps, objectives=(FLOPS,))
        assert not self.dropped(keeps, self.make(STRONG, [0.7] * 4, flops=1.0), objectives=(FLOPS,))

    def test_a_violation_that_is_not_clear_drops_nobody(self) -> None:
        own = self.make(STRONG, [0.7, 0.85, 0.6, 0.5])  # three seeds of four: 1/8
        assert not self.dropped(own, self.make(WEAK, [0.9] * 4))
        assert self.dropped(
            self.make(WEAK, [0.7, 0.85, 0.6, 0.5]), self.make(STRONG, [0.9] * 4)
        )  # behind anyway

    def test_of_two_that_break_limits_the_lesser_total_violation_wins(self) -> None:
        little = self.make(WEAK, [0.7] * 4, loss=2.0)  # 1/8
        much = self.make(STRONG, [0.75] * 4, loss=3.0)  # 1/16 + 1/2
        assert self.dropped(much, little)
        assert not self.dropped(little, much)

    def test_among_those_that_keep_the_limits_all_is_as_without(self) -> None:
        good = [0.8, 0.9, 0.85, 1.0]
        assert self.dropped(self.make(WEAK, good), self.make(STRONG, good))
        assert not self.dropped(self.make(STRONG, good), self.make(WEAK, good))
        strong_but_blind = self.make([9.0] * 4, [0.1] * 4)  # best mean of all, but no rival
        assert self.dropped(self.make(WEAK, good), strong_but_blind, self.make(STRONG, good))


def test_aggregate_by_hand() -> None:
    means, spreads = aggregate(
        [{"a": 1.0, "b": 5.0}, {"a": 2.0, "b": 5.0}, {"a": 6.0, "b": 5.0, "c": 1.0}]
    )
    assert means == {"a": 3.0, "b": 5.0}  # not all have c
    assert spreads == pytest.approx({"a": math.sqrt((4 + 1 + 9) / 2), "b": 0.0})


def test_aggregate_at_the_edges() -> None:
    assert aggregate([]) == ({}, {})
    assert aggregate([{"a": 2.0}]) == ({"a": 2.0}, {})
    means, spreads = aggregate([{"a": math.nan}, {"a": 1.0}])
    assert math.isnan(means["a"])
    assert math.isnan(spreads["a"])


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_aggregate_agrees_with_numpy(values: list[float]) -> None:
    means, spreads = aggregate([{"a": value} for value in values])
    assert means["a"] == pytest.approx(np.mean(values), abs=1e-9)
    assert spreads["a"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
