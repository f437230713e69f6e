"""Plain values: Slot, Task, Outcome, failures, retries, constraints, resumption."""

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


@dataclass(frozen=True)
class Slot:
    """A place where one trial can run at a time.

    Attributes:
        number: From 0.
        device: Id of the GPU that the trial sees, such as "0"; None for the CPU, or where the
            executor chooses.
        threads: CPU threads that torch may use; None leaves torch's choice.
    """

    number: int
    device: str | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Task:
    """One trial to be run, in a process of its own.

    Attributes:
        storage: URL of the study's Optuna storage.
        study: The study's name.
        trial_id: Optuna's id of the trial, by which the process attaches to it.
        number: The trial's number within the study.
        folder: Absolute path of the trial's own folder; its log is `trial.log` in it.
        body: What runs the trial, as "package.module:function"; called with a
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
    """A trial's process is gone.

    Attributes:
        task: What it ran.
        exitcode: 0 for an end in order; negative: minus the signal's number; None if the executor
            cannot know.
        note: For people: "killed by signal 9 (SIGKILL)", "the node was lost"; empty for an end in
            order.
    """

    task: Task
    exitcode: int | None
    note: str = ""


@dataclass(frozen=True)
class TrialOutcome:
    """What a trial came to; written into the study as the user attribute `outcome` before its process ends.

    It is the commit point: a trial with an outcome is finished, whatever becomes of its process or
    of the owner.

    Attributes:
        state: complete; pruned (stopped early: it was behind); over_limit (not trained: it costs
            too much); fail.
        kind: Of a failure; "" otherwise.
        reason: One line for people; "" when complete.
        metrics: By their names in the run record; of a trial that was not trained only its cost.
        run_id: The trial's MLflow run; None if it never got one.
        epoch: The last epoch that was really trained and validated, from 1; 0 if none.
    """

    state: State
    kind: Kind = ""
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    run_id: str | None = None
    epoch: int = 0


FROM_OUTSIDE: tuple[Kind, ...] = (
    "killed",
    "time_limit",
    "stopped",
)  # of a trial that had not come to its own end


class EndedEarly(Exception):  # noqa: N818  a decision, no error
    """A trial that is not carried to its end, by decision and not by failure.

    Attributes:
        state: How the record calls it.
    """

    state: State = "pruned"


class Pruned(EndedEarly):
    """Stopped while training: it was behind."""


class OverLimit(EndedEarly):
    """Not trained at all: what it costs is known before, and is over a limit."""

    state: State = "over_limit"


class WrongReturnError(Exception):
    """The body's return value cannot be told to the study."""


class AllFailAlikeError(UserError):
    """The first trials of a study all failed in the same way: the others would, too."""


def classify(error: BaseException) -> tuple[Kind, str]:
    """What kind of failure an exception is, and its reason in one line."""
    text = " ".join(str(error).split())[:500]
    named = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, DivergedError):
        return "diverged", text
    if isinstance(error, UserError) and not isinstance(error, TrackingError):
        return "bad_config", text
    if isinstance(error, WrongReturnError):
        return "wrong_return", text
    out_of_memory = (
        type(error).__name__ == "OutOfMemoryError"
        or "not enough memory" in text
        or "CUDA out of" in text
    )
    if isinstance(error, MemoryError) or out_of_memory:
        return "out_of_memory", named
    return "error", named


# in a run's folder; of a trial with several seeds each has one, in a folder below
STATE = "checkpoint/last.ckpt"
_UNFINISHED = ".part"


def seed_folder(folder: Path, seed: int) -> Path:
    """Where one of several seeds of a trial has its own files."""
    return folder / f"seed-{seed}"


def inherit(earlier: Sequence[Path], folder: Path) -> None:
    """Bring the training state that an earlier try left to this one's own folder: it may be broken off too.

    Args:
        earlier: Folders of the tries before, the newest first.
        folder: This one's.
    """
    left = next((found for each in earlier if (found := each / STATE).exists()), None)
    if left is None:
        return
    own = folder / STATE
    own.parent.mkdir(parents=True, exist_ok=True)
    part = own.with_suffix(_UNFINISHED)
    shutil.copyfile(left, part)
    part.replace(own)


def discard(folders: Iterable[Path]) -> None:
    """Take away the training states of a trial that nobody will go on with.

    Args:
        folders: Of the trial's tries, or of one of its seeds; what is not there is passed over.
    """
    for folder in folders:
        for own in (folder, *folder.glob("seed-*")):
            for state in (own / STATE, (own / STATE).with_suffix(_UNFINISHED)):
                state.unlink(missing_ok=True)


_KEPT_FOLDERS = (
    5  # of earlier tries, in which a trial that is started again looks for a state to go on from
)


def inherited(trial: FrozenTrial, attempt: int) -> dict[str, Any]:
    """User attributes of the trial that is made in another one's place.

    Args:
        trial: The one that failed.
        attempt: How many of the retries that the policy allows are used up then.
    """
    attributes: dict[str, Any] = {"retry_of": trial.number, "attempt": attempt}
    for name, value in trial.user_attrs.items():
        if name in ("cell", "warm_from") or name.startswith(
            "repeat"
        ):  # the latter: seeds that are done
            attributes[name] = value
    folders = [trial.user_attrs.get("folder"), *trial.user_attrs.get("continues", [])]
    attributes["continues"] = [folder for folder in folders if folder][:_KEPT_FOLDERS]
    return attributes


def earlier_tries(
    trial: FrozenTrial, by_number: Callable[[int], FrozenTrial]
) -> Iterator[FrozenTrial]:
    """The trials that this one was made in place of, the newest first, back to the one that was drawn.

    Args:
        trial: Any trial.
        by_number: Gives a trial of the same study by its number.
    """
    while "retry_of" in trial.user_attrs:
        trial = by_number(int(trial.user_attrs["retry_of"]))
        yield trial


def violations(limits: Iterable[Limit], metrics: Mapping[str, float]) -> dict[str, float]:
    """By how much each limit is broken, as a share of its value (of 1, if that is 0); negative where it is kept.

    Args:
        limits: The limits; their texts are the keys of what is returned.
        metrics: By recorded names. A limit whose metric is not there gets 0.
    """
    found = {}
    for limit in limits:
        measured = metrics.get(recorded_name(limit.metric))
        found[str(limit)] = (
            0.0 if measured is None else limit.violation(measured) / (abs(limit.value) or 1.0)
        )
    return found


def total_violation(limits: Iterable[Limit], metrics: Mapping[str, float]) -> float:
    """The sum of all violations, each as a share of its limit: 0 where all limits are kept.

    Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, 2002, section
        VI-A.

    Args:
        limits: The limits.
        metrics: By recorded names. A limit whose metric is not there is neither kept nor broken.

    Returns:
        In [0, infinity]; infinite for a metric that is NaN.
    """
    total = sum(
        max(0.0, math.inf if math.isnan(each) else each)
        for each in violations(limits, metrics).values()
    )
    return float(total)


@dataclass
class RunningTrial:
    """A trial that was handed to the executor and whose end was not reported yet.

    Attributes:
        task: As the executor returned it.
        cell: Where in the space it lies.
        began: When it was handed over or, where it had to wait, when it began to run;
            `time.monotonic`.
        stopped: Why the owner ended it; None if it did not.
        waits: Handed over, but without a sign of life: it may stand in an engine's queue.
        progress: What it last said of itself.
    """

    task: Task
    cell: Cell
    began: float
    stopped: tuple[Kind, str] | None = None
    waits: bool = False
    progress: dict[str, Any] = field(default_factory=dict)


def fresh_folder(folder: Path) -> Path:
    """The folder, or one beside it: another study of that name may have left it, and nothing is overwritten."""
    number, fresh = 2, folder
    while fresh.exists():
        fresh = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return fresh
