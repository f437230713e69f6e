"""From runs to a report: everything is computed here, nothing drawn."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from src.analysis import ablation, curves, importance, swept
from src.analysis.decision import Answer, decide
from src.analysis.hypervolume import hypervolume
from src.analysis.scale import Scale
from src.analysis.wording import is_cost
from src.errors import ConfigError
from src.objectives import Limit, Objective, parse_limits
from src.reporting import findings, front, narrative
from src.reporting.collect import Study
from src.reporting.commands import retrain
from src.reporting.measured import measure, with_intervals
from src.reporting.reader import Reader
from src.reporting.record import Report
from src.reporting.settings import Settings
from src.tracking.limits import masked

CURVES = 120  # trials whose learning curves are read and drawn


def build(
    studies: Sequence[Study],
    objectives: list[Objective],
    limits: list[Limit],
    reader: Reader,
    settings: Settings,
    title: str,
    earlier: Study | None = None,
) -> Report:
    """Compute a report.

    Args:
        studies: One, or several side by side; the answers are of the first.
        objectives: Over which the fronts are drawn.
        limits: That their members keep.
        reader: Of predictions and histories.
        settings: Of the report.
        title: Of the report.
        earlier: The first study as it was, to compare it with.
    """
    compared = [front.compared(each, objectives, limits) for each in [*studies, *([earlier] if earlier else [])]]
    scale = Scale.fit(np.vstack([front.values_of(each, objectives) for each in compared]), objectives)
    ranked = [front.rank(each, objectives, scale) for each in compared[: len(studies)]]
    tables = [each for each, _ in ranked]
    if len(tables) > 1:
        tables = [each.assign(label=each["study"] + " " + each["label"]) for each in tables]
    own = tables[0]
    answers = decide_on(own, objectives, limits, settings)
    table = pd.concat(tables, ignore_index=True)
    table = table.assign(chosen=_chosen(table, answers), command="")
    quality = front.quality_of(objectives)
    cost = cost_of(own, objectives)
    metric = quality.removeprefix("best/").partition("/")[2]
    measured = measure(table, cost, metric, reader, settings)
    table = with_intervals(table, measured.intervals, quality)
    table["command"] = _commands(table, reader)
    parameters = swept.parameters(table[table["state"].isin(["front", "dominated", "over limit"])])
    first = table[table["study"] == own["study"].iloc[0]]  # over several studies data and protocol would be mixed in
    effects = ablation.effects(first, swept.parameters(first), objectives)
    weights, reasons = importance.importance(first, swept.parameters(first), objectives)
    beside, fresh = front.comparison([*tables, *compared[len(studies) :]], objectives, scale)
    trials = pd.concat([each.trials for each in studies], ignore_index=True)
    volumes = {each["study"].iloc[0]: hypervolume(scale.transform(_front(each, objectives))) for each in tables}
    report = Report(
        title=title,
        studies=[each.name for each in studies],
        objectives=objectives,
        limits=limits,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        source=masked(reader.store.uri),
        table=table,
        quality=quality,
        costs=front.costs_of(table, objectives),
        parameters=parameters,
        answers=answers,
        intervals=measured.intervals,
        pairs=measured.pairs,
        drops=measured.drops,
        effects=effects,
        importance=weights,
        curves=_curves(table, quality, reader),
        progress=pd.concat([front.progress(each, objectives, scale) for each in tables], ignore_index=True),
        recalls=measured.recalls,
        reference=scale.describe(),
        hypervolume=volumes,
        counts=narrative.counts(table),
        paragraphs=[],
        warnings=[],
        comparison=beside if len(compared) > 1 else pd.DataFrame(),
        tables=_ablations(effects, objectives),
    )
    floors = bounds_of(settings)["floors"]
    # the reasons of one objective: those of the others say the same of the same trials
    notes = [*measured.notes, *reasons[:1]]
    return replace(
        report,
        paragraphs=findings.paragraphs(report, ranked[0][1], floors, settings.level, fresh),
        warnings=findings.warnings(report, notes, trials),
    )


def decide_on(
    table: pd.DataFrame, objectives: Sequence[Objective], limits: Sequence[Limit], settings: Settings
) -> list[Answer]:
    """The answers for one study.

    Args:
        table: Of its trials, with their labels.
        objectives: Of the report.
        limits: Of the report.
        settings: Margin, budgets and floors.

    Raises:
        ConfigError: A budget or a floor that is none; the message names the key.
    """
    return decide(table, objectives, limits, settings.margin, **bounds_of(settings), cost=cost_of(table, objectives))


def bounds_of(settings: Settings) -> dict[str, list[Limit]]:
    """Budgets and floors.

    Raises:
        ConfigError: A text that is no limit; the message names the key.
    """
    return {
        key: [_limit(text, f"{key}[{number}]") for number, text in enumerate(getattr(settings, key))]
        for key in ("budgets", "floors")
    }


def cost_of(table: pd.DataFrame, objectives: Sequence[Objective]) -> str:
    """By which metric a model is cheap: the first cost among the objectives, else FLOPs."""
    named = [each.metric for each in objectives if is_cost(each.metric)]
    return named[0] if named else "efficiency/flops"


def _limit(text: str, key: str) -> Limit:
    """A budget or a floor; `params <= 692e3` and `recall/mel >= 0.8` may stand without efficiency/ and val/."""
    problems = []
    for prefix in ("", "efficiency/", "val/"):
        try:
            return parse_limits({"limits": [f"{prefix}{text.strip()}"]})[0]
        except ConfigError as error:
            problems.append(error.problem)
    raise ConfigError(key, problems[0])


def _front(table: pd.DataFrame, objectives: Sequence[Objective]) -> np.ndarray:
    return front.values_of(table[table["front"]], objectives)


def _chosen(table: pd.DataFrame, answers: Sequence[Answer]) -> pd.Series:
    names = {
        run_id: ", ".join(answer.name for answer in answers if answer.run_id == run_id)
        for run_id in {answer.run_id for answer in answers if answer.run_id}
    }
    return table["run_id"].map(names).fillna("")


def _commands(table: pd.DataFrame, reader: Reader) -> pd.Series:
    found = pd.Series("", index=table.index, dtype=object)
    for at in table.index[table["front"] | (table["chosen"] != "")]:
        run_id = str(table.at[at, "run_id"])
        study = reader.study_of(run_id)
        row = study.trials[study.trials["run_id"] == run_id].iloc[0]
        found[at] = retrain(study, row, reader.artifacts(run_id))
    return found


def _curves(table: pd.DataFrame, quality: str, reader: Reader) -> pd.DataFrame:
    """Of the quality, for the interesting trials and for others evenly from the best to the worst."""
    always = table["front"] | (table["chosen"] != "")
    others = np.flatnonzero(~always & ~table["state"].isin(["over_limit"]))
    picked = others[np.unique(np.linspace(0, len(others) - 1, min(CURVES, len(others))).round().astype(int))]
    shown = table[always | table.index.isin(table.index[picked])]
    history, trial_of = reader.history(list(shown["run_id"]), quality.removeprefix("best/"))
    return curves.curves(history, shown, trial_of)


def _ablations(effects: pd.DataFrame, objectives: Sequence[Objective]) -> dict[str, pd.DataFrame]:
    if effects.empty:
        return {}
    return {
        f"effect of {name}": ablation.ablation_table(effects, objectives, [name]).drop(columns="parameter")
        for name in effects["parameter"].unique()
    }
