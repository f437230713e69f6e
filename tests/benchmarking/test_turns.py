"""Who is queried when, and for how long: on a clock that stands still between queries."""

from collections.abc import Iterator

import numpy as np
import pytest

from src.deployment.benchmark.measure import Times, Turn, WorkerFailed, single_stream


class Fake:
    """Answers each query in `ms`, and writes down what it was asked."""

    def __init__(
        self, name: str, ms: float, log: list[tuple[str, int, int]], fails_at: int = 10**9
    ) -> None:
        self.name, self.ms, self.log, self.left = name, ms, log, fails_at

    def warm_up(self, seconds: float) -> Times:
        self.log.append((f"{self.name} warms up", 0, 0))
        return np.array([50 * self.ms, self.ms, self.ms, self.ms])  # the first one loads

    def turn(self, untimed: int, timed: int) -> Turn:
        if self.left == 0:
            raise WorkerFailed("its process died")
        self.left -= 1
        self.log.append((self.name, untimed, timed))
        return Turn(np.full(timed, self.ms), 0.5 * timed * self.ms)


def test_models_take_turns_of_equal_time_after_all_are_warm() -> None:
    log: list[tuple[str, int, int]] = []
    found = single_stream([Fake("fast", 1.0, log), Fake("slow", 10.0, log)], 4, 0.0, 1.0, 20.0)
    round_one = [("fast", 1 + 20 // 8, 20), ("slow", 1, 2)]
    assert log == [("fast warms up", 0, 0), ("slow warms up", 0, 0), *round_one, *round_one]
    assert [stream.queries for stream in found] == [40, 4]
    assert [stream.seconds for stream in found] == pytest.approx([0.04, 0.04])
    assert [stream.cpu_ms for stream in found] == pytest.approx([20.0, 20.0])


@pytest.mark.parametrize(
    ("queries", "seconds", "expected"),
    [
        (100, 0.0, 100),  # queries decide
        (1, 0.5, 500),  # seconds decide
        (1024, 0.5, 1030),  # in whole turns of 10
        (1, 0.0, 10),
    ],
)
def test_both_minima_are_kept(queries: int, seconds: float, expected: int) -> None:
    [found] = single_stream([Fake("one", 1.0, [])], queries, seconds, 0.0, 10.0)
    assert found.queries == expected
    assert found.queries >= queries
    assert found.seconds >= seconds - 1e-9


def test_a_turn_has_a_query_at_least() -> None:
    [found] = single_stream([Fake("slow", 500.0, [])], 3, 0.0, 0.0, 20.0)
    assert [len(turn) for turn in found.turns] == [1, 1, 1]


def test_the_fast_one_goes_on_until_the_slow_one_is_done() -> None:
    fast, slow = single_stream([Fake("fast", 1.0, []), Fake("slow", 40.0, [])], 50, 0.1, 0.0, 20.0)
    assert len(fast.turns) == len(slow.turns) == 50
    assert fast.queries == 50 * 20


def test_one_that_dies_is_dropped_and_the_others_go_on() -> None:
    log: list[tuple[str, int, int]] = []
    dead, alive = single_stream(
        [Fake("dead", 1.0, log, fails_at=2), Fake("alive", 1.0, log)], 100, 0.0, 0.0, 10.0
    )
    assert dead.dropped == "its process died"
    assert alive.dropped == ""
    assert alive.queries == 100


def test_nothing_is_measured_where_all_are_dropped() -> None:
    [found] = single_stream([Fake("dead", 1.0, [], fails_at=0)], 100, 0.0, 0.0, 10.0)
    assert found.dropped
    assert found.turns == []


def test_energy_is_counted_over_own_turns_alone() -> None:
    counter: Iterator[float] = iter(range(1000))  # a joule between any two looks
    fast, slow = single_stream(
        [Fake("a", 1.0, []), Fake("b", 1.0, [])],
        30,
        0.0,
        0.0,
        10.0,
        joules=lambda: float(next(counter)),
    )
    assert fast.joules == slow.joules == 3.0  # three turns
    assert fast.calls == 3 * (1 + 10 // 8 + 10)  # untimed ones use energy too


def test_progress_goes_from_nothing_to_all() -> None:
    shares: list[float] = []
    single_stream([Fake("one", 1.0, [])], 20, 0.0, 0.0, 10.0, progress=shares.append)
    assert shares == [0.0, 0.5, 1.0]
