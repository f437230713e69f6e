"""One run from its config to its record: trained, or compressed from another one; measured and evaluated."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf

from src import training
from src.classifier import as_float
from src.compression import job as compression
from src.compression import origin
from src.data import contact_sheet
from src.data.module import DataModule
from src.efficiency.profile import static_cost
from src.reproducibility import environment
from src.sweep.resumption import STATE
from src.sweep.trial import TrialContext
from src.tracking.limits import masked
from src.tracking.run import Run

SHEET_IMAGES = 6  # pictures a class on the contact sheet


def record(
    config: DictConfig, folder: Path, overrides: list[str], run: Run, context: TrialContext | None = None
) -> None:
    """Make the run that a config asks for.

    Args:
        config: A composed `conf/train.yaml`; of a compression, with all that its origin says.
        folder: The run's own.
        overrides: That it was composed with, for the record.
        run: Where to write.
        context: Of the trial, in a study.
    """
    if origin.wanted(config):
        _compressed(config, folder, overrides, run, context)
    else:
        _trained(config, folder, overrides, run, context)


def public(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What may be recorded of plain values: without the password of a tracking server."""
    if not plain:
        return {}
    tracking = dict(plain["tracking"])
    if tracking.get("uri"):
        tracking["uri"] = masked(str(tracking["uri"]))
    return {**plain, "tracking": tracking}


def _trained(
    config: DictConfig,
    folder: Path,
    overrides: list[str],
    run: Run,
    context: TrialContext | None = None,
) -> None:
    """Train, measure and evaluate one config into its run."""
    parts = training.build(config)
    cost = static_cost(parts.classifier.net, parts.classifier.image_size)
    if context is not None:
        context.known_cost(cost)
    describe_inputs(_public_config(config), [*map(masked, overrides)], parts, cost, run, folder)
    run.tag(split=_split_label(parts.data))
    checkpoint = training.train(
        config,
        parts,
        run,
        folder,
        resume=state if (state := folder / STATE).exists() else None,
        on_epoch=_teller(config, context),
        on_resume=context.resumed if context else None,
        keep_state_s=context.payload.get("keep_state_s") if context else None,
    )
    run.artifact(checkpoint, "checkpoint")
    training.measure(config, parts.classifier, run)
    for split in _evaluated_splits(config, parts.data, context is not None):
        training.evaluate(config, parts, split, run, folder)
    run.log({"time/tracking_s": run.seconds})


def _compressed(
    config: DictConfig,
    folder: Path,
    overrides: list[str],
    run: Run,
    context: TrialContext | None = None,
) -> None:
    """Compress a trained net, measure and evaluate what comes of it into a run of its own."""
    parts = compression.origin_parts(config, run.store)
    describe_inputs(_public_config(config), [*map(masked, overrides)], parts, {}, run, folder)
    run.tag(split=_split_label(parts.data), weights=origin.began_with(run.store, config.origin))
    found = compression.compress(config, parts, run.store, run, folder)
    cost = compression.known_cost(found)
    if context is not None:
        context.known_cost({name: value for name, value in cost.items() if value is not None})
    training.measure(config, parts.classifier, run, cost)
    for split in _evaluated_splits(config, parts.data, context is not None):
        training.evaluate(config, parts, split, run, folder)
    compression.record_lost(run.store, run, [(config.origin, run.id)])
    run.log({"time/tracking_s": run.seconds})


def describe_inputs(
    config: DictConfig, overrides: list[str], parts: training.Parts, cost: Mapping[str, float], run: Run, folder: Path
) -> None:
    """Record what goes in, before anything is trained: config, environment, data, static cost, contact sheet."""
    run.text(OmegaConf.to_yaml(config, resolve=True), "config.yaml")
    run.text("\n".join(overrides) + "\n", "overrides.txt")
    run.text(json.dumps(environment(), indent=2), "environment.json")
    data = parts.data
    run.log({key: float(value) for key, value in data.record().items()}, step=0)
    run.log(cost, step=0)
    run.tag(
        data_fingerprint=data.cache.fingerprint,
        split_fingerprint=data.split_fingerprint,
        grouped_by=data.grouped_by,
        weights=getattr(parts.classifier.net, "loaded_weights", "random"),
    )
    sheet = folder / "contact_sheet.png"
    draw_contact_sheet(data).save(sheet, compress_level=1)  # packing it tightly costs a trial 40 ms
    run.artifact(sheet, "figures")
    if data.cache.unreadable:
        run.table(pd.DataFrame(data.cache.unreadable, columns=["path", "reason"]), "unreadable.csv")


def draw_contact_sheet(data: DataModule) -> Any:
    """A picture of what the net is fed: some training images of each class, before and after augmentation."""
    before, after = {}, {}
    rows = data.rows("train")
    for label, name in enumerate(data.classes):
        chosen = rows[data.labels[rows] == label][:SHEET_IMAGES]
        images = torch.from_numpy(data.cache.images[chosen])
        fed = as_float(images.permute(0, 3, 1, 2))
        if data.augment is not None:
            fed = data.augment(fed)
        before[f"{name} ({data.class_counts[label]})"] = images.numpy()
        after[f"{name} ({data.class_counts[label]})"] = fed.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    return contact_sheet.draw(before, after)


def _public_config(config: DictConfig) -> DictConfig:
    """What may be recorded of a config: without the password of a tracking server."""
    found = OmegaConf.merge(config, {"tracking": public({"tracking": config.tracking})["tracking"]})
    assert isinstance(found, DictConfig)
    return found


def _teller(config: DictConfig, context: TrialContext | None) -> Any:
    if context is None:
        return None
    return lambda epoch, metrics: context.epoch(epoch, config.trainer.max_epochs, metrics)


def _evaluated_splits(config: DictConfig, data: DataModule, in_study: bool) -> list[str]:
    """Validation always; test if the config says so, or where no choice between runs can come after it."""
    chosen_later = in_study and data.has("val")
    tested = config.test is True or (config.test == "auto" and not chosen_later)
    return [name for name, wanted in (("val", True), ("test", tested)) if wanted and data.has(name)]


def _split_label(data: DataModule) -> str:
    leaks = data.record()["data/groups_on_two_sides"] > 0
    return f"{data.split_mode} (leaking)" if leaks else data.split_mode
