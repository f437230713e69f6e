"""Findings and warnings of a report: sentences that matter for the decision."""

from collections.abc import Sequence

import pandas as pd

from src.metrics.formatting import count, figure, interval
from src.metrics.registry import RECORDED, Limit, Objective, describe
from src.reporting import comparison
from src.reporting.record import Report
from src.reporting.uncertainty import tied_groups
from src.tracking.read import texts

STATES = {
    "front": "on the front",
    "dominated": "dominated",
    "over limit": "trained, but over a limit",
    "no value": "without a value of an objective",
    "pruned": "pruned",
    "over_limit": "not trained, over a limit",
    "put_back": "stopped with the study and run again as another trial",
    "failed": "failed",
    "killed": "killed",
    "running": "running",
}


def counts(table: pd.DataFrame) -> dict[str, int]:
    """Trials by state, in the order of `STATES`; states without trials are left out."""
    numbers = table["state"].value_counts()
    order = [*STATES, *numbers.index.difference(list(STATES))]
    return {state: int(numbers[state]) for state in order if state in numbers}


def findings(report: Report, knee: str, floors: Sequence[Limit]) -> list[str]:
    """How the trials ended, the knee, whether chosen models keep the floors on test, and ties.

    `knee` says how the knee was found, or why there is none.
    """
    rows = report.table[report.table["study"] == report.studies[0]]
    ends = [f"{number} {STATES.get(state, state)}" for state, number in counts(rows).items()]
    volume = f"The hypervolume of the front is {report.hypervolume[report.studies[0]]:.3f} of 1."
    sentences = [f"{count(len(rows), 'trial')}: {', '.join(ends)}. {volume}"]
    names = [objective.metric for objective in report.objectives]
    for row in rows[rows["knee"]].to_dict("records"):
        figures = ", ".join(figure(name, row[name]) for name in names)
        sentences.append(f"The knee is {row['label']} (run {row['run_id'][:8]}): {figures}.")
    return [*sentences, knee, *on_test(report, floors), *ties(report.pairs)]


def on_test(report: Report, floors: Sequence[Limit]) -> list[str]:
    """The quality of the chosen models on test, and whether they keep the floors there."""
    metric = report.quality.removeprefix("best/").partition("/")[2]
    tested = report.intervals
    tested = tested[tested["split"] == "test"] if len(tested) else tested
    rows = {(row["run_id"], row["metric"]): row for row in tested.to_dict("records")}
    labels = dict(zip(report.table["run_id"], report.table["label"], strict=True))
    named = [(metric, None), *((floor.per_epoch.removeprefix("val/"), floor) for floor in floors)]
    sentences = []
    for run_id in dict.fromkeys(answer.run_id for answer in report.answers if answer.run_id):
        parts = []
        for name, floor in named:
            row = rows.get((run_id, name))
            if row is None:
                continue
            label = describe(f"test/{name}").label.partition(" (")[0]
            text = f"{label} {row['estimate']:.3f}{interval(row['low'], row['high'])}"
            if floor:
                ends = [row[end] for end in ("low", "high") if pd.notna(row[end])]
                verdicts = set(map(floor.holds, ends))
                kept = "kept" if floor.holds(row["estimate"]) else "not kept"
                sure = "" if len(verdicts) == 1 else ", but the interval allows both"
                bound = f"{floor.operator} {floor.value:g}"
                text += f", {bound} is {kept}{sure} ({row['images']} images)"
            parts.append(text)
        if (run_id, metric) in rows:
            sentences.append(f"{labels[run_id]} on test: {'; '.join(parts)}.")
    return sentences


def ties(pairs: pd.DataFrame) -> list[str]:
    """Groups of neighbours on the front that the tests cannot distinguish."""
    if pairs.empty:
        return []
    labels = dict(zip(pairs["run_a"], pairs["label_a"], strict=True))
    labels |= dict(zip(pairs["run_b"], pairs["label_b"], strict=True))
    what = describe(f"{RECORDED[pairs['split'].iloc[0]]}/{pairs['metric'].iloc[0]}").label
    return [
        f"Not distinguishable in {what}: {', '.join(labels[run] for run in group)}."
        for group in tied_groups(pairs)
    ]


def warnings(report: Report, notes: Sequence[str], trials: pd.DataFrame) -> list[str]:
    """What may make the figures misleading; `trials` are the same runs as the store has them."""
    table = report.table
    first = table[table["study"] == report.studies[0]]
    return [
        *notes,
        *same_sizes(first, report.objectives),
        *pruned_above(table, report.curves, report.quality),
        *comparison.warnings(table),
        *_of_trials(table, trials, report.objectives),
        "FLOPs: a multiply-add counts as one; each run records the operators that are not counted.",
        "Research software, no medical device: none of these models is fit for use on people.",
    ]


def same_sizes(table: pd.DataFrame, objectives: Sequence[Objective]) -> list[str]:
    """Members of the front with equal FLOPs and parameters, separated by latency only."""
    sizes = [name for name in ("efficiency/flops", "efficiency/params") if name in table]
    names = " ".join(objective.metric for objective in objectives)
    timed = "latency" in names or "throughput" in names
    if not timed or not sizes:
        return []
    keys = [*sizes, *(["compression"] if "compression" in table else [])]
    groups = [rows["label"] for _, rows in table[table["front"]].groupby(keys) if len(rows) > 1]
    return [
        f"{' and '.join(labels)} have the same FLOPs and parameters: noise of the latency "
        "measurement may keep all of them on the front."
        for labels in groups
    ]


def pruned_above(table: pd.DataFrame, curves: pd.DataFrame, quality: str) -> list[str]:
    """Pruned trials that were better in some epoch than the best finished trial."""
    best = table.loc[table["status"] == "FINISHED", "quality"].max()
    if curves.empty or pd.isna(best) or describe(quality).direction != "maximize":
        return []
    highest = curves[curves["state"] == "pruned"].groupby("label")["value"].max()
    above = highest[highest > best].sort_values(ascending=False)
    names = ", ".join(f"{label} ({value:.3f})" for label, value in above.items())
    sentence = (
        f"{count(len(above), 'pruned trial')} had more than the best finished trial's {best:.3f} "
        f"in some epoch: {names}. The pruner weighs costs, too, and a pruned trial has fewer seeds."
    )
    return [sentence] if len(above) else []


def _of_trials(
    table: pd.DataFrame, trials: pd.DataFrame, objectives: Sequence[Objective]
) -> list[str]:
    """Missing values, former members, devices, commits, data, and use of the test images."""
    finished = count(int((table["status"] == "FINISHED").sum()), "finished trial")
    pruned = int((table["state"] == "pruned").sum())
    tested = table.get("test/accuracy", pd.Series(float("nan"), table.index)).notna()
    former = table["tested"].isin([comparison.FRONT_MEMBER, comparison.ANSWER])
    former &= ~table["front"] & (table["chosen"] == "")
    formerly = ", ".join(table.loc[former, "label"])
    untested = table[table["front"] & ~tested]
    failures = texts(trials.set_index("run_id"), "tags.test_failure").reindex(untested["run_id"])
    reason = next((f" ({str(text)[:200]})" for text in failures if text), "")
    members = f"{count(len(untested), 'member')} of the front: {', '.join(untested['label'])}"
    devices, commits = (
        [name for name in texts(trials, f"tags.{tag}").unique() if name]
        for tag in ("device", "git_commit")
    )
    dirty = (texts(trials, "tags.git_dirty") == "true").any()
    drawn = texts(trials, "tags.data") == "synthetic"
    images = "The images" if drawn.all() else "The images of some of these trials"
    used = "; test figures chose nothing" if tested.any() else ""
    sentences: dict[str, object] = {}
    for name in [objective.metric for objective in objectives]:
        silent = (table["state"] == "no value") & table.get(name, pd.Series(0, table.index)).isna()
        missing = count(int(silent.sum()), "finished trial")
        sentences[f"{missing} without {name} cannot be on the front."] = silent.any()
    sentences |= {
        f"Effects and importance are of {finished}, without {pruned} pruned.": pruned,
        f"Tested for an earlier front or another report: {formerly}.": formerly,
        f"Latency was measured on different devices ({', '.join(devices)}): milliseconds cannot be "
        "compared.": len(devices) > 1,
        f"The trials ran on {len(commits)} different commits.": len(commits) > 1,
        "Some trials ran with uncommitted changes.": dirty,
        f"Everything was chosen on validation images{used}.": True,
        f"No test figures for {members}{reason}.": len(untested),
        f"{images} are drawn, not photographed: figures say nothing about skin.": drawn.any(),
    }
    return [sentence for sentence, holds in sentences.items() if holds]
