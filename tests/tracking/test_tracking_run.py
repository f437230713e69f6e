"""Writing runs, how they end, and MLflow's limits."""

import json
import math
import os
import time

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_metric_name, _validate_param_name
from sqlalchemy import event
from sqlalchemy.engine import Engine

from src.core.errors import ConfigError, full_disk
from src.tracking import store as tracking
from src.tracking.read import artifact, runs
from src.tracking.run import Run, batches, cut, flatten, masked, recordable, text
from src.tracking.store import Store, TrackingError


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
    assert child.name == "child"
    expected = {"mlflow.runName": "child", "mlflow.parentRunId": parent.id, "pid": str(os.getpid())}
    expected |= {"trial": "3", "trial_state": "complete"}
    assert expected.items() <= data.tags.items()
    start = psutil.Process().create_time() - psutil.boot_time()
    assert float(data.tags["process_start"]) == pytest.approx(start, abs=1)
    assert "failure" not in data.tags


def test_a_data_set_that_another_trial_creates_at_the_same_time_is_an_input(store, monkeypatch):
    counts = {"train": {"mel": 3, "nv": 5}, "val": {"mel": 1, "nv": 2}}
    log_inputs, problems = store.client.log_inputs, [MlflowException("UNIQUE constraint failed")]

    def log(*arguments):
        for problem in problems[:]:
            problems.remove(problem)
            raise problem
        log_inputs(*arguments)

    monkeypatch.setattr(store.client, "log_inputs", log)
    with Run.start(store, "run") as run:
        run.inputs("ham10000", "data/ham10000", "abc", counts)
    inputs = store.client.get_run(run.id).inputs.dataset_inputs
    assert {item.dataset.name for item in inputs} == {"ham10000"}
    assert {json.loads(item.dataset.source)["uri"] for item in inputs} == {"data/ham10000"}
    profiles = {item.tags[0].value: json.loads(item.dataset.profile) for item in inputs}
    assert profiles["train"] == {"num_rows": 8, "classes": {"mel": 3, "nv": 5}}
    assert profiles["val"] == {"num_rows": 3, "classes": {"mel": 1, "nv": 2}}


def test_values_beyond_mlflows_limits_are_batched_and_cut(store):
    params = {"group": {f"p{n}": n for n in range(250)}, "long": "é" * 7000, "a@b": 1}
    with Run.start(store, "run", tags={"long": "x" * 9000}, params=params) as run:
        for step in range(50):
            run.log({f"val/m{n}": step + n / 100 for n in range(50)}, step)
        run.log({"val/m0": math.nan}, 50)
    _, data = recorded(store, run)
    assert len(data.params) == 252
    assert (data.params["group.p249"], data.params["a_b"]) == ("249", "1")
    assert len(data.params["long"]) == 6000
    assert "cut from 7000 characters, sha256" in data.params["long"]
    assert len(data.tags["long"]) == 8000
    for n in (0, 24, 49):
        written = history(store, run, f"val/m{n}")[:50]
        assert written == [(step, step + n / 100) for step in range(50)]
    assert math.isnan(data.metrics["val/m0"])


def test_a_run_whose_start_fails_has_failed(store):
    with pytest.raises(ConfigError, match="a_: would be recorded as 'a_', like another key"):
        Run.start(store, "run", params={"a@": 1, "a_": 2})
    assert runs(store).status.tolist() == ["FAILED"]


def test_the_last_value_of_a_step_counts(store):
    with Run.start(store, "run") as run:
        for value in (3.0, 1.0, 2.0):
            run.log({"best": value})
    assert recorded(store, run)[1].metrics["best"] == 2.0


def test_a_long_run_writes_metrics_at_once_and_tries_again_after_a_failure(store, caplog):
    with Run.start(store, "run") as run:
        run.log({"loss": 1.0}, 0)
        assert history(store, run, "loss") == []
        run._started -= 3600  # an hour ago
        store.client.delete_run(run.id)
        run.log({"loss": 0.5}, 1)
        assert "not written yet" in caplog.text
        store.client.restore_run(run.id)
        run.log({"loss": 0.25}, 2)
        assert history(store, run, "loss") == [(0, 1.0), (1, 0.5), (2, 0.25)]
        assert 0 < run.seconds < time.monotonic()


@pytest.mark.parametrize("ends", ["itself", "closed"])
def test_a_clock_that_is_set_back_makes_no_duration_negative_and_loses_no_value(
    store, monkeypatch, ends
):
    run, clock = Run.start(store, "run"), time.time
    run.log({"loss": 1.0}, step=1)
    run.flush()
    monkeypatch.setattr(time, "time", lambda: clock() - 3600)
    run.log({"loss": 2.0}, step=1)
    run.flush()
    if ends == "itself":
        with run:
            pass
    else:
        tracking.close(store, run.id, "fail", "gone")
    info = store.client.get_run(run.id).info
    assert 0 <= info.end_time - info.start_time < 60_000
    assert history(store, run, "loss") == [(1, 1.0), (1, 2.0)]
    assert recorded(store, run)[1].metrics["loss"] == 2.0


def test_a_tag_that_is_gone_can_be_removed(store):
    with Run.start(store, "run", {"a": 1, "b": 2}) as run:
        run.untag("a", "nosuch")
        run.untag("a")  # as by an attempt whose answer was lost
    tags = recorded(store, run)[1].tags
    assert "a" not in tags
    assert tags["b"] == "2"


def test_two_metrics_that_would_have_one_name_are_refused(store):
    message = r"'f1/a\(b' and 'f1/a\)b' would both be 'f1/a_b'"
    with Run.start(store, "run") as run, pytest.raises(TrackingError, match=message):
        run.log({"f1/a(b": 1.0, "f1/a)b": 2.0})


def failing(run, error):
    with run:
        run.log({"loss": 0.25}, step=7)
        raise error


def exit_of_lightning() -> SystemExit:
    """What pytorch_lightning.trainer.call raises after Ctrl+C."""
    error = SystemExit(1)
    error.__context__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("the loss is\nnot finite"), "FAILED", "ValueError: the loss is not finite"),
        (MemoryError(), "FAILED", "MemoryError"),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"),
        (SystemExit(143), "KILLED", "SystemExit: 143"),
        (exit_of_lightning(), "KILLED", "KeyboardInterrupt"),
    ],
)
def test_a_run_that_ends_by_an_exception_has_its_reason_and_its_metrics(
    store, error, status, reason
):
    run = Run.start(store, "run")
    with pytest.raises(type(error)) as caught:
        failing(run, error)
    assert caught.value is error
    ended, data = recorded(store, run)
    assert ended == status
    assert (data.tags["failure"], data.tags["trial_state"]) == (reason, "fail")
    trace = artifact(store, run.id, data.tags["failure_log"]).read_text()
    assert "Traceback" in trace
    assert "raise error" in trace
    assert history(store, run, "loss") == [(7, 0.25)]


def test_ctrl_c_while_the_traceback_is_written_keeps_the_reason(store, monkeypatch):
    def interrupted(content, name):
        raise KeyboardInterrupt

    run = Run.start(store, "run")
    monkeypatch.setattr(run, "text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        failing(run, ValueError("why"))
    status, data = recorded(store, run)
    assert (status, data.tags["failure"]) == ("FAILED", "ValueError: why")


def test_a_record_that_cannot_be_written_does_not_hide_the_error(store, caplog):
    run = Run.start(store, "run")
    store.client.delete_run(run.id)  # nothing can be written to a deleted run
    with pytest.raises(ValueError, match="the real one") as caught:
        failing(run, ValueError("the real one"))
    assert "the record is incomplete" in "".join(caught.value.__notes__)
    assert "the record is incomplete" in caplog.text


def test_a_run_with_an_incomplete_record_has_failed(store):
    message = "the record is incomplete"
    with pytest.raises(TrackingError, match=message), Run.start(store, "run") as run:
        run._buffer.append(("loss", 1.0, -5, 0))  # MLflow takes no time before 1970
    status, data = recorded(store, run)
    assert status == "FAILED"
    assert data.tags["failure"].startswith(message)
    assert data.tags["trial_state"] == "fail"


def test_a_database_on_a_full_disk_is_named_in_one_line(store, capfd):
    def limit(connection, record):
        size = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {size + 1}")

    event.listen(Engine, "connect", limit)
    try:
        run = Run.start(store, "run")
        tags = {f"{number}": 5000 * "long " for number in range(90)}
        with pytest.raises(MlflowException, match="database or disk is full") as caught, run:
            run.tag(**tags)
    finally:
        event.remove(Engine, "connect", limit)
    assert full_disk(caught.value).startswith("the database cannot be written, the disk is full")
    assert capfd.readouterr() == ("", "")


def test_artifacts_files_folders_and_texts(store, tmp_path):
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "roc.txt").write_text("roc")
    with Run.start(store, "run") as run:
        run.artifact(tmp_path / "charts" / "roc.txt")
        run.artifact(tmp_path / "charts", "figures")
        run.text("é", "config/overrides.yaml")
        with pytest.raises(FileNotFoundError):
            run.artifact(tmp_path / "gone")
    contents = {"roc.txt": "roc", "figures/roc.txt": "roc", "config/overrides.yaml": "é"}
    for name, content in contents.items():
        assert artifact(store, run.id, name).read_text(encoding="utf-8") == content


@settings(max_examples=50)
@given(st.text(max_size=300))
def test_mlflow_accepts_every_recordable_name(name):
    clean = recordable(name)
    _validate_metric_name(clean)
    _validate_param_name(clean)
    assert 0 < len(clean) <= 250
    assert recordable(clean) == clean


def test_names_lose_only_what_mlflow_refuses():
    for name, expected in (
        ("efficiency/latency_ms/b1/p50", "efficiency/latency_ms/b1/p50"),
        ("test/recall/naevus (common)", "test/recall/naevus _common_"),
        ("recall@k", "recall_k"),
        ("a//b/", "a/b"),
        ("Lentigo é", "Lentigo é"),
    ):
        assert recordable(name) == expected
    assert recordable("x" * 300) != recordable("x" * 301)


def test_flatten_writes_dotted_keys_and_values_as_a_user_types_them(tmp_path):
    net = {"width": [32, 64], "dropout": 1e-3, "norm": None}
    config = {"model": {"net": net, "frozen": True}, "seed": 0, "e": {}}
    assert flatten(config) == {
        "model.net.width": "[32, 64]",
        "model.net.dropout": "0.001",
        "model.net.norm": "null",
        "model.frozen": "true",
        "seed": "0",
        "e": "{}",
    }
    assert text("a: 1") == "a: 1"
    assert str(tmp_path) in text(tmp_path)


@given(st.text(max_size=500), st.integers(100, 400))
def test_cut_observes_the_limit_and_values_stay_distinct(value, limit):
    short = cut(value, limit)
    assert len(short) <= limit
    assert (short == value) == (len(value) <= limit)
    if len(value) > limit:
        assert short != cut(value + "x", limit)


def test_passwords_of_urls_are_masked():
    url = "postgresql://me:secret@host/db"
    assert masked(f"a {url} b") == "a postgresql://me:***@host/db b"
    assert masked("postgresql:///db?user=me&password=x") == "postgresql:///db?user=me&password=***"


@given(st.lists(st.integers()), st.integers(1, 7))
def test_batches_keep_order_and_size(items, size):
    parts = list(batches(items, size))
    assert [item for part in parts for item in part] == items
    assert all(0 < len(part) <= size for part in parts)


def test_no_password_is_recorded(store: Store) -> None:
    secret = "pass-w0rd"
    urls = [f"http://me:{secret}@host:9", f"postgresql://me:{secret}@h/runs?x=1"]
    urls += [f"sqlite:////data/runs.db?password={secret}"]
    settings = {"tracking": {"uri": urls[0]}, "storage": urls[1:]}
    run = Run.start(store, "run", {"kind": "run", "overrides": " ".join(urls)}, settings)
    run.tag(note=urls)
    run.text("\n".join(urls), "config.yaml")
    with pytest.raises(RuntimeError), run:
        raise RuntimeError(f"no answer of {' or '.join(urls)}")
    recorded = store.client.get_run(run.id).data
    assert "http://me:***@host:9" in recorded.tags["failure"]
    files = [path for path in store.artifacts.parent.rglob("*") if path.is_file()]
    assert {"traceback.txt", "config.yaml", "mlflow.db"} <= {path.name for path in files}
    assert not [path for path in files if secret.encode() in path.read_bytes()]
