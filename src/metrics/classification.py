"""Torchmetrics Metric of the run record."""

import math
import posixpath
import re

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, multiclass_confusion_matrix
from torchmetrics.utilities import dim_zero_cat

from src.core.errors import ConfigError


def per_class(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Each class against the rest.

    Args:
        matrix: Counts, int (K, K); rows are true classes, columns predicted ones.

    Returns:
        recall, precision, f1 and specificity, float (K,) each in [0, 1]. NaN: recall of a class
        without images, precision of a class never predicted, F1 of a class without both,
        specificity of a class that all images belong to.
    """
    matrix = np.asarray(matrix, dtype=np.int64)
    hits = np.diag(matrix)
    actual, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    others = matrix.sum() - actual
    return {
        "recall": _ratio(hits, actual),
        "precision": _ratio(hits, predicted),
        "f1": _ratio(2 * hits, actual + predicted),
        "specificity": _ratio(others - (predicted - hits), others),
    }


def overall(matrix: np.ndarray) -> dict[str, float]:
    """The classification as a whole, as scikit-learn defines it.

    Args:
        matrix: Counts, int (K, K); rows are true classes, columns predicted ones.

    Returns:
        accuracy; balanced_accuracy, the mean recall over the classes that have images; macro_f1,
        the mean F1 over the classes that have images or were predicted. Each in [0, 1], all NaN
        without any image.
    """
    matrix = np.asarray(matrix, dtype=np.int64)
    classes = per_class(matrix)
    return {
        "accuracy": float(_ratio(np.trace(matrix), matrix.sum())),
        "balanced_accuracy": _mean_of_defined(classes["recall"]),
        "macro_f1": _mean_of_defined(classes["f1"]),
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def one_per_class(logits: Tensor) -> Tensor:
    """Logits with a column a class, (N, K), K >= 2.

    Args:
        logits: (N, K), returned as they are, or (N, 1) for two classes: z is the log-odds of class
            1. It becomes [0, z], whose softmax is [1 - sigmoid(z), sigmoid(z)], so that all that
            follows needs one formula.
    """
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def probabilities(logits: Tensor) -> Tensor:
    """Class probabilities (N, K), each row summing to 1, from logits (N, K), or (N, 1) for two classes."""
    return torch.softmax(one_per_class(logits), dim=1)


def mean_auroc(probability: Tensor, target: Tensor) -> float:
    """Area under the ROC curve, exact (every score is a threshold, ties count half).

    Two classes: that of class 1. More: the unweighted mean of each class against the rest, over the
    classes that have both images of their own and others; a class that is absent is left out.

    Args:
        probability: float (N, K).
        target: Labels, int (N,).

    Returns:
        In [0, 1]; NaN if no class has both.
    """
    candidates = [1] if probability.shape[1] == 2 else range(probability.shape[1])
    areas = []
    for label in candidates:
        own = (target == label).long()
        if 0 < int(own.sum()) < len(own):
            areas.append(
                binary_auroc(probability[:, label], own, thresholds=None, validate_args=False)
            )
    return float(torch.stack(areas).mean()) if areas else math.nan


class ClassificationMetrics(Metric):
    """The run record's metrics of one split.

    Keys: accuracy, balanced_accuracy, macro_f1, auroc, and for each class recall/<class>,
        precision/<class>, f1/<class>
    and specificity/<class>.
    The predicted class is the most probable one, the first of equals.

    Args:
        classes: Class names in label order, at least two.

    Raises:
        ConfigError: A name that cannot stand in a metric's name, or stands twice.
    """

    full_state_update = False
    is_differentiable = False
    probability: list[Tensor]
    target: list[Tensor]

    def __init__(self, classes: tuple[str, ...]) -> None:
        super().__init__()
        _check_names(classes)
        self.classes = tuple(classes)
        self.add_state("probability", default=[], dist_reduce_fx="cat")
        self.add_state("target", default=[], dist_reduce_fx="cat")

    def update(self, probability: Tensor, target: Tensor) -> None:
        """Add a batch: probabilities (N, K) and labels (N,). Only kept here, so that a GPU is not waited for."""
        if (
            probability.ndim != 2
            or probability.shape[1] != len(self.classes)
            or target.shape != probability.shape[:1]
        ):
            raise ValueError(
                f"expected probabilities (N, {len(self.classes)}) and labels (N,), "
                f"but got {tuple(probability.shape)} and {tuple(target.shape)}"
            )
        self.probability.append(probability.detach().float())
        self.target.append(target)

    def confusion(self) -> Tensor:
        """Counts of what this device was given, int64 (K, K); rows are true classes, columns predicted ones."""
        if len(self.probability) == 0:
            return torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64)
        predicted = dim_zero_cat(self.probability).argmax(dim=1)
        return multiclass_confusion_matrix(
            predicted, dim_zero_cat(self.target), num_classes=len(self.classes), validate_args=False
        )

    def compute(self) -> dict[str, float]:
        """Name -> value in [0, 1]; what is not defined is left out."""
        matrix = self.confusion().cpu().numpy()
        values = overall(matrix)
        if matrix.sum():
            values["auroc"] = mean_auroc(dim_zero_cat(self.probability), dim_zero_cat(self.target))
        for measure, by_class in per_class(matrix).items():
            values |= {
                f"{measure}/{name}": float(value)
                for name, value in zip(self.classes, by_class, strict=True)
            }
        return {name: value for name, value in values.items() if not math.isnan(value)}


def _check_names(classes: tuple[str, ...]) -> None:
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise ConfigError(
            "classes",
            f"must be two or more different names, but got {', '.join(map(repr, classes))}",
        )
    for name in classes:
        # names of metrics: what MLflow takes, on every system, and no path that would be shortened
        if (
            not re.fullmatch(r"[A-Za-z0-9_\-./ ]+", name)
            or posixpath.normpath(f"recall/{name}") != f"recall/{name}"
        ):
            raise ConfigError(
                "classes",
                f"must be made of letters, digits, spaces and _ - . / as a metric's name is, but got {name!r}",
            )
