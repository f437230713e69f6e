"""Studies' databases: made once, attached to in no time, owned by one process."""

import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from src.core.errors import ConfigError, DependencyError, UserError
from src.sweep import storage as storages
from src.sweep.storage import (
    KEY,
    attach,
    default_url,
    is_local,
    open_storage,
    ownership,
    resolve_url,
)
from src.tracking import retry as retry_module
from src.tracking.retry import Retry
from src.tracking.run import Run
from src.tracking.store import Store

Lossy = Callable[..., AbstractContextManager[None]]
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["src.sweep.storage"])
pytestmark = pytest.mark.usefixtures("own_fork_server")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that is not there yet (SQLite) or empty (PostgreSQL)."""
    if request.param == "sqlite":
        return default_url(tmp_path / "new" / "folder")
    return str(request.getfixturevalue("fresh_postgres"))


def open_on_signal(url: str, pipe: Pipe) -> None:
    pipe.send("ready")
    pipe.recv()
    try:
        storage = open_storage(url)
        pipe.send(len(storage.get_all_studies()))
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error}")


def hold_until_killed(url: str, pipe: Pipe) -> None:
    with ownership(url, "mine"):
        pipe.send(os.getpid())
        time.sleep(120)


def write_much(url: str, pipe: Pipe) -> None:
    """Reports and attributes in a tight loop, as on another machine; says when it has begun."""
    trial = attach(url, "busy", pipe.recv())
    trial.set_user_attr("twice", 2 * trial.params["x"])
    for step in range(pipe.recv()):
        trial.report(float(step), step)
        trial.set_user_attr(f"at {step}", step)
        if step == 3:
            pipe.send("under way")
    pipe.send("done")


def start(target: object, url: str) -> tuple[multiprocessing.process.BaseProcess, Pipe]:
    ours, theirs = FORKSERVER.Pipe()
    process = FORKSERVER.Process(target=target, args=(url, theirs), daemon=True)  # type: ignore[arg-type]
    process.start()
    return process, ours


def message_of(pipe: Pipe) -> object:
    assert pipe.poll(100), "the process sent nothing"
    return pipe.recv()


def test_processes_open_a_new_database_at_once(url: str) -> None:
    children = [start(open_on_signal, url) for _ in range(4)]
    assert [message_of(pipe) for _, pipe in children] == ["ready"] * 4
    for _, pipe in children:
        pipe.send("go")
    assert [message_of(pipe) for _, pipe in children] == [0] * 4
    for process, _ in children:
        process.join(30)
    study = optuna.create_study(storage=open_storage(url), study_name="after")
    study.tell(study.ask(), 1.0)
    assert optuna.load_study(storage=open_storage(url), study_name="after").best_value == 1.0


def test_many_processes_write_while_one_asks_and_one_is_killed(url: str) -> None:
    study = optuna.create_study(storage=open_storage(url), study_name="busy")
    children = [start(write_much, url) for _ in range(3)]
    for number, (_, pipe) in enumerate(children):
        trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        pipe.send(trial._trial_id)
        pipe.send(1_000_000 if number == 0 else 15)
    victim, pipe = children[0]
    assert message_of(pipe) == "under way"
    for _ in range(10):
        study.tell(study.ask(), 1.0)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    for _, pipe in children[1:]:
        assert [message_of(pipe), message_of(pipe)] == ["under way", "done"]
    trials = optuna.load_study(storage=open_storage(url), study_name="busy").trials
    for trial in trials[1:3]:
        assert len(trial.intermediate_values) == 15
        notes = {f"at {step}": step for step in range(15)}
        assert trial.user_attrs == {"twice": 2 * trial.params["x"], **notes}
    lost = trials[0]
    assert 4 <= len(lost.intermediate_values) < 1_000_000
    assert 0 <= len(lost.intermediate_values) - (len(lost.user_attrs) - 1) <= 1
    assert [trial.value for trial in trials[3:]] == [1.0] * 10


def test_attaching_to_a_missing_trial_is_reported(tmp_path: Path) -> None:
    url = default_url(tmp_path)
    optuna.create_study(storage=open_storage(url), study_name="s").ask()
    for study, trial_id in (("s", 12345), ("other", 1)):
        with pytest.raises(UserError, match=f"no study '{study}' with a trial of id {trial_id}"):
            attach(url, study, trial_id)


def test_a_second_scheduler_is_refused_until_the_first_is_killed(url: str) -> None:
    process, pipe = start(hold_until_killed, url)
    pid = message_of(pipe)
    since = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+"
    host = re.escape(os.uname().nodename)
    expected = rf"study mine is being run by {host}, process {pid}, since {since}: wait"
    with pytest.raises(UserError, match=expected), ownership(url, "mine"):
        pass
    with ownership(url, "another") as is_held:
        assert is_held()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    # A server needs a moment to see that its client is gone.
    deadline = time.monotonic() + 30
    while True:
        try:
            with ownership(url, "mine") as is_held:
                assert is_held()
            break
        except UserError:
            assert time.monotonic() < deadline, "the killed owner still owns the study"
            time.sleep(0.05)
    assert not is_held()


def test_a_second_lock_in_the_same_process_is_refused(url: str) -> None:
    first, second = ownership(url, "a/b c"), ownership(url, "a/b c")
    with first, pytest.raises(UserError, match="study a/b c is being run by"), second:
        pass
    with ownership(url, "a/b c") as is_held:
        assert is_held()


def drop_connections(url: str) -> None:
    """As a server that is restarted does."""
    import psycopg

    others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"SELECT pg_terminate_backend(pid) {others}")


def test_a_lost_lock_is_taken_again_unless_another_process_had_it(fresh_postgres: str) -> None:
    retry = Retry(KEY, fresh_postgres, 5.0)
    with ownership(fresh_postgres, "mine", retry) as is_held:
        drop_connections(fresh_postgres)
        assert is_held()
        with pytest.raises(UserError, match="is being run by"), ownership(fresh_postgres, "mine"):
            pass
        drop_connections(fresh_postgres)
        with ownership(fresh_postgres, "mine") as is_held_again:
            assert is_held_again()
        assert not is_held()
        with pytest.raises(UserError, match="mine: another process has run it while the database"):
            retry.restore()
        with ownership(fresh_postgres, "mine"):
            pass
    assert not is_held()


@pytest.fixture
def lossy(monkeypatch: pytest.MonkeyPatch) -> Lossy:
    """`with lossy(n, first)`: a server does what it is asked for, but each n-th answer is lost."""
    from sqlalchemy.orm import Session

    commit = Session.commit

    @contextmanager
    def patched(period: int, first: int = 0) -> Iterator[None]:
        numbers = itertools.count(-first)

        def lose(session: Session) -> None:
            commit(session)
            if next(numbers) % period == 0:
                raise OperationalError("COMMIT", None, ConnectionError("the answer is lost"))

        with monkeypatch.context() as patch:
            patch.setattr(retry_module, "_FIRST_PAUSE", 0.0)
            patch.setattr("optuna.storages._rdb.storage.random.random", lambda: 0.0)
            patch.setattr(Session, "commit", lose)
            yield

    return patched


def test_an_outage_loses_and_doubles_nothing(fresh_postgres: str, lossy: Lossy) -> None:
    storage = open_storage(fresh_postgres, Retry(KEY, fresh_postgres, 60.0))
    with lossy(2):  # the first answer to each access
        study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
        study.enqueue_trial({"x": 0.25})
        for trial in (study.ask(), study.ask()):
            trial.suggest_float("x", 0, 1)
            trial.report(0.5, 1)
            trial.set_user_attr("a", 1)
            study.tell(trial, 1.0)
        study.ask()
    trials = optuna.load_study(study_name="s", storage=open_storage(fresh_postgres)).trials
    states = [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.RUNNING]
    assert [trial.state for trial in trials] == states
    assert trials[0].params == {"x": 0.25}
    for trial in trials[:2]:
        assert (trial.value, trial.intermediate_values) == (1.0, {1: 0.5})
        assert trial.user_attrs == {"a": 1}


def test_a_run_in_a_database_that_is_away_for_a_while_is_whole(
    tmp_path: Path, fresh_postgres: str, lossy: Lossy
) -> None:
    uri = resolve_url(fresh_postgres)  # the server has the C locale
    store = Store(uri, "outage", tmp_path).open()
    store.retry.seconds = 10.0
    for first in range(17):
        with lossy(17, first), Run.start(store, f"{first}", {"a": "1"}, {"width": 8}) as run:
            run.log({"loss": 0.5}, step=1)
            run.log({"loss": 0.25}, step=2)
            run.tag(a="2", b="3")
            run.untag("b")
            run.text("content", "note.txt")
    recorded = list(Store(store.uri, "outage", tmp_path).search())
    assert [run.info.run_name for run in recorded] == [str(first) for first in range(16, -1, -1)]
    for run in recorded:
        assert run.info.status == "FINISHED"
        assert (run.data.tags["a"], run.data.params) == ("2", {"width": "8"})
        assert "b" not in run.data.tags
        entries = store.client.get_metric_history(run.info.run_id, "loss")
        assert [entry.value for entry in entries] == [0.5, 0.25]


def test_an_outage_that_lasts_too_long_ends_in_one_line(
    fresh_postgres: str,
    postgres_server: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    retry = Retry(KEY, fresh_postgres, 1.0)
    study = optuna.create_study(storage=open_storage(fresh_postgres, retry), study_name="s")
    postgres_server.stop()
    try:
        problem = r"hydra.sweeper.storage: cannot use .*: connection .*\(waited for 1 s; the same "
        with pytest.raises(UserError, match=problem) as caught:
            study.ask()
        pauses: list[float] = []
        monkeypatch.setattr(time, "sleep", pauses.append)
        with pytest.raises(UserError, match="cannot use"):  # the process is ending: no more waiting
            study.tell(0, 1.0)
        monkeypatch.undo()
        assert pauses == []
    finally:
        postgres_server.start()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "s3cret" not in f"{caplog.text}{caught.value}"
    assert "\n" not in f"{caplog.messages[0]}{caught.value}"


def test_a_study_goes_on_after_its_server_was_restarted(
    tmp_path: Path, empty_database: Path, fresh_postgres: str, postgres_server: Any
) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    arguments = [f"folder={tmp_path}", f"storage={fresh_postgres}", "n_jobs=2", "seconds=0.4"]
    arguments += ["epochs=4", "a=range(3)", "b=range(4)"]
    command = [sys.executable, "-m", "benchmarks.sweep.harness", *arguments]
    owner = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 100
    while len(list(tmp_path.glob("trials/*"))) < 4:
        assert owner.poll() is None, owner.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    postgres_server.stop()
    time.sleep(2)
    postgres_server.start()
    output, errors = owner.communicate(timeout=120)
    assert owner.returncode == 0, errors
    assert json.loads(output)["counted"] == 12
    said = [line for line in errors.splitlines() if "waiting for up to 300 s" in line]
    assert len(said) == 1
    assert "Traceback" not in errors
    trials = optuna.load_study(study_name="stubs", storage=open_storage(fresh_postgres)).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 12
    numbers = [10 * trial.params["a"] + trial.params["b"] for trial in trials]
    assert sorted(numbers) == [10 * a + b for a in range(3) for b in range(4)]
    assert [trial.value for trial in trials] == [number / 1000 for number in numbers]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:///", "must be sqlite:///<file>"),
        ("sqlite:///:memory:", "must be sqlite:///<file>"),
        ("sqlite:///a%20b.db", "without % and"),
        ("optuna.db", "must be sqlite:///<file>"),
        ("mysql://me:hush@there/db", "but got mysql://me:[*]{3}@there/db"),
        ("postgresql://me:hush@there:port/db", "but got postgresql://me:[*]{3}@there:port/db"),
        ("postgresql://me:hu@sh@there/db", "%40, but got postgresql://me:[*]{3}@there/db"),
    ],
)
def test_impossible_urls_are_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_storage(url)
    assert caught.value.key == "hydra.sweeper.storage"
    assert not re.search("hush|sh@", str(caught.value))


USES = [open_storage, lambda url: attach(url, "s", 1), lambda url: ownership(url, "s").__enter__()]


@pytest.mark.parametrize("use", USES)
def test_a_missing_server_is_reported_in_one_line_without_the_password(use: object) -> None:
    pytest.importorskip("psycopg")
    problem = r"cannot use postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/db: "
    with pytest.raises(UserError, match=problem) as caught:
        use("postgresql://me:hush@127.0.0.1:1/db")  # type: ignore[operator]
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_password_is_reported_without_showing_it(postgres_url: str) -> None:
    with pytest.raises(UserError, match="password authentication failed") as caught:
        open_storage(postgres_url.replace("s3cret", "hush"))
    assert "hush" not in str(caught.value)


def test_a_file_that_is_no_database_is_reported(tmp_path: Path) -> None:
    (tmp_path / "optuna.db").write_text("not a database, but long enough to look like one" * 40)
    with pytest.raises(UserError, match="file is not a database"):
        open_storage(default_url(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot use sqlite"):
        open_storage(default_url(tmp_path / "file"))


def test_a_missing_driver_is_reported_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(DependencyError, match=r"pip install -e '\.\[postgres\]'"):
        open_storage("postgresql://me@127.0.0.1:1/db")


def test_urls_are_absolute_and_opening_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_url("sqlite:///sub/my.db") == f"sqlite:///{tmp_path}/sub/my.db"
    assert resolve_url(resolve_url("sqlite:///sub/my.db")) == resolve_url("sqlite:///sub/my.db")
    assert default_url(Path("sub")) == f"sqlite:///{tmp_path}/sub/optuna.db"
    assert resolve_url("postgres://u:p@h/d") == resolve_url("postgresql+psycopg://u:p@h/d")
    optuna.create_study(storage=open_storage("sqlite:///sub/{brace} my.db"), study_name="s")
    assert (tmp_path / "sub" / "{brace} my.db").exists()
    assert capfd.readouterr() == ("", "")


# The journal of a SQLite file suits its disk


@pytest.mark.parametrize(
    ("kind", "local"), [("ext4", True), ("XFS", True), ("nfs4", False), ("lustre", False)]
)
def test_disk_is_known_by_the_innermost_mount(
    monkeypatch: pytest.MonkeyPatch, kind: str, local: bool
) -> None:
    other = "nfs" if local else "ext4"
    kinds = {"/": other, "/home": kind, "/home/me/far": other, "/homes": other}
    mounts = [SimpleNamespace(mountpoint=path, fstype=name) for path, name in kinds.items()]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    assert is_local(Path("/home/me/sweeps/optuna.db")) is local
    assert is_local(Path("/home/me/far/optuna.db")) is not local
    mounts.clear()
    assert not is_local(Path("/home/optuna.db"))  # an unknown disk counts as shared


def test_journal_follows_the_file_from_disk_to_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "a.db"
    settings = {False: ("delete", 2), True: ("wal", 1)}  # journal_mode, synchronous
    for local in (False, True, True, False):
        monkeypatch.setattr(storages, "is_local", lambda path, local=local: local)
        storages.set_journal(file, 1.0)
        connection = storages.Connection(str(file))
        names = ("journal_mode", "synchronous")
        modes = tuple(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
        assert modes == settings[local]
        connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
        connection.close()


def test_journal_in_use_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storages, "is_local", lambda path: True)
    user = sqlite3.connect(tmp_path / "a.db")
    user.execute("CREATE TABLE t (x)")
    user.execute("INSERT INTO t VALUES (1)")  # a transaction is open
    storages.set_journal(tmp_path / "a.db", 0.0)
    user.commit()
    assert user.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
