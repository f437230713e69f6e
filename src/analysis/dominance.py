"""Pareto dominance."""

import numpy as np

from src.objectives import Objective


def front(values: np.ndarray, objectives: list[Objective]) -> np.ndarray:
    """Which rows no other row beats.

    A row dominates another if it is at least as good in every objective and better in one, so equal rows stand on the
    front together. A row with a missing value is never on it and beats nobody.

    Args:
        values: One row a run, one column an objective, (N, M); NaN where a run has no value.
        objectives: M objectives; their directions say which way is better.

    Returns:
        Membership, bool (N,).
    """
    signs = np.array([-1.0 if objective.direction == "maximize" else 1.0 for objective in objectives])
    losses = np.asarray(values, dtype=float).reshape(-1, len(objectives)) * signs
    known = ~np.isnan(losses).any(axis=1)
    no_worse = (losses[:, None, :] <= losses[None, :, :]).all(axis=2)
    better = (losses[:, None, :] < losses[None, :, :]).any(axis=2)
    dominated = (no_worse & better & known[:, None]).any(axis=0)
    return known & ~dominated
