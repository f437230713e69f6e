"""Cross-entropy: plain, class-weighted, with smoothed labels."""

from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor, nn

from src.losses.class_weights import balanced
from src.metrics.classification import one_per_class


def cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy, in nats, as torch defines it, for two classes in one column as well.

    Args:
        logits: (N, K), or (N, 1) for two classes.
        target: Labels, int64 (N,).
        weight: A weight a class, (K,), K = 2 for logits (N, 1); the mean is then divided by the sum
            of the targets' weights.
        label_smoothing: Share of the target's mass that is spread evenly over all classes, in [0,
            1).
    """
    return F.cross_entropy(
        one_per_class(logits), target, weight=weight, label_smoothing=label_smoothing
    )


class CrossEntropy(nn.Module):
    """`cross_entropy` with the class weights of a training set.

    Args:
        class_counts: Training images of each class, in label order.
        weighted: Whether classes are weighted inversely to their counts.
        label_smoothing: Share of the target's mass that is spread evenly over all classes, in [0,
            1).

    Raises:
        ConfigError: `weighted`, and a class without training images.
    """

    weight: Tensor | None

    def __init__(
        self,
        class_counts: Sequence[int],
        weighted: bool = False,
        label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer(
            "weight", balanced(class_counts) if weighted else None, persistent=False
        )

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits (N, K) or (N, 1) and labels (N,) -> scalar."""
        return cross_entropy(logits, target, self.weight, self.label_smoothing)
