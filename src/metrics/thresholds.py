"""Operating points of the class looked for: thresholds are chosen on validation, applied to test.

An image is positive from the threshold on. Each net (seed) has a threshold of its own. Intervals
take the thresholds as fixed: they are for these thresholds on other lesions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from src.metrics.bootstrap import Predictions, Statistics, by_group, estimates, evaluate
from src.metrics.registry import ratio
from src.metrics.settings import AuditSettings

MEASURES = ("sensitivity", "specificity", "ppv", "npv")
ARGMAX = "argmax"
_ROUNDING = 1e-9  # 0.07 * 100 is more than 7 in floating point


@dataclass(frozen=True)
class TargetRate:
    """The rate that a threshold must reach on validation.

    Attributes:
        measure: "sensitivity": take the highest threshold that reaches it; "specificity": the
            lowest one.
        least: The rate, in (0, 1).
    """

    measure: Literal["sensitivity", "specificity"]
    least: float

    def __str__(self) -> str:
        return f"{self.measure} >= {self.least:g}"


@dataclass(frozen=True)
class Threshold:
    """A threshold and its rates where it was chosen.

    Attributes:
        value: Positive from this score on; infinity: nothing is positive; NaN: no threshold can be
            chosen.
        sensitivity: In [0, 1].
        specificity: In [0, 1].
        problem: Why it is of no use, or empty.
    """

    value: float
    sensitivity: float
    specificity: float
    problem: str = ""


def choose(score: np.ndarray, positive: np.ndarray, target: TargetRate) -> Threshold:
    """The best threshold that reaches a target rate; of equally good ones the highest.

    Args:
        score: float (N,).
        positive: Whether an image is of the class, bool (N,).
        target: The rate to reach.

    Returns:
        One of the scores, or infinity; NaN if the images are all of one kind.
    """
    if not 0 < positive.sum() < len(positive):
        missing = "others" if len(positive) and positive.all() else "the class"
        return Threshold(np.nan, np.nan, np.nan, f"validation has no images of {missing}")
    # The highest threshold first, from infinity: positive and other images from each of them on.
    values, position = np.unique(-score, return_inverse=True)
    values = -np.append(-np.inf, values)
    hits, alarms = (
        np.append(0, np.cumsum(np.bincount(position, kind, len(values) - 1)))
        for kind in (positive, ~positive)
    )
    recall, alarm = hits / hits[-1], alarms / alarms[-1]
    rejected = alarms[-1] - alarms
    if target.measure == "sensitivity":
        at = int(np.argmax(hits >= target.least * positive.sum() - _ROUNDING))
    else:
        enough = rejected >= target.least * (~positive).sum() - _ROUNDING
        at = int(np.argmax(np.where(enough, hits, -1.0)))
    problem = ""
    if recall[at] == 0:
        problem = "only a threshold that no image passes"
    elif recall[at] == alarm[at] == 1:
        problem = "only a threshold that every image passes"
    return Threshold(float(values[at]), float(recall[at]), float(1 - alarm[at]), problem)


def choose_each(val: Predictions, class_name: str, target: TargetRate) -> list[Threshold]:
    """The threshold of each net for a class."""
    label = val.classes.index(class_name)
    scores = val.probability[:, :, label].astype(float)
    return [choose(score, val.target == label, target) for score in scores]


def usable_thresholds(
    val: Predictions | None, class_name: str, settings: AuditSettings
) -> list[Threshold] | None:
    """The thresholds for sensitivity; None without validation, or if one of them has a problem."""
    if val is None:
        return None
    chosen = choose_each(val, class_name, TargetRate("sensitivity", settings.sensitivity))
    return None if any(threshold.problem for threshold in chosen) else chosen


def decide(
    predictions: Predictions, class_name: str, thresholds: Sequence[Threshold] | None
) -> np.ndarray:
    """Which images are positive, bool (S, N): by the threshold, or by the most probable class."""
    label = predictions.classes.index(class_name)
    if thresholds is None:
        by_argmax: np.ndarray = predictions.probability.argmax(axis=2) == label
        return by_argmax
    values = np.array([threshold.value for threshold in thresholds])
    return predictions.probability[:, :, label].astype(float) >= values[:, None]


def rates(
    predictions: Predictions, class_name: str, decisions: np.ndarray, usable: bool = True
) -> Statistics:
    """Sensitivity, specificity and predictive values of decisions.

    Args:
        predictions: The images.
        class_name: The class looked for.
        decisions: Of each net, bool (S, N).
        usable: False where no threshold could be chosen: all rates are undefined then.
    """
    positive = predictions.target == predictions.classes.index(class_name)
    kinds = (
        positive & decisions,
        ~positive & decisions,
        positive & ~decisions,
        ~positive & ~decisions,
    )
    table = by_group(predictions, np.stack(kinds, axis=2).transpose(1, 0, 2).astype(float))
    seeds = len(decisions)

    def measure(weights: np.ndarray) -> np.ndarray:
        counts = (weights.T @ table.reshape(predictions.groups, -1)).reshape(-1, seeds, 4)
        hits, alarms, missed, rejected = np.moveaxis(counts, 2, 0)
        values = [
            ratio(hits, hits + missed),
            ratio(rejected, rejected + alarms),
            ratio(hits, hits + alarms),
            ratio(rejected, rejected + missed),
        ]
        return np.stack(values, axis=2) if usable else np.full((*hits.shape, 4), np.nan)

    rows = (positive, ~positive, decisions.any(axis=0), (~decisions).any(axis=0))
    bases = tuple(predictions.group[images] for images in rows)
    return Statistics(MEASURES, bases, measure, shares=True)


def points(
    test: Predictions, val: Predictions | None, class_name: str, settings: AuditSettings
) -> pd.DataFrame:
    """Rates by the most probable class and by the thresholds chosen on validation.

    Args:
        test: Where they are applied.
        val: Where they are chosen, by the same nets; None: only the most probable class is used.
        class_name: The class looked for.
        settings: Target rates, samples, seed and level.

    Returns:
        A row for each rule and measure: rule ("argmax" or the target rate), threshold (one for each
        net, as text), measure, val (the rate on validation), then the rate on test as `estimates`
        returns it, and problem.
    """
    rules: list[TargetRate | None] = [None]
    if val is not None:
        rules.append(TargetRate("sensitivity", settings.sensitivity))
        rules.append(TargetRate("specificity", settings.specificity))
    tables = []
    for rule in rules:
        thresholds = None if rule is None or val is None else choose_each(val, class_name, rule)
        usable = not any(np.isnan(threshold.value) for threshold in thresholds or ())
        on_val = np.full(len(MEASURES), np.nan)
        if val is not None and usable:
            decisions = decide(val, class_name, thresholds)
            on_val = evaluate(val, rates(val, class_name, decisions)).mean(axis=0)
        statistics = rates(test, class_name, decide(test, class_name, thresholds), usable)
        table = estimates(test, [statistics], settings).rename_axis("measure").reset_index()
        values = " ".join(f"{threshold.value:.4g}" for threshold in thresholds or ())
        table.insert(0, "rule", ARGMAX if rule is None else str(rule))
        table.insert(1, "threshold", values)
        table.insert(3, "val", on_val)
        problems = {threshold.problem for threshold in thresholds or () if threshold.problem}
        tables.append(table.assign(problem="; ".join(sorted(problems))))
    return pd.concat(tables, ignore_index=True)
