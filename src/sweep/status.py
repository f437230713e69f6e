"""Status of a running study: counts, front, running trials, events, remaining time."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from optuna.trial import FrozenTrial

from src.metrics import pareto
from src.metrics.registry import Limit, Objective
from src.sweep.records import CELL, RunningTrial, State, TrialOutcome, outcome_of

RECENT = 20  # finished trials from which the remaining time is estimated


@dataclass(frozen=True)
class Event:
    """The end of a trial."""

    number: int
    outcome: TrialOutcome
    values: list[float]  # of the objectives, if it is complete
    seconds: float | None  # from start to end; None if it was started in an earlier session
    tail: str  # last lines of its log
    again: bool  # retried as another trial


@dataclass
class StudyStatus:
    """Counts, front and events of a study; the scheduler updates it, a view shows it."""

    objectives: Sequence[Objective]
    limits: Sequence[Limit]  # a trial that breaks one is not on the front
    total: int  # trials that the study shall reach
    slots: int  # how many run at once
    counted: int = 0  # trials that count towards the total
    counts: dict[State, int] = field(  # by final state, without `put_back`
        default_factory=lambda: {"complete": 0, "pruned": 0, "over_limit": 0, "fail": 0}
    )
    put_back: int = 0  # trials that were stopped, or failed and are retried as another trial
    front: list[tuple[int, list[float]]] = field(default_factory=list)  # numbers and values
    cells: dict[int, list[str]] = field(default_factory=dict)  # overrides of those, by number
    running: list[RunningTrial] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)  # since the last `take_events`
    durations: list[float] = field(default_factory=list)  # s, of what did not fail in this session
    n_seen: int = 0  # trials that ended by themselves in this session
    _reasons: set[str] = field(default_factory=set)  # of failures; "" for another end

    def add(
        self,
        trial: FrozenTrial,
        outcome: TrialOutcome | None = None,
        seconds: float | None = None,
        tail: str = "",
        again: bool = False,
    ) -> None:
        """Count a trial that has ended.

        Args:
            trial: As stored in the study.
            outcome: If it ended in this session; None: the stored outcome.
            seconds: Its duration if this session ran it.
            tail: Last lines of its log.
            again: Whether it is retried.
        """
        in_session = outcome is not None
        missing = TrialOutcome("fail", "killed", "left without an outcome")
        outcome = outcome or outcome_of(trial) or missing
        if "same_as" in trial.user_attrs:
            return
        failed, stopped = outcome.state == "fail", outcome.kind == "stopped"
        if failed and (again or stopped):
            self.put_back += 1
        else:
            self.counts[outcome.state] += 1
        names = [objective.metric for objective in self.objectives]
        is_complete = outcome.state == "complete" and outcome.metrics.keys() >= set(names)
        values = [outcome.metrics[name] for name in names] if is_complete else []
        measured = {item: outcome.metrics.get(item.metric, np.nan) for item in self.limits}
        if values and all(item.holds(value) for item, value in measured.items()):
            members = [*self.front, (trial.number, values)]
            on_front = pareto.front(np.array([v for _, v in members]), self.objectives)
            self.front = [m for m, stays in zip(members, on_front, strict=True) if stays]
            cells = {**self.cells, trial.number: list(trial.system_attrs.get(CELL, []))}
            self.cells = {number: cells[number] for number, _ in self.front}
        if not in_session:
            self._reasons |= set() if failed else {""}
            return
        if not stopped and not again:  # a trial that runs again says nothing about the study yet
            self.n_seen += 1
            # Without the numbers that differ from trial to trial.
            reason = re.sub(r"0x[0-9a-f]+|[0-9]+", "#", outcome.reason)
            self._reasons.add(f"{outcome.kind}: {reason}" if failed else "")
        if seconds is not None and not failed:
            self.durations.append(seconds)
        self.events.append(Event(trial.number, outcome, values, seconds, tail, again))

    def take_events(self) -> list[Event]:
        """The ends since the last call."""
        events, self.events = self.events, []
        return events

    @property
    def best(self) -> tuple[int, list[float]] | None:
        """Number and values of the trial that is best by the first objective."""
        sign = -1 if self.objectives[0].direction == "maximize" else 1
        return min(self.front, key=lambda member: sign * member[1][0], default=None)

    @property
    def time_left(self) -> float | None:
        """Estimated seconds until the study ends, from the mean of recent trials.

        None before the first has ended, and if one of the last trials runs longer than the mean.
        """
        recent = self.durations[-RECENT:]
        if not recent:
            return None
        mean, now = sum(recent) / len(recent), time.monotonic()
        waiting = max(0, self.total - self.counted - len(self.running))
        elapsed = [now - running.began for running in self.running]
        if not waiting and any(seconds >= mean for seconds in elapsed):
            return None
        work = waiting * mean + sum(max(0.0, mean - seconds) for seconds in elapsed)
        return work / (len(elapsed) or self.slots)

    def all_failed_alike(self) -> str:
        """The reason if every trial so far failed for the same one; empty otherwise."""
        return next(iter(self._reasons)) if len(self._reasons) == 1 else ""
