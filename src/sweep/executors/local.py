"""Trials on this machine, forked from a process with all imports done: each starts in 0.1 s."""

import atexit
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

import src
from src.sweep.executors import base
from src.sweep.executors.base import ENTRY, Executor, local_slots
from src.sweep.records import EndedTask, Task

_RESTART_PAUSES = (0.1, 0.5)  # s, between attempts to start a trial
_LOST = 255  # multiprocessing's exit code when the fork server is gone


class LocalExecutor(Executor):
    """Runs each trial in a process forked from a fork server.

    A trial's process leads its own session: Ctrl+C does not reach it, and its children end with it.
    It ends itself when the scheduler is gone, even if that was killed.

    Args:
        n_jobs: Trials at once; None: as many as the GPUs take, 1 without a GPU.
        devices: Ids of GPUs, "auto" for all that are visible, None or empty for the CPU.
        trials_per_device: How many trials share a GPU.
        threads: CPU threads of a trial; "auto": the usable cores, shared; None: torch's default.
        preload: Modules that the fork server imports besides `src.sweep.executors.base.MODULES`;
            None: nothing is imported ahead. There is one fork server in a process, so the first
            executor decides.
        entry: What runs a trial, "package.module:function"; called with the task.

    Raises:
        ConfigError: An impossible number, or a GPU that is not there.
    """

    def __init__(
        self,
        n_jobs: Annotated[int, Ge(1)] | None = None,
        devices: Literal["auto"] | list[int | str] | None = "auto",
        trials_per_device: Annotated[int, Ge(1)] = 1,
        threads: Literal["auto"] | Annotated[int, Ge(1)] | None = "auto",
        preload: Sequence[str] | None = (),
        entry: str = ENTRY,
    ) -> None:
        super().__init__(local_slots(n_jobs, devices, trials_per_device, threads))
        self._entry = entry
        self._modules = None if preload is None else [*base.MODULES, *preload]
        self._context = multiprocessing.get_context("forkserver")
        self._processes: dict[int, ForkServerProcess] = {}  # by slot number
        self._oom_kills = base.oom_kills()
        # Without `close` the interpreter would wait for all trials at its end.
        atexit.register(_kill_all, self._processes)

    def warm_up(self) -> None:
        """Start the fork server, which imports in the background."""
        preload = [base.__name__] if self._modules else []
        with base.preloading(Path(src.__file__).resolve().parent.parent, self._modules):
            self._context.set_forkserver_preload(preload)
            forkserver.ensure_running()

    def _start(self, task: Task) -> None:
        Path(task.folder).mkdir(parents=True, exist_ok=True)
        arguments = (task, self._entry, dict(os.environ))
        for pause in (*_RESTART_PAUSES, None):
            self.warm_up()
            child = self._context.Process(target=_trial, args=arguments, name="trial")
            try:
                with _without_main_module():
                    child.start()
                break
            except (OSError, EOFError):
                if pause is None:
                    raise
                time.sleep(pause)  # a fork server that was killed just now may seem alive
        self._processes[task.slot.number] = child

    def _gone(self) -> list[EndedTask]:
        sentinels = {child.sentinel: number for number, child in self._processes.items()}
        ready = multiprocessing.connection.wait(list(sentinels), 0)
        return [self._ended(sentinels[sentinel]) for sentinel in ready]  # type: ignore[index]

    def _ended(self, number: int) -> EndedTask:
        task, child = self._running[number], self._processes.pop(number)
        child.join()
        code, pid = child.exitcode, child.pid
        assert code is not None
        assert pid is not None
        lost = False
        if code == _LOST:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 0)
                lost = True  # the process is still there: nobody can tell how it ends
        _signal_group(pid, signal.SIGKILL)  # its children, such as data loaders
        child.close()
        if lost:
            return EndedTask(task, None, "killed: the process that starts the trials was gone")
        killed = base.oom_kills() - self._oom_kills
        self._oom_kills += killed
        return EndedTask(task, code, base.ending(code, killed))

    def _pause(self, seconds: float) -> None:
        sentinels = [child.sentinel for child in self._processes.values()]
        multiprocessing.connection.wait(sentinels, max(0.0, seconds))

    def _ask_to_end(self, task: Task, grace: float) -> None:
        child = self._processes.get(task.slot.number)
        if child is not None and child.pid is not None and child.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)

    def _kill(self, task: Task) -> None:
        child = self._processes.get(task.slot.number)
        if child is not None:
            _kill_all({task.slot.number: child})


def _trial(task: Task, entry: str, environment: Mapping[str, str]) -> None:
    """The main function of a trial's process."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environment)
    base.log_to(Path(task.folder) / base.LOG)
    owner = multiprocessing.parent_process()
    assert owner is not None
    sentinel = owner.sentinel
    base.end_with(lambda: multiprocessing.connection.wait([sentinel]))
    sys.exit(base.run(task, entry))


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide the main script: a child would import and so execute it, and does not need it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _kill_all(processes: dict[int, ForkServerProcess]) -> None:
    for child in processes.values():
        if child.pid is not None and child.exitcode is None:
            _signal_group(child.pid, signal.SIGKILL)
            child.kill()  # in case it has no group yet


def _signal_group(leader: int, signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signum)
