"""What executors share: base class, slots, a trial's process, jobs, imports of the fork server."""

import contextlib
import faulthandler
import gc
import importlib
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import psutil

from src.core.errors import ConfigError
from src.sweep.records import EndedTask, Slot, Task

log = logging.getLogger(__name__)
ENTRY = "src.sweep.trial:main"
LOG = "trial.log"
TERMINATED = 128 + signal.SIGTERM
NO_GPU = ""  # as CUDA_VISIBLE_DEVICES: the trial sees none
_KILLED_SECONDS = 30.0  # within which a killed process disappears
_ORPHAN_SECONDS = 15.0  # that a trial gets to close its records when its scheduler is gone
_SCANCEL_SECONDS = 60.0


class Executor(ABC):
    """Runs trials and reports the ends of their processes, in the order in which they end.

    A subclass defines how a task is started, asked to end and killed, which tasks have ended, and
    how to wait.

    Args:
        slots: Each for one trial at a time.

    Attributes:
        queues: Whether a submitted trial may wait in an engine's queue before it runs.
    """

    queues = False

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = list(slots)
        self._running: dict[int, Task] = {}  # by slot number
        self._deadlines: dict[int, float] = {}  # by slot number: when a stopped trial is killed
        self._not_started: list[EndedTask] = []

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

        Args:
            task: The task; its slot is replaced.

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
            self._start(task)
        except (OSError, EOFError) as error:
            reason = f"could not be started: {error or type(error).__name__}"
            self._not_started.append(EndedTask(task, None, reason))
        return task

    def job(self, task: Task) -> dict[str, Any] | None:
        """How to `cancel` a submitted trial after its scheduler was killed.

        Args:
            task: As `submit` returned it.

        Returns:
            None if the trial ends with its scheduler, or could not be started.
        """
        return None

    def wait(self, timeout: float) -> list[EndedTask]:
        """Wait until a trial's process has ended.

        Args:
            timeout: Seconds to wait at most.

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
                self._deadlines.pop(end.task.slot.number, None)
            now = time.monotonic()
            if ended or now >= until:
                return ended
            for number, deadline in self._deadlines.items():
                if now >= deadline:
                    self._kill(self._running[number])
                    self._deadlines[number] = now + 1.0  # again, if necessary
            self._pause(min([until, *self._deadlines.values()]) - now)

    def stop(self, task: Task, grace: float) -> None:
        """Ask a trial to end, and kill it later if it does not; returns at once.

        Args:
            task: As `submit` returned it; one that has ended is ignored.
            grace: Seconds between asking and killing.
        """
        number = task.slot.number
        if self._running.get(number) != task:
            return
        if number not in self._deadlines:
            self._ask_to_end(task, grace)
        deadline = time.monotonic() + grace
        self._deadlines[number] = min(self._deadlines.get(number, deadline), deadline)

    def close(self, grace: float) -> list[EndedTask]:
        """Stop all trials and wait for them.

        Args:
            grace: Seconds between asking and killing.

        Returns:
            Their ends; one that could not be ended is among them, with a note.
        """
        for task in list(self._running.values()):
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
    def _start(self, task: Task) -> None:
        """Start the task; an OSError becomes the trial's end."""

    @abstractmethod
    def _gone(self) -> list[EndedTask]:
        """The running tasks whose processes have ended; must not block."""

    @abstractmethod
    def _pause(self, seconds: float) -> None:
        """Sleep until something may have ended, for `seconds` at most."""

    @abstractmethod
    def _ask_to_end(self, task: Task, grace: float) -> None:
        """Ask the task to end; must not block. `_kill` follows after `grace` seconds."""

    @abstractmethod
    def _kill(self, task: Task) -> None:
        """Kill the task; must not block."""

    def _release(self) -> None:  # noqa: B027  most hold nothing
        """Release what the executor holds, when nothing runs any more."""


# Slots and devices


def plain_slots(n_jobs: int, threads: int | None = None) -> list[Slot]:
    """Slots of an executor that finds the devices itself.

    Raises:
        ConfigError: `n_jobs` is below 1.
    """
    if n_jobs < 1:
        raise ConfigError("n_jobs", f"must be at least 1, but got {n_jobs}")
    return [Slot(number, None, threads) for number in range(n_jobs)]


def local_slots(
    n_jobs: int | None,
    devices: Literal["auto"] | Sequence[int | str] | None,
    trials_per_device: int,
    threads: Literal["auto"] | int | None,
) -> list[Slot]:
    """The slots of this machine; see `make_slots` and `chosen_devices`."""
    visible: list[str] = []
    if devices:
        import torch

        # Asks the driver's management library, which starts no CUDA in this process.
        count = torch.cuda.device_count()
        visible = visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"), count)
    chosen = chosen_devices(devices, visible)
    return make_slots(n_jobs, chosen, trials_per_device, threads, usable_cores())


def make_slots(
    n_jobs: int | None,
    devices: Sequence[str] | None,
    trials_per_device: int,
    threads: Literal["auto"] | int | None,
    cores: int,
) -> list[Slot]:
    """Distribute devices and cores.

    Args:
        n_jobs: Trials at once; None: as many as the devices take, 1 without a device.
        devices: Ids of GPUs; empty: there is none; None: the trials must not see one.
        trials_per_device: How many trials share a GPU.
        threads: CPU threads of a trial; "auto": cores / slots; None: torch's default.
        cores: Usable cores.

    Returns:
        Neighbouring slots are on different devices, so that few trials spread over all of them.

    Raises:
        ConfigError: A number below 1, or more trials at once than the devices take.
    """
    numbers = {"n_jobs": n_jobs, "trials_per_device": trials_per_device, "threads": threads}
    for key, value in numbers.items():
        if isinstance(value, int) and value < 1:
            raise ConfigError(key, f"must be at least 1, but got {value}")
    capacity = len(devices or ()) * trials_per_device
    count = n_jobs or capacity or 1
    if devices and count > capacity:
        reason = f"(GPUs: {len(devices)}, trials_per_device: {trials_per_device})"
        ways = "raise trials_per_device, or set devices=null for the CPU"
        problem = f"must be at most {capacity} {reason}, but got {n_jobs}; {ways}"
        raise ConfigError("n_jobs", problem)
    share = max(1, cores // count) if threads == "auto" else threads
    absent = NO_GPU if devices is None else None
    return [
        Slot(number, devices[number % len(devices)] if devices else absent, share)
        for number in range(count)
    ]


def chosen_devices(
    devices: Literal["auto"] | Sequence[int | str] | None, visible: Sequence[str]
) -> Sequence[str] | None:
    """The GPUs that the trials use; None if they must not use any.

    Args:
        devices: Ids, "auto" for all that are visible, None or empty for none.
        visible: Ids of the GPUs that this process may use.

    Raises:
        ConfigError: A GPU that is not visible, or is named twice.
    """
    if not devices:
        return None
    if devices == "auto":
        return visible
    if isinstance(devices, str):
        raise ConfigError("devices", f"must be auto, null or a list of GPU ids, but got {devices}")
    chosen = [str(device) for device in devices]
    if len(set(chosen)) < len(chosen):
        way = "set trials_per_device instead"
        raise ConfigError("devices", f"names a GPU twice: {', '.join(chosen)}; {way}")
    if unknown := [device for device in chosen if device not in visible]:
        others = f"visible are {', '.join(visible)}" if visible else "no GPU is visible"
        raise ConfigError("devices", f"GPU {unknown[0]} cannot be used here, {others}")
    return chosen


def visible_devices(variable: str | None, count: int) -> list[str]:
    """Ids of the GPUs that a process sees.

    Args:
        variable: CUDA_VISIBLE_DEVICES; None if it is not set.
        count: How many the process sees; CUDA reads the ids up to the first that does not exist.
    """
    if variable is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in variable.split(",") if name.strip()][:count]


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and its control group's quota."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    try:
        quota = cores_of_quota(Path("/sys/fs/cgroup/cpu.max").read_text())
    except OSError:
        quota = None
    return max(1, min(cores, math.ceil(quota))) if quota else cores


def cores_of_quota(text: str) -> float | None:
    """Cores that a control group's `cpu.max` grants; None if there is no limit."""
    granted, _, period = text.strip().partition(" ")
    has_limit = granted.isdigit() and period.isdigit() and int(period)
    return int(granted) / int(period) if has_limit else None


# A trial's process


def run(task: Task, entry: str) -> int:
    """Run a trial in this process.

    Args:
        task: The task.
        entry: "package.module:function"; called with the task.

    Returns:
        The exit status: 0 if the entry returned, that of a SystemExit, 1 after an exception (its
        traceback is printed).
    """

    def terminate(signum: int, frame: FrameType | None) -> None:
        # A second signal must not disturb a trial that closes its records.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(TERMINATED)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)
    try:
        if task.slot.device is not None:  # CUDA reads it when it starts, which is later
            os.environ["CUDA_VISIBLE_DEVICES"] = task.slot.device
        if task.slot.threads is not None:
            import torch

            torch.set_num_threads(task.slot.threads)
        module, _, function = entry.partition(":")
        getattr(importlib.import_module(module), function)(task)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:  # how Ray asks a task to end
        return TERMINATED
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run_logged(task: Task, entry: str) -> int:
    """`run` with the output in the trial's log; the process has its own output back afterwards."""
    handler = signal.getsignal(signal.SIGTERM)
    streams, files = (sys.stdout, sys.stderr), (os.dup(1), os.dup(2))
    try:
        log_to(Path(task.folder) / LOG)
        return run(task, entry)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams
        for number, file in enumerate(files, start=1):
            os.dup2(file, number)
            os.close(file)
        signal.signal(signal.SIGTERM, handler)


def log_to(path: Path) -> None:
    """Append all output of this process to a file, crashes of the interpreter included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    options = {"buffering": 1, "closefd": False, "encoding": "utf-8", "errors": "backslashreplace"}
    sys.stdout = open(1, "w", **options)  # type: ignore[call-overload]  # noqa: SIM115, PTH123
    sys.stderr = open(2, "w", **options)  # type: ignore[call-overload]  # noqa: SIM115, PTH123
    faulthandler.enable(2)


def end_with(wait_for_owner: Callable[[], object]) -> None:
    """End this process and its children when the scheduler is gone: by SIGTERM, then by SIGKILL.

    Args:
        wait_for_owner: Blocks until the scheduler is gone.
    """

    def watch() -> None:
        wait_for_owner()
        print("the process that runs the study is gone: this trial ends", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ORPHAN_SECONDS)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="owner-watch", daemon=True).start()


def ending(exitcode: int, oom_kills: int = 0) -> str:
    """An exit code in words.

    Args:
        exitcode: Negative: minus the signal's number.
        oom_kills: Processes that the system has killed meanwhile for lack of memory.
    """
    if exitcode >= 0:
        return f"ended with exit code {exitcode}" if exitcode else ""
    try:
        note = f"killed by signal {-exitcode} ({signal.Signals(-exitcode).name})"
    except ValueError:
        return f"killed by signal {-exitcode}"
    return f"{note}: out of memory" if exitcode == -signal.SIGKILL and oom_kills else note


def oom_kills() -> int:
    """Processes of this control group or machine that the kernel has killed for lack of memory."""
    for path in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        with contextlib.suppress(OSError):
            for line in Path(path).read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


def launcher(task: Task, entry: str) -> Callable[[], int]:
    """A function, pickled by value, that runs the task on another machine with this package.

    Args:
        task: The task.
        entry: "package.module:function"; called with the task.
    """
    folder = str(Path.cwd())
    paths = [path or folder for path in sys.path]
    variables = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    fields = asdict(task)  # plain values: this package is not on the path yet when they arrive

    def launch() -> int:
        import os
        import sys

        sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
        os.environ.update(variables)
        if os.path.isdir(folder):  # noqa: PTH112  names of this module are not known there
            os.chdir(folder)
        from src.sweep.executors import base
        from src.sweep.records import Slot, Task

        return base.run_logged(Task(**{**fields, "slot": Slot(**fields["slot"])}), entry)

    return launch


# Jobs that outlive their scheduler


def note(cluster: str, job_id: str, folder: Path) -> dict[str, Any]:
    """What `cancel` needs to know about a job, as plain values.

    Args:
        cluster: "slurm", or "local" for a process of this machine.
        job_id: Slurm's, or the process id.
        folder: Where submitit keeps the job's files.
    """
    return {"cluster": cluster, "id": job_id, "folder": str(folder), "host": socket.gethostname()}


def cancel(job: Mapping[str, Any]) -> bool:
    """Cancel a job, queued or running; one that has ended is ignored.

    Args:
        job: From `note`.

    Returns:
        Whether there was something to cancel; of a cluster: whether it accepted the command. A
        cluster that does not answer causes a warning only: its job will find its trial finished.
    """
    if job["cluster"] == "local":
        return _cancel_process(job)
    command = ["scancel", str(job["id"])]
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
    try:
        done = subprocess.run(command, timeout=_SCANCEL_SECONDS, **options)
        problem = ""
        if done.returncode:
            problem = f"status {done.returncode}: {done.stderr.strip()[:200]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        text = "job %s of an earlier session may still be there: %s: %s"
        log.warning(text, job["id"], " ".join(command), problem)
    return not problem


def _cancel_process(job: Mapping[str, Any]) -> bool:
    if job["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(job["id"]))
        command = " ".join(process.cmdline())
        if "submitit" not in command or job["folder"] not in command:  # the id was reused
            return False
        process.send_signal(signal.SIGTERM)  # submitit passes it on to the trial
    except psutil.Error:
        return False
    return True


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
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # So that `torch.cuda.is_available()` starts no CUDA in the fork server.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


def become_fork_server(modules: list[str]) -> None:
    """Import the modules; one that is missing is left to the trial that needs it.

    Args:
        modules: Dotted names; "package.module:function" is called as well.
    """
    # Ctrl+C and a closed terminal end the scheduler, which ends this process in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.setsid()
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in modules:
        module, _, function = name.partition(":")
        with contextlib.suppress(Exception):
            imported = importlib.import_module(module)
            if function:
                getattr(imported, function)()
    gc.collect()
    gc.freeze()  # a trial's collector does not touch, and so copy, the shared objects
    sys.stdout.flush()
    sys.stderr.flush()


@contextlib.contextmanager
def preloading(root: Path, modules: Sequence[str] | None) -> Iterator[None]:
    """Environment in which a fork server is started that imports `modules`.

    The fork server does not get this process's `sys.path` before it has preloaded (Python 3.11 to
    3.13): `root` is added to PYTHONPATH.
    """
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    variables = {"PYTHONPATH": path, **({PRELOAD: ",".join(modules)} if modules else {})}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


if PRELOAD in os.environ:
    become_fork_server(os.environ.pop(PRELOAD).split(","))
