"""Writing runs, how they end, and MLflow's limits."""

import math
import os
import time

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name, _validate_param_name

from src.core.errors import ConfigError
from src.tracking.read import artifact, runs
from src.tracking.run import Run, batches, cut, flatten, recordable, text
from src.tracking.store import TrackingError


def history(store, run, metric):
    return [(entry.step, entry.value) for entry in store.client.get_metric_history(run.id, metric)]


def recorded(store, run):
    entry = store.client.get_run(run.id)
    return entry.info.status, entry.data


def test_a_run_names_its_program_process_and_parent(store):
    with (
        Run.start(store, "parent") as parent,
        Run.start(store, "child", {"trial": 3}, parent_id=parent.id) as child,
    ):
        assert recorded(store, child)[0] == "RUNNING"
    status, data = recorded(store, child)
    assert status == "FINISHED"
    assert data.tags["mlflow.runName"] == child.name == "child"
    assert data.tags["mlflow.parentRunId"] == parent.id
    assert data.tags["pid"] == str(os.getpid())
    start = psutil.Process().create_time() - psutil.boot_time()
    assert float(data.tags["process_start"]) == pytest.approx(start, abs=1)
    assert data.tags["trial"] == "3"
    assert data.tags["trial_state"] == "complete"
    assert "failure" not in data.tags


def test_parameters_beyond_mlflows_limits(store):
    params = {
        "group": {f"p{number}": number for number in range(250)},
        "long": "é" * 7000,
        "a@b": 1,
    }
    with Run.start(store, "run", tags={"long": "x" * 9000}, params=params) as run:
        pass
    _, data = recorded(store, run)
    assert len(data.params) == 252
    assert data.params["group.p249"] == "249"
    assert len(data.params["long"]) == 6000
    assert "cut from 7000 characters, sha256" in data.params["long"]
    assert data.params["a_b"] == "1"
    assert len(data.tags["long"]) == 8000


def test_a_run_whose_start_fails_is_not_left_running(store):
    with pytest.raises(ConfigError, match="a_: would be recorded as 'a_', like another key"):
        Run.start(store, "run", params={"a@": 1, "a_": 2})
    assert runs(store).status.tolist() == ["FAILED"]


def test_more_metrics_than_a_batch_takes(store):
    with Run.start(store, "run") as run:
        for step in range(50):
            run.log({f"val/m{number}": step + number / 100 for number in range(50)}, step)
        run.log({"val/m0": math.nan}, 50)
    for number in range(50):
        written = history(store, run, f"val/m{number}")[:50]
        assert written == [(step, step + number / 100) for step in range(50)]
    assert math.isnan(recorded(store, run)[1].metrics["val/m0"])


def test_the_last_value_of_a_step_is_the_one_that_counts(store):
    with Run.start(store, "run") as run:
        for value in (3.0, 1.0, 2.0):
            run.log({"best": value})
    assert recorded(store, run)[1].metrics["best"] == 2.0


def test_timestamps_are_kept(store):
    with Run.start(store, "run") as run:
        run.log({"a": 1}, timestamp=1234.5)
    assert store.client.get_metric_history(run.id, "a")[0].timestamp == 1234500


def test_metrics_are_seen_while_a_long_run_goes_on_and_buffered_in_a_short_one(store):
    with Run.start(store, "run") as run:
        run.log({"loss": 1.0}, 0)
        assert history(store, run, "loss") == []
        run._started -= 3600  # an hour ago
        run.log({"loss": 0.5}, 1)
        assert history(store, run, "loss") == [(0, 1.0), (1, 0.5)]
        assert 0 < run.seconds < time.monotonic()


def test_two_names_that_would_become_one_are_refused(store):
    message = r"'f1/a\(b' and 'f1/a\)b' would both be 'f1/a_b'"
    with Run.start(store, "run") as run, pytest.raises(TrackingError, match=message):
        run.log({"f1/a(b": 1.0, "f1/a)b": 2.0})


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("the loss is\nnot finite"), "FAILED", "ValueError: the loss is not finite"),
        (MemoryError(), "FAILED", "MemoryError"),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"),
        (SystemExit(143), "KILLED", "SystemExit: 143"),
    ],
)
def test_a_run_that_dies_says_why_and_keeps_what_it_had(store, error, status, reason):
    def train():
        with run:
            run.log({"loss": 0.25}, step=7)
            raise error

    run = Run.start(store, "run")
    with pytest.raises(type(error)) as caught:
        train()
    assert caught.value is error
    found, data = recorded(store, run)
    assert found == status
    assert data.tags["failure"] == reason
    assert data.tags["trial_state"] == "fail"
    trace = artifact(store, run.id, data.tags["failure_log"]).read_text()
    assert trace.startswith("Traceback")
    assert "raise error" in trace
    assert history(store, run, "loss") == [(7, 0.25)]


def test_lightnings_exit_after_ctrl_c_is_told_as_what_it_was(store):
    def train():
        with run:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                raise SystemExit(1)  # noqa: B904  as pytorch_lightning.trainer.call does

    run = Run.start(store, "run")
    with pytest.raises(SystemExit):
        train()
    assert recorded(store, run)[1].tags["failure"] == "KeyboardInterrupt"


def test_a_record_that_cannot_be_written_does_not_hide_the_error(store, caplog):
    def train():
        with run:
            run.log({"loss": 1.0})
            store.discard(run.id)  # nothing can be written to a deleted run
            raise ValueError("the real one")

    run = Run.start(store, "run")
    with pytest.raises(ValueError, match="the real one") as caught:
        train()
    assert "the record is incomplete" in "".join(caught.value.__notes__)
    assert "the record is incomplete" in caplog.text


def test_a_record_that_stays_incomplete_is_no_success(store):
    with (
        pytest.raises(TrackingError, match="the record is incomplete"),
        Run.start(store, "run") as run,
    ):
        run.log({"loss": 1.0}, timestamp=-5)  # MLflow takes no time before 1970
    status, data = recorded(store, run)
    assert status == "FAILED"
    assert data.tags["failure"].startswith("the record is incomplete: ")
    assert data.tags["trial_state"] == "fail"


def test_a_flush_that_fails_on_the_way_is_tried_again(store, caplog):
    with Run.start(store, "run") as run:
        run._started -= 3600
        store.client.delete_run(run.id)
        run.log({"loss": 1.0}, 0)
        assert "not written yet" in caplog.text
        store.client.restore_run(run.id)
        run.log({"loss": 0.5}, 1)
    assert history(store, run, "loss") == [(0, 1.0), (1, 0.5)]


def test_artifacts_files_folders_and_texts(store, tmp_path):
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "roc.txt").write_text("roc")
    with Run.start(store, "run") as run:
        run.artifact(tmp_path / "charts" / "roc.txt")
        run.artifact(tmp_path / "charts", "figures")
        run.text("é", "config/overrides.yaml")
        with pytest.raises(FileNotFoundError):
            run.artifact(tmp_path / "gone")
    assert artifact(store, run.id, "roc.txt").read_text() == "roc"
    assert artifact(store, run.id, "figures/roc.txt").read_text() == "roc"
    assert artifact(store, run.id, "config/overrides.yaml").read_text(encoding="utf-8") == "é"


@given(st.text(max_size=300))
def test_mlflow_accepts_every_recordable_name(name):
    clean = recordable(name)
    _validate_metric_name(clean)
    _validate_param_name(clean)
    assert 0 < len(clean) <= 250
    assert recordable(clean) == clean


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("efficiency/latency_ms/b1/p50", "efficiency/latency_ms/b1/p50"),
        ("test/recall/naevus (common)", "test/recall/naevus _common_"),
        ("recall@k", "recall_k"),
        ("a//b/", "a/b"),
        ("Lentigo é", "Lentigo é"),
    ],
)
def test_only_what_mlflow_refuses_is_changed(name, expected):
    assert recordable(name) == expected


def test_long_names_that_differ_stay_different():
    assert recordable("x" * 300) != recordable("x" * 301)


def test_flatten_writes_dotted_keys_and_values_as_a_user_types_them():
    config = {
        "model": {"net": {"width": [32, 64], "dropout": 1e-3, "norm": None}, "frozen": True},
        "seed": 0,
        "e": {},
    }
    assert flatten(config) == {
        "model.net.width": "[32, 64]",
        "model.net.dropout": "0.001",
        "model.net.norm": "null",
        "model.frozen": "true",
        "seed": "0",
        "e": "{}",
    }


@given(st.text(max_size=500), st.integers(100, 400))
def test_cut_keeps_to_the_limit_and_tells_values_apart(value, limit):
    short = cut(value, limit)
    assert len(short) <= limit
    assert (short == value) == (len(value) <= limit)
    if len(value) > limit:
        assert short != cut(value + "x", limit)


def test_text_leaves_strings_alone_and_takes_any_object(tmp_path):
    assert text("a: 1") == "a: 1"
    assert str(tmp_path) in text(tmp_path)


@given(st.lists(st.integers()), st.integers(1, 7))
def test_batches_keep_order_and_size(items, size):
    parts = list(batches(items, size))
    assert [item for part in parts for item in part] == items
    assert all(0 < len(part) <= size for part in parts)
