"""Classification metrics of the run record as a torchmetrics Metric."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, multiclass_confusion_matrix
from torchmetrics.utilities import dim_zero_cat

from src.core.errors import check_class_names
from src.metrics.registry import count_metrics


def one_per_class(logits: Tensor) -> Tensor:
    """Logits with a column for each class, (N, K), K >= 2.

    Logits (N, 1) are for two classes: z is the log-odds of class 1 and becomes [0, z], whose
    softmax is [1 - sigmoid(z), sigmoid(z)]. Others are returned unchanged.
    """
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def probabilities(logits: Tensor) -> Tensor:
    """Class probabilities (N, K) from logits (N, K), or (N, 1) for two classes; rows sum to 1."""
    return torch.softmax(one_per_class(logits), dim=1)


def mean_auroc(probability: Tensor, target: Tensor) -> float:
    """Exact area under the ROC curve of probabilities (N, K) and labels (N,), in [0, 1].

    Two classes: that of class 1. More: the unweighted mean of each class against the rest, over the
    classes that have both images and others; NaN if none has.
    """
    areas = []
    for label in [1] if probability.shape[1] == 2 else range(probability.shape[1]):
        positive = (target == label).long()
        if 0 < int(positive.sum()) < len(positive):
            scores = probability[:, label]
            areas.append(binary_auroc(scores, positive, thresholds=None, validate_args=False))
    return float(torch.stack(areas).mean()) if areas else math.nan


class ClassificationMetrics(Metric):
    """All metrics of `src.metrics.registry` that training records for one split, without the loss.

    The predicted class is the most probable one, the first of equals.

    Raises:
        ConfigError: Class names that are fewer than two, repeated, or no part of a metric's name.
    """

    full_state_update = False
    is_differentiable = False
    probability: list[Tensor]
    target: list[Tensor]

    def __init__(self, classes: tuple[str, ...]) -> None:
        super().__init__()
        check_class_names(classes)
        self.classes = tuple(classes)
        self.add_state("probability", default=[], dist_reduce_fx="cat")
        self.add_state("target", default=[], dist_reduce_fx="cat")

    def update(self, probability: Tensor, target: Tensor) -> None:
        """Keep a batch: probabilities (N, K) and labels (N,). Nothing waits for the GPU here."""
        if target.ndim != 1 or probability.shape != (len(target), len(self.classes)):
            raise ValueError(
                f"expected probabilities (N, {len(self.classes)}) and labels (N,), "
                f"but got {tuple(probability.shape)} and {tuple(target.shape)}"
            )
        self.probability.append(probability.detach().float())
        self.target.append(target)

    def confusion(self) -> Tensor:
        """Counts on this device, int64 (K, K); rows are true classes, columns predicted ones."""
        if len(self.probability) == 0:
            return torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64)
        predicted = dim_zero_cat(self.probability).argmax(dim=1)
        return multiclass_confusion_matrix(
            predicted, dim_zero_cat(self.target), num_classes=len(self.classes), validate_args=False
        )

    def compute(self) -> dict[str, float]:
        """Name -> value in [0, 1]; undefined metrics are left out."""
        matrix = self.confusion().cpu().numpy()
        values = {name: float(value) for name, value in count_metrics(matrix, self.classes).items()}
        if matrix.sum():
            values["auroc"] = mean_auroc(dim_zero_cat(self.probability), dim_zero_cat(self.target))
        return {name: value for name, value in values.items() if not math.isnan(value)}
