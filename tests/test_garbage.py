import gc
import weakref
from collections.abc import Iterator

import pytest

from src.core.environment import COLLECTOR_THRESHOLD, collect_less_often


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)


def test_every_process_of_ours_collects_seldom() -> None:
    assert gc.get_threshold()[0] >= COLLECTOR_THRESHOLD  # importing src has set it


@pytest.mark.parametrize(
    ("young", "left"),
    [(700, COLLECTOR_THRESHOLD), (0, 0), (COLLECTOR_THRESHOLD + 1, COLLECTOR_THRESHOLD + 1)],
    ids=["default", "off", "more"],
)
def test_what_somebody_chose_is_left_alone(
    young: int, left: int, thresholds: tuple[int, int, int]
) -> None:
    gc.set_threshold(young, 11, 13)
    collect_less_often()
    assert gc.get_threshold()[:2] == (left, 11)


def test_cycles_are_still_collected() -> None:
    class Node:
        itself: "Node"

    def cycle() -> Node:
        node = Node()
        node.itself = node
        return node

    gc.collect()  # so that the collector does not look just while the cycle is made
    first = weakref.ref(cycle())
    kept = [
        [each] for each in range(2 * COLLECTOR_THRESHOLD)
    ]  # new objects, which make the collector look
    assert first() is None
    del kept
