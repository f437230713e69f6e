"""Slots, process, preload."""

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

ENTRY = "src.sweep.trial:main"
_KILLED_SECONDS = (
    30.0  # a process that was killed is gone within this, or nobody knows what holds it
)


class Executor(ABC):
    """Runs trials and tells when their processes are gone; never waits for the slowest.

    A subclass says how a task is started, asked to end and killed, which tasks are gone, and how to
    wait.

    Args:
        places: The slots, each for one trial at a time.
    """

    queues = False  # whether a trial that was submitted may have to wait elsewhere before it runs

    def __init__(self, places: Sequence[Slot]) -> None:
        self._places = list(places)
        self._running: dict[int, Task] = {}  # by slot
        self._deadlines: dict[
            int, float
        ] = {}  # slot -> when a trial that was asked to end is killed
        self._not_started: list[EndedTask] = []

    @property
    def slots(self) -> int:
        """How many trials can run at once."""
        return len(self._places)

    def free(self) -> int:
        """How many more trials can be submitted now."""
        return max(0, self.slots - len(self._running))

    def running(self) -> list[Task]:
        """The tasks that were submitted and whose end was not reported yet."""
        return list(self._running.values())

    def warm_up(self) -> None:  # noqa: B027  most have nothing to prepare
        """Start what takes time before the first trial can run; returns at once."""

    def submit(self, task: Task) -> Task:
        """Start a trial in a free slot.

        Args:
            task: What to run; its slot is not looked at.

        Returns:
            The task with its slot. A trial that could not be started is reported by the next
            `wait`.

        Raises:
            RuntimeError: There is no free slot.
        """
        if not self.free():
            raise RuntimeError(f"all {self.slots} slots are taken: wait for a trial to end")
        place = next(place for place in self._places if place.number not in self._running)
        task = replace(task, slot=place)
        self._running[place.number] = task
        try:
            self._start(task)
        except (OSError, EOFError) as error:
            self._not_started.append(
                EndedTask(task, None, f"could not be started: {error or type(error).__name__}")
            )
        return task

    def job(self, task: Task) -> dict[str, Any] | None:
        """How a trial that was submitted can be cancelled after its owner was killed, see `executors.left`.

        Args:
            task: As `submit` returned it.

        Returns:
            None where the trial ends with its owner, or could not be started.
        """
        return None

    def wait(self, timeout: float) -> list[EndedTask]:
        """Wait until a trial's process is gone.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            All that are gone and were not reported before, as soon as there is one; empty after the
            timeout.
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
            self._kill_overdue(now)
            self._pause(min([until, *self._deadlines.values()]) - now)

    def stop(self, task: Task, grace: float) -> None:
        """Ask a trial to end, and kill it later if it does not. Returns at once; `wait` reports the end.

        Args:
            task: As `submit` returned it; one that does not run any more is left alone.
            grace: Seconds between asking and killing.
        """
        number = task.slot.number
        if self._running.get(number) != task:
            return
        if number not in self._deadlines:
            self._ask_to_end(task, grace)
        self._deadlines[number] = min(
            self._deadlines.get(number, float("inf")), time.monotonic() + grace
        )

    def close(self, grace: float) -> list[EndedTask]:
        """Stop all trials and wait for them.

        Args:
            grace: Seconds between asking and killing.

        Returns:
            Those that ended meanwhile; one that cannot be ended is among them, with a note.
        """
        for task in list(self._running.values()):
            self.stop(task, grace)
        ended: list[EndedTask] = []
        until = time.monotonic() + grace + _KILLED_SECONDS
        while self._running and time.monotonic() < until:
            ended += self.wait(1.0)
        ended += [
            EndedTask(task, None, "could not be ended: its process is still there")
            for task in self._running.values()
        ]
        self._running.clear()
        self._release()
        return ended

    def _kill_overdue(self, now: float) -> None:
        for number, deadline in self._deadlines.items():
            if now >= deadline:
                self._kill(self._running[number])
                self._deadlines[number] = now + 1.0  # once more, should it be needed

    @abstractmethod
    def _start(self, task: Task) -> None:
        """Start the task; an OSError becomes the trial's end."""

    @abstractmethod
    def _gone(self) -> list[EndedTask]:
        """Running tasks whose processes are gone; must not block."""

    @abstractmethod
    def _pause(self, seconds: float) -> None:
        """Sleep until something may have ended, for `seconds` at most."""

    @abstractmethod
    def _ask_to_end(self, task: Task, grace: float) -> None:
        """Ask politely; must not block. After `grace` seconds comes `_kill`."""

    @abstractmethod
    def _kill(self, task: Task) -> None:
        """End it by force; must not block."""

    def _release(self) -> None:  # noqa: B027  most hold nothing
        """Let go of what the executor holds, when nothing runs any more."""


def plain_slots(n_jobs: int, threads: int | None = None) -> list[Slot]:
    """Slots of an executor that finds the devices itself.

    Raises:
        ConfigError: Less than one.
    """
    if n_jobs < 1:
        raise ConfigError("n_jobs", f"must be at least 1, but got {n_jobs}")
    return [Slot(number, None, threads) for number in range(n_jobs)]


LOG = "trial.log"
TERMINATED = 128 + signal.SIGTERM
_LAST_SECONDS = 15.0  # for a trial to close its records when its owner is gone


def run(task: Task, entry: str) -> int:
    """Run a trial in this process.

    Args:
        task: What to run.
        entry: What runs it, "package.module:function"; called with the task.

    Returns:
        The exit status: 0 if the entry returned, that of a SystemExit, 1 after an exception (its
        traceback is printed).
    """
    _obey_sigterm()
    try:
        _take(task.slot)
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
    """`run`, in a process that has work of its own afterwards: its output is given back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with _kept_output():
            log_to(Path(task.folder) / LOG)
            return run(task, entry)
    finally:
        signal.signal(signal.SIGTERM, before)


def log_to(path: Path) -> None:
    """Let all that this process prints go to the end of a file, crashes of the interpreter included."""
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


@contextlib.contextmanager
def _kept_output() -> Iterator[None]:
    streams, files = (sys.stdout, sys.stderr), (os.dup(1), os.dup(2))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams
        for number, file in enumerate(files, start=1):
            os.dup2(file, number)
            os.close(file)


def adopt_environment(variables: Mapping[str, str]) -> None:
    """Take over the environment of another process."""
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


def end_with(owner_is_gone: Callable[[], object]) -> None:
    """End this process and its children when its owner is gone: first in order, then by force.

    Args:
        owner_is_gone: Blocks until that is so.
    """

    def watch() -> None:
        owner_is_gone()
        print("the owner of the study is gone: this trial ends", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_LAST_SECONDS)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="owner-watch", daemon=True).start()


def ending(exitcode: int, oom_kills: int = 0) -> str:
    """How an exit code reads.

    Args:
        exitcode: Negative: minus the signal's number.
        oom_kills: Processes that the system has killed meanwhile because memory ran out.
    """
    if exitcode == 0:
        return ""
    if exitcode > 0:
        return f"ended with exit code {exitcode}"
    with contextlib.suppress(ValueError):
        note = f"killed by signal {-exitcode} ({signal.Signals(-exitcode).name})"
        return f"{note}: out of memory" if exitcode == -signal.SIGKILL and oom_kills else note
    return f"killed by signal {-exitcode}"


def oom_kills() -> int:
    """How many processes of this control group, or of this machine, the kernel has killed because memory ran out."""
    for path in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        with contextlib.suppress(OSError):
            for line in Path(path).read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


def launcher(task: Task, entry: str) -> Callable[[], int]:
    """A function that runs the task on another machine; it travels by value and finds this package there.

    Args:
        task: What to run.
        entry: What runs it, "package.module:function".
    """
    paths, folder = [path or str(Path.cwd()) for path in sys.path], str(Path.cwd())
    carried = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    fields = asdict(
        task
    )  # plain values: this package is not on the path yet when the function arrives

    def launch() -> int:
        import os
        import sys

        sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
        os.environ.update(carried)
        if os.path.isdir(folder):  # noqa: PTH112  nothing from outside this function is at hand here
            os.chdir(folder)
        from src.sweep.executors import base as process

        return process.run_logged(process.task_from(fields), entry)

    return launch


def task_from(fields: Mapping[str, Any]) -> Task:
    """The task whose fields (`dataclasses.asdict`) have travelled as plain values."""
    return Task(**{**fields, "slot": Slot(**fields["slot"])})


def _take(slot: Slot) -> None:
    if slot.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = (
            slot.device
        )  # CUDA reads it when it starts, which it has not yet
    if slot.threads is not None:
        import torch

        torch.set_num_threads(slot.threads)


def _obey_sigterm() -> None:
    def terminate(signum: int, frame: FrameType | None) -> None:
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # asked twice, a trial still closes its records in peace
        raise SystemExit(TERMINATED)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)


log = logging.getLogger(__name__)
_SCANCEL_SECONDS = 60.0


def note(cluster: str, job_id: str, folder: Path) -> dict[str, Any]:
    """What is needed to cancel a job later, as plain values.

    Args:
        cluster: "slurm", or "local" for a process of this machine.
        job_id: Slurm's, or the number of the process.
        folder: Where submitit keeps the job's files.
    """
    return {"cluster": cluster, "id": job_id, "folder": str(folder), "host": socket.gethostname()}


def cancel(job: Mapping[str, Any]) -> bool:
    """Cancel a job, wherever it stands; one that has ended is left alone.

    Args:
        job: From `note`.

    Returns:
        Whether something was there to be cancelled; of a cluster: whether it took the order. A
        cluster that does not answer is warned of, and nothing is raised: its job is bound to find
        its trial finished.
    """
    return _cancel_process(job) if job["cluster"] == "local" else _cancel_slurm(job)


def _cancel_slurm(job: Mapping[str, Any]) -> bool:
    command = ["scancel", str(job["id"])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SCANCEL_SECONDS, check=False
        )
        problem = (
            f"status {done.returncode}: {done.stderr.strip()[:200]}" if done.returncode else ""
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        log.warning(
            "job %s of an earlier owner may still be there: %s: %s",
            job["id"],
            " ".join(command),
            problem,
        )
    return not problem


def _cancel_process(job: Mapping[str, Any]) -> bool:
    if job["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(job["id"]))
        words = " ".join(process.cmdline())
        if (
            "submitit" not in words or job["folder"] not in words
        ):  # the number has gone to another process
            return False
        process.send_signal(signal.SIGTERM)  # passed on to the trial
    except psutil.Error:
        return False
    return True


NO_GPU = ""  # as CUDA_VISIBLE_DEVICES: the trial sees none


def local_slots(
    n_jobs: int | None,
    devices: Literal["auto"] | Sequence[int | str] | None,
    trials_per_device: int,
    threads: Literal["auto"] | int | None,
) -> list[Slot]:
    """The slots of this machine, as it is now.

    Args:
        n_jobs: How many trials at once; None: as many as the GPUs take, 1 without a GPU.
        devices: Ids of GPUs as CUDA_VISIBLE_DEVICES takes them; "auto": all that are visible; None
            or empty: none, the trials run on the CPU.
        trials_per_device: How many trials share a GPU.
        threads: CPU threads a trial; "auto": the usable cores, shared out; None: torch's choice.

    Raises:
        ConfigError: An impossible number, or a GPU that is not there.
    """
    visible = (
        visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"), gpu_count()) if devices else []
    )
    return make_slots(
        n_jobs, chosen_devices(devices, visible), trials_per_device, threads, usable_cores()
    )


def make_slots(
    n_jobs: int | None,
    devices: Sequence[str] | None,
    trials_per_device: int,
    threads: Literal["auto"] | int | None,
    cores: int,
) -> list[Slot]:
    """Share devices and cores out.

    Args:
        n_jobs: How many trials at once; None: as many as the devices take, 1 without a device.
        devices: Ids of GPUs; empty: there is none; None: the trials must not see one.
        trials_per_device: How many trials share a GPU.
        threads: CPU threads a trial; "auto": cores / slots; None: torch's choice.
        cores: That can be used.

    Returns:
        Neighbouring slots lie on different devices, so that few trials spread over all of them.

    Raises:
        ConfigError: A number below 1, or more trials at once than the devices take.
    """
    for key, value in (
        ("n_jobs", n_jobs),
        ("trials_per_device", trials_per_device),
        ("threads", threads),
    ):
        if isinstance(value, int) and value < 1:
            raise ConfigError(key, f"must be at least 1, but got {value}")
    room = len(devices or ()) * trials_per_device
    count = n_jobs or room or 1
    if devices and count > room:
        raise ConfigError(
            "n_jobs",
            f"must be at most {room} (GPUs: {len(devices)}, trials_per_device: {trials_per_device}), but got {n_jobs}; "
            "raise trials_per_device, or set devices=null for the CPU",
        )
    share = max(1, cores // count) if threads == "auto" else threads
    absent = NO_GPU if devices is None else None
    return [
        Slot(number, devices[number % len(devices)] if devices else absent, share)
        for number in range(count)
    ]


def chosen_devices(
    devices: Literal["auto"] | Sequence[int | str] | None, visible: Sequence[str]
) -> Sequence[str] | None:
    """The GPUs that the trials use, None if they must not use any.

    Args:
        devices: What the user asks for.
        visible: Ids of the GPUs that this process may use.

    Raises:
        ConfigError: One is asked for that is not visible, or twice.
    """
    if not devices:
        return None
    if devices == "auto":
        return visible
    if isinstance(devices, str):
        raise ConfigError("devices", f"must be auto, null or a list of GPU ids, but got {devices}")
    chosen = [str(device) for device in devices]
    if len(set(chosen)) < len(chosen):
        raise ConfigError(
            "devices", f"names a GPU twice: {', '.join(chosen)}; set trials_per_device instead"
        )
    unknown = [device for device in chosen if device not in visible]
    if unknown:
        there = f"visible are {', '.join(visible)}" if visible else "no GPU is visible"
        raise ConfigError("devices", f"GPU {unknown[0]} cannot be used here, {there}")
    return chosen


def visible_devices(variable: str | None, count: int) -> list[str]:
    """Ids of the GPUs that a process sees.

    Args:
        variable: The value of CUDA_VISIBLE_DEVICES, None if it is not set.
        count: How many the process sees.
    """
    if variable is None:
        return [str(number) for number in range(count)]
    # CUDA reads the ids up to the first that does not exist; `count` already knows where that is
    return [name.strip() for name in variable.split(",") if name.strip()][:count]


def gpu_count() -> int:
    """How many GPUs this process sees, without starting CUDA in it.

    torch asks the driver's management library (NVML), which opens no device. Even where it has to
    ask CUDA itself, the trials do not suffer: they descend from the fork server, which is a process
    of its own, and not from this one.
    """
    import torch

    return torch.cuda.device_count()


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the time that its control group (a container's) gets."""
    affine = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota = cores_of_quota(Path("/sys/fs/cgroup/cpu.max").read_text())
    except OSError:
        quota = None
    return max(1, min(affine, math.ceil(quota))) if quota else affine


def cores_of_quota(text: str) -> float | None:
    """How many cores' time the text of a control group's `cpu.max` grants, None if there is no limit."""
    granted, _, period = text.strip().partition(" ")
    return (
        int(granted) / int(period)
        if granted.isdigit() and period.isdigit() and int(period)
        else None
    )


VARIABLE = (
    "PARETODERM_PRELOAD"  # names of modules; only a fork server of ours has it in its environment
)
MODULES = (
    "src",  # first: it lets torchvision's operators be registered in peace
    "torch",
    "torchvision",
    "torch.utils.data",
    "torch.profiler",
    "pytorch_lightning",
    "torchmetrics",
    "timm",
    "fvcore.nn",
    "hydra",
    "hydra.core.hydra_config",
    "omegaconf",
    "optuna",
    "optuna.storages._rdb.storage",
    "optuna.storages._rdb.models",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.dialects.postgresql",
    "psycopg",
    "alembic.command",
    "src.tracking.run",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "fsspec.implementations.chained",
    "mlflow.store.artifact.local_artifact_repo",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "pandas",
    "pandas.io.formats.csvs",
    "pyarrow.pandas_compat",
    "email.policy",
    "email.contentmanager",
    "PIL.JpegImagePlugin",
    "sklearn.metrics",
    "sklearn.model_selection",
    "kornia.augmentation",
    "src.sweep.executors.base",
    "src.sweep.samplers",
    "src.sweep.pruners",
    "src.sweep.pruners",
    "src.training.schedules",
    *(
        f"src.{package}.{file.stem}"
        for package in ("data", "losses", "models")
        for file in sorted((Path(__file__).parents[2] / package).glob("*.py"))
    ),
)
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def become_fork_server(modules: list[str]) -> None:
    """Import the modules; one that is missing is left to the trial that needs it.

    Args:
        modules: Dotted names; "package.module:function" is called as well.
    """
    # Ctrl+C and a closed terminal are the owner's affair: it ends the trials in order
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.setsid()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = (
        "1"  # so that `torch.cuda.is_available()` starts no CUDA here
    )
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in modules:
        module, _, function = name.partition(":")
        with contextlib.suppress(Exception):
            imported = importlib.import_module(module)
            if function:
                getattr(imported, function)()
    gc.collect()
    gc.freeze()  # the collector of a trial does not walk, and so copy, what all share
    sys.stdout.flush()
    sys.stderr.flush()


if VARIABLE in os.environ:
    become_fork_server(os.environ.pop(VARIABLE).split(","))
