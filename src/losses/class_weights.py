"""Class weights that let rare classes count as much as frequent ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from src.core.errors import ConfigError


def balanced(class_counts: Sequence[int]) -> Tensor:
    """Weights n / (K * n_c), float32 (K,): scikit-learn's "balanced" (after King & Zeng 2001).

    Over the training images they average 1.

    Args:
        class_counts: Training images of each class, in label order.

    Raises:
        ConfigError: A class has no training image, so its weight would be infinite.
    """
    counts = torch.as_tensor(list(class_counts), dtype=torch.float64)
    empty = [label for label, count in enumerate(class_counts) if count <= 0]
    if empty or len(counts) == 0:
        raise ConfigError(
            "class_counts",
            f"must be at least 1 each for class weights, but got {list(class_counts)} (no training image of class "
            f"{', '.join(map(str, empty)) or 'any'}); take a loss without weights or another split",
        )
    return (counts.sum() / (len(counts) * counts)).float()
