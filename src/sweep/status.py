"""Status of a running study: counts, front, running trials, events, remaining time."""

import re
import time
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial

from src.metrics import pareto
from src.metrics.registry import Limit, Objective, recorded_name
from src.sweep.records import RunningTrial, State, TrialOutcome

RECENT = 20  # finished trials from which the remaining time is estimated


@dataclass(frozen=True)
class Event:
    """The end of a trial.

    Attributes:
        number: The trial's.
        cell: Its overrides.
        outcome: Its outcome.
        values: The objectives' values if it is complete.
        seconds: From start to end; None if it was started in an earlier session.
        tail: Last lines of its log.
        again: Whether it is retried as another trial.
    """

    number: int
    cell: list[str]
    outcome: TrialOutcome
    values: list[float]
    seconds: float | None
    tail: str
    again: bool


class StudyStatus:
    """Counts, front and events of a study; the scheduler updates it, a view shows it.

    Args:
        objectives: Of the study.
        limits: Of the study; a trial that breaks one is not on the front.
        total: Trials that the study shall reach.
        slots: How many run at once.

    Attributes:
        counted: Trials that count towards the total.
        counts: Trials by final state, without `put_back`.
        put_back: Trials that were stopped, or failed and are retried: another trial replaces them.
        front: Numbers and values of the trials on the front.
        cells: Overrides of the trials on the front, by number.
        running: Running trials.
        events: Ends since the last `take_events`.
        durations: Seconds of the trials of this session that did not fail.
        n_seen: Trials that ended by themselves in this session.
    """

    def __init__(
        self, objectives: list[Objective], limits: list[Limit], total: int, slots: int
    ) -> None:
        self.objectives = objectives
        self.limits = limits
        self.total = total
        self.slots = slots
        self.counted = 0
        self.counts: dict[State, int] = {"complete": 0, "pruned": 0, "over_limit": 0, "fail": 0}
        self.put_back = 0
        self.front: list[tuple[int, list[float]]] = []
        self.cells: dict[int, list[str]] = {}
        self.running: list[RunningTrial] = []
        self.events: list[Event] = []
        self.durations: list[float] = []
        self.n_seen = 0
        self._reasons: set[str] = set()  # of failures; "" for a trial that did not fail

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
        if outcome is None:
            stored = trial.user_attrs.get("outcome")
            missing = TrialOutcome("fail", "killed", "left without an outcome")
            outcome = TrialOutcome(**stored) if stored else missing
        if "same_as" in trial.user_attrs:
            return
        failed, stopped = outcome.state == "fail", outcome.kind == "stopped"
        if failed and (again or stopped):
            self.put_back += 1
        else:
            self.counts[outcome.state] += 1
        cell = list(trial.user_attrs.get("cell", []))
        names = [recorded_name(objective.metric) for objective in self.objectives]
        is_complete = outcome.state == "complete" and outcome.metrics.keys() >= set(names)
        values = [outcome.metrics[name] for name in names] if is_complete else []
        if values and self._is_feasible(outcome):
            members = [*self.front, (trial.number, values)]
            on_front = pareto.front(np.array([v for _, v in members]), self.objectives)
            self.front = [m for m, stays in zip(members, on_front, strict=True) if stays]
            cells = {**self.cells, trial.number: cell}
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
        self.events.append(Event(trial.number, cell, outcome, values, seconds, tail, again))

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

    def _is_feasible(self, outcome: TrialOutcome) -> bool:
        metrics = outcome.metrics
        return all(
            limit.holds(metrics.get(recorded_name(limit.metric), float("nan")))
            for limit in self.limits
        )
