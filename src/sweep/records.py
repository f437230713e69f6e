"""Plain values of a study: slots, tasks, outcomes, failures, constraint violations, retries."""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from optuna.trial import FrozenTrial

from src.core.errors import DivergedError, UserError, full_disk, masked, out_of_memory
from src.core.files import atomic_file
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
