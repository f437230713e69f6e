"""Plain values of a study: slots, tasks, outcomes, failures, violations, retries; its status."""

import math
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from optuna.trial import FrozenTrial

from src.core.errors import DivergedError, UserError, full_disk, masked, out_of_memory
from src.core.files import atomic_file
from src.metrics import pareto
from src.metrics.registry import Limit, Objective
from src.sweep.space import Cell
from src.tracking.store import TrackingError

State = Literal["complete", "pruned", "over_limit", "fail"]
# Failures of a trial that others or a full disk ended: its training state is kept for another try.
ExternalKind = Literal["killed", "time_limit", "stopped", "full_disk"]
Kind = Literal["", "error", "diverged", "out_of_memory", "wrong_return", "bad_config", ExternalKind]
EXTERNAL_KINDS: tuple[Kind, ...] = get_args(ExternalKind)
STATE = "checkpoint/last.ckpt"  # training state of a run, in its folder
# The scheduler's bookkeeping: system attributes of a trial. User attributes are flat, for people.
OUTCOME, CELL, CONTINUES = "paretoderm:outcome", "paretoderm:cell", "paretoderm:continues"
PROGRESS, BEGUN, JOB = "paretoderm:progress", "paretoderm:begun", "paretoderm:job"
REPEAT, RUNG = "paretoderm:repeat:", "paretoderm:rung:"  # followed by a seed, and by an epoch


@dataclass(frozen=True)
class Slot:
    """A device and threads for one trial at a time."""

    number: int  # from 0
    device: str | None = None  # GPU id such as "0"; "": no GPU; None: the executor's choice
    threads: int | None = None  # CPU threads of torch; None: torch's default


@dataclass(frozen=True)
class Task:
    """One trial to run in its own process."""

    storage: str  # URL of the study's Optuna storage
    study: str
    trial_id: int  # Optuna's id, by which the process attaches to the trial
    number: int  # of the trial in the study
    folder: str  # absolute path; the trial's log is `trial.log` there
    body: str  # "package.module:function", called with a `src.sweep.trial.TrialContext`
    payload: dict[str, Any]  # what else the body needs; JSON values
    slot: Slot = Slot(0)
    entry: str = "src.sweep.trial:main"  # runs the task in its process, "package.module:function"


@dataclass(frozen=True)
class EndedTask:
    """A task whose process has ended."""

    task: Task
    exitcode: int | None  # negative: minus the signal's number; None: not known
    note: str = ""  # a readable reason, such as "killed by signal 9 (SIGKILL)"


@dataclass(frozen=True)
class TrialOutcome:
    """The result of a trial, stored as its system attribute `OUTCOME` before its process ends.

    This is the commit point: a trial with an outcome is finished, whatever happens to its process
    or to the scheduler.

    Attributes:
        state: complete; pruned (stopped early); over_limit (not trained, too expensive); fail.
        kind: Kind of failure; "" otherwise.
        reason: One line; "" when complete.
        metrics: By their names in the run record; of an untrained trial only its cost.
        run_id: The trial's MLflow run; None if there is none.
        epoch: The last epoch that was trained and validated, from 1; 0 if none.
    """

    state: State
    kind: Kind = ""
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    run_id: str | None = None
    epoch: int = 0


def outcome_of(trial: FrozenTrial) -> TrialOutcome | None:
    """The outcome that a trial has committed; None before."""
    stored = trial.system_attrs.get(OUTCOME)
    return TrialOutcome(**stored) if stored else None


@dataclass
class RunningTrial:
    """A trial that was submitted to the executor and whose end was not reported yet."""

    task: Task  # as the executor returned it
    cell: Cell
    began: float  # `time.monotonic` when it was submitted or, if it had to wait, when it began
    stopped: tuple[Kind, str] | None = None  # kind and reason if the scheduler ended it
    waits: bool = False  # it may still wait in the engine's queue
    progress: dict[str, Any] = field(default_factory=dict)  # what it last reported


class EndedEarly(Exception):  # noqa: N818  a decision, not an error
    """A trial that is stopped by decision, not by failure."""

    state: State = "pruned"


class Pruned(EndedEarly):
    """The trial was stopped during training because it was behind others."""


class OverLimit(EndedEarly):
    """The trial was not trained because its cost, known before training, exceeds a limit."""

    state: State = "over_limit"


class WrongReturnError(Exception):
    """The body returned something that cannot be told to the study."""


class AllFailAlikeError(UserError):
    """The first trials of a study all failed in the same way."""


def classify(error: BaseException) -> tuple[Kind, str]:
    """Kind of failure of an exception, and its reason in one line."""
    text, name = " ".join(masked(str(error)).split())[:500], type(error).__name__
    if problem := full_disk(error):
        return "full_disk", problem
    if isinstance(error, UserError) and not isinstance(error, TrackingError):
        return ("diverged" if isinstance(error, DivergedError) else "bad_config"), text
    if isinstance(error, WrongReturnError):
        return "wrong_return", text
    kind: Kind = "out_of_memory" if out_of_memory(error) else "error"
    return kind, f"{name}: {text}" if text else name


def needed(objectives: Iterable[Objective], limits: Iterable[Limit]) -> list[str]:
    """The metrics, by recorded names, without which a trial is not complete."""
    return list(dict.fromkeys(item.metric for item in (*objectives, *limits)))


def check_complete(metrics: Mapping[str, float], required: Sequence[str]) -> None:
    """Check that a trial has all `needed` metrics.

    Raises:
        WrongReturnError: One is missing.
        DivergedError: One is NaN or infinite.
    """
    if missing := [name for name in required if name not in metrics]:
        raise WrongReturnError(f"the trial returned no {', '.join(missing)}")
    for name in required:
        if not math.isfinite(metrics[name]):
            raise DivergedError(f"{name} is {metrics[name]}")


def violations(limits: Iterable[Limit], metrics: Mapping[str, float]) -> dict[str, float]:
    """Violation of each limit relative to its value (to 1, if that is 0); negative where it holds.

    Args:
        limits: Their texts are the keys of the result.
        metrics: By recorded names. A limit whose metric is missing gets 0.
    """
    relative = {}
    for limit in limits:
        measured = metrics.get(limit.metric)
        scale = abs(limit.value) or 1.0
        relative[str(limit)] = 0.0 if measured is None else limit.violation(measured) / scale
    return relative


def total_violation(limits: Iterable[Limit], metrics: Mapping[str, float]) -> float:
    """Sum of the positive relative violations, in [0, infinity]; 0 where all limits hold.

    A missing metric adds nothing; a metric that is NaN adds infinity.

    Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, 2002, section
        VI-A.
    """
    values = violations(limits, metrics).values()
    return float(sum(max(0.0, math.inf if math.isnan(value) else value) for value in values))


def seed_folder(folder: Path, seed: int) -> Path:
    """Folder of one of several seeds of a trial."""
    return folder / f"seed-{seed}"


def copy_latest_state(earlier: Sequence[Path], folder: Path) -> None:
    """Copy the training state of an earlier try into this try's folder.

    Args:
        earlier: Folders of the earlier tries, the newest first; the first with a state is taken.
        folder: Of this try.
    """
    states = [path / STATE for path in earlier if (path / STATE).exists()]
    if states:
        with atomic_file(folder / STATE, "the training state", make_folder=True) as draft:
            shutil.copyfile(states[0], draft)


def discard_states(folders: Iterable[Path]) -> None:
    """Delete the training states in these folders of tries or seeds; folders may be missing."""
    for folder in folders:
        for state in (run / STATE for run in (folder, *folder.glob("seed-*"))):
            state.unlink(missing_ok=True)
            state.with_suffix(".part").unlink(missing_ok=True)


def earlier_tries(
    trial: FrozenTrial, by_number: Callable[[int], FrozenTrial]
) -> Iterator[FrozenTrial]:
    """The failed trials that this one replaces, the newest first.

    Args:
        trial: Any trial.
        by_number: Returns the trial of the same study with a number.
    """
    while "retry_of" in trial.user_attrs:
        trial = by_number(int(trial.user_attrs["retry_of"]))
        yield trial


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
