"""Runs, artifacts, histories and predictions read back, with and without the cache."""

import itertools
import logging
import math
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

LONG_AGO = 1_500_000_000_000  # ms
numbers = itertools.count()


@pytest.fixture
def filled(store) -> Store:
    """A store of 20 runs."""
    for number in range(20):
        old_run(store, number)
    return store


@pytest.fixture(params=["database", "server"])
def either_store(request, store, tmp_path) -> Store:
    """A store of each kind, with a folder for its cache."""
    if request.param == "database":
        return store
    return Store(request.getfixturevalue("server"), f"experiment {next(numbers)}", tmp_path)


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """Ids of the runs that were read from a store, in order."""
    ids: list[str] = []
    search = Store.search

    def watched(self, filter="", deleted=False):
        for run in search(self, filter, deleted):
            if not deleted:
                ids.append(run.info.run_id)
            yield run

    monkeypatch.setattr(Store, "search", watched)
    return ids


def old_run(store: Store, number: int, **tags: str) -> str:
    """A run that ended long before any look at the cache."""
    client, began = store.client, LONG_AGO + 1000 * number
    tags = {"kind": "run", **tags}
    run_id = client.create_run(store.experiment_id, began, tags, f"run {number}").info.run_id
    metric, param = Metric("val/loss", number / 7, began, 0), Param("width", str(number))
    client.log_batch(run_id, [metric], [param])
    client.set_terminated(run_id, "FINISHED", began + 500)
    return run_id


def same(store: Store) -> pd.DataFrame:
    """The runs from the cache, which are those of the store."""
    frame = cached_runs(store)
    pd.testing.assert_frame_equal(frame, runs(store))
    return frame


def cache_file(store: Store, kind: str = "runs") -> Path:
    [path] = (store.folder / "cache").glob(f"*-{kind}-*.parquet")
    return path


def warned(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_was_written_is_read(either_store):
    store, table = either_store, pd.DataFrame({"model": ["a,b"], "auroc": [0.1 + 0.2]})
    special = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
    with Run.start(store, "parent", tags={"study": "s"}) as parent:
        for number, name in enumerate(("custom", "resnet50")):
            params = {"model": {"net": {"width": [number, 64]}}, "seed": number}
            with Run.start(store, name, {"model": name}, params, parent.id) as child:
                child.log({"val/loss": 0.1 + 0.2 + number, **special}, step=3)
                child.table(table, "tables/per_class.csv")
    frame = children(store, parent.id).set_index("name").loc[["custom", "resnet50"]]
    expected = {
        "parent_id": [parent.id] * 2,
        "status": ["FINISHED"] * 2,
        "tags.model": ["custom", "resnet50"],
        "params.model.net.width": ["[0, 64]", "[1, 64]"],
        "metrics.val/loss": [0.1 + 0.2, 0.1 + 0.2 + 1],
        "metrics.inf": [math.inf] * 2,
        "metrics.-inf": [-math.inf] * 2,
    }
    assert {name: frame[name].tolist() for name in expected} == expected
    assert frame["metrics.nan"].isna().all()
    assert (frame.end_time >= frame.start_time).all()
    assert str(frame.start_time.dt.tz) == "UTC"
    path = artifact(store, frame.run_id["custom"], "tables/per_class.csv")
    pd.testing.assert_frame_equal(pd.read_csv(path), table)
    assert artifact(store, frame.run_id["custom"], "tables").is_dir()
    assert runs(store, "tags.study = 's'").run_id.tolist() == [parent.id]
    assert runs(store, "metrics.`val/loss` > 1").name.tolist() == ["resnet50"]
    with pytest.raises(ValueError, match="why"), Run.start(store, "dies") as run:
        raise ValueError("why")
    assert store.client.get_run(run.id).data.tags["failure"] == "ValueError: why"
    assert "Traceback" in artifact(store, run.id, "traceback.txt").read_text()


def test_all_pages_are_read(store, monkeypatch):
    monkeypatch.setattr(store_module, "_PAGE", 10)
    expected = {store.client.create_run(store.experiment_id).info.run_id for _ in range(25)}
    frame = runs(store)
    assert len(frame) == 25
    assert set(frame.run_id) == expected
    assert frame.end_time.isna().all()


def test_an_experiment_without_runs_is_an_empty_table(store):
    for _ in range(2):
        frame = same(store)
        assert frame.empty
        assert frame.columns.tolist() == list(read.COLUMNS)


def test_a_missing_run_artifact_or_predictions_and_a_bad_filter_are_named(store):
    with Run.start(store, "run") as run:
        run.text("x", "here.txt")
        run.text("a,b\n1,2\n1,2,3\n", "predictions/val.csv")
    present = "it has: here.txt, predictions"
    for call, message in (
        (lambda: artifact(store, run.id, "gone.txt"), f"no artifact 'gone.txt'; {present}"),
        (lambda: artifact(store, "no_such_run", "x"), "no_such_run"),
        (lambda: runs(store, "study === 3"), "study === 3"),
        (lambda: read.predictions(store, run.id, "test"), f"predictions/test.csv'; {present}"),
        (lambda: read.predictions(store, run.id, "val"), "predictions/val.csv.*is no table"),
    ):
        with pytest.raises(TrackingError, match=message):
            call()


def test_a_file_of_the_working_directory_is_no_artifact(either_store, tmp_path, monkeypatch):
    (tmp_path / "absent.txt").write_text("of no run")
    monkeypatch.chdir(tmp_path)
    with Run.start(either_store, "run") as run:
        run.text("x", "here.txt")
    with pytest.raises(TrackingError, match=r"no artifact 'absent.txt'; it has: here.txt"):
        artifact(either_store, run.id, "absent.txt")


def test_only_new_runs_are_fetched(store, fetched):
    ids = [old_run(store, number, **{f"only_{number}": "x"}) for number in range(5)]
    assert set(cached_runs(store)["run_id"]) == set(ids)
    fetched.clear()
    assert cached_runs(store)["run_id"].tolist() == ids[::-1]
    assert fetched == []
    with Run.start(store, "new", {"study": "s"}, {"width": 9}) as new:
        new.log({"nan": math.nan, "inf": math.inf, "-inf": -math.inf})
    cached_runs(store)
    assert set(fetched) == {new.id}
    frame = same(store).set_index("name")
    assert frame.loc["new", "metrics.-inf"] == -math.inf
    assert math.isnan(frame.loc["new", "metrics.nan"])
    fetched.clear()
    assert len(cached_runs(store, refresh=True)) == 6
    assert set(fetched) == {new.id, *ids}


def test_our_writes_to_ended_runs_are_seen_and_those_of_others_after_a_refresh(store):
    tagged, tested, moved, reopened, deleted = (old_run(store, number) for number in range(5))
    same(store)
    store.client.set_tag(tagged, "note", "by hand")
    assert "tags.note" not in cached_runs(store)
    pd.testing.assert_frame_equal(cached_runs(store, refresh=True), runs(store))
    Run.attach(store, tagged).tag(front="true")
    run = Run.attach(store, tested)
    run.log({f"test/figure_{number}": 0.5 for number in range(1000)})  # more than one request takes
    run.flush()
    with Run.start(store, "trial") as trial:
        Run.attach(store, moved).move_below(trial)
    again = Run.reopen(store, reopened)
    store.client.delete_run(deleted)
    frame = same(store).set_index("run_id")
    assert frame.loc[tagged, "tags.front"] == "true"
    assert frame.loc[tested, "metrics.test/figure_999"] == 0.5
    assert frame.loc[moved, "parent_id"] == trial.id
    assert frame.loc[reopened, "status"] == "RUNNING"
    assert deleted not in frame.index
    with again:
        pass
    store.client.restore_run(deleted)
    frame = same(store).set_index("run_id")
    assert frame.loc[reopened, "status"] == "FINISHED"
    assert deleted in frame.index


def test_only_writes_after_the_end_are_dated(store):
    with Run.start(store, "run") as run:
        Run.attach(store, run.id).tag(a="b")
        run.log({"x": 1.0})
    assert UPDATED not in store.client.get_run(run.id).data.metrics
    before = time.time()
    run.tag(late="1")
    assert before <= store.client.get_run(run.id).data.metrics[UPDATED] <= time.time()
    assert f"metrics.{UPDATED}" not in runs(store)


def change(store: Store, run_id: str, action: str, count: int) -> None:
    if action == "delete":
        store.client.delete_run(run_id)
    elif action in ("FINISHED", "FAILED"):
        store.client.set_terminated(run_id, action)
    elif action == "tag":
        Run.attach(store, run_id).tag(front=count)
    elif action == "log":
        run = Run.attach(store, run_id)
        run.log({f"test/{count}": count, "test/last": math.nan})
        run.flush()
    elif action == "reopen":
        Run.reopen(store, run_id)


ACTIONS = ("begin", "FINISHED", "FAILED", "tag", "log", "reopen", "delete", "restore", "look")


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9)), min_size=8, max_size=15)
)
def test_after_any_changes_the_cache_equals_the_store(store, monkeypatch, steps):
    # With a margin, everything that the test does would be new for ever.
    monkeypatch.setattr(read, "_MARGIN_S", 0.0)
    store = Store(store.uri, f"experiment {next(numbers)}", store.folder)
    ids = [old_run(store, 1), old_run(store, 2)]
    for count, (action, chosen) in enumerate(steps):
        run_id = ids[chosen % len(ids)]
        if action == "begin":
            ids.append(Run.start(store, "begun", {f"tag_{chosen}": count}).id)
        elif action == "look":
            same(store)
        elif action == "restore":
            store.client.restore_run(run_id)
        elif store.client.get_run(run_id).info.lifecycle_stage == "active":
            change(store, run_id, action, count)
    assert set(same(store)["run_id"]) <= set(ids)


def test_an_experiment_that_was_made_anew_is_not_answered_from_the_old_cache(store):
    old_run(store, 1)
    assert len(same(store)) == 1
    with sqlite3.connect(store.database) as connection:
        connection.execute("UPDATE experiments SET creation_time = creation_time + 1")
        connection.execute("DELETE FROM runs")
    assert same(store).empty


def test_experiments_have_caches_of_their_own(store):
    one, other = (Store(store.uri, name, store.folder) for name in ("a b", "a/b"))
    old_run(one, 1)
    for _ in range(2):
        assert (len(same(one)), len(same(other))) == (1, 0)


def spoil(path: Path, way: str) -> None:
    content = path.read_bytes()
    if way == "empty":
        path.write_bytes(b"")
    elif way == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif way == "flipped":  # a byte among the run ids
        at = pq.read_metadata(path).row_group(0).column(0).dictionary_page_offset + 200
        path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
    else:
        pd.DataFrame({"run_id": ["x"]}).to_parquet(path)


def test_a_file_that_cannot_be_used_is_made_anew(filled, caplog):
    for way in ("empty", "cut", "flipped", "not ours"):
        cached_runs(filled)
        path = cache_file(filled)
        content = path.read_bytes()
        spoil(path, way)
        assert path.read_bytes() != content
        caplog.clear()
        assert len(same(filled)) == 20
        [warning] = warned(caplog)
        assert str(path) in warning
        caplog.clear()
        same(filled)
        assert warned(caplog) == []


def test_a_folder_that_cannot_be_written_is_reported_once(store, caplog):
    old_run(store, 1)
    (store.folder / "cache").write_text("not a folder")
    assert len(same(store)) == len(same(store)) == 1
    [warning] = warned(caplog)
    assert "cannot be written" in warning


def test_concurrent_readers_agree(filled):
    frames: list[pd.DataFrame] = []

    def read_all() -> None:
        store = Store(filled.uri, folder=filled.folder)
        frames.extend(cached_runs(store, refresh) for refresh in (True, False, True))

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(frames) == 12
    for frame in frames:
        pd.testing.assert_frame_equal(frame, frames[0])
    assert {path.suffix for path in (filled.folder / "cache").iterdir()} == {".parquet", ".lock"}


def test_passwords_are_not_stored(server, tmp_path):
    store = Store(server.replace("http://", "http://user:s3cret@"), "with password", tmp_path)
    old_run(store, 1)
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


def test_histories_are_what_was_logged(either_store):
    curves = ([0.5, math.nan, 1 / 3], [math.inf, -math.inf], [])
    ids = [curve(either_store, values) for values in curves]
    expected = pd.DataFrame(
        {
            "run_id": [ids[0]] * 3 + [ids[1]] * 2,
            "step": [0, 1, 2, 0, 1],
            "value": [*curves[0], *curves[1]],
        }
    )
    for _ in range(2):
        pd.testing.assert_frame_equal(read.history(either_store, ids, "val/loss"), expected)
    one = read.history(either_store, ids[1:2], "val/loss")
    assert one["run_id"].unique().tolist() == ids[1:2]
    # Of several values at a step the last one counts.
    run_id = curve(either_store, [])
    for value, when in ((0.9, 10), (0.1, 30), (0.5, 20)):
        either_store.client.log_metric(run_id, "val/loss", value, when, 4)
    histories = read.history(either_store, [run_id], "val/loss", refresh=True)
    assert histories["value"].tolist() == [0.1]
    assert read.history(either_store, ids, "no/such").empty
    assert read.history(either_store, [], "val/loss").empty


def test_histories_of_ended_runs_are_cached_until_their_record_changes(store):
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


def test_predictions_are_what_was_recorded_and_cached_until_the_record_changes(either_store):
    store, table = (
        either_store,
        pd.DataFrame(
            {
                "image_id": ["0017", "1e5", "NA"],
                "group": ["001", "nan", ""],
                "label": ["0", "1", "0"],
                "p/0": [0.1 + 0.2, 1e-30, 1 / 3],
                "p/1": [1.0, 0.0, 2 / 3],
            }
        ),
    )
    with Run.start(store, "run") as run:
        run.table(table, "predictions/test.csv")
        pd.testing.assert_frame_equal(read.predictions(store, run.id, "test"), table)
        assert not list(store.folder.glob("cache/*predictions*.parquet"))
    for _ in range(2):
        pd.testing.assert_frame_equal(read.predictions(store, run.id, "test"), table)
    Run.attach(store, run.id).table(table.head(1), "predictions/test.csv")
    # files of this machine are not cached
    assert len(read.predictions(store, run.id, "test")) == (3 if store.is_server else 1)
    Run.attach(store, run.id).tag(tested="again")
    assert len(read.predictions(store, run.id, "test")) == 1
    assert len(list(store.folder.glob("cache/*predictions*.parquet"))) == store.is_server
    with pytest.raises(TrackingError, match="no_such_run"):
        read.predictions(store, "no_such_run", "test")
