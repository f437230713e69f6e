"""Balanced class weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from src.core.errors import ConfigError


class ClassWeightedLoss(nn.Module):
    """A loss whose classes may be weighted inversely to their counts; base of all losses here.

    docs/extending.md has the contract of a loss; it need not inherit from this class.

    Args:
        class_counts: Training images of each class, in label order.
        weighted: Whether classes are weighted.

    Attributes:
        weight: Weights n / (K * n_c), float32 (K,): "balanced" of scikit-learn (King & Zeng 2001).
            Their mean over the training images is 1. None without `weighted`. They are not part of
            the state dict.

    Raises:
        ConfigError: A class has no training image, so its weight would be infinite.
    """

    weight: Tensor | None
    needs_images = False

    def __init__(self, class_counts: Sequence[int], weighted: bool) -> None:
        super().__init__()
        weight = None
        if weighted:
            empty = [str(label) for label, count in enumerate(class_counts) if count <= 0]
            if empty or not class_counts:
                raise ConfigError(
                    "class_counts",
                    "must be at least 1 for every class with class weights, but got "
                    f"{list(class_counts)} (no training image of class {', '.join(empty) or 'any'})"
                    "; take a loss without weights or another split",
                )
            counts = torch.as_tensor(list(class_counts), dtype=torch.float64)
            weight = (counts.sum() / (len(counts) * counts)).float()
        self.register_buffer("weight", weight, persistent=False)
