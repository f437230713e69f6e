"""One query after the other, the models in turns: MLPerf's single stream for several models side by side.

A machine that has other things to do is slower in one minute than in the next, so models that are measured one after
the other cannot be compared. Here they take turns of some 20 ms all the way through, and each meets the same
disturbance. Within a turn queries follow each other as in MLPerf's single stream (Reddi et al., MLPerf Inference
Benchmark, ISCA 2020, section III.B): the next one starts when the last one is answered. How many queries make a turn
is fixed by the warm-up, not by the clock: a turn that ended after so much time would hold fewer of the slow queries.
Some of each turn are left untimed before the timed ones, until the caches hold the model again. (The ratio
`efficiency/latency_ratio` alternates call by call and finds cold caches: another question, another figure.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from src.benchmarking.times import Times

UNTIMED = 8  # one query of so many of a turn, and one more, brings the caches back


class Dropped(Exception):  # noqa: N818  it is no error of ours
    """A model that cannot be measured further; the others go on. The message is the reason, in one line."""


@dataclass(frozen=True)
class Turn:
    """What one turn took.

    Attributes:
        times: Of its timed queries, ms, in order.
        cpu_ms: CPU time of the model's process, all threads, over the timed queries.
    """

    times: Times
    cpu_ms: float


class Contender(Protocol):
    """A model that answers queries."""

    def warm_up(self, seconds: float) -> Times:
        """Query for so long, at least once: times in ms."""
        ...

    def turn(self, untimed: int, timed: int) -> Turn:
        """Query so often.

        Raises:
            Dropped: It cannot go on.
        """
        ...


@dataclass
class Stream:
    """What was measured of one model.

    Attributes:
        turns: In order.
        joules: Counted while it had its turns; None where nothing is counted.
        calls: Queries of its turns, untimed ones too: those that the joules are of.
        dropped: Why it did not come to an end; empty: it did.
    """

    turns: list[Times] = field(default_factory=list)
    cpu_ms: float = 0.0
    joules: float | None = None
    calls: int = 0
    dropped: str = ""

    @property
    def queries(self) -> int:
        """Timed ones."""
        return sum(len(turn) for turn in self.turns)

    @property
    def seconds(self) -> float:
        """Time of the timed queries together."""
        return float(sum(turn.sum() for turn in self.turns)) / 1e3


def single_stream(
    contenders: Sequence[Contender],
    queries: int,
    seconds: float,
    warm_up_s: float,
    turn_ms: float,
    joules: Callable[[], float] | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Stream]:
    """Measure models in turns until each has had its queries and its time.

    Args:
        contenders: One a model.
        queries: Timed queries of each model at the least.
        seconds: Timed time of each model at the least.
        warm_up_s: Of each model, before the first turn of any.
        turn_ms: About how long a turn's timed queries take.
        joules: A counter of energy, read before and after each turn.
        progress: Is told what share of the work is done, in [0, 1].

    Returns:
        One a contender; one that was dropped has its reason. All others have equally many turns.
    """
    found = [Stream(joules=0.0 if joules else None) for _ in contenders]
    sizes = [_size(each, stream, warm_up_s, turn_ms) for each, stream in zip(contenders, found, strict=True)]
    while going := [place for place, each in enumerate(found) if not each.dropped]:
        done = min(_share(found[place], queries, seconds) for place in going)
        progress(done)
        if done >= 1:
            break
        for place in going:
            _take(contenders[place], found[place], sizes[place], joules)
    return found


def _size(contender: Contender, stream: Stream, warm_up_s: float, turn_ms: float) -> int:
    """Timed queries of a turn, by the later half of the warm-up: the first ones load and choose kernels."""
    try:
        times = contender.warm_up(warm_up_s)
    except Dropped as reason:
        stream.dropped = str(reason)
        return 0
    return max(1, round(turn_ms / float(np.median(times[len(times) // 2 :]))))


def _share(stream: Stream, queries: int, seconds: float) -> float:
    return min(1.0, stream.queries / queries, stream.seconds / seconds if seconds else 1.0)


def _take(contender: Contender, stream: Stream, size: int, joules: Callable[[], float] | None) -> None:
    untimed = 1 + size // UNTIMED
    before = joules() if joules else 0.0
    try:
        turn = contender.turn(untimed, size)
    except Dropped as reason:
        stream.dropped = str(reason)
        return
    if joules:
        stream.joules = (stream.joules or 0.0) + joules() - before
    stream.turns.append(turn.times)
    stream.cpu_ms += turn.cpu_ms
    stream.calls += untimed + size
