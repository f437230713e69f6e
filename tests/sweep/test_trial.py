"""What a trial's process writes into the study, on a real SQLite study."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from src.core.errors import ConfigError
from src.sweep import trial as trials
from src.sweep.records import OverLimit, Pruned, Task, TrialOutcome
from src.sweep.storage import open_storage
from src.sweep.trial import TrialContext, main

QUALITY = "best/val/accuracy"
GOOD = {QUALITY: 0.5, "efficiency/flops": 10.0}
OBJECTIVES = [{"metric": "val/accuracy"}, {"metric": "efficiency/flops"}]
RUNGS = {"_target_": "src.sweep.pruners.Rungs", "min_epochs": 2, "reduction_factor": 2}
RUNGS |= {"max_epochs": 6}


class StudyOnDisk:
    """A study, and tasks of it."""

    def __init__(
        self, folder: Path, objectives: list[dict[str, str]] = OBJECTIVES, **payload: Any
    ) -> None:
        self.url = f"sqlite:///{folder}/optuna.db"
        directions = ["maximize", "minimize"][: len(objectives)]
        self.study = optuna.create_study(
            storage=open_storage(self.url), study_name="s", directions=directions
        )
        self.payload = {"objectives": objectives, "limits": [], "repeats": 1, "drop_p": 0.1}
        self.payload |= payload
        self.folder = folder

    def task(self, body: str = "") -> Task:
        asked = self.study.ask()
        asked.suggest_float("x", 0, 1)
        payload, function = {**self.payload, "body": body}, f"{__name__}:run_body"
        trial_id, folder = asked._trial_id, str(self.folder)
        return Task(self.url, "s", trial_id, asked.number, folder, function, payload)

    def context(self, flops: float | None = None) -> TrialContext:
        context = TrialContext(self.task())
        if flops is not None:
            context.known_cost({"efficiency/flops": flops})
        return context

    def attributes(self, number: int = 0) -> dict[str, Any]:
        return self.study.trials[number].user_attrs

    def outcome(self, number: int = 0) -> TrialOutcome:
        return TrialOutcome(**self.attributes(number)["outcome"])


@pytest.fixture
def study(tmp_path: Path) -> StudyOnDisk:
    return StudyOnDisk(tmp_path)


def good(context: TrialContext) -> Mapping[str, float]:
    context.started("run-1")
    context.epoch(1, 2, {"val/accuracy": 0.5})
    return {**GOOD, "spurious": math.nan}


def raises(error: BaseException) -> Callable[[TrialContext], Any]:
    def body(context: TrialContext) -> Any:
        raise error

    return body


def commits_then_fails(context: TrialContext) -> Any:
    context.commit(GOOD)
    raise RuntimeError("after the commit")


def is_behind(context: TrialContext) -> Any:
    context.known_cost({"efficiency/flops": 7.0, "val/accuracy": 0.1})
    context.epoch(1, 3, {"val/accuracy": 0.1})
    raise Pruned("last of all")


TOO_SMALL = ConfigError("model.net.width", "must be at least 1, but got 0")
MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
# By kind: body, reason.
FAILURES: list[tuple[str, Callable[[TrialContext], Any], str]] = [
    ("error", raises(ZeroDivisionError("by nothing")), "ZeroDivisionError: by nothing"),
    ("error", raises(SystemExit(3)), "the trial's code left with status 3"),
    ("bad_config", raises(TOO_SMALL), str(TOO_SMALL)),
    ("out_of_memory", raises(MEMORY), f"OutOfMemoryError: {MEMORY}"),
    ("diverged", lambda _: {**GOOD, QUALITY: math.nan}, f"{QUALITY} is nan"),
    ("wrong_return", lambda _: {"efficiency/flops": 1.0}, f"the trial returned no {QUALITY}"),
    (
        "wrong_return",
        lambda _: None,
        "the trial must return its metrics by name, but returned None",
    ),
    (
        "wrong_return",
        lambda _: {**GOOD, "efficiency/flops": "many"},
        "a metric is no number: could not convert string to float: 'many'",
    ),
]
BODIES = {f"failure {number}": body for number, (_, body, _) in enumerate(FAILURES)} | {
    "good": good,
    "commits_then_fails": commits_then_fails,
    "is_behind": is_behind,
    "terminated": raises(SystemExit(trials.TERMINATED)),
}


def run_body(context: TrialContext) -> Any:
    return BODIES[context.payload["body"]](context)


def test_a_complete_trial_has_its_finite_metrics_its_run_and_its_epoch(study: StudyOnDisk) -> None:
    main(study.task("good"))
    assert study.outcome() == TrialOutcome("complete", metrics=GOOD, run_id="run-1", epoch=1)
    attributes = study.attributes()
    assert attributes["run_id"] == "run-1"
    progress = {name: attributes["progress"][name] for name in ("epoch", "epochs", "metrics")}
    assert progress == {"epoch": 1, "epochs": 2, "metrics": {"val/accuracy": 0.5}}


@pytest.mark.parametrize("number", range(len(FAILURES)))
def test_every_failure_is_committed_with_its_kind_and_reason(
    study: StudyOnDisk, number: int
) -> None:
    with pytest.raises(SystemExit) as end:
        main(study.task(f"failure {number}"))
    assert end.value.code == trials.FAILED
    outcome = study.outcome()
    kind, _, reason = FAILURES[number]
    assert (outcome.state, outcome.kind, outcome.reason) == ("fail", kind, reason)


def test_a_committed_outcome_stays_and_a_terminated_trial_commits_none(study: StudyOnDisk) -> None:
    for body in ("commits_then_fails", "terminated"):
        with pytest.raises(SystemExit):
            main(study.task(body))
    assert study.outcome().state == "complete"
    assert "outcome" not in study.attributes(1)


def test_a_pruned_trial_keeps_its_cost_and_its_last_epoch(study: StudyOnDisk) -> None:
    main(study.task("is_behind"))
    cost = {"efficiency/flops": 7.0}
    assert study.outcome() == TrialOutcome("pruned", "", "last of all", cost, None, 1)


def test_a_known_cost_over_a_limit_ends_the_trial_untrained(tmp_path: Path) -> None:
    limits = ["efficiency/flops <= 5", "val/recall/mel >= 0.8"]
    context = StudyOnDisk(tmp_path, limits=limits).context()
    with pytest.raises(OverLimit, match="7 breaks efficiency/flops <= 5"):
        context.known_cost({"efficiency/flops": 7.0})
    context.known_cost({"efficiency/flops": 5.0})  # equal to the limit


def test_a_median_pruner_sees_the_reports_of_others_and_stops_the_worse(tmp_path: Path) -> None:
    spec = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1, "n_warmup_steps": 2}
    study = StudyOnDisk(tmp_path, OBJECTIVES[:1], pruner=spec)
    first, second = study.context(), study.context()
    for epoch in (1, 2):
        first.epoch(epoch, 3, {"val/accuracy": 0.6})
    study.study.tell(0, 0.6)
    second.epoch(1, 3, {"val/accuracy": 0.5})  # behind, but nothing is stopped before epoch 2
    with pytest.raises(Pruned, match="epoch 2 of 3: val/accuracy 0.5 is behind"):
        second.epoch(2, 3, {"val/accuracy": 0.5})
    assert list(study.study.trials[1].intermediate_values) == [1, 2]


def test_rungs_compare_the_best_so_far_and_the_known_cost(tmp_path: Path) -> None:
    study = StudyOnDisk(tmp_path, pruner=RUNGS)
    pruned = []
    for accuracy, flops in ((0.9, 10.0), (0.8, 5.0), (0.7, 20.0), (0.6, 30.0)):
        context = study.context(flops)
        context.epoch(1, 6, {"val/accuracy": accuracy})
        try:
            context.epoch(2, 6, {"val/accuracy": accuracy - 0.1})  # the best so far counts
            pruned.append(False)
        except Pruned:
            pruned.append(True)
    assert pruned == [False, False, True, True]  # the latter are dominated by both others
    assert study.attributes(3)["rung:2"] == {"val/accuracy": 0.6, "efficiency/flops": 30.0}


def test_rungs_check_a_limit_at_the_best_epoch_so_far(tmp_path: Path) -> None:
    study = StudyOnDisk(tmp_path, OBJECTIVES, pruner=RUNGS, limits=["val/recall/mel >= 0.8"])

    def two_epochs(flops: float, *epochs: tuple[float, float]) -> None:
        context = study.context(flops)
        for number, (accuracy, recall) in enumerate(epochs, 1):
            context.epoch(number, 6, {"val/accuracy": accuracy, "val/recall/mel": recall})

    two_epochs(10.0, (0.5, 0.9), (0.6, 0.1))  # its best epoch breaks the limit, the other does not
    two_epochs(30.0, (0.5, 0.8), (0.4, 0.0))
    two_epochs(20.0, (0.4, 0.9), (0.4, 0.9))
    with pytest.raises(Pruned, match="rank 3 of 4"):
        two_epochs(1.0, (0.9, 0.7), (0.9, 0.7))  # the best of all, but for the limit
    stored = [study.attributes(number)["rung:2"]["best/val/recall/mel"] for number in range(4)]
    assert stored == [0.1, 0.8, 0.9, 0.7]


def test_the_last_epoch_is_never_a_rung(tmp_path: Path) -> None:
    study = StudyOnDisk(tmp_path, pruner=RUNGS)
    for accuracy in (0.9, 0.1):
        context = study.context(100 * (1 - accuracy))
        context.epoch(2, 2, {"val/accuracy": accuracy})
    assert "rung:2" not in study.attributes(1)


def test_a_configuration_that_is_worse_after_some_seeds_is_dropped(tmp_path: Path) -> None:
    study = StudyOnDisk(tmp_path, repeats=6)
    strong, weak = study.context(), study.context()

    def end(context: TrialContext, seed: int, accuracy: float, flops: float) -> None:
        metrics = {"best/val/accuracy": accuracy, "efficiency/flops": flops}
        context.repeat_ended(seed, f"{context.task.number}-{seed}", metrics)

    for seed in range(6):
        end(strong, seed, 0.8 + 0.01 * seed, 5.0)
    for seed in range(3):
        end(weak, seed, 0.5 - 0.02 * seed, 9.0)
    # Four losses of different size in a row: p = 1/16, the first below 0.1.
    with pytest.raises(Pruned, match="after 4 of 6 seeds"):
        end(weak, 3, 0.44, 9.0)
    assert weak.repeat_done(2) == ("1-2", {"best/val/accuracy": 0.46, "efficiency/flops": 9.0})
