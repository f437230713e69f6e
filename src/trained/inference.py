"""Trained nets on images that they were not trained for."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import DictConfig
from torch import nn
from tqdm import tqdm

from src.checkpoint import load_weights
from src.classifier import Classifier
from src.config import instantiate
from src.errors import UserError
from src.metrics.classification import probabilities
from src.models.bfloat16 import cast_as_recorded

SINGLE = ("32", "32-true")  # Lightning's names of float32


def build(config: DictConfig, classes: Sequence[str]) -> Classifier:
    """A run's net as it is before its weights are put in, without the data that it was trained on.

    Args:
        config: Of the run, its targets checked.
        classes: Of the run, in label order.

    Raises:
        UserError: The run is no net.
    """
    if config.model.get("_target_") != "src.classifier.Classifier":
        raise UserError(f"{config.model.get('name')}: is no network; it cannot be evaluated on other data")
    config = config.copy()
    if "weights" in config.model.net:
        config.model.net.weights = "random"  # the checkpoint's follow
    net: nn.Module = instantiate(config.model.net, "model.net", outputs=1 if len(classes) == 2 else len(classes))
    cast_as_recorded(net, config)
    classifier: Classifier = instantiate(
        config.model,
        "model",
        ("net", "image_size"),
        net=net,
        image_size=config.data.image_size,
        loss=nn.Identity(),
        classes=tuple(classes),
        optimizer=None,
        scheduler=None,
    )
    return classifier.eval()


def load(config: DictConfig, classes: Sequence[str], checkpoint: Path) -> Classifier:
    """A run's trained net, without the data that it was trained on.

    Args:
        config: Of the run, its targets checked.
        classes: Of the run, in label order.
        checkpoint: Its `best.ckpt`.

    Raises:
        UserError: The run is no net, or the checkpoint is not its own.
    """
    classifier = build(config, classes)
    load_weights(classifier, checkpoint)
    return classifier


def _bar(images: int, title: str) -> "tqdm[Any]":
    """On a terminal only: a log of its thousand states helps nobody."""
    return tqdm(total=images, desc=title, unit="image", file=sys.stderr, leave=False, disable=None)


def precision_told(config: DictConfig) -> list[str]:
    """What to know where a run's own predictions were made in another precision than `predict` has.

    Args:
        config: Of the run.
    """
    precision = str(config.trainer.get("precision", SINGLE[0]))
    if precision in SINGLE:
        return []
    return [
        f"The run's own figures and thresholds come from a trainer in {precision} precision, these predictions are in "
        "single precision (float32): scores next to a threshold may fall to its other side."
    ]


def predict(
    classifier: Classifier, images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], batch_size: int, title: str
) -> npt.NDArray[np.float32]:
    """Class probabilities of images, with a progress bar.

    Args:
        classifier: Trained, in evaluation mode; moved to a GPU where there is one.
        images: uint8 (N, S, S, 3).
        rows: Which of them, int (M,).
        batch_size: Images a batch.
        title: Of the bar.

    Returns:
        float32 (M, K), each row summing to 1.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier = classifier.to(device)
    found = []
    with torch.inference_mode(), _bar(len(rows), title) as bar:
        for start in range(0, len(rows), batch_size):
            batch = torch.from_numpy(images[rows[start : start + batch_size]]).permute(0, 3, 1, 2).to(device)
            found.append(probabilities(classifier(batch).float()).cpu())
            bar.update(len(batch))
    return torch.cat(found).numpy()
