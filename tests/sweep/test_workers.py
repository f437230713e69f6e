"""One study served by workers that are processes of their own, over a real PostgreSQL server and over SQLite."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from src import worker
from src.core.errors import ConfigError, UserError
from src.sweep.executors.tasks_table import TaskEnd, TasksTable
from src.sweep.executors.workers import Heart, WorkersExecutor
from src.sweep.records import EndedTask, Task

LONG = 90.0  # seconds that nothing here takes, on the slowest machine

# `python -m src.worker` without its imports ahead, which take seconds, and with stubs as trials
WORKER = """
import sys
from src.sweep.executors.agent import WorkerAgent
from src.sweep.executors.local import LocalExecutor
from src.sweep.executors.tasks_table import TasksTable
url, lost_after = sys.argv[1:]
executor = LocalExecutor(n_jobs=2, devices=None, threads=None, preload=None, entry="stubs:run")
WorkerAgent(TasksTable(url), executor, lost_after_s=float(lost_after)).run()
"""


def make(folder: Path, number: int, url: str = "", study: str = "stubs", **payload: object) -> Task:
    return Task(url, study, number, number, str(folder / str(number)), "", payload)


@contextmanager
def workers(count: int, url: str, lost_after: float) -> Iterator[list["subprocess.Popen[bytes]"]]:
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests/sweep")])}
    command = [sys.executable, "-c", WORKER, url, str(lost_after)]
    processes = [subprocess.Popen(command, env=env, cwd=root) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_until(true: Callable[[], object]) -> None:
    until = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.05)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    return str(request.getfixturevalue("fresh_postgres"))


@pytest.fixture
def table(url: str) -> Iterator[TasksTable]:
    made = TasksTable(url)
    yield made
    made.close()


class TestTable:
    def test_tables_made_by_many_at_once(self, url: str) -> None:
        made: list[TasksTable] = []
        threads = [threading.Thread(target=lambda: made.append(TasksTable(url))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 6

    def test_task_travels_whole(self, table: TasksTable, tmp_path: Path) -> None:
        task = make(tmp_path, 3, table.url, text='a "b" \u00e9', values=[1.5, None, {"c": True}])
        row = table.add("owner", task)
        assert table.claim("worker") == (row, task)

    def test_each_task_is_claimed_once(self, table: TasksTable, tmp_path: Path) -> None:
        rows = [table.add("owner", make(tmp_path, number)) for number in range(40)]
        claimed: list[int] = []

        def claim(name: str) -> None:
            while (found := table.claim(name)) is not None:
                claimed.append(found[0])

        threads = [
            threading.Thread(target=claim, args=(f"worker {number}",)) for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(claimed) == rows

    def test_oldest_first_and_only_of_the_study(self, table: TasksTable, tmp_path: Path) -> None:
        table.add("owner", make(tmp_path, 0, study="other"))
        rows = [table.add("owner", make(tmp_path, number)) for number in (1, 2)]
        assert [found[0] for found in iter(lambda: table.claim("worker", "stubs"), None)] == rows
        assert table.claim("worker") is not None

    def test_end_is_collected_once_by_its_owner(self, table: TasksTable, tmp_path: Path) -> None:
        row = table.add("owner", make(tmp_path, 0))
        table.claim("worker")
        table.report("somebody else", TaskEnd(row, 0, ""))
        assert table.collect("owner") == []
        table.report("worker", TaskEnd(row, -9, "killed"))
        assert table.collect("another") == []
        assert table.collect("owner") == [TaskEnd(row, -9, "killed")]
        assert table.collect("owner") == []

    def test_asked_to_end(self, table: TasksTable, tmp_path: Path) -> None:
        first, second = (table.add("owner", make(tmp_path, number)) for number in range(2))
        table.claim("worker")
        for row in (first, second):
            table.ask_to_end(row, 7.5)
        assert table.wanted("worker") == {first: 7.5}
        assert table.collect("owner") == [
            TaskEnd(second, None, "stopped before a worker had taken it")
        ]
        assert table.claim("worker") is None

    def test_lost_worker_and_lost_owner(self, table: TasksTable, tmp_path: Path) -> None:
        for name in ("owner", "silent owner"):
            table.beat(name, "owner", 0)
        table.beat("worker", "worker", 3)
        kept, lost, dropped = (
            table.add(owner, make(tmp_path, number))
            for number, owner in enumerate(["owner", "owner", "silent owner"])
        )
        table.claim("worker")
        table.claim("silent worker")
        table.leave("silent owner")
        table.bury_lost(LONG)
        assert table.wanted("worker") == {kept: None}
        assert table.collect("owner") == [TaskEnd(lost, None, "worker silent worker was lost")]
        assert dropped not in table.known("silent owner")
        assert table.workers(LONG) == 3
        time.sleep(0.05)
        assert table.workers(0.01) == 0

    def test_heart_beats_until_it_is_stopped(self, table: TasksTable) -> None:
        heart = Heart(table, "worker", 2, lost_after=0.6)
        time.sleep(0.5)
        assert table.workers(LONG) == 2
        wait_until(lambda: table.workers(0.4) == 2)
        heart.stop()
        assert table.workers(LONG) == 0


def test_two_workers_serve_a_study_and_one_is_killed(url: str, tmp_path: Path) -> None:
    lost_after = 6.0
    with workers(2, url, lost_after) as processes:
        executor = WorkersExecutor(url, lost_after_s=lost_after)
        wait_until(lambda: executor.slots == 4)
        ended: list[EndedTask] = []
        for number in range(12):
            while not executor.free():
                ended += executor.wait(LONG)
            executor.submit(make(tmp_path, number, note="ran", hang=0.3))
        while executor.running():
            ended += executor.wait(LONG)
        assert sorted(end.task.number for end in ended) == list(range(12))
        assert [end for end in ended if end.exitcode != 0 or end.note] == []
        assert [
            len((tmp_path / str(number) / "ran").read_text().splitlines()) for number in range(12)
        ] == [1] * 12

        hanging = [
            executor.submit(make(tmp_path, number, note="ran", hang=600))
            for number in range(20, 24)
        ]
        wait_until(lambda: all((Path(task.folder) / "ran").exists() for task in hanging))
        processes[0].kill()
        ended = []
        while len(ended) < 2:
            ended += executor.wait(LONG)
        assert len(ended) == 2
        assert all(end.exitcode is None and end.note.endswith(" was lost") for end in ended)
        wait_until(lambda: executor.slots == 2)
        rest = executor.close(grace=10)
        assert {end.task.number for end in [*ended, *rest]} == {20, 21, 22, 23}
        assert all(end.exitcode == 143 for end in rest)


def test_trials_end_when_their_owner_is_gone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with workers(1, url, lost_after=3.0):
        executor = WorkersExecutor(url, n_jobs=1, lost_after_s=3.0)
        task = executor.submit(make(tmp_path, 0, note="ran", hang=600))
        note = Path(task.folder) / "ran"
        wait_until(lambda: note.exists() and note.read_text())
        number = int(note.read_text().split()[0])
        assert executor._heart is not None
        executor._heart.stop()  # as if it had been killed
        wait_until(lambda: not Path(f"/proc/{number}").exists())
        [end] = executor.wait(LONG)
        assert end.note == "dropped: the owner had not been heard of for too long"
        executor.close(0)


@pytest.mark.slow
def test_entry_point_runs_a_task_and_ends_when_idle(tmp_path: Path, root: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    executor = WorkersExecutor(url, n_jobs=1)
    executor.submit(make(tmp_path, 0, print="hello"))
    command = [
        sys.executable,
        "-m",
        "src.worker",
        f"storage={url}",
        "idle_exit_s=1",
        "entry=stubs:run",
        "devices=null",
    ]
    env = {**os.environ, "PYTHONPATH": str(root / "tests/sweep")}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "ended after 1 trials" in done.stderr
    assert [(end.exitcode, end.note) for end in executor.wait(LONG)] == [(0, "")]
    assert (tmp_path / "0" / "trial.log").read_text() == "hello\n"
    executor.close(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "storage: must be the URL"),
        (["storage"], "storage: not an argument"),
        (["jobs=2"], "jobs=2: not an argument of a worker"),
        (["storage=sqlite:///x.db", "n_jobs=two"], "n_jobs: must be a whole number, but got two"),
    ],
)
def test_refused_arguments(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        worker.main(arguments)


def test_refused_numbers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lost_after_s: must be above 0, but got 0"):
        WorkersExecutor(f"sqlite:///{tmp_path / 'a.db'}", lost_after_s=0)
    with pytest.raises(ConfigError, match="must be sqlite:///<file> or postgresql://"):
        WorkersExecutor("journal.log")


def test_server_that_is_not_there_is_told_without_its_password() -> None:
    with pytest.raises(UserError, match=r"the database cannot be used") as refused:
        WorkersExecutor("postgresql://user:s3cret@127.0.0.1:1/none")
    assert "s3cret" not in str(refused.value)
