"""On the page's front: the lines from origins to compressed trials, and origins that are no trials of the report."""

import html
from typing import Any

import pandas as pd

from src.reporting import layout
from src.reporting.origins import LEGEND, OUTSIDE, compressed, joins
from src.reporting.palette import ORIGIN
from src.reporting.record import Report

TEXT = "Thin lines run from a model to what it was compressed to."
KIND = "origins"  # in a trace's meta


def traces(report: Report) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """The lines, and the hollow points; nothing where no trial is compressed. Where they are, `view` says."""
    rows = compressed(report.table)
    if rows.empty:
        return []
    line = {"color": ORIGIN.colour, "width": 1}
    marker = {"symbol": f"{ORIGIN.symbol}-open", "color": ORIGIN.colour, "size": ORIGIN.size}
    name = f"{LEGEND} ({html.escape(', '.join(rows['compression'].unique()), quote=False)})"
    lines = {"mode": "lines", "name": name, "line": line, "hoverinfo": "skip", "meta": {KIND: "lines"}}
    points = {"mode": "markers", "name": OUTSIDE, "marker": marker | {"line": {"width": 1.5}}, "meta": {KIND: "points"}}
    hover = {"hovertemplate": "%{hovertext}<extra></extra>"}
    return [(lines, rows.iloc[:0]), (points | hover, rows.iloc[:0])]


def view(report: Report, kind: str, cost: str) -> dict[str, Any]:
    """Where the trace of that kind runs on this axis."""
    found = joins(report, cost)
    if kind == "lines":
        ends = zip(found["from_x"], found["to_x"], found["from_y"], found["to_y"], strict=True)
        pairs = [((start, end, None), (below, above, None)) for start, end, below, above in ends]
        return {axis: [value for pair in pairs for value in pair[at]] for at, axis in enumerate("xy")}
    outside = found[found["outside"]].drop_duplicates("origin")
    texts = [
        f"<b>{html.escape(str(row['origin_label']), quote=False)}</b> ({OUTSIDE})<br>run "
        f"{html.escape(str(row['origin']), quote=False)}<br>"
        f"{layout.metric(report.quality).label}: {layout.figure(report.quality, row['from_y'])}<br>"
        f"{layout.metric(cost).label}: {layout.figure(cost, row['from_x'])}"
        for row in outside.to_dict("records")
    ]
    return {"x": outside["from_x"].tolist(), "y": outside["from_y"].tolist(), "hovertext": texts}
