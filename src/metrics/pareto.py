"""Front, rank, crowding, hypervolume, knee, scaling."""

from collections.abc import Sequence
from dataclasses import dataclass

import moocore
import numpy as np

from src.metrics.formatting import is_cost, quantity
from src.metrics.registry import Objective, describe


def front(values: np.ndarray, objectives: Sequence[Objective]) -> np.ndarray:
    """Which rows no other row beats.

    A row dominates another if it is at least as good in every objective and better in one, so equal
    rows stand on the front together. A row with a missing value is never on it and beats nobody.

    Args:
        values: One row a run, one column an objective, (N, M); NaN where a run has no value.
        objectives: M objectives; their directions say which way is better.

    Returns:
        Membership, bool (N,).
    """
    losses = as_losses(values, objectives)
    on_front = _known(losses)
    on_front[on_front] = moocore.is_nondominated(_places(losses[on_front]), keep_weakly=True)
    return on_front


def ranks(values: np.ndarray, objectives: Sequence[Objective]) -> np.ndarray:
    """Non-dominated rank: 0 is the front, 1 the front of what is left without it, and so on.

    Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, 2002, section
        III-A.

    Args:
        values: One row a run, one column an objective, (N, M); NaN where a run has no value.
        objectives: M objectives; their directions say which way is better.

    Returns:
        Rank of each row, int (N,). Rows with a missing value share the rank behind the last, 1 if
        there is no other.
    """
    losses = as_losses(values, objectives)
    known = _known(losses)
    rank = np.ones(len(losses), dtype=int)
    if known.any():
        rank[known] = moocore.pareto_rank(_places(losses[known]))
        rank[~known] = rank[known].max() + 1
    return rank


def crowding(values: np.ndarray) -> np.ndarray:
    """Crowding distance: how much room a point has among its neighbours; more is rarer.

    For each objective, the distance between the neighbours on both sides as a fraction of the
    objective's range, summed; a point at either end of an objective has an infinite one. An
    objective in which all are equal tells nothing. Of rows that share an end the first has the
    infinite distance at the low end, the last at the high one.

    Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, 2002, section
        III-B.

    Args:
        values: Points of one rank, one column an objective, (N, M); no NaN. Directions do not
            matter.

    Returns:
        Distances, float (N,), each in [0, M] or infinite.
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


def as_losses(values: np.ndarray, objectives: Sequence[Objective]) -> np.ndarray:
    """`values` as a float table (N, M) in which less is better in every column."""
    signs = np.array(
        [-1.0 if objective.direction == "maximize" else 1.0 for objective in objectives]
    )
    return np.asarray(values, dtype=float).reshape(-1, len(objectives)) * signs


def _places(losses: np.ndarray) -> np.ndarray:
    """Each value as its place among those of its column, 0 for the least, equal ones alike; float (N, M).

    Dominance is a matter of order alone, and moocore 0.3.2 crashes on infinite values.
    """
    places = [np.unique(column, return_inverse=True)[1] for column in losses.T]
    return np.array(places, dtype=float).T.reshape(losses.shape)


def _known(losses: np.ndarray) -> np.ndarray:
    return ~np.isnan(losses).any(axis=1)


REFERENCE = 1.1


def hypervolume(losses: np.ndarray) -> float:
    """The share of the volume below the reference point that `losses` dominate.

    Args:
        losses: Scaled losses, (N, M); a row with a value that is missing or not finite adds
            nothing.
    """
    points = _inside(losses)
    return (
        float(moocore.hypervolume(points, ref=REFERENCE) / REFERENCE ** points.shape[1])
        if len(points)
        else 0.0
    )


def contributions(losses: np.ndarray) -> np.ndarray:
    """What the hypervolume of the front would lose without each point.

    Dominated points and points that another equals contribute 0: without one of them nothing is
    lost.

    Args:
        losses: Scaled losses, (N, M).

    Returns:
        Shares as in `hypervolume`, float (N,); rows with a value that is missing or not finite have
        0.
    """
    table = np.asarray(losses, dtype=float)
    found = np.zeros(len(table))
    inside = _is_inside(table)
    if inside.any():
        columns = table.shape[1]
        points = table[inside]
        if (
            columns == 1
        ):  # moocore wants two: one that is the same for all, a unit away from the reference
            points = np.column_stack([points, np.full(len(points), REFERENCE - 1)])
        found[inside] = moocore.hv_contributions(points, ref=REFERENCE) / REFERENCE**columns
    return found


def over_time(losses: np.ndarray) -> np.ndarray:
    """The hypervolume after each trial.

    A point that is new on the front adds its box up to the reference point less what the front has
    of that box, which is the hypervolume of the front's points moved into it (the "limit set" of
    While et al., A fast way of calculating exact hypervolumes, IEEE Transactions on Evolutionary
    Computation 16, 2012, section III).

    Args:
        losses: Scaled losses in the order in which the trials ended, (N, M); a row with a value
            that is missing or not finite adds nothing.

    Returns:
        Shares as in `hypervolume`, float (N,), never falling.
    """
    table = np.asarray(losses, dtype=float)
    columns = table.shape[1]
    gains = np.zeros(len(table))
    members = np.empty(
        (columns, 0)
    )  # a row an objective: many short rows would take numpy several times as long
    for number in np.flatnonzero(_is_inside(table)):
        point = table[number, :, None]
        if (members <= point).all(axis=0).any():
            continue
        gains[number] = max(0.0, float(np.prod(REFERENCE - point)) - _taken(members, point))
        members = np.hstack([members[:, (members < point).any(axis=0)], point])
    return np.cumsum(gains) / REFERENCE**columns


def _taken(members: np.ndarray, point: np.ndarray) -> float:
    """The part of the box between `point` (M, 1) and the reference that the members (M, K) of a front dominate."""
    moved = np.maximum(members, point)
    for at in range(len(point)):
        # one member that is as good as the point in this objective stands for all that it now
        # dominates: cheap, and on a long front hardly any others are left
        touching = np.flatnonzero(moved[at] == point[at])
        if len(touching):
            nearest = moved[:, touching[moved[:, touching].sum(axis=0).argmin()], None]
            moved = np.hstack([moved[:, (moved < nearest).any(axis=0)], nearest])
    return (
        float(moocore.hypervolume(moocore.filter_dominated(moved.T), ref=REFERENCE))
        if moved.size
        else 0.0
    )


def _is_inside(losses: np.ndarray) -> np.ndarray:
    """Rows that dominate the reference point; the others add nothing."""
    return (np.isfinite(losses) & (losses < REFERENCE)).all(axis=1)


def _inside(losses: np.ndarray) -> np.ndarray:
    table = np.asarray(losses, dtype=float)
    return table[_is_inside(table)]


_FLAT = 1e-9  # of the front's range: what is nearer to the plane lies on it


def knee(losses: np.ndarray) -> tuple[int | None, str]:
    """The point of a front that lies farthest from the plane through its ends, on the side of the ideal.

    The plane goes through the best point of each objective (of equal ones the best in the rest);
    with two objectives it is the chord between the two ends. Losses are first scaled to the front's
    own range, 0 to 1 in each objective; an objective in which the front is constant is left out.
    Fewer than three different points, or none on the side of the ideal, have no knee. Where there
    is no such plane (with three or more objectives: one point is best in two of them, or the plane
    is so steep that a worse value would bring a point nearer to the ideal), the point that is
    closest to the ideal is taken, the ideal being the best of every objective at once.

    Source: Das, On characterizing the "knee" of the Pareto curve based on normal-boundary
        intersection, Structural
    Optimization 18, 1999.

    Args:
        losses: The members of one front, (K, M), less is better; no NaN.

    Returns:
        Row of the knee, the first of equal ones, or None; and in words how it was found or why
        there is none.
    """
    points = np.asarray(losses, dtype=float)
    different = len(np.unique(points, axis=0))
    if different < 3:
        return None, f"No knee: it takes three different points, and the front has {different}."
    low, high = points.min(axis=0), points.max(axis=0)
    varying = high > low
    scaled = (points[:, varying] - low[varying]) / (high - low)[varying]
    distances = _distances(scaled)
    if distances is None:
        # rounded, so that equal distances are equal on every machine
        closest = int(np.round(np.linalg.norm(scaled, axis=1), 12).argmin())
        return closest, (
            "Knee: the point closest to the ideal, for no plane that slopes the right way goes through the best points "
            f"of the {scaled.shape[1]} objectives."
        )
    at = int(np.round(distances, 12).argmax())
    plane = (
        "chord between the ends"
        if scaled.shape[1] == 2
        else "plane through the best point of each objective"
    )
    if distances[at] <= _FLAT:
        return None, f"No knee: no point of the front lies nearer to the ideal than the {plane}."
    share = f"{distances[at]:.2f}" if distances[at] >= 0.005 else f"{distances[at]:.1g}"
    return (
        at,
        f"Knee: the point farthest from the {plane}, {share} of the front's range towards the ideal (Das 1999).",
    )


def _distances(points: np.ndarray) -> np.ndarray | None:
    """Distance of each point (K, M), in [0, 1], to the plane through the ends; above 0 on the side of the ideal.

    None if the ends span no plane, or one whose normal does not point away from the ideal in every
    objective.
    """
    # the sum of the rest decides between equal ones
    ends = np.array([points[np.lexsort((points.sum(axis=1), column))[0]] for column in points.T])
    if np.linalg.matrix_rank(ends, tol=1e-8) < len(ends):
        return None
    normal = np.linalg.solve(ends, np.ones(len(ends)))  # the plane: all p with p . normal = 1
    if (normal <= 0).any():
        return None
    return (1 - points @ normal) / float(np.linalg.norm(normal))


LOG_SPAN = 10.0  # costs that span at least this factor are compared by their logarithm


@dataclass(frozen=True)
class Scale:
    """How objective values become losses in [0, 1], the same way for every study that is measured with it.

    Attributes:
        objectives: M objectives; their directions say which way is better.
        best: The best value seen of each; NaN where no value was seen.
        worst: The worst value seen of each; NaN where no value was seen.
        logarithmic: Whether the objective is measured by its log10: costs above zero that span a
            factor of ten.
    """

    objectives: tuple[Objective, ...]
    best: tuple[float, ...]
    worst: tuple[float, ...]
    logarithmic: tuple[bool, ...]

    @classmethod
    def fit(cls, values: np.ndarray, objectives: Sequence[Objective]) -> "Scale":
        """The scale that spans `values`; fit it on several studies together for figures that compare.

        Args:
            values: One row a run, one column an objective, (N, M); NaN and infinity are not seen.
            objectives: M objectives.
        """
        losses = as_losses(values, objectives)
        best, worst, logarithmic = [], [], []
        for objective, column in zip(objectives, losses.T, strict=True):
            seen = column[np.isfinite(column)]
            ends = np.array([[seen.min()], [seen.max()]]) if len(seen) else np.full((2, 1), np.nan)
            first, last = as_losses(ends, [objective]).ravel()  # the sign turned back: values again
            low, high = min(first, last), max(first, last)
            best.append(float(first))
            worst.append(float(last))
            logarithmic.append(
                bool(is_cost(objective.metric) and low > 0 and high >= LOG_SPAN * low)
            )
        return cls(tuple(objectives), tuple(best), tuple(worst), tuple(logarithmic))

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Losses of `values`, float (N, M).

        0 is the best value that was fitted, 1 the worst; a value that was not fitted may lie
        outside. NaN stays NaN. An objective whose fitted values are all equal tells nothing: 0.

        Args:
            values: One row a run, one column an objective, (N, M).
        """
        table = np.asarray(values, dtype=float).reshape(-1, len(self.objectives))
        losses = np.empty_like(table)
        for at, (best, worst, logarithmic) in enumerate(
            zip(self.best, self.worst, self.logarithmic, strict=True)
        ):
            column = table[:, at]
            if best == worst or np.isnan(best):
                losses[:, at] = np.where(np.isnan(column), np.nan, 0.0)
                continue
            with np.errstate(
                divide="ignore", invalid="ignore"
            ):  # what has no logarithm is no measurement: NaN, -inf
                column, ends = (
                    np.log10(part) if logarithmic else part
                    for part in (column, np.array([best, worst]))
                )
            losses[:, at] = (column - ends[0]) / (ends[1] - ends[0])
        return losses

    def describe(self) -> list[str]:
        """One sentence an objective: its range with unit, which end is 0, and whether it is measured by its log10."""
        return [
            _sentence(*parts)
            for parts in zip(self.objectives, self.best, self.worst, self.logarithmic, strict=True)
        ]


def _sentence(objective: Objective, best: float, worst: float, logarithmic: bool) -> str:
    metric = describe(objective.metric)
    better = "more" if objective.direction == "maximize" else "less"
    head = f"{metric.axis}, {better} is better:"
    if np.isnan(best):
        return f"{head} no run has a value."
    if best == worst:
        return f"{head} {quantity(metric.name, best)} in all runs, which counts as 0."
    low, high = quantity(metric.name, best, worst), quantity(metric.name, worst, best)
    measure = "log10" if logarithmic else "the value itself"
    return f"{head} 0 is {low}, the best seen, 1 is {high}, the worst; between them by {measure}."
