"""The knee of a front: where giving up a little more of one objective stops paying in the others."""

import numpy as np

_FLAT = 1e-9  # of the front's range: what is nearer to the plane lies on it


def knee(losses: np.ndarray) -> tuple[int | None, str]:
    """The point of a front that lies farthest from the plane through its ends, on the side of the ideal.

    The plane goes through the best point of each objective (of equal ones the best in the rest); with two objectives it
    is the chord between the two ends. Losses are first scaled to the front's own range, 0 to 1 in each objective; an
    objective in which the front is constant is left out. Fewer than three different points, or none on the side of the
    ideal, have no knee. Where there is no such plane (with three or more objectives: one point is best in two of them,
    or the plane is so steep that a worse value would bring a point nearer to the ideal), the point that is closest to
    the ideal is taken, the ideal being the best of every objective at once.

    Source: Das, On characterizing the "knee" of the Pareto curve based on normal-boundary intersection, Structural
    Optimization 18, 1999.

    Args:
        losses: The members of one front, (K, M), less is better; no NaN.

    Returns:
        Row of the knee, the first of equal ones, or None; and in words how it was found or why there is none.
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
    plane = "chord between the ends" if scaled.shape[1] == 2 else "plane through the best point of each objective"
    if distances[at] <= _FLAT:
        return None, f"No knee: no point of the front lies nearer to the ideal than the {plane}."
    share = f"{distances[at]:.2f}" if distances[at] >= 0.005 else f"{distances[at]:.1g}"
    return at, f"Knee: the point farthest from the {plane}, {share} of the front's range towards the ideal (Das 1999)."


def _distances(points: np.ndarray) -> np.ndarray | None:
    """Distance of each point (K, M), in [0, 1], to the plane through the ends; above 0 on the side of the ideal.

    None if the ends span no plane, or one whose normal does not point away from the ideal in every objective.
    """
    # the sum of the rest decides between equal ones
    ends = np.array([points[np.lexsort((points.sum(axis=1), column))[0]] for column in points.T])
    if np.linalg.matrix_rank(ends, tol=1e-8) < len(ends):
        return None
    normal = np.linalg.solve(ends, np.ones(len(ends)))  # the plane: all p with p . normal = 1
    if (normal <= 0).any():
        return None
    return (1 - points @ normal) / float(np.linalg.norm(normal))
