"""Intervals of chosen models, paired tests of neighbours on the front, drop from val to test."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.metrics.bootstrap import (
    DifferentImagesError,
    Predictions,
    gather,
    intervals,
    metric_values,
    over_seeds,
    percentile_interval,
    resampled_metrics,
    streams,
)
from src.metrics.paired import holm, mcnemar, paired_difference
from src.metrics.registry import class_metrics, overall_metrics
from src.reporting.collect import PredictionReader
from src.reporting.record import ReportSettings

INTERVALS = ["run_id", "label", "split", "metric", "estimate", "low", "high"]
INTERVALS += ["images", "groups", "seeds"]
PAIRS = ["run_a", "run_b", "label_a", "label_b", "metric", "split", "difference", "low", "high"]
PAIRS += ["p_bootstrap", "p_mcnemar", "p_adjusted", "tied"]
DROPS = ["run_id", "label", "metric", "val", "test", "drop", "low", "high"]
MOST_RUNS = 40  # that get intervals
Frames = Mapping[str, Sequence[pd.DataFrame]]  # run id -> predictions, a frame per seed


@dataclass(frozen=True)
class Uncertainty:
    """What the recorded predictions say: tables of `Report`, and warnings."""

    intervals: pd.DataFrame
    pairs: pd.DataFrame
    drops: pd.DataFrame
    recalls: pd.DataFrame
    warnings: list[str]


def measure(
    table: pd.DataFrame, cost: str, quality: str, reader: PredictionReader, settings: ReportSettings
) -> Uncertainty:
    """Intervals of the front and the chosen runs, and tests between neighbours on the front.

    Args:
        table: All trials: run_id, study, label, front, knee, chosen, crowding and the cost.
        cost: Sorts the front.
        quality: Metric without its split, such as balanced_accuracy.
        reader: Of the predictions.
        settings: samples, level, seed.
    """
    chosen = (table["chosen"] != "") | table["knee"]
    others = table[table["front"] & ~chosen].sort_values("crowding", ascending=False, kind="stable")
    kept = others.index[: max(0, MOST_RUNS - int(chosen.sum()))]
    rows = table[chosen | table.index.isin(kept)]
    warnings = []
    if more := len(others) - len(kept):
        warnings.append(
            f"{more} members of the front, the most crowded ones, have no intervals and no tests."
        )
    frames = {
        split: {run_id: reader.predictions(run_id, split) for run_id in rows["run_id"]}
        for split in ("val", "test")
    }
    every, problems = _intervals(rows, frames, settings)
    warnings += problems
    silent = rows[[not any(frames[split][run] for split in frames) for run in rows["run_id"]]]
    if len(silent):
        names = ", ".join(silent["label"])
        warnings.append(f"No intervals and no tests of {names}: no predictions were recorded.")
    recalls = every[every["metric"].str.startswith("recall/")].rename(
        columns={"estimate": "recall"}
    )
    recalls = recalls.assign(**{"class": recalls["metric"].str.removeprefix("recall/")})
    recalls = recalls[["run_id", "label", "split", "class", "recall", "low", "high", "images"]]
    pairs, drop = pd.DataFrame(columns=PAIRS), pd.DataFrame(columns=DROPS)
    if len(every) and quality not in set(every["metric"]):
        warnings.append(f"No tests between neighbours: predictions do not determine {quality}.")
    else:
        sizes = [name for name in ("efficiency/flops", "efficiency/params") if name in rows]
        order = list(dict.fromkeys([cost, *sizes, "run_id"]))
        members = rows[rows["front"] & (rows["study"] == table["study"].iloc[0])]
        members = members.sort_values(order, kind="stable")
        pairs, problems = _pairs(members, frames, quality, settings)
        warnings += problems
        both = rows[[bool(frames["val"][run] and frames["test"][run]) for run in rows["run_id"]]]
        how = (quality, settings.samples, settings.seed, settings.level)
        drop = drops(frames["val"], frames["test"], _names(both), *how)
    return Uncertainty(every, pairs, drop, recalls.reset_index(drop=True), warnings)


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
    McNemar's are listed uncorrected. The smallest adjusted p-value of N pairs is 2 N / (samples +
    1). So that this alone ties no pair, at least 8 N / (1 - level) samples are drawn (160 per pair
    at 0.95): it is then below a quarter of 1 - level. The intervals are of the same samples.

    Args:
        predictions: Of one split, see `src.metrics.bootstrap.gather`.
        members: (run id, label) in order of cost, the cheapest first.
        metric: Without the split, such as balanced_accuracy.
        split: val or test, for the table.
        samples: Least number of bootstrap samples.
        seed: Of the random numbers.
        level: Coverage of the intervals, in (0, 1); neighbours are tied if the adjusted p-value is
            above 1 - level.

    Returns:
        `Report.pairs`, the cheapest pair first; a is the more expensive one. A pair without
        predictions of the same images, or in which the metric is undefined, has missing values and
        is not tied.

    Raises:
        UserError: From `src.metrics.paired.paired_difference`, but not for different images.
    """
    if samples > 0 and 0 < level < 1:  # else refused below
        least = 8 * (len(members) - 1) / (1 - level)
        samples = max(samples, math.ceil(round(least, 6)))  # 1 - 0.9 is a little less than 0.1
    rows = []
    for (b, label_b), (a, label_a) in zip(members[:-1], members[1:], strict=True):
        difference, p_mcnemar = (math.nan,) * 4, math.nan
        of_a, of_b, names = predictions.get(a, []), predictions.get(b, []), (label_a, label_b)
        try:
            if of_a and of_b:
                p_mcnemar = mcnemar(of_a, of_b, names).p
                difference = paired_difference(of_a, of_b, metric, samples, seed, level, names)
        except DifferentImagesError:
            pass  # the row has missing values
        rows.append((a, b, label_a, label_b, metric, split, *difference, p_mcnemar))
    table = pd.DataFrame(rows, columns=PAIRS[:-2])
    table["p_adjusted"] = holm(table["p_bootstrap"].to_numpy(dtype=float))
    table["tied"] = table["p_adjusted"] > 1 - level
    return table


def tied_groups(pairs: pd.DataFrame) -> list[list[str]]:
    """Runs that are linked by ties, in the order of `pairs`; two or more per group.

    Neighbours within a group cannot be distinguished; the ends of a long group may well differ.

    Args:
        pairs: From `compare_neighbours`.
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
    both, so a sample takes the same seeds on both, if both have equally many. The interval holds
    the spread of images and seeds; it does not correct for the choice, which the drop shows.

    Args:
        val: Predictions on the validation split.
        test: On the test split, the seeds in the same order.
        members: (run id, label) of the models.
        metric: Without the split.
        samples: Bootstrap samples.
        seed: Of the random numbers.
        level: Coverage of the intervals.

    Returns:
        `Report.drops`, one row per model; missing values without predictions of a split.

    Raises:
        UserError: From `src.metrics.bootstrap.intervals`.
    """
    rows = []
    for run_id, label in members:
        both: list[Predictions | None] = []
        for split, predictions in (("val", val), ("test", test)):
            frames = predictions.get(run_id, [])
            names = [f"{label}, {split}, seed {number}" for number in range(1, len(frames) + 1)]
            both.append(gather(frames, names) if frames else None)
        means = [float(metric_values(each, [metric]).mean()) if each else math.nan for each in both]
        drop, interval = means[0] - means[1], (math.nan, math.nan)
        first, second = both
        if first and second:
            val_rng, test_rng, val_seeds, test_seeds = streams(seed, 4)
            of_val = resampled_metrics(first, [metric], samples, val_rng)
            of_test = resampled_metrics(second, [metric], samples, test_rng)
            if of_val.shape == of_test.shape:
                values = over_seeds(of_val - of_test, val_seeds)
            else:
                values = over_seeds(of_val, val_seeds) - over_seeds(of_test, test_seeds)
            bases = [each.basis(metric) for each in (first, second)]
            basis = min(bases, key=lambda groups: len(np.unique(groups)))
            interval = percentile_interval(values[:, 0], drop, basis, level)
        rows.append((run_id, label, metric, *means, drop, *interval))
    return pd.DataFrame(rows, columns=DROPS)


def with_intervals(table: pd.DataFrame, every: pd.DataFrame, quality: str) -> pd.DataFrame:
    """Add `quality`, `quality_low` and `quality_high`, the interval on the split of the quality.

    Args:
        table: All trials.
        every: `Report.intervals`.
        quality: Recorded name, such as best/val/balanced_accuracy.
    """
    split, _, metric = quality.removeprefix("best/").partition("/")
    rows = every[(every["split"] == split) & (every["metric"] == metric)].set_index("run_id")
    ends = rows[["low", "high"]].astype(float).reindex(table["run_id"]).to_numpy()
    values = table.get(quality, pd.Series(np.nan, index=table.index))
    return table.assign(quality=values, quality_low=ends[:, 0], quality_high=ends[:, 1])


def _names(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(rows["run_id"], rows["label"], strict=True))


def _intervals(
    rows: pd.DataFrame, frames: Mapping[str, Frames], settings: ReportSettings
) -> tuple[pd.DataFrame, list[str]]:
    """All metrics on both splits; AUROC, which takes as long as the rest, of chosen runs only."""
    tables, problems = [], []
    chosen = (rows["chosen"] != "") | rows["knee"]
    for (run_id, label), complete in zip(_names(rows), chosen, strict=True):
        for split in frames:
            predictions = frames[split][run_id]
            if not predictions:
                continue
            columns = [str(name) for name in predictions[0] if str(name).startswith("p/")]
            names = [name for name in overall_metrics() if name != "auroc"]
            names += [
                f"{each}/{name.removeprefix('p/')}" for each in class_metrics() for name in columns
            ]
            how = (settings.samples, settings.seed, settings.level)
            try:
                found = intervals(predictions, None if complete else names, *how)
                tables.append(found.assign(run_id=run_id, label=label, split=split)[INTERVALS])
            except UserError as error:
                problems.append(f"No intervals of {label} on {split}: {error}")
    nothing = pd.DataFrame({name: pd.Series(dtype=object) for name in INTERVALS})
    return pd.concat(tables, ignore_index=True) if tables else nothing, problems


def _pairs(
    members: pd.DataFrame, frames: Mapping[str, Frames], metric: str, settings: ReportSettings
) -> tuple[pd.DataFrame, list[str]]:
    """Neighbours on test if all members were tested, else on validation, with a warning."""
    nothing = pd.DataFrame(columns=PAIRS)
    for split in ("test", "val"):
        if len(members) < 2 or not all(frames[split][run_id] for run_id in members["run_id"]):
            continue
        how = (split, settings.samples, settings.seed, settings.level)
        try:
            pairs = compare_neighbours(frames[split], _names(members), metric, *how)
        except UserError as error:
            return nothing, [f"Neighbours on the front could not be compared: {error}"]
        warning = (
            "Neighbours on the front are compared on validation images, because not all were "
            "tested. These images chose them, so differences look more certain than they are."
        )
        return pairs, [warning] if split == "val" else []
    return nothing, []
