"""Answers which model to take: the best, the cheapest within a margin, the best under a budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.core.errors import ConfigError
from src.metrics import formatting
from src.metrics.formatting import bound, is_cost, joined, label
from src.metrics.pareto import as_losses
from src.metrics.registry import MELANOMA, Limit, Objective, describe, melanoma_class

# The page of a report has a slider for each of these that a study recorded.
_BUDGETS = [f"efficiency/{name}" for name in ("params", "flops", "latency_ratio", "size_mb")]
_FLOORS = ("best/val/recall", "best/val/specificity_at_sens80")
sentences = partial(formatting.sentences, Path(__file__).with_name("sentences.j2"))
_ROUNDING = 1e-9  # 0.85 - 0.02 is a little more than 0.83, and 0.83 is within 0.02 of 0.85


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    The name is short and unique, such as "cheapest within 0.02" or "best with params <= 692k"; the
    run id is empty if no run qualifies. The text has the figures of the chosen run, what it gives
    up against the best run, and the next run; or the closest run and the limits that it misses. The
    reason is the part of the text that says what is given up or missed.
    """

    name: str
    question: str
    run_id: str
    text: str
    reason: str = ""


def decide(
    table: pd.DataFrame,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    margin: float,
    budgets: Sequence[Limit],
    floors: Sequence[Limit],
) -> list[Answer]:
    """Answer the questions of somebody who looks for a model, also if no run qualifies.

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

    Raises:
        ConfigError: A margin below 0, or objectives without a quality.
    """
    if not 0 <= margin < math.inf:
        raise ConfigError("margin", f"must be at least 0, but got {margin:g}")
    candidates = _Candidates(table, objectives, limits)
    best, cheapest = f"the best {candidates.what}", f"the cheapest ({candidates.cheap})"
    near = candidates.near(margin)
    answers = [
        candidates.answer("best", f"has {best}, whatever it costs", (), False),
        candidates.answer(
            f"cheapest within {margin:g}", f"is {cheapest} within {margin:g} of {best}", near, True
        ),
    ]
    questions = [([budget], False) for budget in budgets]
    questions += [([floor], by_cost) for floor in floors for by_cost in (False, True)]
    questions += [([*budgets, *floors], False)] if budgets and floors else []
    for bounds, by_cost in questions:
        bounds = [candidates.in_these_runs(limit) for limit in bounds]
        name = joined([formatting.short_bound(limit) for limit in bounds])
        aim = f"is {cheapest}" if by_cost else f"has {best}"
        aim += f" among those with {joined([bound(limit) for limit in bounds])}"
        name = f"{'cheapest' if by_cost else 'best'} with {name}"
        answers.append(candidates.answer(name, aim, bounds, by_cost))
    return list({answer.name: answer for answer in answers}.values())


def quality_objective(objectives: Sequence[Objective]) -> Objective:
    """The first objective that is to be maximised and is no cost, else the first that is no cost.

    Raises:
        ConfigError: All objectives are costs.
    """
    qualities = [objective for objective in objectives if not is_cost(objective.metric)]
    if not qualities:
        problem = "must have one that is no cost, else no model is the best"
        raise ConfigError("objective.objectives", problem)
    return next((item for item in qualities if item.direction == "maximize"), qualities[0])


def cost_of(objectives: Sequence[Objective]) -> str:
    """The metric that says how cheap a model is: the first cost of the objectives, else FLOPs."""
    return next((item.metric for item in objectives if is_cost(item.metric)), "efficiency/flops")


def budget_choices(
    table: pd.DataFrame, objectives: Sequence[Objective]
) -> tuple[pd.DataFrame, list[Objective]]:
    """The runs that are the best ones under some budgets and floors.

    `decide` takes the first of them that has the bounded metrics and keeps the bounds. The other
    runs are never chosen: an earlier one is at least as good in every metric.

    Args:
        table: As for `decide`.
        objectives: Of the study.

    Returns:
        Rows of the table, the best quality first; and what can be bounded, with its better
        direction: costs, melanoma recall, specificity at 80% recall, if the runs differ in it.
    """
    rows = _Candidates(table, objectives, ()).in_order()
    melanoma = melanoma_class(rows, _FLOORS[0])
    costs = [item.metric for item in objectives if is_cost(item.metric)]
    names = dict.fromkeys([*_BUDGETS, *costs, *(f"{name}/{melanoma}" for name in _FLOORS)])
    names.pop(quality_objective(objectives).metric, None)
    values = pd.DataFrame({name: _values(rows, name) for name in names})
    bounded = [Objective(name, describe(name).direction) for name in names]
    losses = as_losses(values.to_numpy(), bounded)
    losses[np.isnan(losses)] = math.inf
    members: list[int] = []
    for position, row in enumerate(losses):
        if not (losses[members] <= row).all(axis=1).any():
            members.append(position)
    differing = values.iloc[members].nunique() > 1
    return rows.iloc[members], [item for item in bounded if differing[item.metric]]


class _Candidates:
    """The runs to choose from; metrics have their recorded names. Arguments as for `decide`."""

    def __init__(
        self, table: pd.DataFrame, objectives: Sequence[Objective], limits: Sequence[Limit]
    ) -> None:
        self._quality, cost = quality_objective(objectives), cost_of(objectives)
        named = {item.metric: item for item in objectives}
        self._price = named.get(cost, Objective(cost, describe(cost).direction))
        self._metrics = [self._quality.metric, *named, self._price.metric]
        self.what = label(self._quality.metric)
        most = "most" if self._price.direction == "maximize" else "least"
        self.cheap = f"{most} {label(self._price.metric)}"
        finished = table[table["status"] == "FINISHED"]
        measured = finished[_values(finished, self._quality.metric).notna()]
        self._pool = measured[measured["feasible"].astype(bool)].reset_index(drop=True)
        is_study = "kind" in table and (table["kind"] == "trial").any()
        self._noun = "trial" if is_study else "run"
        bounds = joined([bound(limit) for limit in limits])
        excluded = {
            "did not finish": len(table) - len(finished),
            f"finished without {self.what}": len(finished) - len(measured),
            f"exceeded a limit of the study ({bounds})": len(measured) - len(self._pool),
        }
        self._excluded = joined([f"{number:,} {why}" for why, number in excluded.items() if number])

    def near(self, margin: float) -> list[Limit]:
        """The limit of runs whose quality is within `margin` of the best one."""
        if self._pool.empty:
            return []
        rising = self._quality.direction == "maximize"
        reach = (margin + _ROUNDING) * (-1 if rising else 1)
        best = float(self._best()[self._quality.metric])
        return [Limit(self._quality.metric, ">=" if rising else "<=", best + reach)]

    def in_these_runs(self, limit: Limit) -> Limit:
        """The limit; if it is on melanoma, by the name of that class in these runs."""
        head, _, class_name = limit.metric.rpartition("/")
        is_melanoma = class_name.lower() in MELANOMA and head.endswith("/recall")
        if limit.metric in self._pool or not is_melanoma:
            return limit
        melanoma = melanoma_class(self._pool, head.removesuffix("/recall"))
        return replace(limit, metric=f"{head}/{melanoma}")

    def answer(self, name: str, aim: str, limits: Sequence[Limit], by_cost: bool) -> Answer:
        """The best or the cheapest of the runs that keep some limits."""
        pool, bounded = self._pool, [limit.metric for limit in limits]
        needed = dict.fromkeys([*bounded, *([self._price.metric] if by_cost else [])])
        columns = {metric: _values(pool, metric).notna() for metric in needed}
        has = pd.DataFrame(columns, index=pool.index)
        considered = pool[has.all(axis=1)]
        keeps = [_values(considered, limit.metric).map(limit.holds) for limit in limits]
        qualified = considered[np.logical_and.reduce([considered["run_id"].notna(), *keeps])]
        disqualified = considered.drop(qualified.index)
        order = [self._price, self._quality] if by_cost else [self._quality, self._price]
        rows = _in_order(qualified, order).head(2).to_dict("records")
        metrics = list(dict.fromkeys([*self._metrics, *bounded]))
        lacking = {str(metric): int(number) for metric, number in (~has).sum().items() if number}
        against: list[str] = []
        if rows:  # what the chosen run gives up against the best one, and what that saves
            best, costs = self._best(), [one.metric for one in limits if is_cost(one.metric)]
            costs = list(dict.fromkeys([self._price.metric, *costs]))
            costs = [cost for cost in costs if _has(rows[0], cost) and _has(best, cost)]
            values = {"row": rows[0], "best": best, "quality": self._quality.metric}
            others = bool(limits) and len(pool) > 1
            against = sentences("against", others=others, costs=costs, **values)
        closest: list[str] = []
        if limits and len(rows) < 2 and len(disqualified):  # by the sum of fractions of the bounds
            misses = [
                _values(disqualified, limit.metric).map(limit.violation).astype(float).clip(lower=0)
                / (abs(limit.value) or 1.0)
                for limit in limits
            ]
            row = disqualified.iloc[int(np.sum(misses, axis=0).argmin())].to_dict()
            missed = [(bound(one), one) for one in limits if not one.holds(row[one.metric])]
            closest = sentences("closest", row=row, shown=metrics, has=_has, missed=missed)
        text = sentences(
            "answer",
            noun=self._noun,
            runs=len(pool),
            considered=len(considered),
            qualified=len(qualified),
            rows=rows,
            shown=metrics,
            has=_has,
            bounded=bool(limits),
            against=against,
            closest=closest,
            lacking=lacking,
            excluded="" if limits and rows else self._excluded,
        )
        reasons = [*against, *closest, *([] if rows else text[:1])]
        run_id = str(rows[0]["run_id"]) if rows else ""
        reason = next(iter(reasons), "")
        return Answer(name, f"Which model {aim}?", run_id, " ".join(text), reason)

    def in_order(self) -> pd.DataFrame:
        """The runs by quality, the best first, the cheaper of equal ones before the other."""
        return _in_order(self._pool, [self._quality, self._price])

    def _best(self) -> dict[Any, Any]:
        best: dict[Any, Any] = self.in_order().iloc[0].to_dict()
        return best


def _in_order(table: pd.DataFrame, objectives: Sequence[Objective]) -> pd.DataFrame:
    """Rows sorted by the objectives, the best first; a missing value comes after all others."""
    losses = [
        as_losses(_values(table, item.metric).to_numpy(), [item]).ravel() for item in objectives
    ]
    return table.iloc[np.lexsort([np.where(np.isnan(x), np.inf, x) for x in losses[::-1]])]


def _values(table: pd.DataFrame, name: str) -> pd.Series:
    """A column as numbers; missing where it is infinite, and where no run has the metric."""
    if name not in table:
        return pd.Series(math.nan, index=table.index)
    return table[name].astype(float).replace([math.inf, -math.inf], math.nan)


def _has(row: Mapping[Any, Any], name: str) -> bool:
    return math.isfinite(float(row.get(name, math.nan)))
