"""The comparison of a study: its front is tested once; rows and warnings are complete."""

import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from src.core.errors import UserError
from src.core.tables import Table
from src.metrics.registry import Limit, parse_objectives
from src.reporting import comparison
from src.reporting.comparison import compare
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
        "1 runs were tested as members of an earlier front and are not on this one"
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
    comparison.test_seeds(store, trial)
    assert tested == [new]
    metrics = read.runs(store, f"attributes.run_id = '{trial}'").iloc[0]
    assert metrics["metrics.test/accuracy"] == pytest.approx((0.5 + 0.1) / 2)
    assert metrics["metrics.spread/test/accuracy"] == pytest.approx(
        0.4 / 2**0.5
    )  # of two values, n - 1
    comparison.test_seeds(store, trial)
    assert tested == [new]
    assert known not in tested


def test_a_trial_without_finished_seeds_has_nothing_to_test(
    store: Store, tested: list[str]
) -> None:
    trial = recorded(store, None, {}, kind="trial")
    recorded(store, trial, {}, "FAILED")
    with pytest.raises(UserError, match="no finished seeds"):
        comparison.test_seeds(store, trial)
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
    shown = comparison.comparison_table(table.reset_index(), "title", "val")
    assert sorted(shown.frame["front"]) == ["FAILED", "over limit", "pruned", "yes"]
    [line] = comparison.failures(table.reset_index())
    assert "ValueError: no" in line


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


def runs() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run_id": ["small", "big", "worse", "dead"],
            "status": ["FINISHED", "FINISHED", "FINISHED", "FAILED"],
            "tags.model": ["custom", "mobilenetv3_small", "custom", "custom"],
            "tags.trial": ["0", "1", "2", "3"],
            "tags.failure": [None, None, None, "OutOfMemoryError"],
            # what the last epoch had must not matter, nor what a dead run had
            "metrics.val/balanced_accuracy": [0.1, 0.2, 0.9, 0.9],
            "metrics.best/val/balanced_accuracy": [0.50, 0.60, 0.55, 0.99],
            "metrics.best/val/accuracy": [0.7, 0.8, 0.7, 0.9],
            "metrics.best/val/recall/mel": [0.9, 0.5, 0.3, 0.9],
            "metrics.efficiency/flops": [30037824.0, 4.1e9, 5e9, 1.0],
            "metrics.efficiency/params": [691911.0, 23.5e6, 1e6, 10.0],
        }
    )


def test_front_is_read_at_the_chosen_epoch_and_failed_runs_stay_in_the_table() -> None:
    table = compare(runs(), OBJECTIVES)
    assert table["run_id"].tolist() == ["big", "worse", "small", "dead"]
    assert table["front"].tolist() == [True, False, True, False]
    assert table["failure"].tolist()[-1] == "OutOfMemoryError"


def test_limits_keep_runs_off_the_front() -> None:
    table = compare(runs(), OBJECTIVES, [Limit("val/recall/mel", ">=", 0.8)]).set_index("run_id")
    assert table["feasible"].to_dict() == {
        "big": False,
        "worse": False,
        "small": True,
        "dead": False,
    }
    assert table.index[table["front"]].tolist() == ["small"]
    assert not compare(runs(), OBJECTIVES, [Limit("test/auroc", ">=", 0.8)])["feasible"].any()


def noted(**tags: str) -> str:
    frame = runs().assign(**{f"tags.{name}": value for name, value in tags.items()})
    return "\n".join(comparison.warnings(compare(frame, OBJECTIVES)))


def test_notes_warn_of_leaks_and_of_what_cannot_be_compared() -> None:
    clean = noted(split="grouped", grouped_by="lesion", split_fingerprint="f")
    assert clean == ""
    assert "LEAKAGE" in noted(split="image (leaking)", grouped_by="lesion", split_fingerprint="f")
    assert "may leak" in noted(split="grouped", grouped_by="image", split_fingerprint="f")
    mixed = runs().assign(**{"tags.split_fingerprint": ["f", "g", "f", "f"]})
    assert "different images" in "\n".join(comparison.warnings(compare(mixed, OBJECTIVES)))
    unvalidated = runs().drop(columns=[name for name in runs() if "val/" in name])
    assert "No validation split" in "\n".join(comparison.warnings(compare(unvalidated, OBJECTIVES)))


def printed(table: Table) -> str:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table.to_rich())
    return captured.get()


def test_the_table_fits_80_columns_and_shows_every_run() -> None:
    spread = {"metrics.spread/best/val/balanced_accuracy": 0.0123}
    table = compare(runs().assign(**spread), OBJECTIVES)
    text = printed(comparison.comparison_table(table, "a study", "val"))
    assert max(map(len, text.splitlines())) <= 80
    for part in ("custom #0", "0.600  0.012 ", "30M", "692k", "4.1G", "FAILED", "±"):
        assert part in text
    assert "mobilenetv3\n" in text.replace(" ", "\n")
    assert text.count("yes") == 2
    assert "nan" not in text.lower()


@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
@pytest.mark.parametrize("name", ["best/val/balanced_accuracy", "efficiency/flops"])
def test_an_infinite_objective_is_a_missing_one(name: str, infinite: float) -> None:
    with_infinity, without = runs(), runs()
    with_infinity.loc[2, f"metrics.{name}"] = infinite
    without.loc[2, f"metrics.{name}"] = math.nan
    found = compare(with_infinity, OBJECTIVES)
    pd.testing.assert_frame_equal(found, compare(without, OBJECTIVES))
    table = found.set_index("run_id")
    assert table.index[table["front"]].tolist() == [
        "big",
        "small",
    ]  # as if the third run had not been there
    assert math.isnan(table.at["worse", name])


def test_what_a_compression_cost_is_shown_in_points() -> None:
    name = "metrics.compression/lost"
    made = runs().assign(
        **{
            "tags.compression": [None, None, "onnx_int8_static", None],
            "tags.origin": [None, None, "0123456789abcdef", None],
            "tags.lost_on": [None, None, "test", None],
            f"{name}/balanced_accuracy": [math.nan, math.nan, 0.0123, math.nan],
            f"{name}/balanced_accuracy/low": [math.nan, math.nan, -0.004, math.nan],
            f"{name}/balanced_accuracy/high": [math.nan, math.nan, 0.03, math.nan],
            f"{name}/recall/mel": [math.nan, math.nan, -0.02, math.nan],
        }
    )
    table = comparison.degradation_table(compare(made, OBJECTIVES))
    assert table is not None
    assert table.texts().to_numpy().tolist() == [
        ["custom #2", "onnx_int8_static", "1.2 [-0.4, 3.0]", "-", "-2.0", "test", "01234567"]
    ]
    assert comparison.degradation_table(compare(runs(), OBJECTIVES)) is None
