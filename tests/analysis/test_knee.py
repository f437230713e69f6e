import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.metrics.pareto import knee


def test_two_objectives_by_hand() -> None:
    # scaled (0, 1), (0.1, 0.3), (0.5, 0.2), (1, 0): below the chord x + y = 1 by 0.6 and 0.3,
    # divided by sqrt(2)
    losses = np.array([[0, 100], [1, 30], [5, 20], [10, 0]])
    at, how = knee(losses)
    assert at == 1
    assert f"{0.6 / math.sqrt(2):.2f} of the front's range" in how
    assert "chord between the ends" in how


def test_three_objectives_by_hand() -> None:
    # the plane x + y + z = 2 through the first three; the sums of the others are 1.2 and 1.1
    losses = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0], [0.4, 0.4, 0.4], [0.3, 0.35, 0.45]])
    at, how = knee(losses)
    assert at == 4
    assert f"{0.9 / math.sqrt(3):.2f} of the front's range" in how
    assert "plane through the best point of each objective" in how


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([], "the front has 0"),
        ([[1, 1]], "the front has 1"),
        ([[0, 1], [1, 0]], "the front has 2"),
        ([[0, 1], [1, 0], [1, 0]], "the front has 2"),  # a repeated point is one point
        ([[0, 1], [0.5, 0.5], [1, 0]], "no point of the front lies nearer"),  # a straight front
        (
            [[0, 1], [0.7, 0.8], [1, 0]],
            "no point of the front lies nearer",
        ),  # one that bulges away from the ideal
    ],
)
def test_no_knee(losses: list[list[float]], reason: str) -> None:
    at, how = knee(np.array(losses, dtype=float).reshape(-1, 2))
    assert at is None
    assert how.startswith("No knee")
    assert reason in how


def test_equal_best_values_are_told_apart_by_the_rest() -> None:
    # (0, 1, 1) and (0, 0.6, 1.2) are equal in the first; scaled by 1, 1, 1.2 the rest sums to 1.83
    # and 1.6
    losses = np.array([[0, 1, 1], [0, 0.6, 1.2], [1, 0, 1.2], [1, 1, 0], [0.4, 0.4, 0.4]])
    ends = losses[[1, 2, 3]] / [1, 1, 1.2]
    across = np.cross(ends[1] - ends[0], ends[2] - ends[0])
    distance = abs((losses[4] / [1, 1, 1.2] - ends[0]) @ across) / math.hypot(*across)
    at, how = knee(losses)
    assert at == 4
    assert f"{distance:.2f} of the front's range" in how


def test_one_best_point_of_two_objectives_leaves_the_closest_to_the_ideal() -> None:
    # the first is best in both costs, so that three ends are only two points
    losses = np.array([[1.0, 0, 0], [0, 1, 1], [0.3, 0.3, 0.4], [0.6, 0.1, 0.5]])
    at, how = knee(losses)
    assert at == 2  # sqrt(0.34) against 1, sqrt(2) and sqrt(0.62)
    assert "closest to the ideal" in how


def test_a_plane_that_leans_over_leaves_the_closest_to_the_ideal() -> None:
    # through (0, 1, 1), (1, 0, 1), (0.3, 0.3, 0): its normal is below zero in the third
    losses = np.array([[0, 1, 1], [1, 0, 1], [0.3, 0.3, 0], [0.2, 0.2, 0.9]])
    at, how = knee(losses)
    assert at == 2
    assert "closest to the ideal" in how


def test_an_objective_in_which_all_are_equal_does_not_matter() -> None:
    losses = np.array([[0, 7, 1], [0.1, 7, 0.2], [1, 7, 0]])
    assert knee(losses) == knee(losses[:, [0, 2]])
    assert knee(losses)[0] == 1


def test_the_first_of_equal_knees() -> None:
    losses = np.array([[0, 1], [0.25, 0.25], [0.125, 0.375], [0.25, 0.25], [1, 0]])
    assert knee(losses)[0] == 1


FRONTS = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(0, 1000)),
    min_size=3,
    max_size=30,
    unique_by=(lambda p: p[0], lambda p: p[1]),
).map(
    lambda points: list(
        zip(sorted(p[0] for p in points), sorted((p[1] for p in points), reverse=True), strict=True)
    )
)


@given(FRONTS)
def test_two_objectives_agree_with_the_distance_of_a_point_to_a_line(
    points: list[tuple[int, int]],
) -> None:
    losses = np.array(points, dtype=float)
    unit = (losses - losses.min(axis=0)) / np.ptp(losses, axis=0)
    (x1, y1), (x2, y2) = unit[0], unit[-1]
    below = [
        ((x2 - x1) * (y1 - y) - (x1 - x) * (y2 - y1)) / math.hypot(x2 - x1, y2 - y1)
        for x, y in unit
    ]
    at, _ = knee(losses)
    if at is None:
        assert max(below) <= 2e-9
    else:
        assert below[at] == pytest.approx(max(below))
        assert below[at] > 0


@given(FRONTS, st.floats(1e-3, 1e9), st.floats(-10, 10), st.randoms())
def test_units_and_order_of_rows_do_not_matter(
    points: list[tuple[int, int]], unit: float, start: float, r: Random
) -> None:
    losses = np.array(points, dtype=float)
    at, _ = knee(losses)
    order = list(range(len(points)))
    r.shuffle(order)
    turned, _ = knee(losses[order])
    if at is None:
        assert turned is None
    else:
        assert turned is not None
        sums = ((losses - losses.min(axis=0)) / np.ptp(losses, axis=0)).sum(axis=1)
        assert sums[order[turned]] == pytest.approx(sums[at])
        scaled, _ = knee(losses * [unit, 1] + [start * unit, 0])
        assert scaled is not None
        assert sums[scaled] == pytest.approx(sums[at])


@given(st.integers(2, 5), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_any_number_of_objectives_is_survived(columns: int, rows: int, seed: int) -> None:
    losses = np.random.default_rng(seed).integers(0, 4, (rows, columns)).astype(float)
    at, how = knee(losses)
    assert (at is None) == how.startswith("No knee")
    assert at is None or 0 <= at < rows
