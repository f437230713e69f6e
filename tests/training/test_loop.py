"""Training: a resumed training equals one without interruption; real fits, real kills."""

import contextlib
import functools
import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from omegaconf import DictConfig

from src import api
from src.core.errors import ConfigError, DivergedError
from src.metrics.classification import ClassificationMetrics
from src.tracking.run import Run
from src.tracking.store import Store
from src.training import loop
from src.training.progress import quiet_lightning

EPOCHS = 4
STANDARD = [
    "experiment=smoke",
    f"trainer.max_epochs={EPOCHS}",
    "trainer.accelerator=cpu",
    "threads=1",
    "data.oversample=0.5",
    "augment=flips",
    "scheduler=onecycle",
    "model.net.width=4",
    "model.net.dropout=0.5",
    "callbacks.best.metric=val/loss",
]
WITHOUT_VALIDATION = ("data.fractions=[0.8,0.0,0.2]",)


class EnoughError(Exception):
    """What a sweep would raise to end a training."""


class Training(NamedTuple):
    parts: loop.RunParts
    epochs: dict[int, dict[str, float]]  # metrics of each epoch that was trained
    folder: Path  # of the checkpoints

    @property
    def state(self) -> Path:
        return self.folder / "last.ckpt"

    def assert_same_weights(self, other: "Training") -> None:
        weights, expected = (part.parts.classifier.state_dict() for part in (self, other))
        torch.testing.assert_close(weights, expected, rtol=0, atol=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Store:
    folder = tmp_path_factory.mktemp("store")
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    return Store(uri=f"sqlite:///{folder}/mlflow.db", experiment="template", folder=folder)


def compose_config(*overrides: str) -> DictConfig:
    return api.compose([*STANDARD, *overrides])


def train(
    config: DictConfig, folder: Path, run: Run | None = None, stop: int = 0, **options: Any
) -> Training:
    """Train; the callback raises in the epoch `stop`."""
    folder.mkdir(exist_ok=True)
    parts = loop.build(config)
    epochs: dict[int, dict[str, float]] = {}

    def on_epoch(number: int, metrics: dict[str, float]) -> None:
        epochs[number] = metrics
        if number == stop:
            raise EnoughError(number)

    with pytest.raises(EnoughError) if stop else contextlib.nullcontext():
        best = loop.train(config, parts, run, folder, on_epoch=on_epoch, **options)
        assert best == folder / "checkpoint" / "best.ckpt"
    return Training(parts, epochs, folder / "checkpoint")


Complete = Callable[..., tuple[Training, Run]]


@pytest.fixture(scope="module")
def complete(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Complete:
    """Uninterrupted trainings with their runs; each is trained once."""

    @functools.cache
    def train_once(changes: tuple[str, ...], keep_state_s: float) -> Any:
        config, folder = compose_config(*changes), tmp_path_factory.mktemp("complete")
        with Run.start(store, "complete") as run:
            training = train(config, folder, run, keep_state_s=keep_state_s)
        return training, run

    return train_once


@pytest.fixture(scope="module")
def unbroken(complete: Complete) -> Training:
    """The standard training."""
    return complete((), 1e9)[0]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of the standard training after its second epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    return train(compose_config(), folder, stop=3, keep_state_s=0).state


def curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """Every learning curve of a run as (step, value)."""
    run.flush()
    client = run.store.client
    names = client.get_run(run.id).data.metrics
    points = {name: client.get_metric_history(run.id, name) for name in names}
    return {
        name: sorted((point.step, point.value) for point in history)
        for name, history in points.items()
        if name.startswith(("train/", "val/"))
    }


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("callbacks=early_stopping", "optimizer=sgd", "scheduler=cosine", "augment=sun2023"),
        ("callbacks=averaging", "callbacks.averaging.decay=0.9"),
        WITHOUT_VALIDATION,
    ],
)
def test_a_resumed_training_equals_an_uninterrupted_one(
    tmp_path: Path, store: Store, complete: Complete, changes: tuple[str, ...]
) -> None:
    config = compose_config(*changes)
    whole, whole_run = complete(changes, 1e9)
    early = train(config, tmp_path / "first", stop=3, keep_state_s=0)
    with Run.start(store, "resumed") as run:
        late = train(config, tmp_path / "second", run, resume=early.state, keep_state_s=0)
    assert list(whole.epochs) == [1, 2, 3, 4]
    assert list(late.epochs) == [3, 4]
    expected = {epoch: early.epochs[epoch] for epoch in (1, 2)} | late.epochs
    assert whole.epochs == expected  # to the last bit
    assert math.isfinite(whole.epochs[1]["train/loss"])
    assert ("val/loss" in whole.epochs[1]) == (changes != WITHOUT_VALIDATION)
    assert {path.name for path in late.folder.iterdir()} == {"best.ckpt", "last.ckpt"}
    late.assert_same_weights(whole)
    batches = len(whole.parts.data.loader("train", train=True))
    steps = [step for step, _ in curves(whole_run)["train/loss"]]
    assert steps == [batches * (epoch + 1) - 1 for epoch in range(4)]
    assert curves(run) == curves(whole_run)
    kept = [store.client.get_run(of.id).data.metrics["best/epoch"] for of in (whole_run, run)]
    assert kept[0] == kept[1]


def test_a_training_resumes_twice_in_place(tmp_path: Path, unbroken: Training) -> None:
    config, state = compose_config(), None
    epochs: dict[int, dict[str, float]] = {}
    for stop, numbers in ((2, [1, 2]), (3, [2, 3]), (0, [3, 4])):
        part = train(config, tmp_path / "trial", stop=stop, resume=state, keep_state_s=0)
        assert list(part.epochs) == numbers
        epochs |= part.epochs
        state = part.state
    assert epochs == unbroken.epochs
    assert {path.name for path in part.folder.iterdir()} == {"best.ckpt", "last.ckpt"}


EARLY = (  # in the second epoch nothing has improved
    *("callbacks=early_stopping", "callbacks.early_stopping.patience=1"),
    *("callbacks.early_stopping.min_delta=1.0", "callbacks.best.metric=val/accuracy"),
)


@pytest.mark.parametrize(
    ("changes", "epochs", "keep_state_s"),
    [((), EPOCHS, 0), ((), EPOCHS, 1e9), (EARLY, 2, 1e9), (WITHOUT_VALIDATION, EPOCHS, 1e9)],
    ids=["to the end", "written once", "stopped early", "without validation"],
)
def test_a_finished_training_only_restores_its_best_epoch(
    tmp_path: Path,
    store: Store,
    complete: Complete,
    changes: tuple[str, ...],
    epochs: int,
    keep_state_s: float,
) -> None:
    whole, first = complete(changes, keep_state_s)
    assert list(whole.epochs) == list(range(1, epochs + 1))
    calls: list[Any] = []
    options = {"resume": whole.state, "on_resume": calls.append, "keep_state_s": keep_state_s}
    with Run.start(store, "again") as second:
        again = train(compose_config(*changes), tmp_path / "again", second, **options)
    assert again.epochs == {}
    assert calls == [list(whole.epochs.values())]
    best = [part.folder / "best.ckpt" for part in (whole, again)]
    assert best[0].read_bytes() == best[1].read_bytes()
    again.assert_same_weights(whole)
    assert curves(second) == curves(first)
    assert curves(second)["train/loss"]
    recorded = [store.client.get_run(run.id).data for run in (first, second)]
    for name in ("best/epoch", "time/images_per_s"):
        assert recorded[0].metrics[name] == recorded[1].metrics[name]
    assert recorded[0].tags["chosen_by"] == recorded[1].tags["chosen_by"]


@pytest.mark.parametrize("more", [(), WITHOUT_VALIDATION])
def test_weights_that_the_last_step_ruined_are_a_diverged_training(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    """The training loss is of the weights before the only step: it is finite."""
    one_step = ("optimizer.lr=1e30", "data.batch_size=100000", "trainer.max_epochs=1")
    config = compose_config(*one_step, *more)
    problem = "the net's output is not finite" if more else "val/loss is (nan|inf) in epoch 1"
    with pytest.raises(DivergedError, match=f"{problem}.*: the training diverged; lower optimizer"):
        loop.train(config, loop.build(config), None, tmp_path)


@pytest.mark.parametrize("split", ["val", "test"])
def test_probabilities_that_are_no_numbers_are_not_recorded(
    tmp_path: Path, store: Store, split: str
) -> None:
    config = compose_config()
    parts = loop.build(config)
    weights = next(parts.classifier.net.parameters())
    torch.nn.init.constant_(weights, math.nan)
    with (
        pytest.raises(DivergedError, match=rf"not finite for \d+ images of {split}: "),
        Run.start(store, "nan", {}, {}) as run,
    ):
        loop.evaluate(config, parts, split, run, tmp_path)
    assert store.client.get_run(run.id).info.status == "FAILED"
    assert not store.client.get_run(run.id).data.metrics


def body_that_dies(config: DictConfig, folder: Path, moment: str) -> None:
    """A trial's process that is killed in its third epoch."""

    def die(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch(epoch: int, metrics: dict[str, float]) -> None:
        if epoch == 3 and moment == "between epochs":
            die()
        if epoch == 3 and moment == "state written, not yet in place":
            Path.replace = die  # type: ignore[assignment,method-assign]
        if epoch == 2 and moment == "within an epoch":
            parts.classifier.loss.register_forward_hook(die)

    parts = loop.build(config)
    loop.train(config, parts, None, folder, on_epoch=on_epoch, keep_state_s=0)


@pytest.mark.parametrize(
    "moment", ["between epochs", "state written, not yet in place", "within an epoch"]
)
def test_a_killed_process_resumes_from_its_last_complete_state(
    tmp_path: Path, unbroken: Training, moment: str
) -> None:
    config = compose_config()
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["src.training.loop"])  # unless one runs already
    trial = processes.Process(target=body_that_dies, args=(config, tmp_path / "first", moment))
    trial.start()
    trial.join(120)
    assert trial.exitcode == -signal.SIGKILL
    state = tmp_path / "first" / "checkpoint" / "last.ckpt"
    late = train(config, tmp_path / "second", resume=state)
    assert late.epochs == {epoch: unbroken.epochs[epoch] for epoch in (3, 4)}
    late.assert_same_weights(unbroken)


def flip_a_byte(state: Path) -> None:
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 0xFF
    state.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "changes", "reason"),
    [
        (flip_a_byte, (), "damaged"),
        (lambda state: state.write_bytes(state.read_bytes()[:-5000]), (), "damaged"),
        (lambda state: state.write_bytes(b""), (), "damaged"),
        (lambda state: state.unlink(), (), "no such file"),
        (lambda state: None, ("model.net.width=6",), "another network"),
        (lambda state: None, ("optimizer.lr=0.01",), "another configuration or other data"),
        (lambda state: None, ("trainer.max_epochs=2",), "another configuration or other data"),
        (lambda state: None, ("data.split_seed=5",), "another configuration or other data"),
    ],
)
def test_a_state_that_does_not_fit_is_reported_and_training_starts_again(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    stopped: Path,
    spoil: Callable[[Path], Any],
    changes: tuple[str, ...],
    reason: str,
) -> None:
    state = tmp_path / "last.ckpt"
    state.write_bytes(stopped.read_bytes())
    spoil(state)
    again = train(compose_config(*changes), tmp_path / "second", stop=1, resume=state)
    assert list(again.epochs) == [1]
    messages = [record.getMessage() for record in caplog.records]
    [line] = [message for message in messages if "NOT RESUMED" in message]
    assert str(state) in line
    assert reason in line


def test_a_training_resumes_on_another_device_and_store(tmp_path: Path, stopped: Path) -> None:
    changes = ("trainer.accelerator=auto", "tracking.folder=elsewhere", "study=other")
    resumed = train(compose_config(*changes), tmp_path / "run", stop=3, resume=stopped)
    assert list(resumed.epochs) == [3]


@pytest.mark.parametrize("loss", ["focal", "balanced_softmax"])
def test_mixed_images_are_learnt_with_soft_labels(
    tmp_path: Path, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = f"loss={loss}", "augment.mixup=0.4", "augment.cutmix=1.0", "trainer.max_epochs=1"
    config = compose_config(*changes)
    parts = loop.build(config)
    targets: list[torch.Size] = []
    parts.classifier.loss.register_forward_pre_hook(
        lambda _, inputs: targets.append(inputs[1].shape)
    )
    loop.train(config, parts, None, tmp_path)
    assert {len(shape) for shape in targets} == {1, 2}  # of validation, and of training
    monkeypatch.setattr(type(parts.classifier.loss), "soft_labels", False)
    with pytest.raises(ConfigError, match=r"^loss: .*soft_labels; set augment.mixup=0"):
        loop.build(config)


@pytest.mark.parametrize("raised", [EnoughError("x"), KeyboardInterrupt("x"), SystemExit("x")])
def test_exceptions_of_the_callback_are_unchanged_and_quiet_and_its_epoch_is_logged(
    tmp_path: Path, store: Store, capfd: pytest.CaptureFixture[str], raised: BaseException
) -> None:
    handler, run = signal.getsignal(signal.SIGINT), Run.start(store, "pruned")
    parts, epochs = loop.build(compose_config()), []

    def on_epoch(number: int, metrics: dict[str, float]) -> None:
        epochs.append(metrics)
        if number == 2:
            raise raised

    with pytest.raises(type(raised)) as caught:
        loop.train(compose_config(), parts, run, tmp_path, on_epoch=on_epoch)
    assert caught.value is raised
    assert signal.getsignal(signal.SIGINT) == handler
    output = "".join(capfd.readouterr())
    assert "graceful" not in output
    assert "Traceback" not in output
    logged = curves(run)
    for name in ("train/loss", "val/loss"):
        assert [value for _, value in logged[name]] == [metrics[name] for metrics in epochs]
    steps = [[step for step, _ in logged[name]] for name in ("train/loss", "val/loss")]
    assert steps[0] == steps[1]


def balanced_accuracy(tmp_path: Path, width: int) -> float:
    """On validation and test together, after the last epoch."""
    overrides = [f"model.net.width={width}", "trainer=cpu"]
    # drawing larger pictures takes longer than training on them
    overrides += ["model.image_size=32", "threads=1", "data.source.native_size=32"]
    config = api.compose(overrides)
    parts = loop.build(config)
    trainer, _, _ = loop.prepare_fit(config, parts, None, tmp_path / str(width))
    with quiet_lightning():
        trainer.fit(parts.classifier, datamodule=parts.data)
    metrics = ClassificationMetrics(parts.data.classes)
    for split in ("val", "test"):
        trainer.test(parts.classifier, parts.data.loader(split), verbose=False)
        rows, probability = parts.classifier.predictions()
        metrics.update(probability, torch.from_numpy(parts.data.labels[rows.numpy()]))
    return metrics.compute()["balanced_accuracy"]


@pytest.mark.slow
def test_synthetic_lesions_are_learnt_better_by_a_wider_net(tmp_path: Path) -> None:
    small, custom = balanced_accuracy(tmp_path, 4), balanced_accuracy(tmp_path, 32)
    assert 2.5 / 7 < custom < 0.8
    assert custom > small + 0.03


def test_a_time_that_is_known_is_not_measured_again_and_keeps_its_tag() -> None:
    config = compose_config("efficiency=fast")
    classifier = loop.build(config, pretrained=False).classifier
    known = {"efficiency/latency_ratio": 3.0}
    known |= {f"efficiency/latency_ms/b1/p{tail}": 2.0 for tail in (50, 90, 99)}
    profile = loop.measure(config, classifier, known, ["efficiency/throughput"], "later")
    assert profile.metrics.items() >= known.items()
    assert "efficiency/throughput" in profile.metrics
    assert profile.details["methods"] == {}
    assert "b1" not in profile.details["repeats"]
