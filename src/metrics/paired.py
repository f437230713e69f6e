"""Paired difference, McNemar, Holm; what a compression lost."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from src.metrics.bootstrap import (
    Predictions,
    gather,
    measured,
    over_seeds,
    percentile_interval,
    resampled,
    streams,
)
from src.metrics.registry import LOST, MELANOMA


class PairedDifference(NamedTuple):
    """Model a less model b in one metric; NaN where it is undefined."""

    difference: float
    low: float
    high: float
    p_bootstrap: float


class McNemar(NamedTuple):
    """Images that only one of two models gets right, and how likely so uneven a split is by chance."""

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
    """By how much a is better than b, with a percentile interval and a test of no difference.

    Every sample takes the same lesions or patients for both models, and seeds for each model on its
    own, as `src.metrics.bootstrap` does. The p-value is the smallest one at which the percentile
    interval would still leave out zero (Efron & Tibshirani, An Introduction to the Bootstrap, 1993,
    section 15.4), two-sided, with one sample added on either side so that it is never 0: it is at
    least 2 / (samples + 1). Equal predictions give 1. Where fewer than ten or so images are right
    by one model alone, small p-values are too small, up to half in simulations.

    Args:
        a: Predictions of one model, a frame a seed, see `src.metrics.bootstrap.gather`.
        b: Those of the other model, of the same images in any order.
        metric: Name without the split.
        samples: Bootstrap samples.
        seed: Of the random numbers.
        level: Coverage of the interval, in (0, 1).
        names: What to call the models in errors.
        made_from: Each net of one model was made from the net in the same place of the other
            (compressed, say): then the seeds are drawn in pairs too, and what both owe to their
            seed cancels out.

    Raises:
        ValueError: `made_from` with different numbers of nets.
        ConfigError: An unknown metric, `samples` below 1 or `level` outside (0, 1).
        DifferentImages: The images, labels, groups or classes differ; the message names one.
        UserError: As `src.metrics.bootstrap.gather`.
    """
    both = _gathered(a, b, names)
    of_a, of_b = np.split(measured(both, [metric])[:, 0], [len(a)])
    difference = float(of_a.mean() - of_b.mean())
    if made_from and len(a) != len(b):
        raise ValueError(f"{len(a)} nets cannot have been made from {len(b)}")
    group_rng, a_rng, b_rng = streams(seed, 3)
    values = resampled(both, [metric], samples, group_rng)
    first, second = values[:, : len(a)], values[:, len(a) :]
    column = (
        over_seeds(first - second, a_rng)
        if made_from
        else over_seeds(first, a_rng) - over_seeds(second, b_rng)
    )
    column = column[:, 0]
    low, high = percentile_interval(column, difference, both.basis(metric), level)
    return PairedDifference(
        difference, low, high, _p_value(column) if not np.isnan(low) else np.nan
    )


def mcnemar(
    a: Sequence[pd.DataFrame],
    b: Sequence[pd.DataFrame],
    names: tuple[str, str] = ("model a", "model b"),
) -> McNemar:
    """Exact two-sided McNemar test: do a and b get equally many images right?

    Source: McNemar, Note on the sampling error of the difference between correlated proportions or
        percentages,
    Psychometrika 12, 1947; exact as a sign test on the images that only one gets right.

    It is about accuracy, whatever the metric of interest is. It takes images as independent: with
    several images of a lesion or patient it is too sure, and the paired bootstrap is to be
    believed. With several seeds a model's answer is the class with the highest mean probability
    over them, so what is tested is the seeds' ensemble; the spread between seeds is not in the
    p-value.

    Args:
        a: Predictions of one model, a frame a seed.
        b: Those of the other, of the same images in any order.
        names: What to call the models in errors.

    Returns:
        The counts and the p-value, 1 without an image that only one gets right.

    Raises:
        DifferentImages: The images, labels, groups or classes differ; the message names one.
        UserError: As `src.metrics.bootstrap.gather`.
    """
    both = _gathered(a, b, names)
    right_a, right_b = (
        part.mean(axis=0).argmax(axis=1) == both.target
        for part in np.split(both.probability, [len(a)])
    )
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    discordant = only_a + only_b
    return McNemar(
        only_a, only_b, float(binomtest(only_a, discordant).pvalue) if discordant else 1.0
    )


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """P-values adjusted for making several tests: Holm-Bonferroni, step down.

    Rejecting those below 0.05 rejects any true hypothesis with a probability of at most 0.05,
    however the tests depend on each other.
    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of
        Statistics 6, 1979.

    Args:
        p: P-values (N,); a missing one stays missing and does not count as a test.

    Returns:
        Adjusted p-values, float (N,), in the order given, each at most 1.
    """
    given = np.asarray(p, dtype=float)
    adjusted = np.full(given.shape, np.nan)
    order = np.argsort(given, kind="stable")[: int((~np.isnan(given)).sum())]  # NaN sorts last
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(given[order] * factors), 1.0)
    return adjusted


def _gathered(
    a: Sequence[pd.DataFrame], b: Sequence[pd.DataFrame], names: tuple[str, str]
) -> Predictions:
    """Both models' predictions of the same images, those of `a` first."""
    if not a or not b:
        return gather([], names)  # says that there is nothing
    return gather([*a, *b], [*_titles(names[0], len(a)), *_titles(names[1], len(b))])


def _titles(name: str, seeds: int) -> list[str]:
    return [name] if seeds == 1 else [f"{name}, seed {number}" for number in range(1, seeds + 1)]


def _p_value(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    return min(2 * (int(tail) + 1) / (len(defined) + 1), 1.0)


def degradation(
    origin: Sequence[pd.DataFrame], compressed: Sequence[pd.DataFrame]
) -> dict[str, float]:
    """By how much the origin is better, with its 95% interval by lesion or patient (and by seed).

    Args:
        origin: Predictions of the origins, a frame a seed.
        compressed: Those of the nets that were made from them, in the same order, of the same
            images.

    Returns:
        `compression/lost/<metric>`, and the same with `/low` and `/high`, for accuracy, balanced
        accuracy and the melanoma class's recall; positive: the compressed net is worse. Without a
        class called so, there is none.
    """
    classes = [str(name).removeprefix("p/") for name in origin[0] if str(name).startswith("p/")]
    looked_for = next((name for name in classes if name.lower() in MELANOMA), None)
    metrics = ["accuracy", "balanced_accuracy", *([f"recall/{looked_for}"] if looked_for else [])]
    found: dict[str, float] = {}
    for metric in metrics:
        names = ("the origin", "the compressed net")
        value, low, high, _ = paired_difference(
            origin, compressed, metric, names=names, made_from=True
        )
        found |= {
            f"{LOST}/{metric}": value,
            f"{LOST}/{metric}/low": low,
            f"{LOST}/{metric}/high": high,
        }
    return found
