"""Compression protocol, bfloat16, calibration images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from src.core.errors import UserError
from src.data.module import DataModule
from src.deployment.description import Description
from src.deployment.runtimes.base import ImageBatch
from src.models.fit_once import FitOnceModel
from src.models.precision import cast
from src.training.classifier import Classifier

Tune = Callable[
    [Classifier, int, float], None
]  # fine-tunes in place: epochs, learning rate; keeps the epoch that val chose


@dataclass(frozen=True)
class CompressedModel:
    """A compressed net.

    Attributes:
        classifier: Whose net's multiply-adds and parameters are counted, and, without a file, what
            is evaluated.
        file: The model as it is deployed (.onnx, .pte, .tflite), which is then what is evaluated
            and timed; None where the net stays one of torch's, and its checkpoint is the model.
        precision: Of the weights: "float32", "float16", "bfloat16" or "int8".
        facts: What else the record shall say: numbers become metrics `compression/<name>`, text
            tags.
    """

    classifier: Classifier
    file: Path | None = None
    precision: str = "float32"
    facts: Mapping[str, float | str] = field(default_factory=dict)


class Compression(Protocol):
    """A way to make a trained net smaller; its settings are its constructor's arguments, from conf/compression/."""

    def compress(
        self,
        classifier: Classifier,
        data: DataModule,
        description: Description,
        tune: Tune,
        folder: Path,
    ) -> CompressedModel:
        """Compress a trained classifier.

        Args:
            classifier: Trained, on the CPU, in evaluation mode; it may be changed.
            data: Ready; of train, images may be taken for calibration. Val and test are not to be
                touched.
            description: For the model's file, its precision still that of the origin.
            tune: Fine-tunes a classifier in place.
            folder: For the model's file.

        Raises:
            UserError: It cannot be done with this net; the message names the operator or layer.
        """
        ...


def require_network(classifier: Classifier) -> None:
    """Let only networks pass.

    Raises:
        UserError: It is a model without layers, such as an SVM.
    """
    if isinstance(classifier.net, FitOnceModel):
        raise UserError(
            f"{classifier.name} is no network: it has no layers that could be quantised"
        )


class Bfloat16:
    """The net in bfloat16; it stays one of torch's, and its checkpoint is half as large."""

    config_only = ("name",)

    def compress(
        self,
        classifier: Classifier,
        data: DataModule,
        description: Description,
        tune: Tune,
        folder: Path,
    ) -> CompressedModel:
        """Cast in place, see `src.models.precision` and `src.deployment.compression.base`."""
        require_network(classifier)
        cast(classifier.net)
        return CompressedModel(classifier, precision="bfloat16")


def pictures(data: DataModule, number: int, seed: int) -> ImageBatch:
    """Training images, every class with its share of them, in random order.

    Args:
        data: Ready.
        number: How many; no more than there are.
        seed: Of the draw.

    Returns:
        uint8 RGB (N, S, S, 3), as the camera gives them: not augmented.
    """
    rows = data.rows("train")
    chosen = rows[stratified(data.labels[rows], number, np.random.default_rng(seed))]
    return np.ascontiguousarray(data.cache.images[chosen])


def stratified(
    labels: npt.NDArray[np.int64], number: int, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Positions of `number` images, of each class its share, rounded by largest remainders, but at least one.

    Args:
        labels: Labels, shape (N,).
        number: How many; fewer than there are classes gives one of each class, more than N gives
            all.
        random: Draws them, and their order.

    Returns:
        Positions in `labels`, without repeats.
    """
    if number >= len(labels):
        return random.permutation(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    share = number * counts / len(labels)
    wanted = np.maximum(np.floor(share).astype(np.int64), 1)
    left = max(0, number - int(wanted.sum()))
    wanted[np.argsort(wanted - share, kind="stable")[:left]] += 1
    members = [
        random.choice(np.flatnonzero(labels == label), size, replace=False)
        for label, size in zip(classes, wanted, strict=True)
    ]
    return random.permutation(np.concatenate(members))
