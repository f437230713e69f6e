"""Jobs that outlive their owner: submitit's own local jobs, and a `scancel` that writes down what it is told."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from benchmarks.sweep import stubs
from benchmarks.sweep.faults import is_alive
from benchmarks.sweep.harness import STUDY, ScriptedExecutor, Setup, opened
from src.sweep.executors import base
from src.sweep.executors.slurm import SlurmExecutor
from src.sweep.records import Task, TrialOutcome
from src.sweep.storage import open_storage
from src.tracking.store import Store

LONG = 60.0  # seconds that nothing here takes


def wait_until(true: Callable[[], object]) -> None:
    until = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.02)


def pid(folder: str | Path) -> int:
    started = Path(folder) / "started"
    wait_until(lambda: started.exists() and started.read_text())
    return int(started.read_text().split()[0])


def jobs(storage: optuna.storages.BaseStorage) -> SlurmExecutor:
    pytest.importorskip("submitit")
    made = SlurmExecutor(n_jobs=2, cluster="local", cpus_per_task=1, entry="stubs:hang")
    made._places = [
        type(place)(place.number) for place in made._places
    ]  # no threads: stubs need no torch
    return made


def test_the_next_owner_cancels_the_jobs_of_one_that_was_killed(tmp_path: Path) -> None:
    Store(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", experiment="stubs", folder=tmp_path).open()
    setup = Setup(tmp_path, ("a=1,2", "b=4,5"))
    with opened(setup, jobs) as owner:
        owner._take_stock()
        started = [owner._next(), owner._next()]
        numbers = [pid(running.task.folder) for running in started if running is not None]
        owner.executor._running.clear()  # as by kill -9: nobody stops the jobs
    assert len(numbers) == 2
    assert all(is_alive(number) for number in numbers)

    def complete(task: Task) -> tuple[TrialOutcome, int]:
        return TrialOutcome("complete", metrics=stubs.expected(task.payload["cell"])), 0

    with opened(setup, lambda storage: ScriptedExecutor(storage, complete)) as owner:
        standing = owner.run()
    wait_until(lambda: not any(is_alive(number) for number in numbers))
    assert (standing.counted, standing.counts["fail"]) == (4, 0)
    storage = open_storage(setup.url)
    trials = storage.get_all_trials(storage.get_study_id_from_name(STUDY))
    assert [trial.state for trial in trials[:2]] == [TrialState.FAIL] * 2
    assert all(not base.cancel(trial.user_attrs["job"]) for trial in trials[:2])  # they are gone
    assert not any("job" in trial.user_attrs for trial in trials[2:])


@pytest.fixture
def sleeper() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "submitit"])
    wait_until(psutil.Process(process.pid).cmdline)  # empty for a moment after Popen has returned
    yield process.pid
    process.kill()
    process.wait()


def test_a_process_that_only_has_the_number_of_a_job_is_left_alone(
    sleeper: int, tmp_path: Path
) -> None:
    assert not base.cancel(base.note("local", str(sleeper), tmp_path))
    assert is_alive(sleeper)


def test_a_process_of_another_machine_is_left_alone(sleeper: int) -> None:
    own = base.note("local", str(sleeper), Path("time"))  # in its command line
    assert own["host"] == socket.gethostname()
    assert not base.cancel(own | {"host": "another"})
    assert is_alive(sleeper)
    assert base.cancel(own)
    wait_until(lambda: not is_alive(sleeper))


@pytest.mark.parametrize("status", [0, 1])
def test_slurm_is_told_the_number_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    command = tmp_path / "scancel"
    command.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/told\necho Invalid job id >&2\nexit {status}\n'
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert base.cancel(base.note("slurm", "4711", tmp_path)) is (status == 0)
    assert (tmp_path / "told").read_text() == "4711\n"
    assert ("4711 of an earlier owner may still be there" in caplog.text) is (status == 1)
    assert ("Invalid job id" in caplog.text) is (status == 1)


def test_a_machine_without_slurm_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not base.cancel(base.note("slurm", "4711", tmp_path))
    assert "scancel 4711" in caplog.text
