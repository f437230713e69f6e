import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.metrics.pareto import Scale
from src.metrics.registry import Objective

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
        "balanced accuracy (validation), more is better: 0 is 0.612, the best seen, 1 is 0.402, the worst; "
        "between them by the value itself."
    )
    assert cost == (
        "FLOPs (multiply-adds), less is better: 0 is 30M multiply-adds, the best seen, 1 is 4.1G multiply-adds, "
        "the worst; between them by log10."
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
