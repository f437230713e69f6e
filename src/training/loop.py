"""One config -> one trained, measured, logged run."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, Trainer
from pytorch_lightning import __version__ as lightning_version
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from src.core.config import instantiate
from src.core.environment import config_hash, keep_freed_memory, seed_everything
from src.core.errors import ConfigError
from src.data.module import DataModule
from src.models import fit_once
from src.models.precision import cast_as_recorded
from src.tracking.run import Run
from src.tracking.store import Store
from src.training import figures, teachers
from src.training.checkpoint import BestEpoch, LastState, StopEarly, fits, load_weights
from src.training.classifier import Classifier
from src.training.logger import RunLogger
from src.training.progress import AfterEpoch, EpochProgress, quiet_lightning

log = logging.getLogger(__name__)
NEVER = 10**9  # steps; the metrics are logged once an epoch


@dataclass
class RunParts:
    """What a config is built into: data that are ready, and a classifier that fits them."""

    data: DataModule
    classifier: Classifier


def build(config: DictConfig, pretrained: bool = True) -> RunParts:
    """Prepare the data and build the classifier.

    Args:
        config: A composed `conf/train.yaml`.
        pretrained: False when a checkpoint follows, so that no weights are looked for.

    Raises:
        UserError: A value, a file or a package is not as it should be; the message names it.
    """
    keep_freed_memory()
    seed_everything(config.seed)
    augment = instantiate(config.augment, "augment")
    data: DataModule = instantiate(
        config.data, "data", ("root",), augment=augment, seed=config.seed
    )
    try:
        data.prepare()
    except ConfigError as error:
        raise (error if error.key.startswith("data.") else error.under("data")) from error
    if not pretrained and "weights" in config.model.net:
        config = config.copy()
        config.model.net.weights = "random"
    seed_everything(config.seed)
    net: nn.Module = instantiate(config.model.net, "model.net", outputs=data.outputs)
    cast_as_recorded(net, config)
    if fit_once.is_fit_once(net):
        data.augment = None  # it sees each image once, as it is
    loss = build_loss(config, data, taught=pretrained)
    classifier = instantiate(
        config.model,
        "model",
        ("net", "image_size"),
        net=net,
        # what the net is built for, also where it was set apart from model.image_size
        image_size=data.image_size,
        loss=loss,
        classes=data.classes,
        optimizer=_optimizer(config),
        scheduler=instantiate(config.scheduler, "scheduler"),
    )
    return RunParts(data, classifier)


def build_loss(config: DictConfig, data: DataModule, taught: bool = True) -> nn.Module:
    """The loss, with the teachers that it asks for.

    Args:
        config: A composed `conf/train.yaml`.
        data: Ready.
        taught: False where nothing is trained, so that no teachers are looked for.

    Raises:
        UserError: A value is not as it should be, or a teacher cannot be had.
    """
    given: dict[str, Any] = {}
    if "teacher" in config.loss and taught:
        store: Store = instantiate(config.tracking, "tracking")
        given["teachers"] = teachers.load(store, config.loss.teacher, data)
    loss: nn.Module = instantiate(
        config.loss, "loss", ("teacher",), class_counts=data.seen_counts, **given
    )
    return loss


def _optimizer(config: DictConfig) -> Any:
    """The optimizer's factory, tried once, so that an impossible value is found before anything is trained."""
    factory = instantiate(config.optimizer, "optimizer")
    try:
        factory([nn.Parameter(torch.zeros(1))])
    except ValueError as error:
        raise ConfigError("optimizer", str(error)) from error
    return factory


def prepare_fit(
    config: DictConfig,
    parts: RunParts,
    run: Run | None,
    folder: Path,
    after: Sequence[Callback] = (),
) -> tuple[Trainer, EpochProgress, BestEpoch]:
    """The trainer with its callbacks: progress, the kept epoch, and what the config names.

    Args:
        config: A composed `conf/train.yaml`.
        parts: Of the same config.
        run: Where to log; None on the ranks of a distributed run that do not write.
        folder: The run's own folder; the checkpoint goes there.
        after: Further callbacks, behind all others.
    """
    _set_threads(config)
    if config.trainer.max_epochs is None or config.trainer.max_epochs < 1:
        raise ConfigError(
            "trainer.max_epochs", f"must be at least 1, but got {config.trainer.max_epochs}"
        )
    has_validation = parts.data.has("val")
    best: BestEpoch = instantiate(
        config.callbacks.best,
        "callbacks.best",
        folder=folder / "checkpoint",
        has_validation=has_validation,
    )
    others = [
        instantiate(node, f"callbacks.{name}")
        for name, node in config.callbacks.items()
        if name != "best"
    ]
    if not has_validation:
        others = [
            callback for callback in others if not isinstance(callback, StopEarly)
        ]  # it has nothing to watch
    progress = EpochProgress(config.model.name)
    trainer = _trainer(config, run, folder, [best, *others, progress, *after])
    return trainer, progress, best


def _set_threads(config: DictConfig) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)


def train(
    config: DictConfig,
    parts: RunParts,
    run: Run | None,
    folder: Path,
    *,
    resume: Path | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    on_resume: Callable[[Sequence[Mapping[str, float]]], None] | None = None,
    keep_state_s: float | None = None,
) -> Path:
    """Fit, and bring the classifier back to its chosen epoch; a net that is fitted once has none, see `once.train`.

    Args:
        config: A composed `conf/train.yaml`.
        parts: Of the same config.
        run: Where to log; None on the ranks of a distributed run that do not write.
        folder: The run's own folder; the checkpoint goes there.
        resume: A `last.ckpt` of the same config, in any folder, after whose epoch the training goes
            on; its epochs are logged to `run` again. One that does not fit is warned of, and the
            training starts from scratch.
        on_epoch: Given epoch, from 1, and metrics after each epoch's validation, on the first rank;
            not for the epochs that `resume` has done. What it raises ends the training and comes
            out of here.
        on_resume: Given the metrics of each epoch that `resume` has done, before the training goes
            on.
        keep_state_s: Keep a `checkpoint/last.ckpt` at most so many seconds old (0: every epoch's),
            and in the end that of the last epoch, after which no other is trained. It stays:
            whoever has recorded the outcome discards it.

    Returns:
        The path of the chosen epoch's checkpoint.
    """
    if fit_once.is_fit_once(net := parts.classifier.net):
        _set_threads(config)
        return fit_once.train(parts.classifier, net, parts.data, config.seed, run, folder)
    identity = _identity(config, parts.data)
    last = LastState(folder / "checkpoint", identity, keep_state_s, on_resume)
    hook = AfterEpoch(on_epoch)
    trainer, progress, best = prepare_fit(config, parts, run, folder, [hook, last])
    state = resume if resume is not None and fits(resume, identity, parts.classifier) else None
    try:
        with quiet_lightning(), hook.exceptions_unchanged():
            # weights_only: nothing of a state's file is executed
            trainer.fit(
                parts.classifier,
                datamodule=parts.data,
                ckpt_path=state,
                weights_only=True if state else None,
            )
    except MisconfigurationException as error:
        raise ConfigError("trainer or callbacks", str(error).splitlines()[0]) from error
    seconds = last.seconds
    if torch.distributed.is_initialized():
        # what follows is the first rank's alone: with the group still there its metrics would wait
        # for the others
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    checkpoint = Path(best.best_model_path)
    load_weights(parts.classifier, checkpoint)
    if run is not None:
        curves = folder / "learning_curves.png"
        figures.learning_curves(pd.DataFrame(best.history), best.epoch).savefig(curves)
        run.artifact(curves, "figures")
        run.tag(chosen_by=best.chosen_by)
        images_per_s = (
            progress.images_per_s or last.images_per_s
        )  # this process may have had no epoch to train
        speeds = {
            "time/fit_s": seconds,
            "time/images_per_s": images_per_s,
            "best/epoch": best.epoch,
        }
        run.log(speeds, step=trainer.global_step)
    return checkpoint


def _identity(config: DictConfig, data: DataModule) -> str:
    """What two processes must have in common for one to go on with the other's training; device and paths are not."""
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    names = ("model", "augment", "loss", "optimizer", "scheduler", "callbacks", "trainer", "seed")
    seen = {
        "batch_size": data.batch_size,
        "oversample": data.oversample,
        "split": data.split_fingerprint,
    }
    learned = {name: plain[name] for name in names} | {
        "data": {**seen, "pixels": data.cache.fingerprint}
    }
    return config_hash(learned | {"lightning": lightning_version}, without=("trainer.accelerator",))


def evaluate(
    config: DictConfig, parts: RunParts, split: str, run: Run, folder: Path
) -> dict[str, float]:
    """Measure the classifier on one split and write metrics, predictions, per-class table and confusion matrix.

    Args:
        config: A composed `conf/train.yaml`; its trainer says on what device.
        parts: A trained classifier and its data.
        split: "val", recorded as `best/val/...`, or "test".
        run: Where to write.
        folder: For the files on their way.

    Returns:
        The metrics by their recorded names.
    """
    on_cpu = (
        {"accelerator": "cpu", "precision": "32-true"}
        if fit_once.is_fit_once(parts.classifier.net)
        else {}
    )
    trainer = _trainer(config, None, folder, [], devices=1, strategy="auto", **on_cpu)
    with quiet_lightning():
        trainer.test(parts.classifier, parts.data.loader(split), verbose=False)
    prefix = "best/val" if split == "val" else split
    values = {
        f"{prefix}/{name.removeprefix('test/')}": float(value)
        for name, value in trainer.callback_metrics.items()
    }
    run.log(values, step=0)
    rows, probability = parts.classifier.predictions()
    frame = parts.data.predictions(rows.numpy(), probability.numpy())
    run.table(frame, f"predictions/{split}.csv")
    matrix = parts.classifier.metrics.confusion().cpu().numpy()
    run.table(figures.per_class_table(matrix, parts.data.classes), f"per_class/{split}.csv")
    picture = folder / f"confusion_{split}.png"
    figures.confusion_matrix(matrix, parts.data.classes, split).savefig(picture)
    run.artifact(picture, "figures")
    return values


def measure(
    config: DictConfig,
    classifier: Classifier,
    run: Run,
    known: Mapping[str, float | None] | None = None,
) -> None:
    """Measure what the net costs, beside the reference net, and record it.

    Args:
        config: A composed `conf/train.yaml`.
        classifier: Trained.
        run: Where to write.
        known: What is known otherwise, by its name in the record; None: cannot be measured so, and
            is left out.
    """
    profiler = instantiate(config.efficiency, "efficiency")
    device = torch.device(
        "cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu"
    )
    profile = profiler.profile(classifier.net, classifier.image_size, device)
    figures = {**profile.metrics, **(known or {})}
    run.log({name: value for name, value in figures.items() if value is not None}, step=0)
    run.text(json.dumps(profile.details, indent=2), "efficiency.json")
    uncounted = profile.details["uncounted_operators"]
    run.tag(
        device=profile.details["device"],
        flops_uncounted=", ".join(f"{operator} x{times}" for operator, times in uncounted.items()),
    )


def writes_record() -> bool:
    """Whether this process owns the run: of a distributed run, the first rank does."""
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("NODE_RANK", "0") == "0"


def _trainer(
    config: DictConfig, run: Run | None, folder: Path, callbacks: list[Any], **changes: Any
) -> Trainer:
    settings: Mapping[str, Any] = {
        "logger": RunLogger(run) if run is not None else False,
        "callbacks": callbacks,
        "default_root_dir": str(folder),
        "enable_progress_bar": bool(callbacks),
        "enable_model_summary": False,
        "enable_checkpointing": bool(callbacks),
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "log_every_n_steps": NEVER,
        **changes,
    }
    with quiet_lightning():
        try:
            return instantiate(config.trainer, "trainer", (), **settings)
        except InstantiationException as error:
            if isinstance(error.__cause__, MisconfigurationException):
                raise ConfigError("trainer", str(error.__cause__).splitlines()[0]) from error
            raise
