"""Means of a parameter's values with the other parameters held equal, by an additive model."""

import math

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
MIN_FREE = 10  # residual degrees of freedom of a model that is to be believed
MISSING = "(missing)"  # the level of a trial that does not have the parameter
Adjusted = dict[str, tuple[float, float, float]]  # value -> mean, low, high


def additive_means(groups: dict[str, pd.DataFrame], trials: pd.DataFrame) -> dict[str, Adjusted]:
    """Adjusted mean and its interval of each value of each parameter; NaN where the trials cannot tell.

    Source: Searle, Speed and Milliken, Population marginal means in the linear model, 1980.

    Args:
        groups: By parameter its levels (`src.analysis.swept.levels`), indexed by run.
        trials: Indexed by run: result, seed_spread, seeds, and log (whether results are modelled by their logarithm).

    Returns:
        By parameter; empty where two or more parameters differ and the residual degrees of freedom are fewer than ten
        or than what is fitted, unless the grid is balanced.
    """
    if trials.empty or not groups:
        return {}
    y, noise, log = trials["result"].to_numpy(), trials["seed_spread"], bool(trials["log"].all())
    if log:
        y, noise = np.log(y), noise / y
    values = {
        name: group["value"].reindex(trials.index).astype(object).fillna(MISSING) for name, group in groups.items()
    }
    dummies = {name: pd.get_dummies(column, dtype=float) for name, column in values.items()}
    design = np.concatenate([block.to_numpy() for block in dummies.values()], axis=1)
    left, scale, right = np.linalg.svd(design, full_matrices=False)
    rank = int((scale > scale[0] * max(design.shape) * np.finfo(float).eps).sum())
    left, scale, right = left[:, :rank], scale[:rank], right[:rank]
    coefficients = right.T @ (left.T @ y / scale)
    free = float(len(y) - rank)
    if free < max(MIN_FREE, rank) and not _simple(pd.DataFrame(values)):
        return {}  # nearly as many unknowns as trials: the residuals are small whatever the noise is
    variance = ((y - design @ coefficients) ** 2).sum() / max(free, 1)
    if free == 0:  # a trial for each unknown: only the seeds, pooled, tell what is noise
        free, variance = (trials["seeds"] - 1).sum(skipna=False), (noise**2 / trials["seeds"]).mean()
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, free) * math.sqrt(variance) if free > 0 else math.nan
    found: dict[str, Adjusted] = {name: {} for name in dummies}
    end = 0
    for name, block in dummies.items():
        end += block.shape[1]
        has = block.get(MISSING, pd.Series(0, block.index)).to_numpy() == 0
        for at, value in enumerate(block if has.any() else []):
            point = design[has].mean(axis=0)
            point[end - block.shape[1] : end] = np.eye(block.shape[1])[at]
            seen = right @ point
            # a sum of coefficients can be told from the trials if it lies in the space that they span
            known = np.linalg.norm(point - right.T @ seen) < 1e-8 * np.linalg.norm(point)
            half = reach * np.linalg.norm(seen / scale)
            three = point @ coefficients + np.array([0.0, -half, half]) if known else np.full(3, math.nan)
            found[name][str(value)] = tuple(np.exp(three) if log else three)
    return found


def _simple(values: pd.DataFrame) -> bool:
    """Whether one parameter at most differs, or each combination of the values occurs equally often."""
    values = values.loc[:, values.nunique() > 1]
    if values.shape[1] < 2:
        return True
    cells = values.value_counts()
    return len(cells) == math.prod(values.nunique().tolist()) and cells.nunique() == 1
