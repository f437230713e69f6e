"""Runs, artifacts, histories and predictions read back, with and without the cache."""

import itertools
import logging
import math
import shutil
import sqlite3
import threading
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.entities import Metric, Param

from src.tracking import read
from src.tracking import store as store_module
from src.tracking.read import artifact, cached_runs, children, runs
from src.tracking.run import UPDATED, Run
from src.tracking.store import Store, TrackingError


def test_what_was_written_is_read(store, tmp_path):
    table = pd.DataFrame({"model": ["custom", "a,b"], "auroc": [0.1 + 0.2, math.nan]})
    with Run.start(store, "parent", tags={"study": "s"}) as parent:
        for number, name in enumerate(("custom", "resnet50")):
            params = {"model": {"net": {"width": [number, 64]}}, "seed": number}
            with Run.start(store, name, {"model": name}, params, parent.id) as child:
                child.log(
                    {
                        "val/loss": 0.1 + 0.2 + number,
                        "nan": math.nan,
                        "inf": math.inf,
                        "-inf": -math.inf,
                    },
                    step=3,
                )
                child.table(table, "tables/per_class.csv")
    found = children(store, parent.id).set_index("name").loc[["custom", "resnet50"]]
    assert found.parent_id.tolist() == [parent.id] * 2
    assert found.status.tolist() == ["FINISHED"] * 2
    assert found["tags.model"].tolist() == ["custom", "resnet50"]
    assert found["params.model.net.width"].tolist() == ["[0, 64]", "[1, 64]"]
    assert found["metrics.val/loss"].tolist() == [0.1 + 0.2, 0.1 + 0.2 + 1]
    assert found["metrics.nan"].isna().all()
    assert found["metrics.inf"].tolist() == [math.inf] * 2
    assert found["metrics.-inf"].tolist() == [-math.inf] * 2
    assert (found.end_time >= found.start_time).all()
    assert str(found.start_time.dt.tz) == "UTC"
    pd.testing.assert_frame_equal(
        pd.read_csv(artifact(store, found.run_id["custom"], "tables/per_class.csv")), table
    )
    assert artifact(store, found.run_id["custom"], "tables").is_dir()
    assert runs(store, "tags.study = 's'").run_id.tolist() == [parent.id]
    assert runs(store, "metrics.`val/loss` > 1").name.tolist() == ["resnet50"]


def test_all_pages_are_read(store, monkeypatch):
    monkeypatch.setattr(store_module, "_PAGE", 10)
    expected = {store.client.create_run(store.experiment_id).info.run_id for _ in range(25)}
    found = runs(store)
    assert len(found) == 25
    assert set(found.run_id) == expected
    assert found.end_time.isna().all()


def test_no_runs_are_an_empty_table(store):
    found = runs(store)
    assert found.columns.tolist() == [
        "run_id",
        "parent_id",
        "status",
        "name",
        "start_time",
        "end_time",
    ]
    assert found.empty


def test_what_is_not_there_is_named(store):
    with Run.start(store, "run") as run:
        run.text("x", "here.txt")
    with pytest.raises(TrackingError, match=r"no artifact 'gone.txt'; it has: here.txt"):
        artifact(store, run.id, "gone.txt")
    with pytest.raises(TrackingError, match="no_such_run"):
        artifact(store, "no_such_run", "x")
    with pytest.raises(TrackingError, match="study === 3"):
        runs(store, "study === 3")


LONG_AGO = 1_500_000_000_000  # ms


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """Ids of the runs that were read from a store, in order."""
    found: list[str] = []
    search = Store.search

    def watched(self, filter="", deleted=False):
        for run in search(self, filter, deleted):
            if not deleted:
                found.append(run.info.run_id)
            yield run

    monkeypatch.setattr(Store, "search", watched)
    return found


@pytest.fixture(scope="module")
def filled_database(empty_database, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "mlflow.db"
    shutil.copy(empty_database, path)
    store = Store(uri=f"sqlite:///{path}")
    for number in range(20):
        old_run(store, number)
    return path


@pytest.fixture
def filled(filled_database, tmp_path) -> Store:
    """A store of 20 runs, its cache beside its database."""
    shutil.copy(filled_database, tmp_path / "mlflow.db")
    return Store(uri=f"sqlite:///{tmp_path}/mlflow.db", folder=tmp_path)


@pytest.fixture(scope="module")
def many(empty_database, tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("many")
    shutil.copy(empty_database, folder / "mlflow.db")
    return Store(uri=f"sqlite:///{folder}/mlflow.db", folder=folder)


def old_run(store: Store, number: int, **tags: str) -> str:
    """A run that ended long before any look at the cache."""
    began = LONG_AGO + 1000 * number
    client = store.client
    run_id = client.create_run(
        store.experiment_id, began, {"kind": "run", **tags}, f"run {number}"
    ).info.run_id
    client.log_batch(
        run_id, [Metric("val/loss", number / 7, began, 0)], [Param("width", str(number))]
    )
    client.set_terminated(run_id, "FINISHED", began + 500)
    return run_id


def same(store: Store) -> pd.DataFrame:
    found = cached_runs(store)
    pd.testing.assert_frame_equal(found, read.runs(store))
    return found


def cache_file(store: Store, kind: str = "runs") -> Path:
    (path,) = (store.folder / "cache").glob(f"*-{kind}-*.parquet")
    return path


def local(store: Store) -> Store:
    """The same store, its cache beside its database."""
    return Store(store.uri, folder=store.database.parent)


def test_an_empty_experiment(store):
    assert same(local(store)).empty
    assert same(local(store)).empty


def test_only_what_is_new_is_fetched(store, fetched):
    store = local(store)
    known = [old_run(store, number, **{f"only_{number}": "x"}) for number in range(5)]
    assert set(cached_runs(store)["run_id"]) == set(known)
    fetched.clear()
    same_again = cached_runs(store)
    assert fetched == []
    assert same_again["run_id"].tolist() == known[::-1]
    with Run.start(store, "new", {"study": "s"}, {"width": 9}) as new:
        new.log({"nan": math.nan, "inf": math.inf, "-inf": -math.inf})
    fetched.clear()
    cached_runs(store)
    assert set(fetched) == {new.id}
    found = same(store).set_index("name")
    assert found.loc["new", "metrics.-inf"] == -math.inf
    assert math.isnan(found.loc["new", "metrics.nan"])
    fetched.clear()
    assert len(cached_runs(store, refresh=True)) == 6
    assert set(fetched) == {new.id, *known}


def test_what_our_code_does_to_runs_that_ended_is_seen(store):
    store = local(store)
    tagged, tested, moved, went_on, removed, parent = (
        old_run(store, number) for number in range(6)
    )
    same(store)
    Run.attach(store, tagged).tag(front="true", tested="as a member of the front")
    assert same(store).set_index("run_id")["tags.front"].to_dict()[tagged] == "true"
    run = Run.attach(store, tested)
    run.log({f"test/figure_{number}": 0.5 for number in range(1000)})  # more than one request takes
    run.flush()
    assert same(store).set_index("run_id").loc[tested, "metrics.test/figure_999"] == 0.5
    with Run.start(store, "trial") as trial:
        Run.attach(store, moved).move_below(trial)
    assert same(store).set_index("run_id").loc[moved, "parent_id"] == trial.id
    reopened = Run.reopen(store, went_on)
    assert same(store).set_index("run_id").loc[went_on, "status"] == "RUNNING"
    with reopened:
        pass
    assert same(store).set_index("run_id").loc[went_on, "status"] == "FINISHED"
    store.discard(removed)
    assert removed not in set(same(store)["run_id"])
    store.client.restore_run(removed)
    assert removed in set(same(store)["run_id"])
    assert parent in set(same(store)["run_id"])


def test_what_was_changed_by_hand_needs_a_refresh(store):
    store = local(store)
    run_id = old_run(store, 1)
    same(store)
    store.client.set_tag(run_id, "note", "by hand")
    assert "tags.note" not in cached_runs(store)
    pd.testing.assert_frame_equal(cached_runs(store, refresh=True), read.runs(store))
    assert "tags.note" in same(store)


def test_writes_are_dated_after_the_end_alone(store):
    with Run.start(store, "run") as run:
        Run.attach(store, run.id).tag(a="b")
        run.log({"x": 1.0})
        assert UPDATED not in store.client.get_run(run.id).data.metrics
    assert UPDATED not in store.client.get_run(run.id).data.metrics
    before = time.time()
    run.tag(late="1")
    assert before <= store.client.get_run(run.id).data.metrics[UPDATED] <= time.time()
    assert f"metrics.{UPDATED}" not in read.runs(store)


ACTIONS = ("begin", "end", "fail", "tag", "log", "reopen", "delete", "restore", "look")
numbers = itertools.count()


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9)), min_size=5, max_size=15)
)
def test_after_anything_the_cache_says_what_the_store_says(many, monkeypatch, steps):
    monkeypatch.setattr(read, "MARGIN_S", 0.0)  # or all that a test does would be new for ever
    store = Store(many.uri, f"experiment {next(numbers)}", many.folder)
    ids = [old_run(store, 1), old_run(store, 2)]
    for count, (action, chosen) in enumerate([*steps, ("look", 0)]):
        run_id = ids[chosen % len(ids)]
        info = store.client.get_run(run_id).info
        if action == "begin":
            ids.append(Run.start(store, "begun", {f"tag_{chosen}": count}).id)
        elif action == "look":
            same(store)
        elif action == "restore":
            store.client.restore_run(run_id)
        elif info.lifecycle_stage == "active":
            change(store, run_id, info.status, action, count)


def change(store: Store, run_id: str, status: str, action: str, count: int) -> None:
    if action == "delete":
        store.discard(run_id)
    elif action in ("end", "fail") and status == "RUNNING":
        store.client.set_terminated(run_id, "FINISHED" if action == "end" else "FAILED")
    elif action == "tag":
        Run.attach(store, run_id).tag(front=count)
    elif action == "log":
        run = Run.attach(store, run_id)
        run.log({f"test/{count}": count, "test/last": math.nan})
        run.flush()
    elif action == "reopen":
        Run.reopen(store, run_id)


def test_a_store_that_was_made_anew_is_not_answered_from_the_old_one(
    store, empty_database, tmp_path
):
    before = local(store)
    old_run(before, 1)
    assert len(same(before)) == 1
    (tmp_path / "anew").mkdir()
    shutil.copy(empty_database, tmp_path / "anew" / "mlflow.db")
    anew = Store(f"sqlite:///{tmp_path}/anew/mlflow.db", folder=tmp_path / "anew")
    assert same(anew).empty
    # a process keeps its database open: in place of a second store under the old path, the old
    # cache under a new one
    shutil.copy(cache_file(before), cache_file(anew))
    assert same(anew).empty


def test_experiments_are_apart(store):
    one, other = (Store(store.uri, name, store.database.parent) for name in ("a b", "a/b"))
    old_run(one, 1)
    assert (len(same(one)), len(same(other))) == (1, 0)
    assert (len(same(one)), len(same(other))) == (1, 0)


def spoil(path: Path, way: str) -> None:
    content = path.read_bytes()
    if way == "empty":
        path.write_bytes(b"")
    elif way == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif way == "flipped":
        middle = (
            pq.read_metadata(path).row_group(0).column(0).dictionary_page_offset + 200
        )  # among the run ids
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    elif way == "not ours":
        pd.DataFrame({"run_id": ["x"]}).to_parquet(path)
    else:
        table = pq.read_table(path)
        (name, said), *_ = table.schema.metadata.items()
        older = said.replace(f'"format": {read.FORMAT}'.encode(), b'"format": 0')
        pq.write_table(table.replace_schema_metadata({name: older}), path)


@pytest.mark.parametrize("way", ["empty", "cut", "flipped", "not ours", "older"])
def test_a_file_that_cannot_be_used_is_made_anew(filled, caplog, way):
    store = filled
    cached_runs(store)
    path = cache_file(store)
    whole = path.read_bytes()
    spoil(path, way)
    assert path.read_bytes() != whole
    assert len(same(store)) == 20
    assert [record.levelname for record in caplog.records if record.levelno >= logging.WARNING] == [
        "WARNING"
    ]
    assert str(path) in caplog.text
    caplog.clear()
    same(store)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_folder_that_cannot_be_written_is_said_once(store, caplog):
    store = local(store)
    old_run(store, 1)
    (store.folder / "cache").write_text("not a folder")
    assert len(same(store)) == 1
    assert len(same(store)) == 1
    assert [record.levelname for record in caplog.records if record.levelno >= logging.WARNING] == [
        "WARNING"
    ]
    assert "cannot be written" in caplog.text


def test_readers_at_once_agree(filled):
    store = filled
    frames: list[pd.DataFrame] = []

    def read_all() -> None:
        own = local(store)
        for refresh in (True, False, True):
            frames.append(cached_runs(own, refresh))

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(frames) == 12
    for frame in frames:
        pd.testing.assert_frame_equal(frame, frames[0])
    assert {path.suffix for path in (store.folder / "cache").iterdir()} == {".parquet", ".lock"}


def test_passwords_are_not_kept(server, tmp_path):
    store = Store(server.replace("http://", "http://user:s3cret@"), "with password", tmp_path)
    old_run(store, 1)
    assert len(same(store)) == 1
    read.history(store, same(store)["run_id"], "val/loss")
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 4
    for path in files:
        assert "s3cret" not in path.name
        assert b"s3cret" not in path.read_bytes()


def curve(store: Store, values: list[float], ended: bool = True) -> str:
    run = Run.start(store, "run")
    for step, value in enumerate(values):
        run.log({"val/loss": value}, step)
    run.flush()
    if ended:
        store.client.set_terminated(run.id)
    return run.id


@pytest.fixture(params=["database", "server"])
def kept_store(request, store, tmp_path) -> Store:
    """Stores of both kinds, with a folder for their caches."""
    if request.param == "database":
        return local(store)
    return Store(request.getfixturevalue("server"), f"experiment {next(numbers)}", tmp_path)


def test_histories_are_what_was_logged(kept_store):
    curves = {
        curve(kept_store, values): values
        for values in ([0.5, math.nan, 1 / 3], [math.inf, -math.inf], [])
    }
    ids = [*curves]
    wanted = [(run_id, step, value) for run_id in ids for step, value in enumerate(curves[run_id])]
    for _ in range(2):
        found = read.history(kept_store, ids, "val/loss")
        assert found.columns.tolist() == ["run_id", "step", "value"]
        assert (str(found["step"].dtype), str(found["value"].dtype)) == ("int64", "float64")
        pd.testing.assert_frame_equal(
            found, pd.DataFrame(wanted, columns=["run_id", "step", "value"])
        )
    assert read.history(kept_store, ids[1:2], "val/loss")["run_id"].unique().tolist() == ids[1:2]
    assert read.history(kept_store, ids, "no/such").empty


def test_histories_of_ended_runs_are_kept_until_their_record_changes(store):
    store = local(store)
    ended, running = curve(store, [1.0, 2.0]), curve(store, [3.0], ended=False)

    def values() -> list[float]:
        return read.history(store, [running, ended], "val/loss")["value"].tolist()

    def set_all(value: float) -> None:
        with sqlite3.connect(store.database) as connection:
            connection.execute("UPDATE metrics SET value = ? WHERE key = 'val/loss'", (value,))

    assert values() == [3.0, 1.0, 2.0]
    set_all(7.0)
    assert values() == [7.0, 1.0, 2.0]
    assert read.history(store, [ended], "val/loss", refresh=True)["value"].tolist() == [7.0, 7.0]
    set_all(8.0)
    Run.attach(store, ended).tag(tested="now")
    assert values() == [8.0, 8.0, 8.0]


def test_of_several_values_at_a_step_the_last_one_counts(store):
    store = local(store)
    run = Run.start(store, "run")
    for value, when in ((0.9, 10.0), (0.1, 30.0), (0.5, 20.0)):
        run.log({"val/loss": value}, 4, when)
    run.flush()
    assert read.history(store, [run.id], "val/loss")["value"].tolist() == [0.1]


def test_a_server_that_cuts_off_is_asked_for_less(server, tmp_path, monkeypatch):
    monkeypatch.setattr(read, "_VALUES_PER_REQUEST", 4)
    store = Store(server, f"experiment {next(numbers)}", tmp_path)
    lengths = [1, 2, 6, 1, 3]
    ids = [curve(store, [1.0] * length) for length in lengths]
    found = read.history(store, ids, "val/loss")
    assert found.groupby("run_id", sort=False).size().tolist() == lengths


PREDICTIONS = pd.DataFrame(
    {
        "image_id": ["0017", "1e5", "NA"],
        "group": ["001", "nan", ""],
        "label": ["0", "1", "0"],
        "p/0": [0.1 + 0.2, 1e-30, 1 / 3],
        "p/1": [1.0, 0.0, 2 / 3],
    }
)


@pytest.fixture
def predicted(kept_store) -> str:
    with Run.start(kept_store, "run") as run:
        run.table(PREDICTIONS, "predictions/test.csv")
    return run.id


def test_predictions_are_what_was_recorded(kept_store, predicted):
    for _ in range(2):
        pd.testing.assert_frame_equal(read.predictions(kept_store, predicted, "test"), PREDICTIONS)
    with pytest.raises(
        TrackingError, match=r"no artifact 'predictions/val.csv'; it has: predictions"
    ):
        read.predictions(kept_store, predicted, "val")
    with pytest.raises(TrackingError, match="no_such_run"):
        read.predictions(kept_store, "no_such_run", "test")


def test_predictions_from_a_server_are_kept_until_the_record_changes(server, tmp_path):
    store = Store(server, f"experiment {next(numbers)}", tmp_path)
    with Run.start(store, "run") as run:
        run.table(PREDICTIONS, "predictions/test.csv")
        while_running = read.predictions(store, run.id, "test")
    pd.testing.assert_frame_equal(while_running, PREDICTIONS)
    assert not list(tmp_path.glob("cache/*predictions*.parquet"))
    read.predictions(store, run.id, "test")
    (kept,) = tmp_path.glob("cache/*predictions*.parquet")
    again = Run.attach(store, run.id)
    again.table(PREDICTIONS.head(1), "predictions/test.csv")
    assert len(read.predictions(store, run.id, "test")) == 3
    again.tag(tested="again")
    assert len(read.predictions(store, run.id, "test")) == 1
    assert kept.exists()
