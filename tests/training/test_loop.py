"""Training: a resumed training equals one without interruption; real fits, real kills."""

import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from src.core.cli import ROOT
from src.metrics.classification import ClassificationMetrics
from src.tracking.run import Run
from src.tracking.store import Store
from src.training import loop
from src.training.progress import quiet_lightning

EPOCHS = 4
Figures = dict[int, dict[str, float]]


class EnoughError(Exception):
    """What a sweep would raise to end a training."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(folder=tmp_path_factory.mktemp("store") / "mlruns")
    store.open()
    return store


def compose_config(cache: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(
            "train",
            [
                "experiment=smoke",
                f"data.cache_dir={cache}",
                f"trainer.max_epochs={EPOCHS}",
                "trainer.accelerator=cpu",
                "threads=1",
                "data.oversample=0.5",
                "augment=flips",
                "scheduler=onecycle",
                "model.net.width=4",
                "model.net.dropout=0.5",
                "callbacks.best.metric=val/loss",
                *overrides,
            ],
        )


def stop_after(
    epoch: int, seen: Figures, raised: BaseException | None = None
) -> Callable[[int, dict[str, float]], None]:
    def on_epoch(number: int, figures: dict[str, float]) -> None:
        seen[number] = figures
        if number == epoch:
            raise raised or EnoughError(number)

    return on_epoch


def train(
    config: DictConfig, folder: Path, run: Run | None = None, **options: Any
) -> tuple[loop.RunParts, Path]:
    folder.mkdir(exist_ok=True)
    parts = loop.build(config)
    return parts, loop.train(config, parts, run, folder, **options)


def weights(parts: loop.RunParts) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in parts.classifier.state_dict().items()}


def interrupted(
    config: DictConfig, folder: Path, epoch: int, **options: Any
) -> tuple[Path, Figures]:
    """Train until the state of `epoch` is written: the callback of the next epoch raises."""
    seen: Figures = {}
    with pytest.raises(EnoughError):
        train(config, folder, on_epoch=stop_after(epoch + 1, seen), keep_state_s=0, **options)
    state = folder / "checkpoint" / "last.ckpt"
    assert state.exists()
    return state, seen


@pytest.fixture(scope="module")
def unbroken(
    cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Figures, dict[str, torch.Tensor]]:
    """Figures and weights of the standard training without a break."""
    figures: Figures = {}
    parts, _ = train(
        compose_config(cache),
        tmp_path_factory.mktemp("whole") / "run",
        on_epoch=stop_after(99, figures),
    )
    return figures, weights(parts)


def curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """Every learning curve of a run as (step, value)."""
    run.flush()
    names = run.store.client.get_run(run.id).data.metrics
    found = {name: run.store.client.get_metric_history(run.id, name) for name in names}
    return {
        name: sorted((point.step, point.value) for point in points)
        for name, points in found.items()
        if name.startswith(("train/", "val/"))
    }


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("callbacks=early_stopping", "optimizer=sgd", "scheduler=cosine", "augment=sun2023"),
        ("callbacks=averaging", "callbacks.averaging.decay=0.9"),
    ],
)
def test_a_resumed_training_equals_an_uninterrupted_one(
    tmp_path: Path, cache: Path, store: Store, changes: tuple[str, ...]
) -> None:
    config = compose_config(cache, *changes)
    whole: Figures = {}
    with Run.start(store, "whole") as unbroken_run:
        unbroken, _ = train(
            config, tmp_path / "whole", unbroken_run, on_epoch=stop_after(99, whole)
        )
    state, early = interrupted(config, tmp_path / "first", 2)
    late: Figures = {}
    with Run.start(store, "resumed") as resumed_run:
        resumed, best = train(
            config,
            tmp_path / "second",
            resumed_run,
            resume=state,
            on_epoch=stop_after(99, late),
            keep_state_s=0,
        )
    assert list(whole) == [1, 2, 3, 4]
    assert list(late) == [3, 4]
    assert {epoch: early[epoch] for epoch in (1, 2)} | late == whole  # to the last bit
    assert math.isfinite(whole[1]["train/loss"])
    assert best == tmp_path / "second" / "checkpoint" / "best.ckpt"
    assert {path.name for path in best.parent.iterdir()} == {"best.ckpt", "last.ckpt"}
    torch.testing.assert_close(weights(resumed), weights(unbroken), rtol=0, atol=0)
    steps = unbroken.data.loader("train", train=True).__len__()
    assert [step for step, _ in curves(unbroken_run)["train/loss"]] == [
        steps * (epoch + 1) - 1 for epoch in range(4)
    ]
    assert curves(resumed_run) == curves(unbroken_run)
    final = [
        run.store.client.get_run(run.id).data.metrics["best/epoch"]
        for run in (unbroken_run, resumed_run)
    ]
    assert final[0] == final[1]


def test_a_training_resumes_twice_in_place(
    tmp_path: Path, cache: Path, unbroken: tuple[Figures, dict[str, torch.Tensor]]
) -> None:
    config = compose_config(cache)
    state, first = interrupted(config, tmp_path / "trial", 1)
    state, second = interrupted(config, tmp_path / "trial", 2, resume=state)
    third: Figures = {}
    _, best = train(
        config, tmp_path / "trial", resume=state, on_epoch=stop_after(99, third), keep_state_s=0
    )
    assert (list(first), list(second), list(third)) == ([1, 2], [2, 3], [3, 4])
    assert first | second | third == unbroken[0]
    assert {path.name for path in best.parent.iterdir()} == {"best.ckpt", "last.ckpt"}


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ((), EPOCHS),
        (
            (
                "callbacks=early_stopping",
                "callbacks.early_stopping.patience=1",
                "callbacks.best.metric=val/accuracy",
            ),
            0,
        ),
        (("data.fractions=[0.8,0.0,0.2]",), EPOCHS),
    ],
    ids=["to the end", "stopped early", "without validation"],
)
@pytest.mark.parametrize("keep_state_s", [0, 1e9])
def test_a_finished_training_only_restores_its_best_epoch(
    tmp_path: Path,
    cache: Path,
    store: Store,
    changes: tuple[str, ...],
    epochs: int,
    keep_state_s: float,
) -> None:
    config = compose_config(cache, *changes)
    if not epochs:  # in the second epoch nothing has improved
        config.callbacks.early_stopping.min_delta = 1.0
    done: Figures = {}
    with Run.start(store, "whole") as whole_run:
        unbroken, best = train(
            config,
            tmp_path / "whole",
            whole_run,
            on_epoch=stop_after(99, done),
            keep_state_s=keep_state_s,
        )
    assert list(done) == list(range(1, (epochs or 2) + 1))
    state = tmp_path / "whole" / "checkpoint" / "last.ckpt"
    more: Figures = {}
    told: list[Any] = []
    with Run.start(store, "again") as again_run:
        again, found = train(
            config,
            tmp_path / "again",
            again_run,
            resume=state,
            on_epoch=stop_after(99, more),
            on_resume=told.append,
            keep_state_s=keep_state_s,
        )
    assert more == {}
    assert told == [list(done.values())]
    assert found.read_bytes() == best.read_bytes()
    torch.testing.assert_close(weights(again), weights(unbroken), rtol=0, atol=0)
    assert curves(again_run) == curves(whole_run)
    assert curves(again_run)["train/loss"]
    recorded = [run.store.client.get_run(run.id).data for run in (whole_run, again_run)]
    for name in ("best/epoch", "time/images_per_s"):
        assert recorded[0].metrics[name] == recorded[1].metrics[name]
    assert recorded[0].tags["chosen_by"] == recorded[1].tags["chosen_by"]


def test_a_training_without_validation_resumes(tmp_path: Path, cache: Path) -> None:
    config = compose_config(cache, "data.fractions=[0.8,0.0,0.2]")
    whole: Figures = {}
    unbroken, _ = train(config, tmp_path / "whole", on_epoch=stop_after(99, whole))
    state, _ = interrupted(config, tmp_path / "first", 1)
    late: Figures = {}
    resumed, _ = train(config, tmp_path / "second", resume=state, on_epoch=stop_after(99, late))
    assert [list(figures) for figures in late.values()] == [["train/loss"]] * 3
    assert late == {epoch: whole[epoch] for epoch in (2, 3, 4)}
    torch.testing.assert_close(weights(resumed), weights(unbroken), rtol=0, atol=0)


def body_that_dies(config: DictConfig, folder: Path, moment: str) -> None:
    """A trial's process that is killed in its third epoch."""

    def die(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch(epoch: int, figures: dict[str, float]) -> None:
        if epoch == 3 and moment == "between epochs":
            die()
        if epoch == 3 and moment == "state written, not yet in place":
            Path.replace = die  # type: ignore[assignment,method-assign]
        if epoch == 2 and moment == "within an epoch":
            parts.classifier.loss.register_forward_hook(die)

    parts = loop.build(config)
    loop.train(config, parts, None, folder, on_epoch=on_epoch, keep_state_s=0)


@pytest.mark.usefixtures("own_fork_server")
@pytest.mark.parametrize(
    "moment", ["between epochs", "state written, not yet in place", "within an epoch"]
)
def test_a_killed_process_resumes_from_its_last_complete_state(
    tmp_path: Path, cache: Path, unbroken: tuple[Figures, dict[str, torch.Tensor]], moment: str
) -> None:
    config = compose_config(cache)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["src.training.loop"])
    trial = processes.Process(target=body_that_dies, args=(config, tmp_path / "first", moment))
    trial.start()
    trial.join(120)
    assert trial.exitcode == -signal.SIGKILL
    late: Figures = {}
    state = tmp_path / "first" / "checkpoint" / "last.ckpt"
    resumed, _ = train(config, tmp_path / "second", resume=state, on_epoch=stop_after(99, late))
    assert late == {epoch: unbroken[0][epoch] for epoch in (3, 4)}
    torch.testing.assert_close(weights(resumed), unbroken[1], rtol=0, atol=0)


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
    cache: Path,
    caplog: pytest.LogCaptureFixture,
    state_of_two: Path,
    spoil: Callable[[Path], Any],
    changes: tuple[str, ...],
    reason: str,
) -> None:
    state = tmp_path / "last.ckpt"
    state.write_bytes(state_of_two.read_bytes())
    spoil(state)
    seen: Figures = {}
    with pytest.raises(EnoughError):
        train(
            compose_config(cache, *changes),
            tmp_path / "second",
            resume=state,
            on_epoch=stop_after(1, seen),
        )
    assert list(seen) == [1]
    (line,) = [
        record.getMessage() for record in caplog.records if "NOT RESUMED" in record.getMessage()
    ]
    assert str(state) in line
    assert reason in line


@pytest.fixture(scope="module")
def state_of_two(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The state of the standard training after its second epoch."""
    state, _ = interrupted(compose_config(cache), tmp_path_factory.mktemp("two"), 2)
    return state


def test_a_training_resumes_on_another_device_and_store(
    tmp_path: Path, cache: Path, state_of_two: Path
) -> None:
    seen: Figures = {}
    elsewhere = compose_config(
        cache, "trainer.accelerator=auto", "tracking.folder=elsewhere", "study=other"
    )
    with pytest.raises(EnoughError):
        train(elsewhere, tmp_path / "second", resume=state_of_two, on_epoch=stop_after(3, seen))
    assert list(seen) == [3]


@pytest.mark.parametrize("raised", [EnoughError("x"), KeyboardInterrupt("x"), SystemExit("x")])
def test_exceptions_of_the_callback_are_unchanged_and_quiet(
    tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str], raised: BaseException
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    config = compose_config(cache)
    parts = loop.build(config)
    capfd.readouterr()
    with pytest.raises(type(raised)) as caught:
        loop.train(config, parts, None, tmp_path, on_epoch=stop_after(1, {}, raised))
    assert caught.value is raised
    assert signal.getsignal(signal.SIGINT) == handler
    shown = "".join(capfd.readouterr())
    assert "graceful" not in shown
    assert "Traceback" not in shown


def test_the_last_epoch_of_a_stopped_training_is_logged(
    tmp_path: Path, cache: Path, store: Store
) -> None:
    seen: Figures = {}
    run = Run.start(store, "pruned")
    with pytest.raises(EnoughError):
        train(compose_config(cache), tmp_path / "run", run, on_epoch=stop_after(2, seen))
    shown = curves(run)
    for name in ("train/loss", "val/loss"):
        assert [value for _, value in shown[name]] == [seen[1][name], seen[2][name]]
    steps = [step for step, _ in shown["val/loss"]]
    assert [step for step, _ in shown["train/loss"]] == steps


def balanced_accuracy(tmp_path: Path, width: int) -> float:
    """On validation and test together, after the last epoch."""
    overrides = [f"model.net.width={width}", f"data.cache_dir={tmp_path}", "trainer=cpu"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides=overrides)
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
    small, custom = balanced_accuracy(tmp_path, 8), balanced_accuracy(tmp_path, 32)
    assert 2.5 / 7 < custom < 0.8
    assert custom > small + 0.03
