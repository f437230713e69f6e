"""Pareto dominance, and the order it puts between points: non-dominated rank and crowding distance."""

from collections.abc import Sequence

import moocore
import numpy as np

from src.objectives import Objective


def front(values: np.ndarray, objectives: Sequence[Objective]) -> np.ndarray:
    """Which rows no other row beats.

    A row dominates another if it is at least as good in every objective and better in one, so equal rows stand on the
    front together. A row with a missing value is never on it and beats nobody.

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

    Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, 2002, section III-A.

    Args:
        values: One row a run, one column an objective, (N, M); NaN where a run has no value.
        objectives: M objectives; their directions say which way is better.

    Returns:
        Rank of each row, int (N,). Rows with a missing value share the rank behind the last, 1 if there is no other.
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

    For each objective, the distance between the neighbours on both sides as a fraction of the objective's range,
    summed; a point at either end of an objective has an infinite one. An objective in which all are equal tells
    nothing. Of rows that share an end the first has the infinite distance at the low end, the last at the high one.

    Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, 2002, section III-B.

    Args:
        values: Points of one rank, one column an objective, (N, M); no NaN. Directions do not matter.

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
    signs = np.array([-1.0 if objective.direction == "maximize" else 1.0 for objective in objectives])
    return np.asarray(values, dtype=float).reshape(-1, len(objectives)) * signs


def _places(losses: np.ndarray) -> np.ndarray:
    """Each value as its place among those of its column, 0 for the least, equal ones alike; float (N, M).

    Dominance is a matter of order alone, and moocore 0.3.2 crashes on infinite values.
    """
    places = [np.unique(column, return_inverse=True)[1] for column in losses.T]
    return np.array(places, dtype=float).T.reshape(losses.shape)


def _known(losses: np.ndarray) -> np.ndarray:
    return ~np.isnan(losses).any(axis=1)
