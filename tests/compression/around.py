"""A classifier around any net, for seven classes."""

import functools
from collections.abc import Sequence

import torch
from torch import nn

from src.losses.cross_entropy import CrossEntropy
from src.training import schedules
from src.training.classifier import Classifier

CLASSES = tuple("abcdefg")


def classifier(
    net: nn.Module, size: int, mean: Sequence[float], std: Sequence[float]
) -> Classifier:
    """In evaluation mode; `size` is the side of its input, px."""
    return Classifier(
        name="net",
        net=net,
        loss=CrossEntropy(class_counts=[10] * len(CLASSES)),
        classes=CLASSES,
        optimizer=functools.partial(torch.optim.SGD, lr=0.1),
        scheduler=schedules.constant,
        image_size=size,
        mean=list(mean),
        std=list(std),
    ).eval()
