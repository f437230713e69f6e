"""Compressed trials beside what they were made from: where the lines between them run, and what compression cost.

A trial that compressed another run has the tags `origin` (that run's id) and `compression` (the choice's name). Its row
of the report's table holds the origin's figures too, under `origin/<metric>`, so that it can be drawn whether or not
the origin is a trial of the report.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from src.reporting import layout
from src.reporting.record import Report

LOST = "compression/lost"  # before the name of a metric in the run record: what src.compression measured
FIGURE = "origin/"  # before the name of a metric: that of the origin
SIZE = "efficiency/size_mb"
LEGEND = "from a model to its compression"
OUTSIDE = "origin, no trial of this report"
_SHARES = {"size": SIZE, "latency": "efficiency/latency_ratio", "FLOPs": "efficiency/flops"}
_ENDS = ("/low", "/high")  # of a metric's interval
_TAGS = ("compression", "origin", "lost_on")


def compressed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the trials that are compressed ones."""
    return table[table["compression"] != ""] if "compression" in table else table.iloc[:0]


def with_origins(
    table: pd.DataFrame, trials: pd.DataFrame, origins: pd.DataFrame, metrics: Sequence[str]
) -> pd.DataFrame:
    """Add columns compression, origin, lost_on (texts), origin_label, and `origin/<metric>`; none without an origin.

    Args:
        table: A row a trial, with its run_id.
        trials: The same runs as the store gave them.
        origins: The runs that they were made from, those that the store has, likewise.
        metrics: Recorded names.
    """
    if "tags.origin" not in trials or trials["tags.origin"].isna().all():
        return table
    tags = trials.set_index("run_id").reindex(columns=[f"tags.{name}" for name in _TAGS]).fillna("")
    tags.columns = pd.Index(_TAGS)
    table = table.join(tags, on="run_id")
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
