"""Compressed trials beside what they were made from: where the lines between them run, and what compression cost.

A trial that compressed another run has the tags `origin` (that run's id) and `compression` (the choice's name). Its row
of the report's table holds the origin's figures too, under `origin/<metric>`, so that it can be drawn whether or not
the origin is a trial of the report.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from src.analysis.comparison import COMPRESSION, LOST
from src.analysis.wording import count, joined
from src.objectives import describe
from src.reporting import layout
from src.reporting.record import Report

FIGURE = "origin/"  # before the name of a metric: that of the origin
SIZE = "efficiency/size_mb"
FEW = 3  # compressed models that a sentence names
POINT = 1.0  # percentage points that a compression may cost
LEGEND = "from a model to its compression"
OUTSIDE = "origin, no trial of this report"
_SHARES = {"size": SIZE, "latency": "efficiency/latency_ratio", "FLOPs": "efficiency/flops"}
_ENDS = ("/low", "/high")  # of a metric's interval


def compressed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the trials that are compressed ones."""
    return table[table["compression"] != ""] if "compression" in table else table.iloc[:0]


def with_origins(table: pd.DataFrame, origins: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Add columns origin_label and `origin/<metric>`; without an origin those of the compression go too.

    Args:
        table: A row a trial, from `src.analysis.comparison.compare`.
        origins: The runs that they were made from, those that the store has, likewise.
        metrics: Recorded names.
    """
    if not (table["origin"] != "").any():
        return table.drop(columns=list(COMPRESSION))
    known = origins.set_index("run_id").reindex(table["origin"])
    model = known["tags.model"].fillna("run") if "tags.model" in known else pd.Series("run", index=known.index)
    label = (model + " " + table["origin"].str[:6].to_numpy()).to_numpy()
    figures = {f"{FIGURE}{name}": known.get(f"metrics.{name}", pd.Series(np.nan, known.index)) for name in metrics}
    values = pd.DataFrame({name: values.to_numpy(dtype=float) for name, values in figures.items()}, index=table.index)
    return table.assign(origin_label=np.where(table["origin"] != "", label, ""), **values)


def joins(report: Report, cost: str) -> pd.DataFrame:
    """The lines from origins to compressed trials on one axis.

    Returns:
        A row a line: run_id, label and compression of the trial, origin, origin_label, from_x, from_y, to_x, to_y, and
        whether the origin is outside the report, so that it has no point of its own.
    """
    rows = compressed(layout.drawn(report, cost))
    names = {"from_x": f"{FIGURE}{cost}", "from_y": f"{FIGURE}{report.quality}", "to_x": cost, "to_y": "quality"}
    columns = ["run_id", "label", "compression", "origin", "origin_label"]
    found = rows.reindex(columns=[*columns, *names.values()])
    found.columns = pd.Index([*columns, *names])
    inside = set(layout.drawn(report, cost)["run_id"])
    found = found.assign(outside=~found["origin"].isin(inside))
    return found.replace([np.inf, -np.inf], np.nan).dropna(subset=["from_x", "from_y"])


def lost(report: Report) -> pd.DataFrame:
    """What compression cost, a row a compressed trial and metric; empty where no trial is compressed.

    Returns:
        Columns label, compression, made_from; size, latency and FLOPs as shares of the origin's, where both are known;
        metric; lost, low and high: by how many percentage points the compressed net is worse, with the paired interval
        on the same images; and the split that these are of.
    """
    rows = compressed(report.table)
    shares = {
        title: rows[name] / rows[f"{FIGURE}{name}"] for title, name in _SHARES.items() if f"{FIGURE}{name}" in rows
    }
    about = rows[["label", "compression"]].assign(made_from=rows["origin_label"], **shares) if len(rows) else rows
    names = [str(each) for each in rows if str(each).startswith(f"{LOST}/") and not str(each).endswith(_ENDS)]
    tables = []
    for name in names:
        figures = rows.reindex(columns=[name, *(f"{name}{end}" for end in _ENDS)]).astype(float) * 100
        figures.columns = pd.Index(["lost", "low", "high"])
        tables.append(about.assign(metric=name.removeprefix(f"{LOST}/")).join(figures).assign(split=rows["lost_on"]))
    if not tables:
        return pd.DataFrame()
    found = pd.concat(tables).sort_index(kind="stable")
    return found[found["lost"].notna()].dropna(axis="columns", how="all").reset_index(drop=True)


def said(report: Report) -> list[str]:
    """What compression cost, in a sentence a metric and split: who surely loses less than a point, who surely more.

    "Surely": the whole interval is on that side.
    """
    found = lost(report)
    if found.empty:
        return []

    def named(rows: pd.DataFrame) -> str:
        verb = "lose" if len(rows) > 1 else "loses"
        return f"{joined(rows['label'].tolist())} {verb}" if len(rows) <= FEW else f"{len(rows)} {verb}"

    sentences = []
    for (metric, split), rows in found.groupby(["metric", "split"], sort=False):
        small, large = rows[rows["high"] < POINT], rows[rows["low"] > POINT]
        label = describe(f"{split}/{metric}").label
        told = [f"{named(small)} surely less than a point of {label}"] if len(small) else []
        told += [f"{named(large)} surely more than a point{'' if told else f' of {label}'}"] if len(large) else []
        unsure = len(rows) - len(small) - len(large)
        if not told:
            told = [f"whether any loses more or less than a point of {label} is not settled"]
        elif unsure:
            told.append(f"of {unsure} it is not settled")
        sentences.append(f"Of {count(len(rows), 'compressed model')} beside their origins: {'; '.join(told)}.")
    return sentences
