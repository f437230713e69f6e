"""ROC, PR, pAUC, ISIC challenge metrics."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from src.metrics.bootstrap import Predictions, Statistics, mean_recall, rarest, share

ROC_COLUMNS = ["class", "seed", "false_positive_rate", "sensitivity", "threshold"]
PRECISION_RECALL_COLUMNS = ["class", "seed", "recall", "precision", "threshold"]


def roc(given: Predictions) -> pd.DataFrame:
    """ROC curves, the strictest threshold (infinity) first; points on a straight line are left out.

    Args:
        given: The predictions; a class without images, or without others, has no curve.

    Returns:
        A row a point: class, seed (number of the net, from 0), false_positive_rate, sensitivity,
        threshold.
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
            found += [
                (name, seed, own, score[:, label]) for seed, score in enumerate(given.probability)
            ]
    return found


def _frame(
    name: str, seed: int, x: np.ndarray, y: np.ndarray, threshold: np.ndarray, columns: list[str]
) -> pd.DataFrame:
    values = (np.full(len(x), name, dtype=object), np.full(len(x), seed), x, y, threshold)
    return pd.DataFrame(dict(zip(columns, values, strict=True)))


def _joined(frames: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


SENSITIVITY = 0.80  # from which on the ISIC challenges' partial areas count
_SLACK = 1e-9  # 0.07 * 100 is more than 7 for a computer
Curve = Callable[[np.ndarray, np.ndarray], np.ndarray]


class RocCurve:
    """Images of one class and the others, counted by distinct score and group; the highest score first.

    Neighbouring scores that only others have are counted as one: every statistic here is exact
    without what lies between them, and a rare class is left with few rows.

    Args:
        score: float (N,).
        own: Whether an image is of the class, bool (N,).
        group: int (N,) in [0, `groups`).
        groups: Number of groups, G.
    """

    def __init__(self, score: np.ndarray, own: np.ndarray, group: np.ndarray, groups: int) -> None:
        _, rank = np.unique(-score, return_inverse=True)
        inhabited = np.bincount(rank, own) > 0
        opens = inhabited.copy()
        opens[1:] |= inhabited[:-1]
        opens[:1] = True
        rank = (np.cumsum(opens) - 1)[rank]
        shape = (int(opens.sum()), groups)
        self._own = csr_array((own.astype(float), (rank, group)), shape=shape)
        self._others = csr_array(((~own).astype(float), (rank, group)), shape=shape)

    def counts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """True and false positives from the strictest threshold, which nothing passes, to the one that all pass.

        Args:
            weights: Of the groups, (G, B).

        Returns:
            Two arrays (T + 1, B) for T scores, or ranges of scores that only others have.
        """
        start = np.zeros((1, weights.shape[1]))
        hits, alarms = (np.cumsum(table @ weights, axis=0) for table in (self._own, self._others))
        return np.concatenate([start, hits]), np.concatenate([start, alarms])


def area(hits: np.ndarray, alarms: np.ndarray) -> np.ndarray:
    """Area under the ROC curve; counts (T + 1, B) as `Ranking.counts` gives them -> (B,); NaN without both kinds."""
    steps = np.diff(alarms, axis=0) * (hits[1:] + hits[:-1]) / 2
    return share(steps.sum(axis=0), hits[-1] * alarms[-1])


def average_precision(hits: np.ndarray, alarms: np.ndarray) -> np.ndarray:
    """Precision averaged over recall, without interpolation, as scikit-learn has it; (B,), NaN without the class."""
    precision = np.nan_to_num(
        share(hits[1:], hits[1:] + alarms[1:])
    )  # a score that was not drawn adds nothing
    return share((np.diff(hits, axis=0) * precision).sum(axis=0), hits[-1])


def pauc(hits: np.ndarray, alarms: np.ndarray, sensitivity: float = SENSITIVITY) -> np.ndarray:
    """Area between the ROC curve and the line at `sensitivity`, in [0, 1 - sensitivity]; (B,).

    The metric of the ISIC 2024 challenge (SLICE-3D), for 0.8: 0.2 is perfect, chance has 0.02.
    """
    recall, alarm = share(hits, hits[-1]), share(alarms, alarms[-1])
    above = np.maximum(recall - sensitivity, 0)
    # a segment that crosses the line counts from where it does
    rise, part = np.diff(recall, axis=0), np.diff(above, axis=0)
    crossing = (recall[:-1] < sensitivity) & (above[1:] > 0)
    width = np.diff(alarm, axis=0) * np.where(
        crossing, np.divide(part, rise, out=np.ones_like(rise), where=rise > 0), 1
    )
    return (width * (above[1:] + above[:-1]) / 2).sum(axis=0)


def area_above_sensitivity(
    hits: np.ndarray, alarms: np.ndarray, sensitivity: float = SENSITIVITY
) -> np.ndarray:
    """Area under the part of the ROC curve from `sensitivity` on, down to the axis, in [0, 1]; (B,).

    As isic-challenge-scoring computes `auc_sens_80`; the challenges of 2018 and 2019 list it.
    """
    recall, alarm = share(hits, hits[-1]), share(alarms, alarms[-1])
    first = (recall < sensitivity).sum(
        axis=0
    )  # the first point at or above it; never the start, which is 0
    first = np.minimum(first, len(recall) - 1)
    low, high = (_at(recall, row) for row in (first - 1, first))
    along = share(sensitivity - low, high - low)
    start = _at(alarm, first - 1) + along * (_at(alarm, first) - _at(alarm, first - 1))
    return pauc(hits, alarms, sensitivity) + sensitivity * (1 - start)


def sensitivity_at(specificity: float) -> Curve:
    """The best sensitivity among thresholds with at least this specificity, without interpolation."""

    def read(hits: np.ndarray, alarms: np.ndarray) -> np.ndarray:
        allowed = alarms <= (1 - specificity) * alarms[-1] + _SLACK
        best = np.where(allowed, hits, 0).max(axis=0)
        return np.where(alarms[-1] > 0, share(best, hits[-1]), np.nan)

    return read


def specificity_at(sensitivity: float) -> Curve:
    """The best specificity among thresholds with at least this sensitivity, without interpolation."""

    def read(hits: np.ndarray, alarms: np.ndarray) -> np.ndarray:
        enough = hits >= sensitivity * hits[-1] - _SLACK
        fewest = np.where(enough, alarms, alarms[-1]).min(axis=0)
        return np.where(hits[-1] > 0, 1 - share(fewest, alarms[-1]), np.nan)

    return read


CURVES: dict[str, Curve] = {
    "auroc": area,
    "average_precision": average_precision,
    "auroc_above_80_sensitivity": area_above_sensitivity,
    "pauc_80": pauc,
}


def statistics(given: Predictions, name: str, curves: dict[str, Curve]) -> Statistics:
    """Statistics of one class's curves, by each net, named `<statistic>/<class>`."""
    label = given.classes.index(name)
    own = given.target == label
    rankings = [
        RocCurve(score[:, label], own, given.group, given.groups) for score in given.probability
    ]

    def measure(weights: np.ndarray) -> np.ndarray:
        found = []
        for ranking in rankings:
            hits, alarms = ranking.counts(weights)
            found.append(np.stack([curve(hits, alarms) for curve in curves.values()], axis=1))
        return np.stack(found, axis=1)

    # of two kinds: however many there are of the one, the other decides how sure an order of them
    # is
    return Statistics(
        tuple(f"{each}/{name}" for each in curves),
        (rarest(given, (own, ~own)),) * len(curves),
        measure,
    )


def fixed(values: Sequence[float]) -> dict[str, Curve]:
    """Sensitivity at each of these specificities, and specificity at each as a sensitivity, by record names."""
    return {f"sensitivity_at_spec{_per_cent(value)}": sensitivity_at(value) for value in values} | {
        f"specificity_at_sens{_per_cent(value)}": specificity_at(value) for value in values
    }


def _per_cent(value: float) -> str:
    return f"{100 * value:.4g}"


def _at(values: np.ndarray, row: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, row[None], axis=0)[0]


BALANCED_ACCURACY = "isic_balanced_accuracy"
BINARY = ("accuracy", "sensitivity", "specificity", "dice", "ppv", "npv")
# by the names that the package gives them
AREAS = {"auc": area, "auc_sens_80": area_above_sensitivity, "ap": average_precision}


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
    (rejected, alarms), (missed, hits) = confusion_matrix(
        own, score > 0.5, labels=[False, True]
    ).tolist()
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
        A row a class and one called macro_average (over the classes that define a metric):
        accuracy, sensitivity, specificity, dice, ppv, npv, auc, auc_sens_80, ap. What needs images
        of both kinds is NaN without them.
    """
    each = np.mean([_of_net(given, probability) for probability in given.probability], axis=0)
    table = pd.DataFrame(
        each, index=pd.Index(given.classes, name="class"), columns=[*BINARY, *AREAS]
    )
    table.loc["macro_average"] = table.mean()
    return table.reset_index()


def _of_net(given: Predictions, probability: np.ndarray) -> np.ndarray:
    rows = []
    for label in range(len(given.classes)):
        own, score = given.target == label, probability[:, label]
        ranking = RocCurve(score, own, np.zeros(len(own), dtype=int), 1)
        counts = ranking.counts(np.ones((1, 1)))
        areas = [
            curve(*counts).item() if 0 < own.sum() < len(own) else np.nan
            for curve in AREAS.values()
        ]
        rows.append([*binary(score, own).values(), *areas])
    return np.array(rows)


def _or_one(part: float, whole: float) -> float:
    return part / whole if whole else 1.0
