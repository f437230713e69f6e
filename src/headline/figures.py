"""Headline figures of a cell: mean over its seeds, with an interval, as texts for a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from src.core.errors import ConfigError
from src.headline.part import NOTHING, Lines
from src.metrics.bootstrap import intervals
from src.metrics.formatting import label, significant
from src.metrics.paired import PairedDifference, paired_difference
from src.metrics.registry import MELANOMA

_HEADS = {"auroc": "AUC", "balanced_accuracy": "balanced accuracy"}
_DIGITS = 7  # of a difference, at most
_NOISE = 1e-7  # of adding up; one image more in 10,000 right moves any measure by more


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: see `src.metrics.bootstrap`."""

    samples: int
    level: float
    seed: int


class ResultEstimate(NamedTuple):
    """A figure and its interval; NaN where undefined."""

    value: float
    low: float
    high: float


UNDEFINED = ResultEstimate(np.nan, np.nan, np.nan)


def measured(
    frames: Sequence[pd.DataFrame], metrics: Sequence[str], how: Bootstrap
) -> dict[str, ResultEstimate]:
    """Means over the seeds with their intervals, by metric as it was asked for.

    Args:
        frames: Test predictions, one a seed.
        metrics: Names; `<measure>/melanoma` is that of the class that is looked for.
        how: Of the intervals.
    """
    own = {metric: recorded(metric, frames[0]) for metric in metrics}
    rows = intervals(
        frames, [name for name in own.values() if name], how.samples, how.seed, how.level
    ).to_dict("records")
    found = {
        row["metric"]: ResultEstimate(row["estimate"], row["low"], row["high"]) for row in rows
    }
    return {metric: found.get(name, UNDEFINED) for metric, name in own.items()}


def difference(
    a: Sequence[pd.DataFrame],
    b: Sequence[pd.DataFrame],
    metric: str,
    how: Bootstrap,
    names: tuple[str, str],
    made_from: bool = False,
) -> PairedDifference:
    """By how much a is better than b, paired by image; missing where the predictions do not give the metric.

    Args:
        a: Test predictions, one a seed.
        b: Those of the other, of the same images.
        metric: As for `measured`.
        how: Of the interval.
        names: What to call them in errors.
        made_from: See `paired_difference`.

    Raises:
        UserError: They are not of the same images; the message names one.
    """
    own = recorded(metric, a[0])
    if not own:
        return PairedDifference(np.nan, np.nan, np.nan, np.nan)
    return paired_difference(a, b, own, how.samples, how.seed, how.level, names, made_from)


def recorded(metric: str, frame: pd.DataFrame) -> str:
    """A metric by the class names of these predictions; empty where they have no such class."""
    measure, _, asked = metric.partition("/")
    if not asked:
        return metric
    classes = [str(column).removeprefix("p/") for column in frame if str(column).startswith("p/")]
    wanted = MELANOMA if asked == "melanoma" else (asked.lower(),)
    return next((f"{measure}/{name}" for name in classes if name.lower() in wanted), "")


def head(metric: str) -> str:
    """What a metric's column is called."""
    measure, _, name = metric.partition("/")
    if name:
        return f"{name} {measure}"
    try:
        return _HEADS.get(metric) or label(f"test/{metric}")
    except ConfigError:
        return metric


def figure(
    found: ResultEstimate, printed: float | None = None, corrected: float | None = None
) -> Lines:
    """A fraction with its interval, what a paper printed, and what it should have printed."""
    told = {"printed": printed, "corrected": corrected}
    beside = tuple(
        f"{word} {value:.4f}".rstrip("0") for word, value in told.items() if value is not None
    )
    if np.isnan(found.value):
        return (*NOTHING, *beside)
    interval = () if np.isnan(found.low) else (f"[{found.low:.3f}, {found.high:.3f}]",)
    return (f"{found.value:.3f}", *interval, *beside)


def change(found: PairedDifference) -> Lines:
    """A difference of fractions, signed, with its interval: with so many digits that none but zero reads as zero."""
    if np.isnan(found.difference):
        return NOTHING
    values = [0.0 if abs(value) < _NOISE else value for value in found[:3]]
    digits = next(
        (n for n in range(3, _DIGITS) if all(value == 0 or round(value, n) for value in values)),
        _DIGITS,
    )
    value, low, high = (f"{value:+.{digits}f}" if value else "0" for value in values)
    return (value, *(() if np.isnan(found.low) else (f"[{low}, {high}]",)))


def verdict(found: PairedDifference) -> str:
    """Whether an interval of a difference, in a metric where more is better, leaves out zero."""
    if np.isnan(found.low):
        return "not defined"
    if found.low > _NOISE:
        return "better"
    return "worse" if found.high < -_NOISE else "within chance"


def size(value: float, printed: float | None = None) -> Lines:
    """A number of parameters."""
    own = NOTHING if np.isnan(value) else (f"{value:,.0f}",)
    return (*own, *([f"printed {printed:,.0f}"] if printed is not None else []))


def operations(value: float, printed: float | None = None) -> Lines:
    """Multiply-adds, in millions."""
    own = NOTHING if np.isnan(value) else (f"{value / 1e6:,.2f}M",)
    return (*own, *([f"printed {printed / 1e6:,.2f}M"] if printed is not None else []))


def times(value: float) -> Lines:
    """A ratio of costs."""
    return NOTHING if np.isnan(value) else (f"{value:.2f}" if value >= 0.1 else significant(value),)
