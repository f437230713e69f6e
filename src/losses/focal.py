"""Focal loss: plain and class-weighted."""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from src.losses.class_weights import ClassWeightedLoss
from src.metrics.classification import one_per_class


def focal(
    logits: Tensor, target: Tensor, gamma: float = 2.0, weight: Tensor | None = None
) -> Tensor:
    """Mean of -(1 - p)^gamma log(p), p: probability of the target (Lin et al., arXiv 1708.02002).

    Args:
        logits: (N, K), or (N, 1) for two classes.
        target: Labels, int64 (N,).
        gamma: Reduces the loss of well-classified images, at least 0; 0 is cross-entropy.
        weight: Weight of each class, (K,), K = 2 for logits (N, 1). The sum is divided by the sum
            of the targets' weights, as in torch's cross-entropy, not by N, as the paper's alpha
            would: the scale of the loss is kept.
    """
    log_p = -F.cross_entropy(one_per_class(logits), target, reduction="none")
    # Kept off zero: for gamma < 1 the gradient of the power is infinite there, and infinity times
    # log(1) is NaN.
    miss = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).eps)
    loss = -(miss**gamma) * log_p
    if weight is None:
        return loss.mean()
    share = weight.to(loss)[target]
    return (share * loss).sum() / share.sum()


class Focal(ClassWeightedLoss):
    """`focal`, with the class weights of a training set if `weighted`."""

    def __init__(
        self,
        class_counts: Sequence[int],
        gamma: Annotated[float, Ge(0)] = 2.0,
        weighted: bool = False,
    ) -> None:
        super().__init__(class_counts, weighted)
        self.gamma = gamma

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits (N, K) or (N, 1) and labels (N,) -> scalar."""
        return focal(logits, target, self.gamma, self.weight)
