"""Operating points of the class that is looked for: a threshold is chosen on validation and applied, as it is, to test.

An image counts as positive from the threshold on. Each net (seed) gets a threshold of its own, for
its scores are its own. Intervals take the thresholds as given: they say what these thresholds reach
on other lesions, not what choosing them anew would.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from src.metrics.bootstrap import (
    Predictions,
    Statistics,
    bootstrap_statistics,
    by_group,
    estimates,
    share,
)
from src.metrics.settings import AuditSettings

MEASURES = ("sensitivity", "specificity", "ppv", "npv")
ARGMAX = "argmax"
_SLACK = 1e-9  # 0.07 * 100 is more than 7 for a computer


@dataclass(frozen=True)
class TargetRate:
    """What a threshold is to reach on validation.

    Attributes:
        measure: "sensitivity": the strictest threshold that has enough of it; "specificity": the
            laxest one.
        least: How much of it, in (0, 1).
    """

    measure: Literal["sensitivity", "specificity"]
    least: float

    def __str__(self) -> str:
        return f"{self.measure} >= {self.least:g}"


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it reaches where it was chosen.

    Attributes:
        value: Positive from this score on; infinity: nothing is positive; NaN: no threshold can be
            chosen.
        sensitivity: Reached, in [0, 1].
        specificity: Reached, in [0, 1].
        problem: Why it is of no use, or empty.
    """

    value: float
    sensitivity: float
    specificity: float
    problem: str = ""


def choose(score: np.ndarray, own: np.ndarray, wish: TargetRate) -> Threshold:
    """The best threshold that fulfils a wish; of equally good ones the strictest.

    Args:
        score: float (N,).
        own: Whether an image is of the class, bool (N,).
        wish: What is to be reached.

    Returns:
        A threshold that stands among the scores (or infinity); NaN if the images are all of one
        kind.
    """
    if not 0 < own.sum() < len(own):
        lacks = "others" if len(own) and own.all() else "the class"
        return Threshold(np.nan, np.nan, np.nan, f"validation has no images of {lacks}")
    alarm, recall, values = roc_curve(
        own, score, drop_intermediate=False
    )  # the strictest first, from infinity
    hits, rejected = recall * own.sum(), (1 - alarm) * (~own).sum()
    if wish.measure == "sensitivity":
        at = int(np.argmax(hits >= wish.least * own.sum() - _SLACK))
    else:
        enough = rejected >= wish.least * (~own).sum() - _SLACK
        at = int(np.argmax(np.where(enough, hits, -1.0)))
    problem = {
        0.0: "only a threshold that no image passes",
        1.0: "only a threshold that every image passes",
    }
    everything = problem[1.0] if recall[at] == alarm[at] == 1 else ""
    return Threshold(
        float(values[at]),
        float(recall[at]),
        float(1 - alarm[at]),
        problem[0.0] if recall[at] == 0 else everything,
    )


def chosen(val: Predictions, name: str, wish: TargetRate) -> list[Threshold]:
    """The threshold of each net, for the class of that name."""
    label = val.classes.index(name)
    return [
        choose(score[:, label].astype(float), val.target == label, wish)
        for score in val.probability
    ]


def usable(val: Predictions | None, name: str, settings: AuditSettings) -> list[Threshold] | None:
    """The thresholds chosen for sensitivity; None without validation, or where one of them has a problem."""
    found = (
        [] if val is None else chosen(val, name, TargetRate("sensitivity", settings.sensitivity))
    )
    return found if found and not any(each.problem for each in found) else None


def decide(given: Predictions, name: str, thresholds: Sequence[Threshold] | None) -> np.ndarray:
    """Who counts as positive: from the threshold on, or where the class is the most probable one; bool (S, N)."""
    label = given.classes.index(name)
    if thresholds is None:
        found: np.ndarray = given.probability.argmax(axis=2) == label
        return found
    values = np.array([each.value for each in thresholds])
    return given.probability[:, :, label].astype(float) >= values[:, None]


def rates(given: Predictions, name: str, positive: np.ndarray, usable: bool = True) -> Statistics:
    """Sensitivity, specificity and predictive values of decisions.

    Args:
        given: The images.
        name: The class that is looked for.
        positive: Decisions of each net, bool (S, N).
        usable: False where no threshold could be chosen: all is undefined then.
    """
    own = given.target == given.classes.index(name)
    cells = np.stack([positive & own, positive & ~own, ~positive & own, ~positive & ~own], axis=2)
    table = by_group(given, cells.transpose(1, 0, 2).astype(float))
    seeds = len(positive)

    def measure(weights: np.ndarray) -> np.ndarray:
        counts = (weights.T @ table.reshape(given.groups, -1)).reshape(-1, seeds, 4)
        hits, alarms, missed, rejected = (counts[..., at] for at in range(4))
        found = [
            share(hits, hits + missed),
            share(rejected, rejected + alarms),
            share(hits, hits + alarms),
            share(rejected, rejected + missed),
        ]
        return np.stack(found, axis=2) if usable else np.full((*hits.shape, 4), np.nan)

    some, others = positive.any(axis=0), (~positive).any(axis=0)
    bases = tuple(given.group[rows] for rows in (own, ~own, some, others))
    return Statistics(MEASURES, bases, measure, shares=True)


def points(
    test: Predictions, val: Predictions | None, name: str, settings: AuditSettings
) -> pd.DataFrame:
    """What the most probable class and the thresholds chosen on validation reach.

    Args:
        test: Where they are applied.
        val: Where they are chosen, by the same nets; None: only the most probable class is looked
            at.
        name: The class that is looked for.
        settings: Wishes and intervals.

    Returns:
        A row a rule and measure: rule ("argmax" or the wish), threshold (one a net, as text),
        measure, val (reached on validation), then what it reaches on test as `estimates` has it,
        and problem.
    """
    wishes: list[TargetRate | None] = [None]
    if val is not None:
        wishes += [
            TargetRate("sensitivity", settings.sensitivity),
            TargetRate("specificity", settings.specificity),
        ]
    rows = []
    for wish in wishes:
        thresholds = None if wish is None or val is None else chosen(val, name, wish)
        problems = {each.problem for each in thresholds or () if each.problem}
        usable = not any(np.isnan(each.value) for each in thresholds or ())
        reached = np.full(len(MEASURES), np.nan)
        if val is not None and usable:
            reached = bootstrap_statistics(
                val, rates(val, name, decide(val, name, thresholds))
            ).mean(axis=0)
        found = estimates(
            test, [rates(test, name, decide(test, name, thresholds), usable)], settings
        ).reset_index()
        found = found.rename(columns={"metric": "measure"})
        found.insert(0, "rule", ARGMAX if wish is None else str(wish))
        found.insert(1, "threshold", " ".join(f"{each.value:.4g}" for each in thresholds or ()))
        found.insert(3, "val", reached)
        rows.append(found.assign(problem="; ".join(sorted(problems))))
    return pd.concat(rows, ignore_index=True)
