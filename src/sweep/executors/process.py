"""What the process of a trial is, whoever started it: its log, its device, its signals, and how its end reads."""

import contextlib
import faulthandler
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from src.sweep.task import Slot, Task

LOG = "trial.log"
TERMINATED = 128 + signal.SIGTERM
_LAST_SECONDS = 15.0  # for a trial to close its records when its owner is gone


def run(task: Task, entry: str) -> int:
    """Run a trial in this process.

    Args:
        task: What to run.
        entry: What runs it, "package.module:function"; called with the task.

    Returns:
        The exit status: 0 if the entry returned, that of a SystemExit, 1 after an exception (its traceback is printed).
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
    fields = asdict(task)  # plain values: this package is not on the path yet when the function arrives

    def launch() -> int:
        import os
        import sys

        sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
        os.environ.update(carried)
        if os.path.isdir(folder):  # noqa: PTH112  nothing from outside this function is at hand here
            os.chdir(folder)
        from src.sweep.executors import process

        return process.run_logged(process.task_from(fields), entry)

    return launch


def task_from(fields: Mapping[str, Any]) -> Task:
    """The task whose fields (`dataclasses.asdict`) have travelled as plain values."""
    return Task(**{**fields, "slot": Slot(**fields["slot"])})


def _take(slot: Slot) -> None:
    if slot.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.device  # CUDA reads it when it starts, which it has not yet
    if slot.threads is not None:
        import torch

        torch.set_num_threads(slot.threads)


def _obey_sigterm() -> None:
    def terminate(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # asked twice, a trial still closes its records in peace
        raise SystemExit(TERMINATED)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)
