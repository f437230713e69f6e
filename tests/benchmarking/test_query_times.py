"""Percentiles and ratios by arithmetic."""

import math

import numpy as np
import pytest

from src.deployment.benchmark.measure import latencies, ratio


def test_percentiles_and_mean_are_over_all_queries_of_all_turns() -> None:
    every = np.arange(1.0, 102.0)  # 1 ... 101: the p-th percentile is 1 + p
    found = latencies(np.split(np.random.default_rng(0).permutation(every), [10, 40]))
    assert found == pytest.approx(
        {"p50_ms": 51.0, "p90_ms": 91.0, "p99_ms": 100.0, "mean_ms": 51.0}
    )


def test_what_disturbs_both_alike_leaves_the_ratio_and_its_interval() -> None:
    rng = np.random.default_rng(0)
    slow = [rng.lognormal(size=8) for _ in range(60)]
    assert ratio([turn * 3 for turn in slow], slow, 200, 0.95, 0) == pytest.approx((3.0, 3.0, 3.0))


def test_interval_holds_the_true_ratio_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for number in range(40):
        mine, other = (
            [scale * rng.lognormal(sigma=0.3, size=4) for _ in range(50)] for scale in (2.0, 1.0)
        )
        _, low, high = ratio(mine, other, 100, 0.9, number)
        hits += low <= 2.0 <= high
    assert 30 <= hits <= 40  # 36 expected, with a deviation of 1.9


def test_blocks_keep_bursts_together() -> None:
    """Bursts that last for many turns make an interval wider than the same turns in random order."""
    rng = np.random.default_rng(2)
    burst = [
        np.full(4, 1.0 + (turn // 50 % 2)) * rng.lognormal(sigma=0.05, size=4)
        for turn in range(500)
    ]
    steady = [np.ones(4) for _ in range(500)]
    widths = []
    for turns in (burst, [burst[place] for place in rng.permutation(500)]):
        _, low, high = ratio(turns, steady, 300, 0.95, 0)
        widths.append(high - low)
    assert widths[0] >= widths[1]


def test_too_few_turns_give_a_ratio_without_an_interval() -> None:
    value, low, high = ratio([np.full(3, 2.0)] * 4, [np.full(3, 1.0)] * 4, 100, 0.95, 0)
    assert value == 2.0
    assert math.isnan(low)
    assert math.isnan(high)
