"""Opening and creating stores, and runs whose process is gone."""

import os
import pickle
import shutil
import signal
import subprocess
import sys

import pytest

from src.core.errors import ConfigError
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


def test_three_processes_create_one_store(tmp_path, root, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db.creating-1").write_text("what a process that was killed half way left")
    command = [sys.executable, "-c", START_A_RUN, str(tmp_path)]
    processes = [
        subprocess.Popen(
            command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=200) for process in processes]
    errors = "".join(error for _, error in outputs)
    assert [process.returncode for process in processes] == [0] * 3, errors
    assert len({out for out, _ in outputs}) == 1
    assert errors.count("\n") == errors.count("creating the run store") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    found = runs(Store(folder=tmp_path))
    assert found.status.tolist() == ["FINISHED"] * 3
    assert found["metrics.value"].tolist() == [1.0] * 3


def test_importing_the_package_imports_neither_mlflow_nor_torch(root):
    modules = "src.tracking.run, src.tracking.read, src.tracking.model_registry, src.tracking.ui"
    check = f"import sys, {modules}; print(bool({{'mlflow', 'torch'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_an_existing_store_opens_in_silence_and_leaves_nothing_where_it_is_opened(
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


def test_default_place_and_environment(tmp_path, monkeypatch):
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
def test_arguments_that_cannot_be(arguments, key):
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


def test_a_file_that_is_no_database_and_a_folder_that_cannot_be(tmp_path, capfd):
    wrong = tmp_path / "mlflow.db"
    wrong.write_text("not a database " * 100)
    with pytest.raises(TrackingError, match="not a database"):
        Store(uri=f"sqlite:///{wrong}").open()
    with pytest.raises(TrackingError, match=r"mlflow\.db.*/below"):
        Store(uri=f"sqlite:///{wrong}/below/x.db").open()
    assert "Traceback" not in capfd.readouterr().err


def test_a_deleted_experiment_is_named(store):
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(ConfigError, match="experiment: 'paretoderm' was deleted"):
        Store(uri=store.uri).open()


def test_a_moved_store_takes_its_artifacts_along(store, tmp_path):
    with Run.start(store, "before") as before:
        before.text("old", "note.txt")
    shutil.copytree(tmp_path / "mlruns", tmp_path / "copy")
    shutil.rmtree(tmp_path / "mlruns" / "artifacts")
    moved = Store(uri=f"sqlite:///{tmp_path}/copy/mlflow.db")
    with Run.start(moved, "after") as after:
        after.text("new", "note.txt")
    for run, content in ((before, "old"), (after, "new")):
        path = artifact(moved, run.id, "note.txt")
        assert path.read_text() == content
        assert path.is_relative_to(tmp_path / "copy" / "artifacts")


def test_discard_and_a_store_in_another_process(store):
    with Run.start(store, "parent") as run:
        pass
    twin = pickle.loads(pickle.dumps(store))
    assert runs(twin).run_id.tolist() == [run.id]
    store.discard(run.id)
    assert runs(twin).empty


HANG = """
import sys, time
from src.tracking.run import Run
from src.tracking.store import Store
with Run.start(Store(uri=sys.argv[1]), "victim"):
    print("started", flush=True)
    time.sleep(600)
"""


def test_a_killed_run_is_found_and_living_ones_are_left(store, root):
    store.open()
    foreign = store.client.create_run(store.experiment_id, run_name="foreign")
    elsewhere = store.client.create_run(
        store.experiment_id, run_name="elsewhere", tags={"host": "x", "pid": "1"}
    )
    with Run.start(store, "living") as living:
        victim = subprocess.Popen(
            [sys.executable, "-c", HANG, store.uri], cwd=root, stdout=subprocess.PIPE, text=True
        )
        try:
            assert victim.stdout is not None
            assert victim.stdout.readline() == "started\n"
            assert reap(store) == []
        finally:
            victim.send_signal(signal.SIGKILL)
            os.waitid(
                os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT
            )  # dead, and still in the process table: a zombie
        ended = reap(store)
        victim.communicate()
        found = runs(store).set_index("name")
        assert ended == [found.run_id["victim"]]
        assert found.status["victim"] == "FAILED"
        assert found["tags.failure"]["victim"] == VANISHED
        assert found["tags.trial_state"]["victim"] == "fail"
        assert found.status["living"] == "RUNNING"
        assert reap(store) == []
    assert store.client.get_run(living.id).info.status == "FINISHED"
    for run in (foreign, elsewhere):
        assert store.client.get_run(run.info.run_id).info.status == "RUNNING"


def test_a_process_id_that_is_used_again_does_not_protect(store):
    with Run.start(store, "old") as run:
        run.tag(process_start="1.00")
        assert reap(store) == [run.id]
