"""Focal loss: plain and class-weighted."""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from src.losses.class_weights import balanced
from src.metrics.classification import one_per_class


def focal(
    logits: Tensor, target: Tensor, gamma: float = 2.0, weight: Tensor | None = None
) -> Tensor:
    """Mean of -(1 - p)^gamma * log(p), p being the target class's probability (Lin et al. 2017, arXiv 1708.02002).

    Args:
        logits: (N, K), or (N, 1) for two classes.
        target: Labels, int64 (N,).
        gamma: How much well-classified images are played down, at least 0; 0 is cross-entropy.
        weight: A weight a class, (K,), K = 2 for logits (N, 1). The mean is then divided by the sum
            of the targets' weights, as torch's cross-entropy does it, and not by N, as the paper's
            alpha would have it: the loss keeps its scale.
    """
    log_p = -F.cross_entropy(one_per_class(logits), target, reduction="none")
    # kept off zero: for gamma < 1 the power's gradient is infinite there, and infinity times log(1)
    # is NaN
    miss = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).eps)
    loss = -(miss**gamma) * log_p
    if weight is None:
        return loss.mean()
    share = weight.to(loss)[target]
    return (share * loss).sum() / share.sum()


class Focal(nn.Module):
    """`focal` with the class weights of a training set.

    Args:
        class_counts: Training images of each class, in label order.
        gamma: How much well-classified images are played down, at least 0.
        weighted: Whether classes are weighted inversely to their counts.

    Raises:
        ConfigError: `weighted`, and a class without training images.
    """

    weight: Tensor | None

    def __init__(
        self,
        class_counts: Sequence[int],
        gamma: Annotated[float, Ge(0)] = 2.0,
        weighted: bool = False,
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer(
            "weight", balanced(class_counts) if weighted else None, persistent=False
        )

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits (N, K) or (N, 1) and labels (N,) -> scalar."""
        return focal(logits, target, self.gamma, self.weight)
