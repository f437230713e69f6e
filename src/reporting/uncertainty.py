"""Intervals, ties on the front, drop to test."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
from src.metrics.paired import PairedDifference, holm, mcnemar, paired_difference
from src.metrics.registry import class_metrics, describe, overall_metrics
from src.reporting.collect import PredictionReader
from src.reporting.record import ReportSettings

PAIRS = [
    *("run_a", "run_b", "label_a", "label_b", "metric", "split", "difference", "low", "high"),
    *("p_bootstrap", "p_mcnemar", "p_adjusted", "tied"),
]
DROPS = ["run_id", "label", "metric", "val", "test", "drop", "low", "high"]


class Member(NamedTuple):
    """A run on the front and what people call it."""

    run_id: str
    label: str


def compare_neighbours(
    predictions: Mapping[str, Sequence[pd.DataFrame]],
    members: Sequence[tuple[str, str]],
    metric: str,
    split: str,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Is the dearer of two neighbours on the front really better? Paired tests, corrected for their number.

    All pairs are judged together by Holm-Bonferroni on the p-values of the paired bootstrap;
    McNemar's stand beside them uncorrected. The smallest adjusted p-value is 2 N / (samples + 1)
    for N pairs. So that this floor ties nothing, at least 8 N / (1 - level) samples are drawn,
    however few are asked for (160 a pair at 0.95): it is then below a quarter of 1 - level. The
    intervals are of the same samples.

    Args:
        predictions: By run id, a frame a seed, of one split, see `src.metrics.bootstrap.gather`.
        members: (run id, label) in order of cost, the cheapest first.
        metric: Name without the split, such as balanced_accuracy.
        split: val or test; for the record.
        samples: Bootstrap samples, at least; see above.
        seed: Of the random numbers.
        level: Coverage of the intervals, in (0, 1); neighbours are tied if the adjusted p-value is
            above 1 - level.

    Returns:
        `Report.pairs`, the cheapest pair first; a is the dearer. A pair without predictions of the
        same images, or in which the metric is undefined, has missing values and is not called tied.

    Raises:
        UserError: As `src.metrics.paired.paired_difference`, but for images that differ.
    """
    rows = []
    pairs = _adjacent([Member(*member) for member in members])
    samples = _enough(samples, len(pairs), level)
    for a, b in pairs:
        difference, p_mcnemar = PairedDifference(np.nan, np.nan, np.nan, np.nan), np.nan
        of_a, of_b = predictions.get(a.run_id, []), predictions.get(b.run_id, [])
        try:
            if of_a and of_b:
                p_mcnemar = mcnemar(of_a, of_b, (a.label, b.label)).p
                difference = paired_difference(
                    of_a, of_b, metric, samples, seed, level, (a.label, b.label)
                )
        except DifferentImagesError:
            pass  # the row stays, with nothing measured
        rows.append((a.run_id, b.run_id, a.label, b.label, metric, split, *difference, p_mcnemar))
    table = pd.DataFrame(rows, columns=PAIRS[:-2])
    table["p_adjusted"] = holm(table["p_bootstrap"].to_numpy(dtype=float))
    table["tied"] = table["p_adjusted"] > 1 - level
    return table


def tied_groups(pairs: pd.DataFrame) -> list[list[str]]:
    """Runs linked by ties, in the order of `pairs`; each group has two or more.

    Within a group neighbours can't be told apart; the ends of a long one may well differ.

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
    val: Mapping[str, Sequence[pd.DataFrame]],
    test: Mapping[str, Sequence[pd.DataFrame]],
    members: Sequence[tuple[str, str]],
    metric: str,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """What a model loses from the split that it was chosen on to the one that it was not: winner's curse.

    The lesions or patients of the two splits are resampled independently. The nets are the same on
    both, so a sample takes the same seeds on both, if both have as many. The interval holds the
    spread of images and seeds; it does not correct for the choice, which is what the drop shows.

    Args:
        val: Predictions by run id, a frame a seed, on the validation split.
        test: On the test split, the seeds in the same order.
        members: (run id, label) of those to look at.
        metric: Name without the split.
        samples: Bootstrap samples.
        seed: Of the random numbers.
        level: Coverage of the intervals.

    Returns:
        `Report.drops`, a row a member; missing values where it has no predictions of a split.

    Raises:
        UserError: As `src.metrics.bootstrap.intervals`.
    """
    rows = []
    for run_id, label in members:
        chosen_on = _gathered(val.get(run_id, []), f"{label}, val")
        reported_on = _gathered(test.get(run_id, []), f"{label}, test")
        rows.append(
            (run_id, label, metric, *_drop(chosen_on, reported_on, metric, samples, seed, level))
        )
    return pd.DataFrame(rows, columns=DROPS)


def say_pairs(pairs: pd.DataFrame, level: float = 0.95) -> list[str]:
    """Which members of the front could swap places, in words.

    Args:
        pairs: From `compare_neighbours`, of one or more metrics and splits.
        level: As given there.
    """
    sentences = []
    for (metric, split), table in pairs.groupby(["metric", "split"], sort=False):
        tested = table[table["p_adjusted"].notna()]
        what = describe(f"{split}/{metric}").label
        if len(tested):
            tied = tested[tested["tied"].astype(bool)]
            sentences.append(
                f"{_verdict(len(tied), len(tested), what)}, {_method(len(tested), level)}."
            )
            sentences += _swaps(tied, level)
            worse = tested[~tested["tied"].astype(bool) & (tested["difference"] < 0)]
            sentences += [_worse(row) for _, row in worse.iterrows()]
        left = table[table["p_adjusted"].isna()]
        if len(left):
            names = _listed(
                [f"{a} with {b}" for a, b in zip(left["label_a"], left["label_b"], strict=True)]
            )
            sentences.append(
                f"Not compared in {what}, for want of recorded predictions of the same images: {names}."
            )
    return sentences


def say_drops(table: pd.DataFrame, level: float = 0.95) -> list[str]:
    """How large the winner's curse is, in words.

    Args:
        table: From `drops`, of one or more metrics.
        level: As given there.
    """
    return [
        _curse(describe(f"best/val/{metric}").label.partition(" (")[0], rows, level)
        for metric, rows in table.dropna(subset=["drop"]).groupby("metric", sort=False)
    ]


def _adjacent(members: Sequence[Member]) -> list[tuple[Member, Member]]:
    return list(zip(members[1:], members[:-1], strict=True))


def _enough(samples: int, pairs: int, level: float) -> int:
    """As many samples as the correction for so many pairs needs; what is out of range stays, to be refused later."""
    least = 8 * pairs / (1 - level) if samples > 0 and 0 < level < 1 else samples
    return max(samples, math.ceil(round(least, 6)))  # 1 - 0.9 is a little less than 0.1


def _gathered(frames: Sequence[pd.DataFrame], name: str) -> Predictions | None:
    return (
        gather(frames, [f"{name}, seed {number}" for number in range(1, len(frames) + 1)])
        if frames
        else None
    )


def _drop(
    val: Predictions | None,
    test: Predictions | None,
    metric: str,
    samples: int,
    seed: int,
    level: float,
) -> tuple[float, float, float, float, float]:
    """The metric on val, on test, val less test, and the interval of that."""
    before, after = (
        float(metric_values(given, [metric]).mean()) if given else np.nan for given in (val, test)
    )
    if val is None or test is None:
        return before, after, np.nan, np.nan, np.nan
    val_rng, test_rng, val_seeds, test_seeds = streams(seed, 4)
    of_val, of_test = (
        resampled_metrics(val, [metric], samples, val_rng),
        resampled_metrics(test, [metric], samples, test_rng),
    )
    if of_val.shape == of_test.shape:
        values = over_seeds(of_val - of_test, val_seeds)
    else:
        values = over_seeds(of_val, val_seeds) - over_seeds(of_test, test_seeds)
    basis = min(
        (given.basis(metric) for given in (val, test)), key=lambda groups: len(np.unique(groups))
    )
    return (
        before,
        after,
        before - after,
        *percentile_interval(values[:, 0], before - after, basis, level),
    )


def _verdict(tied: int, tested: int, what: str) -> str:
    if tested == 1:
        return (
            f"The two neighbours on the front {'cannot' if tied else 'can'} be told apart in {what}"
        )
    if tied == tested:
        return f"None of the {tested} pairs of neighbours on the front can be told apart in {what}"
    if not tied:
        return f"All {tested} pairs of neighbours on the front can be told apart in {what}"
    return f"Of {tested} pairs of neighbours on the front, {tied} cannot be told apart in {what}"


def _method(tested: int, level: float) -> str:
    correction = (
        f", p-values corrected for {tested} comparisons by Holm-Bonferroni" if tested > 1 else ""
    )
    return (
        f"at the {100 * (1 - level):g}% level (paired bootstrap by lesion or patient{correction})"
    )


def _swaps(tied: pd.DataFrame, level: float) -> list[str]:
    """A sentence for each group that is linked by ties."""
    labels = dict(zip(tied["run_a"], tied["label_a"], strict=True)) | dict(
        zip(tied["run_b"], tied["label_b"], strict=True)
    )
    found = []
    for group in tied_groups(tied):
        rows = tied[tied["run_a"].isin(group)]
        names = _listed([labels[run] for run in group])
        if len(rows) == 1:
            row = rows.iloc[0]
            found.append(
                f"{row['label_a']} and {row['label_b']} could swap places: they differ by {row['difference']:+.3f}, "
                f"{100 * level:g}% interval {row['low']:+.3f} to {row['high']:+.3f}, p {row['p_adjusted']:.2g}."
            )
        else:
            closest = (
                f"{rows['difference'].abs().min():.3f} to {rows['difference'].abs().max():.3f}"
            )
            found.append(
                f"{names}, from the cheapest on, could each swap places with the next: they differ by {closest}, the "
                f"smallest p is {rows['p_adjusted'].min():.2g}."
            )
    return found


def _worse(row: pd.Series) -> str:
    than = f"{row['label_b']} in the cost that orders the front and is worse by {-row['difference']:.3f}"
    return f"{row['label_a']} costs more than {than} (p {row['p_adjusted']:.2g}): only another objective speaks for it."


def _curse(what: str, rows: pd.DataFrame, level: float) -> str:
    worst = rows.sort_values("drop", ascending=False, kind="stable").iloc[0]
    if len(rows) == 1:
        lost = _change(worst["drop"], 1)
        return (
            f"From validation to test {worst['label']} {lost} in {what} ({_range(worst, level)})."
        )
    lost = _change(rows["drop"].mean(), 2)
    opening = f"From validation to test the {len(rows)} models that were tested {lost} in {what}"
    if worst["drop"] <= 0:
        return f"{opening} on average; none of them loses."
    clear = int(((rows["low"] > 0) | (rows["high"] < 0)).sum())
    return (
        f"{opening} on average; {worst['label']} loses most, {worst['drop']:.3f} ({_range(worst, level)}). "
        f"{clear or 'None'} of the {len(rows)} intervals {'excludes' if clear < 2 else 'exclude'} zero."
    )


def _change(drop: float, number: int) -> str:
    if abs(drop) < 0.0005:
        return "neither loses nor gains" if number == 1 else "neither lose nor gain"
    return f"{'lose' if drop > 0 else 'gain'}{'s' if number == 1 else ''} {abs(drop):.3f}"


def _range(row: pd.Series, level: float) -> str:
    if np.isnan(row["low"]):
        return "too few lesions or patients for an interval"
    zero = "excludes" if row["low"] > 0 or row["high"] < 0 else "includes"
    return f"{100 * level:g}% interval of the drop {row['low']:+.3f} to {row['high']:+.3f}, which {zero} zero"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


SPLITS = ("val", "test")
AT_MOST = 40  # trials that get intervals
COLUMNS = (
    "run_id",
    "label",
    "split",
    "metric",
    "estimate",
    "low",
    "high",
    "images",
    "groups",
    "seeds",
)


@dataclass(frozen=True)
class MeasuredCost:
    """What the recorded predictions say.

    Attributes:
        intervals: Columns of `Report.intervals`.
        pairs: Columns of `Report.pairs`.
        drops: Columns of `Report.drops`.
        recalls: Columns of `Report.recalls`.
        notes: What could not be computed, and why.
    """

    intervals: pd.DataFrame
    pairs: pd.DataFrame
    drops: pd.DataFrame
    recalls: pd.DataFrame
    notes: list[str]


def measure(
    table: pd.DataFrame, cost: str, quality: str, reader: PredictionReader, settings: ReportSettings
) -> MeasuredCost:
    """Intervals of front members and chosen trials, and tests between neighbours on the front.

    Args:
        table: Of all trials: run_id, label, front, chosen, and the cost.
        cost: By which the front is put in order.
        quality: Name of the metric without its prefix, such as balanced_accuracy.
        reader: Of the predictions.
        settings: samples, level, seed.
    """
    wanted, notes = _interesting(table)
    every, problems = _intervals(wanted, reader, settings)
    notes += problems
    silent = [
        label
        for run_id, label in zip(wanted["run_id"], wanted["label"], strict=True)
        if not reader.predictions(run_id, "val") and not reader.predictions(run_id, "test")
    ]
    if silent:
        notes.append(
            f"No predictions were recorded for {', '.join(silent)}: no intervals, no tests."
        )
    first = wanted["study"] == table["study"].iloc[0]
    others = [
        name
        for name in ("efficiency/flops", "efficiency/params")
        if name in wanted and name != cost
    ]
    members = wanted[wanted["front"] & first].sort_values([cost, *others, "run_id"], kind="stable")
    if len(every) and quality not in set(every["metric"]):
        notes.append(
            f"Predictions do not tell {quality}: no tests between neighbours, no drop to test."
        )
        nothing = pd.DataFrame(columns=PAIRS), pd.DataFrame(columns=DROPS)
        return MeasuredCost(every, *nothing, _recalls(every), notes)
    pairs, note = _pairs(members, quality, reader, settings)
    drops = _drops(wanted, quality, reader, settings)
    return MeasuredCost(every, pairs, drops, _recalls(every), [*notes, *note])


def _intervals(
    wanted: pd.DataFrame, reader: PredictionReader, settings: ReportSettings
) -> tuple[pd.DataFrame, list[str]]:
    """All metrics of the chosen ones on both splits; areas, which take as long as all others, of them alone."""
    found, problems = [], []
    asked = (wanted["chosen"] != "") | wanted["knee"]
    for run_id, label, all_metrics in zip(wanted["run_id"], wanted["label"], asked, strict=True):
        for split in SPLITS:
            frames = reader.predictions(run_id, split)
            try:
                if frames:
                    names = None if all_metrics else _quick(frames[0])
                    rows = intervals(frames, names, settings.samples, settings.seed, settings.level)
                    found.append(rows.assign(run_id=run_id, label=label, split=split))
            except UserError as error:
                problems.append(f"No intervals of {label} on {split}: {error}")
    every = (
        pd.concat(found, ignore_index=True)[list(COLUMNS)]
        if found
        else pd.DataFrame(columns=list(COLUMNS))
    )
    return every, problems


def _quick(frame: pd.DataFrame) -> list[str]:
    classes = [str(name).removeprefix("p/") for name in frame.columns if str(name).startswith("p/")]
    return [
        *(name for name in overall_metrics() if name != "auroc"),
        *(f"{each}/{name}" for each in class_metrics() for name in classes),
    ]


def _interesting(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Members of the fronts and chosen trials; of a front of hundreds those that stand apart most."""
    chosen = (table["chosen"] != "") | table["knee"]
    others = table[table["front"] & ~chosen].sort_values("crowding", ascending=False, kind="stable")
    kept = table.index.isin(others.index[: max(0, AT_MOST - int(chosen.sum()))])
    notes = []
    if len(others) > kept.sum():
        left = len(others) - int(kept.sum())
        notes.append(
            f"{left} members of the front, the most crowded ones, have no intervals and are in no test."
        )
    return table[chosen | kept], notes


def _pairs(
    members: pd.DataFrame, metric: str, reader: PredictionReader, settings: ReportSettings
) -> tuple[pd.DataFrame, list[str]]:
    """Neighbours on test, if all have been tested; else on val, where the tests are too sure of the chosen ones."""
    named = list(zip(members["run_id"], members["label"], strict=True))
    for split in ("test", "val"):
        frames = {run_id: reader.predictions(run_id, split) for run_id, _ in named}
        if len(named) > 1 and all(frames.values()):
            try:
                found = compare_neighbours(
                    frames, named, metric, split, settings.samples, settings.seed, settings.level
                )
            except UserError as error:
                return pd.DataFrame(columns=PAIRS), [
                    f"Neighbours on the front could not be compared: {error}"
                ]
            if split == "val":
                return found, [
                    "Not all members of the front were tested: neighbours are compared on validation images,"
                    " which chose them, so their differences look surer than they are."
                ]
            return found, []
    return pd.DataFrame(columns=PAIRS), []


def _drops(
    wanted: pd.DataFrame, metric: str, reader: PredictionReader, settings: ReportSettings
) -> pd.DataFrame:
    named = [
        (run_id, label)
        for run_id, label in zip(wanted["run_id"], wanted["label"], strict=True)
        if reader.predictions(run_id, "val") and reader.predictions(run_id, "test")
    ]
    if not named:
        return pd.DataFrame(columns=DROPS)
    before = {run_id: reader.predictions(run_id, "val") for run_id, _ in named}
    after = {run_id: reader.predictions(run_id, "test") for run_id, _ in named}
    return drops(before, after, named, metric, settings.samples, settings.seed, settings.level)


def _recalls(every: pd.DataFrame) -> pd.DataFrame:
    rows = every[every["metric"].str.startswith("recall/")].copy()
    rows["class"] = rows["metric"].str.removeprefix("recall/")
    return rows.rename(columns={"estimate": "recall"})[
        ["run_id", "label", "split", "class", "recall", "low", "high", "images"]
    ].reset_index(drop=True)


def with_intervals(table: pd.DataFrame, every: pd.DataFrame, quality: str) -> pd.DataFrame:
    """Add `quality`, `quality_low` and `quality_high`; the interval is that of the split of the quality.

    Args:
        table: Of all trials.
        every: Columns of `Report.intervals`.
        quality: Recorded name, such as best/val/balanced_accuracy.
    """
    prefix, _, metric = quality.removeprefix("best/").partition("/")
    rows = every[(every["split"] == prefix) & (every["metric"] == metric)].set_index("run_id")
    values = table[quality] if quality in table else pd.Series(np.nan, index=table.index)
    return table.assign(
        quality=values,
        quality_low=rows["low"].reindex(table["run_id"]).to_numpy(),
        quality_high=rows["high"].reindex(table["run_id"]).to_numpy(),
    )
