"""The comparison of a study: its front is tested once; rows and warnings are complete."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from src.core import cli
from src.core.errors import UserError
from src.metrics.registry import Limit, parse_objectives
from src.reporting import comparison
from src.reporting.comparison import compare
from src.tracking import read
from src.tracking.run import Run
from src.tracking.store import Store

QUALITY, FLOPS = "best/val/balanced_accuracy", "efficiency/flops"
OBJECTIVES = parse_objectives(
    {"objectives": [{"metric": "val/balanced_accuracy"}, {"metric": FLOPS}]}
)
RUNS = pd.DataFrame(
    {
        "run_id": ["small", "big", "worse", "dead"],
        "status": ["FINISHED", "FINISHED", "FINISHED", "FAILED"],
        "tags.model": ["custom", "mobilenetv3_small", "custom", "custom"],
        "tags.trial": ["0", "1", "2", "3"],
        "tags.failure": [None, None, None, "OutOfMemoryError"],
        # neither the last epoch nor a failed run must matter
        "metrics.val/balanced_accuracy": [0.1, 0.2, 0.9, 0.9],
        f"metrics.{QUALITY}": [0.50, 0.60, 0.55, 0.99],
        "metrics.best/val/accuracy": [0.7, 0.8, 0.7, 0.9],
        "metrics.best/val/recall/mel": [0.9, 0.5, 0.3, 0.9],
        f"metrics.{FLOPS}": [30037824.0, 4.1e9, 5e9, 1.0],
        "metrics.efficiency/params": [691911.0, 23.5e6, 1e6, 10.0],
    }
)


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that are evaluated on the test split: the n-th has an accuracy of n/10 there."""
    run_ids: list[str] = []

    def evaluate(store: Store, run_id: str) -> dict[str, float]:
        run_ids.append(run_id)
        run = Run.attach(store, run_id)
        run.log({"test/accuracy": len(run_ids) / 10})
        run.flush()
        return run.latest

    monkeypatch.setattr(comparison, "test_run", evaluate)
    return run_ids


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Returns what was printed since the last call."""
    console = Console(width=400, record=True, file=io.StringIO())
    monkeypatch.setattr(cli, "console", console)
    return console.export_text


def recorded(
    store: Store,
    parent: str | None,
    metrics: dict[str, float],
    state: str = "FINISHED",
    **tags: Any,
) -> str:
    tags = {"kind": "run", "model": "net", **tags}
    run = Run.start(store, "net", tags, parent_id=parent)
    run.log(metrics)
    run.flush()
    store.client.set_terminated(run.id, state)
    return run.id


def tags_of(store: Store, run_id: str) -> dict[str, str]:
    return dict(store.client.get_run(run_id).data.tags)


def summarised(store: Store, study_run: Run) -> pd.DataFrame:
    return comparison.summarise_study(store, study_run, OBJECTIVES, [], "test").set_index("run_id")


def test_the_front_is_tested_once_and_former_members_are_mentioned(
    store: Store,
    tested: list[str],
    output: Callable[[], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    parent = Run.start(store, "study", {"kind": "study"})
    good = recorded(store, parent.id, {QUALITY: 0.8, FLOPS: 5.0}, trial=0)
    bad = recorded(store, parent.id, {QUALITY: 0.7, FLOPS: 6.0}, trial=1)
    dead = recorded(store, parent.id, {}, "FAILED", trial=2, failure="ValueError: no")
    assert summarised(store, parent)["front"].to_dict() == {good: True, bad: False, dead: False}
    assert tested == [good]
    reason = f"run {good} has no artifact 'checkpoint'"
    assert f"run {good} has no model in MLflow: {reason}" in caplog.text
    assert "Traceback" not in caplog.text
    assert "earlier front" not in output()
    assert summarised(store, parent).at[good, "test/accuracy"] == 0.1
    assert tested == [good]
    better = recorded(store, parent.id, {QUALITY: 0.9, FLOPS: 4.0}, trial=3)
    output()
    front = summarised(store, parent)["front"]
    assert front[front].index.tolist() == [better]
    assert tested == [good, better]
    text = output()
    assert "1 runs were tested as members of an earlier front and are not on this one" in text
    assert f"FAILED: net, run {dead}: ValueError: no" in text
    assert "front: maximize balanced accuracy, minimize FLOPs" in text.splitlines()
    # it works as printed, where the store is another than the default one
    command = f"report: python -m src.report study=study tracking.uri={store.uri}"
    assert text.splitlines()[-1] == command
    # written only where it changes: a tag for each trial takes minutes in a large study
    tags = [tags_of(store, run_id).get("front") for run_id in (good, bad, better)]
    assert tags == ["false", None, "true"]
    parent.flush()
    metrics = store.client.get_run(parent.id).data.metrics
    counts = {"all": 4, "finished": 3, "failed": 1, "pruned": 0, "over_limit": 0, "front": 1}
    assert {f"runs/{name}": value for name, value in counts.items()}.items() <= metrics.items()
    assert (metrics[f"study_best/{QUALITY}"], metrics[f"study_best/{FLOPS}"]) == (0.9, 4.0)


def test_a_run_that_cannot_be_tested_has_a_reason_until_it_is_tested(
    store: Store, tested: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, fine = (recorded(store, None, {QUALITY: 0.8, FLOPS: flops}) for flops in (5.0, 4.0))
    chosen, evaluate = compare(read.runs(store), OBJECTIVES), comparison.test_run

    def unsteady(store: Store, run_id: str) -> dict[str, float]:
        if run_id == broken:
            raise UserError("the checkpoint is gone")
        return evaluate(store, run_id)

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "test_run", unsteady)
        assert comparison.test_once(store, chosen, "for a report")
    assert tested == [fine]
    tags = tags_of(store, broken)
    assert tags["test_failure"] == "the checkpoint is gone"
    assert "tested" not in tags
    assert comparison.test_once(store, chosen, "for a report")
    tags = tags_of(store, broken)
    assert tags["tested"] == "for a report"
    assert "test_failure" not in tags
    assert not comparison.test_once(store, compare(read.runs(store), OBJECTIVES), "again")


def test_only_new_finished_seeds_of_a_trial_are_tested(store: Store, tested: list[str]) -> None:
    trial = recorded(store, None, {}, kind="trial")
    recorded(store, trial, {}, "FAILED", repeat=2)
    with pytest.raises(UserError, match="no finished seeds"):
        comparison.test_seeds(store, trial)
    recorded(store, trial, {"test/accuracy": 0.5}, repeat=0)
    new = recorded(store, trial, {}, repeat=1)
    for _ in range(2):
        comparison.test_seeds(store, trial)
        assert tested == [new]
    metrics = store.client.get_run(trial).data.metrics
    assert metrics["test/accuracy"] == pytest.approx((0.5 + 0.1) / 2)
    assert metrics["spread/test/accuracy"] == pytest.approx(0.4 / 2**0.5)  # of two values, n - 1


def test_trials_that_were_ended_early_are_no_failures_and_not_on_the_front() -> None:
    states = ["complete", "pruned", "over_limit", "fail"]
    table = compare(RUNS.assign(**{"tags.trial_state": states}), OBJECTIVES).set_index("run_id")
    expected = {"small": "FINISHED", "big": "PRUNED", "worse": "OVER_LIMIT", "dead": "FAILED"}
    assert table["status"].to_dict() == expected
    assert table.index[table["front"]].tolist() == ["small"]
    shown = comparison.comparison_table(table.reset_index(), "title", "val")
    assert sorted(shown.frame["front"]) == ["FAILED", "over limit", "pruned", "yes"]


def test_the_front_is_that_of_the_chosen_epoch_within_the_limits() -> None:
    table = compare(RUNS, OBJECTIVES)
    assert table["run_id"].tolist() == ["big", "worse", "small", "dead"]
    assert table["front"].tolist() == [True, False, True, False]
    assert table["failure"].tolist() == ["", "", "", "OutOfMemoryError"]
    assert table["kind"].tolist() == ["run"] * 4
    table = compare(RUNS, OBJECTIVES, [Limit("val/recall/mel", ">=", 0.8)]).set_index("run_id")
    assert table.index[table["feasible"]].tolist() == ["small"]
    assert table.index[table["front"]].tolist() == ["small"]
    assert not compare(RUNS, OBJECTIVES, [Limit("test/auroc", ">=", 0.8)])["feasible"].any()


def test_chosen_trials_have_notes_with_their_figures_and_answers() -> None:
    notes = comparison.chosen_notes(compare(RUNS, OBJECTIVES), OBJECTIVES, [])
    assert list(notes) == [1, 0]
    front = "**On the Pareto front**: balanced accuracy {}. Run `{}` in MLflow."
    assert notes[0] == front.format("0.500 and 30M multiply-adds", "small")
    first, *answers = notes[1].split("\n\n")
    assert first == front.format("0.600 and 4.1G multiply-adds", "big")
    questions = ["Which model has the best balanced accuracy", "Which model is the cheapest"]
    assert [answer.startswith(f"**{q}") for answer, q in zip(answers, questions, strict=True)]
    only_costs = parse_objectives({"objectives": [{"metric": FLOPS}]})
    assert list(comparison.chosen_notes(compare(RUNS, only_costs), only_costs, [])) == [0]


def test_warnings_of_leaks_and_of_runs_that_cannot_be_compared() -> None:
    def warned(**columns: object) -> str:
        tags = {"split": "grouped", "grouped_by": "lesion", "split_fingerprint": "f"} | columns
        runs = RUNS.assign(**{f"tags.{name}": value for name, value in tags.items()})
        return "\n".join(comparison.warnings(compare(runs, OBJECTIVES)))

    assert warned() == ""
    assert "LEAKAGE" in warned(split="image (leaking)")
    assert "may leak" in warned(grouped_by="image")
    leaves_out = warned(flops_missing=["", "", "aten::lstm x2", ""])
    assert leaves_out.endswith("leave out aten::lstm x2: they are too small.")
    assert "different images" in warned(split_fingerprint=["f", "g", "f", "f"])
    assert "different ways" in warned(ratio_method=["2.5 s", "0.05 s", "", ""])
    assert warned(ratio_method="2.5 s") == ""
    latency = {"metrics.efficiency/latency_ms/b1/p50": [1.0, math.nan, math.nan, math.nan]}
    some = comparison.warnings(compare(RUNS.assign(**latency), OBJECTIVES))
    assert "Latency was measured for 1 of 3 runs." in some[-1]
    unvalidated = compare(RUNS.loc[:, ~RUNS.columns.str.contains("val/")], OBJECTIVES)
    assert "No validation split" in "\n".join(comparison.warnings(unvalidated))


def test_a_study_without_a_front_lists_no_runs_as_its_front(
    store: Store, output: Callable[[], str]
) -> None:
    study = Run.start(store, "study", {"kind": "study", "study": "study"})
    for number in range(comparison._MOST_FAILURES + 1):
        recorded(store, study.id, {}, "FAILED", kind="trial", trial=number)
    assert not summarised(store, study)["front"].any()
    text = output()
    assert "1 more failed" in text
    assert "run nan" not in text
    assert f"look: python -m src.tracking.ui uri={store.uri}, then" in text


def test_the_command_that_shows_the_store_works_where_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Callable[[], str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for folder, command in ((cli.ROOT, "python -m src.tracking.ui"), (tmp_path, "make ui")):
        monkeypatch.setattr(cli, "ROOT", folder)
        comparison._show(compare(RUNS, OBJECTIVES), [], "study", Store(), {})
        assert f"look: {command}, then" in output()


def test_the_table_fits_80_columns_and_shows_every_run() -> None:
    table = compare(RUNS.assign(**{f"metrics.spread/{QUALITY}": 0.0123}), OBJECTIVES)
    console = Console(width=80)
    with console.capture() as captured:
        console.print(comparison.comparison_table(table, "a study", "val").to_rich())
    text = captured.get()
    assert max(map(len, text.splitlines())) <= 80
    for part in ("custom #0", "0.600  0.012 ", "30M", "692k", "4.1G", "FAILED", "±"):
        assert part in text
    assert "mobilenetv3\n" in text.replace(" ", "\n")
    assert text.count("yes") == 2
    assert "nan" not in text.lower()


@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
@pytest.mark.parametrize("name", [QUALITY, FLOPS])
def test_an_infinite_objective_is_a_missing_one(name: str, infinite: float) -> None:
    with_infinity, without = RUNS.copy(), RUNS.copy()
    with_infinity.loc[2, f"metrics.{name}"] = infinite
    without.loc[2, f"metrics.{name}"] = math.nan
    table = compare(with_infinity, OBJECTIVES)
    pd.testing.assert_frame_equal(table, compare(without, OBJECTIVES))
    assert table.loc[table["front"], "run_id"].tolist() == ["big", "small"]


def test_what_a_compression_cost_is_shown_in_points() -> None:
    tags = {"compression": "onnx_int8_static", "origin": "0123456789abcdef", "lost_on": "test"}
    values = {"balanced_accuracy": 0.0123, "balanced_accuracy/low": -0.004}
    values |= {"balanced_accuracy/high": 0.03, "recall/mel": -0.02}
    columns = {f"tags.{name}": value for name, value in tags.items()}
    columns |= {f"metrics.compression/lost/{name}": value for name, value in values.items()}
    made = RUNS.assign(**{name: [None, None, value, None] for name, value in columns.items()})
    table = comparison.degradation_table(compare(made, OBJECTIVES))
    assert table is not None
    assert table.texts().to_numpy().tolist() == [
        ["custom #2", "onnx_int8_static", "1.2 [-0.4, 3.0]", "-", "-2.0", "test", "01234567"]
    ]
    assert comparison.degradation_table(compare(RUNS, OBJECTIVES)) is None
