"""The Pareto front, ranks, crowding, hypervolume, knee and scaling."""

import itertools
import math
import tracemalloc
from random import Random

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume
from optuna.samplers.nsgaii._elite_population_selection_strategy import _calc_crowding_distance

from src.metrics.pareto import (
    REFERENCE,
    Scale,
    contributions,
    crowding,
    front,
    hypervolume,
    knee,
    over_time,
    ranks,
)
from src.metrics.registry import Objective

UP = Objective("val/balanced_accuracy", "maximize")
DOWN = Objective("efficiency/flops", "minimize")


@pytest.mark.parametrize(
    ("values", "members"),
    [
        ([[0.9, 10], [0.8, 20]], [True, False]),
        ([[0.9, 20], [0.8, 10]], [True, True]),
        ([[0.9, 10], [0.9, 10]], [True, True]),  # ties stand together
        ([[0.9, 10], [0.9, 11]], [True, False]),
        ([[np.nan, 1], [0.5, 10]], [False, True]),  # a missing value neither stands nor beats
        ([[0.9, 10]], [True]),
        ([], []),
    ],
)
def test_front_by_hand(values: list[list[float]], members: list[bool]) -> None:
    assert front(np.array(values), [UP, DOWN]).tolist() == members


def test_ranks_by_a_drawn_table() -> None:
    # accuracy up, FLOPs to the right; the figure is the rank, ? lacks its accuracy (its row is of
    # no meaning)
    table = """
        9 . . . 0 1
        8 . 0 . 1 2
        7 0 . 1 . .
        6 1 . 2 3 .
        5 . 2 . . ?
    """
    rows = [line.split() for line in table.strip().splitlines()]
    cells = [
        (float(row[0]), column, cell)
        for row in rows
        for column, cell in enumerate(row[1:])
        if cell != "."
    ]
    values = [[np.nan if cell == "?" else up, right] for up, right, cell in cells]
    assert ranks(np.array(values), [UP, DOWN]).tolist() == [
        4 if cell == "?" else int(cell) for _, _, cell in cells
    ]


def test_rows_without_a_value_are_never_rank_0() -> None:
    assert ranks(np.full((2, 2), np.nan), [UP, DOWN]).tolist() == [1, 1]
    assert ranks(np.empty((0, 2)), [UP, DOWN]).tolist() == []


TABLES = st.integers(1, 4).flatmap(
    lambda columns: st.lists(
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]), min_size=columns, max_size=columns),
        min_size=1,
        max_size=25,
    )
)


ODD = st.sampled_from([0.0, 0.5, 1.0, np.inf, -np.inf, np.nan])
ODD_TABLES = st.integers(1, 5).flatmap(
    lambda columns: st.lists(st.tuples(*[ODD] * columns), min_size=1, max_size=20)
)


@given(ODD_TABLES, st.data())
def test_front_and_ranks_agree_with_a_table_of_all_pairs(
    points: list[tuple[float, ...]], data: st.DataObject
) -> None:
    columns = len(points[0])
    objectives = data.draw(
        st.lists(st.sampled_from([UP, DOWN]), min_size=columns, max_size=columns)
    )

    def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        pairs = [
            (x, y) if o.direction == "maximize" else (y, x)
            for x, y, o in zip(a, b, objectives, strict=True)
        ]
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    left = {number for number, point in enumerate(points) if not any(np.isnan(point))}
    expected: dict[int, int] = {}
    level = 0
    while left:
        peeled = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        expected |= dict.fromkeys(peeled, level)
        left -= peeled
        level += 1
    assert ranks(np.array(points), objectives).tolist() == [
        expected.get(i, max(level, 1)) for i in range(len(points))
    ]
    assert front(np.array(points), objectives).tolist() == [
        expected.get(i) == 0 for i in range(len(points))
    ]


def test_ten_thousand_runs_take_little_memory() -> None:
    values = np.random.default_rng(0).random((10_000, 3))
    tracemalloc.start()
    members = front(values, [UP, DOWN, DOWN])
    rank = ranks(values, [UP, DOWN, DOWN])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6  # a table of all pairs has 1e8 cells
    assert members.tolist() == (rank == 0).tolist()
    assert 0 < members.sum() < 1000


def test_crowding_by_hand() -> None:
    # ranges 10 and 40; b: (4 - 0)/10 + (40 - 10)/40, c: (10 - 1)/10 + (30 - 0)/40
    values = np.array([[0.0, 40.0], [1.0, 30.0], [4.0, 10.0], [10.0, 0.0]])
    assert crowding(values).tolist() == pytest.approx([np.inf, 0.4 + 0.75, 0.9 + 0.75, np.inf])


@pytest.mark.parametrize(
    ("values", "distances"),
    [
        ([], []),
        ([[1, 2]], [0]),  # alone: no range, nothing to tell
        ([[1, 2], [1, 2]], [0, 0]),
        ([[1, 5], [2, 5], [4, 5]], [np.inf, 1, np.inf]),  # the second column is the same for all
        ([[1], [2], [np.inf]], [np.inf, 0, np.inf]),  # an endless range measures nothing
    ],
)
def test_crowding_at_the_edges(values: list[list[float]], distances: list[float]) -> None:
    assert crowding(np.array(values)).tolist() == distances


@given(
    st.integers(2, 20).flatmap(
        lambda rows: st.lists(st.permutations(range(rows)), min_size=1, max_size=3)
    )
)
def test_crowding_agrees_with_optuna(columns: list[list[int]]) -> None:
    # no value twice in a column: which of equal ends is the infinite one is nobody's rule
    values = np.array(columns, dtype=float).T ** 2
    population = [optuna.trial.create_trial(values=row.tolist()) for row in values]
    for number, trial in enumerate(population):
        trial.number = number
    expected = _calc_crowding_distance(population)
    assert crowding(values).tolist() == pytest.approx(
        [expected[number] for number in range(len(values))]
    )


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


UP = Objective("val/balanced_accuracy", "maximize")
FLOPS = Objective("efficiency/flops", "minimize")
RATIO = Objective("efficiency/latency_ratio", "minimize")


def test_quality_is_linear_and_cost_over_a_factor_of_ten_is_logarithmic() -> None:
    values = np.array([[0.8, 1e6], [0.6, 1e8], [0.7, 1e7]])
    scale = Scale.fit(values, [UP, FLOPS])
    assert scale.logarithmic == (False, True)
    assert scale.transform(values).ravel().tolist() == pytest.approx([0, 0, 1, 1, 0.5, 0.5])


@pytest.mark.parametrize(
    ("objective", "column", "logarithmic"),
    [
        (RATIO, [0.5, 5.0], True),  # exactly a factor of ten
        (RATIO, [0.5, 4.9], False),
        (RATIO, [0.0, 5.0], False),  # zero has no logarithm
        (Objective("time/fit_s", "minimize"), [1, 100], True),
        (Objective("efficiency/throughput", "maximize"), [1, 100], True),
        (Objective("val/recall/mel", "maximize"), [0.01, 0.9], False),  # quality never
        (Objective("val/loss", "minimize"), [0.01, 3], False),
    ],
)
def test_which_objectives_are_logarithmic(
    objective: Objective, column: list[float], logarithmic: bool
) -> None:
    values = np.array(column)[:, None]
    scale = Scale.fit(values, [objective])
    assert scale.logarithmic == (logarithmic,)
    ends = [1, 0] if objective.direction == "maximize" else [0, 1]
    assert scale.transform(values).ravel().tolist() == ends


def test_what_is_missing_or_constant_or_endless() -> None:
    values = np.array([[0.5, np.nan], [0.5, np.nan], [np.nan, np.nan]])
    scale = Scale.fit(values, [UP, FLOPS])
    np.testing.assert_array_equal(
        scale.transform(values), [[0, np.nan], [0, np.nan], [np.nan, np.nan]]
    )
    assert scale.describe()[1].endswith("no run has a value.")
    endless = Scale.fit(np.array([[1.0], [3.0], [np.inf]]), [RATIO])
    assert endless.worst == (3.0,)
    assert endless.transform(np.array([[2.0], [5.0], [np.inf]])).ravel().tolist() == [
        0.5,
        2,
        np.inf,
    ]
    assert Scale.fit(np.empty((0, 2)), [UP, FLOPS]).transform(np.empty((0, 2))).shape == (0, 2)


def test_sentences_name_range_unit_direction_and_measure() -> None:
    quality, cost = Scale.fit(
        np.array([[0.612, 30_037_824], [0.402, 4.1e9]]), [UP, FLOPS]
    ).describe()
    assert quality == (
        "balanced accuracy (validation), more is better: "
        "0 is 0.612 (best), 1 is 0.402 (worst); linear."
    )
    assert cost == (
        "FLOPs (multiply-adds), less is better: 0 is 30M multiply-adds (best), "
        "1 is 4.1G multiply-adds (worst); log10."
    )
    (alone,) = Scale.fit(np.array([[0.83]]), [RATIO]).describe()
    assert alone.endswith("0.83 x the reference net in all runs, which counts as 0.")


COSTS = st.lists(st.tuples(st.floats(0, 1), st.floats(1, 1e9)), min_size=1, max_size=20)


@given(COSTS, COSTS)
def test_losses_of_a_union_lie_in_0_to_1_and_keep_the_order(
    first: list[tuple[float, float]], second: list[tuple[float, float]]
) -> None:
    values = np.array(first + second)
    losses = Scale.fit(values, [UP, FLOPS]).transform(values)
    assert (losses >= 0).all()
    assert (losses <= 1).all()
    for column, sign in ((0, -1), (1, 1)):
        order = np.argsort(sign * values[:, column])
        assert (np.diff(losses[order, column]) >= 0).all()
        assert losses[order[0], column] == 0
        spread = values[:, column].max() > values[:, column].min()
        assert math.isclose(losses[order[-1], column], float(spread), abs_tol=1e-12)
