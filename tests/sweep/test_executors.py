"""Executors: the contract of all, with real processes and jobs, and special cases."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copy
from typing import Any

import optuna
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState
from tiny import TINY

from benchmarks.sweep.faults import is_alive
from benchmarks.sweep.harness import STUDY, ScriptedExecutor, Setup, opened
from benchmarks.sweep.stubs import expected
from src import train
from src.core.config import check_arguments
from src.core.errors import ConfigError, DependencyError, UserError
from src.sweep.executors import base, slurm
from src.sweep.executors.base import Executor, local_slots
from src.sweep.executors.local import LocalExecutor
from src.sweep.executors.ray import RayExecutor
from src.sweep.executors.slurm import SlurmExecutor
from src.sweep.records import JOB, OUTCOME, EndedTask, Slot, Task, TrialOutcome
from src.sweep.storage import open_storage
from src.tracking import read
from src.tracking.store import Store

ENTRY = "stubs:run"
LONG = 60.0  # seconds that nothing here takes, on the slowest machine
MEMORY = 80 * 2**20  # bytes of a Ray node's object store
TaskMaker = Callable[..., Task]
pytestmark = pytest.mark.usefixtures("own_fork_server")


@pytest.fixture
def task(tmp_path: Path) -> TaskMaker:
    def make(number: int, action: str, **payload: object) -> Task:
        folder = str(tmp_path / str(number))
        payload |= {"action": action}
        return Task("", "stubs", number, number, folder, "", payload, entry=ENTRY)

    return make


@pytest.fixture(scope="module")
def local_ray(module_patch: pytest.MonkeyPatch) -> Iterator[None]:
    """One Ray for all tests: starting it takes seconds. The executors leave it running."""
    module_patch.setenv("RAY_worker_niceness", "0")  # else its processes wait for all other tests
    if importlib.util.find_spec("ray") is None:  # imported, it would be too late for its token
        pytest.skip("Ray is not installed")
    keeper = RayExecutor(n_jobs=2, options={"object_store_memory": MEMORY, "num_cpus": 2})
    keeper.warm_up()
    yield
    keeper.close(0)


def light(executor: Executor) -> Executor:
    """Two slots without threads: the stubs need not import torch."""
    executor.warm_up()
    executor._slots = [Slot(0), Slot(1)]
    return executor


def local() -> LocalExecutor:
    made = LocalExecutor(n_jobs=2, devices=None, threads=2)
    made._modules = ["src", "torch", "stubs", "optuna"]
    return made


def submitit() -> Executor:
    pytest.importorskip("submitit")
    return light(SlurmExecutor(n_jobs=2, cluster="local", cpus_per_task=1))


@pytest.fixture(params=["local", "submitit", pytest.param("ray", marks=pytest.mark.slow)])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """An executor with two slots."""
    if request.param == "ray":
        request.getfixturevalue("local_ray")
        made = light(RayExecutor(n_jobs=2))
    else:
        made = local() if request.param == "local" else submitit()
    yield made
    made.close(0)


def wait(executor: Executor) -> list[EndedTask]:
    return executor.wait(LONG)


def log(task: Task) -> str:
    return (Path(task.folder) / "trial.log").read_text()


def wait_until(true: Callable[[], object]) -> None:
    until = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.02)


def pid(folder: Path | str) -> int:
    """Process of a stub, when it has written its note."""
    path = Path(folder) / "started"
    wait_until(lambda: path.exists() and path.read_text())
    return int(path.read_text())


class TestEveryExecutor:
    def test_ends_are_reported_and_logged(self, executor: Executor, task: TaskMaker) -> None:
        """In the same folder: each log is appended to the one before."""
        notes = {"succeed": (0, ""), "fail": (1, "ended with exit code 1")}
        notes["leave"] = (3, "ended with exit code 3")
        for action, (exitcode, note) in notes.items():
            submitted = executor.submit(task(0, action))
            assert wait(executor) == [EndedTask(submitted, exitcode, note)]
        text = log(submitted)
        assert {"a line", "another line"} < set(text.splitlines())
        assert re.search("a line.*Traceback.*ValueError: no such luck", text, re.DOTALL)
        executor.submit(task(1, "die"))
        [end] = wait(executor)
        assert end.exitcode in (None, -signal.SIGKILL)
        assert end.note

    def test_the_first_to_end_is_reported_while_the_other_runs(
        self, executor: Executor, task: TaskMaker, tmp_path: Path
    ) -> None:
        assert (executor.slots, executor.free()) == (2, 2)
        slow = executor.submit(task(1, "hang"))
        quick = executor.submit(task(2, "succeed"))
        assert {slow.slot.number, quick.slot.number} == {0, 1}
        assert executor.free() == 0
        with pytest.raises(RuntimeError, match="all 2 slots are taken"):
            executor.submit(task(3, "succeed"))
        assert [end.task for end in wait(executor)] == [quick]
        assert executor.running() == [slow]
        assert executor.wait(0.05) == executor.wait(0) == []
        again = executor.submit(task(3, "hang"))
        assert again.slot == quick.slot
        executor.stop(quick, grace=0)  # has ended: its successor in the slot is not stopped
        (tmp_path / "go").touch()
        ended = wait(executor)
        ended += wait(executor) if len(ended) < 2 else []
        assert sorted((end.task.number, end.exitcode) for end in ended) == [(1, 0), (3, 0)]

    def test_trials_are_stopped(self, executor: Executor, task: TaskMaker) -> None:
        """One ignores SIGTERM and is killed, the other is asked to end when all is closed."""
        deaf = executor.submit(task(0, "hang", deaf=True))
        polite = executor.submit(task(1, "hang"))
        numbers = [pid(submitted.folder) for submitted in (deaf, polite)]
        executor.stop(deaf, grace=0.5)
        [end] = wait(executor)
        assert (end.task, bool(end.note)) == (deaf, True)
        assert end.exitcode != 0
        # Ray may lose its request on a starved machine: then the trial is killed.
        [end] = executor.close(grace=LONG / 2)
        assert end.task == polite
        assert end.exitcode != 0
        wait_until(lambda: not any(map(is_alive, numbers)))
        assert executor.running() == []


@pytest.fixture
def two_local() -> Iterator[LocalExecutor]:
    made = local()
    yield made
    made.close(0)


class TestLocal:
    def test_process_of_a_trial(
        self, two_local: LocalExecutor, task: TaskMaker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for variable in ("one", None):
            if variable is None:
                monkeypatch.delenv("PARETODERM_TEST")
            else:
                monkeypatch.setenv("PARETODERM_TEST", variable)
            submitted = two_local.submit(task(variable, "describe"))
            assert [end.exitcode for end in wait(two_local)] == [0]
            facts = json.loads(log(submitted))
            assert facts["variable"] == variable
        assert (facts["device"], facts["threads"], facts["leads a session"]) == ("", 2, True)
        assert facts["path"] == os.environ.get("PYTHONPATH")
        assert {"torch", "optuna", "src.sweep.executors.base"} < set(facts["modules"])

    def test_modules_of_the_fork_server_exist(self) -> None:
        executor = LocalExecutor(preload=["a:b"])
        assert executor.slots >= 1
        modules = executor._modules or []
        assert modules == [*base.MODULES, "a:b"]
        names = {name if name.startswith("src.") else name.split(".")[0] for name in base.MODULES}
        assert [name for name in names if importlib.util.find_spec(name) is None] == []

    def test_ctrl_c_does_not_reach_a_trial(
        self, two_local: LocalExecutor, task: TaskMaker, tmp_path: Path
    ) -> None:
        submitted = two_local.submit(task(0, "hang"))
        os.kill(pid(submitted.folder), signal.SIGINT)
        assert two_local.wait(0.3) == []
        (tmp_path / "go").touch()
        assert wait(two_local) == [EndedTask(submitted, 0, "")]

    def test_children_of_a_killed_trial_are_killed(
        self, two_local: LocalExecutor, task: TaskMaker
    ) -> None:
        submitted = two_local.submit(task(0, "die_with_a_child"))
        assert wait(two_local) == [EndedTask(submitted, -9, "killed by signal 9 (SIGKILL)")]
        child = int((Path(submitted.folder) / "child").read_text())
        wait_until(lambda: not is_alive(child))

    def test_what_cannot_start_is_reported(self, task: TaskMaker, tmp_path: Path) -> None:
        executor = LocalExecutor(n_jobs=1, devices=None, threads=None)
        submitted = executor.submit(replace(task(0, ""), entry="no.such.module:main"))
        assert [end.exitcode for end in wait(executor)] == [1]
        assert "No module named 'no'" in log(submitted)
        (tmp_path / "1").touch()  # where the folder should be
        executor.submit(task(1, ""))
        [end] = wait(executor)
        assert end.exitcode is None
        assert end.note.startswith("could not be started: ")
        assert executor.free() == 1

    def test_a_lost_fork_server_is_reported_and_replaced(
        self, two_local: LocalExecutor, task: TaskMaker
    ) -> None:
        from multiprocessing import forkserver

        pid(two_local.submit(task(0, "hang")).folder)
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # type: ignore[attr-defined]
        [end] = wait(two_local)
        assert end.note == "killed: the process that starts the trials was gone"
        two_local.submit(task(1, "succeed"))
        assert [end.exitcode for end in wait(two_local)] == [0]

    @pytest.mark.parametrize("killed", [True, False])
    def test_trials_end_with_a_scheduler_that_closes_nothing(
        self, tmp_path: Path, killed: bool
    ) -> None:
        (tmp_path / "owner.py").write_text(OWNER)
        root = Path(__file__).resolve().parents[2]
        paths = os.pathsep.join([str(root), str(root / "tests/sweep")])
        owner = subprocess.Popen(
            [sys.executable, tmp_path / "owner.py", str(600 if killed else 0)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        number = pid(tmp_path / "0")
        if killed:
            assert is_alive(number)
            owner.kill()
        output, _ = owner.communicate(timeout=LONG)
        assert output == ""
        wait_until(lambda: not is_alive(number))


OWNER = """
import os, sys, time
from src.sweep.executors.local import LocalExecutor
from src.sweep.records import Task

if __name__ != "__main__":
    print("imported by a child")
executor = LocalExecutor(n_jobs=2, devices=None, threads=None, preload=None)
task = Task("", "s", 0, 0, os.path.abspath("0"), "", {"action": "hang"}, entry="stubs:run")
executor.submit(task)
while not os.path.exists("0/started"):
    time.sleep(0.02)
executor.wait(float(sys.argv[1]))
"""


# Ray, and a cluster of two nodes with PostgreSQL


def test_ray_reserves_what_fits(local_ray: None) -> None:
    with pytest.raises(ConfigError, match="gpus_per_trial: must fit in what Ray has"):
        RayExecutor(gpus_per_trial=1).slots  # noqa: B018
    assert RayExecutor().slots == 2


@pytest.fixture
def second_node(local_ray: None) -> Iterator[Any]:
    """A node with two cores beside the head node; returns what removes it."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(shutdown_at_exit=False)
    nodes.head_node = ray._private.worker._global_node
    nodes.redis_address = nodes.head_node.redis_address
    node = nodes.add_node(False, num_cpus=2, object_store_memory=MEMORY, include_dashboard=False)
    wait_until(lambda: sum(each["Alive"] for each in ray.nodes()) == 2)
    kill = [True]

    def remove() -> None:
        if kill:
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            kill.clear()

    yield remove
    remove()


@pytest.mark.slow
def test_a_study_on_two_nodes_with_postgresql_survives_the_loss_of_a_node(
    tmp_path: Path, fresh_postgres: str, empty_database: Path, second_node: Callable[[], None]
) -> None:
    """Both nodes run trials; the trial of the node that is lost is run again by the other one."""
    copy(empty_database, tmp_path / "mlflow.db")
    body = "stubs:train_on_two_nodes"
    setup = Setup(tmp_path, ("a=1,2",), retries=1, body=body, storage=fresh_postgres)
    hangs = tmp_path / "trials" / "hangs"
    with opened(
        setup,
        lambda storage: light(RayExecutor("auto", n_jobs=2, cpus_per_trial=2)),
        lambda status: second_node() if hangs.exists() else None,
    ) as scheduler:
        status = scheduler.run()
    storage = open_storage(fresh_postgres)
    trials = storage.get_all_trials(storage.get_study_id_from_name(STUDY))
    assert len({trial.user_attrs["node"] for trial in trials}) == 2
    assert (status.counted, status.counts["complete"], status.put_back) == (2, 2, 1)
    (failed,) = (trial for trial in trials if trial.values is None)
    assert failed.number < 2
    assert failed.system_attrs[OUTCOME]["kind"] == "killed"
    assert sorted(trial.value for trial in trials if trial.values) == [0.001, 0.002]


@pytest.mark.timeout(900)
@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("slurm", "cluster=local", "cpus_per_task=1"),
        ("ray", "n_jobs=1", "cpus_per_trial=1"),
    ],
    ids=["submitit", "ray"],
)
def test_a_real_trial_runs(
    arguments: tuple[str, ...],
    tmp_path: Path,
    empty_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    run_entry: Callable[..., tuple[int, str]],
) -> None:
    """Nearly all of its time is the imports of a fresh interpreter."""
    name, *settings = arguments
    if name == "ray":
        request.getfixturevalue("local_ray")
    else:
        pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()
    copy(empty_database, tmp_path / "mlruns" / "mlflow.db")
    status, output = run_entry(
        train.main,
        *("-m", *TINY, "model.net.width=4", "trainer.max_epochs=1", "test=false"),
        "hydra.sweeper.study_name=shared",
        f"hydra/sweeper/executor={name}",
        *(f"hydra.sweeper.executor.{setting}" for setting in settings),
    )
    assert status == 0, output
    storage = open_storage(f"sqlite:///{tmp_path}/mlruns/optuna.db")
    [trial] = optuna.load_study(study_name="shared", storage=storage).trials
    [(_, run)] = read.runs(Store(folder=tmp_path / "mlruns"), "tags.kind = 'run'").iterrows()
    assert (trial.state, run["status"]) == (TrialState.COMPLETE, "FINISHED")
    objectives = ("best/val/balanced_accuracy", "efficiency/flops")
    assert trial.values == [run[f"metrics.{name}"] for name in objectives]


def test_no_file_of_a_job_has_a_password(
    tmp_path: Path, empty_database: Path, fresh_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of an engine may be read by others; without the password no trial would complete."""
    copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush")
    setup = Setup(tmp_path, ("a=1,2",), storage=fresh_postgres)
    with opened(setup, lambda storage: submitit()) as scheduler:
        status = scheduler.run()
    assert (status.counted, status.counts["fail"]) == (2, 0)
    assert base.TASK not in os.environ
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.name.endswith("_submitted.pkl") for file in files)
    for file in files:
        content = file.read_bytes()
        assert b"s3cret" not in content, file
        assert b"hush" not in content, file


def test_a_job_without_the_environment_of_its_submission_says_so() -> None:
    with pytest.raises(RuntimeError, match="PARETODERM_TASK is not set"):
        base.launcher()()


# submitit: jobs that outlive their scheduler, a fake `scancel`


def test_the_next_session_cancels_the_jobs_of_one_that_was_killed(
    tmp_path: Path, empty_database: Path
) -> None:
    copy(empty_database, tmp_path / "mlflow.db")
    setup = Setup(tmp_path, ("a=1,2",), body="stubs:hang_in_a_study")
    with opened(setup, lambda storage: submitit()) as scheduler:
        scheduler._resume()
        assert scheduler._start_next()
        number = pid(scheduler._running[0].task.folder)
        scheduler.executor._running.clear()  # as by kill -9: nobody stops the job
    assert is_alive(number)

    def complete(task: Task) -> tuple[TrialOutcome, int]:
        return TrialOutcome("complete", metrics=expected(task.payload["cell"])), 0

    with opened(setup, lambda storage: ScriptedExecutor(storage, complete)) as scheduler:
        status = scheduler.run()
    wait_until(lambda: not is_alive(number))
    assert (status.counted, status.counts["fail"]) == (2, 0)
    storage = open_storage(setup.url)
    first, *others = storage.get_all_trials(storage.get_study_id_from_name(STUDY))
    assert first.state is TrialState.FAIL
    # submitit's own process outlives the trial's by a moment.
    wait_until(lambda: not slurm.cancel(first.system_attrs[JOB]))
    assert not any(JOB in trial.system_attrs for trial in others)


def test_only_the_job_itself_is_cancelled(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)", "submitit"]
    with subprocess.Popen(command) as process:
        # Its command line is empty for a moment after Popen has returned.
        wait_until(psutil.Process(process.pid).cmdline)
        job = {"cluster": "local", "id": str(process.pid), "host": socket.gethostname()}
        job["folder"] = "time"  # is in its command line
        assert not slurm.cancel(job | {"folder": str(tmp_path)})  # another process with that id
        assert not slurm.cancel(job | {"host": "another"})
        assert is_alive(process.pid)
        assert slurm.cancel(job)


@pytest.mark.parametrize("status", [0, 1, None])
def test_slurm_is_asked_to_cancel_a_job(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    status: int | None,
) -> None:
    script = f'#!/bin/sh\necho "$@" >> {tmp_path}/log\necho Invalid job id >&2\nexit {status}\n'
    monkeypatch.setenv("PATH", str(tmp_path))
    if status is not None:  # else this machine has no Slurm
        (tmp_path / "scancel").write_text(script)
        (tmp_path / "scancel").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    job = {"cluster": "slurm", "id": "4711", "folder": str(tmp_path), "host": "login"}
    assert slurm.cancel(job) is (status == 0)
    assert status is None or (tmp_path / "log").read_text() == "4711\n"
    warns = "4711 of an earlier session may still be there: scancel 4711" in caplog.text
    assert warns is (status != 0)
    assert ("Invalid job id" in caplog.text) is (status == 1)


# Bad arguments and missing packages


def test_slurm_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="this machine has no Slurm"):
        SlurmExecutor(n_jobs=1)


@pytest.mark.parametrize("made", [RayExecutor, SlurmExecutor])
def test_a_missing_package_is_reported_with_the_way_out(
    made: type[Executor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    with pytest.raises(DependencyError, match="pip install -e"):
        made()


@pytest.mark.parametrize(
    ("made", "key"),
    [
        *((made, "n_jobs") for made in (RayExecutor, SlurmExecutor, LocalExecutor)),
        (LocalExecutor, "trials_per_device"),
        (LocalExecutor, "threads"),
        (RayExecutor, "cpus_per_trial"),
        (SlurmExecutor, "timeout_min"),
    ],
)
def test_refused_numbers(made: type[Executor], key: str) -> None:
    """By the annotations, which are checked before an executor is built."""
    with pytest.raises(ConfigError, match=f"{key}: .*greater than .*, but got 0"):
        check_arguments(made, {key: 0})


@pytest.mark.parametrize(
    ("exitcode", "out_of_memory", "note"),
    [
        (0, False, ""),
        (3, False, "ended with exit code 3"),
        (-9, False, "killed by signal 9 (SIGKILL)"),
        (-9, True, "killed by signal 9 (SIGKILL): out of memory"),
        (-11, True, "killed by signal 11 (SIGSEGV)"),
        (-40, False, "killed by signal 40"),
    ],
)
def test_exit_codes_in_words(exitcode: int, out_of_memory: bool, note: str) -> None:
    assert base.ending(exitcode, out_of_memory) == note


# Slots and devices


@pytest.mark.parametrize(
    ("n_jobs", "devices", "per_device", "threads", "visible", "expected"),
    [
        (None, "auto", 1, "auto", "", [(None, 8)]),
        (3, "auto", 1, "auto", "", [(None, 2)] * 3),
        (None, "auto", 2, "auto", "25", [("2", 2), ("5", 2), ("2", 2), ("5", 2)]),
        (None, [1], 1, 3, "01", [("1", 3)]),
        (2, None, 1, None, "0", [("", None), ("", None)]),  # the trials see no GPU
        (None, [], 1, None, "0", [("", None)]),
    ],
)
def test_slots_by_hand(n_jobs, devices, per_device, threads, visible, expected) -> None:
    slots = local_slots(n_jobs, devices, per_device, threads, list(visible), 8)
    assert slots == [Slot(number, *values) for number, values in enumerate(expected)]


@given(
    n_jobs=st.integers(1, 40),
    gpus=st.integers(0, 8),
    per_gpu=st.integers(1, 5),
    cores=st.integers(1, 128),
)
def test_slots_fit_the_machine(n_jobs: int, gpus: int, per_gpu: int, cores: int) -> None:
    devices = [str(number) for number in range(gpus)]
    if gpus and n_jobs > gpus * per_gpu:
        with pytest.raises(ConfigError, match=f"n_jobs: must be at most {gpus * per_gpu} "):
            local_slots(n_jobs, "auto", per_gpu, "auto", devices, cores)
        return
    slots = local_slots(n_jobs, "auto", per_gpu, "auto", devices, cores)
    assert [slot.number for slot in slots] == list(range(n_jobs))
    assert sum(slot.threads or 0 for slot in slots) <= max(cores, n_jobs)
    used = Counter(slot.device for slot in slots)
    assert max(used.values()) <= (per_gpu if gpus else n_jobs)
    assert not gpus or len(used) == min(gpus, n_jobs)


@pytest.mark.parametrize(
    ("variable", "count", "ids"),
    [
        (None, 3, ["0", "1", "2"]),
        ("", 0, []),
        ("-1", 0, []),
        ("3, 1,99", 2, ["3", "1"]),
        ("GPU-8932f937-d72c,MIG-4", 2, ["GPU-8932f937-d72c", "MIG-4"]),
    ],
)
def test_visible_devices(variable: str | None, count: int, ids: list[str]) -> None:
    assert base.visible_devices(variable, count) == ids


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([2], "devices: GPU 2 cannot be used here, visible are 0, 1"),
        ([1, "1"], "devices: names a GPU twice: 1, 1"),
        ("gpu", "devices: must be auto, null or a list"),
    ],
)
def test_refused_devices(devices, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        local_slots(1, devices, 1, None, ["0", "1"], 8)
