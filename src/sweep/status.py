"""How a study stands: what is done, what runs, who leads. The owner keeps it, a view shows it."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from src.metrics.pareto import as_losses
from src.metrics.registry import Limit, Objective, recorded_name
from src.sweep.records import RunningTrial, State, TrialOutcome


@dataclass(frozen=True)
class Event:
    """A trial has ended.

    Attributes:
        number: The trial's.
        cell: Its overrides.
        outcome: What came of it.
        values: The objectives' values, if it is complete.
        seconds: From its start to its end; None if this sitting did not start it.
        tail: Last lines of its log.
        again: Whether it is tried again as another trial.
    """

    number: int
    cell: list[str]
    outcome: TrialOutcome
    values: list[float]
    seconds: float | None
    tail: str
    again: bool


class StudyStatus:
    """Counts, front and events of a study, kept up to date trial by trial.

    Args:
        objectives: Of the study.
        limits: Of the study; a trial that breaks one is not on the front.
        total: Trials that the study shall reach.
        slots: How many run at once.

    Attributes:
        counted: Trials that count towards the total.
        counts: Trials by how they ended, but for `put_back`.
        put_back: Trials that were stopped, or failed and are tried again: another one takes their
            place.
        front: The members' numbers and values.
        running: What is under way.
        events: Ends since they were last taken with `take_events`.
        durations: Seconds of the trials that this sitting ran and that did not fail.
        n_seen: Trials that ended by themselves in this sitting.
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
        self.front: list[tuple[int, list[float]]] = []
        self.cells: dict[int, list[str]] = {}  # of the front's members
        self.running: list[RunningTrial] = []
        self.events: list[Event] = []
        self.durations: list[float] = []
        self.n_seen = 0
        self.put_back = 0
        self._reasons: set[str] = set()

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
            trial: As Optuna has it.
            outcome: What came of it, if this sitting saw it end; else it is read from the trial.
            seconds: How long it took, if this sitting ran it.
            tail: Last lines of its log.
            again: Whether it is tried again.
        """
        seen = outcome is not None
        if outcome is None:
            stored = trial.user_attrs.get("outcome")
            outcome = (
                TrialOutcome(**stored)
                if stored
                else TrialOutcome("fail", "killed", "left without an outcome")
            )
        if "same_as" in trial.user_attrs:
            return
        if outcome.state == "fail" and (again or outcome.kind == "stopped"):
            self.put_back += 1
        else:
            self.counts[outcome.state] += 1
        cell = list(trial.user_attrs.get("cell", []))
        values = self._values(outcome)
        if values and self._keeps_limits(outcome):
            self._challenge(trial.number, values, cell)
        if not seen:
            if outcome.state != "fail":
                self._reasons.add("")
            return
        if outcome.kind != "stopped" and not again:  # which says nothing yet about the trial
            self.n_seen += 1
            self._reasons.add(_signature(outcome) if outcome.state == "fail" else "")
        if seconds is not None and outcome.state != "fail":
            self.durations.append(seconds)
        self.events.append(Event(trial.number, cell, outcome, values, seconds, tail, again))

    def take_events(self) -> list[Event]:
        """What ended since the last call."""
        taken, self.events = self.events, []
        return taken

    @property
    def best(self) -> tuple[int, list[float]] | None:
        """The front's member that is best by the first objective."""
        if not self.front:
            return None
        sign = -1 if self.objectives[0].direction == "maximize" else 1
        return min(self.front, key=lambda member: sign * member[1][0])

    def all_failed_alike(self) -> str:
        """The reason, if every trial so far failed for the same one; empty otherwise."""
        return next(iter(self._reasons)) if len(self._reasons) == 1 else ""

    def _values(self, outcome: TrialOutcome) -> list[float]:
        names = [recorded_name(objective.metric) for objective in self.objectives]
        if outcome.state != "complete" or any(name not in outcome.metrics for name in names):
            return []
        return [outcome.metrics[name] for name in names]

    def _keeps_limits(self, outcome: TrialOutcome) -> bool:
        metrics: dict[str, Any] = outcome.metrics
        return all(
            limit.holds(metrics.get(recorded_name(limit.metric), float("nan")))
            for limit in self.limits
        )

    def _challenge(self, number: int, values: list[float], cell: list[str]) -> None:
        """A newcomer to the front; whom it beats has to leave."""
        losses = as_losses(np.array([*(held for _, held in self.front), values]), self.objectives)
        rivals, own = losses[:-1], losses[-1]
        if ((rivals <= own).all(axis=1) & (rivals < own).any(axis=1)).any():
            return
        beaten = (own <= rivals).all(axis=1) & (own < rivals).any(axis=1)
        self.front = [member for member, out in zip(self.front, beaten, strict=True) if not out] + [
            (number, values)
        ]
        self.cells[number] = cell
        self.cells = {member: self.cells[member] for member, _ in self.front}


def _signature(outcome: TrialOutcome) -> str:
    """A failure's reason without the numbers that differ from trial to trial."""
    return f"{outcome.kind}: {re.sub(r'0x[0-9a-f]+|[0-9]+', '#', outcome.reason)}"
