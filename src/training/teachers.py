"""Finished runs as teachers of another run."""

from collections.abc import Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from src.core.config import check_targets, instantiate
from src.core.errors import ConfigError
from src.data.module import DataModule
from src.models.precision import cast_as_recorded
from src.tracking import read
from src.tracking.store import Store, TrackingError
from src.training.checkpoint import load_weights

KEY = "loss.teacher"


class Teacher(nn.Module):
    """A trained net with its normalisation, in evaluation mode, without gradients.

    Args:
        net: Normalised images (N, 3, S, S) -> logits.
        image_size: S, px; images of another size are resized.
        mean: Channel means that are taken off, in [0, 1] units.
        std: Channel deviations that are divided by.
    """

    def __init__(
        self, net: nn.Module, image_size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.net = net
        self.image_size = image_size
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S), uint8 or float in [0, 1] -> logits."""
        fed = images.float().div(255) if images.dtype == torch.uint8 else images
        if fed.shape[-1] != self.image_size:
            fed = F.interpolate(fed, size=(self.image_size,) * 2, mode="bilinear", antialias=True)
        logits: Tensor = self.net((fed - self.mean) / self.std)
        return logits


def load(store: Store, run_ids: str | Sequence[str], data: DataModule) -> list[Teacher]:
    """The teachers that a config names.

    Args:
        store: Where their runs are.
        run_ids: Id of a run, or several.
        data: Of the student, prepared.

    Raises:
        ConfigError: No such run, one that is not finished or has no checkpoint, one of other
            classes, one that was trained on another split (it may have learned from the student's
            test images, and would pass them on), or one that started from a file of weights, which
            may have.
    """
    ids = [run_ids] if isinstance(run_ids, str) else list(run_ids)
    if not ids:
        raise ConfigError(
            KEY, "must be the id of a finished run, or a list of such ids, but is empty"
        )
    return [_load(store, run_id, data) for run_id in ids]


def _load(store: Store, run_id: str, data: DataModule) -> Teacher:
    found = (
        read.runs(store, f"attributes.run_id = '{run_id}'") if run_id.isalnum() else pd.DataFrame()
    )
    row = {} if found.empty else {str(name): str(value) for name, value in found.iloc[0].items()}
    if row.get("status") != "FINISHED":
        state = f"it is {row['status']}" if row else "there is no such run"
        raise ConfigError(
            KEY, f"must be the id of a finished run in {store.uri}, but got {run_id}: {state}"
        )
    try:
        config = OmegaConf.load(read.artifact(store, run_id, "config.yaml"))
        checkpoint = read.artifact(store, run_id, "checkpoint/best.ckpt")
    except TrackingError as error:
        raise ConfigError(KEY, f"must be the id of a run with a checkpoint: {error}") from error
    assert isinstance(config, DictConfig)
    check_targets(config)
    split = row["tags.split_fingerprint"]
    if row["tags.weights"].startswith("file:"):
        raise ConfigError(
            KEY,
            f"run {run_id} started from a file of weights, of which nobody knows what images it has seen; take another",
        )
    if split != data.split_fingerprint:
        raise ConfigError(
            KEY,
            f"run {run_id} was trained on another split ({split}, here {data.split_fingerprint}): it may have learned "
            "from images that are tested here; take one with the same data.* and data.split_seed",
        )
    if "weights" in config.model.net:
        config.model.net.weights = "random"
    net = instantiate(config.model.net, "model.net", outputs=data.outputs)
    cast_as_recorded(net, config)
    teacher = Teacher(
        net, int(config.data.image_size), list(config.model.mean), list(config.model.std)
    )
    load_weights(_Shell(net), checkpoint)
    return teacher


class _Shell(nn.Module):
    """The names that a classifier's checkpoint has."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
