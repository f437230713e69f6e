"""Calibration: expected calibration error, Brier score, reliability bins, temperature scaling.

Confidence is the probability of the predicted class. Sources: Guo, Pleiss, Sun and Weinberger, On
calibration of modern neural networks, ICML 2017 (sections 2 and 4.2); Nixon et al., Measuring
calibration in deep learning, CVPR workshops 2019 (bins of equal content); Brier, Monthly Weather
Review 78, 1950. A calibration error is biased upwards, the more so with fewer images, and
resampling adds to the bias: it gets no interval.
"""

import numpy as np
import pandas as pd
from scipy.special import log_softmax, softmax

from src.metrics.bootstrap import Predictions

BINS = 15
TEMPERATURES = (0.05, 20.0)
TOP = "predicted class"  # in the column `class`: confidence of the predicted class


def equal_width(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Bin of each confidence, int (N,); bins are (i / bins, (i + 1) / bins], 0 is in the first."""
    return np.clip(np.ceil(np.asarray(confidence, dtype=float) * bins).astype(int) - 1, 0, bins - 1)


def equal_content(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Bin of each confidence, int (N,), with equally many images in each; ties stay together."""
    rank = np.searchsorted(np.sort(confidence), confidence)  # of equal ones the first
    return rank * bins // max(len(confidence), 1)


def reliability(confidence: np.ndarray, right: np.ndarray, number: np.ndarray) -> pd.DataFrame:
    """Confidence (N,) against the observed frequency of `right`, bool (N,), in each bin.

    Returns:
        A row for each bin `number`, int (N,), with images: bin, images, confidence (mean),
        frequency (share right).
    """
    images = pd.DataFrame(
        {"bin": number, "confidence": confidence.astype(float), "frequency": right.astype(float)}
    )
    grouped = images.groupby("bin")
    table = grouped.mean()
    table.insert(0, "images", grouped.size())
    return table.reset_index()


def error(table: pd.DataFrame) -> float:
    """Expected calibration error: mean gap of confidence and frequency over images, in [0, 1]."""
    gaps = (table["confidence"] - table["frequency"]).abs()
    return float(np.average(gaps, weights=table["images"]))


def summary(probability: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Calibration of one net from its probabilities (N, K) and the true labels (N,).

    Returns:
        ece (15 bins of equal width) and adaptive_ece (15 of equal content) of the predicted class,
        in [0, 1]; brier: half the squared distance to the truth, in [0, 1], which for two classes
        is the usual one; nll in nats.
    """
    probability = probability.astype(float)
    confidence, right = probability.max(axis=1), probability.argmax(axis=1) == target
    truth, scores = np.eye(probability.shape[1])[target], log_probability(probability)
    return {
        "ece": error(reliability(confidence, right, equal_width(confidence))),
        "adaptive_ece": error(reliability(confidence, right, equal_content(confidence))),
        "brier": float(((probability - truth) ** 2).sum(axis=1).mean() / 2),
        "nll": float(-log_softmax(scores, axis=1)[np.arange(len(target)), target].mean()),
    }


def fit(probability: np.ndarray, target: np.ndarray) -> float:
    """The temperature with the highest likelihood of the labels (N,), in [0.05, 20].

    The logarithms of the probabilities (N, K) serve as logits. A bound is returned if the
    likelihood grows beyond it, as for labels that are all predicted.
    """
    logits, rows = log_probability(probability), np.arange(len(target))
    low, high = (1 / bound for bound in reversed(TEMPERATURES))
    for _ in range(60):  # bisection: the loss is convex in the inverse temperature
        inverse = (low + high) / 2
        expected = (scale(probability, 1 / inverse) * logits).sum(axis=1)
        slope = (expected - logits[rows, target]).mean()
        low, high = (low, inverse) if slope > 0 else (inverse, high)
    return round(1 / inverse, 12)  # a bound is met exactly


def scale(probability: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities at a temperature, float64 (N, K): above 1 less confident, in the same order."""
    return np.asarray(softmax(log_probability(probability) / temperature, axis=1))


def bins(predictions: Predictions, scaled: np.ndarray | None) -> pd.DataFrame:
    """Reliability in 15 bins of equal width, of the predicted class and of each class.

    `scaled` are the same probabilities at the nets' temperatures, (S, N, K), or None.

    Returns:
        A row for each bin of all nets together: class, scaled (bool), bin, images (mean over the
        nets), confidence, frequency.
    """
    tables = {}
    seeds = len(predictions.probability)
    for is_scaled, probability in ((False, predictions.probability), (True, scaled)):
        if probability is None:
            continue
        curves = {TOP: (probability.max(axis=2), probability.argmax(axis=2) == predictions.target)}
        for label, name in enumerate(predictions.classes):
            positive = np.tile(predictions.target == label, (seeds, 1))
            curves[name] = (probability[:, :, label], positive)
        for name, (confidence, outcome) in curves.items():
            flat = confidence.ravel()
            table = reliability(flat, outcome.ravel(), equal_width(flat))
            tables[name, is_scaled] = table.assign(images=table["images"] / seeds)
    return pd.concat(tables, names=["class", "scaled"]).reset_index([0, 1]).reset_index(drop=True)


def compare(predictions: Predictions, scaled: np.ndarray | None) -> pd.DataFrame:
    """`summary` before and after scaling, means over the nets.

    Returns:
        A row for each measure: measure, before, after (NaN without scaling).
    """
    nets = {"before": predictions.probability, "after": () if scaled is None else scaled}
    means = {
        column: pd.DataFrame([summary(net, predictions.target) for net in part], dtype=float).mean()
        for column, part in nets.items()
    }
    return pd.DataFrame(means, index=means["before"].index).rename_axis("measure").reset_index()


def log_probability(probability: np.ndarray) -> np.ndarray:
    """Finite logarithms: single precision rounds smaller values to 0."""
    return np.asarray(np.log(np.maximum(probability.astype(float), np.finfo(np.float32).tiny)))
