"""The Pareto front: non-dominated ranks, crowding, hypervolume, knee, scaling of objectives."""

from collections.abc import Sequence
from dataclasses import dataclass

import moocore
import numpy as np

from src.metrics.formatting import is_cost
from src.metrics.registry import Objective

REFERENCE = 1.1  # of the hypervolume, in each scaled loss
LOG_SPAN = 10.0  # costs that span at least this factor are compared by their logarithm
_FLAT = 1e-9  # points closer to the plane of `knee` lie on it


def _table(values: np.ndarray, objectives: Sequence[Objective]) -> np.ndarray:
    return np.asarray(values, dtype=float).reshape(-1, len(objectives))


def as_losses(values: np.ndarray, objectives: Sequence[Objective]) -> np.ndarray:
    """`values` as a float table (N, M) in which less is better in every column."""
    signs = [-1.0 if objective.direction == "maximize" else 1.0 for objective in objectives]
    return _table(values, objectives) * np.array(signs)


def front(values: np.ndarray, objectives: Sequence[Objective]) -> np.ndarray:
    """Which rows of `values`, (N, M), are not dominated by another row, bool (N,).

    A row dominates another if it is at least as good in every objective and better in one; equal
    rows are on the front together. A row with a missing value is never on it and dominates none.
    """
    losses = as_losses(values, objectives)
    members: np.ndarray = ~np.isnan(losses).any(axis=1)
    members[members] = moocore.is_nondominated(_orders(losses[members]), keep_weakly=True)
    return members


def ranks(values: np.ndarray, objectives: Sequence[Objective]) -> np.ndarray:
    """Non-dominated rank, int (N,): 0 is the front, 1 the front of the others, and so on.

    Rows with a missing value have the rank after the last, 1 if there is none.

    Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, 2002, section
        III-A.
    """
    losses = as_losses(values, objectives)
    complete = ~np.isnan(losses).any(axis=1)
    rank = np.ones(len(losses), dtype=int)
    if complete.any():
        rank[complete] = moocore.pareto_rank(_orders(losses[complete]))
        rank[~complete] = rank[complete].max() + 1
    return rank


def _orders(losses: np.ndarray) -> np.ndarray:
    """The position of each value among those of its column; moocore 0.3.2 crashes on infinity."""
    orders = [np.unique(column, return_inverse=True)[1] for column in losses.T]
    return np.array(orders, dtype=float).T.reshape(losses.shape)


def crowding(values: np.ndarray) -> np.ndarray:
    """Crowding distance: for each objective, the distance of the neighbours relative to its range.

    A point at either end of an objective has an infinite distance: of equal rows the first at the
    low end, the last at the high one. A constant objective counts nothing.

    Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, 2002, section
        III-B.

    Returns:
        Sums over the objectives, in [0, M] or infinite, float (N,), of points of one rank, (N, M),
        without NaN.
    """
    points = np.asarray(values, dtype=float)
    distances = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]] if len(order) else 0.0
        if span == 0:
            continue
        distances[order[[0, -1]]] = np.inf
        if np.isfinite(span):
            distances[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distances


def hypervolume(losses: np.ndarray) -> float:
    """The share of the volume below the reference point that scaled losses (N, M) dominate.

    Rows with a missing or infinite value add nothing.
    """
    points = np.asarray(losses, dtype=float)
    points = points[_below_reference(points)]
    if not len(points):
        return 0.0
    return float(moocore.hypervolume(points, ref=REFERENCE) / REFERENCE ** points.shape[1])


def contributions(losses: np.ndarray) -> np.ndarray:
    """What the hypervolume would lose without each point; 0 for dominated and repeated points.

    Scaled losses (N, M) -> shares as in `hypervolume`, float (N,).
    """
    table = np.asarray(losses, dtype=float)
    shares = np.zeros(len(table))
    below = _below_reference(table)
    if below.any():
        points = table[below]
        if points.shape[1] == 1:  # moocore needs two: add one at a unit from the reference
            points = np.column_stack([points, np.full(len(points), REFERENCE - 1)])
        volumes = moocore.hv_contributions(points, ref=REFERENCE)
        shares[below] = volumes / REFERENCE ** table.shape[1]
    return shares


def over_time(losses: np.ndarray) -> np.ndarray:
    """The hypervolume after each trial, for scaled losses (N, M) in the order of their ends."""
    table = np.asarray(losses, dtype=float)
    volumes = np.zeros(len(table))
    members = table[:0]  # of the front so far: the others add nothing, and are many
    for number in np.flatnonzero(_below_reference(table)):
        point = table[number]
        if not (members <= point).all(axis=1).any():
            members = np.vstack([members[(members < point).any(axis=1)], point])
            volumes[number] = hypervolume(members)
    return np.maximum.accumulate(volumes)


def _below_reference(losses: np.ndarray) -> np.ndarray:
    return (np.isfinite(losses) & (losses < REFERENCE)).all(axis=1)


def knee(losses: np.ndarray) -> tuple[int | None, str]:
    """The point of a front farthest from the plane through its ends, towards the ideal.

    The plane goes through the best point of each objective (of equal ones the best in the rest);
    with two objectives it is the chord. Losses (K, M), without NaN, are first scaled to the front's
    range; constant objectives are left out. Where there is no such plane (three or more objectives:
    one point is best in two of them, or the plane's normal does not point away from the ideal), the
    point closest to the ideal, the best of every objective, is taken.

    Source: Das, On characterizing the "knee" of the Pareto curve based on normal-boundary
        intersection, Structural Optimization 18, 1999.

    Returns:
        Row of the knee, the first of equal ones, or None; and how it was found or why there is
        none: fewer than three different points, or none on the side of the ideal.
    """
    points = np.asarray(losses, dtype=float)
    different = len(np.unique(points, axis=0))
    if different < 3:
        return None, f"No knee: it takes three different points, and the front has {different}."
    low, high = points.min(axis=0), points.max(axis=0)
    varying = high > low
    points = (points[:, varying] - low[varying]) / (high - low)[varying]
    objectives = points.shape[1]
    # The sum of the other losses decides between equal ends.
    ends = np.array([points[np.lexsort((points.sum(axis=1), column))[0]] for column in points.T])
    normal = np.zeros(objectives)
    if np.linalg.matrix_rank(ends, tol=1e-8) == objectives:
        normal = np.linalg.solve(ends, np.ones(objectives))  # the plane: all p with p . normal = 1
    # Distances are rounded, so that equal ones are equal on every machine.
    if (normal <= 0).any():
        closest = int(np.round(np.linalg.norm(points, axis=1), 12).argmin())
        reason = f"no plane goes through the best points of the {objectives} objectives"
        return closest, f"Knee: the point closest to the ideal; {reason}."
    distances = (1 - points @ normal) / float(np.linalg.norm(normal))
    at = int(np.round(distances, 12).argmax())
    plane = "plane through the best point of each objective"
    plane = "chord between the ends" if objectives == 2 else plane
    if distances[at] <= _FLAT:
        return None, f"No knee: no point of the front lies nearer to the ideal than the {plane}."
    share = format(distances[at], ".2f" if distances[at] >= 0.005 else ".1g")
    distance = f"{share} of the front's range towards the ideal (Das 1999)"
    return at, f"Knee: the point farthest from the {plane}, {distance}."


@dataclass(frozen=True)
class Scale:
    """Maps objective values to losses in [0, 1], in the same way for all studies compared.

    `best` and `worst` values are NaN for an objective without a value. Positive costs that span a
    factor of ten are `logarithmic`: scaled by their log10.
    """

    objectives: tuple[Objective, ...]
    best: tuple[float, ...]
    worst: tuple[float, ...]
    logarithmic: tuple[bool, ...]

    @classmethod
    def fit(cls, values: np.ndarray, objectives: Sequence[Objective]) -> "Scale":
        """The scale that spans `values`, (N, M); NaN and infinity are ignored.

        Fit it on several studies together to compare them.
        """
        rows = []
        for objective, column in zip(objectives, _table(values, objectives).T, strict=True):
            finite = column[np.isfinite(column)]
            low, high = (finite.min(), finite.max()) if len(finite) else (np.nan, np.nan)
            spans = bool(is_cost(objective.metric) and low > 0 and high >= LOG_SPAN * low)
            ends = (high, low) if objective.direction == "maximize" else (low, high)
            rows.append((float(ends[0]), float(ends[1]), spans))
        best, worst, logarithmic = zip(*rows, strict=True)
        return cls(tuple(objectives), best, worst, logarithmic)

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Losses of `values` (N, M), float (N, M): 0 is the best fitted value, 1 the worst.

        Other values may lie outside. NaN stays NaN. An objective whose fitted values are all equal
        becomes 0.
        """
        losses = _table(values, self.objectives).copy()
        ranges = zip(losses.T, self.best, self.worst, self.logarithmic, strict=True)
        for column, best, worst, logarithmic in ranges:  # columns are views of the losses
            if best == worst or np.isnan(best):
                column[~np.isnan(column)] = 0.0
                continue
            if logarithmic:
                with np.errstate(divide="ignore", invalid="ignore"):  # -inf and NaN are kept
                    np.log10(column, out=column)
                best, worst = np.log10(best), np.log10(worst)
            column[:] = (column - best) / (worst - best)
        return losses
