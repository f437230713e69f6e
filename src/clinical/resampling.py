"""Intervals of statistics that `src.analysis.bootstrap` does not know, by its scheme: lesions drawn, seeds crossed.

A statistic is a function of how often each lesion was drawn. All statistics see the same draws, and with one seed they
are those of `src.analysis.bootstrap.intervals`: figures side by side differ by what they are, not by chance.

Of a share, such as recall, resampling few lesions gives too narrow an interval, and none at all where all or none are
right: it gets the wider of that and the exact one. Of other figures an interval without width is none.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import beta

from src.analysis.bootstrap import CELLS, Predictions, over_seeds, percentile_interval, streams
from src.clinical.settings import Settings

COLUMNS = ["estimate", "low", "high", "interval", "images", "groups", "seeds"]
_SLACK = 1e-9  # what a mean over seeds may be off by


@dataclass(frozen=True)
class Statistics:
    """Some statistics that are computed together; M of them, on N images in G groups by S nets.

    Attributes:
        names: M names.
        bases: For each of them the groups of the images that it rests on, int (up to N,); where several kinds of images
            are averaged or compared, those of the rarest kind (see `rarest`).
        measure: Weights of the groups (G, B), whole numbers -> values (B, S, M); what is undefined is NaN.
        shares: Whether each is a share of its basis, such as sensitivity: those have an exact interval too.
    """

    names: tuple[str, ...]
    bases: tuple[np.ndarray, ...]
    measure: Callable[[np.ndarray], np.ndarray]
    shares: bool = False


def estimates(given: Predictions, wanted: Sequence[Statistics], settings: Settings) -> pd.DataFrame:
    """Estimates with intervals, the mean over the seeds.

    Args:
        given: The predictions.
        wanted: What to compute; names must differ.
        settings: Samples, seed and level.

    Returns:
        A row a statistic, indexed by its name: estimate (NaN unless every seed defines it), low, high, interval
        ("bootstrap"; "exact" where an end is Clopper and Pearson's; "" for none), images and groups that it rests on,
        seeds.
    """
    group_rng, seed_rng = streams(settings.seed, 2)
    weights = _draws(given, settings.samples, group_rng)
    at_once = max(1, CELLS // max(given.groups, len(given.target)))
    chunks = [
        np.concatenate([each.measure(weights[:, start : start + at_once].astype(float)) for each in wanted], axis=2)
        for start in range(0, settings.samples, at_once)
    ]
    values = over_seeds(np.concatenate(chunks), seed_rng)
    points = np.concatenate([measured(given, each) for each in wanted], axis=1).mean(axis=0)
    bases = [basis for each in wanted for basis in each.bases]
    shares = [each.shares for each in wanted for _ in each.names]
    rows = [
        (*interval(values[:, at], points[at], bases[at], settings.level, shares[at]), len(given.probability))
        for at in range(len(points))
    ]
    index = pd.Index([name for each in wanted for name in each.names], name="metric")
    return pd.DataFrame(rows, columns=COLUMNS, index=index)


def measured(given: Predictions, wanted: Statistics) -> np.ndarray:
    """The statistics of each net on all images, float (S, M)."""
    return wanted.measure(np.ones((given.groups, 1)))[0]


def interval(
    values: np.ndarray, estimate: float, basis: np.ndarray, level: float, share: bool
) -> tuple[float, float, float, str, int, int]:
    """One row of `estimates` but for the seeds, from the values on the samples."""
    low, high = percentile_interval(values, estimate, basis, level)
    return float(estimate), *settled(low, high, estimate, basis, level, share), len(basis), len(np.unique(basis))


def settled(
    low: float, high: float, estimate: float, basis: np.ndarray, level: float, share: bool
) -> tuple[float, float, str]:
    """What resampling found, held against what it cannot see: low, high and the kind of interval, as in `estimates`.

    A share gets the wider of this interval and the exact one, end by end; another figure gets none from fewer than two
    groups, and none without width.
    """
    groups = len(np.unique(basis))
    if share and groups and not np.isnan(estimate):
        least, most = exact(estimate, groups, level)
        kind = "bootstrap" if low <= least and high >= most else "exact"
        return float(np.fmin(low, least)), float(np.fmax(high, most)), kind
    if groups < 2 or not high - low > _SLACK:
        return np.nan, np.nan, ""
    return low, high, "bootstrap"


def exact(estimate: float, groups: int, level: float) -> tuple[float, float]:
    """Clopper-Pearson interval of a share, each lesion counted once however many images it has.

    Images of a lesion may be found in part: the number of lesions found is then no whole one.

    Source: Clopper and Pearson, The use of confidence or fiducial limits, Biometrika 26, 1934, by quantiles of beta
    distributions, which are defined between whole numbers too.
    """
    found, tail = estimate * groups, (1 - level) / 2
    low = beta.ppf(tail, found, groups - found + 1) if found > _SLACK else 0.0
    high = beta.ppf(1 - tail, found + 1, groups - found) if found < groups - _SLACK else 1.0
    return float(low), float(high)


def rarest(given: Predictions, kinds: Iterable[np.ndarray]) -> np.ndarray:
    """Groups of the images of the kind with the fewest of them: a figure over several kinds is no surer than that one.

    Args:
        given: The images.
        kinds: Which images are of each kind, bool (N,).
    """
    return min((given.group[kind] for kind in kinds), key=lambda groups: len(np.unique(groups)))


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part` of `whole`, NaN where there is nothing to be a part of."""
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def by_group(given: Predictions, values: np.ndarray) -> np.ndarray:
    """Sums over the images of each group: (N, ...) -> float (G, ...)."""
    table = np.zeros((given.groups, *values.shape[1:]))
    np.add.at(table, given.group, values)
    return table


def mean_recall(given: Predictions, right: np.ndarray, labels: Sequence[int], name: str) -> Statistics:
    """Balanced accuracy: the mean recall over those of the classes that were drawn.

    Args:
        given: The images.
        right: Whether each net recognised an image, bool (S, N).
        labels: Numbers of the classes that count.
        name: What to call it.
    """
    own = given.target[:, None] == np.asarray(list(labels))
    images = by_group(given, own.astype(float))
    hits = by_group(given, (right.T[:, :, None] & own[:, None, :]).astype(float))

    def measure(weights: np.ndarray) -> np.ndarray:
        found = (weights.T @ hits.reshape(given.groups, -1)).reshape(-1, *hits.shape[1:])
        recalls = share(found, (weights.T @ images)[:, None, :])
        defined = ~np.isnan(recalls)
        return share(np.nan_to_num(recalls).sum(axis=2), defined.sum(axis=2))[..., None]

    return Statistics((name,), (rarest(given, own.T[own.any(axis=0)]),), measure)


def _draws(given: Predictions, samples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each group is drawn, (G, samples); the very draws of `src.analysis.bootstrap` with the same numbers."""
    drawn = (rng.integers(given.groups, size=given.groups) for _ in range(samples))
    return np.stack([np.bincount(each, minlength=given.groups).astype(np.uint16) for each in drawn], axis=1)
