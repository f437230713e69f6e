"""Best, cheapest within a margin, under a budget: with the reason."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

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

Aim = Literal["quality", "price"]


@dataclass(frozen=True)
class Candidates:
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


def choose(scene: Candidates, question: Question) -> Choice:
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
    order = (
        [scene.quality, scene.price] if question.aim == "quality" else [scene.price, scene.quality]
    )
    return Choice(considered, in_order(qualified, order), missing)


def best(scene: Candidates) -> pd.Series:
    """The best run of all by quality, of equal ones the cheapest; the pool must not be empty."""
    return in_order(scene.pool, [scene.quality, scene.price]).iloc[0]


def in_order(table: pd.DataFrame, objectives: Sequence[Objective]) -> pd.DataFrame:
    """Rows by the first objective, equal ones by the next, then as they stood; a missing value is behind all others."""
    losses = [
        as_losses(values(table, each.metric).to_numpy(), [each]).ravel() for each in objectives
    ]
    return table.iloc[
        np.lexsort([np.where(np.isnan(column), np.inf, column) for column in losses[::-1]])
    ]


def values(table: pd.DataFrame, name: str) -> pd.Series:
    """A column as numbers; all missing where no run has the metric, and infinity counts as missing."""
    if name not in table:
        return pd.Series(math.nan, index=table.index)
    return table[name].astype(float).replace([math.inf, -math.inf], math.nan)


def paragraph(scene: Candidates, question: Question, choice: Choice) -> str:
    """What was asked, what was chosen against what and by how much, and who could not be considered."""
    if choice.qualified.empty:
        told = [_nobody(scene, question, choice)]
    else:
        told = [
            _chosen(scene, question, choice),
            _unknown(scene, choice.qualified.iloc[0]),
            _against_best(scene, question, choice),
            _runner_up(scene, question, choice),
        ]
    told += [_lacking(scene, name, lacking) for name, lacking in choice.missing.items() if lacking]
    told += _left_out(scene) if not question.limits or choice.qualified.empty else []
    return " ".join(sentence for sentence in told if sentence)


def _chosen(scene: Candidates, question: Question, choice: Choice) -> str:
    row = choice.qualified.iloc[0]
    told = f"{_name(row)}, with {_figures(row, _told(scene, question))}."
    of, among = len(choice.qualified), len(choice.considered)
    if not question.limits:
        if among == 1:
            return f"The only {scene.noun} with a result is {told}"
        return f"The best of {count(among, scene.noun)} by {label(scene.quality.metric)} is {told}"
    keeping = _keeping(scene, question, one=of == 1)
    if of == among == 1:
        return f"The only {scene.noun} that could be considered {keeping}: {told}"
    who = f"All {count(of, scene.noun)}" if of == among else f"{of:,} of {count(among, scene.noun)}"
    aim = "best" if question.aim == "quality" else "cheapest"
    return (
        f"{who} {keeping}: {told}" if of == 1 else f"{who} {keeping}; the {aim} of them is {told}"
    )


def _keeping(scene: Candidates, question: Question, one: bool) -> str:
    """What those that qualify have in common, verb first."""
    if question.margin is None:
        return f"{'has' if one else 'have'} {joined([bound(limit) for limit in question.limits])}"
    name = scene.quality.metric
    top = f"the best {label(name)}, {number(name, best(scene)[name])}"
    if not question.margin:
        return f"{'reaches' if one else 'reach'} {top}"
    return f"{'lies' if one else 'lie'} within {difference(name, question.margin, 0)} of {top}"


def _unknown(scene: Candidates, row: pd.Series) -> str:
    """Which of the figures that matter the chosen run lacks."""
    names = dict.fromkeys([*scene.figures, scene.price.metric])
    lacking = [label(name) for name in names if math.isnan(_value(row, name))]
    return f"It has no known {joined(lacking)}." if lacking else ""


def _against_best(scene: Candidates, question: Question, choice: Choice) -> str:
    """What the chosen run gives up, and what that saves."""
    row, top = choice.qualified.iloc[0], best(scene)
    name = scene.quality.metric
    if row["run_id"] == top["run_id"]:
        # said only where it is news: something was asked for, and there were others
        return (
            "It is the best of all, too: nothing is given up."
            if question.limits and len(scene.pool) > 1
            else ""
        )
    if row[name] == top[name]:
        gives = f"It is as good as the best of all, {_name(top)}"
    else:
        gap = difference(name, row[name], top[name])
        gives = f"Against the best of all, {_name(top)}, it gives up {gap} of {label(name)}"
    return f"{gives}{_in_return(scene, question, row, top)}."


def _in_return(scene: Candidates, question: Question, row: pd.Series, top: pd.Series) -> str:
    """The clause on cost that follows what is given up."""
    costs = [
        scene.price.metric,
        *(limit.metric for limit in question.limits if is_cost(limit.metric)),
    ]
    known = [
        name
        for name in dict.fromkeys(costs)
        if not math.isnan(_value(row, name) + _value(top, name))
    ]
    told = [_instead(name, _value(row, name), _value(top, name)) for name in known]
    if not told:
        return ""
    own, other = (
        as_losses(np.array([_value(each, known[0])]), [scene.price]).item() for each in (row, top)
    )
    dearer = known[0] == scene.price.metric and own > other
    return f"{', and even so at' if dearer else ', for'} {joined(told)}"


def _instead(name: str, own: float, other: float) -> str:
    """Such as "30M multiply-adds instead of 4.1G (137 times less)"."""
    if own == other:
        return f"the same {figure(name, own)}"
    how = ratio(own, other)
    return f"{figure(name, own, other)} instead of {number(name, other, own)}{f' ({how})' if how else ''}"


def _runner_up(scene: Candidates, question: Question, choice: Choice) -> str:
    """Who comes next, by how little, and how a tie was resolved."""
    if len(choice.qualified) == 1:
        return _nearest_outside(scene, question, choice)
    row, other = choice.qualified.iloc[0], choice.qualified.iloc[1]
    pair = [scene.quality.metric, scene.price.metric]
    first, second = pair if question.aim == "quality" else pair[::-1]
    own, next_own = _value(row, first), _value(other, first)
    if own == next_own:
        return _tie(scene, choice, first, second)
    behind = f"{difference(first, own, next_own)} behind" if question.aim == "quality" else ""
    behind = behind or f"with {_instead(first, next_own, own)}"
    rest = _value(other, second)
    also = (
        ""
        if math.isnan(rest)
        else f"{', at' if is_cost(second) else ' and'} {figure(second, rest)}"
    )
    return f"Next is {_name(other)}, {behind}{also}."


def _nearest_outside(scene: Candidates, question: Question, choice: Choice) -> str:
    """Where only one qualifies: who all but did."""
    outside = choice.considered.drop(choice.qualified.index)
    if outside.empty:
        return ""
    row = _nearest(outside, question)
    if question.margin is None:
        missed = joined([_miss(limit, row[limit.metric]) for limit in _missed(question, row)])
        return f"The nearest that does not qualify is {_name(row)}: it misses {missed}."
    name = scene.quality.metric
    gap = difference(name, row[name], best(scene)[name])
    return f"The nearest that does not qualify is {_name(row)}, {gap} behind the best."


def _tie(scene: Candidates, choice: Choice, first: str, second: str) -> str:
    """How equal values of `first` were told apart by `second`, or by the place in the table."""
    row, other = choice.qualified.iloc[0], choice.qualified.iloc[1]
    good, cheap = ("good", "cheap") if first == scene.quality.metric else ("cheap", "good")
    tied = values(choice.qualified, first) == _value(row, first)
    own, next_own = _value(row, second), _value(other, second)
    alike = own == next_own or (math.isnan(own) and math.isnan(next_own))
    if alike:
        rest = values(choice.qualified, second)
        tied &= (rest == own) | (rest.isna() & math.isnan(own))
    who = (
        f"{_name(other)} is"
        if tied.sum() == 2
        else f"{count(int(tied.sum()) - 1, 'other')}, {_name(other)} first, are"
    )
    if alike:
        equally = "" if math.isnan(own) else f" and as {cheap}"
        return (
            f"{who} exactly as {good}{equally}; the one that stands first in the table was taken."
        )
    if math.isnan(next_own):
        return f"{who} exactly as {good}, but of unknown {label(second)}."
    if second == scene.quality.metric:
        return f"{who} exactly as {good}, but {difference(second, own, next_own)} behind in {label(second)}."
    return f"{who} exactly as {good}, but not as {cheap}: {_instead(second, next_own, own)}."


def _nobody(scene: Candidates, question: Question, choice: Choice) -> str:
    """Who came closest, and by how much it misses."""
    if scene.pool.empty:
        return f"No {scene.noun} has a result to choose by."
    among = len(choice.considered)
    if not among:
        return f"No {scene.noun} has all the figures that this needs."
    row = _nearest(choice.considered, question)
    missed = _missed(question, row)
    kept = [bound(limit) for limit in question.limits if limit not in missed]
    by = joined([_miss(limit, row[limit.metric]) for limit in missed])
    misses = f"misses {by}{f', but has {joined(kept)}' if kept else ''}"
    has = f"It has {_figures(row, [*scene.figures, scene.price.metric])}."
    if among == 1:
        return f"The only {scene.noun} that could be considered, {_name(row)}, {misses}. {has}"
    keeping = joined([bound(limit) for limit in question.limits])
    closest = f"None of {count(among, scene.noun)} has {keeping}. {_name(row)} comes closest: it {misses}. {has}"
    return f"{closest} {_alone(scene, question, choice)}" if len(question.limits) > 1 else closest


def _nearest(table: pd.DataFrame, question: Question) -> pd.Series:
    """The run that breaks the limits by the smallest fraction of their bounds, summed."""
    return table.iloc[
        int(np.sum([_relative_misses(table, limit) for limit in question.limits], axis=0).argmin())
    ]


def _missed(question: Question, row: pd.Series) -> list[Limit]:
    return [limit for limit in question.limits if not limit.holds(row[limit.metric])]


def _alone(scene: Candidates, question: Question, choice: Choice) -> str:
    """How many keep each limit by itself."""
    parts = []
    for limit in question.limits:
        keep = int(values(choice.considered, limit.metric).map(limit.holds).sum())
        parts.append(f"{bound(limit)} is kept by {count(keep, scene.noun) if keep else 'none'}")
    return f"Taken alone, {joined(parts)}."


def _miss(limit: Limit, measured: float) -> str:
    """Such as "parameters <= 692k by 508k parameters (1.2M, 73% more)"."""
    how = ratio(measured, limit.value) if is_cost(limit.metric) else ""
    own = number(limit.metric, measured, limit.value)
    return f"{bound(limit)} by {difference(limit.metric, measured, limit.value)} ({own}{f', {how}' if how else ''})"


def _relative_misses(table: pd.DataFrame, limit: Limit) -> np.ndarray:
    """By what fraction of the bound each run breaks the limit; 0 where it is kept."""
    broken = values(table, limit.metric).map(limit.violation).to_numpy(dtype=float)
    return np.maximum(broken, 0) / (abs(limit.value) or 1.0)


def _lacking(scene: Candidates, name: str, lacking: int) -> str:
    verb = "has" if lacking == 1 else "have"
    return f"{count(lacking, scene.noun)} {verb} no {label(name)} and could not be considered."


def _left_out(scene: Candidates) -> list[str]:
    """Who does not count in any question."""
    found = []
    if scene.unfinished:
        ends = {status.lower().replace("_", " "): many for status, many in scene.unfinished.items()}
        how = (
            joined([f"{many:,} {end}" for end, many in ends.items()])
            if len(ends) > 1
            else next(iter(ends))
        )
        found.append(f"{count(sum(scene.unfinished.values()), scene.noun)} did not finish ({how}).")
    if scene.unmeasured:
        verb = "has" if scene.unmeasured == 1 else "have"
        found.append(
            f"{count(scene.unmeasured, f'finished {scene.noun}')} {verb} no {label(scene.quality.metric)}."
        )
    if scene.infeasible:
        limits = f" ({joined([bound(limit) for limit in scene.limits])})" if scene.limits else ""
        one = scene.infeasible == 1
        verb, counts = ("breaks", "does") if one else ("break", "do")
        found.append(
            f"{count(scene.infeasible, scene.noun)} {verb} a limit of the study{limits} and {counts} not count."
        )
    return found


def _told(scene: Candidates, question: Question) -> list[str]:
    """Metrics whose figures stand with a chosen run."""
    return [*scene.figures, *(limit.metric for limit in question.limits), scene.price.metric]


def _name(row: pd.Series) -> str:
    return f"{row['label']} (run {str(row['run_id'])[:8]})"


def _value(row: pd.Series, name: str) -> float:
    value = float(row[name]) if name in row else math.nan
    return value if math.isfinite(value) else math.nan


def _figures(row: pd.Series, names: list[str]) -> str:
    """Quality on its split, then cost; what the run does not have is left out."""
    known = [name for name in dict.fromkeys(names) if not math.isnan(_value(row, name))]
    good = [_with_spread(row, name) for name in known if not is_cost(name)]
    cheap = [figure(name, _value(row, name)) for name in known if is_cost(name)]
    quality = f"{joined(good)} on the validation split"
    return f"{quality}, at {joined(cheap)}" if cheap else quality


def _with_spread(row: pd.Series, name: str) -> str:
    spread = _value(row, f"spread/{name}")
    told = figure(name, _value(row, name))
    return (
        f"{told} (mean over the seeds, standard deviation {significant(spread)})"
        if spread > 0
        else told
    )


_ROUNDING = (
    1e-9  # best - margin is a difference of decimal fractions: 0.85 - 0.02 is within 0.02 of 0.85
)


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
        name: Short and unique, such as "cheapest within 0.02" or "best with params <= 692k".
        question: As a person asks it.
        run_id: Of the run that is chosen; empty if none qualifies.
        text: A paragraph in plain language, computed from the figures: what was chosen, against
            what, by how much.
    """

    name: str
    question: str
    run_id: str
    text: str


def decide(
    table: pd.DataFrame,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    margin: float,
    budgets: Sequence[Limit],
    floors: Sequence[Limit],
    cost: str,
) -> list[Answer]:
    """Answers the questions that people have when they look for a model.

    Only runs count that finished, keep the study's limits and have a quality. Of runs with equal
    quality the cheaper one is taken, of equally cheap ones the better; what is still equal goes to
    the one that stands first in the table.

    Args:
        table: From `src.reporting.comparison.compare`, and a column `label`.
        objectives: Of the study; quality is what `quality_objective` finds.
        limits: Of the study, for the text: the table's column `feasible` says who keeps them.
        margin: By how much the cheapest model may be worse than the best, in the unit of the
            quality (0.02 is two percentage points of balanced accuracy); at least 0.
        budgets: What a model may cost, such as "efficiency/params <= 692e3": one question each.
        floors: What a model has to reach, such as "val/recall/mel >= 0.8": two questions each. If
            there are budgets and floors, a last question has all of them at once.
        cost: Recorded name of the metric by which a run is cheap.

    Returns:
        One answer a question, those that no run qualifies for too.

    Raises:
        ConfigError: A margin below 0, or objectives of which none is a quality.
    """
    if not 0 <= margin < math.inf:
        raise ConfigError("margin", f"must be at least 0, but got {margin:g}")
    quality = quality_objective(objectives)
    price = next(
        (objective for objective in objectives if recorded_name(objective.metric) == cost),
        Objective(cost, describe(cost).direction),
    )
    scene = _scene(table, objectives, limits, quality, price)
    questions = _questions(scene, margin, budgets, floors)
    return [
        _answer(scene, question)
        for question in {question.name: question for question in questions}.values()
    ]


def quality_objective(objectives: Sequence[Objective]) -> Objective:
    """What "best" means in a study: the first objective that is to be maximised and is no cost, else the first no cost.

    Raises:
        ConfigError: All objectives are costs.
    """
    found = [objective for objective in objectives if not is_cost(objective.metric)]
    if not found:
        raise ConfigError(
            "objective.objectives",
            "must have one that is no cost, for without a quality none is best",
        )
    return next((objective for objective in found if objective.direction == "maximize"), found[0])


def _scene(
    table: pd.DataFrame,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    quality: Objective,
    price: Objective,
) -> Candidates:
    quality, price = (replace(each, metric=recorded_name(each.metric)) for each in (quality, price))
    finished = table[table["status"] == "FINISHED"]
    measured = finished[values(finished, quality.metric).notna()]
    pool = measured[measured["feasible"].astype(bool)].reset_index(drop=True)
    is_trial = "kind" in table and bool((table["kind"] == "trial").any())
    unfinished = table.loc[table["status"] != "FINISHED", "status"].value_counts()
    return Candidates(
        pool=pool,
        quality=quality,
        price=price,
        figures=tuple(
            dict.fromkeys([quality.metric, *(recorded_name(each.metric) for each in objectives)])
        ),
        limits=tuple(limits),
        noun="trial" if is_trial else "run",
        unfinished={str(status): int(many) for status, many in unfinished.items()},
        unmeasured=len(finished) - len(measured),
        infeasible=len(measured) - len(pool),
    )


def _questions(
    scene: Candidates, margin: float, budgets: Sequence[Limit], floors: Sequence[Limit]
) -> list[Question]:
    what = label(scene.quality.metric)
    near = f"Which model is the cheapest ({_thrift(scene.price)}) within {margin:g} of the best {what}?"
    asked = [
        Question("best", f"Which model has the best {what}, whatever it costs?", "quality"),
        Question(f"cheapest within {margin:g}", near, "price", _within(scene, margin), margin),
    ]
    for budget in budgets:
        asked.append(_limited(scene, "quality", [budget]))
    for floor in floors:
        asked += [_limited(scene, "quality", [floor]), _limited(scene, "price", [floor])]
    if budgets and floors:
        asked.append(_limited(scene, "quality", [*budgets, *floors]))
    return asked


def _thrift(price: Objective) -> str:
    """What cheap means, such as "least FLOPs"."""
    return f"{'most' if price.direction == 'maximize' else 'least'} {label(price.metric)}"


def _within(scene: Candidates, margin: float) -> tuple[Limit, ...]:
    """The bound on quality that a margin makes; none where no run has a quality."""
    name = scene.quality.metric
    if scene.pool.empty:
        return ()
    best = float(in_order(scene.pool, [scene.quality]).iloc[0][name])
    if scene.quality.direction == "minimize":
        return (Limit(name, "<=", best + margin + _ROUNDING),)
    return (Limit(name, ">=", best - margin - _ROUNDING),)


def _limited(scene: Candidates, aim: Aim, limits: Sequence[Limit]) -> Question:
    read = tuple(_read(scene.pool, limit) for limit in limits)
    if aim == "quality":
        what = f"has the best {label(scene.quality.metric)}"
    else:
        what = f"is the cheapest ({_thrift(scene.price)})"
    return Question(
        f"{'best' if aim == 'quality' else 'cheapest'} with {joined([short_bound(limit) for limit in read])}",
        f"Which model {what} among those with {joined([bound(limit) for limit in read])}?",
        aim,
        read,
    )


def _read(pool: pd.DataFrame, limit: Limit) -> Limit:
    """The limit on the recorded metric; melanoma by the name that it has in these runs."""
    name = recorded_name(limit.metric)
    head, _, class_name = name.rpartition("/")
    if name not in pool and class_name.lower() in MELANOMA and head.endswith("/recall"):
        name = f"{head}/{melanoma_class(pool, head.removesuffix('/recall'))}"
    return replace(limit, metric=name)


def _answer(scene: Candidates, question: Question) -> Answer:
    choice = choose(scene, question)
    run_id = str(choice.qualified.iloc[0]["run_id"]) if len(choice.qualified) else ""
    return Answer(question.name, question.question, run_id, paragraph(scene, question, choice))
