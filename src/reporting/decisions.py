"""Answers which model to take: the best, the cheapest within a margin, the best under a budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from src.core.errors import ConfigError
from src.metrics.formatting import (
    bound,
    count,
    difference,
    figure,
    is_cost,
    joined,
    label,
    number,
    ratio,
    short_bound,
    significant,
)
from src.metrics.pareto import as_losses
from src.metrics.registry import MELANOMA, Limit, Objective, describe, melanoma_class, recorded_name

_ROUNDING = 1e-9  # 0.85 - 0.02 is a little more than 0.83, and 0.83 is within 0.02 of 0.85


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
        name: Short and unique, such as "cheapest within 0.02" or "best with params <= 692k".
        question: The question in full.
        run_id: The chosen run; empty if none qualifies.
        text: The figures of the chosen run, what it gives up against the best run, and the next
            run; or the run that comes closest and the limits that it misses.
    """

    name: str
    question: str
    run_id: str
    text: str


@dataclass(frozen=True)
class Candidates:
    """The runs to choose from; metrics have their recorded names.

    Attributes:
        pool: Runs that finished, keep the limits of the study and have a quality.
        quality: What "best" means.
        price: What "cheap" means.
        noun: "trial" or "run".
    """

    pool: pd.DataFrame
    quality: Objective
    price: Objective
    noun: str

    def best(self) -> pd.Series:
        """The run with the best quality, the cheapest of equal ones."""
        return in_order(self.pool, [self.quality, self.price]).iloc[0]


@dataclass(frozen=True)
class Question:
    """One question: the best or the cheapest of the runs that keep some limits."""

    name: str
    question: str
    cheapest: bool = False
    limits: tuple[Limit, ...] = ()


def decide(
    table: pd.DataFrame,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    margin: float,
    budgets: Sequence[Limit],
    floors: Sequence[Limit],
    cost: str,
) -> list[Answer]:
    """Answer the questions of somebody who looks for a model.

    A run is considered if it finished, keeps the limits of the study and has a quality. Of runs
    with equal quality the cheaper one is taken, of equally cheap runs the better one, then the
    first one of the table.

    Args:
        table: From `src.reporting.comparison.compare`, with a column `label`.
        objectives: Of the study; quality is what `quality_objective` finds.
        limits: Of the study, for the text; the column `feasible` says which runs keep them.
        margin: By how much the cheapest model may be worse than the best one, in the unit of the
            quality (0.02: two percentage points of balanced accuracy); at least 0.
        budgets: Upper bounds of costs, such as "efficiency/params <= 692e3": one question each.
        floors: Lower bounds of qualities, such as "val/recall/mel >= 0.8": two questions each. If
            there are budgets and floors, a last question has all of them.
        cost: Recorded name of the metric that says how cheap a run is.

    Returns:
        One answer per question, also to questions that no run qualifies for.

    Raises:
        ConfigError: A margin below 0, or objectives without a quality.
    """
    if not 0 <= margin < math.inf:
        raise ConfigError("margin", f"must be at least 0, but got {margin:g}")
    quality = quality_objective(objectives)
    quality = replace(quality, metric=recorded_name(quality.metric))
    price = next(
        (each for each in objectives if recorded_name(each.metric) == cost),
        Objective(cost, describe(cost).direction),
    )
    finished = table[table["status"] == "FINISHED"]
    measured = finished[_values(finished, quality.metric).notna()]
    pool = measured[measured["feasible"].astype(bool)].reset_index(drop=True)
    noun = "trial" if "kind" in table and (table["kind"] == "trial").any() else "run"
    candidates = Candidates(pool, quality, price, noun)
    excluded = {
        "did not finish": len(table) - len(finished),
        f"finished without {label(quality.metric)}": len(finished) - len(measured),
        f"exceeded a limit of the study ({joined([bound(limit) for limit in limits])})": (
            len(measured) - len(pool)
        ),
    }
    left_out = joined([f"{number_of:,} {why}" for why, number_of in excluded.items() if number_of])
    metrics = [quality.metric, *(recorded_name(each.metric) for each in objectives), price.metric]
    answers = {}
    for question in _questions(candidates, margin, budgets, floors):
        run_id, text = _answer(candidates, question, metrics)
        if left_out and (not question.limits or not run_id):
            text += f" Not considered: {left_out}."
        answers[question.name] = Answer(question.name, question.question, run_id, text)
    return list(answers.values())


def quality_objective(objectives: Sequence[Objective]) -> Objective:
    """The first objective that is to be maximised and is no cost, else the first that is no cost.

    Raises:
        ConfigError: All objectives are costs.
    """
    qualities = [objective for objective in objectives if not is_cost(objective.metric)]
    if not qualities:
        raise ConfigError(
            "objective.objectives", "must have one that is no cost, else no model is the best"
        )
    maximised = [objective for objective in qualities if objective.direction == "maximize"]
    return (maximised or qualities)[0]


def in_order(table: pd.DataFrame, objectives: Sequence[Objective]) -> pd.DataFrame:
    """Rows sorted by the objectives, the best first; a missing value comes after all others."""
    losses = [
        as_losses(_values(table, each.metric).to_numpy(), [each]).ravel() for each in objectives
    ]
    return table.iloc[np.lexsort([np.where(np.isnan(x), np.inf, x) for x in losses[::-1]])]


def _questions(
    candidates: Candidates, margin: float, budgets: Sequence[Limit], floors: Sequence[Limit]
) -> list[Question]:
    quality, price, pool = candidates.quality, candidates.price, candidates.pool
    what = label(quality.metric)
    cheap = f"{'most' if price.direction == 'maximize' else 'least'} {label(price.metric)}"
    near: tuple[Limit, ...] = ()
    if len(pool):
        best = float(candidates.best()[quality.metric])
        rising = quality.direction == "maximize"
        reach = (margin + _ROUNDING) * (-1 if rising else 1)
        near = (Limit(quality.metric, ">=" if rising else "<=", best + reach),)
    within = f"Which model is the cheapest ({cheap}) within {margin:g} of the best {what}?"
    questions = [
        Question("best", f"Which model has the best {what}, whatever it costs?"),
        Question(f"cheapest within {margin:g}", within, True, near),
    ]

    def limited(limits: Sequence[Limit], cheapest: bool = False) -> Question:
        read = tuple(_recorded(pool, limit) for limit in limits)
        aim = f"is the cheapest ({cheap})" if cheapest else f"has the best {what}"
        name = joined([short_bound(limit) for limit in read])
        bounds = joined([bound(limit) for limit in read])
        question = f"Which model {aim} among those with {bounds}?"
        return Question(
            f"{'cheapest' if cheapest else 'best'} with {name}", question, cheapest, read
        )

    questions += [limited([budget]) for budget in budgets]
    for floor in floors:
        questions += [limited([floor]), limited([floor], cheapest=True)]
    return [*questions, limited([*budgets, *floors])] if budgets and floors else questions


def _recorded(pool: pd.DataFrame, limit: Limit) -> Limit:
    """The limit on the recorded metric; melanoma by the name of that class in these runs."""
    name = recorded_name(limit.metric)
    head, _, class_name = name.rpartition("/")
    if name not in pool and class_name.lower() in MELANOMA and head.endswith("/recall"):
        name = f"{head}/{melanoma_class(pool, head.removesuffix('/recall'))}"
    return replace(limit, metric=name)


def _answer(candidates: Candidates, question: Question, metrics: Sequence[str]) -> tuple[str, str]:
    """The chosen run and the explanation."""
    pool, quality, price, noun = (
        candidates.pool,
        candidates.quality,
        candidates.price,
        candidates.noun,
    )
    if pool.empty:
        return "", f"No {noun} has a result."
    needed = dict.fromkeys([limit.metric for limit in question.limits])
    needed |= {price.metric: None} if question.cheapest else {}
    has = {name: _values(pool, name).notna() for name in needed}
    considered = pool[np.logical_and.reduce([pool["run_id"].notna(), *has.values()])]
    keeps = [_values(considered, each.metric).map(each.holds) for each in question.limits]
    qualified = considered[np.logical_and.reduce([considered["run_id"].notna(), *keeps])]
    qualified = in_order(qualified, [price, quality] if question.cheapest else [quality, price])
    told = list(dict.fromkeys([*metrics, *(limit.metric for limit in question.limits)]))
    sentences = []
    rest = considered.drop(qualified.index)
    if qualified.empty and rest.empty:
        sentences.append(f"No {noun} has all the figures that this question needs.")
    elif qualified.empty:
        sentences.append(f"None of {count(len(considered), noun)} qualifies.")
    else:
        row = qualified.iloc[0]
        sentences.append(f"{_figures(row, told)}.")
        if unknown := [label(name) for name in told if math.isnan(_value(row, name))]:
            sentences.append(f"It has no recorded {joined(unknown)}.")
        if question.limits:
            among = count(len(considered), noun)
            sentences.append(f"Qualified: {len(qualified):,} of {among}.")
        sentences.append(_against_best(candidates, question, row))
        if len(qualified) > 1:
            sentences.append(f"Next: {_figures(qualified.iloc[1], told)}.")
    if len(qualified) <= 1 and len(rest) and question.limits:
        sentences.append(_closest(question, rest, told))
    for name, known in has.items():
        if missing := int((~known).sum()):
            sentences.append(f"Not considered for lack of {label(name)}: {count(missing, noun)}.")
    run_id = str(qualified.iloc[0]["run_id"]) if len(qualified) else ""
    return run_id, " ".join(filter(None, sentences))


def _against_best(candidates: Candidates, question: Question, row: pd.Series) -> str:
    """What the chosen run gives up against the best one, and what that saves."""
    best, name = candidates.best(), candidates.quality.metric
    if row["run_id"] == best["run_id"]:
        nothing = question.limits and len(candidates.pool) > 1
        return "It is also the best of all." if nothing else ""
    parts = [f"{difference(name, row[name], best[name])} of {label(name)} given up"]
    costs = [limit.metric for limit in question.limits if is_cost(limit.metric)]
    for cost in dict.fromkeys([candidates.price.metric, *costs]):
        value, other = _value(row, cost), _value(best, cost)
        if not math.isnan(value + other):
            how = ratio(value, other)
            instead = f"{figure(cost, value, other)} instead of {number(cost, other, value)}"
            parts.append(f"{instead}{f' ({how})' if how else ''}")
    return f"Compared with the best of all, {_name(best)}: {', '.join(parts)}."


def _closest(question: Question, rest: pd.DataFrame, told: Sequence[str]) -> str:
    """The run that breaks the limits by the smallest sum of fractions of the bounds."""
    misses = [
        np.maximum(_values(rest, each.metric).map(each.violation).to_numpy(dtype=float), 0)
        / (abs(each.value) or 1.0)
        for each in question.limits
    ]
    row = rest.iloc[int(np.sum(misses, axis=0).argmin())]
    parts = []
    for limit in question.limits:
        value = row[limit.metric]
        if not limit.holds(value):
            gap = difference(limit.metric, value, limit.value)
            parts.append(f"{bound(limit)} by {gap} ({number(limit.metric, value, limit.value)})")
    return f"The closest that does not qualify: {_figures(row, told)}; it misses {joined(parts)}."


def _values(table: pd.DataFrame, name: str) -> pd.Series:
    """A column as numbers; missing where it is infinite, and where no run has the metric."""
    if name not in table:
        return pd.Series(math.nan, index=table.index)
    return table[name].astype(float).replace([math.inf, -math.inf], math.nan)


def _value(row: pd.Series, name: str) -> float:
    value = float(row.get(name, math.nan))
    return value if math.isfinite(value) else math.nan


def _name(row: pd.Series) -> str:
    return f"{row['label']} (run {str(row['run_id'])[:8]})"


def _figures(row: pd.Series, metrics: Sequence[str]) -> str:
    """Label, qualities on validation, then costs; without metrics that the run does not have."""
    qualities: list[str] = []
    costs: list[str] = []
    for name in metrics:
        value, spread = _value(row, name), _value(row, f"spread/{name}")
        if not math.isnan(value):
            seeds = (
                f" (standard deviation over the seeds {significant(spread)})" if spread > 0 else ""
            )
            (costs if is_cost(name) else qualities).append(f"{figure(name, value)}{seeds}")
    validation = f"{joined(qualities)} on validation" if qualities else ""
    return f"{_name(row)}: {', '.join(filter(None, [validation, *costs]))}"
