"""Opening and creating stores, and runs whose process is gone."""

import os
import pickle
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from mlflow.exceptions import MlflowException

from src.core.errors import ConfigError
from src.report import COMMAND
from src.tracking.read import artifact, runs
from src.tracking.run import Run
from src.tracking.store import VANISHED, Store, TrackingError, reap

START_A_RUN = """
import sys
from src.tracking.run import Run
from src.tracking.store import Store
store = Store(folder=sys.argv[1]).open()
with Run.start(store, "start") as run:
    run.log({"value": 1.0})
print(store.experiment_id)
"""


def test_processes_that_start_together_create_one_store(tmp_path, root, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db.creating-1").write_text("by a process that was killed")
    command = [sys.executable, "-c", START_A_RUN, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=root, **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=200) for process in processes]
    errors = "".join(error for _, error in outputs)
    assert [process.returncode for process in processes] == [0, 0], errors
    assert len({out for out, _ in outputs}) == 1
    assert errors.count("\n") == errors.count("creating the run store") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    frame = runs(Store(folder=tmp_path))
    assert frame.status.tolist() == ["FINISHED"] * 2
    assert frame["metrics.value"].tolist() == [1.0] * 2


def test_importing_the_package_imports_neither_mlflow_nor_torch(root):
    modules = "src.tracking.run, src.tracking.read, src.tracking.model_registry, src.tracking.ui"
    modules += ", src.reporting.report"
    check = f"import sys, {modules}; assert not {{'mlflow', 'torch'}} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=root).returncode == 0


def test_an_existing_store_opens_silently_and_writes_nothing_to_the_working_directory(
    store, tmp_path, monkeypatch, capfd
):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    with Run.start(store, "run") as run:
        run.text("hello", "hello.txt")
    assert Store(uri=store.uri).open().experiment_id == store.experiment_id
    assert capfd.readouterr() == ("", "")
    assert list(work.iterdir()) == []
    other_process = pickle.loads(pickle.dumps(store))
    assert runs(other_process).run_id.tolist() == [run.id]


def test_default_folder_and_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    default = Store(folder="here")
    assert default.uri == f"sqlite:///{tmp_path}/here/mlflow.db"
    assert default.artifacts == tmp_path / "here" / "artifacts"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///there/x.db")
    from_environment = Store()
    assert from_environment.uri == f"sqlite:///{tmp_path}/there/x.db"
    assert from_environment.artifacts == tmp_path / "there" / "artifacts"
    assert Store(uri="http://localhost:1").is_server
    assert not Store(uri="postgresql+psycopg2://u:p@h/db").is_server


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"uri": "sqlite://"}, "uri"),
        ({"uri": "sqlite:///:memory:"}, "uri"),
        ({"uri": "file:///tmp/mlruns"}, "uri"),
        ({"uri": "mlruns"}, "uri"),
        ({"experiment": " "}, "experiment"),
        ({"uri": "sqlite:////tmp/a%20b/mlflow.db"}, "folder"),
    ],
)
def test_impossible_arguments_are_refused(arguments, key):
    with pytest.raises(ConfigError) as caught:
        Store(**arguments)
    assert caught.value.key == key


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_server_that_does_not_answer_is_one_line(scheme, free_port):
    with pytest.raises(TrackingError) as caught:
        Store(uri=f"{scheme}://user:secret@127.0.0.1:{free_port}").open()
    message = str(caught.value)
    assert str(free_port) in message
    assert "refused" in message
    assert "secret" not in message
    assert "\n" not in message


def test_a_tracking_server_that_is_away_when_a_trial_starts_is_waited_for(
    tmp_path, free_port, monkeypatch
):
    store = Store(uri=f"http://127.0.0.1:{free_port}", folder=tmp_path)
    store.retry.seconds = 20.0
    answers, refused = iter([None, None, "7"]), MlflowException("the request failed")
    refused.__context__ = ConnectionRefusedError(111, "Connection refused")

    def answer(client, create):
        if (answer := next(answers)) is None:
            raise refused
        return answer

    monkeypatch.setattr(store, "_open_experiment", answer)
    assert store.open().experiment_id == "7"


def test_a_tracking_server_whose_answer_is_lost_has_one_run(server, tmp_path, monkeypatch):
    store = Store(uri=server, experiment="lost", folder=tmp_path).open()
    store.retry.seconds = 20.0
    client, lost = store.client._client, []
    create_run = client.create_run

    def lose(*arguments, **options):
        created = create_run(*arguments, **options)
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"  # it would repeat it unseen
        lost.append(created.info.run_id)
        raise ConnectionError("the answer is lost")

    monkeypatch.setattr(client, "create_run", lose)
    with Run.start(store, "run") as run:
        assert [run.id] == lost
    assert [row.info.run_id for row in store.search()] == lost


def test_an_unusable_store_is_named(store, tmp_path, capfd):
    wrong = tmp_path / "wrong.db"
    wrong.write_text("not a database " * 100)
    with pytest.raises(TrackingError, match="not a database"):
        Store(uri=f"sqlite:///{wrong}").open()
    with pytest.raises(TrackingError, match=r"wrong\.db.*/below"):
        Store(uri=f"sqlite:///{wrong}/below/x.db").open()
    with pytest.raises(TrackingError, match="absent.db: no run store is there: train something"):
        Store(uri=f"sqlite:///{tmp_path}/absent.db").open(create=False)
    store.open()
    with pytest.raises(
        TrackingError, match="experiment 'other': not in .* there are paretoderm, template"
    ):
        Store(uri=store.uri, experiment="other").open(create=False)
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(ConfigError, match="experiment: 'paretoderm' was deleted"):
        Store(uri=store.uri).open()
    assert "Traceback" not in capfd.readouterr().err


def test_artifacts_move_with_their_store(store, tmp_path):
    with Run.start(store, "before") as before:
        before.text("old", "note.txt")
    (copy := tmp_path / "copy").mkdir()
    shutil.move(tmp_path / "artifacts", copy / "artifacts")
    shutil.copy(tmp_path / "mlflow.db", copy)
    moved = Store(uri=f"sqlite:///{copy}/mlflow.db")
    with Run.start(moved, "after") as after:
        after.text("new", "note.txt")
    for run, content in ((before, "old"), (after, "new")):
        path = artifact(moved, run.id, "note.txt")
        assert path.read_text() == content
        assert path.is_relative_to(copy / "artifacts")


def test_a_renamed_host_is_recognised_until_its_next_start_and_named_afterwards(
    store, monkeypatch, caplog
):
    with subprocess.Popen(["true"]) as process:
        pass
    dead = {"pid": process.pid, "process_start": "1.00"}
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "before")
        stale = Run.start(store, "stale", dead)
        older = Run.start(store, "older", {**dead, "boot": "another one"})
    with Run.start(store, "living"):
        assert reap(store) == [stale.id]
    [line] = caplog.messages
    assert f"({older.id} of before): if that was a name of this machine" in line
    assert store.client.get_run(stale.id).info.status == "FAILED"
    assert store.client.get_run(older.id).info.status == "RUNNING"


def test_only_runs_of_dead_processes_are_ended(store):
    client = store.client
    others = [
        client.create_run(store.experiment_id, run_name=name, tags=tags).info.run_id
        for name, tags in (("foreign", {}), ("elsewhere", {"host": "x", "pid": "1"}))
    ]
    with Run.start(store, "living") as living:
        process = subprocess.Popen(["sleep", "600"])
        start = psutil.Process(process.pid).create_time() - psutil.boot_time()
        victim = Run.start(store, "victim", {"pid": process.pid, "process_start": f"{start:.2f}"})
        try:
            assert reap(store) == []
        finally:
            process.kill()
            # dead, and still in the process table: a zombie
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert reap(store) == [victim.id]
        process.wait()
        run = client.get_run(victim.id)
        assert run.info.status == "FAILED"
        assert (run.data.tags["failure"], run.data.tags["trial_state"]) == (VANISHED, "fail")
        assert client.get_run(living.id).info.status == "RUNNING"
        # A process with the id of this run's process has started since.
        reused = Run.start(store, "old", {"process_start": "1.00"})
        assert reap(store) == [reused.id]
        assert reap(store) == []
    assert client.get_run(living.id).info.status == "FINISHED"
    assert {client.get_run(run_id).info.status for run_id in others} == {"RUNNING"}


NAMES = [
    *("model-custom,resnet50", "a b", "a'b", 'a"b', "a=b", "a[b]", "$x", "é黑", "-lead", "a\\"),
    *("{a:1}", "2024", "1e5", "null", "True", "a#b", "(x)", "~x", "a&b;c", "choice(a,b)"),
    *(" a", "a/b", "smoke"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_printed_command_works_as_printed(name: str, tmp_path: Path) -> None:
    """For a shell and for Hydra's grammar, whatever a study and a folder are called."""
    folder = tmp_path / name.replace("/", "")  # the name of a folder beside the study's
    command = Store(folder=folder, experiment=name).report_command(name)
    typed = [COMMAND.hydra_argument(word) for word in shlex.split(command)[3:]]
    parsed = [OverridesParser.create().parse_override(word) for word in typed]
    values = {override.key_or_group: override.value() for override in parsed}
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    assert values == {"study": name, "tracking.uri": uri, "tracking.experiment": name}
    assert "'" not in command or name not in ("a/b", "smoke")
