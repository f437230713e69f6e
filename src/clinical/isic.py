"""The ISIC challenges' own metrics, by the rules of isic-challenge-scoring 5.6.0 (2018 task 3 and 2019).

What they do that others do not: an image with several most probable classes is undecided, that is wrong; a class is
predicted from above a probability of 0.5, whatever the others have; a rate of nothing is 1. Every image weighs the
same here, while the organisers' own files of truth may weigh some with 0.
"""

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from src.analysis.bootstrap import Predictions
from src.clinical import ranks
from src.clinical.resampling import Statistics, mean_recall

BALANCED_ACCURACY = "isic_balanced_accuracy"
BINARY = ("accuracy", "sensitivity", "specificity", "dice", "ppv", "npv")
# by the names that the package gives them
AREAS = {"auc": ranks.area, "auc_sens_80": ranks.area_above_sensitivity, "ap": ranks.average_precision}


def balanced_accuracy(given: Predictions) -> Statistics:
    """Mean recall over the classes that have images, ties undecided: the metric that ranks 2018 task 3 and 2019."""
    top = given.probability == given.probability.max(axis=2, keepdims=True)
    right = top[:, np.arange(len(given.target)), given.target] & (top.sum(axis=2) == 1)
    return mean_recall(given, right, range(len(given.classes)), BALANCED_ACCURACY)


def binary(score: np.ndarray, own: np.ndarray) -> dict[str, float]:
    """The metrics of one class at a probability above 0.5, each in [0, 1].

    Args:
        score: Probabilities of the class, float (N,).
        own: Whether an image is of the class, bool (N,).
    """
    (rejected, alarms), (missed, hits) = confusion_matrix(own, score > 0.5, labels=[False, True]).tolist()
    return {
        "accuracy": (hits + rejected) / len(own),
        "sensitivity": _or_one(hits, hits + missed),
        "specificity": _or_one(rejected, rejected + alarms),
        "dice": _or_one(2 * hits, 2 * hits + alarms + missed),
        "ppv": _or_one(hits, hits + alarms),
        "npv": _or_one(rejected, rejected + missed),
    }


def scores(given: Predictions) -> pd.DataFrame:
    """The challenges' table, means over the nets.

    Returns:
        A row a class and one called macro_average (over the classes that define a metric): accuracy, sensitivity,
        specificity, dice, ppv, npv, auc, auc_sens_80, ap. What needs images of both kinds is NaN without them.
    """
    each = np.mean([_of_net(given, probability) for probability in given.probability], axis=0)
    table = pd.DataFrame(each, index=pd.Index(given.classes, name="class"), columns=[*BINARY, *AREAS])
    table.loc["macro_average"] = table.mean()
    return table.reset_index()


def _of_net(given: Predictions, probability: np.ndarray) -> np.ndarray:
    rows = []
    for label in range(len(given.classes)):
        own, score = given.target == label, probability[:, label]
        ranking = ranks.Ranking(score, own, np.zeros(len(own), dtype=int), 1)
        counts = ranking.counts(np.ones((1, 1)))
        areas = [curve(*counts).item() if 0 < own.sum() < len(own) else np.nan for curve in AREAS.values()]
        rows.append([*binary(score, own).values(), *areas])
    return np.array(rows)


def _or_one(part: float, whole: float) -> float:
    return part / whole if whole else 1.0
