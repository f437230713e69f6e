"""Trials on this machine, forked from a process with all imports done: each starts in 0.1 s."""

import atexit
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Annotated, Literal

import joblib
from annotated_types import Ge, Le

import src
from src.sweep.executors import base
from src.sweep.records import EndedTask, Task
from src.tracking.store import environment

_RESTART_PAUSES = (0.1, 0.5)  # s, between attempts to start a trial
_LOST = 255  # multiprocessing's exit code when the fork server is gone
_ORPHAN_SECONDS = 15.0  # that a trial gets to close its records when its scheduler is gone


class LocalExecutor(base.Executor):
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

    Raises:
        ConfigError: More trials than the GPUs take, or a GPU that is not there.
    """

    def __init__(
        self,
        n_jobs: Annotated[int, Ge(1)] | None = None,
        devices: Literal["auto"] | list[int | str] | None = "auto",
        trials_per_device: Annotated[int, Ge(1)] = 1,
        threads: Literal["auto"] | Annotated[int, Ge(1), Le(1024)] | None = "auto",
        preload: Sequence[str] | None = (),
    ) -> None:
        visible: list[str] = []
        if devices:
            import torch

            # Asks the driver's management library, which starts no CUDA in this process.
            count = torch.cuda.device_count()
            visible = base.visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"), count)
        options = n_jobs, devices, trials_per_device, threads, visible
        slots = base.local_slots(*options, cores=joblib.cpu_count())  # knows a container's quota
        super().__init__(slots)
        self._modules = None if preload is None else [*base.MODULES, *preload]
        self._context = multiprocessing.get_context("forkserver")
        self._oom_kills = _oom_kills()
        # Without `close` the interpreter would wait for all trials at its end.
        atexit.register(_kill_all, self._handles.values())

    def warm_up(self) -> None:
        """Start the fork server, which imports in the background."""
        self._context.set_forkserver_preload([base.__name__] if self._modules else [])
        # The fork server gets this process's sys.path only after it has preloaded (Python < 3.14).
        paths = [str(Path(src.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        if self._modules:
            variables[base.PRELOAD] = ",".join(self._modules)
        with environment(**variables):
            forkserver.ensure_running()

    def _start(self, task: Task) -> ForkServerProcess:
        Path(task.folder).mkdir(parents=True, exist_ok=True)
        arguments = (task, dict(os.environ))
        main = sys.modules["__main__"]
        for pause in (*_RESTART_PAUSES, None):
            self.warm_up()
            child = self._context.Process(target=_trial, args=arguments, name="trial")
            try:
                # A child would import and so execute the main script, and does not need it.
                sys.modules["__main__"] = types.ModuleType("__main__")
                child.start()
                break
            except (OSError, EOFError):
                if pause is None:
                    raise
                time.sleep(pause)  # a fork server that was killed just now may seem alive
            finally:
                sys.modules["__main__"] = main
        return child

    def _gone(self) -> list[EndedTask]:
        sentinels = {child.sentinel: number for number, child in self._handles.items()}
        ready = multiprocessing.connection.wait(list(sentinels), 0)
        return [self._ended(sentinels[sentinel]) for sentinel in ready]

    def _ended(self, number: int) -> EndedTask:
        task, child = self._running[number], self._handles.pop(number)
        child.join()
        code, pid = child.exitcode, child.pid
        lost = False
        if code == _LOST:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 0)
                lost = True  # the process is still there: nobody can tell how it ends
        _signal_group(pid, signal.SIGKILL)  # its children, such as data loaders
        child.close()
        if lost:
            return EndedTask(task, None, "killed: the process that starts the trials was gone")
        before, self._oom_kills = self._oom_kills, _oom_kills()
        return EndedTask(task, code, base.ending(code, self._oom_kills > before))

    def _pause(self, seconds: float) -> None:
        sentinels = [child.sentinel for child in self._handles.values()]
        multiprocessing.connection.wait(sentinels, seconds)

    def _ask_to_end(self, handle: ForkServerProcess) -> None:
        if handle.pid is not None and handle.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(handle.pid, signal.SIGTERM)

    def _kill(self, handle: ForkServerProcess) -> None:
        _kill_all([handle])


def _trial(task: Task, environment: Mapping[str, str]) -> None:
    """The main function of a trial's process."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_end_with_scheduler, daemon=True).start()
    sys.exit(base.run(task))


def _end_with_scheduler() -> None:
    """End this process and its children when the scheduler is gone: by SIGTERM, then by SIGKILL."""
    scheduler = multiprocessing.parent_process()
    assert scheduler is not None
    multiprocessing.connection.wait([scheduler.sentinel])
    print("the process that runs the study is gone: this trial ends", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_ORPHAN_SECONDS)
    os.killpg(0, signal.SIGKILL)


def _kill_all(children: Iterable[ForkServerProcess]) -> None:
    for child in children:
        if child.pid is not None and child.exitcode is None:
            _signal_group(child.pid, signal.SIGKILL)
            child.kill()  # in case it has no group yet


def _signal_group(leader: int, signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signum)


def _oom_kills() -> int:
    """Processes of this control group or machine that the kernel has killed for lack of memory."""
    for path in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        with contextlib.suppress(OSError):
            for line in Path(path).read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0
