import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from src.metrics.pareto import REFERENCE, contributions, hypervolume, over_time

# on the grid of tenths below the reference point the dominated cells can be counted
TENTHS = st.integers(1, 3).flatmap(
    lambda columns: st.lists(st.tuples(*[st.integers(0, 13)] * columns), min_size=1, max_size=12)
)


def cells(points: list[tuple[int, ...]]) -> float:
    columns = len(points[0])
    grid = itertools.product(range(11), repeat=columns)
    dominated = sum(
        any(all(p <= c for p, c in zip(point, cell, strict=True)) for point in points)
        for cell in grid
    )
    return dominated / 11**columns


def test_by_hand() -> None:
    assert hypervolume(np.array([[0.0, 0.0]])) == pytest.approx(1)
    # 1.1 x 0.1 and 0.1 x 1.1, of which 0.1 x 0.1 is common, of 1.21
    assert hypervolume(np.array([[0.0, 1.0], [1.0, 0.0]])) == pytest.approx(
        (0.11 + 0.11 - 0.01) / 1.21
    )
    assert hypervolume(np.array([[0.6]])) == pytest.approx(0.5 / 1.1)
    for nothing in (
        np.empty((0, 2)),
        np.array([[np.nan, 0.0]]),
        np.array([[1.1, 0.0]]),
        np.array([[-np.inf, 0.0]]),
    ):
        assert hypervolume(nothing) == 0
        assert contributions(nothing).tolist() == [0] * len(nothing)
        assert over_time(nothing).tolist() == [0] * len(nothing)


def test_contributions_by_hand() -> None:
    losses = np.array([[0.1, 0.6], [0.6, 0.1], [0.6, 0.6], [np.nan, 0.0]])
    assert contributions(losses).tolist() == pytest.approx(
        [0.5 * 0.5 / 1.21, 0.5 * 0.5 / 1.21, 0, 0]
    )
    assert contributions(losses[[0, 1, 1]]).tolist() == pytest.approx([0.25 / 1.21, 0, 0])
    assert contributions(np.array([[0.6], [0.7]])).tolist() == pytest.approx([0.5 / 1.1, 0])
    assert contributions(np.array([[0.6], [0.6]])).tolist() == [0, 0]


@settings(deadline=None, max_examples=60)
@given(TENTHS)
def test_agrees_with_counted_cells(points: list[tuple[int, ...]]) -> None:
    losses = np.array(points) / 10
    assert hypervolume(losses) == pytest.approx(cells(points))
    expected = [cells(points[: number + 1]) for number in range(len(points))]
    assert over_time(losses).tolist() == pytest.approx(expected)


@settings(deadline=None, max_examples=60)
@given(TENTHS)
def test_a_contribution_is_what_the_front_loses(points: list[tuple[int, ...]]) -> None:
    front = [
        point
        for point in points
        if not any(
            other != point and all(o <= p for o, p in zip(other, point, strict=True))
            for other in points
        )
    ]
    expected = [
        cells(front)
        - (cells([other for number, other in enumerate(front) if number != at]) if front[1:] else 0)
        for at in range(len(front))
    ]
    assert contributions(np.array(front) / 10).tolist() == pytest.approx(expected)
    dominated = [point for point in points if point not in front]
    together = contributions(np.array(front + dominated) / 10).tolist()
    assert together == pytest.approx(expected + [0] * len(dominated))


@settings(deadline=None, max_examples=60)
@given(st.integers(4, 5), st.integers(1, 25), st.integers(0, 2**32 - 1))
def test_agrees_with_optuna_in_four_and_five_objectives(columns: int, rows: int, seed: int) -> None:
    losses = np.random.default_rng(seed).random((rows, columns)) * 1.2
    inside = losses[(losses < REFERENCE).all(axis=1)]
    found = compute_hypervolume(inside, np.full(columns, REFERENCE)) if len(inside) else 0
    assert hypervolume(losses) == pytest.approx(found / REFERENCE**columns)
    assert over_time(losses)[-1] == pytest.approx(found / REFERENCE**columns)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 3), st.integers(0, 2**32 - 1))
def test_over_time_never_falls_and_ends_at_the_whole(columns: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    losses = generator.random((200, columns)) ** generator.uniform(0.3, 3)
    losses[generator.random(200) < 0.2] = np.nan
    history = over_time(losses)
    assert (np.diff(history) >= 0).all()
    assert history[-1] == pytest.approx(hypervolume(losses))
    missing = np.flatnonzero(np.isnan(losses).any(axis=1))
    missing = missing[missing > 0]
    assert history[missing].tolist() == history[missing - 1].tolist()


def test_ten_thousand_trials_that_all_come_to_the_front() -> None:
    angle = np.random.default_rng(0).permutation(np.linspace(0, np.pi / 2, 2_000))
    losses = 1 - np.column_stack([np.cos(angle), np.sin(angle)])
    history = over_time(losses)
    assert (np.diff(history) > 0).all()
    # what a quarter of a circle round (1, 1) leaves, and the rim of 0.1 on two sides, its corner
    # counted once
    assert history[-1] == pytest.approx((np.pi / 4 + 2 * 0.1 + 0.01) / 1.21, abs=1e-3)
