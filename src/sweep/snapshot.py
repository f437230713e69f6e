"""A study at one moment, in plain values: what `src.sweep.table` draws."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from src.sweep.running import Running
    from src.sweep.standing import Standing

RECENT = 20  # finished trials by which the time that is left is estimated


@dataclass(frozen=True)
class RunningRow:
    """A trial under way.

    Attributes:
        number: Of the trial within its study.
        cell: What it was given, such as "model=custom optimizer.lr=0.001".
        epoch: Epochs that are done; 0 before the first has ended.
        epochs: How many it may come to.
        metric: Name of the metric that is shown, from the run record.
        value: Its newest value; None before there is one.
        seconds: Since it was started.
    """

    number: int
    cell: str
    epoch: int
    epochs: int
    metric: str
    value: float | None
    seconds: float


@dataclass(frozen=True)
class Best:
    """The trial that is best by the first objective."""

    number: int
    cell: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment.

    Attributes:
        study: Its name.
        n_jobs: Trials that may run at once.
        done: Trials trained to their end.
        pruned: Trials stopped early, as they were behind.
        over_limit: Trials not trained, as their cost is over a limit.
        failed: Trials that failed for good, in this sitting or an earlier one.
        put_back: Trials in whose place another one is made: they were stopped, or failed and are tried again.
        counted: Trials that count towards the total; None: all that are over.
        total: Trials that the study shall come to; None if nobody knows.
        running: Trials under way.
        front: Size of the front; None for a single objective.
        best: The best trial; None before there is one.
        events: What happened, newest last; one line each.
        finished_seconds: How long finished trials took, newest last.
        elapsed: Seconds since the owner was started.
    """

    study: str
    n_jobs: int
    done: int = 0
    pruned: int = 0
    over_limit: int = 0
    failed: int = 0
    put_back: int = 0
    counted: int | None = None
    total: int | None = None
    running: Sequence[RunningRow] = ()
    front: int | None = None
    best: Best | None = None
    events: Sequence[str] = ()
    finished_seconds: Sequence[float] = field(default_factory=tuple)
    elapsed: float = 0.0

    @property
    def finished(self) -> int:
        """Trials that are over and count towards the total."""
        return self.done + self.pruned + self.over_limit + self.failed if self.counted is None else self.counted

    @property
    def time_left(self) -> float | None:
        """Seconds until the study is over, as far as recent trials tell.

        None before the first has ended, and where one of the last that run is longer at it than they were: nobody
        knows then.
        """
        recent = self.finished_seconds[-RECENT:]
        if self.total is None or not recent:
            return None
        mean = sum(recent) / len(recent)
        waiting = max(0, self.total - self.finished - len(self.running))
        if not waiting and any(row.seconds >= mean for row in self.running):
            return None
        work = waiting * mean + sum(max(0.0, mean - row.seconds) for row in self.running)
        return work / (len(self.running) or self.n_jobs)


def snapshot(study: str, standing: "Standing", events: Sequence[str], elapsed: float) -> Snapshot:
    """What is to be seen of a standing.

    Args:
        study: The study's name.
        standing: As the owner keeps it.
        events: Lines, newest last.
        elapsed: Seconds since the owner was started.
    """
    names = [objective.metric for objective in standing.objectives]
    best = standing.best
    return Snapshot(
        study,
        standing.slots,
        done=standing.counts["complete"],
        pruned=standing.counts["pruned"],
        over_limit=standing.counts["over_limit"],
        failed=standing.counts["fail"],
        put_back=standing.put_back,
        counted=standing.counted,
        total=standing.total,
        running=[_row(running, names[0]) for running in standing.running],
        front=len(standing.front) if len(names) > 1 else None,
        best=Best(best[0], " ".join(standing.cells[best[0]]), dict(zip(names, best[1], strict=True))) if best else None,
        events=events,
        finished_seconds=standing.durations[-RECENT:],
        elapsed=elapsed,
    )


def _row(running: "Running", wanted: str) -> RunningRow:
    """A running trial with the first objective's metric, if it is reported while training, else the first that is."""
    metrics: Mapping[str, float] = running.progress.get("metrics", {})
    metric = wanted if wanted in metrics or not metrics else next(iter(metrics))
    return RunningRow(
        running.task.number,
        " ".join(running.cell.overrides),
        int(running.progress.get("epoch", 0)),
        int(running.progress.get("epochs", 0)),
        metric,
        metrics.get(metric),
        time.monotonic() - running.began,
    )
