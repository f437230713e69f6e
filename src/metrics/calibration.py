"""Whether a probability means what it says: calibration errors, reliability bins, temperature scaling.

Confidence is the probability of the predicted class. Sources: Guo, Pleiss, Sun and Weinberger, On
calibration of modern neural networks, ICML 2017 (sections 2 and 4.2); Nixon et al., Measuring
calibration in deep learning, CVPR workshops 2019 (bins of equal content); Brier, Monthly Weather
Review 78, 1950. A calibration error is biased upwards, the more so with fewer images, and
resampling adds to the bias: it gets no interval.
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from src.metrics.bootstrap import Predictions

BINS = 15
TEMPERATURES = (0.05, 20.0)
TOP = "predicted class"  # in the column of classes: confidence against being right


def equal_width(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Number of each confidence's bin, int (N,); bins (i / bins, (i + 1) / bins], and 0 in the first."""
    return np.clip(np.ceil(np.asarray(confidence, dtype=float) * bins).astype(int) - 1, 0, bins - 1)


def equal_content(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Number of each confidence's bin, int (N,), where each bin gets as many images as the others; ties stay together.

    A bin can therefore be fuller than others, or empty.
    """
    rank = np.searchsorted(np.sort(confidence), confidence)  # of equal ones the first
    return rank * bins // max(len(confidence), 1)


def reliability(confidence: np.ndarray, right: np.ndarray, number: np.ndarray) -> pd.DataFrame:
    """What was said and what came true, bin by bin.

    Args:
        confidence: float (N,).
        right: Whether it came true, bool (N,).
        number: Bin of each image, int (N,).

    Returns:
        A row a bin with images: bin, images, confidence (mean), frequency (share that came true).
    """
    images = pd.DataFrame(
        {"bin": number, "confidence": confidence.astype(float), "frequency": right.astype(float)}
    )
    grouped = images.groupby("bin")
    table = grouped.mean()
    table.insert(0, "images", grouped.size())
    return table.reset_index()


def error(table: pd.DataFrame) -> float:
    """Expected calibration error: mean gap between confidence and frequency over the images, in [0, 1]."""
    return float(
        np.average((table["confidence"] - table["frequency"]).abs(), weights=table["images"])
    )


def summary(probability: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Calibration of one net.

    Args:
        probability: float (N, K).
        target: Labels, int (N,).

    Returns:
        ece (15 bins of equal width), adaptive_ece (15 of equal content), both of the predicted
        class in [0, 1]; brier: half the squared distance to the truth, in [0, 1], which for two
        classes is the usual one; nll in nats.
    """
    probability = probability.astype(float)
    confidence, right = probability.max(axis=1), probability.argmax(axis=1) == target
    truth = np.eye(probability.shape[1])[target]
    return {
        "ece": error(reliability(confidence, right, equal_width(confidence))),
        "adaptive_ece": error(reliability(confidence, right, equal_content(confidence))),
        "brier": float(((probability - truth) ** 2).sum(axis=1).mean() / 2),
        "nll": _nll(_log(probability), target),
    }


def fit(probability: np.ndarray, target: np.ndarray) -> float:
    """The temperature that makes these labels most likely.

    Args:
        probability: float (N, K); their logarithms serve as logits, for softmax forgets what they
            lack.
        target: Labels, int (N,).

    Returns:
        In [0.05, 20]; a bound if the likelihood grows beyond it, as for labels that are all
        predicted.
    """
    logits = _log(probability)
    least, most = (1 / bound for bound in reversed(TEMPERATURES))
    # the loss is convex in the inverse temperature
    found = minimize_scalar(
        lambda inverse: _nll(inverse * logits, target),
        bounds=(least, most),
        method="bounded",
        options={"xatol": 1e-6},
    )
    ends = {1 / inverse: _nll(inverse * logits, target) for inverse in (least, most)}
    best = min(ends, key=lambda temperature: ends[temperature])
    return float(best if ends[best] < found.fun else 1 / found.x)


def scale(probability: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities at another temperature, float64 (N, K): above 1 they are less sure. The order stays as it is."""
    return np.asarray(softmax(_log(probability) / temperature, axis=1))


def bins(given: Predictions, scaled: np.ndarray | None) -> pd.DataFrame:
    """Reliability by 15 bins of equal width, of the predicted class and of each class against the rest.

    Args:
        given: The predictions of all nets, laid together: a bin counts an image once a net.
        scaled: The same probabilities at the nets' temperatures, (S, N, K), or None.

    Returns:
        A row a bin: class, scaled (bool), bin, images (mean over the nets), confidence, frequency.
    """
    frames = []
    seeds = len(given.probability)
    for after, probability in ((False, given.probability), (True, scaled)):
        if probability is None:
            continue
        right = probability.argmax(axis=2) == given.target
        curves = {TOP: (probability.max(axis=2), right)}
        for label, name in enumerate(given.classes):
            curves[name] = (probability[:, :, label], np.tile(given.target == label, (seeds, 1)))
        for name, (confidence, came) in curves.items():
            table = reliability(confidence.ravel(), came.ravel(), equal_width(confidence.ravel()))
            table["images"] = table["images"] / seeds
            table.insert(0, "class", name)
            table.insert(1, "scaled", after)
            frames.append(table)
    return pd.concat(frames, ignore_index=True)


def compared(given: Predictions, scaled: np.ndarray | None) -> pd.DataFrame:
    """`summary` before and after scaling, means over the nets.

    Returns:
        A row a measure: measure, before, after (NaN without scaling).
    """
    before = pd.DataFrame([summary(each, given.target) for each in given.probability]).mean()
    after = pd.Series(np.nan, index=before.index)
    if scaled is not None:
        after = pd.DataFrame([summary(each, given.target) for each in scaled]).mean()
    return pd.DataFrame(
        {"measure": before.index, "before": before.to_numpy(), "after": after.to_numpy()}
    )


def _log(probability: np.ndarray) -> np.ndarray:
    """Finite logarithms: single precision rounds what is smaller to 0."""
    return np.asarray(np.log(np.maximum(probability.astype(float), np.finfo(np.float32).tiny)))


def _nll(logits: np.ndarray, target: np.ndarray) -> float:
    return float(-log_softmax(logits, axis=1)[np.arange(len(target)), target].mean())
