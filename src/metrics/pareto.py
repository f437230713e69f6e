"""The Pareto front: non-dominated ranks, crowding, hypervolume, knee, scaling of objectives."""

from collections.abc import Sequence
from dataclasses import dataclass

import moocore
import numpy as np

from src.metrics.formatting import is_cost, quantity
from src.metrics.registry import Objective, describe

REFERENCE = 1.1  # of the hypervolume, in each scaled loss
LOG_SPAN = 10.0  # costs that span at least this factor are compared by their logarithm
_FLAT = 1e-9  # points closer to the plane of `knee` lie on it


def as_losses(values: np.ndarray, objectives: Sequence[Objective]) -> np.ndarray:
    """`values` as a float table (N, M) in which less is better in every column."""
    signs = [-1.0 if objective.direction == "maximize" else 1.0 for objective in objectives]
    return np.asarray(values, dtype=float).reshape(-1, len(objectives)) * np.array(signs)


def front(values: np.ndarray, objectives: Sequence[Objective]) -> np.ndarray:
    """Which rows are not dominated by another row.

    A row dominates another if it is at least as good in every objective and better in one; equal
    rows are on the front together. A row with a missing value is never on it and dominates none.

    Args:
        values: A row for each run, a column for each objective, (N, M); NaN without a value.
        objectives: M objectives.

    Returns:
        Membership, bool (N,).
    """
    losses = as_losses(values, objectives)
    members: np.ndarray = ~np.isnan(losses).any(axis=1)
    members[members] = moocore.is_nondominated(_orders(losses[members]), keep_weakly=True)
    return members


def ranks(values: np.ndarray, objectives: Sequence[Objective]) -> np.ndarray:
    """Non-dominated rank: 0 is the front, 1 the front of the others, and so on.

    Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, 2002, section
        III-A.

    Args:
        values: As for `front`.
        objectives: M objectives.

    Returns:
        Ranks, int (N,). Rows with a missing value have the rank after the last, 1 if there is none.
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

    Args:
        values: Points of one rank, (N, M), no NaN; directions do not matter.

    Returns:
        Sums over the objectives, float (N,), each in [0, M] or infinite.
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
    """The share of the volume below the reference point that `losses` dominate.

    Args:
        losses: Scaled losses, (N, M); rows with a missing or infinite value add nothing.
    """
    points = np.asarray(losses, dtype=float)
    points = points[_below_reference(points)]
    if not len(points):
        return 0.0
    return float(moocore.hypervolume(points, ref=REFERENCE) / REFERENCE ** points.shape[1])


def contributions(losses: np.ndarray) -> np.ndarray:
    """What the hypervolume would lose without each point; 0 for dominated and repeated points.

    Args:
        losses: Scaled losses, (N, M).

    Returns:
        Shares as in `hypervolume`, float (N,).
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
    """The hypervolume after each trial.

    A new point of the front adds its box up to the reference point minus the part of the box that
    the front dominates, which is the hypervolume of the front's points moved into the box (the
    "limit set" of While et al., A fast way of calculating exact hypervolumes, IEEE Transactions on
    Evolutionary Computation 16, 2012, section III).

    Args:
        losses: Scaled losses in the order in which the trials ended, (N, M).

    Returns:
        Shares as in `hypervolume`, float (N,), never falling.
    """
    table = np.asarray(losses, dtype=float)
    columns = table.shape[1]
    gains = np.zeros(len(table))
    # A row for each objective: numpy is several times slower on many short rows.
    members = np.empty((columns, 0))
    for number in np.flatnonzero(_below_reference(table)):
        point = table[number, :, None]
        if (members <= point).all(axis=0).any():
            continue
        gains[number] = max(0.0, float(np.prod(REFERENCE - point)) - _dominated(members, point))
        members = np.hstack([members[:, (members < point).any(axis=0)], point])
    return np.cumsum(gains) / REFERENCE**columns


def _dominated(members: np.ndarray, point: np.ndarray) -> float:
    """Share of the box from `point` (M, 1) to the reference that a front (M, K) dominates."""
    moved = np.maximum(members, point)
    for at in range(len(point)):
        # Of the members that are as good as the point in this objective the best replaces all that
        # it dominates: cheap, and few are left of a long front.
        touching = np.flatnonzero(moved[at] == point[at])
        if len(touching):
            nearest = moved[:, touching[moved[:, touching].sum(axis=0).argmin()], None]
            moved = np.hstack([moved[:, (moved < nearest).any(axis=0)], nearest])
    if not moved.size:
        return 0.0
    return float(moocore.hypervolume(moocore.filter_dominated(moved.T), ref=REFERENCE))


def _below_reference(losses: np.ndarray) -> np.ndarray:
    return (np.isfinite(losses) & (losses < REFERENCE)).all(axis=1)


def knee(losses: np.ndarray) -> tuple[int | None, str]:
    """The point of a front farthest from the plane through its ends, towards the ideal.

    The plane goes through the best point of each objective (of equal ones the best in the rest);
    with two objectives it is the chord. Losses are first scaled to the front's range; constant
    objectives are left out. Where there is no such plane (three or more objectives: one point is
    best in two of them, or the plane's normal does not point away from the ideal), the point
    closest to the ideal, the best of every objective, is taken.

    Source: Das, On characterizing the "knee" of the Pareto curve based on normal-boundary
        intersection, Structural Optimization 18, 1999.

    Args:
        losses: The members of one front, (K, M), less is better; no NaN.

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
    share = f"{distances[at]:.2f}" if distances[at] >= 0.005 else f"{distances[at]:.1g}"
    distance = f"{share} of the front's range towards the ideal (Das 1999)"
    return at, f"Knee: the point farthest from the {plane}, {distance}."


@dataclass(frozen=True)
class Scale:
    """Maps objective values to losses in [0, 1], in the same way for all studies compared.

    Attributes:
        objectives: M objectives.
        best: The best value of each; NaN without a value.
        worst: The worst value of each; NaN without a value.
        logarithmic: Whether the objective is scaled by its log10: positive costs that span a factor
            of ten.
    """

    objectives: tuple[Objective, ...]
    best: tuple[float, ...]
    worst: tuple[float, ...]
    logarithmic: tuple[bool, ...]

    @classmethod
    def fit(cls, values: np.ndarray, objectives: Sequence[Objective]) -> "Scale":
        """The scale that spans `values`; fit it on several studies together to compare them.

        Args:
            values: A row for each run, a column for each objective, (N, M); NaN and infinity are
                ignored.
            objectives: M objectives.
        """
        losses = as_losses(values, objectives)
        best, worst, logarithmic = [], [], []
        for objective, column in zip(objectives, losses.T, strict=True):
            finite = column[np.isfinite(column)]
            sign = -1.0 if objective.direction == "maximize" else 1.0
            ends = (sign * finite.min(), sign * finite.max()) if len(finite) else (np.nan, np.nan)
            best.append(float(ends[0]))
            worst.append(float(ends[1]))
            spans = min(ends) > 0 and max(ends) >= LOG_SPAN * min(ends)
            logarithmic.append(bool(is_cost(objective.metric) and spans))
        return cls(tuple(objectives), tuple(best), tuple(worst), tuple(logarithmic))

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Losses of `values` (N, M), float (N, M).

        0 is the best fitted value, 1 the worst; other values may lie outside. NaN stays NaN. An
        objective whose fitted values are all equal becomes 0.
        """
        table = np.asarray(values, dtype=float).reshape(-1, len(self.objectives))
        losses = np.empty_like(table)
        for at, ends in enumerate(zip(self.best, self.worst, strict=True)):
            column, (best, worst) = table[:, at], ends
            if best == worst or np.isnan(best):
                losses[:, at] = np.where(np.isnan(column), np.nan, 0.0)
                continue
            if self.logarithmic[at]:
                with np.errstate(divide="ignore", invalid="ignore"):  # -inf and NaN are kept
                    column, best, worst = np.log10(column), np.log10(best), np.log10(worst)
            losses[:, at] = (column - best) / (worst - best)
        return losses

    def describe(self) -> list[str]:
        """For each objective: its range with unit, which end is 0, and whether log10 is used."""
        lines = []
        rows = zip(self.objectives, self.best, self.worst, self.logarithmic, strict=True)
        for objective, best, worst, logarithmic in rows:
            name, better = objective.metric, "less"
            better = "more" if objective.direction == "maximize" else better
            head = f"{describe(name).axis}, {better} is better:"
            if np.isnan(best):
                lines.append(f"{head} no run has a value.")
            elif best == worst:
                lines.append(f"{head} {quantity(name, best)} in all runs, which counts as 0.")
            else:
                low, high = quantity(name, best, worst), quantity(name, worst, best)
                by = "log10" if logarithmic else "linear"
                lines.append(f"{head} 0 is {low} (best), 1 is {high} (worst); {by}.")
        return lines
