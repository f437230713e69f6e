"""Statistics of the ROC and precision-recall curves of one class against the rest, on many resamplings at once.

An image counts as positive from the threshold on, so equal scores are decided alike; in areas under the ROC curve ties
count half.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_array

from src.analysis.bootstrap import Predictions
from src.clinical.resampling import Statistics, rarest, share

SENSITIVITY = 0.80  # from which on the ISIC challenges' partial areas count
_SLACK = 1e-9  # 0.07 * 100 is more than 7 for a computer

Curve = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Ranking:
    """Images of one class and the others, counted by distinct score and group; the highest score first.

    Neighbouring scores that only others have are counted as one: every statistic here is exact without what lies
    between them, and a rare class is left with few rows.

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
    precision = np.nan_to_num(share(hits[1:], hits[1:] + alarms[1:]))  # a score that was not drawn adds nothing
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


def area_above_sensitivity(hits: np.ndarray, alarms: np.ndarray, sensitivity: float = SENSITIVITY) -> np.ndarray:
    """Area under the part of the ROC curve from `sensitivity` on, down to the axis, in [0, 1]; (B,).

    As isic-challenge-scoring computes `auc_sens_80`; the challenges of 2018 and 2019 list it.
    """
    recall, alarm = share(hits, hits[-1]), share(alarms, alarms[-1])
    first = (recall < sensitivity).sum(axis=0)  # the first point at or above it; never the start, which is 0
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
    rankings = [Ranking(score[:, label], own, given.group, given.groups) for score in given.probability]

    def measure(weights: np.ndarray) -> np.ndarray:
        found = []
        for ranking in rankings:
            hits, alarms = ranking.counts(weights)
            found.append(np.stack([curve(hits, alarms) for curve in curves.values()], axis=1))
        return np.stack(found, axis=1)

    # of two kinds: however many there are of the one, the other decides how sure an order of them is
    return Statistics(tuple(f"{each}/{name}" for each in curves), (rarest(given, (own, ~own)),) * len(curves), measure)


def fixed(values: Sequence[float]) -> dict[str, Curve]:
    """Sensitivity at each of these specificities, and specificity at each as a sensitivity, by record names."""
    return {f"sensitivity_at_spec{_per_cent(value)}": sensitivity_at(value) for value in values} | {
        f"specificity_at_sens{_per_cent(value)}": specificity_at(value) for value in values
    }


def _per_cent(value: float) -> str:
    return f"{100 * value:.4g}"


def _at(values: np.ndarray, row: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, row[None], axis=0)[0]
