"""The findings of a report and what a reader must know before believing them, put together from its figures."""

from collections.abc import Sequence

import pandas as pd

from src.analysis import ablation
from src.analysis.decision import quality_objective
from src.analysis.uncertainty import say_drops, say_pairs
from src.analysis.wording import is_cost
from src.objectives import Limit, Objective
from src.reporting import narrative, origins
from src.reporting.record import Report

EFFECTS_TOLD = 8
FEW = 3  # parameters


def paragraphs(report: Report, knee: str, floors: Sequence[Limit], level: float, fresh: Sequence[str]) -> list[str]:
    """The findings in plain language, the most important first.

    Args:
        report: With all its figures.
        knee: How the knee was found, or why there is none.
        floors: Of the answers.
        level: Of the intervals and tests.
        fresh: Labels of the first study's members that no other front covers.
    """
    own = report.table[report.table["study"] == report.studies[0]]
    metric = report.quality.removeprefix("best/").partition("/")[2]
    # of costs a net's own figures say more than averages over trials that were not drawn evenly
    qualities = [each for each in report.objectives if not is_cost(each.metric)]
    return [
        narrative.opening(own, report.objectives, report.limits, report.hypervolume[report.studies[0]]),
        narrative.at_the_knee(own, report.objectives, knee),
        *narrative.on_test(report.answers, report.table, report.intervals, floors, metric),
        *say_pairs(report.pairs, level),
        *say_drops(report.drops, level),
        *narrative.most_important(report.importance, qualities),
        *_told(ablation.say_effects(report.effects, qualities)),
        *_knees(report.effects, report.objectives),
        *origins.said(report),
        *narrative.compared(report.comparison, fresh),
    ]


def warnings(report: Report, notes: Sequence[str], trials: pd.DataFrame) -> list[str]:
    """What a reader must know before believing the figures.

    Args:
        report: With all its figures.
        notes: Of what could not be computed, or rests on little.
        trials: The same runs as the store gave them.
    """
    own = report.table[report.table["study"] == report.studies[0]]
    return [
        *notes,
        *narrative.same_nets(own, report.objectives),
        *narrative.stopped_above(report.table, report.curves, report.quality),
        *narrative.warned(report.table, report.objectives, trials),
    ]


def _told(findings: list[str]) -> list[str]:
    """The strongest findings, and the last sentence, which says how many were looked at."""
    return findings if len(findings) <= EFFECTS_TOLD else [*findings[: EFFECTS_TOLD - 1], findings[-1]]


def _knees(effects: pd.DataFrame, objectives: Sequence[Objective]) -> list[str]:
    """Down to where a parameter may be lowered, in studies of few parameters, where the others don't hide it."""
    if effects.empty or effects["parameter"].nunique() > FEW:
        return []
    quality = quality_objective(objectives)
    told = effects[effects["ordered"] & (effects["objective"] == quality.metric)]
    return [ablation.knee_of(effects, str(name), quality)[1] for name in told["parameter"].unique()]
