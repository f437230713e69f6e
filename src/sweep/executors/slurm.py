"""Trials as jobs of a Slurm cluster, by submitit; `cluster=local` runs them on this machine."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from annotated_types import Ge

from src.core.errors import UserError, require
from src.sweep.executors import base
from src.sweep.records import EndedTask, Task
from src.tracking.store import environment

log = logging.getLogger(__name__)
# submitit looks for files; it asks Slurm itself once a minute.
_POLL_SECONDS = {"slurm": 1.0, "local": 0.1}
# A shared disk shows the result file some seconds late.
_LATE_SECONDS = {"slurm": 15.0, "local": 0.5}
_SCANCEL_SECONDS = 60.0


class SlurmExecutor(base.Executor):
    """Submits each trial as a job. The nodes must reach its folder and the study's storage.

    Args:
        n_jobs: How many jobs wait or run at once.
        cluster: "slurm", or "local" to try the jobs on this machine.
        folder: Where submitit keeps its files, on a shared disk; None: `submitit` in the trial's
            folder.
        partition: None: the cluster's default, as for `mem_gb`.
        timeout_min: Minutes after which Slurm ends a job.
        cpus_per_task: Cores of a job; also its torch threads.
        setup: Shell commands before a trial, such as "module load cuda".
        options: More of submitit's parameters, such as `slurm_account`.

    Raises:
        DependencyError: submitit is not installed.
        UserError: This machine has no Slurm.
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
    ) -> None:
        super().__init__(base.plain_slots(n_jobs, cpus_per_task))
        require("slurm", "submitit")
        if cluster == "slurm":
            import submitit

            if submitit.SlurmExecutor.affinity() < 0:
                problem = "this machine has no Slurm (srun is not found)"
                raise UserError(f"executor=slurm: {problem}; use executor=local, or ray")
        self._cluster = cluster
        self._folder = folder
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
        self._done_since: dict[str, float] = {}  # job id -> when it was first done

    def _start(self, task: Task) -> Any:
        import submitit

        submitter = submitit.AutoExecutor(folder=self._files(task), cluster=self._cluster)
        submitter.update_parameters(name=f"trial-{task.number}", **self._parameters)
        try:
            with environment(**{base.TASK: base.packed(task)}):
                return submitter.submit(base.launcher())
        except submitit.core.utils.FailedSubmissionError as error:
            raise OSError(f"Slurm refused the job: {' '.join(str(error).split())[:300]}") from error

    def _files(self, task: Task) -> Path:
        return Path(self._folder) if self._folder else Path(task.folder) / "submitit"

    def job(self, task: Task) -> dict[str, Any] | None:
        """What `cancel` needs to know about a job, as plain values."""
        job = self._handles.get(task.slot.number)
        if job is None:
            return None
        files, host = str(self._files(task)), socket.gethostname()
        return {"cluster": self._cluster, "id": str(job.job_id), "folder": files, "host": host}

    def _gone(self) -> list[EndedTask]:
        ended = []
        for number, job in self._handles.items():
            if not job.done():
                continue
            since = self._done_since.setdefault(job.job_id, time.monotonic())
            is_late = time.monotonic() - since > _LATE_SECONDS[self._cluster]
            if is_late or job.paths.result_pickle.exists():
                del self._done_since[job.job_id]
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
            return EndedTask(task, None, f"the job {job.job_id} failed: {base.last_line(error)}")
        return EndedTask(task, code, base.ending(code))

    def _pause(self, seconds: float) -> None:
        time.sleep(min(seconds, _POLL_SECONDS[self._cluster]))

    def _ask_to_end(self, handle: Any) -> None:
        if self._cluster == "local":
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(handle.job_id), signal.SIGTERM)  # submitit passes it on to the trial
        else:
            handle.cancel()  # SIGTERM, and SIGKILL after the cluster's KillWait

    def _kill(self, handle: Any) -> None:
        handle.cancel()


def cancel(job: Mapping[str, Any]) -> bool:
    """Cancel a job, queued or running; one that has ended is ignored.

    Args:
        job: From `SlurmExecutor.job`.

    Returns:
        Whether there was something to cancel; of a cluster: whether it accepted the command. A
        cluster that does not answer causes a warning only: its job will find its trial finished.
    """
    if job["cluster"] == "local":
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
    arguments = ["scancel", str(job["id"])]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": _SCANCEL_SECONDS}
    try:
        done = subprocess.run(arguments, check=False, **options)
        message = done.stderr.strip()[:200]
        problem = f"status {done.returncode}: {message}" if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        text = "job %s of an earlier session may still be there: %s: %s"
        log.warning(text, job["id"], " ".join(arguments), problem)
    return not problem
