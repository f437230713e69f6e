"""A small net whose output differs between pictures, and the context to compress it in."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from small_store import CLASSES, classifier
from torch import nn

from src.data.module import DataModule
from src.data.synthetic import Synthetic
from src.deployment.compression.base import CompressionContext
from src.deployment.description import Description
from src.deployment.runtimes.base import ImageBatch, Probabilities, Runtime, in_batches
from src.models.custom import CustomCNN
from src.training.classifier import Classifier

SIZE = 16
DESCRIPTION = Description("run", "net", CLASSES, SIZE, "squash", "synthetic", "grouped", "none")
# Rounding to 8 bits moves a value by at most 1/510 of its range; after some layers a logit with a
# range of about 10 moves by a tenth, and a probability by at most a quarter of that, the steepest
# slope of softmax. On average it is far less.
NEAR = 0.025


@dataclass(frozen=True)
class Sample:
    """Data, validation pictures and the output of `confident` for them."""

    data: DataModule
    pictures: ImageBatch
    expected: Probabilities

    def is_near(self, output: Runtime | Probabilities) -> bool:
        """Whether an output, or that of a runtime, is nearly the expected one."""
        probabilities = in_batches(output, self.pictures) if callable(output) else output
        return float(np.abs(probabilities - self.expected).mean()) < NEAR


def prepared_data(folder: Path, size: int, native_size: int) -> DataModule:
    source = Synthetic(lesions=150, max_views=1, native_size=native_size, seed=0)
    shares = [0.6, 0.2, 0.2]
    return DataModule(
        *("synthetic", source, size, "squash", "grouped", shares),
        *(0, None, "error", 32, str(folder)),
    ).prepare()


def no_tuning(classifier: Classifier, epochs: int, lr: float) -> None:
    raise AssertionError("nothing must be fine-tuned")


def context(
    model: Classifier | nn.Module,
    data: DataModule,
    folder: Path,
    tune: Callable[[Classifier, int, float], None] = no_tuning,
) -> CompressionContext:
    if not isinstance(model, Classifier):
        model = classifier(model, SIZE, [0.5, 0.5, 0.5], [0.2, 0.2, 0.2])
    return CompressionContext(model, data, DESCRIPTION, tune, lambda ids: [], folder)


def confident() -> CustomCNN:
    """One convolution and three dense layers, untrained; the output differs between pictures."""
    torch.manual_seed(0)
    net = CustomCNN(SIZE, len(CLASSES), width=8, depth=1, dense=[64, 8])
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(3)
    return net
