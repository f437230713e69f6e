"""What a study amounts to: its front tested once, its rows called by what they are, and what a reader must be told."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from src.core.errors import UserError
from src.metrics.registry import parse_objectives
from src.reporting import comparison
from src.reporting.comparison import compare, render
from src.tracking import read
from src.tracking.run import Run
from src.tracking.store import Store

ACCURACY = "best/val/balanced_accuracy"
OBJECTIVES = parse_objectives(
    {"objectives": [{"metric": "val/balanced_accuracy"}, {"metric": "efficiency/flops"}]}
)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    Store(uri=f"sqlite:///{folder / 'mlflow.db'}", experiment="summary", folder=folder).open()
    return folder / "mlflow.db"


@pytest.fixture
def store(empty_database: Path, tmp_path: Path) -> Store:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Store(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", experiment="summary", folder=tmp_path)


def recorded(
    store: Store,
    parent: str | None,
    metrics: dict[str, float],
    status: str = "FINISHED",
    **tags: Any,
) -> str:
    run = Run.start(store, "net", {"kind": "run", "model": "net", **tags}, parent_id=parent)
    run.log(metrics)
    run.flush()
    store.client.set_terminated(run.id, status)
    return run.id


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that are evaluated on the test split; each comes to 0.1 times its number there."""
    asked: list[str] = []

    def test_run(store: Store, run_id: str) -> dict[str, float]:
        asked.append(run_id)
        figures = {"test/accuracy": len(asked) / 10}
        run = Run.attach(store, run_id)
        run.log(figures)
        run.flush()
        return figures

    monkeypatch.setattr(comparison, "test_run", test_run)
    return asked


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(width=400, record=True, quiet=False, file=Path("/dev/null").open("w"))  # noqa: SIM115
    monkeypatch.setattr(comparison, "console", console)
    return console


def summarised(store: Store, study_run: Run) -> pd.DataFrame:
    return comparison.summarise_study(store, study_run, OBJECTIVES, [], True).set_index("run_id")


def test_the_front_is_tested_once_and_a_former_member_is_mentioned(
    store: Store, tested: list[str], said: Console
) -> None:
    parent = Run.start(store, "study", {"kind": "study"})
    good = recorded(store, parent.id, {ACCURACY: 0.8, "efficiency/flops": 5.0}, trial=0)
    bad = recorded(store, parent.id, {ACCURACY: 0.7, "efficiency/flops": 6.0}, trial=1)
    table = summarised(store, parent)
    assert tested == [good]
    assert table["front"].to_dict() == {good: True, bad: False}
    assert "earlier front" not in said.export_text()
    assert summarised(store, parent).at[good, "test/accuracy"] == 0.1
    assert tested == [good]
    better = recorded(store, parent.id, {ACCURACY: 0.9, "efficiency/flops": 4.0}, trial=2)
    said.export_text()
    table = summarised(store, parent)
    assert tested == [good, better]
    assert table["front"].to_dict() == {good: False, bad: False, better: True}
    assert (
        "1 runs were tested as members of an earlier front and have left it since"
        in said.export_text()
    )
    tags = [store.client.get_run(run_id).data.tags.get("front") for run_id in (good, bad, better)]
    assert tags == [
        "false",
        None,
        "true",
    ]  # written where it changes only: a tag a trial would cost a large study minutes


def test_a_member_that_cannot_be_tested_does_not_cost_the_others_theirs(
    store: Store, tested: list[str], said: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = Run.start(store, "study", {"kind": "study"})
    broken = recorded(store, parent.id, {ACCURACY: 0.8, "efficiency/flops": 5.0}, trial=0)
    fine = recorded(store, parent.id, {ACCURACY: 0.7, "efficiency/flops": 4.0}, trial=1)
    test_run = comparison.test_run

    def unsteady(store: Store, run_id: str) -> dict[str, float]:
        if run_id == broken:
            raise UserError("the checkpoint is gone")
        return test_run(store, run_id)

    monkeypatch.setattr(comparison, "test_run", unsteady)
    summarised(store, parent)
    assert tested == [fine]
    assert store.client.get_run(broken).data.tags["test_failure"] == "the checkpoint is gone"


def test_a_seed_that_was_tested_is_not_tested_again(store: Store, tested: list[str]) -> None:
    trial = recorded(store, None, {}, kind="trial")
    known = recorded(store, trial, {"test/accuracy": 0.5}, repeat=0)
    new = recorded(store, trial, {}, repeat=1)
    recorded(store, trial, {}, "FAILED", repeat=2)
    comparison._test_repeats(store, trial)
    assert tested == [new]
    metrics = read.runs(store, f"attributes.run_id = '{trial}'").iloc[0]
    assert metrics["metrics.test/accuracy"] == pytest.approx((0.5 + 0.1) / 2)
    assert metrics["metrics.spread/test/accuracy"] == pytest.approx(
        0.4 / 2**0.5
    )  # of two values, n - 1
    comparison._test_repeats(store, trial)
    assert tested == [new]
    assert known not in tested


def test_a_trial_without_finished_seeds_has_nothing_to_test(
    store: Store, tested: list[str]
) -> None:
    trial = recorded(store, None, {}, kind="trial")
    recorded(store, trial, {}, "FAILED")
    with pytest.raises(UserError, match="no finished seeds"):
        comparison._test_repeats(store, trial)
    assert tested == []


def test_trials_ended_by_decision_are_no_failures_and_not_on_the_front(
    store: Store, said: Console
) -> None:
    parent = Run.start(store, "study", {"kind": "study"})
    ids = {
        "FINISHED": recorded(
            store, parent.id, {ACCURACY: 0.5, "efficiency/flops": 5.0}, trial_state="complete"
        ),
        "PRUNED": recorded(
            store, parent.id, {ACCURACY: 0.9, "efficiency/flops": 1.0}, trial_state="pruned"
        ),
        "OVER_LIMIT": recorded(
            store, parent.id, {"efficiency/flops": 0.1}, trial_state="over_limit"
        ),
        "FAILED": recorded(
            store, parent.id, {}, "FAILED", trial_state="fail", failure="ValueError: no"
        ),
    }
    table = compare(read.children(store, parent.id), OBJECTIVES).set_index("run_id")
    assert {table.at[run_id, "status"]: status for status, run_id in ids.items()} == {
        each: each for each in ids
    }
    assert table.index[table["front"]].tolist() == [ids["FINISHED"]]
    marks = list(render(table.reset_index(), "title", "val").columns[-1].cells)
    assert sorted(marks) == ["FAILED", "over limit", "pruned", "yes"]
    comparison._say_failures(table.reset_index())
    text = said.export_text()
    assert "ValueError: no" in text
    assert text.count("\n") == 1


def test_a_run_that_could_not_be_tested_is_tried_again_and_its_reason_goes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = recorded(store, None, {ACCURACY: 0.5, "efficiency/flops": 1.0})
    chosen = compare(read.runs(store), OBJECTIVES)
    answers: list[UserError | dict[str, float]] = [
        UserError("the images are not on this machine"),
        {},
    ]

    def test_run(store: Store, run_id: str) -> dict[str, float]:
        answer = answers.pop(0)
        if isinstance(answer, UserError):
            raise answer
        return answer

    monkeypatch.setattr(comparison, "test_run", test_run)
    assert comparison.test_once(store, chosen, "for a report")
    tags = store.client.get_run(run_id).data.tags
    assert tags["test_failure"] == "the images are not on this machine"
    assert "tested" not in tags
    assert comparison.test_once(store, chosen, "for a report")
    tags = store.client.get_run(run_id).data.tags
    assert tags["tested"] == "for a report"
    assert "test_failure" not in tags
