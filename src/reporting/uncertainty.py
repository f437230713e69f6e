"""How sure figures are: intervals, paired tests, drop from val to test, floors, and warnings."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.metrics import bootstrap, curves, registry
from src.metrics.bootstrap import DifferentImagesError, clopper_pearson
from src.metrics.decision_rules import FLOOR
from src.metrics.paired import holm, mcnemar, paired_difference
from src.metrics.registry import Limit, Objective, describe
from src.metrics.thresholds import lesions_to_settle
from src.reporting import comparison
from src.reporting.collect import StudyRuns
from src.reporting.decisions import sentences
from src.reporting.record import Report, ReportSettings
from src.tracking.read import texts

INTERVALS = ["run_id", "label", "split", "metric", "estimate", "low", "high"]
INTERVALS += ["images", "groups", "seeds", "seed_sd", "seed_values"]
PAIRS = ["run_a", "run_b", "label_a", "label_b", "metric", "split", "difference", "low", "high"]
PAIRS += ["p_bootstrap", "p_mcnemar", "p_adjusted", "tied"]
DROPS = ["run_id", "label", "metric", "val", "test", "drop", "low", "high"]
RECALLS = ["run_id", "label", "split", "class", "recall", "low", "high", "images"]
ROC = ["run_id", "label", "class", "auroc", "false_positive_rate", "sensitivity"]
# In the order in which they are counted.
STATES = ["front", "dominated", "over limit", "no value", "pruned", "over_limit", "put_back"]
STATES += ["failed", "killed", "running"]
_TESTED = ["run_id", "label", "metric", "estimate", "low", "high", "seed_sd", "seed_values"]
_TESTED += ["floor", "verdict", "more_lesions", "images"]
MOST_RUNS = 40  # that get intervals
ON_VALIDATION = (
    "Neighbours on the front are compared on validation images, because not all were tested. "
    "These images chose them, so differences look more certain than they are."
)
Frames = Mapping[str, Sequence[pd.DataFrame]]  # run id -> predictions, a frame per seed


def measure(
    table: pd.DataFrame,
    cost: str,
    quality: str,
    study_of: Mapping[str, StudyRuns],
    settings: ReportSettings,
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Intervals of the front and the chosen runs, and tests between neighbours on the front.

    `table` has all trials: run_id, study, label, front, knee, chosen, crowding and the cost, which
    sorts the front. `quality` is a metric without its split, such as balanced_accuracy; `study_of`
    has the study of each trial.

    Returns:
        The tables of `Report` by name: intervals, pairs, drops, recalls, roc; and warnings.
    """
    chosen = (table["chosen"] != "") | table["knee"]
    rivals = table[table["front"] & ~chosen].sort_values("crowding", ascending=False, kind="stable")
    compared = rivals.index[: max(0, MOST_RUNS - int(chosen.sum()))]
    rows = table[chosen | table.index.isin(compared)]
    warnings = []
    if more := len(rivals) - len(compared):
        warnings.append(
            f"{more} members of the front, the most crowded ones, have no intervals and no tests."
        )
    val, test = (
        {run_id: study_of[run_id].predictions(run_id, split) for run_id in rows["run_id"]}
        for split in ("val", "test")
    )
    frames = {"val": val, "test": test}
    how = (settings.samples, settings.seed, settings.level)
    intervals, problems = _intervals(rows, frames, *how)
    warnings += problems
    if silent := [label for run_id, label in _members(rows) if not val[run_id] + test[run_id]]:
        names = ", ".join(silent)
        warnings.append(f"No intervals and no tests of {names}: no predictions were recorded.")
    recalls = intervals[intervals["metric"].str.startswith("recall/")]
    recalls = recalls.rename(columns={"estimate": "recall"})
    recalls = recalls.assign(**{"class": recalls["metric"].str.removeprefix("recall/")})[RECALLS]
    pairs, drop = pd.DataFrame(columns=PAIRS), pd.DataFrame(columns=DROPS)
    if len(intervals) and quality not in set(intervals["metric"]):
        warnings.append(f"No tests between neighbours: predictions do not determine {quality}.")
    else:
        sizes = [name for name in ("efficiency/flops", "efficiency/params") if name in rows]
        members = rows[rows["front"] & (rows["study"] == table["study"].iloc[0])]
        members = members.sort_values(list(dict.fromkeys([cost, *sizes, "run_id"])), kind="stable")
        pairs, problems = _pairs(_members(members), frames, quality, *how)
        warnings += problems
        both = [member for member in _members(rows) if val[member[0]] and test[member[0]]]
        drop = drops(val, test, both, quality, *how)
    tables = {"intervals": intervals, "pairs": pairs, "drops": drop}
    tables["roc"] = roc_curves(val, _members(table[chosen]))
    return tables | {"recalls": recalls.reset_index(drop=True)}, warnings


def _members(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(rows["run_id"], rows["label"], strict=True))


def _intervals(
    rows: pd.DataFrame, frames: Mapping[str, Frames], *how: Any
) -> tuple[pd.DataFrame, list[str]]:
    """All metrics on both splits; AUROC, which takes as long as the rest, of chosen runs only."""
    tables, problems = [], []
    complete = (rows["chosen"] != "") | rows["knee"]
    for (run_id, label), every in zip(_members(rows), complete, strict=True):
        for split, predictions in ((name, runs[run_id]) for name, runs in frames.items()):
            if not predictions:
                continue
            classes, kinds = bootstrap.classes_of(predictions[0]), registry.class_metrics()
            metrics = [name for name in registry.overall_metrics() if name != "auroc"]
            metrics += [f"{kind}/{name}" for kind in kinds for name in classes]
            try:
                table = bootstrap.intervals(predictions, None if every else metrics, *how)
            except UserError as error:
                problems.append(f"No intervals of {label} on {split}: {error}")
            else:
                tables.append(table.assign(run_id=run_id, label=label, split=split))
    nothing = pd.DataFrame(columns=INTERVALS, dtype=object)
    return pd.concat(tables, ignore_index=True)[INTERVALS] if tables else nothing, problems


def _pairs(
    members: Sequence[tuple[str, str]], frames: Mapping[str, Frames], metric: str, *how: Any
) -> tuple[pd.DataFrame, list[str]]:
    """Neighbours on test if all members were tested, else on validation, with a warning."""
    complete = (name for name in ("test", "val") if all(frames[name][run] for run, _ in members))
    split = next(complete, "")
    if len(members) < 2 or not split:
        return pd.DataFrame(columns=PAIRS), []
    try:
        pairs = compare_neighbours(frames[split], members, metric, split, *how)
    except UserError as error:
        problem = f"Neighbours on the front could not be compared: {error}"
        return pd.DataFrame(columns=PAIRS), [problem]
    return pairs, [ON_VALIDATION] if split == "val" else []


def compare_neighbours(
    predictions: Frames,
    members: Sequence[tuple[str, str]],
    metric: str,
    split: str,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Paired tests of neighbours on the front, corrected for their number.

    All pairs are judged together by Holm-Bonferroni on the p-values of the paired bootstrap;
    McNemar's, of pairs of single nets, are listed uncorrected. The smallest adjusted p-value of N
    pairs is 2 N / (samples + 1). So that this alone ties no pair, at least 8 N / (1 - level)
    samples are drawn (160 per pair at 0.95): it is then below a quarter of 1 - level. The intervals
    are of the same samples.

    The predictions are of one split, see `src.metrics.bootstrap.gather`, and the members (run id,
    label) are in order of cost, the cheapest first. `level` is the coverage of the intervals, in
    (0, 1); neighbours are tied if the adjusted p-value is above 1 - level.

    Returns:
        `Report.pairs`, the cheapest pair first; a is the more expensive one. A pair with
        predictions of different images, or in which the metric is undefined, has missing values
        and is not tied.

    Raises:
        UserError: From `src.metrics.paired.paired_difference`, but not for different images.
    """
    if samples > 0 and 0 < level < 1:  # else refused below
        least = 8 * (len(members) - 1) / (1 - level)
        samples = max(samples, math.ceil(round(least, 6)))  # 1 - 0.9 is a little less than 0.1
    rows = []
    for (b, label_b), (a, label_a) in zip(members[:-1], members[1:], strict=True):
        difference, p_mcnemar = (math.nan,) * 4, math.nan
        of_a, of_b, names = predictions[a], predictions[b], (label_a, label_b)
        with suppress(DifferentImagesError):  # the row has missing values
            if len(of_a) == len(of_b) == 1:
                p_mcnemar = mcnemar(of_a[0], of_b[0], names).p
            difference = paired_difference(of_a, of_b, metric, samples, seed, level, names)
        rows.append((a, b, label_a, label_b, metric, split, *difference, p_mcnemar))
    table = pd.DataFrame(rows, columns=PAIRS[:-2])
    table["p_adjusted"] = holm(table["p_bootstrap"].to_numpy(dtype=float))
    table["tied"] = table["p_adjusted"] > 1 - level
    return table


def tied_groups(pairs: pd.DataFrame) -> list[list[str]]:
    """Runs that are linked by ties in `Report.pairs`, in its order; two or more per group.

    Neighbours within a group cannot be distinguished; the ends of a long group may well differ.
    """
    groups: list[list[str]] = []
    for a, b in pairs.loc[pairs["tied"].astype(bool), ["run_a", "run_b"]].itertuples(index=False):
        linked = [group for group in groups if a in group or b in group]
        groups = [group for group in groups if group not in linked]
        groups.append(list(dict.fromkeys([*(run for group in linked for run in group), b, a])))
    return groups


def drops(
    val: Frames,
    test: Frames,
    members: Sequence[tuple[str, str]],
    metric: str,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """What models lose from the split that chose them to the other split: the winner's curse.

    The lesions or patients of the two splits are resampled independently. The nets are the same on
    both, the seeds in the same order, so the seeds' error is that of their drops, if both have
    equally many. The interval holds the spread of images and seeds; it does not correct for the
    choice, which the drop shows. Members are (run id, label).

    Returns:
        `Report.drops`, one row per model.

    Raises:
        UserError: From `src.metrics.bootstrap.intervals`.
    """
    rows = []
    for run_id, label in members:
        sides = []
        for split, runs in (("val", val), ("test", test)):
            names = [f"{label}, {split}, seed {at}" for at in range(1, len(runs[run_id]) + 1)]
            sides.append(bootstrap.gather(runs[run_id], names))
        parts = [(side, bootstrap.metric_statistics(side, [metric])) for side in sides]
        points = [bootstrap.evaluate(side, statistics) for side, statistics in parts]
        *rngs, val_seeds, test_seeds = bootstrap.streams(seed, 4)
        of_val, of_test = (
            bootstrap.resample(side, [statistics], samples, rng)
            for (side, statistics), rng in zip(parts, rngs, strict=True)
        )
        if of_val.shape == of_test.shape:
            gaps = of_val - of_test, points[0] - points[1]
            values = bootstrap.over_seeds(*gaps, val_seeds, difference=True)
        else:
            values = bootstrap.over_seeds(of_val, points[0], val_seeds)
            values -= bootstrap.over_seeds(of_test, points[1], test_seeds)
        bases = [side.basis(metric) for side in sides]
        if metric == registry.PRIMARY:
            kinds = ([side.target == label for label in np.unique(side.target)] for side in sides)
            bases = list(map(bootstrap.rarest_groups, sides, kinds))
        basis = min(bases, key=lambda groups: len(np.unique(groups)))
        means = [float(values.mean()) for values in points]
        row = bootstrap.interval(values[:, 0], means[0] - means[1], basis, level)
        rows.append((run_id, label, metric, *means, *row[:3]))
    return pd.DataFrame(rows, columns=DROPS)


def roc_curves(predictions: Frames, members: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """ROC curves of melanoma, or of the positive one of two classes, against the rest.

    The curve of several nets is the mean of their sensitivities at each of 101 false positive rates
    (vertical averaging: Fawcett, An introduction to ROC analysis, 2006, section 9.1). Members are
    (run id, label).

    Returns:
        `Report.roc`, without models that have no such class or no predictions of the same images.
    """
    rates, tables = np.linspace(0, 1, 101), [pd.DataFrame(columns=ROC)]
    for run_id, label in members:
        points = pd.DataFrame(columns=["class", "seed"])
        with suppress(UserError):  # nets of other images: the intervals have a warning
            nets = bootstrap.gather(predictions[run_id])
            two = nets.classes[1] if len(nets.classes) == 2 else None
            points = curves.roc(nets)
            points = points[points["class"] == (registry.melanoma_of(nets.classes) or two)]
        axes = [net[ROC[-2:]].to_numpy(float).T for _, net in points.groupby("seed")]
        if not axes:
            continue
        mean = np.mean([np.interp(rates, *net) for net in axes], axis=0)
        area = np.mean([np.trapezoid(sensitivity, rate) for rate, sensitivity in axes])
        columns = (run_id, label, points["class"].iloc[0], area, np.append(0, rates))
        tables.append(pd.DataFrame(dict(zip(ROC, (*columns, np.append(0, mean)), strict=True))))
    return pd.concat(tables[1:] or tables, ignore_index=True)


def with_intervals(table: pd.DataFrame, intervals: pd.DataFrame, quality: str) -> pd.DataFrame:
    """Add `quality`, `quality_low` and `quality_high`, the interval on the split of the quality.

    `intervals` is `Report.intervals`, `quality` a recorded name such as best/val/balanced_accuracy.
    """
    split, _, metric = quality.removeprefix("best/").partition("/")
    rows = intervals[(intervals["split"] == split) & (intervals["metric"] == metric)]
    ends = rows.set_index("run_id")[["low", "high"]].astype(float).reindex(table["run_id"])
    values = table.get(quality, pd.Series(np.nan, index=table.index))
    return table.assign(
        quality=values, quality_low=ends["low"].to_numpy(), quality_high=ends["high"].to_numpy()
    )


def counts(table: pd.DataFrame) -> dict[str, int]:
    """Trials by state, in the order of `STATES`; states without trials are left out."""
    numbers = table["state"].value_counts()
    order = [*STATES, *numbers.index.difference(STATES)]
    return {state: int(numbers[state]) for state in order if state in numbers}


def on_test(report: Report, floors: Sequence[Limit], level: float = 0.95) -> pd.DataFrame:
    """Quality of the chosen models on test, and whether they keep the floors there.

    Returns:
        Columns run_id, label, metric, estimate, low, high, seed_sd, seed_values, floor, verdict
        (kept, not kept; "undecided" if the interval allows both), more_lesions (that would decide,
        for a recall), images. A row per model and metric. If the quality is a rate at a threshold
        for melanoma recall, that recall has a row too; of a single net with Clopper and Pearson's
        interval of this level, which knows nothing of seeds that differ.
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
                    low, high = clopper_pearson(value, int(of_class["groups"]), level)
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
                    sizes = row["estimate"], int(row["groups"]), bound.value
                    row["more_lesions"] = lesions_to_settle(*sizes, level)
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
    names, data = [item.metric for item in report.objectives], texts(trials, "tags.data")
    no_value = table[table["state"] == "no value"].reindex(columns=names).isna().sum()
    doubts = sentences(
        "doubts",
        drawn=data[data != ""] == "synthetic",  # one that was stopped early has none
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
