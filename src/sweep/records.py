"""Plain values of a study: slots, tasks, outcomes, failures, constraint violations, retries."""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from optuna.trial import FrozenTrial

from src.core.errors import DivergedError, UserError
from src.metrics.registry import Limit, recorded_name
from src.sweep.space import Cell
from src.tracking.store import TrackingError

State = Literal["complete", "pruned", "over_limit", "fail"]
Kind = Literal[
    "",
    "error",
    "diverged",
    "out_of_memory",
    "killed",
    "time_limit",
    "wrong_return",
    "bad_config",
    "stopped",
]
# Failures of a trial that was ended by others: its training state is kept for another try.
EXTERNAL_KINDS: tuple[Kind, ...] = ("killed", "time_limit", "stopped")
STATE = "checkpoint/last.ckpt"  # training state of a run, in its folder
MAX_CONTINUED = 5  # folders of earlier tries in which a retry looks for a training state


@dataclass(frozen=True)
class Slot:
    """A place where one trial runs at a time.

    Attributes:
        number: From 0.
        device: Id of the GPU that the trial sees, such as "0"; None: CPU, or the executor chooses.
        threads: CPU threads of torch; None: torch's default.
    """

    number: int
    device: str | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Task:
    """One trial to run in its own process.

    Attributes:
        storage: URL of the study's Optuna storage.
        study: The study's name.
        trial_id: Optuna's id of the trial, by which the process attaches to it.
        number: The trial's number in the study.
        folder: Absolute path of the trial's folder; its log is `trial.log` there.
        body: What runs the trial, "package.module:function"; called with a
            `src.sweep.trial.TrialContext`.
        payload: What else the body needs; JSON values.
        slot: Where it runs.
    """

    storage: str
    study: str
    trial_id: int
    number: int
    folder: str
    body: str
    payload: dict[str, Any]
    slot: Slot = field(default_factory=lambda: Slot(0))


@dataclass(frozen=True)
class EndedTask:
    """A task whose process has ended.

    Attributes:
        task: The task.
        exitcode: 0 for success; negative: minus the signal's number; None: not known.
        note: A readable reason, such as "killed by signal 9 (SIGKILL)"; empty for success.
    """

    task: Task
    exitcode: int | None
    note: str = ""


@dataclass(frozen=True)
class TrialOutcome:
    """The result of a trial, stored as its user attribute `outcome` before its process ends.

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


@dataclass
class RunningTrial:
    """A trial that was submitted to the executor and whose end was not reported yet.

    Attributes:
        task: As the executor returned it.
        cell: Its configuration.
        began: When it was submitted or, if it had to wait, when it began; `time.monotonic`, s.
        stopped: Kind and reason if the scheduler ended it.
        waits: It may still wait in the engine's queue.
        progress: What it last reported.
    """

    task: Task
    cell: Cell
    began: float
    stopped: tuple[Kind, str] | None = None
    waits: bool = False
    progress: dict[str, Any] = field(default_factory=dict)


class EndedEarly(Exception):  # noqa: N818  a decision, not an error
    """A trial that is stopped by decision, not by failure.

    Attributes:
        state: The state under which it is recorded.
    """

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
    text = " ".join(str(error).split())[:500]
    typed = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, DivergedError):
        return "diverged", text
    if isinstance(error, UserError) and not isinstance(error, TrackingError):
        return "bad_config", text
    if isinstance(error, WrongReturnError):
        return "wrong_return", text
    names_memory = "not enough memory" in text or "CUDA out of" in text
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return ("out_of_memory" if is_memory or names_memory else "error"), typed


def violations(limits: Iterable[Limit], metrics: Mapping[str, float]) -> dict[str, float]:
    """Violation of each limit relative to its value (to 1, if that is 0); negative where it holds.

    Args:
        limits: Their texts are the keys of the result.
        metrics: By recorded names. A limit whose metric is missing gets 0.
    """
    relative = {}
    for limit in limits:
        measured = metrics.get(recorded_name(limit.metric))
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
    source = next((path for path in (each / STATE for each in earlier) if path.exists()), None)
    if source is None:
        return
    target = folder / STATE
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    shutil.copyfile(source, part)
    part.replace(target)


def discard_states(folders: Iterable[Path]) -> None:
    """Delete the training states in these folders of tries or seeds; folders may be missing."""
    for folder in folders:
        for state in (run / STATE for run in (folder, *folder.glob("seed-*"))):
            state.unlink(missing_ok=True)
            state.with_suffix(".part").unlink(missing_ok=True)


def retry_attributes(trial: FrozenTrial, attempt: int) -> dict[str, Any]:
    """User attributes of the trial that replaces a failed one.

    Args:
        trial: The failed one. Finished seeds and the origin of a warm start are carried over.
        attempt: How many of the allowed retries are used up by the new trial.
    """
    kept = {
        name: value
        for name, value in trial.user_attrs.items()
        if name in ("cell", "warm_from") or name.startswith("repeat")
    }
    folders = [trial.user_attrs.get("folder"), *trial.user_attrs.get("continues", [])]
    continues = [folder for folder in folders if folder][:MAX_CONTINUED]
    return {**kept, "retry_of": trial.number, "attempt": attempt, "continues": continues}


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
