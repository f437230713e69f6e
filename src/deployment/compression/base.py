"""The contract of a compression, what all compressions share, and bfloat16."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from torch import nn

from src.core.errors import ConfigError, UserError
from src.core.files import atomic_file
from src.data.module import DataModule
from src.deployment.description import Description
from src.deployment.runtimes.base import FileRuntime, ImageBatch
from src.deployment.runtimes.eager import CameraNet
from src.models.fit_once import is_fit_once
from src.models.structure import cast
from src.training.classifier import Classifier

Layer = TypeVar("Layer")
Facts = dict[str, float | str]


@dataclass(frozen=True)
class CompressionContext:
    """The trained model that is compressed, and what a compression may use.

    Attributes:
        classifier: Trained, on the CPU, in evaluation mode; it may be changed.
        data: Prepared. Training images may be used; val and test must not be.
        description: For the model file; its precision is that of the origin.
        tune: Fine-tunes a classifier in place, given epochs and learning rate. It keeps the epoch
            that is best on val.
        load: The trained classifiers of other runs with the same split, given their ids.
        folder: For the model file.
    """

    classifier: Classifier
    data: DataModule
    description: Description
    tune: Callable[[Classifier, int, float], None]
    load: Callable[[Sequence[str]], list[Classifier]]
    folder: Path

    def network(self) -> nn.Module:
        """The net of the classifier; UserError if it has no layers, such as an SVM."""
        if is_fit_once(self.classifier.net):
            problem = "is not a network: it has no layers that could be quantised"
            raise UserError(f"{self.classifier.name} {problem}")
        return self.classifier.net

    def camera(self) -> CameraNet:
        """`network` with normalisation and softmax, as an exporter takes it."""
        self.network()
        return CameraNet.of(self.classifier)

    def training_rows(self, number: int, seed: int) -> npt.NDArray[np.int64]:
        """Rows of the image cache: training images in random order, stratified by class."""
        rows = self.data.rows("train")
        chosen = stratified_sample(self.data.labels[rows], number, np.random.default_rng(seed))
        return rows[chosen]

    def calibration_images(self, number: int, seed: int) -> ImageBatch:
        """The pictures of `training_rows`, not augmented, uint8 RGB (N, S, S, 3)."""
        return np.ascontiguousarray(self.data.cache.images[self.training_rows(number, seed)])


@dataclass(frozen=True)
class CompressedModel:
    """A compressed model.

    Attributes:
        classifier: The net whose multiply-adds and parameters are counted. Without a file it is
            also what is evaluated.
        file: The deployed model (.onnx, .pte, .tflite), which is evaluated and timed. None if the
            net stays a PyTorch net: then the checkpoint is the model.
        precision: Of the weights: "float32", "float16", "bfloat16" or "int8".
        facts: What else is recorded: numbers as metrics `compression/<name>`, text as tags.
    """

    classifier: Classifier
    file: Path | None = None
    precision: str = "float32"
    facts: Mapping[str, float | str] = field(default_factory=dict)


class Compression(Protocol):
    """A way to make a trained net smaller. The constructor's arguments are its config keys."""

    def compress(self, context: CompressionContext) -> CompressedModel:
        """Compress a trained classifier; UserError names the operator or layer that prevents it."""
        ...


class FileCompression(ABC):
    """A compression whose result is a model file.

    Attributes:
        runtime: Of the file.
        precision: Of the weights in it.
    """

    config_only = ("name",)
    runtime: type[FileRuntime]
    precision = "int8"

    @abstractmethod
    def write(self, path: Path, context: CompressionContext, description: Description) -> Facts:
        """Write the model file; returns what is recorded. A file of a failed call is deleted."""

    def compress(self, context: CompressionContext) -> CompressedModel:
        """Write the file of the compressed model."""
        context.network()
        file = context.folder / f"model{self.runtime.suffix}"
        description = replace(context.description, precision=self.precision)
        with atomic_file(file, "the model") as draft:
            facts = self.write(draft, context, description)
        return CompressedModel(context.classifier, file, self.precision, facts)


class Bfloat16:
    """The net in bfloat16. It stays a PyTorch net, and its checkpoint has half the size."""

    config_only = ("name",)

    def compress(self, context: CompressionContext) -> CompressedModel:
        """Cast the weights in place, see `src.models.structure`."""
        cast(context.network())
        return CompressedModel(context.classifier, precision="bfloat16")


def stratified_sample(
    labels: npt.NDArray[np.int64], number: int, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw positions in `labels` (N,), each class in proportion to its size but at least one.

    Sizes are rounded by the largest-remainder method. More than N gives all.

    Returns:
        Positions in random order, without repeats.
    """
    if number >= len(labels):
        return random.permutation(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    share = number * counts / len(labels)
    sizes = np.maximum(np.floor(share).astype(np.int64), 1)
    missing = max(0, number - int(sizes.sum()))
    sizes[np.argsort(sizes - share, kind="stable")[:missing]] += 1
    members = [
        random.choice(np.flatnonzero(labels == label), size, replace=False)
        for label, size in zip(classes, sizes, strict=True)
    ]
    return random.permutation(np.concatenate(members))


def float_layers(
    layers: Sequence[Layer], first: int, last: int, key: str = "float_first"
) -> list[Layer]:
    """The first and last layers, which stay in float32; ConfigError if no other remains."""
    if first + last >= len(layers):
        count = f"{first} + {last}" if key == "float_first" else last
        problem = f"of {len(layers)} layers, {count} in float32 leave none to quantise"
        raise ConfigError(f"compression.{key}", problem)
    return [*layers[:first], *layers[len(layers) - last :]]


def weight_facts(weights: Iterable[tuple[int, bool]], problem: str) -> Facts:
    """The number of compressed weight tensors and their share of all weights.

    Each weight is the size of a tensor and whether it is compressed. If none is, a UserError with
    the message `problem` is raised.
    """
    sizes = list(weights)
    compressed = [size for size, is_compressed in sizes if is_compressed]
    if not compressed:
        raise UserError(problem)
    share = sum(compressed) / sum(size for size, _ in sizes)
    return {"layers": len(compressed), "share_of_weights": share}
