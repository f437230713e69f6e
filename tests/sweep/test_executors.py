"""What every executor promises, held against each of them with real processes and jobs."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.sweep.faults import is_alive
from src.core.errors import ConfigError, DependencyError, UserError
from src.sweep.executors.base import Executor, ending
from src.sweep.executors.local import LocalExecutor
from src.sweep.executors.ray import RayExecutor
from src.sweep.executors.slurm import SlurmExecutor
from src.sweep.records import EndedTask, Task

ENTRY = "stubs:run"
LONG = 60.0  # seconds that nothing here takes, on the slowest machine
TaskMaker = Callable[..., Task]


@pytest.fixture
def task(tmp_path: Path) -> TaskMaker:
    def make(number: int = 0, **payload: object) -> Task:
        return Task(
            "sqlite:///none.db", "stubs", number, number, str(tmp_path / str(number)), "", payload
        )

    return make


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray for all tests: starting it takes seconds. The executors find it and leave it running."""
    if importlib.util.find_spec("ray") is None:  # imported, it would be too late for its token
        pytest.skip("Ray is not installed")
    keeper = RayExecutor(n_jobs=2, options={"object_store_memory": 80 * 2**20})
    keeper.warm_up()
    yield
    keeper.close(0)


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.slow), "slurm"])
def executor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Executor]:
    """An executor with two slots."""
    if request.param == "local":
        made: Executor = LocalExecutor(n_jobs=2, devices=None, threads=None, entry=ENTRY)
    elif request.param == "ray":
        request.getfixturevalue("local_ray")
        made = RayExecutor(n_jobs=2, entry=ENTRY)
    else:
        pytest.importorskip("submitit")
        made = SlurmExecutor(n_jobs=2, cluster="local", cpus_per_task=1, entry=ENTRY)
        made._places = [
            type(place)(place.number) for place in made._places
        ]  # no threads: stubs need no torch
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


def started(task: Task) -> Path:
    """Wait until the stub has left its note."""
    path = Path(task.folder) / "started"
    wait_until(lambda: path.exists() and path.read_text())
    return path


def pid(task: Task) -> int:
    return int(started(task).read_text().split()[0])


class TestEveryExecutor:
    def test_trial_that_ends_in_order_and_its_log(
        self, executor: Executor, task: TaskMaker
    ) -> None:
        submitted = executor.submit(task(print="a line", print_error="another line"))
        assert wait(executor) == [EndedTask(submitted, 0, "")]
        assert {"a line", "another line"} <= set(log(submitted).splitlines())

    def test_second_run_is_appended_to_the_log(self, executor: Executor, task: TaskMaker) -> None:
        for text in ("first", "second"):
            executor.submit(task(print=text))
            wait(executor)
        assert re.search("first.*second", log(task()), re.DOTALL)

    def test_exception(self, executor: Executor, task: TaskMaker) -> None:
        submitted = executor.submit(task(fail="no such luck"))
        assert wait(executor) == [EndedTask(submitted, 1, "ended with exit code 1")]
        assert "Traceback" in log(submitted)
        assert "ValueError: no such luck" in log(submitted)

    def test_exit_status(self, executor: Executor, task: TaskMaker) -> None:
        submitted = executor.submit(task(exit=3))
        assert wait(executor) == [EndedTask(submitted, 3, "ended with exit code 3")]

    def test_killed(self, executor: Executor, task: TaskMaker) -> None:
        executor.submit(task(kill=int(signal.SIGKILL)))
        [end] = wait(executor)
        assert end.exitcode in (None, -signal.SIGKILL)
        assert end.note

    def test_the_first_to_end_is_told_while_the_other_runs(
        self, executor: Executor, task: TaskMaker
    ) -> None:
        slow = executor.submit(task(1, wait_for="go"))
        quick = executor.submit(task(2))
        assert {slow.slot.number, quick.slot.number} == {0, 1}
        assert [end.task for end in wait(executor)] == [quick]
        assert executor.running() == [slow]
        again = executor.submit(task(3))
        assert again.slot == quick.slot
        assert [end.task for end in wait(executor)] == [again]
        (Path(slow.folder).parent / "go").touch()
        assert [end.task for end in wait(executor)] == [slow]

    def test_more_tasks_than_slots_are_refused(self, executor: Executor, task: TaskMaker) -> None:
        assert (executor.slots, executor.free()) == (2, 2)
        for number in range(2):
            executor.submit(task(number, wait_for="go"))
        assert executor.free() == 0
        with pytest.raises(RuntimeError, match="all 2 slots are taken"):
            executor.submit(task(2))

    def test_stopped(self, executor: Executor, task: TaskMaker) -> None:
        hanging = executor.submit(task(note="started", hang=600))
        number = pid(hanging)
        executor.stop(
            hanging, grace=LONG / 2
        )  # Ray may lose its request on a starved machine: then it is killed
        [end] = wait(executor)
        assert end.task == hanging
        assert end.exitcode != 0
        wait_until(lambda: not is_alive(number))

    def test_stopped_although_deaf(self, executor: Executor, task: TaskMaker) -> None:
        hanging = executor.submit(task(deaf=True, hang=600, note="started"))
        executor.stop(hanging, grace=0.5)
        [end] = wait(executor)
        assert end.exitcode != 0
        assert end.note

    def test_one_that_has_ended_is_not_stopped(self, executor: Executor, task: TaskMaker) -> None:
        first = executor.submit(task(1))
        wait(executor)
        second = executor.submit(task(2, wait_for="go"))
        assert first.slot == second.slot
        executor.stop(first, grace=0)
        (Path(second.folder).parent / "go").touch()
        assert wait(executor) == [EndedTask(second, 0, "")]

    def test_close_leaves_nothing_running(self, executor: Executor, task: TaskMaker) -> None:
        running = [executor.submit(task(number, note="started", hang=600)) for number in range(2)]
        numbers = [pid(item) for item in running]
        ended = executor.close(grace=10)
        assert sorted(end.task.number for end in ended) == [0, 1]
        assert all(end.exitcode != 0 for end in ended)
        wait_until(lambda: not any(is_alive(number) for number in numbers))
        assert executor.running() == []

    def test_nothing_ends_within_the_timeout(self, executor: Executor, task: TaskMaker) -> None:
        executor.submit(task(wait_for="go"))
        assert executor.wait(0.05) == []
        assert executor.wait(0) == []


@pytest.fixture
def local() -> Iterator[LocalExecutor]:
    executor = LocalExecutor(n_jobs=2, devices=None, threads=2, entry=ENTRY)
    yield executor
    executor.close(0)


def shown(executor: Executor, task: Task) -> str:
    executor.submit(task)
    [end] = wait(executor)
    assert end.exitcode == 0, log(end.task)
    return log(task).strip()


class TestLocal:
    def test_child_has_its_slot(self, local: LocalExecutor, task: TaskMaker) -> None:
        assert shown(local, task(1, show="device")) == ""
        assert shown(local, task(2, show="threads")) == "2"

    def test_child_leads_a_session_of_its_own(self, local: LocalExecutor, task: TaskMaker) -> None:
        assert shown(local, task(show="session")) == "True"

    def test_child_has_the_environment_of_now(
        self, local: LocalExecutor, task: TaskMaker, monkeypatch
    ) -> None:
        for value in ("one", "two"):
            monkeypatch.setenv("PARETODERM_TEST", value)
            assert shown(local, task(value, show="variable")) == value
        monkeypatch.delenv("PARETODERM_TEST")
        assert shown(local, task("none", show="variable")) == "None"
        assert shown(local, task("path", show="path")) == str(os.environ.get("PYTHONPATH"))

    def test_child_knows_the_heavy_modules_from_the_start(
        self, local: LocalExecutor, task: TaskMaker
    ) -> None:
        loaded = shown(local, task(show="modules"))
        for module in (
            "torch",
            "pytorch_lightning",
            "optuna",
            "mlflow",
            "torchmetrics",
            "src.sweep.executors.base",
        ):
            assert f"'{module}'" in loaded

    def test_ctrl_c_does_not_reach_a_child(self, local: LocalExecutor, task: TaskMaker) -> None:
        submitted = local.submit(task(note="started", wait_for="go"))
        os.kill(pid(submitted), signal.SIGINT)
        assert local.wait(0.3) == []
        (Path(submitted.folder).parent / "go").touch()
        assert wait(local) == [EndedTask(submitted, 0, "")]

    def test_killed_child_takes_its_children_along(
        self, local: LocalExecutor, task: TaskMaker
    ) -> None:
        submitted = local.submit(task(child="child", kill=int(signal.SIGKILL)))
        assert wait(local) == [EndedTask(submitted, -9, "killed by signal 9 (SIGKILL)")]
        grandchild = int((Path(submitted.folder) / "child").read_text())
        wait_until(lambda: not is_alive(grandchild))

    def test_folder_that_cannot_be_made_is_an_end(
        self, local: LocalExecutor, task: TaskMaker, tmp_path: Path
    ) -> None:
        (tmp_path / "0").touch()
        local.submit(task())
        [end] = wait(local)
        assert end.exitcode is None
        assert end.note.startswith("could not be started: ")
        assert local.free() == 2

    def test_entry_that_does_not_exist_is_told_in_the_log(self, task: TaskMaker) -> None:
        executor = LocalExecutor(n_jobs=1, devices=None, threads=None, entry="no.such.module:main")
        submitted = executor.submit(task())
        assert [end.exitcode for end in wait(executor)] == [1]
        assert "No module named 'no'" in log(submitted)

    def test_lost_fork_server_is_told_and_replaced(self, tmp_path: Path) -> None:
        output = run_owner(tmp_path, "lost_server")
        assert "killed: the process that starts the trials was gone" in output
        assert "then [0]" in output

    @pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
    def test_children_end_when_the_owner_is_gone(
        self, tmp_path: Path, signum: signal.Signals
    ) -> None:
        owner = start_owner(tmp_path, "hang")
        notes = [tmp_path / str(number) / "started" for number in range(2)]
        wait_until(
            lambda: (
                all(note.exists() and note.read_text() for note in notes)
                or owner.poll() is not None
            )
        )
        numbers = [int(note.read_text().split()[0]) for note in notes]
        assert all(is_alive(number) for number in numbers)
        owner.send_signal(signum)
        owner.wait(timeout=LONG)
        wait_until(lambda: not any(is_alive(number) for number in numbers))

    def test_owner_that_forgets_to_close_does_not_hang(self, tmp_path: Path) -> None:
        assert "forgot" in run_owner(tmp_path, "forget")


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
    while not all(os.path.exists(os.path.join(folder, str(number), "started")) for number in range(2)):
        time.sleep(0.05)
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    ended = []
    while len(ended) < 2:
        ended += executor.wait(60)
    print([end.note for end in ended])
    executor.submit(task(3))
    print("then", [end.exitcode for end in executor.wait(60)])
print("forgot")
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


def test_ray_asks_for_what_fits(local_ray: None) -> None:
    with pytest.raises(ConfigError, match="gpus_per_trial: must fit in what Ray has"):
        RayExecutor(gpus_per_trial=1).slots  # noqa: B018
    with pytest.raises(ConfigError, match="cpus_per_trial: must be above 0, but got -1"):
        RayExecutor(cpus_per_trial=-1)


def test_slurm_needs_slurm(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="this machine has no Slurm"):
        SlurmExecutor(n_jobs=1)


@pytest.mark.parametrize(("made", "package"), [(RayExecutor, "ray"), (SlurmExecutor, "submitit")])
def test_absent_package_is_told_with_the_way_out(
    made: type[Executor], package: str, monkeypatch
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
def test_how_an_exit_code_reads(exitcode: int, oom_kills: int, note: str) -> None:
    assert ending(exitcode, oom_kills) == note
