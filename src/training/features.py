"""Outputs of networks that do not change: computed once for each view of an image, then cached.

They are the features of a frozen net, whose head alone is trained, and the logits of teachers.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from tqdm import tqdm

from src.core.config import resolve
from src.data import cache
from src.data.augment import symmetry
from src.data.module import DataModule, Rows
from src.training.classifier import Classifier, teacher_logits

FORMAT_VERSION = 3  # increase it when the same network and images give other values
_BATCH = 64
AT_ONCE = 16  # steps of a head
# With other options of Lightning's trainer, or other callbacks, each step is one of Lightning's.
PLAIN_OPTIONS = {"_target_", "accelerator", "devices", "max_epochs", "precision"}
PLAIN_OPTIONS |= {"gradient_clip_val", "deterministic", "compile"}
PLAIN_CALLBACKS = {f"src.training.checkpoint.{name}" for name in ("BestEpoch", "StopEarly")}


@dataclass
class CachedOutputs:
    """Outputs of a network for all images, and for further views of the training images."""

    values: npt.NDArray[np.float32]  # (images + (views - 1) * training images, F)
    images: int
    training: Rows  # sorted
    draw: Callable[[int], Tensor]  # numbers (B,) of the views that training sees

    def __call__(self, rows: Rows, views: Tensor | None = None) -> Tensor:
        """Outputs (B, F) for images or, with `views` (B,), for those views of training images."""
        if views is None:
            return torch.from_numpy(self.values[rows])
        further = self.images + np.searchsorted(self.training, rows)
        further += (views.numpy() - 1) * len(self.training)
        return torch.from_numpy(self.values[np.where(views.numpy() > 0, further, rows)])


def serve(
    config: DictConfig, classifier: Classifier, data: DataModule, device: torch.device | None = None
) -> dict[str, str]:
    """Let the data serve cached features of a frozen net, and cached logits of the loss's teachers.

    `data.feature_views` decides whether. A teacher's logits are those of the images at its own
    size. Absent outputs are computed on the device; without one, for an evaluation, only existing
    features are served.

    Returns:
        "features" and "teachers": the served views, for the run record. Empty: images are served.
    """
    data.cached, data.at_once, net = None, 1, classifier.net
    classifier.automatic_optimization = True
    teachers = getattr(classifier.loss, "teachers", ()) if device else ()
    frozen = getattr(net, "frozen", False)
    n_views, symmetries = data.feature_views, getattr(data.augment, "symmetries", None)
    is_exact = symmetries is not None and config.trainer.precision in (32, "32", "32-true")
    converts = any(value.dtype != torch.float32 for value in net.parameters())
    changing = converts or getattr(data.augment, "mixes", False) or (teachers and not symmetries)
    if not (frozen or teachers) or changing or n_views == 0 or (n_views == "auto" and not is_exact):
        return {}
    random = 0 if symmetries else int(n_views)
    # a single training of few epochs sees fewer views than would be computed
    pays = n_views != "auto" or config.study or config.trainer.max_epochs >= (symmetries or 0)
    opened = partial(load, data, random=random, build=device is not None and bool(pays))
    classifier.to(device or classifier.device)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        inputs = classifier.normalise(images.to(classifier.device))
        outputs: Tensor = net.features(inputs)  # type: ignore[operator]
        return outputs

    def logits(teacher: nn.Module, images: Tensor) -> Tensor:
        return teacher_logits([teacher], images.to(classifier.device))[:, 0]

    tables = []
    if frozen:
        numbers = classifier.mean.tolist(), classifier.inverse_std.tolist()
        augment = str(resolve(config)["augment"]) if random else ""
        tables.append(opened(features, _identity(net, "head", *numbers) + augment))
    for teacher in teachers:
        pixels = data.pixels(getattr(teacher, "image_size", data.image_size))
        compute = partial(logits, teacher)
        tables.append(opened(compute, _identity(teacher), what="teacher", pixels=pixels))
    present = [table for table in tables if table is not None]
    if len(present) < len(tables):
        return {}

    def entries(rows: Rows, train: bool) -> dict[str, Tensor]:
        views = present[0].draw(len(rows)) if train else None
        batch = {"features": present[0](rows, views)} if frozen else {}
        if views is not None and teachers:
            outputs = [table(rows, views) for table in present[frozen:]]
            batch["teacher_logits"] = torch.stack(outputs, dim=1)
            batch |= {} if frozen else {"view": views}
        return batch

    data.cached = entries
    trainer, callbacks = config.trainer, {node["_target_"] for node in config.callbacks.values()}
    is_plain = trainer.get("gradient_clip_val") is None and trainer.get("devices", 1) == 1
    is_plain = is_plain and set(trainer) <= PLAIN_OPTIONS and callbacks <= PLAIN_CALLBACKS
    if frozen and is_plain:  # a step is only one of the optimizer, on one device
        data.at_once, classifier.automatic_optimization = AT_ONCE, False
    text = f"{random} random views, an approximation" if random else f"{symmetries} exact views"
    return {name: text for name, used in {"features": frozen, "teachers": teachers}.items() if used}


def _identity(net: nn.Module, without: str | None = None, *numbers: Any) -> str:
    """A digest of everything that the outputs of a net, less one submodule, depend on."""
    layers = [repr(part) for name, part in net.named_children() if name != without]
    digest = hashlib.sha256(repr([version("timm"), *numbers, net.extra_repr(), *layers]).encode())
    for name, tensor in chain(net.named_parameters(), net.named_buffers()):
        if not name.startswith(f"{without}."):
            content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(name.encode() + content.numpy().tobytes())
    return digest.hexdigest()


def _view(
    pixels: npt.NDArray[np.uint8], augment: nn.Module | None, rows: Rows, view: int, random: int
) -> Tensor:
    """A view of each image of these rows, float (B, 3, S, S) in [0, 1]."""
    images = torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2).float().div_(255)
    if not random:
        return symmetry(images, torch.full((len(rows),), view))
    if view > 0 and augment is not None:
        with torch.random.fork_rng(devices=[]):  # the same views for every seed
            torch.manual_seed(int(view * len(pixels) + rows[0]))
            images = augment(images)
    return images


def load(
    data: DataModule,
    compute: Callable[[Tensor], Tensor],
    identity: str,
    random: int = 0,
    build: bool = True,
    what: str = "features",
    pixels: cache.ImageCache | None = None,
) -> CachedOutputs | None:
    """Open the cached outputs of a network, or compute them; one process does so for all.

    The file has view 0, the image itself, of all images; then view after view of training images.

    Args:
        data: Its images, training rows and augmentation.
        compute: Float images (B, 3, S, S) in [0, 1] -> outputs (B, F).
        identity: Differs for two networks, or two random augmentations, that differ.
        random: Number of random views; 0: all symmetries that the augmentation draws from.
        build: Whether absent outputs are computed; else None is returned.
        what: Name of the outputs, for the entry and the progress bar.
        pixels: The images as the network sees them, `data.cache` by default.
    """
    pixels = pixels or data.cache
    images, training = pixels.images, data.rows("train")
    augment: Any = data.augment
    views = 1 + random if random else augment.symmetries
    batches = [
        (view, rows[start : start + _BATCH])
        for view, rows in enumerate([np.arange(len(images)), *[training] * (views - 1)])
        for start in range(0, len(rows), _BATCH)
    ]
    width = compute(torch.zeros(1, 3, *images.shape[1:3])).shape[1]
    pictures = pixels.fingerprint, training.tolist()
    key = cache.digest_of([FORMAT_VERSION, *pictures, width, views, random, identity])
    name = f"{data.source.name}-{images.shape[1]}-{what}-{key[:16]}"
    entry = Path(data.cache_dir).absolute() / name
    if not build and not entry.exists():
        return None
    shape = sum(len(rows) for _, rows in batches), width
    with cache.turn(entry, what, "data.feature_views=0 to do without it"):
        if cache.read_record(entry, key) is None:
            with cache.building(entry, key, shape[0] * width * 4) as (file, _):
                for view, rows in tqdm(batches, f"computing {what}", unit="batch"):
                    outputs = compute(_view(images, data.augment, rows, view, random))
                    file.write(outputs.float().cpu().numpy().tobytes())
        values = np.memmap(entry / cache.VALUES, np.float32, "r", shape=shape)

    def draw(count: int) -> Tensor:  # of random views, without the image itself
        return torch.randint(1, views, (count,)) if random else augment.draw(count)

    return CachedOutputs(values, len(images), training, draw)
