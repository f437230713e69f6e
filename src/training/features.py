"""Features of frozen networks: computed once for each view of an image, then read from a cache."""

import hashlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from src.core.config import resolve
from src.data import cache
from src.data.augment import symmetry
from src.data.module import DataModule, Features, Rows
from src.training.classifier import Classifier

FORMAT_VERSION = 1  # increase it when the same network and images give other values
_BATCH = 64


def serve(
    config: DictConfig, classifier: Classifier, data: DataModule, device: torch.device | None = None
) -> str | None:
    """Let the data serve cached features in place of images if the classifier's net is frozen.

    `data.feature_views` decides whether. Absent features are computed on the device; without one,
    only existing ones are served.

    Returns:
        The views, for the run record. None: images are served.
    """
    data.features, net = None, classifier.net
    asked, symmetries = data.feature_views, getattr(data.augment, "symmetries", None)
    is_exact = symmetries is not None and config.trainer.precision in (32, "32", "32-true")
    if asked == 0 or (asked == "auto" and not is_exact) or not getattr(net, "frozen", False):
        return None
    if getattr(classifier.loss, "needs_images", False) or getattr(data.augment, "mixes", False):
        return None
    if next(net.parameters()).dtype != torch.float32:  # it converts images by itself
        return None
    random = 0 if symmetries else int(asked)
    # a single training of few epochs sees fewer views than would be computed
    pays = asked != "auto" or config.study or config.trainer.max_epochs >= (symmetries or 0)
    classifier.to(device or classifier.device)

    @torch.no_grad()
    def compute(images: Tensor) -> Tensor:
        inputs = classifier.normalise(images.to(classifier.device))
        features: Tensor = net.features(inputs)  # type: ignore[operator]
        return features

    identity = _identity(classifier) + (str(resolve(config)["augment"]) if random else "")
    data.features = load(data, compute, identity, random, device is not None and bool(pays))
    if data.features is None:
        return None
    return f"{random} random views, an approximation" if random else f"{symmetries} exact views"


def _identity(classifier: Classifier) -> str:
    """A digest of everything that the features of an image depend on."""
    layers = [repr(part) for name, part in classifier.net.named_children() if name != "head"]
    numbers = classifier.mean.tolist(), classifier.inverse_std.tolist()
    digest = hashlib.sha256(repr([version("timm"), numbers, *layers]).encode())
    for name, tensor in classifier.net.state_dict().items():
        if not name.startswith("head."):
            content = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(name.encode() + content.numpy().tobytes())
    return digest.hexdigest()


def _view(data: DataModule, rows: Rows, view: int, random: int) -> Tensor:
    """A view of each image of these rows, float (B, 3, S, S) in [0, 1]."""
    images = torch.from_numpy(data.cache.images[rows]).permute(0, 3, 1, 2).float().div_(255)
    if not random:
        return symmetry(images, torch.full((len(rows),), view))
    if view > 0 and data.augment is not None:
        with torch.random.fork_rng(devices=[]):  # the same views for every seed
            torch.manual_seed(int(view * len(data.cache.images) + rows[0]))
            images = data.augment(images)
    return images


def load(
    data: DataModule,
    compute: Callable[[Tensor], Tensor],
    identity: str,
    random: int = 0,
    build: bool = True,
) -> Features | None:
    """Open the cached features of prepared data, or compute them; one process does so for all.

    The file has view 0, the image itself, of all images; then view after view of training images.

    Args:
        data: Its images, training rows and augmentation.
        compute: Float images (B, 3, S, S) in [0, 1] -> features (B, F).
        identity: Differs for two networks, or two random augmentations, that differ.
        random: Number of random views; 0: all symmetries that the augmentation draws from.
        build: Whether absent features are computed; else None is returned.
    """
    images, training = data.cache.images, data.rows("train")
    augment: Any = data.augment
    views = 1 + random if random else augment.symmetries
    batches = [
        (view, rows[start : start + _BATCH])
        for view, rows in enumerate([np.arange(len(images)), *[training] * (views - 1)])
        for start in range(0, len(rows), _BATCH)
    ]
    width = compute(torch.zeros(1, 3, *images.shape[1:3])).shape[1]
    pictures = data.cache.fingerprint, training.tolist()
    key = cache.digest_of([FORMAT_VERSION, *pictures, width, views, random, identity])
    name = f"{data.source.name}-{data.image_size}-features-{key[:16]}"
    entry = Path(data.cache_dir).absolute() / name
    if not build and not entry.exists():
        return None
    shape = sum(len(rows) for _, rows in batches), width
    with cache.turn(entry, "features", "data.feature_views=0 to do without it"):
        if cache.read_record(entry, key) is None:
            with cache.building(entry, key, shape[0] * width * 4) as (file, _):
                for view, rows in tqdm(batches, "computing features", unit="batch"):
                    outputs = compute(_view(data, rows, view, random))
                    file.write(outputs.float().cpu().numpy().tobytes())
        values = np.memmap(entry / cache.VALUES, np.float32, "r", shape=shape)

    def features(rows: Rows, train: bool) -> Tensor:
        if not train:
            return torch.from_numpy(values[rows])
        drawn = torch.randint(1, views, rows.shape) if random else augment.draw(len(rows))
        further = len(images) + np.searchsorted(training, rows)
        further += (drawn.numpy() - 1) * len(training)
        return torch.from_numpy(values[np.where(drawn.numpy() > 0, further, rows)])

    return features
