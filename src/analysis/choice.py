"""Which run answers a question: what is asked, who can be considered, who qualifies, in what order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from src.analysis.dominance import as_losses
from src.objectives import Limit, Objective

Aim = Literal["quality", "price"]


@dataclass(frozen=True)
class Scene:
    """The runs among which is chosen. All metrics here and in `Question` go by their recorded names.

    Attributes:
        pool: The runs that count: finished, within the study's limits, with a quality.
        quality: What "best" means.
        price: What "cheap" means.
        figures: Metrics that are told of a chosen run, the quality first.
        limits: Of the study.
        noun: What a run is called: "trial" or "run".
        unfinished: How many runs did not finish, by status.
        unmeasured: How many finished, but without a quality.
        infeasible: How many finished with one, but over a limit of the study.
    """

    pool: pd.DataFrame
    quality: Objective
    price: Objective
    figures: tuple[str, ...]
    limits: tuple[Limit, ...]
    noun: str
    unfinished: dict[str, int]
    unmeasured: int
    infeasible: int


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        name: Short and unique.
        question: As a person asks it.
        aim: By what the first of those that qualify is chosen.
        limits: What qualifies.
        margin: Where the limit is a distance from the best quality, that distance.
    """

    name: str
    question: str
    aim: Aim
    limits: tuple[Limit, ...] = ()
    margin: float | None = None


@dataclass(frozen=True)
class Choice:
    """Who could be considered and who qualifies.

    Attributes:
        considered: Runs of the pool that have all metrics that the question needs.
        qualified: Those of them that keep the question's limits, the chosen one first.
        missing: How many runs of the pool lack a metric, by its name.
    """

    considered: pd.DataFrame
    qualified: pd.DataFrame
    missing: dict[str, int]


def choose(scene: Scene, question: Question) -> Choice:
    """Who can be considered, who of them qualifies, and in what order: by the aim, by the other, as listed."""
    needed = [limit.metric for limit in question.limits]
    needed += [scene.price.metric] if question.aim == "price" else []
    known = pd.Series(True, index=scene.pool.index)
    missing = {}
    for name in dict.fromkeys(needed):
        has = values(scene.pool, name).notna()
        missing[name] = int((~has).sum())
        known &= has
    considered = scene.pool[known]
    keeps = pd.Series(True, index=considered.index)
    for limit in question.limits:
        keeps &= values(considered, limit.metric).map(limit.holds).astype(bool)
    qualified = considered[keeps]
    order = [scene.quality, scene.price] if question.aim == "quality" else [scene.price, scene.quality]
    return Choice(considered, in_order(qualified, order), missing)


def best(scene: Scene) -> pd.Series:
    """The best run of all by quality, of equal ones the cheapest; the pool must not be empty."""
    return in_order(scene.pool, [scene.quality, scene.price]).iloc[0]


def in_order(table: pd.DataFrame, objectives: Sequence[Objective]) -> pd.DataFrame:
    """Rows by the first objective, equal ones by the next, then as they stood; a missing value is behind all others."""
    losses = [as_losses(values(table, each.metric).to_numpy(), [each]).ravel() for each in objectives]
    return table.iloc[np.lexsort([np.where(np.isnan(column), np.inf, column) for column in losses[::-1]])]


def values(table: pd.DataFrame, name: str) -> pd.Series:
    """A column as numbers; all missing where no run has the metric, and infinity counts as missing."""
    if name not in table:
        return pd.Series(math.nan, index=table.index)
    return table[name].astype(float).replace([math.inf, -math.inf], math.nan)
