"""Paired comparison of two models: bootstrap difference, McNemar test, Holm's correction."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from src.metrics import bootstrap
from src.metrics.registry import LOST, default_quality_metrics


class PairedDifference(NamedTuple):
    """Metric of model a minus that of model b; NaN where it is undefined."""

    difference: float
    low: float
    high: float
    p_bootstrap: float


class McNemar(NamedTuple):
    """Images that only one of two models gets right, and the p-value of so uneven a split."""

    only_a: int
    only_b: int
    p: float


def paired_difference(
    a: Sequence[pd.DataFrame],
    b: Sequence[pd.DataFrame],
    metric: str,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    names: tuple[str, str] = ("model a", "model b"),
    made_from: bool = False,
) -> PairedDifference:
    """Difference of two models in a metric, with a percentile interval and a test of no difference.

    Every sample draws the same lesions or patients for both models. The seeds of each model add
    an error of their own, see `src.metrics.bootstrap.over_seeds`. The two-sided p-value is the
    smallest level at which the interval excludes zero (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, section 15.4), with one sample added on either side: it is at least
    2 / (samples + 1). Equal predictions give 1. Where one model alone is right on fewer than about
    ten images, small p-values are too small, by up to half in simulations. With n lesions that the
    models decide differently no test can give less than 2^(1 - n), the sign test's value: the
    p-value is not smaller, and with so few lesions the interval has zero in it. If no draw changes
    the difference, as of nets that decide alike, its ends are as far off as those of the exact
    interval of 0 of n lesions: for F1 and precision the lesions of the class, for means over
    classes those of each class.

    The models have a frame of predictions for each seed, see `src.metrics.bootstrap.gather`, of
    the same images in any order. The metric is named without the split; `names` are those of the
    models in errors. `made_from`: each net of one model was made from the net in the same position
    of the other, such as a compressed one. The error is that of the paired differences then.

    Raises:
        ValueError: `made_from` with different numbers of nets.
        ConfigError: An unknown metric, `samples` below 1 or `level` outside (0, 1).
        UserError: As `src.metrics.bootstrap.gather`.
    """
    both = _gather_both(a, b, names)
    statistics = bootstrap.metric_statistics(both, [metric])
    of_a, of_b = np.split(bootstrap.evaluate(both, statistics)[:, 0], [len(a)])
    difference = float(of_a.mean() - of_b.mean())
    if made_from and len(a) != len(b):
        raise ValueError(f"{len(a)} nets cannot have been made from {len(b)}")
    group_rng, a_rng, b_rng = bootstrap.streams(seed, 3)
    values = bootstrap.resample(both, [statistics], samples, group_rng)
    first, second = np.split(values, [len(a)], axis=1)
    if made_from:
        of_nets = (of_a - of_b)[:, None]
        differences = bootstrap.over_seeds(first - second, of_nets, a_rng, difference=True)[:, 0]
    else:
        means = bootstrap.over_seeds(first, of_a[:, None], a_rng)
        differences = (means - bootstrap.over_seeds(second, of_b[:, None], b_rng))[:, 0]
    low, high = bootstrap.percentile_interval(differences, difference, both.basis(metric), level)
    if np.isnan(low):
        return PairedDifference(difference, low, high, np.nan)
    nets_a, nets_b = np.split(both.probability, [len(a)])
    if low == high and not np.array_equal(nets_a, nets_b):
        measure, _, of_class = metric.partition("/")
        shares = [f"recall/{name}" for name in ([of_class] if of_class else both.classes)]
        shares = [metric] if measure in ("accuracy", "recall", "specificity") else shares
        sizes = (len(np.unique(both.basis(share))) for share in shares)
        _, reach = bootstrap.exact_mean([(0.0, groups) for groups in sizes if groups], level)
        low, high = max(low - reach, -1.0), min(high + reach, 1.0)
    decided = both.predicted[..., None] == np.arange(len(both.classes))
    shares_a, shares_b = (nets.mean(axis=0) for nets in np.split(decided, [len(a)]))
    differing = both.group[~np.isclose(shares_a, shares_b).all(axis=1)]
    differing = both.group if metric == "auroc" else differing
    least = 2.0 ** (1 - len(np.intersect1d(differing, both.basis(metric))))
    if least > 1 - level:
        low, high = min(low, 0.0), max(high, 0.0)
    defined = differences[~np.isnan(differences)]
    tail = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    p = max(2 * (tail + 1) / (len(defined) + 1), least)
    return PairedDifference(difference, low, high, min(p, 1.0))


def mcnemar(
    a: pd.DataFrame, b: pd.DataFrame, names: tuple[str, str] = ("model a", "model b")
) -> McNemar:
    """Exact two-sided McNemar test: do the nets a and b get equally many images right?

    It tests accuracy, whatever the metric of interest is, and takes images as independent: with
    several images of a lesion or patient its p-value is too small; use the paired bootstrap. It
    compares two nets and says nothing of other seeds: pooled over seeds it rejects 25 to 68% of
    true hypotheses at 0.05. The p-value is 1 without a discordant image. Errors are those of
    `paired_difference`.

    Source: McNemar, Note on the sampling error of the difference between correlated proportions or
        percentages, Psychometrika 12, 1947; exact as a sign test on the discordant images.
    """
    from scipy.stats import binomtest  # takes half a second to import

    both = _gather_both([a], [b], names)
    right_a, right_b = both.predicted == both.target
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    discordant = only_a + only_b
    p = float(binomtest(only_a, discordant).pvalue) if discordant else 1.0
    return McNemar(only_a, only_b, p)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """P-values (N,) adjusted for several tests by the Holm-Bonferroni step-down procedure.

    Rejecting those below 0.05 rejects any true hypothesis with a probability of at most 0.05,
    however the tests depend on each other. A NaN stays NaN and does not count as a test.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of
        Statistics 6, 1979.
    """
    values = np.asarray(p, dtype=float)
    adjusted = np.full(values.shape, np.nan)
    order = np.argsort(values, kind="stable")[: int((~np.isnan(values)).sum())]  # NaN sorts last
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return adjusted


def degradation(
    origin: Sequence[pd.DataFrame], compressed: Sequence[pd.DataFrame]
) -> dict[str, float]:
    """What a compression lost, with 95% intervals by lesion or patient (and by seed).

    `compressed` are predictions of the nets that were made from those of `origin`, in the same
    order, of the same images.

    Returns:
        `compression/lost/<metric>`, the same with `/low` and `/high`, for the default quality
        metrics; positive: the compressed net is worse.
    """
    names = ("the origin", "the compressed net")
    metrics = default_quality_metrics(_gather_both(origin, compressed, names).classes)
    lost: dict[str, float] = {}
    for metric in metrics:
        gap = paired_difference(origin, compressed, metric, names=names, made_from=True)
        key = f"{LOST}/{metric}"
        lost |= {key: gap.difference, f"{key}/low": gap.low, f"{key}/high": gap.high}
    return lost


def _gather_both(
    a: Sequence[pd.DataFrame], b: Sequence[pd.DataFrame], names: tuple[str, str]
) -> bootstrap.Predictions:
    """Both models' predictions of the same images, those of `a` first."""
    titles = [
        name if len(frames) == 1 else f"{name}, seed {number}"
        for name, frames in zip(names, (a, b), strict=True)
        for number in range(1, len(frames) + 1)
    ]
    return bootstrap.gather([*a, *b] if a and b else [], titles)
