"""Executors: the contract of all, with real processes and jobs, and special cases."""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from benchmarks.sweep import stubs
from benchmarks.sweep.faults import is_alive
from benchmarks.sweep.harness import STUDY, ScriptedExecutor, Setup, opened
from src.core.errors import ConfigError, DependencyError, UserError
from src.sweep.executors import base
from src.sweep.executors.base import Executor, local_slots, make_slots
from src.sweep.executors.local import LocalExecutor
from src.sweep.executors.ray import RayExecutor
from src.sweep.executors.slurm import SlurmExecutor
from src.sweep.records import EndedTask, Slot, Task, TrialOutcome
from src.sweep.storage import open_storage
from src.tracking.store import Store

ENTRY = "stubs:run"
LONG = 60.0  # seconds that nothing here takes, on the slowest machine
TaskMaker = Callable[..., Task]


@pytest.fixture
def task(tmp_path: Path) -> TaskMaker:
    def make(number: int = 0, **payload: object) -> Task:
        folder = str(tmp_path / str(number))
        return Task("sqlite:///none.db", "stubs", number, number, folder, "", payload)

    return make


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray for all tests: starting it takes seconds. The executors leave it running."""
    if importlib.util.find_spec("ray") is None:  # imported, it would be too late for its token
        pytest.skip("Ray is not installed")
    keeper = RayExecutor(n_jobs=2, options={"object_store_memory": 80 * 2**20})
    keeper.warm_up()
    yield
    keeper.close(0)


def local() -> LocalExecutor:
    return LocalExecutor(n_jobs=2, devices=None, threads=None, entry=ENTRY)


def slurm(entry: str = ENTRY) -> SlurmExecutor:
    pytest.importorskip("submitit")
    made = SlurmExecutor(n_jobs=2, cluster="local", cpus_per_task=1, entry=entry)
    made._slots = [Slot(slot.number) for slot in made._slots]  # no threads: stubs need no torch
    return made


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.slow), "slurm"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """An executor with two slots."""
    if request.param == "ray":
        request.getfixturevalue("local_ray")
        made: Executor = RayExecutor(n_jobs=2, entry=ENTRY)
    else:
        made = local() if request.param == "local" else slurm()
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


def pid(task: Task) -> int:
    """Process of a stub, when it has left its note."""
    path = Path(task.folder) / "started"
    wait_until(lambda: path.exists() and path.read_text())
    return int(path.read_text().split()[0])


def release(task: Task) -> None:
    """Let the stubs that wait for "go" continue."""
    (Path(task.folder).parent / "go").touch()


class TestEveryExecutor:
    def test_success_and_a_log_to_which_a_second_run_is_appended(
        self, executor: Executor, task: TaskMaker
    ) -> None:
        first = executor.submit(task(print="a line", print_error="another line"))
        assert wait(executor) == [EndedTask(first, 0, "")]
        executor.submit(task(print="second run"))
        wait(executor)
        assert {"a line", "another line"} < set(log(first).splitlines())
        assert re.search("line.*second run", log(first), re.DOTALL)

    def test_failures(self, executor: Executor, task: TaskMaker) -> None:
        raising = executor.submit(task(0, fail="no such luck"))
        assert wait(executor) == [EndedTask(raising, 1, "ended with exit code 1")]
        assert "Traceback" in log(raising)
        assert "ValueError: no such luck" in log(raising)
        leaving = executor.submit(task(1, exit=3))
        assert wait(executor) == [EndedTask(leaving, 3, "ended with exit code 3")]
        executor.submit(task(2, kill=int(signal.SIGKILL)))
        [end] = wait(executor)
        assert end.exitcode in (None, -signal.SIGKILL)
        assert end.note

    def test_the_first_to_end_is_reported_while_the_other_runs(
        self, executor: Executor, task: TaskMaker
    ) -> None:
        assert (executor.slots, executor.free()) == (2, 2)
        slow = executor.submit(task(1, wait_for="go"))
        quick = executor.submit(task(2))
        assert {slow.slot.number, quick.slot.number} == {0, 1}
        assert executor.free() == 0
        with pytest.raises(RuntimeError, match="all 2 slots are taken"):
            executor.submit(task(2))
        assert [end.task for end in wait(executor)] == [quick]
        assert executor.running() == [slow]
        assert executor.wait(0.05) == executor.wait(0) == []
        again = executor.submit(task(3))
        assert again.slot == quick.slot
        assert [end.task for end in wait(executor)] == [again]
        release(slow)
        assert [end.task for end in wait(executor)] == [slow]

    def test_stopped(self, executor: Executor, task: TaskMaker) -> None:
        hanging = executor.submit(task(note="started", hang=600))
        number = pid(hanging)
        # Ray may lose its request on a starved machine: then the trial is killed.
        executor.stop(hanging, grace=LONG / 2)
        [end] = wait(executor)
        assert end.task == hanging
        assert end.exitcode != 0
        wait_until(lambda: not is_alive(number))

    def test_stopped_although_it_ignores_sigterm(self, executor: Executor, task: TaskMaker) -> None:
        hanging = executor.submit(task(deaf=True, hang=600, note="started"))
        executor.stop(hanging, grace=0.5)
        [end] = wait(executor)
        assert end.exitcode != 0
        assert end.note

    def test_a_trial_that_has_ended_is_not_stopped(
        self, executor: Executor, task: TaskMaker
    ) -> None:
        first = executor.submit(task(1))
        wait(executor)
        second = executor.submit(task(2, wait_for="go"))
        assert first.slot == second.slot
        executor.stop(first, grace=0)
        release(second)
        assert wait(executor) == [EndedTask(second, 0, "")]

    def test_close_leaves_nothing_running(self, executor: Executor, task: TaskMaker) -> None:
        running = [executor.submit(task(number, note="started", hang=600)) for number in range(2)]
        numbers = [pid(item) for item in running]
        ended = executor.close(grace=10)
        assert sorted(end.task.number for end in ended) == [0, 1]
        assert all(end.exitcode != 0 for end in ended)
        wait_until(lambda: not any(is_alive(number) for number in numbers))
        assert executor.running() == []


@pytest.fixture
def two_local() -> Iterator[LocalExecutor]:
    made = LocalExecutor(n_jobs=2, devices=None, threads=2, entry=ENTRY)
    yield made
    made.close(0)


def shown(executor: Executor, task: Task) -> str:
    executor.submit(task)
    [end] = wait(executor)
    assert end.exitcode == 0, log(end.task)
    return log(task).strip()


class TestLocal:
    def test_process_of_a_trial(
        self, two_local: LocalExecutor, task: TaskMaker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert shown(two_local, task(1, show="device")) == ""
        assert shown(two_local, task(2, show="threads")) == "2"
        assert shown(two_local, task(3, show="session")) == "True"
        for value in ("one", "two"):
            monkeypatch.setenv("PARETODERM_TEST", value)
            assert shown(two_local, task(value, show="variable")) == value
        monkeypatch.delenv("PARETODERM_TEST")
        assert shown(two_local, task("none", show="variable")) == "None"
        assert shown(two_local, task("path", show="path")) == str(os.environ.get("PYTHONPATH"))
        loaded = shown(two_local, task("modules", show="modules"))
        names = "torch pytorch_lightning optuna mlflow torchmetrics src.sweep.executors.base"
        assert all(f"'{module}'" in loaded for module in names.split())

    def test_ctrl_c_does_not_reach_a_trial(self, two_local: LocalExecutor, task: TaskMaker) -> None:
        submitted = two_local.submit(task(note="started", wait_for="go"))
        os.kill(pid(submitted), signal.SIGINT)
        assert two_local.wait(0.3) == []
        release(submitted)
        assert wait(two_local) == [EndedTask(submitted, 0, "")]

    def test_children_of_a_killed_trial_are_killed(
        self, two_local: LocalExecutor, task: TaskMaker
    ) -> None:
        submitted = two_local.submit(task(child="child", kill=int(signal.SIGKILL)))
        assert wait(two_local) == [EndedTask(submitted, -9, "killed by signal 9 (SIGKILL)")]
        grandchild = int((Path(submitted.folder) / "child").read_text())
        wait_until(lambda: not is_alive(grandchild))

    def test_a_folder_that_cannot_be_made_is_reported(
        self, two_local: LocalExecutor, task: TaskMaker, tmp_path: Path
    ) -> None:
        (tmp_path / "0").touch()
        two_local.submit(task())
        [end] = wait(two_local)
        assert end.exitcode is None
        assert end.note.startswith("could not be started: ")
        assert two_local.free() == 2

    def test_a_missing_entry_is_logged(self, task: TaskMaker) -> None:
        executor = LocalExecutor(n_jobs=1, devices=None, threads=None, entry="no.such.module:main")
        submitted = executor.submit(task())
        assert [end.exitcode for end in wait(executor)] == [1]
        assert "No module named 'no'" in log(submitted)

    def test_a_lost_fork_server_is_reported_and_replaced(self, tmp_path: Path) -> None:
        output = run_owner(tmp_path, "lost_server")
        assert "killed: the process that starts the trials was gone" in output
        assert "then [0]" in output

    @pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
    def test_trials_end_when_their_scheduler_is_gone(
        self, tmp_path: Path, signum: signal.Signals
    ) -> None:
        owner = start_owner(tmp_path, "hang")
        notes = [tmp_path / str(number) / "started" for number in range(2)]
        wait_until(lambda: all(n.exists() and n.read_text() for n in notes) or owner.poll())
        numbers = [int(note.read_text().split()[0]) for note in notes]
        assert all(is_alive(number) for number in numbers)
        owner.send_signal(signum)
        owner.wait(timeout=LONG)
        wait_until(lambda: not any(is_alive(number) for number in numbers))

    def test_a_process_that_does_not_close_its_executor_ends(self, tmp_path: Path) -> None:
        assert "not closed" in run_owner(tmp_path, "forget")


OWNER = """
import os, signal, sys, time
from multiprocessing import forkserver
from src.sweep.executors.local import LocalExecutor
from src.sweep.records import Task

def task(number, **payload):
    return Task("", "s", number, number, os.path.join(folder, str(number)), "", payload)

if __name__ != "__main__":
    print("imported by a child")
folder, what = sys.argv[1:]
executor = LocalExecutor(n_jobs=2, devices=None, threads=None, preload=None, entry="stubs:run")
for number in range(2):
    executor.submit(task(number, note="started", hang=600))
if what == "hang":
    executor.wait(600)
if what == "lost_server":
    while not all(os.path.exists(os.path.join(folder, str(n), "started")) for n in range(2)):
        time.sleep(0.05)
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    ended = []
    while len(ended) < 2:
        ended += executor.wait(60)
    print([end.note for end in ended])
    executor.submit(task(3))
    print("then", [end.exitcode for end in executor.wait(60)])
print("not closed")
"""


def start_owner(folder: Path, what: str) -> "subprocess.Popen[str]":
    (folder / "owner.py").write_text(OWNER)
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(root), str(root / "tests/sweep")])
    return subprocess.Popen(
        [sys.executable, folder / "owner.py", folder, what],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_owner(folder: Path, what: str) -> str:
    output, _ = start_owner(folder, what).communicate(timeout=LONG)
    assert "Traceback" not in output
    assert "imported by a child" not in output
    return output


def test_ray_reserves_what_fits(local_ray: None) -> None:
    with pytest.raises(ConfigError, match="gpus_per_trial: must fit in what Ray has"):
        RayExecutor(gpus_per_trial=1).slots  # noqa: B018
    with pytest.raises(ConfigError, match="cpus_per_trial: must be above 0, but got -1"):
        RayExecutor(cpus_per_trial=-1)


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


@pytest.mark.parametrize("made", [RayExecutor, SlurmExecutor, LocalExecutor])
def test_no_jobs_are_refused(made: Callable[..., Executor]) -> None:
    with pytest.raises(ConfigError, match="n_jobs: must be at least 1, but got 0"):
        made(n_jobs=0)


@pytest.mark.parametrize(
    ("exitcode", "oom_kills", "note"),
    [
        (0, 0, ""),
        (3, 0, "ended with exit code 3"),
        (-9, 0, "killed by signal 9 (SIGKILL)"),
        (-9, 1, "killed by signal 9 (SIGKILL): out of memory"),
        (-11, 1, "killed by signal 11 (SIGSEGV)"),
        (-40, 0, "killed by signal 40"),
    ],
)
def test_exit_codes_in_words(exitcode: int, oom_kills: int, note: str) -> None:
    assert base.ending(exitcode, oom_kills) == note


# Jobs that outlive their scheduler: submitit's local jobs, and a fake `scancel`


def test_the_next_session_cancels_the_jobs_of_one_that_was_killed(tmp_path: Path) -> None:
    Store(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", experiment="stubs", folder=tmp_path).open()
    setup = Setup(tmp_path, ("a=1,2", "b=4,5"))
    with opened(setup, lambda storage: slurm("stubs:hang")) as scheduler:
        scheduler._resume()
        assert scheduler._start_next()
        assert scheduler._start_next()
        numbers = [pid(running.task) for running in scheduler._running.values()]
        scheduler.executor._running.clear()  # as by kill -9: nobody stops the jobs
    assert len(numbers) == 2
    assert all(is_alive(number) for number in numbers)

    def complete(task: Task) -> tuple[TrialOutcome, int]:
        return TrialOutcome("complete", metrics=stubs.expected(task.payload["cell"])), 0

    with opened(setup, lambda storage: ScriptedExecutor(storage, complete)) as scheduler:
        status = scheduler.run()
    wait_until(lambda: not any(is_alive(number) for number in numbers))
    assert (status.counted, status.counts["fail"]) == (4, 0)
    storage = open_storage(setup.url)
    trials = storage.get_all_trials(storage.get_study_id_from_name(STUDY))
    assert [trial.state for trial in trials[:2]] == [TrialState.FAIL] * 2
    assert not any(base.cancel(trial.user_attrs["job"]) for trial in trials[:2])  # they are gone
    assert not any("job" in trial.user_attrs for trial in trials[2:])


@pytest.fixture
def sleeper() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "submitit"])
    wait_until(psutil.Process(process.pid).cmdline)  # empty for a moment after Popen has returned
    yield process.pid
    process.kill()
    process.wait()


def test_only_the_job_itself_is_cancelled(sleeper: int, tmp_path: Path) -> None:
    job = base.note("local", str(sleeper), Path("time"))  # "time" is in its command line
    assert job["host"] == socket.gethostname()
    assert not base.cancel(job | {"folder": str(tmp_path)})  # another process with that id
    assert not base.cancel(job | {"host": "another"})
    assert is_alive(sleeper)
    assert base.cancel(job)
    wait_until(lambda: not is_alive(sleeper))


@pytest.mark.parametrize("status", [0, 1, None])
def test_slurm_is_told_the_id_of_the_job(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    status: int | None,
) -> None:
    script = f'#!/bin/sh\necho "$@" >> {tmp_path}/told\necho Invalid job id >&2\nexit {status}\n'
    monkeypatch.setenv("PATH", str(tmp_path))
    if status is not None:  # else this machine has no Slurm
        (tmp_path / "scancel").write_text(script)
        (tmp_path / "scancel").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    assert base.cancel(base.note("slurm", "4711", tmp_path)) is (status == 0)
    assert status is None or (tmp_path / "told").read_text() == "4711\n"
    warns = "4711 of an earlier session may still be there: scancel 4711" in caplog.text
    assert warns is (status != 0)
    assert ("Invalid job id" in caplog.text) is (status == 1)


# Slots and devices


@pytest.mark.parametrize(
    ("n_jobs", "devices", "per_device", "threads", "cores", "expected"),
    [
        (None, [], 1, "auto", 8, [(None, 8)]),
        (3, [], 1, "auto", 8, [(None, 2)] * 3),
        (None, ["2", "5"], 2, "auto", 16, [("2", 4), ("5", 4), ("2", 4), ("5", 4)]),
        (2, None, 1, None, 4, [("", None), ("", None)]),  # the trials see no GPU
    ],
)
def test_slots_by_hand(n_jobs, devices, per_device, threads, cores, expected) -> None:
    slots = make_slots(n_jobs, devices, per_device, threads, cores)
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
            make_slots(n_jobs, devices, per_gpu, "auto", cores)
        return
    slots = make_slots(n_jobs, devices, per_gpu, "auto", cores)
    assert [slot.number for slot in slots] == list(range(n_jobs))
    assert sum(slot.threads or 0 for slot in slots) <= max(cores, n_jobs)
    used = Counter(slot.device for slot in slots)
    assert max(used.values()) <= (per_gpu if gpus else n_jobs)
    assert not gpus or len(used) == min(gpus, n_jobs)


@pytest.mark.parametrize(
    ("variable", "count", "ids"),
    [
        (None, 3, ["0", "1", "2"]),
        (None, 0, []),
        ("", 0, []),
        ("-1", 0, []),
        ("3,1", 2, ["3", "1"]),
        ("3, 1,99", 2, ["3", "1"]),
        ("GPU-8932f937-d72c,MIG-4", 2, ["GPU-8932f937-d72c", "MIG-4"]),
    ],
)
def test_visible_devices(variable: str | None, count: int, ids: list[str]) -> None:
    assert base.visible_devices(variable, count) == ids


@pytest.mark.parametrize(
    ("devices", "visible", "chosen"),
    [
        ("auto", ["0", "1"], ["0", "1"]),
        ("auto", [], []),
        (None, ["0"], None),
        ([], ["0"], None),
        ([1], ["0", "1"], ["1"]),
    ],
)
def test_chosen_devices(devices, visible: list[str], chosen: list[str] | None) -> None:
    assert base.chosen_devices(devices, visible) == chosen


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
        base.chosen_devices(devices, ["0", "1"])


@pytest.mark.parametrize("key", ["n_jobs", "trials_per_device", "threads"])
def test_refused_numbers(key: str) -> None:
    numbers = {"n_jobs": 1, "trials_per_device": 1, "threads": 1, key: 0}
    with pytest.raises(ConfigError, match=f"{key}: must be at least 1, but got 0"):
        local_slots(devices=None, **numbers)


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000\n", None), ("200000 100000\n", 2.0), ("50000 100000", 0.5), ("", None)],
)
def test_quota_of_a_container(text: str, cores: float | None) -> None:
    assert base.cores_of_quota(text) == cores


def test_this_machine_has_a_slot() -> None:
    assert base.usable_cores() >= 1
    assert local_slots(None, "auto", 1, "auto")
