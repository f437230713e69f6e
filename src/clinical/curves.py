"""Points of the ROC and precision-recall curves, each class against the rest, as scikit-learn has them."""

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from src.analysis.bootstrap import Predictions

ROC_COLUMNS = ["class", "seed", "false_positive_rate", "sensitivity", "threshold"]
PRECISION_RECALL_COLUMNS = ["class", "seed", "recall", "precision", "threshold"]


def roc(given: Predictions) -> pd.DataFrame:
    """ROC curves, the strictest threshold (infinity) first; points on a straight line are left out.

    Args:
        given: The predictions; a class without images, or without others, has no curve.

    Returns:
        A row a point: class, seed (number of the net, from 0), false_positive_rate, sensitivity, threshold.
    """
    frames = []
    for name, seed, own, score in _each(given):
        alarm, recall, threshold = roc_curve(own, score)
        frames.append(_frame(name, seed, alarm, recall, threshold, ROC_COLUMNS))
    return _joined(frames, ROC_COLUMNS)


def precision_recall(given: Predictions) -> pd.DataFrame:
    """Precision-recall curves, the laxest threshold first and precision 1 at recall 0 last, as `roc` gives its own."""
    frames = []
    for name, seed, own, score in _each(given):
        precision, recall, threshold = precision_recall_curve(own, score, drop_intermediate=True)
        threshold = np.append(threshold, np.inf)
        frames.append(_frame(name, seed, recall, precision, threshold, PRECISION_RECALL_COLUMNS))
    return _joined(frames, PRECISION_RECALL_COLUMNS)


def _each(given: Predictions) -> list[tuple[str, int, np.ndarray, np.ndarray]]:
    found = []
    for label, name in enumerate(given.classes):
        own = given.target == label
        if 0 < own.sum() < len(own):
            found += [(name, seed, own, score[:, label]) for seed, score in enumerate(given.probability)]
    return found


def _frame(
    name: str, seed: int, x: np.ndarray, y: np.ndarray, threshold: np.ndarray, columns: list[str]
) -> pd.DataFrame:
    values = (np.full(len(x), name, dtype=object), np.full(len(x), seed), x, y, threshold)
    return pd.DataFrame(dict(zip(columns, values, strict=True)))


def _joined(frames: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
