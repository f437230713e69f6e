"""Trials as jobs of a Slurm cluster, by submitit; `cluster=local` runs them on this machine."""

import contextlib
import importlib.util
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from src.core.errors import DependencyError, UserError
from src.sweep.executors import base
from src.sweep.executors.base import ENTRY, Executor, plain_slots
from src.sweep.records import EndedTask, Task

# submitit looks for files; it asks Slurm itself once a minute.
_POLL_SECONDS = {"slurm": 1.0, "local": 0.1}
# A shared disk shows the result file some seconds late.
_LATE_SECONDS = {"slurm": 15.0, "local": 0.5}


class SlurmExecutor(Executor):
    """Submits each trial as a job. The nodes must reach its folder and the study's storage.

    Args:
        n_jobs: How many jobs wait or run at once.
        cluster: "slurm", or "local" to try the jobs on this machine.
        folder: Where submitit keeps its files, on a shared disk; None: `submitit` in the trial's
            folder.
        partition: The partition; None: the cluster's default.
        timeout_min: Minutes after which Slurm ends a job.
        mem_gb: Memory of a job; None: the cluster's default.
        cpus_per_task: Cores of a job; also its torch threads.
        gpus_per_node: GPUs of a job.
        setup: Shell commands before a trial, such as "module load cuda".
        options: More of submitit's parameters, such as `slurm_account`.
        entry: What runs a trial, "package.module:function"; called with the task.

    Raises:
        DependencyError: submitit is not installed.
        UserError: This machine has no Slurm.
        ConfigError: An impossible number.
    """

    queues = True

    def __init__(
        self,
        n_jobs: Annotated[int, Ge(1)] = 4,
        cluster: Literal["slurm", "local"] = "slurm",
        folder: str | None = None,
        partition: str | None = None,
        timeout_min: Annotated[int, Ge(1)] = 240,
        mem_gb: float | None = None,
        cpus_per_task: Annotated[int, Ge(1)] = 4,
        gpus_per_node: Annotated[int, Ge(0)] = 0,
        setup: Sequence[str] = (),
        options: dict[str, Any] | None = None,
        entry: str = ENTRY,
    ) -> None:
        super().__init__(plain_slots(n_jobs, cpus_per_task))
        if importlib.util.find_spec("submitit") is None:
            way = "pip install -e '.[slurm]'"
            raise DependencyError(f"executor=slurm needs submitit, which is not installed: {way}")
        if cluster == "slurm":
            import submitit

            if submitit.SlurmExecutor.affinity() < 0:
                problem = "this machine has no Slurm (srun is not found)"
                raise UserError(f"executor=slurm: {problem}; use executor=local, or ray")
        self._cluster = cluster
        self._folder = folder
        self._entry = entry
        parameters = {
            "slurm_partition": partition,
            "timeout_min": timeout_min,
            "mem_gb": mem_gb,
            "cpus_per_task": cpus_per_task,
            "gpus_per_node": gpus_per_node or None,
            "slurm_setup": list(setup) or None,
            **(options or {}),
        }
        self._parameters = {name: value for name, value in parameters.items() if value is not None}
        self._jobs: dict[int, Any] = {}  # by slot number
        self._done_since: dict[int, float] = {}  # by slot number: when the job was first done

    def _start(self, task: Task) -> None:
        import submitit

        submitter = submitit.AutoExecutor(folder=self._files(task), cluster=self._cluster)
        submitter.update_parameters(name=f"trial-{task.number}", **self._parameters)
        try:
            self._jobs[task.slot.number] = submitter.submit(base.launcher(task, self._entry))
        except submitit.core.utils.FailedSubmissionError as error:
            raise OSError(f"Slurm refused the job: {' '.join(str(error).split())[:300]}") from error

    def _files(self, task: Task) -> Path:
        return Path(self._folder) if self._folder else Path(task.folder) / "submitit"

    def job(self, task: Task) -> dict[str, Any] | None:
        """The job's id, with what else is needed to cancel it."""
        job = self._jobs.get(task.slot.number)
        if job is None:
            return None
        return base.note(self._cluster, str(job.job_id), self._files(task))

    def _gone(self) -> list[EndedTask]:
        ended = []
        for number, job in list(self._jobs.items()):
            if not job.done():
                continue
            since = self._done_since.setdefault(number, time.monotonic())
            is_late = time.monotonic() - since > _LATE_SECONDS[self._cluster]
            if is_late or job.paths.result_pickle.exists():
                del self._jobs[number], self._done_since[number]
                ended.append(self._ended(number, job))
        return ended

    def _ended(self, number: int, job: Any) -> EndedTask:
        task = self._running[number]
        if not job.paths.result_pickle.exists():
            stopped = "stopped: " if number in self._deadlines else ""
            note = f"the job {job.job_id} ended without a result ({str(job.state).lower()})"
            return EndedTask(task, None, stopped + note)
        try:
            code = int(job.result())
        except Exception as error:  # raised by the job's process outside of the trial
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            return EndedTask(task, None, f"the job {job.job_id} failed: {last[:200]}")
        return EndedTask(task, code, base.ending(code))

    def _pause(self, seconds: float) -> None:
        time.sleep(max(0.0, min(seconds, _POLL_SECONDS[self._cluster])))

    def _ask_to_end(self, task: Task, grace: float) -> None:
        job = self._jobs.get(task.slot.number)
        if job is not None and self._cluster == "local":
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)  # submitit passes it on to the trial
        elif job is not None:
            job.cancel()  # SIGTERM, and SIGKILL after the cluster's KillWait

    def _kill(self, task: Task) -> None:
        if task.slot.number in self._jobs:
            self._jobs[task.slot.number].cancel()
