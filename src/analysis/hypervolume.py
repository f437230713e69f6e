"""Hypervolume: how much of the space of possible losses a front dominates, as one number.

All losses are scaled (see `src.analysis.scale`): 0 is the best seen in an objective, 1 the worst. The reference point
is 1.1 in every objective, so that the ends of a front count too; the volume is divided by what a point at 0 everywhere
would have, 1.1 to the power of the number of objectives, and lies in [0, 1] for losses that are not below 0.

Source: Zitzler and Thiele, Multiobjective optimization using evolutionary algorithms, PPSN V, 1998; the reference point
as in Ishibuchi et al., How to specify a reference point in hypervolume calculation, Evolutionary Computation 26, 2018.
"""

import moocore
import numpy as np

REFERENCE = 1.1


def hypervolume(losses: np.ndarray) -> float:
    """The share of the volume below the reference point that `losses` dominate.

    Args:
        losses: Scaled losses, (N, M); a row with a value that is missing or not finite adds nothing.
    """
    points = _inside(losses)
    return float(moocore.hypervolume(points, ref=REFERENCE) / REFERENCE ** points.shape[1]) if len(points) else 0.0


def contributions(losses: np.ndarray) -> np.ndarray:
    """What the hypervolume of the front would lose without each point.

    Dominated points and points that another equals contribute 0: without one of them nothing is lost.

    Args:
        losses: Scaled losses, (N, M).

    Returns:
        Shares as in `hypervolume`, float (N,); rows with a value that is missing or not finite have 0.
    """
    table = np.asarray(losses, dtype=float)
    found = np.zeros(len(table))
    inside = _is_inside(table)
    if inside.any():
        columns = table.shape[1]
        points = table[inside]
        if columns == 1:  # moocore wants two: one that is the same for all, a unit away from the reference
            points = np.column_stack([points, np.full(len(points), REFERENCE - 1)])
        found[inside] = moocore.hv_contributions(points, ref=REFERENCE) / REFERENCE**columns
    return found


def over_time(losses: np.ndarray) -> np.ndarray:
    """The hypervolume after each trial.

    A point that is new on the front adds its box up to the reference point less what the front has of that box, which
    is the hypervolume of the front's points moved into it (the "limit set" of While et al., A fast way of calculating
    exact hypervolumes, IEEE Transactions on Evolutionary Computation 16, 2012, section III).

    Args:
        losses: Scaled losses in the order in which the trials ended, (N, M); a row with a value that is missing or not
            finite adds nothing.

    Returns:
        Shares as in `hypervolume`, float (N,), never falling.
    """
    table = np.asarray(losses, dtype=float)
    columns = table.shape[1]
    gains = np.zeros(len(table))
    members = np.empty((columns, 0))  # a row an objective: many short rows would take numpy several times as long
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
        # one member that is as good as the point in this objective stands for all that it now dominates: cheap, and on
        # a long front hardly any others are left
        touching = np.flatnonzero(moved[at] == point[at])
        if len(touching):
            nearest = moved[:, touching[moved[:, touching].sum(axis=0).argmin()], None]
            moved = np.hstack([moved[:, (moved < nearest).any(axis=0)], nearest])
    return float(moocore.hypervolume(moocore.filter_dominated(moved.T), ref=REFERENCE)) if moved.size else 0.0


def _is_inside(losses: np.ndarray) -> np.ndarray:
    """Rows that dominate the reference point; the others add nothing."""
    return (np.isfinite(losses) & (losses < REFERENCE)).all(axis=1)


def _inside(losses: np.ndarray) -> np.ndarray:
    table = np.asarray(losses, dtype=float)
    return table[_is_inside(table)]
