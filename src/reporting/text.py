"""Findings and warnings in words."""

from collections.abc import Sequence

import pandas as pd

from src.metrics.formatting import count, figure, is_cost
from src.metrics.registry import Limit, Objective, describe, recorded_name
from src.reporting import ablation, collect
from src.reporting.comparison import ANSWER, FRONT_MEMBER, notes
from src.reporting.decisions import Answer, quality_objective
from src.reporting.record import Report
from src.reporting.uncertainty import say_drops, say_pairs

ENDS = {
    "front": "on the front",
    "dominated": "dominated",
    "over limit": "trained but over a limit",
    "no value": "without a value in an objective",
    "pruned": "stopped early",
    "over_limit": "not trained, over a limit",
    "failed": "failed",
    "killed": "killed",
    "running": "still running",
}


def counts(table: pd.DataFrame) -> dict[str, int]:
    """How many trials ended how, in the order of `ENDS`; ends that did not occur are left out."""
    found = table["state"].value_counts()
    return {
        state: int(found[state])
        for state in [*ENDS, *found.index.difference(list(ENDS))]
        if state in found
    }


def opening(
    table: pd.DataFrame, objectives: Sequence[Objective], limits: Sequence[Limit], volume: float
) -> str:
    """What was tried, how it ended, and how large the front is."""
    ends = counts(table)
    told = ", ".join(f"{number} {ENDS.get(state, state)}" for state, number in ends.items())
    wanted = " and ".join(
        f"{'more' if each.direction == 'maximize' else 'less'} {describe(each.metric).label}"
        for each in objectives
    )
    kept = f", keeping {' and '.join(map(str, limits))}" if limits else ""
    drawn = f"The front is drawn over {wanted}{kept}; its hypervolume is {volume:.3f} of 1."
    return f"{count(len(table), 'trial')}: {told}. {drawn}"


def at_the_knee(table: pd.DataFrame, objectives: Sequence[Objective], how: str) -> str:
    """Where the front bends, and what the next dearer and cheaper members would bring."""
    rows = table[table["knee"]]
    if rows.empty:
        return how
    row = rows.iloc[0]
    figures = ", ".join(
        figure(recorded_name(each.metric), row[recorded_name(each.metric)]) for each in objectives
    )
    return f"The knee of the front is {row['label']} (run {row['run_id'][:8]}): {figures}. {how}"


def on_test(
    answers: Sequence[Answer],
    table: pd.DataFrame,
    intervals: pd.DataFrame,
    floors: Sequence[Limit],
    metric: str,
) -> list[str]:
    """What the chosen models reach on test, and whether they keep there what they were chosen for.

    Args:
        answers: Of the report.
        table: Of the report.
        intervals: Columns of `Report.intervals`.
        floors: Of the answers, such as val/recall/mel >= 0.8.
        metric: The quality's name without its prefix.
    """
    label = dict(zip(table["run_id"], table["label"], strict=True))
    rows = {
        (row["run_id"], row["metric"]): row
        for _, row in intervals[intervals["split"] == "test"].iterrows()
    }
    told = []
    for run_id in dict.fromkeys(answer.run_id for answer in answers if answer.run_id):
        if (run_id, metric) not in rows:
            continue
        parts = [_with_interval(metric, rows[run_id, metric])]
        for floor in floors:
            name = floor.metric.removeprefix("val/")
            row = rows.get((run_id, name))
            if row is not None:
                parts.append(f"{_with_interval(name, row)}, {_kept(floor, row)}")
        told.append(f"{label[run_id]} on test: {'; '.join(parts)}.")
    return told


def _with_interval(metric: str, row: pd.Series) -> str:
    interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if pd.notna(row["low"]) else ""
    return f"{describe(f'test/{metric}').label.partition(' (')[0]} {row['estimate']:.3f}{interval}"


def _kept(floor: Limit, row: pd.Series) -> str:
    """Whether a bound holds: surely, surely not, or as far as this many images can tell."""
    wanted = f"{floor.operator} {floor.value:g}"
    seen = f"{int(row['images'])} images"
    if pd.notna(row["low"]) and floor.holds(row["low"]) and floor.holds(row["high"]):
        return f"{wanted} is kept with its whole interval ({seen})"
    if pd.notna(row["low"]) and not floor.holds(row["low"]) and not floor.holds(row["high"]):
        return f"{wanted} is not kept ({seen})"
    verdict = "kept" if floor.holds(row["estimate"]) else "not kept"
    return f"{wanted} is {verdict} by the estimate, but the interval allows both ({seen})"


def most_important(importance: pd.DataFrame, objectives: Sequence[Objective]) -> list[str]:
    """Which parameter each of these objectives depends on most, by PED-ANOVA."""
    found = []
    for objective in objectives:
        rows = importance[importance["objective"] == objective.metric].sort_values(
            "importance", ascending=False
        )
        if len(rows) > 1:
            one, two = rows.iloc[0], rows.iloc[1]
            found.append(
                f"Whether a trial is among the best in {describe(objective.metric).label} depends most on "
                f"{one['parameter']} ({one['importance']:.0%} of PED-ANOVA's importance), then on {two['parameter']} "
                f"({two['importance']:.0%})."
            )
    return found


def compared(comparison: pd.DataFrame, new: Sequence[str]) -> list[str]:
    """What several studies, or a study at two times, have over each other."""
    if len(comparison) < 2:
        return []
    rows = comparison.sort_values("hypervolume", ascending=False, kind="stable")
    told = "; ".join(
        f"{row['study']} {row['hypervolume']:.3f} ({row['front']} on its front, {row['new_points']} that no other has)"
        for _, row in rows.iterrows()
    )
    first = comparison["study"].iloc[0]
    fresh = (
        f"New in {first}: {', '.join(new)}." if new else f"Nothing on the front of {first} is new."
    )
    return [f"Hypervolume, on one scale for all: {told}. {fresh}"]


def warned(table: pd.DataFrame, objectives: Sequence[Objective], trials: pd.DataFrame) -> list[str]:
    """What a reader must know before believing the figures.

    Args:
        table: Of the report.
        objectives: Of the front.
        trials: The same runs as the store gave them.
    """
    found = [note for note in notes(table) if not note.startswith("FLOPs:")]
    for objective in objectives:
        name = recorded_name(objective.metric)
        silent = (
            table[(table["state"] == "no value") & table[name].isna()]
            if name in table
            else table.iloc[:0]
        )
        if len(silent):
            found.append(
                f"{count(len(silent), 'finished trial')} without {name} cannot be on the front."
            )
    pruned = int((table["state"] == "pruned").sum())
    if pruned:
        finished = int((table["status"] == "FINISHED").sum())
        found.append(
            f"Effects and importance are of the {count(finished, 'finished trial')}; {pruned} that the pruner stopped "
            "are not in them."
        )
    former = table[
        table["tested"].isin([FRONT_MEMBER, ANSWER]) & ~table["front"] & (table["chosen"] == "")
    ]
    if len(former):
        names = ", ".join(former["label"])
        found.append(
            f"Tested for an earlier front or another report, and not on this front: {names}."
        )
    devices = [
        name
        for name in trials.get("tags.device", pd.Series(dtype=object)).dropna().unique()
        if name
    ]
    if len(devices) > 1:
        found.append(
            f"Latency was measured on different devices ({', '.join(devices)}): milliseconds do not compare."
        )
    commits = [
        name
        for name in trials.get("tags.git_commit", pd.Series(dtype=object)).dropna().unique()
        if name
    ]
    if len(commits) > 1:
        found.append(f"The trials ran on {len(commits)} different commits.")
    if (trials.get("tags.git_dirty", pd.Series(dtype=object)) == "true").any():
        found.append("Some trials ran with changes that were not committed.")
    found += _of_test(table, trials)
    data = trials.get("tags.data", pd.Series("", index=trials.index))
    if (data == "synthetic").any():
        which = (
            "The images" if (data == "synthetic").all() else "The images of some of these trials"
        )
        found.append(f"{which} are drawn, not photographed: their figures say nothing about skin.")
    found.append(
        "FLOPs: a multiply-add counts as one; operators that are not counted stand in each run's record."
    )
    found.append(
        "Research software, no medical device: none of these models is fit for use on people."
    )
    return found


def _of_test(table: pd.DataFrame, trials: pd.DataFrame) -> list[str]:
    """What the test images were used for, and for whom they were not."""
    tested = table.get("test/accuracy", pd.Series(float("nan"), index=table.index)).notna()
    found = [
        "Everything was chosen on validation images"
        + ("; the figures called test chose nothing." if tested.any() else ".")
    ]
    lacking = table[table["front"] & ~tested]
    if len(lacking):
        reasons = trials.set_index("run_id").get("tags.test_failure", pd.Series(dtype=object))
        why = reasons.reindex(lacking["run_id"]).dropna().unique()
        told = f" ({str(why[0])[:200]})" if len(why) else ""
        members = count(len(lacking), "member")
        found.append(
            f"No figures on test for {members} of the front: {', '.join(lacking['label'])}{told}."
        )
    return found


def stopped_above(table: pd.DataFrame, curves: pd.DataFrame, quality: str) -> list[str]:
    """Stopped trials that stood above the best finished one: with several objectives cost decides, too.

    Args:
        table: Of the report.
        curves: Columns of `Report.curves`.
        quality: Recorded name of the quality; nothing is said of one that is better when it is
            less.
    """
    best = table.loc[table["status"] == "FINISHED", "quality"].max()
    if curves.empty or pd.isna(best) or describe(quality).direction != "maximize":
        return []
    highest = curves[curves["state"] == "pruned"].groupby("label")["value"].max()
    above = highest[highest > best].sort_values(ascending=False)
    if above.empty:
        return []
    names = ", ".join(f"{label} ({value:.3f})" for label, value in above.items())
    return [
        f"{count(len(above), 'trial')} stood above the best finished one's {best:.3f} in some epoch before the pruner "
        f"stopped {'it' if len(above) == 1 else 'them'}: {names}. The pruner weighs costs too, and a stopped trial has "
        "fewer seeds behind its figure."
    ]


def same_nets(table: pd.DataFrame, objectives: Sequence[Objective]) -> list[str]:
    """Members of the front of the same size, which differ in measured latency only: it is never the same twice."""
    sizes = [name for name in ("efficiency/flops", "efficiency/params") if name in table]
    sizes += ["compression"] if sizes and "compression" in table else []
    if (
        not any("latency" in each.metric or "throughput" in each.metric for each in objectives)
        or not sizes
    ):
        return []
    found = []
    for _, rows in table[table["front"]].groupby(sizes):
        if len(rows) > 1:
            found.append(
                f"{' and '.join(rows['label'])} have the same FLOPs and parameters: what keeps all of them on the "
                "front may be the noise of the latency measurement."
            )
    return found


EFFECTS_TOLD = 8
FEW = 3  # parameters


def paragraphs(
    report: Report, knee: str, floors: Sequence[Limit], level: float, fresh: Sequence[str]
) -> list[str]:
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
        opening(own, report.objectives, report.limits, report.hypervolume[report.studies[0]]),
        at_the_knee(own, report.objectives, knee),
        *on_test(report.answers, report.table, report.intervals, floors, metric),
        *say_pairs(report.pairs, level),
        *say_drops(report.drops, level),
        *most_important(report.importance, qualities),
        *_told(ablation.say_effects(report.effects, qualities)),
        *_knees(report.effects, report.objectives),
        *collect.said(report),
        *compared(report.comparison, fresh),
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
        *same_nets(own, report.objectives),
        *stopped_above(report.table, report.curves, report.quality),
        *warned(report.table, report.objectives, trials),
    ]


def _told(findings: list[str]) -> list[str]:
    """The strongest findings, and the last sentence, which says how many were looked at."""
    return (
        findings if len(findings) <= EFFECTS_TOLD else [*findings[: EFFECTS_TOLD - 1], findings[-1]]
    )


def _knees(effects: pd.DataFrame, objectives: Sequence[Objective]) -> list[str]:
    """Down to where a parameter may be lowered, in studies of few parameters, where the others don't hide it."""
    if effects.empty or effects["parameter"].nunique() > FEW:
        return []
    quality = quality_objective(objectives)
    told = effects[effects["ordered"] & (effects["objective"] == quality.metric)]
    return [ablation.knee_of(effects, str(name), quality)[1] for name in told["parameter"].unique()]
