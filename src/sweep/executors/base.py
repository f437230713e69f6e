"""What executors share: base class, slots, a trial's process, imports of the fork server."""

import contextlib
import faulthandler
import gc
import json
import os
import pkgutil
import signal
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from src.core.errors import ConfigError, masked, out_of_memory
from src.sweep.records import EndedTask, Slot, Task

TASK = "PARETODERM_TASK"  # environment variable of a job: others may read the files of its engine
TERMINATED = 128 + signal.SIGTERM
_KILLED_SECONDS = 30.0  # within which a killed process disappears


class Executor(ABC):
    """Runs trials and reports the ends of their processes, in the order in which they end.

    A subclass defines how a task is started, asked to end and killed, which tasks have ended, and
    how to wait.

    Args:
        slots: Each for one trial at a time.
    """

    queues = False  # whether a submitted trial may wait in an engine's queue before it runs

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = list(slots)
        self._not_started: list[EndedTask] = []
        # By slot number:
        self._running: dict[int, Task] = {}
        self._handles: dict[int, Any] = {}  # what `_start` returned
        self._deadlines: dict[int, float] = {}  # when a stopped trial is killed

    @property
    def slots(self) -> int:
        """How many trials can run at once."""
        return len(self._slots)

    def free(self) -> int:
        """How many more trials can be submitted now."""
        return max(0, self.slots - len(self._running))

    def running(self) -> list[Task]:
        """The submitted tasks whose end was not reported yet."""
        return list(self._running.values())

    def warm_up(self) -> None:  # noqa: B027  most have nothing to prepare
        """Prepare for the first trial; returns at once."""

    def submit(self, task: Task) -> Task:
        """Start a trial in a free slot.

        Returns:
            The task with its slot. A trial that could not be started is reported by the next
            `wait`.

        Raises:
            RuntimeError: There is no free slot.
        """
        if not self.free():
            raise RuntimeError(f"all {self.slots} slots are taken: wait for a trial to end")
        slot = next(slot for slot in self._slots if slot.number not in self._running)
        task = replace(task, slot=slot)
        self._running[slot.number] = task
        try:
            self._handles[slot.number] = self._start(task)
        except (OSError, EOFError) as error:
            reason = f"could not be started: {error or type(error).__name__}"
            self._not_started.append(EndedTask(task, None, reason))
        return task

    def job(self, task: Task) -> dict[str, Any] | None:
        """What a later session needs to cancel a submitted trial if its scheduler is killed.

        Returns:
            None if the trial ends with its scheduler, or could not be started.
        """
        return None

    def wait(self, timeout: float) -> list[EndedTask]:
        """Wait until a trial's process has ended, for `timeout` seconds at most.

        Returns:
            All that have ended and were not reported before, as soon as there is one; empty after
            the timeout.
        """
        until = time.monotonic() + timeout
        while True:
            ended = [*self._not_started, *self._gone()]
            self._not_started = []
            for end in ended:
                self._running.pop(end.task.slot.number, None)
                self._handles.pop(end.task.slot.number, None)
                self._deadlines.pop(end.task.slot.number, None)
            now = time.monotonic()
            if ended or now >= until:
                return ended
            for number, deadline in self._deadlines.items():
                if now >= deadline:
                    if number in self._handles:
                        self._kill(self._handles[number])
                    self._deadlines[number] = now + 1.0  # again, if necessary
            self._pause(max(0.0, min([until, *self._deadlines.values()]) - now))

    def stop(self, task: Task, grace: float) -> None:
        """Ask a trial to end, and kill it `grace` seconds later if it does not; returns at once.

        A task that has ended is ignored.
        """
        number = task.slot.number
        if self._running.get(number) != task or number not in self._handles:
            return
        if number not in self._deadlines:
            self._ask_to_end(self._handles[number])
        deadline = time.monotonic() + grace
        self._deadlines[number] = min(self._deadlines.get(number, deadline), deadline)

    def close(self, grace: float) -> list[EndedTask]:
        """Stop all trials, as `stop` does, and wait for them.

        Returns:
            Their ends; one that could not be ended is among them, with a note.
        """
        for task in self.running():
            self.stop(task, grace)
        ended: list[EndedTask] = []
        until = time.monotonic() + grace + _KILLED_SECONDS
        while self._running and time.monotonic() < until:
            ended += self.wait(1.0)
        problem = "could not be ended: its process is still there"
        ended += [EndedTask(task, None, problem) for task in self._running.values()]
        self._running.clear()
        self._release()
        return ended

    @abstractmethod
    def _start(self, task: Task) -> Any:
        """Start the task; an OSError becomes the trial's end. Returns the handle of its process."""

    @abstractmethod
    def _gone(self) -> list[EndedTask]:
        """The running tasks whose processes have ended; must not block."""

    @abstractmethod
    def _pause(self, seconds: float) -> None:
        """Sleep until something may have ended, for `seconds` at most."""

    @abstractmethod
    def _ask_to_end(self, handle: Any) -> None:
        """Ask a process to end; must not block. `_kill` follows if it does not."""

    @abstractmethod
    def _kill(self, handle: Any) -> None:
        """Kill a process; must not block."""

    def _release(self) -> None:  # noqa: B027  most hold nothing
        """Release what the executor holds, when nothing runs any more."""


def plain_slots(n_jobs: int, threads: int | None = None) -> list[Slot]:
    """Slots of an executor that finds the devices itself."""
    return [Slot(number, None, threads) for number in range(n_jobs)]


def local_slots(
    n_jobs: int | None,
    devices: Literal["auto"] | Sequence[int | str] | None,
    trials_per_device: int,
    threads: Literal["auto"] | int | None,
    visible: Sequence[str],
    cores: int,
) -> list[Slot]:
    """Distribute the devices and cores of this machine.

    Args:
        n_jobs: Trials at once; None: as many as the devices take, 1 without a device.
        devices: Ids of GPUs, "auto" for all that are visible; None or empty: the trials must not
            see any.
        trials_per_device: How many trials share a GPU.
        threads: CPU threads of a trial; "auto": cores / slots; None: torch's default.
        visible: Ids of the GPUs that this process may use.
        cores: Usable cores.

    Returns:
        Neighbouring slots are on different devices, so that few trials spread over all of them.

    Raises:
        ConfigError: A GPU that is not visible or is named twice, or more trials at once than the
            devices take.
    """
    if isinstance(devices, str) and devices != "auto":
        raise ConfigError("devices", f"must be auto, null or a list of GPU ids, but got {devices}")
    chosen = list(visible) if devices == "auto" else [str(device) for device in devices or ()]
    if devices != "auto" and len(set(chosen)) < len(chosen):
        way = "set trials_per_device instead"
        raise ConfigError("devices", f"names a GPU twice: {', '.join(chosen)}; {way}")
    if unknown := [device for device in chosen if device not in visible]:
        others = f"visible are {', '.join(visible)}" if visible else "no GPU is visible"
        raise ConfigError("devices", f"GPU {unknown[0]} cannot be used here, {others}")
    capacity = len(chosen) * trials_per_device
    count = n_jobs or capacity or 1
    if chosen and count > capacity:
        reason = f"(GPUs: {len(chosen)}, trials_per_device: {trials_per_device})"
        ways = "raise trials_per_device, or set devices=null for the CPU"
        problem = f"must be at most {capacity} {reason}, but got {n_jobs}; {ways}"
        raise ConfigError("n_jobs", problem)
    share = max(1, cores // count) if threads == "auto" else threads
    absent = None if devices else ""
    return [
        Slot(number, chosen[number % len(chosen)] if chosen else absent, share)
        for number in range(count)
    ]


def visible_devices(variable: str | None, count: int) -> list[str]:
    """Ids of the GPUs that a process sees.

    Args:
        variable: CUDA_VISIBLE_DEVICES; None if it is not set.
        count: How many the process sees; CUDA reads the ids up to the first that does not exist.
    """
    if variable is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in variable.split(",") if name.strip()][:count]


def run(task: Task) -> int:
    """Run a trial in this process, with all output in the trial's log.

    Returns:
        The exit status: 0 if the entry returned, that of a SystemExit, 1 after an exception (its
        traceback is printed).
    """

    def terminate(signum: int, frame: FrameType | None) -> None:
        # A second signal must not disturb a trial that closes its records.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(TERMINATED)

    with _output_to(Path(task.folder) / "trial.log"):
        handler = signal.signal(signal.SIGTERM, terminate)
        try:
            if task.slot.device is not None:  # CUDA reads it when it starts, which is later
                os.environ["CUDA_VISIBLE_DEVICES"] = task.slot.device
            if task.slot.threads is not None:
                import torch

                torch.set_num_threads(task.slot.threads)
            pkgutil.resolve_name(task.entry)(task)
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except KeyboardInterrupt:  # how Ray asks a task to end
            return TERMINATED
        except BaseException as error:
            print(out_of_memory(error) or masked(traceback.format_exc()), file=sys.stderr)
            return 1
        finally:
            signal.signal(signal.SIGTERM, handler)
    return 0


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Append the output of this process to a file, crashes of the interpreter included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    with contextlib.ExitStack() as stack:
        for number, name in enumerate(("stdout", "stderr"), start=1):
            before, descriptor = getattr(sys, name), os.dup(number)
            before.flush()
            stack.callback(os.close, descriptor)
            stack.callback(os.dup2, descriptor, number)
            stack.callback(setattr, sys, name, before)
            os.dup2(log, number)
            options = {"buffering": 1, "closefd": False, "errors": "backslashreplace"}
            stream = open(number, "w", encoding="utf-8", **options)  # type: ignore[call-overload]  # noqa: SIM115, PTH123
            stack.callback(stream.flush)
            setattr(sys, name, stream)
        os.close(log)
        faulthandler.enable(2)
        yield


def packed(task: Task) -> str:
    """The task and this process's settings of MLflow, as text; it may hold passwords."""
    variables = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    return json.dumps([asdict(task), variables])


def launcher(content: str = "") -> Callable[[], int]:
    """A function, pickled by value, that runs a task on another machine with this package.

    Args:
        content: From `packed`; empty: the environment variable `TASK` has it there.
    """
    folder, variable = str(Path.cwd()), TASK
    paths = [path or folder for path in sys.path]

    def launch() -> int:
        import json  # this package is not on the path yet
        import os
        import sys

        text = content or os.environ.pop(variable, "")
        if not text:
            raise RuntimeError(f"{variable} is not set: jobs must get the submitter's environment")
        fields, variables = json.loads(text)
        sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
        os.environ.update(variables)
        if os.path.isdir(folder):  # noqa: PTH112  names of this module are not known there
            os.chdir(folder)
        from src.sweep.executors import base
        from src.sweep.records import Slot, Task

        return base.run(Task(**{**fields, "slot": Slot(**fields["slot"])}))

    return launch


def ending(exitcode: int, out_of_memory: bool = False) -> str:
    """An exit code in words.

    Args:
        exitcode: Negative: minus the signal's number.
        out_of_memory: Whether the kernel has killed a process for lack of memory meanwhile.
    """
    if exitcode >= 0:
        return f"ended with exit code {exitcode}" if exitcode else ""
    try:
        note = f"killed by signal {-exitcode} ({signal.Signals(-exitcode).name})"
    except ValueError:
        return f"killed by signal {-exitcode}"
    return f"{note}: out of memory" if exitcode == -signal.SIGKILL and out_of_memory else note


def last_line(error: BaseException) -> str:
    """The last line of an error's text, which an engine puts the cause in."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]


# Imports of the fork server. `src` comes first: it registers torchvision's operators.
PRELOAD = "PARETODERM_PRELOAD"  # environment variable of a fork server: names of modules
_MODULES = """
    src torch torchvision torch.utils.data torch.profiler pytorch_lightning torchmetrics timm
    fvcore.nn hydra hydra.core.hydra_config omegaconf optuna optuna.storages._rdb.storage
    optuna.storages._rdb.models sqlalchemy.dialects.sqlite sqlalchemy.dialects.postgresql psycopg
    alembic.command src.tracking.run mlflow mlflow.store.tracking.sqlalchemy_store
    mlflow.store.tracking.sqlalchemy_workspace_store fsspec.implementations.chained
    mlflow.store.artifact.local_artifact_repo matplotlib.figure matplotlib.backends.backend_agg
    pandas pandas.io.formats.csvs pyarrow.pandas_compat email.policy email.contentmanager
    PIL.JpegImagePlugin sklearn.metrics sklearn.model_selection kornia.augmentation
    src.sweep.executors.base src.sweep.samplers src.sweep.pruners src.training.schedules
"""
_PARTS = [
    f"src.{package}.{file.stem}"
    for package in ("data", "losses", "models")
    for file in sorted((Path(__file__).parents[2] / package).glob("*.py"))
]
MODULES = (*_MODULES.split(), *_PARTS)


def _become_fork_server(modules: list[str]) -> None:
    """Import the modules; one that is missing is left to the trial that needs it.

    Args:
        modules: Dotted names; "package.module:function" is called as well.
    """
    # Ctrl+C and a closed terminal end the scheduler, which ends this process in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.setsid()
    # So that `torch.cuda.is_available()` starts no CUDA here.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    for name in modules:
        with contextlib.suppress(Exception):
            imported = pkgutil.resolve_name(name)
            if ":" in name:
                imported()
    gc.collect()
    gc.freeze()  # a trial's collector does not touch, and so copy, the shared objects
    sys.stdout.flush()
    sys.stderr.flush()


if PRELOAD in os.environ:
    _become_fork_server(os.environ.pop(PRELOAD).split(","))
