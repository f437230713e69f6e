"""Chosen models on test, and warnings: what matters for the decision."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from src.metrics.bootstrap import clopper_pearson
from src.metrics.decision_rules import FLOOR
from src.metrics.registry import Limit, Objective, describe
from src.metrics.thresholds import lesions_to_settle
from src.reporting import comparison
from src.reporting.decisions import sentences
from src.reporting.record import Report
from src.tracking.read import texts

# In the order in which they are counted.
STATES = ["front", "dominated", "over limit", "no value", "pruned", "over_limit", "put_back"]
STATES += ["failed", "killed", "running"]
_TESTED = ["run_id", "label", "metric", "estimate", "low", "high", "seed_sd", "seed_values"]
_TESTED += ["floor", "verdict", "more_lesions", "images"]


def counts(table: pd.DataFrame) -> dict[str, int]:
    """Trials by state, in the order of `STATES`; states without trials are left out."""
    numbers = table["state"].value_counts()
    order = [*STATES, *numbers.index.difference(STATES)]
    return {state: int(numbers[state]) for state in order if state in numbers}


def on_test(report: Report, floors: Sequence[Limit]) -> pd.DataFrame:
    """Quality of the chosen models on test, and whether they keep the floors there.

    Returns:
        Columns run_id, label, metric, estimate, low, high, seed_sd, seed_values, floor, verdict
        (kept, not kept; "undecided" if the interval allows both), more_lesions (that would decide,
        for a recall), images. A row per model and metric. If the quality is a rate at a threshold
        for melanoma recall, that recall has a row too; of a single net with Clopper and Pearson's
        interval, which knows nothing of seeds that differ.
    """
    quality = Limit(report.quality.removeprefix("best/").partition("/")[2], ">=", float("nan"))
    bounds = [quality, *(replace(one, metric=one.per_epoch.removeprefix("val/")) for one in floors)]
    tested = report.intervals.reindex(columns=[*_TESTED[:-4], "images", "groups", "seeds", "split"])
    tested = tested[tested["split"] == "test"]
    measured = {(row["run_id"], row["metric"]): row for row in tested.to_dict("records")}
    if quality.metric.startswith("chosen/"):
        melanoma = quality.metric.rpartition("/")[2]
        bounds.append(Limit(name := f"chosen/sensitivity/{melanoma}", ">=", FLOOR.least))
        values = report.table.set_index("run_id").get(f"test/{name}", pd.Series(dtype=float))
        for run_id, value in values.dropna().items():
            if of_class := measured.get((run_id, f"recall/{melanoma}")):
                low = high = float("nan")
                if of_class["seeds"] == 1:
                    low, high = clopper_pearson(value, int(of_class["groups"]), 0.95)
                row = of_class | {"estimate": value, "low": low, "high": high}
                measured[run_id, name] = row | {"seed_sd": None, "seed_values": None}
    rows = []
    for run_id in dict.fromkeys(answer.run_id for answer in report.answers if answer.run_id):
        for bound in bounds:
            if (run_id, bound.metric) not in measured:
                continue
            row = measured[run_id, bound.metric]
            row = row | {"metric": describe(f"test/{bound.metric}").plain_label}
            if bound is not quality:
                ends = [row[end] for end in ("low", "high") if pd.notna(row[end])]
                verdict = "kept" if bound.holds(row["estimate"]) else "not kept"
                sure = len(set(map(bound.holds, ends))) == 1
                row |= {"floor": f"{bound.operator} {bound.value:g}"}
                row |= {"verdict": verdict if sure else f"{verdict}, undecided"}
                is_recall = bound.metric.startswith(("recall/", "chosen/sensitivity/"))
                if ends and not sure and is_recall:
                    needed = lesions_to_settle(row["estimate"], int(row["groups"]), bound.value)
                    row |= {"more_lesions": needed}
            rows.append(row)
    return pd.DataFrame(rows, columns=_TESTED)


def warnings(
    report: Report, notes: Sequence[str], trials: pd.DataFrame
) -> tuple[list[str], list[str]]:
    """What may change a decision, and remarks; `trials` are the runs as the store has them."""
    table = report.table
    first = table[table["study"] == report.studies[0]]
    tested = table.get("test/accuracy", pd.Series(float("nan"), table.index)).notna()
    former = table["tested"].isin([comparison.FRONT_MEMBER, comparison.ANSWER])
    former &= ~table["front"] & (table["chosen"] == "")
    untested = table[table["front"] & ~tested]
    failures = texts(trials.set_index("run_id"), "tags.test_failure").reindex(untested["run_id"])
    tags = {name: texts(trials, f"tags.{name}") for name in ("device", "git_commit", "git_dirty")}
    names = [objective.metric for objective in report.objectives]
    no_value = table[table["state"] == "no value"].reindex(columns=names).isna().sum()
    doubts = sentences(
        "doubts",
        drawn=texts(trials, "tags.data") == "synthetic",
        no_value=no_value[no_value > 0].to_dict(),
        devices=sorted(set(tags["device"]) - {""}),
        untested=untested["label"],
        failures=[str(text) for text in failures if text],
    )
    remarks = sentences(
        "remarks",
        finished=int((table["status"] == "FINISHED").sum()),
        pruned=int((table["state"] == "pruned").sum()),
        former=table.loc[former, "label"],
        commits=len(set(tags["git_commit"]) - {""}),
        dirty="true" in set(tags["git_dirty"]),
        tested=tested.any(),
    )
    return [
        *comparison.warnings(table),
        *doubts,
        *pruned_above(table, report.curves, report.quality),
        *same_sizes(first, report.objectives),
    ], [*notes, *remarks]


def same_sizes(table: pd.DataFrame, objectives: Sequence[Objective]) -> list[str]:
    """Members of the front with equal FLOPs and parameters, separated by latency only."""
    sizes = [name for name in ("efficiency/flops", "efficiency/params") if name in table]
    names = " ".join(objective.metric for objective in objectives)
    timed = "latency" in names or "throughput" in names
    if not timed or not sizes:
        return []
    keys = [*sizes, *(["compression"] if "compression" in table else [])]
    groups = [rows["label"] for _, rows in table[table["front"]].groupby(keys) if len(rows) > 1]
    return sentences("same_sizes", groups=groups)


def pruned_above(table: pd.DataFrame, curves: pd.DataFrame, quality: str) -> list[str]:
    """Pruned trials that were better in some epoch than the best finished trial."""
    best = table.loc[table["status"] == "FINISHED", "quality"].max()
    if curves.empty or pd.isna(best) or describe(quality).direction != "maximize":
        return []
    highest = curves[curves["state"] == "pruned"].groupby("label")["value"].max()
    above = highest[highest > best].sort_values(ascending=False)
    names = [f"{label} ({value:.3f})" for label, value in above.items()]
    return sentences("pruned_above", best=best, names=names)
