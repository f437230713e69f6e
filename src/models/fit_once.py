"""Models that are fitted without epochs: their protocol, and how such a fit is recorded."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
import pandas as pd
import torch
from torch import nn

from src.core.files import atomic_file
from src.data.module import DataModule
from src.tracking.run import Run


@dataclass(frozen=True)
class TrainingSet:
    """The images that a model is fitted to.

    Attributes:
        images: The complete cache, uint8 (N, S, S, 3).
        labels: Of the complete cache, (N,).
        rows: Numbers of the training images.
        groups: Lesion or patient of each image of the cache, (N,), for folds within the training
            set; None if the split is by image.
        classes: Names in label order.
        oversample: Smallest size of a class relative to the largest, or None.
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
    """What a fit adds to the run record.

    Attributes:
        rows: The images that were used.
        tables: Name of the artifact -> table.
        chosen_by: The criterion that chose the settings.
        tags: More tags of the run.
    """

    rows: np.ndarray
    tables: Mapping[str, pd.DataFrame]
    chosen_by: str
    tags: Mapping[str, str] = field(default_factory=dict)


class FitOnceModel(Protocol):
    """A network (an `nn.Module`) that is fitted without epochs, on the CPU in full precision."""

    @property
    def fitted(self) -> bool:
        """Whether the module holds a fit."""
        ...

    def fit_once(self, training: TrainingSet) -> FitOnceRecord:
        """Fit; everything that is learnt goes into the state of the module."""
        ...


def is_fit_once(net: Any) -> TypeGuard[FitOnceModel]:
    """Whether a network is fitted without epochs: it has a method `fit_once`."""
    return hasattr(net, "fit_once")


def train(
    module: nn.Module, net: FitOnceModel, data: DataModule, seed: int, run: Run | None, folder: Path
) -> Path:
    """Fit the model, write the checkpoint and record the fit.

    Args:
        module: Its state dict is written; `net` is a part of it.
        net: The model.
        data: Prepared.
        seed: Of all draws.
        run: Where to record; None: nowhere.
        folder: The folder of the run.

    Returns:
        The path of the checkpoint: a state dict as of any other run.
    """
    groups = None if data.split_mode == "image" else data.frame["group"].to_numpy()
    training = TrainingSet(
        images=data.cache.images,
        labels=data.labels,
        rows=data.rows("train"),
        groups=groups,
        classes=data.classes,
        oversample=data.oversample,
        seed=seed,
    )
    start = time.monotonic()
    fit = net.fit_once(training)
    seconds = time.monotonic() - start
    checkpoint = folder / "checkpoint" / "best.ckpt"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(checkpoint, "the checkpoint") as draft:
        content: dict[str, Any] = {"state_dict": module.state_dict()}
        hook = getattr(module, "on_save_checkpoint", None)
        if callable(hook):
            hook(content)
        torch.save(content, draft)
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
