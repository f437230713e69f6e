"""Nets that are fitted once instead of by epochs: what they offer, and how such a run is recorded."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from torch import nn

from src.data.module import DataModule
from src.tracking.run import Run


@dataclass(frozen=True)
class TrainingSet:
    """What a net is fitted to.

    Attributes:
        images: The whole cache, uint8 (N, S, S, 3).
        labels: Of the whole cache, (N,).
        rows: Which images are for training.
        groups: Lesion or patient of each image of the cache, (N,), kept together wherever a choice
            is made within the training set; None where the protocol is by image.
        classes: Names in label order.
        oversample: Wanted size of every small class as part of the largest, or None.
        seed: Of all draws.
    """

    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    groups: np.ndarray | None
    classes: Sequence[str]
    oversample: float | None
    seed: int


@dataclass(frozen=True)
class FitOnceRecord:
    """What the record says of a fit.

    Attributes:
        rows: The images that it saw.
        tables: Artifact's name -> table.
        chosen_by: What chose among the settings that were tried.
        tags: Further tags of the run.
    """

    rows: np.ndarray
    tables: Mapping[str, pd.DataFrame]
    chosen_by: str
    tags: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class FitOnceModel(Protocol):
    """A net, as `nn.Module`, without epochs; it works on the CPU in full precision."""

    @property
    def fitted(self) -> bool:
        """Whether it holds a fit."""
        ...

    def fit_once(self, training: TrainingSet) -> FitOnceRecord:
        """Fit; all that is learnt goes into the module's state."""
        ...


def training_set(data: DataModule, seed: int) -> TrainingSet:
    """The training side of a run's data, with the protocol of its split."""
    groups = None if data.split_mode == "image" else data.frame["group"].to_numpy()
    return TrainingSet(
        data.cache.images,
        data.labels,
        data.rows("train"),
        groups,
        data.classes,
        data.oversample,
        seed,
    )


def train(
    module: nn.Module, net: FitOnceModel, data: DataModule, seed: int, run: Run | None, folder: Path
) -> Path:
    """Fit, write the checkpoint and record the fit.

    Args:
        module: What the checkpoint is of; `net` is a part of it.
        net: To be fitted.
        data: Ready.
        seed: Of all draws.
        run: Where to record; None for nowhere.
        folder: The run's own folder.

    Returns:
        The path of the checkpoint: a state dict as of any other run.
    """
    began = time.monotonic()
    fit = net.fit_once(training_set(data, seed))
    seconds = time.monotonic() - began
    checkpoint = folder / "checkpoint" / "best.ckpt"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    part = checkpoint.with_suffix(".part")
    torch.save({"state_dict": module.state_dict()}, part)
    part.replace(checkpoint)
    if run is not None:
        run.tag(chosen_by=fit.chosen_by, **fit.tags)
        for name, table in fit.tables.items():
            run.table(table, name)
        run.table(data.frame.iloc[fit.rows][["image_id", "group"]], "search/sample.csv")
        run.log(
            {
                "time/fit_s": seconds,
                "time/images_per_s": len(fit.rows) / seconds,
                "data/images/fitted": len(fit.rows),
            }
        )
    return checkpoint
