"""Jobs that outlive their owner: noted in the study when they are submitted, cancelled by the owner that comes next.

An owner that is killed takes its own processes along, but not what it has handed to a cluster: those jobs would go on,
or begin hours later, for trials that have been started again meanwhile.
"""

import logging
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

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
        Whether something was there to be cancelled; of a cluster: whether it took the order. A cluster that does not
        answer is warned of, and nothing is raised: its job is bound to find its trial finished.
    """
    return _cancel_process(job) if job["cluster"] == "local" else _cancel_slurm(job)


def _cancel_slurm(job: Mapping[str, Any]) -> bool:
    command = ["scancel", str(job["id"])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SCANCEL_SECONDS, check=False)
        problem = f"status {done.returncode}: {done.stderr.strip()[:200]}" if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        log.warning("job %s of an earlier owner may still be there: %s: %s", job["id"], " ".join(command), problem)
    return not problem


def _cancel_process(job: Mapping[str, Any]) -> bool:
    if job["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(job["id"]))
        words = " ".join(process.cmdline())
        if "submitit" not in words or job["folder"] not in words:  # the number has gone to another process
            return False
        process.send_signal(signal.SIGTERM)  # passed on to the trial
    except psutil.Error:
        return False
    return True
