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

from src.metrics import pareto
from src.metrics.pareto import REFERENCE, Scale, hypervolume, knee, over_time
from src.metrics.registry import Objective

NAN = np.nan
UP = Objective("val/balanced_accuracy", "maximize")
FLOPS = Objective("efficiency/flops", "minimize")
RATIO = Objective("efficiency/latency_ratio", "minimize")


@pytest.mark.parametrize(
    ("values", "members"),
    [
        ([[0.9, 10], [0.8, 20]], [True, False]),
        ([[0.9, 20], [0.8, 10]], [True, True]),
        ([[0.9, 10], [0.9, 10]], [True, True]),  # ties are on the front together
        ([[0.9, 10], [0.9, 11]], [True, False]),
        ([[NAN, 1], [0.5, 10]], [False, True]),  # a missing value neither is on it nor dominates
        ([[0.9, 10]], [True]),
        ([], []),
    ],
)
def test_front_by_hand(values: list[list[float]], members: list[bool]) -> None:
    assert pareto.front(np.array(values), [UP, FLOPS]).tolist() == members


def test_ranks_by_a_drawn_table() -> None:
    # accuracy up, FLOPs to the right; the figure is the rank, ? lacks its accuracy
    table = """
        9 . . . 0 1
        8 . 0 . 1 2
        7 0 . 1 . .
        6 1 . 2 3 .
        5 . 2 . . ?
    """
    values, expected = [], []
    for line in table.strip().splitlines():
        up, *cells = line.split()
        for column, cell in enumerate(cells):
            if cell != ".":
                values.append([np.nan if cell == "?" else float(up), column])
                expected.append(4 if cell == "?" else int(cell))
    assert pareto.ranks(np.array(values), [UP, FLOPS]).tolist() == expected
    assert pareto.ranks(np.full((2, 2), np.nan), [UP, FLOPS]).tolist() == [1, 1]
    assert pareto.ranks(np.empty((0, 2)), [UP, FLOPS]).tolist() == []


VALUES = st.sampled_from([0.0, 0.5, 1.0, np.inf, -np.inf, np.nan])
VALUE_TABLES = st.integers(1, 5).flatmap(
    lambda columns: st.lists(st.tuples(*[VALUES] * columns), min_size=1, max_size=20)
)


@given(VALUE_TABLES, st.data())
def test_front_and_ranks_agree_with_a_table_of_all_pairs(
    points: list[tuple[float, ...]], data: st.DataObject
) -> None:
    columns = len(points[0])
    directions = st.lists(st.sampled_from([UP, FLOPS]), min_size=columns, max_size=columns)
    objectives = data.draw(directions)

    def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        signs = [1 if objective is UP else -1 for objective in objectives]
        pairs = [(sign * x, sign * y) for x, y, sign in zip(a, b, signs, strict=True)]
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    remaining = {number for number, point in enumerate(points) if not any(np.isnan(point))}
    expected: dict[int, int] = {}
    level = 0
    while remaining:
        best = {i for i in remaining if not any(dominates(points[j], points[i]) for j in remaining)}
        expected |= dict.fromkeys(best, level)
        remaining -= best
        level += 1
    ranks = [expected.get(number, max(level, 1)) for number in range(len(points))]
    assert pareto.ranks(np.array(points), objectives).tolist() == ranks
    assert pareto.front(np.array(points), objectives).tolist() == [rank == 0 for rank in ranks]


def test_ten_thousand_runs_take_little_memory() -> None:
    values = np.random.default_rng(0).random((10_000, 3))
    tracemalloc.start()
    members = pareto.front(values, [UP, FLOPS, FLOPS])
    rank = pareto.ranks(values, [UP, FLOPS, FLOPS])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6  # a table of all pairs has 1e8 cells
    assert members.tolist() == (rank == 0).tolist()
    assert 0 < members.sum() < 1000


@pytest.mark.parametrize(
    ("values", "distances"),
    [
        # ranges 10 and 40; b: (4 - 0)/10 + (40 - 10)/40, c: (10 - 1)/10 + (30 - 0)/40
        ([[0, 40], [1, 30], [4, 10], [10, 0]], [np.inf, 0.4 + 0.75, 0.9 + 0.75, np.inf]),
        ([], []),
        ([[1, 2]], [0]),  # alone: no range
        ([[1, 2], [1, 2]], [0, 0]),
        ([[1, 5], [2, 5], [4, 5]], [np.inf, 1, np.inf]),  # the second column is the same for all
        ([[1], [2], [np.inf]], [np.inf, 0, np.inf]),  # an infinite range measures nothing
    ],
)
def test_crowding_by_hand(values: list[list[float]], distances: list[float]) -> None:
    assert pareto.crowding(np.array(values)).tolist() == pytest.approx(distances)


@given(
    st.integers(2, 20).flatmap(
        lambda rows: st.lists(st.permutations(range(rows)), min_size=1, max_size=3)
    )
)
def test_crowding_agrees_with_optuna(columns: list[list[int]]) -> None:
    # no value twice in a column: which of equal ends is infinite is not defined
    values = np.array(columns, dtype=float).T ** 2
    population = [optuna.trial.create_trial(values=row.tolist()) for row in values]
    for number, trial in enumerate(population):
        trial.number = number
    distances = _calc_crowding_distance(population)
    expected = [distances[number] for number in range(len(values))]
    assert pareto.crowding(values).tolist() == pytest.approx(expected)


# on the grid of tenths below the reference point the dominated cells can be counted
TENTHS = st.integers(1, 3).flatmap(
    lambda columns: st.lists(st.tuples(*[st.integers(0, 13)] * columns), min_size=1, max_size=12)
)


def dominated_share(points: list[tuple[int, ...]]) -> float:
    if not points:
        return 0.0
    columns = len(points[0])
    dominated = sum(
        any(all(p <= c for p, c in zip(point, cell, strict=True)) for point in points)
        for cell in itertools.product(range(11), repeat=columns)
    )
    return dominated / 11**columns


@pytest.mark.parametrize(
    ("losses", "volume", "shares"),
    [
        ([[0, 0]], 1, [1]),
        # 1.1 x 0.1 and 0.1 x 1.1, of which 0.1 x 0.1 is common, of 1.21
        ([[0, 1], [1, 0]], (0.11 + 0.11 - 0.01) / 1.21, [0.1 / 1.21] * 2),
        ([[0.6]], 0.5 / 1.1, [0.5 / 1.1]),
        ([[0.1, 0.6], [0.6, 0.1], [0.6, 0.6], [NAN, 0]], 0.75 / 1.21, [0.25 / 1.21] * 2 + [0, 0]),
        ([[0.1, 0.6], [0.6, 0.1], [0.6, 0.1]], 0.75 / 1.21, [0.25 / 1.21, 0, 0]),
        ([[0.6], [0.7]], 0.5 / 1.1, [0.5 / 1.1, 0]),
        ([[0.6], [0.6]], 0.5 / 1.1, [0, 0]),
        *((rows, 0, [0] * len(rows)) for rows in ([], [[np.nan, 0]], [[1.1, 0]], [[-np.inf, 0]])),
    ],
)
def test_hypervolume_and_contributions_by_hand(
    losses: list[list[float]], volume: float, shares: list[float]
) -> None:
    table = np.array(losses, dtype=float).reshape(len(losses), -1 if losses else 2)
    assert hypervolume(table) == pytest.approx(volume)
    assert pareto.contributions(table).tolist() == pytest.approx(shares)
    assert over_time(table).tolist()[-1:] == pytest.approx([volume][: len(losses)])


@settings(max_examples=40)
@given(TENTHS)
def test_hypervolume_agrees_with_counted_cells(points: list[tuple[int, ...]]) -> None:
    losses = np.array(points) / 10
    assert hypervolume(losses) == pytest.approx(dominated_share(points))
    expected = [dominated_share(points[: number + 1]) for number in range(len(points))]
    assert over_time(losses).tolist() == pytest.approx(expected)


@settings(max_examples=40)
@given(TENTHS)
def test_a_contribution_is_the_loss_of_the_front_without_the_point(
    points: list[tuple[int, ...]],
) -> None:
    def is_dominated(point: tuple[int, ...]) -> bool:
        others = [other for other in points if other != point]
        return any(all(o <= p for o, p in zip(other, point, strict=True)) for other in others)

    members = [point for point in points if not is_dominated(point)]
    expected = [
        dominated_share(members) - dominated_share(members[:at] + members[at + 1 :])
        for at in range(len(members))
    ]
    dominated = [point for point in points if is_dominated(point)]
    shares = pareto.contributions(np.array(members + dominated) / 10).tolist()
    assert shares == pytest.approx(expected + [0] * len(dominated))


@settings(max_examples=60)
@given(st.integers(2, 5), st.integers(1, 25), st.integers(0, 2**32 - 1))
def test_agrees_with_optuna_and_never_falls_over_time(columns: int, rows: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows *= 8 if columns < 4 else 1  # Optuna takes long in four and five objectives
    losses = 1.2 * generator.random((rows, columns)) ** generator.uniform(0.3, 3)
    losses[generator.random(rows) < 0.2] = np.nan
    inside = losses[(losses < REFERENCE).all(axis=1)]
    volume = compute_hypervolume(inside, np.full(columns, REFERENCE)) if len(inside) else 0
    history = over_time(losses)
    assert hypervolume(losses) == pytest.approx(volume / REFERENCE**columns)
    assert history[-1] == pytest.approx(volume / REFERENCE**columns)
    assert (np.diff(history) >= 0).all()
    missing = np.flatnonzero(np.isnan(losses).any(axis=1))
    missing = missing[missing > 0]
    assert history[missing].tolist() == history[missing - 1].tolist()


LEANING = [[0, 1, 1], [0, 0.6, 1.2], [1, 0, 1.2], [1, 1, 0], [0.4, 0.4, 0.4]]
ENDS = np.array(LEANING)[[1, 2, 3, 4]] / [1, 1, 1.2]
NORMAL = np.cross(ENDS[1] - ENDS[0], ENDS[2] - ENDS[0])


@pytest.mark.parametrize(
    ("losses", "row", "texts"),
    [
        # scaled (0, 1), (0.1, 0.3), (0.5, 0.2), (1, 0): below the chord x + y = 1 by 0.6 and 0.3
        (
            [[0, 100], [1, 30], [5, 20], [10, 0]],
            1,
            [f"{0.6 / math.sqrt(2):.2f} of the front's range", "chord between the ends"],
        ),
        # the plane x + y + z = 2 through the first three; the sums of the others are 1.2 and 1.1
        (
            [[0, 1, 1], [1, 0, 1], [1, 1, 0], [0.4, 0.4, 0.4], [0.3, 0.35, 0.45]],
            4,
            [f"{0.9 / math.sqrt(3):.2f} of", "plane through the best point of each objective"],
        ),
        # the first two are equal in the first objective; the rest, scaled by 1 and 1.2, sums to
        # 1.83 and 1.6
        (LEANING, 4, [f"{abs((ENDS[3] - ENDS[0]) @ NORMAL) / math.hypot(*NORMAL):.2f} of"]),
        # the first is best in both costs: three ends are only two points;
        # sqrt(0.34) against 1, sqrt(2) and sqrt(0.62)
        ([[1.0, 0, 0], [0, 1, 1], [0.3, 0.3, 0.4], [0.6, 0.1, 0.5]], 2, ["closest to the ideal"]),
        # the normal of the plane through the first three is below zero in the third
        ([[0, 1, 1], [1, 0, 1], [0.3, 0.3, 0], [0.2, 0.2, 0.9]], 2, ["closest to the ideal"]),
        # an objective in which all are equal does not matter
        ([[0, 7, 1], [0.1, 7, 0.2], [1, 7, 0]], 1, ["chord between the ends"]),
        # the first of equal knees
        ([[0, 1], [0.25, 0.25], [0.125, 0.375], [0.25, 0.25], [1, 0]], 1, ["chord"]),
        ([], None, ["the front has 0"]),
        ([[1, 1]], None, ["the front has 1"]),
        ([[0, 1], [1, 0]], None, ["the front has 2"]),
        ([[0, 1], [1, 0], [1, 0]], None, ["the front has 2"]),  # a repeated point is one point
        ([[0, 1], [0.5, 0.5], [1, 0]], None, ["no point of the front lies nearer"]),  # straight
        ([[0, 1], [0.7, 0.8], [1, 0]], None, ["no point of the front lies nearer"]),  # bulges
    ],
)
def test_knee_by_hand(losses: list[list[float]], row: int | None, texts: list[str]) -> None:
    table = np.array(losses, dtype=float).reshape(-1, len(losses[0]) if losses else 2)
    at, sentence = knee(table)
    assert at == row
    assert sentence.startswith("Knee" if row is not None else "No knee")
    assert all(text in sentence for text in texts)


POINTS = st.tuples(st.integers(0, 1000), st.integers(0, 1000))
FRONTS = st.lists(POINTS, min_size=3, max_size=30, unique_by=(lambda p: p[0], lambda p: p[1])).map(
    lambda points: np.column_stack(
        [sorted(x for x, _ in points), sorted((y for _, y in points), reverse=True)]
    )
)


@given(FRONTS, st.floats(1e-3, 1e9), st.floats(-10, 10), st.randoms())
def test_the_knee_is_farthest_below_the_chord_in_any_unit_and_order(
    losses: np.ndarray, unit: float, start: float, random: Random
) -> None:
    scaled = (losses - losses.min(axis=0)) / np.ptp(losses, axis=0)
    (x1, y1), (x2, y2) = scaled[0], scaled[-1]
    length = math.hypot(x2 - x1, y2 - y1)
    below = [((x2 - x1) * (y1 - y) - (x1 - x) * (y2 - y1)) / length for x, y in scaled]
    at, _ = knee(losses)
    order = random.sample(range(len(losses)), len(losses))
    shuffled, _ = knee(losses[order])
    in_units, _ = knee(losses * [unit, 1] + [start * unit, 0])
    if at is None:
        assert max(below) <= 2e-9
        assert shuffled is None
    else:
        assert below[at] == pytest.approx(max(below))
        assert below[at] > 0
        assert shuffled is not None
        assert in_units is not None
        for other in (order[shuffled], in_units):
            assert scaled[other].sum() == pytest.approx(scaled[at].sum())


@given(st.integers(2, 5), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_a_knee_of_any_number_of_objectives_is_a_row(columns: int, rows: int, seed: int) -> None:
    losses = np.random.default_rng(seed).integers(0, 4, (rows, columns)).astype(float)
    at, sentence = knee(losses)
    assert (at is None) == sentence.startswith("No knee")
    assert at is None or 0 <= at < rows


def test_losses_by_hand() -> None:
    values = np.array([[0.8, 1e6], [0.6, 1e8], [0.7, 1e7]])
    scale = Scale.fit(values, [UP, FLOPS])  # quality is linear
    np.testing.assert_allclose(scale.transform(values).ravel(), [0, 0, 1, 1, 0.5, 0.5], atol=1e-12)
    values = np.array([[0.5, NAN], [0.5, NAN], [NAN, NAN]])
    expected = [[0, NAN], [0, NAN], [NAN, NAN]]  # missing and constant
    np.testing.assert_array_equal(Scale.fit(values, [UP, FLOPS]).transform(values), expected)
    scale = Scale.fit(np.array([[1.0], [3.0], [np.inf]]), [RATIO])
    assert scale.worst == (3.0,)
    assert scale.transform(np.array([[2], [5], [np.inf]])).ravel().tolist() == [0.5, 2, np.inf]
    assert Scale.fit(np.empty((0, 2)), [UP, FLOPS]).transform(np.empty((0, 2))).shape == (0, 2)


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
        (UP, [0.6, 0.8], False),
        (FLOPS, [1e6, 1e8], True),
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


COSTS = st.lists(st.tuples(st.floats(0, 1), st.floats(1, 1e9)), min_size=1, max_size=40)


@given(COSTS)
def test_losses_lie_in_0_to_1_and_keep_the_order(rows: list[tuple[float, float]]) -> None:
    values = np.array(rows)
    losses = Scale.fit(values, [UP, FLOPS]).transform(values)
    assert (losses >= 0).all()
    assert (losses <= 1).all()
    for column, sign in ((0, -1), (1, 1)):
        order = np.argsort(sign * values[:, column])
        assert (np.diff(losses[order, column]) >= 0).all()
        assert losses[order[0], column] == 0
        spread = values[:, column].max() > values[:, column].min()
        assert math.isclose(losses[order[-1], column], float(spread), abs_tol=1e-12)
