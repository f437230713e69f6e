"""A study's rows in MLflow, in a real store: they agree with what Optuna is told, whatever the trials left."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from src.sweep.records import TrialOutcome
from src.sweep.scheduler import StudyRecorder, log_tail
from src.tracking.run import Run
from src.tracking.store import Store


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    Store(uri=f"sqlite:///{folder / 'mlflow.db'}", experiment="rows", folder=folder).open()
    return folder / "mlflow.db"


@pytest.fixture
def rows(empty_database: Path, tmp_path: Path) -> StudyRecorder:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return StudyRecorder(
        Store(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", experiment="rows", folder=tmp_path), "s"
    )


def run_of(rows: StudyRecorder, run_id: str) -> Any:
    return rows.store.client.get_run(run_id)


def trial_run(rows: StudyRecorder, number: int = 0) -> Run:
    return Run.start(
        rows.store, "net", {"kind": "run", "study": "s", "trial": number}, parent_id=rows.parent.id
    )


def test_a_trial_that_never_had_a_run_gets_one_and_only_one(rows: StudyRecorder) -> None:
    outcome = TrialOutcome("fail", "killed", "killed by signal 9 (SIGKILL)")
    run_id = rows.settle(3, ["a=1", "b=2"], None, outcome, "last words")
    assert rows.settle(3, ["a=1", "b=2"], None, outcome, "last words") == run_id
    found = run_of(rows, run_id)
    assert found.info.status == "FAILED"
    tags = found.data.tags
    assert (tags["failure"], tags["failure_kind"], tags["log_tail"]) == (
        outcome.reason,
        "killed",
        "last words",
    )
    assert (tags["trial"], tags["overrides"], tags["trial_state"]) == ("3", "a=1 b=2", "fail")


def test_a_run_that_left_its_own_reason_gets_the_owners(rows: StudyRecorder) -> None:
    """A trial over its time limit is ended by SIGTERM, and writes of that what it knows: nothing of the limit."""
    run = trial_run(rows)
    with pytest.raises(SystemExit), run:
        raise SystemExit(143)
    assert run_of(rows, run.id).info.status == "KILLED"
    reason = "took longer than hydra.sweeper.time_limit_s=5"
    rows.settle(0, ["a=1"], run.id, TrialOutcome("fail", "time_limit", reason), "")
    tags = run_of(rows, run.id).data.tags
    assert (tags["failure"], tags["failure_kind"], tags["trial_state"]) == (
        reason,
        "time_limit",
        "fail",
    )


def test_a_run_that_is_complete_after_all_loses_its_failure(rows: StudyRecorder) -> None:
    run = trial_run(rows)
    with pytest.raises(SystemExit), run:
        raise SystemExit(143)
    rows.settle(0, ["a=1"], run.id, TrialOutcome("complete"), "")
    found = run_of(rows, run.id)
    assert (found.info.status, found.data.tags["trial_state"]) == ("FINISHED", "complete")
    assert "failure" not in found.data.tags


def test_seeds_that_still_seem_to_run_end_with_their_trial(rows: StudyRecorder) -> None:
    above = trial_run(rows)
    done = Run.start(rows.store, "seed 0", parent_id=above.id)
    with done:
        pass
    left = Run.start(rows.store, "seed 1", parent_id=above.id)
    rows.settle(0, ["a=1"], above.id, TrialOutcome("fail", "killed", "gone"), "")
    assert [run_of(rows, run.id).info.status for run in (above, done, left)] == [
        "FAILED",
        "FINISHED",
        "FAILED",
    ]


def test_a_known_study_goes_on_in_its_own_row(rows: StudyRecorder) -> None:
    again = StudyRecorder(rows.store, "s", rows.parent.id)
    assert again.parent.id == rows.parent.id
    assert run_of(rows, rows.parent.id).info.status == "RUNNING"


def test_the_tail_of_a_log_is_what_was_last_said(tmp_path: Path) -> None:
    assert log_tail(tmp_path) == ""
    (tmp_path / "trial.log").write_bytes(
        b"x" * 50_000 + b"\n" + b"\n".join(b"%d \n" % n for n in range(20)) + b"\xff\n"
    )
    assert log_tail(tmp_path, lines=3) == "18\n19\n\N{REPLACEMENT CHARACTER}"
