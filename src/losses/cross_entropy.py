"""Cross-entropy: plain, class-weighted, with smoothed labels."""

from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor

from src.losses.class_weights import ClassWeightedLoss
from src.metrics.classification import one_per_class


class CrossEntropy(ClassWeightedLoss):
    """Mean cross-entropy in nats as torch defines it; two classes may share one column.

    If `weighted`, the sum is divided by the sum of the targets' weights. `label_smoothing` is the
    share of the target's mass that is spread evenly over all classes.
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        weighted: bool = False,
        label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__(class_counts, weighted)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits (N, K) or (N, 1) and labels (N,) -> scalar."""
        smoothing = self.label_smoothing
        return F.cross_entropy(
            one_per_class(logits), target, self.weight, label_smoothing=smoothing
        )
