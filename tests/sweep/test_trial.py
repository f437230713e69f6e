"""What a trial's process writes into the study; a real trial that is killed and retried."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import copy
from typing import Any

import optuna
import pytest
import torch
from sqlalchemy.exc import OperationalError

from src import run
from src.core.errors import ConfigError
from src.sweep import trial as trials
from src.sweep.records import (
    OUTCOME,
    PROGRESS,
    REPEAT,
    RUNG,
    STATE,
    OverLimit,
    Pruned,
    Task,
    TrialOutcome,
)
from src.sweep.storage import open_storage
from src.sweep.trial import TrialContext, main
from src.tracking.store import Store
from src.training import loop
from src.training.classifier import Classifier

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

    def task(self, body: str = "", function: str = f"{__name__}:run_body", **payload: Any) -> Task:
        asked = self.study.ask()
        asked.suggest_float("x", 0, 1)
        (folder := self.folder / f"{asked.number:04d}").mkdir()
        payload = {**self.payload, "body": body, **payload}
        return Task(self.url, "s", asked._trial_id, asked.number, str(folder), function, payload)

    def context(self, flops: float | None = None) -> TrialContext:
        context = TrialContext(self.task())
        if flops is not None:
            context.known_cost({"efficiency/flops": flops})
        return context

    def attributes(self, number: int = 0) -> dict[str, Any]:
        """The scheduler's bookkeeping."""
        return self.study.trials[number].system_attrs

    def outcome(self, number: int = 0) -> TrialOutcome:
        return TrialOutcome(**self.attributes(number)[OUTCOME])

    def states(self) -> list[str]:
        return sorted(str(file.relative_to(self.folder)) for file in self.folder.rglob("last.*"))


@pytest.fixture
def study(tmp_path: Path) -> StudyOnDisk:
    return StudyOnDisk(tmp_path)


def good(context: TrialContext) -> Mapping[str, float]:
    context.started("run-1")
    context.epoch(1, 2, {"val/accuracy": 0.5})
    return {**GOOD, "spurious": math.nan}


def raises(error: BaseException) -> Callable[..., Any]:
    def body(*arguments: Any, **options: Any) -> Any:
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


def is_terminated_in_a_query(context: TrialContext) -> Any:
    try:
        raise SystemExit(trials.TERMINATED)
    finally:
        raise OperationalError("SELECT", None, ConnectionError("closed"))


def leaves_and_fails(context: TrialContext) -> Any:
    try:
        raise SystemExit(3)
    finally:
        raise ZeroDivisionError("by nothing")


# By kind: body, reason.
FAILURES: list[tuple[str, Callable[[TrialContext], Any], str]] = [
    ("error", raises(ZeroDivisionError("by nothing")), "ZeroDivisionError: by nothing"),
    ("error", leaves_and_fails, "ZeroDivisionError: by nothing"),
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
    "terminated in a query": is_terminated_in_a_query,
}


def run_body(context: TrialContext) -> Any:
    return BODIES[context.payload["body"]](context)


def test_a_complete_trial_has_its_finite_metrics_its_run_and_its_epoch(study: StudyOnDisk) -> None:
    main(study.task("good"))
    assert study.outcome() == TrialOutcome("complete", metrics=GOOD, run_id="run-1", epoch=1)
    assert study.study.trials[0].user_attrs == {"run_id": "run-1"}
    noted = study.attributes()[PROGRESS]
    progress = {name: noted[name] for name in ("epoch", "epochs", "metrics")}
    assert progress == {"epoch": 1, "epochs": 2, "metrics": {"val/accuracy": 0.5}}


@pytest.mark.parametrize("number", range(len(FAILURES)))
def test_every_failure_is_committed_with_its_kind_and_reason(
    study: StudyOnDisk, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end:
        main(study.task(f"failure {number}"))
    assert end.value.code == trials.FAILED
    if FAILURES[number][0] in ("bad_config", "out_of_memory"):  # no mistake of ours
        assert "Traceback" not in caplog.text
    outcome = study.outcome()
    kind, _, reason = FAILURES[number]
    assert (outcome.state, outcome.kind, outcome.reason) == ("fail", kind, reason)


def test_a_committed_outcome_stays_and_a_terminated_trial_commits_none(study: StudyOnDisk) -> None:
    for body in ("commits_then_fails", "terminated", "terminated in a query"):
        with pytest.raises(SystemExit) as end:
            main(study.task(body))
        assert (end.value.code == trials.TERMINATED) == ("terminated" in body)
    assert study.outcome().state == "complete"
    assert OUTCOME not in study.attributes(1)
    assert OUTCOME not in study.attributes(2)


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
    assert first.reached == {"reached/epochs": 2, "reached/val/accuracy": 0.6}
    assert study.context().reached == {"reached/epochs": 0}


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
    stored = [tuple(study.attributes(number)[f"{RUNG}2"].values()) for number in range(4)]
    # The best accuracy so far, the known cost, and the recall at the best epoch.
    assert stored == [(0.6, 10.0, 0.1), (0.5, 30.0, 0.8), (0.4, 20.0, 0.9), (0.9, 1.0, 0.7)]


def test_the_last_epoch_is_never_a_rung(tmp_path: Path) -> None:
    study = StudyOnDisk(tmp_path, pruner=RUNGS)
    for accuracy in (0.9, 0.1):
        context = study.context(100 * (1 - accuracy))
        context.epoch(2, 2, {"val/accuracy": accuracy})
    assert f"{RUNG}2" not in study.attributes(1)


def test_in_a_race_a_configuration_that_is_behind_is_complete_with_its_seeds(
    tmp_path: Path,
) -> None:
    study = StudyOnDisk(tmp_path, repeats=5, is_race=True)
    strong, weak, rival, regular = (study.context() for _ in range(4))

    def end(context: TrialContext, seed: int, accuracy: float) -> bool:
        metrics = {"best/val/accuracy": accuracy, "efficiency/flops": 5.0}
        return context.repeat_ended(seed, f"{context.task.number}-{seed}", metrics)

    needs_more = [end(strong, seed, 0.8 + 0.01 * seed) for seed in range(5)]
    assert needs_more == [True, True, True, True, False]
    assert end(weak, 0, 0.5) is False
    assert [end(rival, seed, 0.81) for seed in range(2)] == [True, True]
    assert rival.repeat_done(1) == ("2-1", {"best/val/accuracy": 0.81, "efficiency/flops": 5.0})
    regular.payload = {**regular.payload, "is_race": False}  # as repeats=5
    assert end(regular, 0, 0.1) is True


# Real trials in this process: killed after the training, and retried from their state

EPOCHS = 3
CELL = ["experiment=smoke", f"trainer.max_epochs={EPOCHS}", "trainer.accelerator=cpu", "threads=1"]
CELL += ["efficiency=fast", "data.source.lesions=120", "data.batch_size=16", "model.image_size=32"]
REAL = "src.run:run_trial"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> StudyOnDisk:
    folder = tmp_path_factory.mktemp("study")
    copy(empty_database, folder / "mlflow.db")
    store = Store(f"sqlite:///{folder}/mlflow.db", folder=folder).open()
    tracking = {"uri": store.uri, "experiment": store.experiment, "folder": str(folder)}
    overrides = [*CELL, "model.net.width=4"]
    settings = {"cell": [], "study_run": None, "git": ["0", False], "keep_state_s": 0}
    objectives = [{"metric": "val/balanced_accuracy"}]
    return StudyOnDisk(folder, objectives, overrides=overrides, tracking=tracking, **settings)


@pytest.fixture(scope="module")
def undisturbed(real: StudyOnDisk) -> dict[str, float]:
    """What a trial comes to that nobody disturbs."""
    task = real.task(function=REAL)
    main(task)
    assert real.states() == []
    assert real.outcome(task.number).epoch == EPOCHS
    return of_the_net(real.outcome(task.number).metrics)


def of_the_net(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those that no clock measures."""
    clocks = ("time/", "system/", "efficiency/latency", "efficiency/throughput", "efficiency/peak")
    return {name: value for name, value in metrics.items() if not name.startswith(clocks)}


@pytest.mark.parametrize(("repeats", "step"), [(1, "measure"), (2, "evaluate")])
def test_a_trial_killed_between_its_training_and_its_outcome_trains_nothing_again(
    real: StudyOnDisk,
    undisturbed: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    repeats: int,
    step: str,
) -> None:
    steps: list[int] = []  # an entry for each batch that is trained
    train = Classifier.training_step

    def counted(classifier: Classifier, *batch: Any) -> Any:
        steps.append(len(steps))
        return train(classifier, *batch)

    monkeypatch.setattr(Classifier, "training_step", counted)
    first = real.task(function=REAL, repeats=repeats)
    with monkeypatch.context() as killed:
        killed.setattr(loop, step, raises(SystemExit(trials.TERMINATED)))
        with pytest.raises(SystemExit):
            main(first)
    trained = len(steps)
    assert trained > 0
    assert OUTCOME not in real.attributes(first.number)
    assert real.states() == [f"{first.number:04d}/" + ("seed-0/" if repeats > 1 else "") + STATE]
    second = real.task(function=REAL, repeats=repeats, continues=[first.folder])
    main(second)
    assert len(steps) == repeats * trained  # the other seed's, if there is one, and no more
    outcome = real.outcome(second.number)
    assert (outcome.state, outcome.epoch) == ("complete", EPOCHS)
    attributes = real.attributes(second.number)
    metrics = outcome.metrics if repeats == 1 else attributes[f"{REPEAT}0"][1]
    assert of_the_net(metrics) == undisturbed
    assert outcome.metrics["time/images_per_s"] > 0
    assert real.states() == []


def test_a_retry_keeps_all_seeds_that_were_trained(
    real: StudyOnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = real.task(function=REAL, repeats=2)
    with monkeypatch.context() as killed:
        killed.setattr(run, "_commit", raises(SystemExit(trials.TERMINATED)))
        with pytest.raises(SystemExit):
            main(first)
    second = real.task(function=REAL, repeats=2, continues=[first.folder])
    seeds = {key: real.attributes(first.number)[key] for key in (f"{REPEAT}0", f"{REPEAT}1")}
    for key, value in seeds.items():  # as the scheduler copies them to a retry
        real.study._storage.set_trial_system_attr(second.trial_id, key, value)
    main(second)
    values = [metrics["best/val/balanced_accuracy"] for _, metrics in seeds.values()]
    mean = real.outcome(second.number).metrics["best/val/balanced_accuracy"]
    assert mean == pytest.approx(sum(values) / 2)


def test_a_pruned_trial_leaves_no_state(real: StudyOnDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def behind(context: TrialContext, epoch: int, *_: Any) -> None:
        seen.append(real.states())
        if epoch == 2:
            raise Pruned("behind")

    monkeypatch.setattr(TrialContext, "_note", behind)
    task = real.task(function=REAL)
    main(task)
    assert len(seen[1]) == 1  # there was one
    assert real.outcome(task.number).state == "pruned"
    assert real.states() == []
