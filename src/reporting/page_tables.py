"""The tables of the page: cells as text for people, with the bare value beside it for sorting."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.analysis.comparison import recorded_name
from src.reporting import layout, origins
from src.reporting.record import Report

_FAILED = ("failed", "killed", "no value", "running")
_MOST_FAILURES = 100
_LONGEST_FAILURE = 300
_PAIRS = (
    "Tied goes by p adjusted: the p-value of the paired bootstrap, which draws lesions or patients where they are "
    "known, corrected for the number of pairs. McNemar's p is of accuracy (each image right or wrong by the mean of "
    "the seeds' probabilities), uncorrected and by image, so that it is too sure where lesions have several images."
)
_LOST = (
    "Size, latency, FLOPs: as shares of the origin's. Lost: percentage points, above 0 the compressed model is worse; "
    "low and high: the 95% interval of that difference, both models resampled together on the same images."
)
_SHORT = 34  # characters that need not be broken; a run id has 32


@dataclass(frozen=True)
class Cell:
    """One cell: what is shown, by what it sorts, and its kind: n a figure, s a short text, t a long one."""

    text: str
    key: str
    kind: str


@dataclass(frozen=True)
class HtmlTable:
    """A table under a heading; `note` says what was left out or how to read it."""

    key: str
    title: str
    head: list[str]
    rows: list[list[Cell]]
    note: str = ""


def tables(report: Report) -> list[HtmlTable]:
    """Those that have rows, in the order of the page."""
    pairs = report.pairs.drop(columns=["run_a", "run_b"], errors="ignore")
    found = [
        _front(report),
        _of("table-comparison", "Studies side by side", _metrics_in_head(report, report.comparison)),
        _of("table-lost", "What compression cost", origins.lost(report), _LOST),
        _of("table-intervals", "Intervals", report.intervals.drop(columns="run_id", errors="ignore")),
        _of("table-pairs", "Neighbours on the front", pairs, _PAIRS),
        _of("table-drops", "From validation to test", report.drops.drop(columns="run_id", errors="ignore")),
        *(_of(f"table-more-{place}", name, frame) for place, (name, frame) in enumerate(report.tables.items(), 1)),
        _of("table-effects", "Effects of parameters", report.effects.drop(columns="position", errors="ignore")),
        _failures(report),
    ]
    return [table for table in found if table.rows]


def answers(report: Report) -> list[dict[str, str]]:
    """The decisions, each with its run's label and the command that trains it again."""
    table = report.table.drop_duplicates("run_id").set_index("run_id")
    found = []
    for answer in report.answers:
        run = table.loc[answer.run_id] if answer.run_id in table.index else None
        found.append(
            {
                "question": answer.question,
                "text": answer.text,
                "run_id": answer.run_id,
                "label": "" if run is None else str(run.get("label") or ""),
                "command": "" if run is None else str(run.get("command") or ""),
            }
        )
    return found


def counts(report: Report) -> list[tuple[str, int]]:
    """How many trials ended how, in words."""
    return [(state.replace("over_limit", "ended early, over limit"), count) for state, count in report.counts.items()]


def _front(report: Report) -> HtmlTable:
    rows = layout.members(report)
    metrics = dict.fromkeys(
        [report.quality, *(recorded_name(objective.metric) for objective in report.objectives), *report.costs]
    )
    columns = {name: layout.heading(report, name) for name in metrics if name in rows}
    frame = rows[["label"]].copy()
    if len(origins.compressed(rows)):
        frame["compression"], frame["made from"] = rows["compression"], rows["origin_label"]
    for name, title in columns.items():
        frame[title] = rows[name]
        if name == report.quality and rows.get("quality_low", pd.Series(dtype=float)).notna().any():
            frame["from"], frame["to"] = rows["quality_low"], rows["quality_high"]
    for name in ("knee", "chosen", "run_id", "contribution", "crowding"):
        if name in rows:
            frame[name] = rows[name]
    note = "↑: higher is better, ↓: lower is better. Contribution: to the hypervolume; crowding: room among neighbours."
    return _of("table-front", "The front", frame, note)


def _failures(report: Report) -> HtmlTable:
    table = report.table
    rows = table[table["state"].isin(_FAILED)] if "state" in table else table.iloc[:0]
    shown = rows.head(_MOST_FAILURES)
    frame = shown.reindex(columns=["label", "run_id", "state", "failure", "overrides"]).fillna("")
    frame["failure"] = frame["failure"].astype(str).str.slice(0, _LONGEST_FAILURE)
    note = f"The first {len(shown)} of {len(rows)}; all are in table.csv." if len(rows) > len(shown) else ""
    return _of("table-failures", "Trials without a result", frame, note)


def _metrics_in_head(report: Report, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.rename(columns=lambda name: layout.heading(report, str(name)) if "/" in str(name) else name)


def _of(key: str, title: str, frame: pd.DataFrame, note: str = "") -> HtmlTable:
    head = [str(name).replace("_", " ") for name in frame]
    rows = [[_cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    return HtmlTable(key, title, head, rows, note)


def _cell(value: object) -> Cell:
    numeric = isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)
    text = layout.number(value)
    if not numeric:
        return Cell(text, text, "s" if len(text) <= _SHORT else "t")
    return Cell(text, "" if text == layout.NOTHING else repr(float(value)), "n")  # type: ignore[arg-type]
