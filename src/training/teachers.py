"""Finished runs as teachers of another run (distillation), or to be averaged with it."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from src.core.config import read_recorded, resolve
from src.core.errors import ConfigError
from src.data.module import DataModule
from src.models.structure import cast_as_recorded
from src.models.weights import load_weights
from src.tracking import read
from src.tracking.store import Store, TrackingError
from src.training.classifier import Classifier, as_float, from_recipe, make_recipe

KEY = "loss.teacher"


class Teacher(nn.Module):
    """A trained classifier without gradients, which resizes the images it is called with."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.image_size = classifier.image_size
        self.requires_grad_(False).eval()

    def extra_repr(self) -> str:
        """The side in px, which decides about the resizing."""
        return f"image_size={self.image_size}"

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S), uint8 or float in [0, 1] -> logits."""
        images, size = as_float(images), self.image_size
        if images.shape[-1] != size:
            images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        logits: Tensor = self.classifier(images)
        return logits


def load(
    store: Store, run_ids: str | Sequence[str], data: DataModule, key: str = KEY
) -> list[Teacher]:
    """Load the teachers, one run id or several, of a student with the prepared `data`.

    Errors name the config key.

    Raises:
        ConfigError: No such run, one that is not finished or has no checkpoint, one of other
            classes, one that was trained on another split (it may have learned from the student's
            test images, and would pass them on), or one that started from a file of weights, which
            may have.
    """
    ids = [run_ids] if isinstance(run_ids, str) else list(run_ids)
    if not ids:
        raise ConfigError(key, "must be the id of a finished run, or a list of ids, but is empty")
    return [_load(store, run_id, data, key) for run_id in ids]


def _load(store: Store, run_id: str, data: DataModule, key: str) -> Teacher:
    runs = read.runs(store, f"attributes.run_id = '{run_id}'") if run_id.isalnum() else None
    row = {} if runs is None or runs.empty else dict(runs.iloc[0].astype(str))
    split, problem = row.get("tags.split_fingerprint"), ""
    if row.get("status") != "FINISHED":
        state = f"it is {row['status']}" if row else "there is no such run"
        problem = f"must be the id of a finished run in {store.uri}, but got {run_id}: {state}"
    elif row["tags.weights"].startswith("file:"):
        problem = f"run {run_id} started from a file of weights, whose training images are unknown"
        problem += "; choose another run"
    elif split != data.split_fingerprint:
        problem = (
            f"run {run_id} was trained on another split ({split}, here {data.split_fingerprint}): "
            "it may have learned from images that are tested here; choose a run with the same "
            "data.* and data.split_seed"
        )
    if problem:
        raise ConfigError(key, problem)
    try:
        config = read_recorded(read.artifact(store, run_id, "config.yaml"))
        checkpoint = read.artifact(store, run_id, "checkpoint/best.ckpt")
    except TrackingError as error:
        raise ConfigError(key, f"must be the id of a run with a checkpoint: {error}") from error
    recipe = make_recipe(resolve(config.model), data.classes, int(config.data.image_size))
    classifier = from_recipe(recipe)
    cast_as_recorded(classifier.net, config)
    load_weights(classifier, checkpoint)
    return Teacher(classifier)
