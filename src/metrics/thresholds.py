"""Operating points of the class looked for: thresholds are chosen on validation, applied to test.

An image is positive from the threshold on. Each net (seed) has a threshold of its own. Intervals
take the thresholds as fixed: they are for these thresholds on other lesions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.special import ndtri

from src.metrics.bootstrap import ARGMAX, Predictions, Statistics, estimates, evaluate
from src.metrics.curves import roc_counts
from src.metrics.registry import ratio
from src.metrics.settings import AuditSettings

MEASURES = ("sensitivity", "specificity", "ppv", "npv")
NAMES: Mapping[str, str] = {name: name for name in MEASURES}
_ROUNDING = 1e-9  # 0.07 * 100 is more than 7 in floating point


@dataclass(frozen=True)
class TargetRate:
    """The rate `least`, in (0, 1), that a threshold must reach on validation.

    Of "sensitivity" the highest threshold that reaches it is taken, of "specificity" the lowest.
    """

    measure: Literal["sensitivity", "specificity"]
    least: float

    def __str__(self) -> str:
        return f"{self.measure} >= {self.least:g}"


@dataclass(frozen=True)
class Threshold:
    """A threshold that was chosen on validation.

    Positive is what scores at least `value`; infinity: nothing is; NaN: no threshold can be chosen.
    `problem` says why it is of no use, or is empty.
    """

    value: float
    problem: str = ""


def choose(score: np.ndarray, positive: np.ndarray, target: TargetRate) -> Threshold:
    """The best threshold for scores (N,) that reaches a rate; of equally good ones the highest.

    It is one of the scores, or infinity; NaN if `positive`, bool (N,), has images of one kind only.
    """
    if not 0 < positive.sum() < len(positive):
        missing = "others" if len(positive) and positive.all() else "the class"
        return Threshold(np.nan, f"validation has no images of {missing}")
    hits, alarms, values = roc_counts(positive, score)
    if target.measure == "sensitivity":
        at = int(np.argmax(hits >= target.least * positive.sum() - _ROUNDING))
    else:
        enough = alarms[-1] - alarms >= target.least * (~positive).sum() - _ROUNDING
        at = int(np.argmax(np.where(enough, hits, -1.0)))
    problem = ""
    if hits[at] == 0:
        problem = "only a threshold that no image passes"
    elif hits[at] + alarms[at] == len(positive):
        problem = "only a threshold that every image passes"
    return Threshold(float(values[at]), problem)


def rule_text(rule: str) -> str:
    """How a `rule` of `points` calls images positive, for a sentence."""
    how = "threshold chosen for" if ">=" in rule else "decision rule"
    return "the most probable class" if rule == ARGMAX else f"the {how} {rule}"


def lesions_to_settle(share: float, lesions: int, goal: float, level: float = 0.95) -> float:
    """How many more lesions put `goal` outside Wilson's interval, if the share remains.

    Wilson's interval of n lesions contains what differs from the share by at most
    z sqrt(goal (1 - goal) / n). 0: the lesions are enough, and an interval that is still undecided
    is wide for another reason, such as seeds that differ. Infinity for a share equal to the goal;
    NaN for an unknown share.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, Journal of
        the American Statistical Association 22, 1927.
    """
    if share == goal:
        return np.inf
    needed = (ndtri((1 + level) / 2) / (share - goal)) ** 2 * goal * (1 - goal)
    return float(max(np.floor(needed) + 1 - lesions, 0.0))


def choose_per_net(val: Predictions, class_name: str, target: TargetRate) -> list[Threshold]:
    """The threshold of each net for a class."""
    label = val.classes.index(class_name)
    scores = val.probability[:, :, label].astype(float)
    return [choose(score, val.target == label, target) for score in scores]


def rates(
    predictions: Predictions,
    class_name: str,
    thresholds: Sequence[Threshold] | None = None,
    names: Mapping[str, str] = NAMES,
) -> Statistics:
    """Sensitivity, specificity and predictive values of a class, or those of them in `names`.

    An image is positive by the thresholds, one for each net, or by the predicted class. The rates
    are undefined if a threshold is NaN. `names`: rate -> name of the statistic.
    """
    label = predictions.classes.index(class_name)
    positive, usable = predictions.target == label, True
    decisions = predictions.predicted == label
    if thresholds is not None:
        values = np.array([threshold.value for threshold in thresholds])
        usable = not np.isnan(values).any()
        decisions = predictions.probability[:, :, label].astype(float) >= values[:, None]
    kinds = [right & side for side in (decisions, ~decisions) for right in (positive, ~positive)]
    cells = np.stack(kinds, axis=2).transpose(1, 0, 2).astype(float)
    table = np.zeros((predictions.groups, *cells.shape[1:]))
    np.add.at(table, predictions.group, cells)
    chosen = [MEASURES.index(name) for name in names]

    def measure(weights: np.ndarray) -> np.ndarray:
        counts = weights.T @ table.reshape(predictions.groups, -1)
        hits, alarms, missed, rejected = np.moveaxis(counts.reshape(-1, len(decisions), 4), 2, 0)
        parts = np.stack([hits, rejected, hits, rejected], axis=2)
        others = np.stack([missed, alarms, alarms, missed], axis=2)
        every = ratio(parts, parts + others) if usable else np.full(parts.shape, np.nan)
        return every[..., chosen]

    rows = (positive, ~positive, decisions.any(axis=0), (~decisions).any(axis=0))
    bases = tuple(predictions.group[rows[at]] for at in chosen)
    return Statistics(tuple(names.values()), bases, measure, shares=True)


def points(
    test: Predictions, val: Predictions | None, class_name: str, settings: AuditSettings
) -> pd.DataFrame:
    """Rates on test by the predicted class and by the thresholds that the nets have on `val`.

    Without `val` only the predicted class is used.

    Returns:
        A row for each rule and measure: rule (the decision rule, such as "argmax", or the target
        rate), threshold (one for each net, as text), measure, val (the rate on validation), then
        the rate on test as `estimates` returns it, and problem.
    """
    rules: dict[str, list[Threshold] | None] = {test.rule: None}
    if val is not None:
        sensitivity = TargetRate("sensitivity", settings.sensitivity)
        for rule in (sensitivity, TargetRate("specificity", settings.specificity)):
            rules[str(rule)] = choose_per_net(val, class_name, rule)
    tables = []
    for name, thresholds in rules.items():
        on_val = np.full(len(MEASURES), np.nan)
        if val is not None:
            on_val = evaluate(val, rates(val, class_name, thresholds)).mean(axis=0)
        statistics = rates(test, class_name, thresholds)
        table = estimates(test, [statistics], settings).rename_axis("measure").reset_index()
        table.insert(0, "rule", name)
        table.insert(1, "threshold", " ".join(f"{row.value:.4g}" for row in thresholds or ()))
        table.insert(3, "val", on_val)
        problems = {threshold.problem for threshold in thresholds or () if threshold.problem}
        tables.append(table.assign(problem="; ".join(sorted(problems))))
    return pd.concat(tables, ignore_index=True)
