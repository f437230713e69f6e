"""Which model to take: questions of a person, each answered by one run, with the reasons in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from src.analysis.choice import Aim, Question, Scene, choose, in_order, values
from src.analysis.comparison import MELANOMA, melanoma_class, recorded_name
from src.analysis.reasons import paragraph
from src.analysis.wording import bound, is_cost, joined, label, short_bound
from src.errors import ConfigError
from src.objectives import Limit, Objective, describe

_ROUNDING = 1e-9  # best - margin is a difference of decimal fractions: 0.85 - 0.02 is within 0.02 of 0.85


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
        name: Short and unique, such as "cheapest within 0.02" or "best with params <= 692k".
        question: As a person asks it.
        run_id: Of the run that is chosen; empty if none qualifies.
        text: A paragraph in plain language, computed from the figures: what was chosen, against what, by how much.
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

    Only runs count that finished, keep the study's limits and have a quality. Of runs with equal quality the cheaper
    one is taken, of equally cheap ones the better; what is still equal goes to the one that stands first in the table.

    Args:
        table: From `src.analysis.comparison.compare`, and a column `label`.
        objectives: Of the study; quality is what `quality_objective` finds.
        limits: Of the study, for the text: the table's column `feasible` says who keeps them.
        margin: By how much the cheapest model may be worse than the best, in the unit of the quality (0.02 is two
            percentage points of balanced accuracy); at least 0.
        budgets: What a model may cost, such as "efficiency/params <= 692e3": one question each.
        floors: What a model has to reach, such as "val/recall/mel >= 0.8": two questions each. If there are budgets and
            floors, a last question has all of them at once.
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
    return [_answer(scene, question) for question in {question.name: question for question in questions}.values()]


def quality_objective(objectives: Sequence[Objective]) -> Objective:
    """What "best" means in a study: the first objective that is to be maximised and is no cost, else the first no cost.

    Raises:
        ConfigError: All objectives are costs.
    """
    found = [objective for objective in objectives if not is_cost(objective.metric)]
    if not found:
        raise ConfigError("objective.objectives", "must have one that is no cost, for without a quality none is best")
    return next((objective for objective in found if objective.direction == "maximize"), found[0])


def _scene(
    table: pd.DataFrame,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    quality: Objective,
    price: Objective,
) -> Scene:
    quality, price = (replace(each, metric=recorded_name(each.metric)) for each in (quality, price))
    finished = table[table["status"] == "FINISHED"]
    measured = finished[values(finished, quality.metric).notna()]
    pool = measured[measured["feasible"].astype(bool)].reset_index(drop=True)
    is_trial = "kind" in table and bool((table["kind"] == "trial").any())
    unfinished = table.loc[table["status"] != "FINISHED", "status"].value_counts()
    return Scene(
        pool=pool,
        quality=quality,
        price=price,
        figures=tuple(dict.fromkeys([quality.metric, *(recorded_name(each.metric) for each in objectives)])),
        limits=tuple(limits),
        noun="trial" if is_trial else "run",
        unfinished={str(status): int(many) for status, many in unfinished.items()},
        unmeasured=len(finished) - len(measured),
        infeasible=len(measured) - len(pool),
    )


def _questions(scene: Scene, margin: float, budgets: Sequence[Limit], floors: Sequence[Limit]) -> list[Question]:
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


def _within(scene: Scene, margin: float) -> tuple[Limit, ...]:
    """The bound on quality that a margin makes; none where no run has a quality."""
    name = scene.quality.metric
    if scene.pool.empty:
        return ()
    best = float(in_order(scene.pool, [scene.quality]).iloc[0][name])
    if scene.quality.direction == "minimize":
        return (Limit(name, "<=", best + margin + _ROUNDING),)
    return (Limit(name, ">=", best - margin - _ROUNDING),)


def _limited(scene: Scene, aim: Aim, limits: Sequence[Limit]) -> Question:
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


def _answer(scene: Scene, question: Question) -> Answer:
    choice = choose(scene, question)
    run_id = str(choice.qualified.iloc[0]["run_id"]) if len(choice.qualified) else ""
    return Answer(question.name, question.question, run_id, paragraph(scene, question, choice))
