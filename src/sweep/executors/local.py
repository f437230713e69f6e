"""Trials on this machine, forked from a process that has imported everything: each starts in a tenth of a second."""

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

_RESTART_PAUSES = (0.1, 0.5)  # s, between tries to start a trial
_LOST = 255  # what multiprocessing says when the fork server cannot tell the exit code any more


class LocalExecutor(Executor):
    """Runs each trial in a process forked from a fork server.

    A trial's process leads a session of its own: Ctrl+C does not reach it, and when it ends its
    children end. It ends itself when the owner is gone, even if that was killed.

    Args:
        n_jobs: How many trials at once; None: as many as the GPUs take, 1 without a GPU.
        devices: Ids of GPUs, "auto" for all that are visible, None or empty for the CPU.
        trials_per_device: How many trials share a GPU.
        threads: CPU threads a trial; "auto": the usable cores, shared out; None: torch's choice.
        preload: Modules that the fork server imports besides `src.sweep.executors.base.MODULES`;
            None: nothing is imported ahead. There is one fork server a process, so the first
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
        self._processes: dict[int, ForkServerProcess] = {}  # by slot
        self._oom_kills = base.oom_kills()
        # else the interpreter would wait for all trials when it ends without `close`
        atexit.register(_kill_all, self._processes)

    def warm_up(self) -> None:
        """Start the fork server, which imports in the background."""
        with _fork_server_settings(self._modules):
            self._context.set_forkserver_preload(
                ["src.sweep.executors.base"] if self._modules else []
            )
            forkserver.ensure_running()

    def _start(self, task: Task) -> None:
        Path(task.folder).mkdir(parents=True, exist_ok=True)
        for pause in (*_RESTART_PAUSES, None):
            self.warm_up()
            child = self._context.Process(
                target=_trial, args=(task, self._entry, dict(os.environ)), name="trial"
            )
            try:
                with _without_main_module():
                    child.start()
                break
            except (OSError, EOFError):
                if pause is None:
                    raise
                time.sleep(pause)  # a fork server that was killed just now may still look alive
        self._processes[task.slot.number] = child

    def _gone(self) -> list[EndedTask]:
        sentinels = {child.sentinel: number for number, child in self._processes.items()}
        ready = multiprocessing.connection.wait(list(sentinels), 0)
        return [self._bury(sentinels[sentinel]) for sentinel in ready]  # type: ignore[index]

    def _bury(self, number: int) -> EndedTask:
        child = self._processes.pop(number)
        child.join()
        code = child.exitcode
        assert child.pid is not None
        lost = code == _LOST and _exists(child.pid)
        _signal_group(
            child.pid, signal.SIGKILL
        )  # what it leaves behind, such as workers that load images
        child.close()
        if lost:
            return EndedTask(
                self._running[number], None, "killed: the process that starts the trials was gone"
            )
        assert code is not None
        killed = base.oom_kills() - self._oom_kills
        self._oom_kills += killed
        return EndedTask(self._running[number], code, base.ending(code, killed))

    def _pause(self, seconds: float) -> None:
        multiprocessing.connection.wait(
            [child.sentinel for child in self._processes.values()], max(0.0, seconds)
        )

    def _ask_to_end(self, task: Task, grace: float) -> None:
        child = self._processes.get(task.slot.number)
        if child is not None and child.pid is not None and child.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)

    def _kill(self, task: Task) -> None:
        child = self._processes.get(task.slot.number)
        if child is not None:
            _kill_child(child)


def _trial(task: Task, entry: str, environment: Mapping[str, str]) -> None:
    """The main function of a trial's process."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    base.adopt_environment(environment)
    base.log_to(Path(task.folder) / base.LOG)
    owner = multiprocessing.parent_process()
    assert owner is not None
    sentinel = owner.sentinel
    base.end_with(lambda: multiprocessing.connection.wait([sentinel]))
    sys.exit(base.run(task, entry))


@contextlib.contextmanager
def _fork_server_settings(modules: list[str] | None) -> Iterator[None]:
    """What a fork server that is started meanwhile finds in its environment: where we are and what to import.

    It does not get our `sys.path` before its preloading is done (Python 3.11 to 3.13).
    """
    root = str(Path(src.__file__).resolve().parent.parent)
    ours = {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    if modules:
        ours[base.VARIABLE] = ",".join(modules)
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide the owner's script: a child would import it, with all that it does on import, and never needs it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _kill_all(processes: dict[int, ForkServerProcess]) -> None:
    for child in processes.values():
        _kill_child(child)


def _kill_child(child: ForkServerProcess) -> None:
    if child.pid is not None and child.exitcode is None:
        _signal_group(child.pid, signal.SIGKILL)
        child.kill()  # should it not have made its group yet


def _signal_group(leader: int, signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signum)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
