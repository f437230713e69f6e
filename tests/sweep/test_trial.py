"""What a trial's process writes into the study, whatever its body does; each on a real SQLite study."""

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from src.core.errors import ConfigError, DivergedError
from src.sweep import trial as trials
from src.sweep.records import OverLimit, Pruned, Task, TrialOutcome, classify
from src.sweep.storage import open_storage
from src.sweep.trial import TrialContext, main

GOOD = {"best/val/accuracy": 0.5, "efficiency/flops": 10.0}
OBJECTIVES = [{"metric": "val/accuracy"}, {"metric": "efficiency/flops"}]


class Desk:
    """A study, and tasks of it."""

    def __init__(
        self, folder: Path, objectives: list[dict[str, str]] = OBJECTIVES, **payload: Any
    ) -> None:
        self.url = f"sqlite:///{folder}/optuna.db"
        directions = ["maximize", "minimize"][: len(objectives)]
        self.study = optuna.create_study(
            storage=open_storage(self.url), study_name="s", directions=directions
        )
        self.payload = {
            "objectives": objectives,
            "limits": [],
            "repeats": 1,
            "drop_p": 0.1,
            **payload,
        }
        self.folder = folder

    def task(self, body: str = "") -> Task:
        asked = self.study.ask()
        asked.suggest_float("x", 0, 1)
        name = f"{__name__}:{body}"
        return Task(
            self.url, "s", asked._trial_id, asked.number, str(self.folder), name, self.payload
        )

    def outcome(self, number: int = 0) -> TrialOutcome:
        return TrialOutcome(**self.study.trials[number].user_attrs["outcome"])


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def good(context: TrialContext) -> dict[str, float]:
    context.started("run-1")
    context.epoch(1, 2, {"val/accuracy": 0.5})
    return {**GOOD, "spurious": math.nan}


def raises(context: TrialContext) -> dict[str, float]:
    raise ZeroDivisionError("by nothing")


def misconfigured(context: TrialContext) -> dict[str, float]:
    raise ConfigError("model.net.width", "must be at least 1, but got 0")


def exhausts_memory(context: TrialContext) -> dict[str, float]:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def leaves(context: TrialContext) -> dict[str, float]:
    raise SystemExit(3)


def diverges(context: TrialContext) -> dict[str, float]:
    return {**GOOD, "best/val/accuracy": math.nan}


def forgets(context: TrialContext) -> dict[str, float]:
    return {"efficiency/flops": 1.0}


def returns_nothing(context: TrialContext) -> Any:
    return None


def returns_words(context: TrialContext) -> Any:
    return {**GOOD, "efficiency/flops": "many"}


def commits_then_dies(context: TrialContext) -> dict[str, float]:
    context.commit(GOOD)
    raise RuntimeError("after the commit")


def is_behind(context: TrialContext) -> dict[str, float]:
    context.known_cost({"efficiency/flops": 7.0, "val/accuracy": 0.1})
    context.epoch(1, 3, {"val/accuracy": 0.1})
    raise Pruned("last of all")


def test_a_complete_trial_has_its_finite_metrics_its_run_and_its_epoch(desk: Desk) -> None:
    main(desk.task("good"))
    assert desk.outcome() == TrialOutcome("complete", metrics=GOOD, run_id="run-1", epoch=1)
    assert desk.study.trials[0].user_attrs["run_id"] == "run-1"
    progress = desk.study.trials[0].user_attrs["progress"]
    assert (progress["epoch"], progress["epochs"], progress["metrics"]) == (
        1,
        2,
        {"val/accuracy": 0.5},
    )


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        ("raises", "error", "ZeroDivisionError: by nothing"),
        ("misconfigured", "bad_config", "model.net.width: must be at least 1, but got 0"),
        (
            "exhausts_memory",
            "out_of_memory",
            "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB",
        ),
        ("leaves", "error", "the trial's code left with status 3"),
        ("diverges", "diverged", "best/val/accuracy is nan"),
        ("forgets", "wrong_return", "the trial returned no best/val/accuracy"),
        (
            "returns_nothing",
            "wrong_return",
            "the trial must return its metrics by name, but returned None",
        ),
        (
            "returns_words",
            "wrong_return",
            "a metric is no number: could not convert string to float: 'many'",
        ),
    ],
)
def test_every_failure_is_committed_with_its_kind_and_reason(
    desk: Desk, body: str, kind: str, reason: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main(desk.task(body))
    assert left.value.code == trials.FAILED
    outcome = desk.outcome()
    assert (outcome.state, outcome.kind, outcome.reason) == ("fail", kind, reason)


def test_what_is_committed_stays(desk: Desk) -> None:
    with pytest.raises(SystemExit):
        main(desk.task("commits_then_dies"))
    assert desk.outcome().state == "complete"


def test_a_terminated_trial_commits_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminated(context: TrialContext) -> dict[str, float]:
        raise SystemExit(trials.TERMINATED)

    monkeypatch.setitem(globals(), "leaves", terminated)
    with pytest.raises(SystemExit):
        main(desk.task("leaves"))
    assert "outcome" not in desk.study.trials[0].user_attrs


def test_a_pruned_trial_keeps_its_cost_and_its_last_epoch_and_no_result(desk: Desk) -> None:
    main(desk.task("is_behind"))
    assert desk.outcome() == TrialOutcome(
        "pruned", "", "last of all", {"efficiency/flops": 7.0}, None, 1
    )


def test_known_cost_over_a_limit_ends_the_trial_untrained(tmp_path: Path) -> None:
    desk = Desk(tmp_path, limits=["efficiency/flops <= 5", "val/recall/mel >= 0.8"])
    context = TrialContext(desk.task())
    with pytest.raises(OverLimit, match="7 breaks efficiency/flops <= 5"):
        context.known_cost({"efficiency/flops": 7.0})
    context.known_cost({"efficiency/flops": 5.0})  # at the limit is within it


def test_a_median_pruner_sees_the_reports_of_others_and_stops_the_worse(tmp_path: Path) -> None:
    spec = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1, "n_warmup_steps": 2}
    desk = Desk(tmp_path, OBJECTIVES[:1], pruner=spec)
    first, second = TrialContext(desk.task()), TrialContext(desk.task())
    for epoch in (1, 2):
        first.epoch(epoch, 3, {"val/accuracy": 0.6})
    desk.study.tell(0, 0.6)
    second.epoch(
        1, 3, {"val/accuracy": 0.5}
    )  # behind, but the first epoch that may be stopped is 2
    with pytest.raises(Pruned, match="epoch 2 of 3: val/accuracy 0.5 is behind"):
        second.epoch(2, 3, {"val/accuracy": 0.5})
    assert list(desk.study.trials[1].intermediate_values) == [
        1,
        2,
    ]  # an epoch that was not run is not there


def test_rungs_hold_the_best_so_far_and_the_known_cost_against_the_others(tmp_path: Path) -> None:
    spec = {
        "_target_": "src.sweep.pruners.Rungs",
        "min_epochs": 2,
        "reduction_factor": 2,
        "max_epochs": 6,
    }
    desk = Desk(tmp_path, pruner=spec)
    verdicts = []
    for accuracy, flops in ((0.9, 10.0), (0.8, 5.0), (0.7, 20.0), (0.6, 30.0)):
        context = TrialContext(desk.task())
        context.known_cost({"efficiency/flops": flops})
        context.epoch(1, 6, {"val/accuracy": accuracy})
        try:
            context.epoch(
                2, 6, {"val/accuracy": accuracy - 0.1}
            )  # worse than before: the best so far counts
            verdicts.append("goes on")
        except Pruned:
            verdicts.append("pruned")
    assert verdicts == [
        "goes on",
        "goes on",
        "pruned",
        "pruned",
    ]  # the latter are dominated by both others
    assert desk.study.trials[3].user_attrs["rung:2"] == [0.6, 30.0]


def test_at_a_rung_a_limit_is_held_against_the_best_epoch_so_far(tmp_path: Path) -> None:
    spec = {
        "_target_": "src.sweep.pruners.Rungs",
        "min_epochs": 2,
        "reduction_factor": 2,
        "max_epochs": 6,
    }
    desk = Desk(tmp_path, OBJECTIVES, pruner=spec, limits=["val/recall/mel >= 0.8"])

    def two_epochs(flops: float, *epochs: tuple[float, float]) -> None:
        context = TrialContext(desk.task())
        context.known_cost({"efficiency/flops": flops})
        for number, (accuracy, recall) in enumerate(epochs, 1):
            context.epoch(number, 6, {"val/accuracy": accuracy, "val/recall/mel": recall})

    two_epochs(
        10.0, (0.5, 0.9), (0.6, 0.1)
    )  # once it found the melanomas, but its best epoch does not
    two_epochs(30.0, (0.5, 0.8), (0.4, 0.0))
    two_epochs(20.0, (0.4, 0.9), (0.4, 0.9))
    with pytest.raises(Pruned, match="rank 3 of 4"):
        two_epochs(1.0, (0.9, 0.7), (0.9, 0.7))  # the best of all, but for the limit
    found = [trial.user_attrs["rung_limits:2"] for trial in desk.study.trials]
    assert found == [{"best/val/recall/mel": recall} for recall in (0.1, 0.8, 0.9, 0.7)]


def test_the_last_epoch_is_never_a_rung(tmp_path: Path) -> None:
    spec = {
        "_target_": "src.sweep.pruners.Rungs",
        "min_epochs": 2,
        "reduction_factor": 2,
        "max_epochs": 6,
    }
    desk = Desk(tmp_path, pruner=spec)
    for accuracy in (0.9, 0.1):
        context = TrialContext(desk.task())
        context.known_cost({"efficiency/flops": 100 * (1 - accuracy)})
        context.epoch(2, 2, {"val/accuracy": accuracy})
    assert "rung:2" not in desk.study.trials[1].user_attrs


def test_a_configuration_clearly_behind_after_some_seeds_is_dropped(tmp_path: Path) -> None:
    desk = Desk(tmp_path, repeats=6)
    strong, weak = TrialContext(desk.task()), TrialContext(desk.task())
    for seed in range(6):
        strong.repeat_ended(
            seed,
            f"strong-{seed}",
            {"best/val/accuracy": 0.8 + 0.01 * seed, "efficiency/flops": 5.0},
        )
    for seed in range(3):
        weak.repeat_ended(
            seed, f"weak-{seed}", {"best/val/accuracy": 0.5 - 0.02 * seed, "efficiency/flops": 9.0}
        )
    # four losses of different size in a row: p = 1/16, the first below 0.1
    with pytest.raises(Pruned, match="after 4 of 6 seeds"):
        weak.repeat_ended(3, "weak-3", {"best/val/accuracy": 0.44, "efficiency/flops": 9.0})
    assert weak.repeat_done(2) == ("weak-2", {"best/val/accuracy": 0.46, "efficiency/flops": 9.0})


def test_out_of_memory_is_known_by_any_of_its_names() -> None:
    assert classify(MemoryError())[0] == "out_of_memory"
    assert (
        classify(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"))[0]
        == "out_of_memory"
    )
    assert classify(DivergedError("train/loss is nan"))[0] == "diverged"
    assert classify(RuntimeError("shapes differ"))[0] == "error"
