"""Answers which model to take: the best, the cheapest within a margin, the best under a budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from src.core.errors import ConfigError
from src.metrics import formatting
from src.metrics.formatting import bound, count, is_cost, joined, label
from src.metrics.pareto import as_losses
from src.metrics.registry import MELANOMA, Limit, Objective, describe, melanoma_class

# The page of a report has a slider for each of these that a study recorded.
_BUDGETS = [f"efficiency/{name}" for name in ("params", "flops", "latency_ratio", "size_mb")]
_FLOORS = ("best/val/recall", "best/val/specificity_at_sens80")
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
        raise ConfigError(
            "objective.objectives", "must have one that is no cost, else no model is the best"
        )
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
    kept: list[int] = []
    for position, row in enumerate(losses):
        if not (losses[kept] <= row).all(axis=1).any():
            kept.append(position)
    differing = values.iloc[kept].nunique() > 1
    return rows.iloc[kept], [item for item in bounded if differing[item.metric]]


class _Candidates:
    """The runs to choose from; metrics have their recorded names. Arguments as for `decide`."""

    def __init__(
        self,
        table: pd.DataFrame,
        objectives: Sequence[Objective],
        limits: Sequence[Limit],
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
        run_id, text, reason = self._choose(limits, by_cost)
        if self._excluded and (not limits or not run_id):
            text += f" Not considered: {self._excluded}."
        return Answer(name, f"Which model {aim}?", run_id, text, reason)

    def in_order(self) -> pd.DataFrame:
        """The runs by quality, the best first, the cheaper of equal ones before the other."""
        return _in_order(self._pool, [self._quality, self._price])

    def _best(self) -> pd.Series:
        return self.in_order().iloc[0]

    def _choose(self, limits: Sequence[Limit], by_cost: bool) -> tuple[str, str, str]:
        """The id of the chosen run, the explanation, and what is given up or missed."""
        pool, noun = self._pool, self._noun
        if pool.empty:
            return "", (text := f"No {noun} has a result."), text
        bounded = [limit.metric for limit in limits]
        needed = dict.fromkeys([*bounded, *([self._price.metric] if by_cost else [])])
        columns = {metric: _values(pool, metric).notna() for metric in needed}
        has = pd.DataFrame(columns, index=pool.index)
        considered = pool[has.all(axis=1)]
        keeps = [_values(considered, limit.metric).map(limit.holds) for limit in limits]
        qualified = considered[np.logical_and.reduce([considered["run_id"].notna(), *keeps])]
        order = [self._price, self._quality] if by_cost else [self._quality, self._price]
        rest, qualified = considered.drop(qualified.index), _in_order(qualified, order)
        shown = list(dict.fromkeys([*self._metrics, *bounded]))
        sentences, reason = [], ""
        if considered.empty:
            sentences.append(f"No {noun} has all the figures that this question needs.")
        elif qualified.empty:
            sentences.append(f"None of {count(len(considered), noun)} qualifies.")
        else:
            row = qualified.iloc[0]
            sentences.append(f"{_figures(row, shown)}.")
            if missing := [label(metric) for metric in shown if math.isnan(_value(row, metric))]:
                sentences.append(f"It has no recorded {joined(missing)}.")
            if limits:
                among = count(len(considered), noun)
                sentences.append(f"Qualified: {len(qualified):,} of {among}.")
            sentences.append(reason := self._against_best(limits, row))
            if len(qualified) > 1:
                sentences.append(f"Next: {_figures(qualified.iloc[1], shown)}.")
        if len(qualified) <= 1 and len(rest) and limits:
            sentences.append(closest := _closest(limits, rest, shown))
            reason = reason or closest
        for metric, number in (~has).sum().items():
            if number:
                lack = f"{label(str(metric))}: {count(int(number), noun)}"
                sentences.append(f"Not considered for lack of {lack}.")
        run_id = str(qualified.iloc[0]["run_id"]) if len(qualified) else ""
        reason = reason or ("" if run_id else sentences[0])
        return run_id, " ".join(filter(None, sentences)), reason

    def _against_best(self, limits: Sequence[Limit], row: pd.Series) -> str:
        """What the chosen run gives up against the best one, and what that saves."""
        best, name = self._best(), self._quality.metric
        if row["run_id"] == best["run_id"]:
            return "It is also the best of all." if limits and len(self._pool) > 1 else ""
        lost = formatting.difference(name, row[name], best[name])
        parts = [f"{lost} of {label(name)} given up"]
        costs = [limit.metric for limit in limits if is_cost(limit.metric)]
        for cost in dict.fromkeys([self._price.metric, *costs]):
            value, other = _value(row, cost), _value(best, cost)
            if not math.isnan(value + other):
                instead = formatting.number(cost, other, value)
                ratio = formatting.ratio(value, other)
                parts.append(
                    f"{formatting.figure(cost, value, other)} instead of {instead}"
                    f"{f' ({ratio})' if ratio else ''}"
                )
        return f"Compared with the best of all, {_name(best)}: {', '.join(parts)}."


def _closest(limits: Sequence[Limit], rest: pd.DataFrame, shown: Sequence[str]) -> str:
    """The run that breaks the limits by the smallest sum of fractions of the bounds."""
    misses = [
        np.maximum(_values(rest, limit.metric).map(limit.violation).to_numpy(dtype=float), 0)
        / (abs(limit.value) or 1.0)
        for limit in limits
    ]
    row = rest.iloc[int(np.sum(misses, axis=0).argmin())]
    parts = []
    for limit in limits:
        name, value = limit.metric, row[limit.metric]
        if not limit.holds(value):
            gap = formatting.difference(name, value, limit.value)
            parts.append(f"{bound(limit)} by {gap} ({formatting.number(name, value, limit.value)})")
    return f"The closest that does not qualify: {_figures(row, shown)}; it misses {joined(parts)}."


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
            text = formatting.figure(name, value)
            if spread > 0:
                text += f" (standard deviation over the seeds {formatting.significant(spread)})"
            (costs if is_cost(name) else qualities).append(text)
    validation = f"{joined(qualities)} on validation" if qualities else ""
    return f"{_name(row)}: {', '.join(filter(None, [validation, *costs]))}"
