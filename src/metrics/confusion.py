"""Measures of a classification, from its confusion matrix. What is not defined (0/0) is NaN."""

import numpy as np


def per_class(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Each class against the rest.

    Args:
        matrix: Counts, int (K, K); rows are true classes, columns predicted ones.

    Returns:
        recall, precision, f1 and specificity, float (K,) each in [0, 1]. NaN: recall of a class without images,
        precision of a class never predicted, F1 of a class without both, specificity of a class that all images
        belong to.
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
        accuracy; balanced_accuracy, the mean recall over the classes that have images; macro_f1, the mean F1 over the
        classes that have images or were predicted. Each in [0, 1], all NaN without any image.
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
