import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.metrics.registry import Limit, Objective
from src.sweep.pruners import BestSoFar

ACCURACY = Objective("val/accuracy", "maximize")
LOSS = Objective("val/loss", "minimize")
FLOPS = Objective("efficiency/flops", "minimize")
RECALL = Limit("val/recall/mel", ">=", 0.8)


def test_best_values_by_hand() -> None:
    reached = BestSoFar([ACCURACY, LOSS, FLOPS], [])
    reached.add(1, {"val/accuracy": math.nan, "val/loss": 2.0})
    reached.add(2, {"val/accuracy": 0.5, "val/loss": 1.0, "val/f1/mel": 0.3})
    reached.add(3, {"val/accuracy": 0.4, "val/loss": math.nan})
    reached.add(4, {"val/loss": 1.5})
    assert reached.epoch == 4
    assert reached.best == {"val/accuracy": 0.5, "val/loss": 1.0}  # FLOPs are not of an epoch
    assert reached.limited == {}


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        ([ACCURACY], 0.2),
        ([FLOPS, ACCURACY, LOSS], 0.2),  # the first that is measured every epoch
        ([LOSS, ACCURACY], 0.3),
        ([FLOPS], 0.4),  # none: the last epoch
    ],
)
def test_a_limit_is_held_against_the_epoch_that_is_best_so_far(
    objectives: list[Objective], expected: float
) -> None:
    reached = BestSoFar(objectives, [RECALL, Limit("efficiency/params", "<=", 5)])
    rows = [(0.5, 1.0, 0.9), (0.7, 0.9, 0.2), (0.6, 0.8, 0.3), (0.7, 0.9, 0.4)]
    for epoch, (accuracy, loss, recall) in enumerate(rows, 1):
        reached.add(epoch, {"val/accuracy": accuracy, "val/loss": loss, "val/recall/mel": recall})
    assert reached.limited == {"best/val/recall/mel": expected}


def test_a_limit_that_is_undefined_at_the_best_epoch_is_not_known() -> None:
    reached = BestSoFar([ACCURACY], [RECALL])
    reached.add(1, {"val/accuracy": 0.5, "val/recall/mel": 0.9})
    reached.add(2, {"val/accuracy": 0.6})
    assert reached.limited == {}


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_the_best_epoch_is_the_first_of_the_highest(rows: list[tuple[float, float]]) -> None:
    reached = BestSoFar([ACCURACY], [RECALL])
    for epoch, (accuracy, recall) in enumerate(rows, 1):
        reached.add(epoch, {"val/accuracy": accuracy, "val/recall/mel": recall})
    values = [accuracy for accuracy, _ in rows]
    assert reached.best == {"val/accuracy": max(values)}
    assert reached.limited == {"best/val/recall/mel": rows[values.index(max(values))][1]}
