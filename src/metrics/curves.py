"""ROC and precision-recall curves, their areas, and the scores of the ISIC challenges."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from src.metrics.registry import ratio

if TYPE_CHECKING:
    from src.metrics.bootstrap import Predictions

SENSITIVITY = 0.80  # lower bound of the ISIC challenges' partial areas
_ROUNDING = 1e-9  # 0.07 * 100 is more than 7 in floating point

# True and false positives (T + 1, B) at T thresholds, as `RocCurve.counts` returns them -> (B,).
Curve = Callable[[np.ndarray, np.ndarray], np.ndarray]


class RocCurve:
    """Images of one class and the others, counted by distinct score and group, highest score first.

    Scores (N,) are of images that are `positive`, bool (N,), and in a `group`, int (N,), one of
    `groups`. Neighbouring scores that only other classes have are merged: all statistics here
    remain exact, and a rare class has few rows. With `area_only`, those that only the class has
    are merged, too: `area` remains exact.
    """

    def __init__(
        self,
        score: np.ndarray,
        positive: np.ndarray,
        group: np.ndarray,
        groups: int,
        area_only: bool = False,
    ) -> None:
        _, rank = np.unique(-score, return_inverse=True)
        share = np.bincount(rank, positive) / np.bincount(rank)
        merge = (share[1:] == share[:-1]) & ((share[1:] == 0) | (area_only & (share[1:] == 1)))
        row = np.concatenate([[0], np.cumsum(~merge)])[rank]
        shape = (int(row.max(initial=-1)) + 1, groups)
        self._positive = csr_array((positive.astype(float), (row, group)), shape=shape)
        self._negative = csr_array(((~positive).astype(float), (row, group)), shape=shape)

    def counts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """True and false positives, from the threshold that no image passes to the one all pass.

        Returns:
            Two arrays (T + 1, B) for weights of the groups (G, B) and T distinct (merged) scores.
        """
        start = np.zeros((1, weights.shape[1]))
        hits = np.cumsum(self._positive @ weights, axis=0)
        alarms = np.cumsum(self._negative @ weights, axis=0)
        return np.concatenate([start, hits]), np.concatenate([start, alarms])


def area(hits: np.ndarray, alarms: np.ndarray) -> np.ndarray:
    """Area under the ROC curve; ties count half; NaN unless both kinds of images are there."""
    steps = np.diff(alarms, axis=0) * (hits[1:] + hits[:-1]) / 2
    return ratio(steps.sum(axis=0), hits[-1] * alarms[-1])


def average_precision(hits: np.ndarray, alarms: np.ndarray) -> np.ndarray:
    """Precision averaged over recall, without interpolation, as in scikit-learn."""
    # A score that was not drawn adds nothing.
    precision = np.nan_to_num(ratio(hits[1:], hits[1:] + alarms[1:]))
    return ratio((np.diff(hits, axis=0) * precision).sum(axis=0), hits[-1])


def pauc(hits: np.ndarray, alarms: np.ndarray, sensitivity: float = SENSITIVITY) -> np.ndarray:
    """Area between the ROC curve and the line at `sensitivity`, in [0, 1 - sensitivity].

    The metric of the ISIC 2024 challenge (SLICE-3D) for 0.8: 0.2 is perfect, 0.02 is chance.
    """
    recall, alarm = ratio(hits, hits[-1]), ratio(alarms, alarms[-1])
    above = np.maximum(recall - sensitivity, 0)
    # A segment that crosses the line counts from the crossing.
    rise, part = np.diff(recall, axis=0), np.diff(above, axis=0)
    crossing = (recall[:-1] < sensitivity) & (above[1:] > 0)
    inside = np.divide(part, rise, out=np.ones_like(rise), where=rise > 0)
    width = np.diff(alarm, axis=0) * np.where(crossing, inside, 1)
    return (width * (above[1:] + above[:-1]) / 2).sum(axis=0)


def area_above_sensitivity(
    hits: np.ndarray, alarms: np.ndarray, sensitivity: float = SENSITIVITY
) -> np.ndarray:
    """Area under the part of the ROC curve from `sensitivity` on, down to the axis, in [0, 1].

    As isic-challenge-scoring computes `auc_sens_80`; the challenges of 2018 and 2019 list it.
    """
    recall, alarm = ratio(hits, hits[-1]), ratio(alarms, alarms[-1])
    # The first point at or above the line; never the start, whose recall is 0.
    first = np.minimum((recall < sensitivity).sum(axis=0), len(recall) - 1)
    rows = np.stack([first - 1, first])
    low, high = np.take_along_axis(recall, rows, axis=0)
    before, after = np.take_along_axis(alarm, rows, axis=0)
    start = before + ratio(sensitivity - low, high - low) * (after - before)
    return pauc(hits, alarms, sensitivity) + sensitivity * (1 - start)


def sensitivity_at(specificity: float, hits: np.ndarray, alarms: np.ndarray) -> np.ndarray:
    """The best sensitivity among thresholds with at least this specificity, not interpolated."""
    allowed = alarms <= (1 - specificity) * alarms[-1] + _ROUNDING
    best = np.where(allowed, hits, 0).max(axis=0)
    return np.where(alarms[-1] > 0, ratio(best, hits[-1]), np.nan)


def specificity_at(sensitivity: float, hits: np.ndarray, alarms: np.ndarray) -> np.ndarray:
    """The best specificity among thresholds with at least this sensitivity, not interpolated."""
    enough = hits >= sensitivity * hits[-1] - _ROUNDING
    fewest = np.where(enough, alarms, alarms[-1]).min(axis=0)
    return np.where(hits[-1] > 0, 1 - ratio(fewest, alarms[-1]), np.nan)


CURVES: dict[str, Curve] = {
    "auroc": area,
    "average_precision": average_precision,
    "auroc_above_80_sensitivity": area_above_sensitivity,
    "pauc_80": pauc,
}


def fixed_points(values: Sequence[float]) -> dict[str, Curve]:
    """Sensitivity at each of these specificities, and the reverse, by their record names."""
    kinds = {"sensitivity_at_spec": sensitivity_at, "specificity_at_sens": specificity_at}
    return {
        f"{name}{100 * value:.4g}": functools.partial(curve, value)
        for name, curve in kinds.items()
        for value in values
    }


def roc_counts(
    positive: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and false positives from each threshold on, and the thresholds, from infinity down.

    As in scikit-learn, whose import takes longer than all of an audit's curves.
    """
    values, position = np.unique(-score, return_inverse=True)
    hits, alarms = (
        np.append(0, np.cumsum(np.bincount(position, kind, len(values))))
        for kind in (positive, ~positive)
    )
    return hits, alarms, -np.append(-np.inf, values)


def roc(predictions: "Predictions") -> pd.DataFrame:
    """ROC curves, the highest threshold (infinity) first; points on a straight line are left out.

    Returns:
        A row for each point: class, seed (number of the net, from 0), false_positive_rate,
        sensitivity, threshold. A class without images, or without others, has no curve.
    """

    def curve(positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, ...]:
        hits, alarms, threshold = roc_counts(positive, score)
        bends = (np.diff(hits[1:], 2) != 0) | (np.diff(alarms[1:], 2) != 0)
        kept = np.concatenate([[True, True], bends, [True]])[: len(hits)]
        return alarms[kept] / alarms[-1], hits[kept] / hits[-1], threshold[kept]

    return _points(predictions, curve, ("false_positive_rate", "sensitivity"))


def precision_recall(predictions: "Predictions") -> pd.DataFrame:
    """Precision-recall curves, the lowest threshold first, precision 1 at recall 0 last."""

    def curve(positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, ...]:
        hits, alarms, threshold = (values[1:] for values in roc_counts(positive, score))
        rises = np.diff(hits) != 0
        kept = np.concatenate([[True], rises[:-1] | rises[1:], [True]])[: len(hits)]
        hits, alarms, threshold = (values[kept][::-1] for values in (hits, alarms, threshold))
        recall, precision = hits / hits[0], hits / (hits + alarms)
        return np.append(recall, 0), np.append(precision, 1), np.append(threshold, np.inf)

    return _points(predictions, curve, ("recall", "precision"))


def _points(
    predictions: "Predictions", curve: Callable[..., tuple[np.ndarray, ...]], axes: Sequence[str]
) -> pd.DataFrame:
    """The curve of each class that has both kinds of images, by each net."""
    columns = ["class", "seed", *axes, "threshold"]
    frames = [pd.DataFrame(columns=columns)]
    for label, name in enumerate(predictions.classes):
        positive = predictions.target == label
        if 0 < positive.sum() < len(positive):
            for seed, scores in enumerate(predictions.probability):
                values = (name, seed, *curve(positive, scores[:, label]))
                frames.append(pd.DataFrame(dict(zip(columns, values, strict=True))))
    return pd.concat(frames[1:] or frames, ignore_index=True)


def isic_scores(predictions: "Predictions") -> pd.DataFrame:
    """The table of the ISIC challenges, means over the nets, as isic-challenge-scoring 5.6 has it.

    Returns:
        A row for each class and one called macro_average (over the classes that define a metric):
        accuracy, sensitivity, specificity, dice, ppv, npv at a probability above 0.5 (1 where a
        rate has no images), then auc, auc_sens_80, ap, which are NaN unless both kinds are there.
    """
    truth = predictions.target[:, None] == np.arange(len(predictions.classes))
    called = predictions.probability > 0.5
    hits, alarms, missed, rejected = (
        (side & kind).sum(axis=1) for side in (called, ~called) for kind in (truth, ~truth)
    )
    shares = {
        "accuracy": (hits + rejected, hits + alarms + missed + rejected),
        "sensitivity": (hits, hits + missed),
        "specificity": (rejected, rejected + alarms),
        "dice": (2 * hits, 2 * hits + alarms + missed),
        "ppv": (hits, hits + alarms),
        "npv": (rejected, rejected + missed),
    }
    rates = {name: np.nan_to_num(ratio(*counts), nan=1.0) for name, counts in shares.items()}
    areas = {"auc": area, "auc_sens_80": area_above_sensitivity, "ap": average_precision}
    together = np.zeros(len(truth), dtype=int)
    for name, curve in areas.items():
        rates[name] = np.full(hits.shape, np.nan)
        for label in np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0)):
            for net, score in enumerate(predictions.probability[:, :, label]):
                counts = RocCurve(score, truth[:, label], together, 1).counts(np.ones((1, 1)))
                rates[name][net, label] = curve(*counts).item()
    means = {name: values.mean(axis=0) for name, values in rates.items()}
    table = pd.DataFrame(means, index=pd.Index(predictions.classes, name="class"))
    table.loc["macro_average"] = table.mean()
    return table.reset_index()
