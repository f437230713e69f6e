"""How sure the figures of the interesting trials are: intervals, differences between neighbours, the drop to test."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.analysis import uncertainty
from src.analysis.bootstrap import OVERALL, PER_CLASS, intervals
from src.errors import UserError
from src.reporting.reader import Reader
from src.reporting.settings import Settings

SPLITS = ("val", "test")
AT_MOST = 40  # trials that get intervals
COLUMNS = ("run_id", "label", "split", "metric", "estimate", "low", "high", "images", "groups", "seeds")


@dataclass(frozen=True)
class Measured:
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


def measure(table: pd.DataFrame, cost: str, quality: str, reader: Reader, settings: Settings) -> Measured:
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
        notes.append(f"No predictions were recorded for {', '.join(silent)}: no intervals, no tests.")
    first = wanted["study"] == table["study"].iloc[0]
    others = [name for name in ("efficiency/flops", "efficiency/params") if name in wanted and name != cost]
    members = wanted[wanted["front"] & first].sort_values([cost, *others, "run_id"], kind="stable")
    if len(every) and quality not in set(every["metric"]):
        notes.append(f"Predictions do not tell {quality}: no tests between neighbours, no drop to test.")
        nothing = pd.DataFrame(columns=uncertainty.PAIRS), pd.DataFrame(columns=uncertainty.DROPS)
        return Measured(every, *nothing, _recalls(every), notes)
    pairs, note = _pairs(members, quality, reader, settings)
    drops = _drops(wanted, quality, reader, settings)
    return Measured(every, pairs, drops, _recalls(every), [*notes, *note])


def _intervals(wanted: pd.DataFrame, reader: Reader, settings: Settings) -> tuple[pd.DataFrame, list[str]]:
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
    every = pd.concat(found, ignore_index=True)[list(COLUMNS)] if found else pd.DataFrame(columns=list(COLUMNS))
    return every, problems


def _quick(frame: pd.DataFrame) -> list[str]:
    classes = [str(name).removeprefix("p/") for name in frame.columns if str(name).startswith("p/")]
    return [
        *(name for name in OVERALL if name != "auroc"),
        *(f"{each}/{name}" for each in PER_CLASS for name in classes),
    ]


def _interesting(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Members of the fronts and chosen trials; of a front of hundreds those that stand apart most."""
    chosen = (table["chosen"] != "") | table["knee"]
    others = table[table["front"] & ~chosen].sort_values("crowding", ascending=False, kind="stable")
    kept = table.index.isin(others.index[: max(0, AT_MOST - int(chosen.sum()))])
    notes = []
    if len(others) > kept.sum():
        left = len(others) - int(kept.sum())
        notes.append(f"{left} members of the front, the most crowded ones, have no intervals and are in no test.")
    return table[chosen | kept], notes


def _pairs(members: pd.DataFrame, metric: str, reader: Reader, settings: Settings) -> tuple[pd.DataFrame, list[str]]:
    """Neighbours on test, if all have been tested; else on val, where the tests are too sure of the chosen ones."""
    named = list(zip(members["run_id"], members["label"], strict=True))
    for split in ("test", "val"):
        frames = {run_id: reader.predictions(run_id, split) for run_id, _ in named}
        if len(named) > 1 and all(frames.values()):
            try:
                found = uncertainty.compare_neighbours(
                    frames, named, metric, split, settings.samples, settings.seed, settings.level
                )
            except UserError as error:
                return pd.DataFrame(columns=uncertainty.PAIRS), [
                    f"Neighbours on the front could not be compared: {error}"
                ]
            if split == "val":
                return found, [
                    "Not all members of the front were tested: neighbours are compared on validation images,"
                    " which chose them, so their differences look surer than they are."
                ]
            return found, []
    return pd.DataFrame(columns=uncertainty.PAIRS), []


def _drops(wanted: pd.DataFrame, metric: str, reader: Reader, settings: Settings) -> pd.DataFrame:
    named = [
        (run_id, label)
        for run_id, label in zip(wanted["run_id"], wanted["label"], strict=True)
        if reader.predictions(run_id, "val") and reader.predictions(run_id, "test")
    ]
    if not named:
        return pd.DataFrame(columns=uncertainty.DROPS)
    before = {run_id: reader.predictions(run_id, "val") for run_id, _ in named}
    after = {run_id: reader.predictions(run_id, "test") for run_id, _ in named}
    return uncertainty.drops(before, after, named, metric, settings.samples, settings.seed, settings.level)


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
