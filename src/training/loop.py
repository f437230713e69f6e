"""Build the parts of a run from its config, fit, evaluate and measure them."""

import json
import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, Trainer
from pytorch_lightning import __version__ as lightning_version
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from src.core.config import instantiate, resolve
from src.core.environment import config_hash, keep_freed_memory, seed_everything
from src.core.errors import ConfigError
from src.data.module import DataModule
from src.efficiency.profile import Profile
from src.metrics import decision_rules
from src.metrics.bootstrap import ARGMAX
from src.metrics.registry import MAIN_TIMES, RECORDED
from src.models import fit_once
from src.models.structure import cast_as_recorded
from src.models.weights import load_weights
from src.tracking import read
from src.tracking.run import Run
from src.tracking.views import LOG_FLOPS
from src.training import features, figures, teachers
from src.training.checkpoint import BestEpoch, LastState, StopEarly, diverged, fits
from src.training.classifier import Classifier, from_recipe, make_recipe
from src.training.progress import AfterEpoch, EpochProgress, RunLogger, quiet_lightning

Shared = tuple[DataModule, Profile]  # by the seeds of a configuration


@dataclass
class RunParts:
    """What a config is built into: prepared data, and a classifier for them."""

    data: DataModule
    classifier: Classifier
    profile: Profile | None = None  # what the net costs, if another seed has measured it


def build(
    config: DictConfig, pretrained: bool = True, pictures: bool = True, shared: Shared | None = None
) -> RunParts:
    """Prepare the data and build the classifier of a composed `conf/train.yaml`.

    Neither weights nor teachers are loaded unless `pretrained`: a checkpoint will be. Without
    `pictures` the data are those of an estimate (`DataModule.prepare`). What another seed of the
    same configuration has prepared and measured is `shared`.

    Raises:
        UserError: A value, a file or a package cannot be used; the message names it.
    """
    keep_freed_memory()
    seed_everything(config.seed)
    if config.data.get("root") is not None and "root" not in config.data.source:
        raise ConfigError("data.root", f"data={config.data.name} reads no folder: omit it")
    augment = instantiate(config.augment, "augment")
    instantiate(config.efficiency, "efficiency")  # raises now, not after the training
    if shared:
        data = shared[0]
        data.augment, data.seed = augment, config.seed
    else:
        data = instantiate(config.data, "data", ("root",), augment=augment, seed=config.seed)
    try:
        data.prepare(pictures)
    except ConfigError as error:
        raise (error if error.key.startswith("data.") else error.under("data")) from error
    decision_rules.check(config.get("decision", ARGMAX), data.classes, data.has("val"))
    # the net is built for the images' size, also where it differs from model.image_size
    recipe = make_recipe(resolve(config.model), data.classes, data.image_size)
    node = config.model.net if pretrained else OmegaConf.create(recipe["model"]["net"])
    seed_everything(config.seed)
    net = instantiate(node, "model.net", (), nn.Module, outputs=data.outputs)
    cast_as_recorded(net, config)
    if fit_once.is_fit_once(net):
        if data.shares:
            raise ConfigError("data.shares", f"{config.model.name} trains without epochs: omit it")
        data.augment = None  # it sees each image once
    factory = _optimizer(config)
    loss = build_loss(config, data, load_teachers=pretrained)
    if getattr(data.augment, "mixes", False) and not getattr(loss, "soft_labels", False):
        problem = f"must be a loss of mixed labels, but {type(loss).__name__} has no soft_labels; "
        raise ConfigError("loss", problem + "set augment.mixup=0 augment.cutmix=0, or change it")
    scheduler = instantiate(config.scheduler, "scheduler")
    classifier = from_recipe(recipe, net=net, loss=loss, optimizer=factory, scheduler=scheduler)
    return RunParts(data, classifier, shared and shared[1])


def try_parts(config: DictConfig, names: Collection[str]) -> None:
    """Build parts of a config that need no data; a UserError if a value of them is impossible."""
    for part in ("augment", "scheduler", "efficiency"):
        if part in names:
            instantiate(config[part], part)
    if "optimizer" in names:
        _optimizer(config)
    if "trainer" in names:
        _trainer(config, None, Path(), [])
    if "data" in names:
        instantiate(config.data, "data", ("root",), augment=None, seed=config.seed)
    if "model" in names:
        net = make_recipe(resolve(config.model), (), config.data.image_size)["model"]["net"]
        # of shapes only; a net that computes with numbers is not built
        with suppress(RuntimeError, InstantiationException), torch.device("meta"):
            instantiate(OmegaConf.create(net), "model.net", (), nn.Module, outputs=2)


def _optimizer(config: DictConfig) -> Callable[..., torch.optim.Optimizer]:
    """The optimizer's factory, whose settings torch accepts."""
    factory = instantiate(config.optimizer, "optimizer")
    try:
        factory([nn.Parameter(torch.zeros(1))])
    except ValueError as error:
        raise ConfigError("optimizer", str(error)) from error
    return cast("Callable[..., torch.optim.Optimizer]", factory)


def build_loss(config: DictConfig, data: DataModule, load_teachers: bool = True) -> nn.Module:
    """Build the loss with `class_counts=`, the training images per class of the prepared data.

    A loss whose config has a true `per_source` is built with `source_counts=`, the same of each
    source of joined data, too. One whose config has a `teacher` is built with `teachers=`, loaded
    nets, unless `load_teachers` is false: nothing is trained.

    Raises:
        UserError: A value is impossible, or a teacher cannot be loaded.
    """
    arguments: dict[str, Any] = {"class_counts": data.seen_counts}
    if config.loss.get("per_source"):
        if not data.source_names:
            raise ConfigError("loss.per_source", "needs several sources: data=joined")
        arguments["source_counts"] = data.source_counts
    if "teacher" in config.loss and load_teachers:
        store = instantiate(config.tracking, "tracking")
        arguments["teachers"] = teachers.load(store, config.loss.teacher, data)
    return cast("nn.Module", instantiate(config.loss, "loss", ("teacher",), **arguments))


def prepare_fit(
    config: DictConfig,
    parts: RunParts,
    run: Run | None,
    folder: Path,
    after: Sequence[Callback] = (),
) -> tuple[Trainer, EpochProgress, BestEpoch]:
    """Build the trainer with its callbacks: progress, best epoch, those of the config, `after`.

    It logs to `run` (None on ranks of a distributed run that do not write) and writes the
    checkpoint below `folder`.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    has_validation = parts.data.has("val")
    passed: dict[str, Any] = {"folder": folder / "checkpoint", "has_validation": has_validation}
    best: BestEpoch = instantiate(config.callbacks.best, "callbacks.best", **passed)
    names = [name for name in config.callbacks if name != "best"]
    others = [instantiate(config.callbacks[name], f"callbacks.{name}") for name in names]
    if not has_validation:  # nothing to stop early by
        others = [callback for callback in others if not isinstance(callback, StopEarly)]
    progress = EpochProgress(config.model.name)
    trainer = _trainer(config, run, folder, [best, *others, progress, *after])
    parts.data.device = trainer.strategy.root_device
    return trainer, progress, best


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
    """Fit the classifier and load the weights of its best epoch, whose checkpoint is returned.

    A net with a method `fit_once` is fitted by it, without epochs (`src.models.fit_once`).

    Args:
        config: A composed `conf/train.yaml`.
        parts: Built from the same config.
        run: Where to log; None on ranks of a distributed run that do not write.
        folder: The folder of the run, for the checkpoint.
        resume: A `last.ckpt` of the same config, from any folder. The training resumes after its
            epoch, and its epochs are logged to `run` again. If it does not fit, a warning is logged
            and the training starts from scratch.
        on_epoch: Called on the first rank with epoch, from 1, and metrics after the validation of
            each new epoch. Its exception ends the training and is raised here.
        on_resume: Called with the metrics of each epoch in `resume`, before the training continues.
        keep_state_s: Keep a `checkpoint/last.ckpt` that is at most so many seconds old (0: of every
            epoch), and finally that of the last epoch. It stays until the caller discards it.
    """
    if fit_once.is_fit_once(net := parts.classifier.net):
        if config.threads:
            torch.set_num_threads(config.threads)
        return fit_once.train(parts.classifier, net, parts.data, config.seed, run, folder)
    identity = _identity(config, parts.data)
    last = LastState(folder / "checkpoint", identity, keep_state_s, on_resume)
    after_epoch = AfterEpoch(on_epoch)
    trainer, progress, best = prepare_fit(config, parts, run, folder, [after_epoch, last])
    state = resume if resume is not None and fits(resume, identity, parts.classifier) else None
    safe = True if state else None  # nothing in the file is executed
    device = trainer.strategy.root_device
    parts.classifier.compiling = config.trainer.get("compile", False)
    served = features.serve(config, parts.classifier, parts.data, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with quiet_lightning(), after_epoch.exceptions_unchanged():
            trainer.fit(parts.classifier, datamodule=parts.data, ckpt_path=state, weights_only=safe)
    except MisconfigurationException as error:
        raise ConfigError("trainer or callbacks", str(error).splitlines()[0]) from error
    seconds = last.seconds
    if torch.distributed.is_initialized():
        # only the first rank continues: with the group alive its metrics would wait for the others
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    checkpoint = Path(best.best_model_path)
    load_weights(parts.classifier, checkpoint)
    if not parts.data.has("val"):  # no validation has looked at what the last step made
        batch = {name: x.cpu() for name, x in next(iter(parts.data.loader("train"))).items()}
        with torch.no_grad():
            _require_finite("training", {}, parts.classifier.eval().logits(batch))
    if run is not None:
        # after a resumption this process may have trained no epoch
        speed = progress.images_per_s or last.images_per_s
        values = {"time/fit_s": seconds, "time/images_per_s": speed, "best/epoch": best.epoch}
        values |= parts.classifier.compile_cost
        if progress.seconds:
            values["time/epoch_s"] = statistics.median(progress.seconds)
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(device)
            values["efficiency/train_peak_memory_mb"] = memory / 1e6
        run.log(values, step=trainer.global_step)
        curves = folder / "learning_curves.png"
        figures.save(figures.learning_curves(pd.DataFrame(best.history), best.epoch), curves)
        run.artifact(curves, "figures")
        run.tag(chosen_by=best.chosen_by, **served)
    return checkpoint


def _identity(config: DictConfig, data: DataModule) -> str:
    """A digest of what must be equal for a training to resume; device and paths may differ."""
    parts = ("model", "augment", "loss", "optimizer", "scheduler", "callbacks", "trainer", "seed")
    plain = resolve(config)
    names = ("batch_size", "oversample", "shares", "feature_views", "split_fingerprint")
    about = {name: getattr(data, name) for name in names} | {"pixels": data.cache.fingerprint}
    content = {name: plain[name] for name in parts} | {"data": about}
    content["lightning"] = lightning_version
    return config_hash(content, without=("trainer.accelerator", "trainer.compile"))


def evaluate(
    config: DictConfig, parts: RunParts, split: str, run: Run, folder: Path
) -> dict[str, float]:
    """Evaluate a trained classifier on "val" (recorded as `best/val/...`) or "test".

    Metrics, predictions, per-class table and confusion matrix are logged to `run`; figures of the
    predicted class by the decision rule of the config. Every rule's metrics are logged too, those
    of "test" by what is fitted on the recorded validation. Returns the metrics by their recorded
    names.

    Raises:
        DivergedError: A metric or a probability is not finite; nothing of the split is logged.
    """
    changes: dict[str, Any] = {"devices": 1, "strategy": "auto"}
    if fit_once.is_fit_once(parts.classifier.net):
        changes |= {"accelerator": "cpu", "precision": "32-true"}
    trainer = _trainer(config, None, folder, [], **changes)
    parts.data.device = trainer.strategy.root_device
    features.serve(config, parts.classifier, parts.data)
    began = time.perf_counter()
    with quiet_lightning():
        trainer.test(parts.classifier, parts.data.loader(split), verbose=False)
    values = {
        f"{RECORDED[split]}/{name.removeprefix('test/')}": float(value)
        for name, value in trainer.callback_metrics.items()
    }
    if split == "test":
        values["time/test_s"] = time.perf_counter() - began
    rows, probability = parts.classifier.predictions()
    _require_finite(split, values, probability)
    predictions = parts.data.predictions(rows.numpy(), probability.numpy())
    val = None
    if split == "val":
        run.text(json.dumps(decision_rules.offsets_by_rule(predictions), indent=2), "decision.json")
    elif read.has_predictions(run.store, run.id, "val"):
        val = read.predictions(run.store, run.id, "val")
    if split == "val" or val is not None:  # without validation there is no rule
        rule = config.get("decision", ARGMAX)
        predictions, measured = decision_rules.evaluate(predictions, rule, val)
        values |= {f"{RECORDED[split]}/{name}": value for name, value in measured.items()}
    run.log(values, step=0)
    classes, matrix = parts.data.classes, decision_rules.confusion(predictions)
    run.table(predictions, f"predictions/{split}.csv")
    run.table(figures.per_class_table(matrix, classes), f"per_class/{split}.csv")
    picture = folder / f"confusion_{split}.png"
    figures.save(figures.confusion_matrix(matrix, classes, split), picture)
    run.artifact(picture, "figures")
    return values


def _require_finite(split: str, values: Mapping[str, float], outputs: torch.Tensor) -> None:
    rows = int((~outputs.isfinite()).any(dim=1).sum())
    if rows:
        raise diverged(f"the net's output is not finite for {rows} images of {split}")
    for name, value in values.items():
        if not math.isfinite(value):
            raise diverged(f"{name} is {value}")


def measure(
    config: DictConfig,
    classifier: Classifier,
    known_costs: Mapping[str, float | None] | None = None,
    timed: Sequence[str] | None = None,
    when: str = "in its own process",
) -> Profile:
    """Measure the cost of a trained net side by side with the reference net.

    Known values, by recorded name, take the place of measured ones; None: not measurable. Of the
    other times only those in `timed` are measured; None: all. `when` is for the record.
    """
    profiler, known_costs = instantiate(config.efficiency, "efficiency"), known_costs or {}
    profile: Profile = profiler.profile(
        classifier.net,
        classifier.image_size,
        training_device(config),
        lambda name: name not in known_costs and (timed is None or name in timed),
    )
    metrics = {**profile.metrics, **known_costs}
    if flops := metrics.get("efficiency/flops"):
        metrics[LOG_FLOPS] = math.log10(flops)
    how = profile.details["methods"].items()
    # what is known keeps the tag of its measurement
    methods = {kind: f"{text}, {when}" for kind, text in how if MAIN_TIMES[kind] not in known_costs}
    return replace(
        profile,
        metrics={name: value for name, value in metrics.items() if value is not None},
        details=profile.details | {"methods": methods},
    )


def log_cost(run: Run, profile: Profile, details: str = "efficiency.json") -> None:
    """Log what was measured; the tags `latency_method` and `ratio_method` say how."""
    run.log(profile.metrics, step=0)
    run.text(json.dumps(profile.details, indent=2), details)
    if profile.layers:
        run.table(pd.DataFrame(profile.layers), "layers.csv")
    tags = {
        f"flops_{kind}": ", ".join(
            f"{name} x{calls}" for name, calls in profile.details[f"{kind}_operators"].items()
        )
        for kind in ("uncounted", "missing")
    }
    tags |= {f"{kind}_method": how for kind, how in profile.details["methods"].items()}
    run.tag(device=profile.details["device"], **tags)


def training_device(config: DictConfig) -> torch.device:
    """The device on which `trainer` trains a single process."""
    gpu = torch.cuda.is_available() and config.trainer.accelerator != "cpu"
    return torch.device("cuda" if gpu else "cpu")


def _trainer(
    config: DictConfig, run: Run | None, folder: Path, callbacks: list[Any], **changes: Any
) -> Trainer:
    if not (epochs := config.trainer.max_epochs) or epochs < 1:
        raise ConfigError("trainer.max_epochs", f"must be at least 1, but got {epochs}")
    settings: dict[str, Any] = {
        "logger": RunLogger(run) if run is not None else False,
        "callbacks": callbacks,
        "default_root_dir": str(folder),
        "enable_progress_bar": bool(callbacks),
        "enable_model_summary": False,
        "enable_checkpointing": bool(callbacks),
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "log_every_n_steps": 10**9,  # the metrics are logged once an epoch
    }
    try:
        with quiet_lightning():
            return instantiate(config.trainer, "trainer", ("compile",), **settings | changes)
    except InstantiationException as error:
        if isinstance(error.__cause__, MisconfigurationException):
            raise ConfigError("trainer", str(error.__cause__).splitlines()[0]) from error
        raise
