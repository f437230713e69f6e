import tracemalloc

import moocore
import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.samplers.nsgaii._elite_population_selection_strategy import _calc_crowding_distance

from src.metrics.pareto import crowding, front, ranks
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


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=25
    )
)
def test_front_is_exactly_what_nobody_dominates(points: list[tuple[int, int, int]]) -> None:
    objectives = [UP, DOWN, DOWN]
    members = front(np.array(points, dtype=float), objectives)

    def dominates(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
        return a != b and a[0] >= b[0] and a[1] <= b[1] and a[2] <= b[2]

    assert members.tolist() == [
        not any(dominates(other, point) for other in points) for point in points
    ]


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


@given(TABLES)
def test_ranks_agree_with_moocore(table: list[list[float]]) -> None:
    values = np.array(table)
    objectives = [DOWN] * values.shape[1]
    assert ranks(values, objectives).tolist() == moocore.pareto_rank(values).tolist()
    # a column that is turned round, with its direction, changes nothing
    turned = values * ([-1] + [1] * (values.shape[1] - 1))
    assert ranks(turned, [UP, *objectives[1:]]).tolist() == moocore.pareto_rank(values).tolist()


@given(TABLES, st.data())
def test_rank_0_is_the_front(table: list[list[float]], data: st.DataObject) -> None:
    values = np.array(table)
    objectives = data.draw(
        st.lists(st.sampled_from([UP, DOWN]), min_size=values.shape[1], max_size=values.shape[1])
    )
    values[data.draw(st.lists(st.integers(0, len(values) - 1)))] = np.nan
    rank = ranks(values, objectives)
    assert (rank == 0).tolist() == front(values, objectives).tolist()
    assert sorted(set(rank.tolist())) in (
        list(range(rank.max() + 1)),
        [1],
    )  # no gap; [1]: nothing known at all


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
