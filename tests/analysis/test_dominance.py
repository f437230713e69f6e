import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.analysis.dominance import front
from src.objectives import Objective

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


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=25))
def test_front_is_exactly_what_nobody_dominates(points: list[tuple[int, int, int]]) -> None:
    objectives = [UP, DOWN, DOWN]
    members = front(np.array(points, dtype=float), objectives)

    def dominates(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
        return a != b and a[0] >= b[0] and a[1] <= b[1] and a[2] <= b[2]

    assert members.tolist() == [not any(dominates(other, point) for other in points) for point in points]
