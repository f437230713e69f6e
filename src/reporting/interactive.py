"""The pictures of a report that answer to a pointer: which there are, and the front; each is a Plotly figure."""

import html
import textwrap
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from src.analysis.comparison import recorded_name
from src.reporting import interactive_origins, layout, origins
from src.reporting.palette import CHOSEN, DASHES, GRID, KNEE, SHAPES, Mark, cycle, mark
from src.reporting.record import Report

WEBGL_FROM = 2000  # points; below, SVG is as quick, sharper and needs no graphics
# In the order in which they are drawn: what ended early below what has a result.
_STATES = ("running", "killed", "failed", "over_limit", "pruned", "no value", "over limit", "dominated")


@dataclass(frozen=True)
class View:
    """One way to show a picture, chosen by a button.

    Attributes:
        label: On the button.
        traces: What changes, by the trace's position.
        layout: What changes in the layout, whole keys.
        note: Said below the picture while this view is on, such as how many trials cannot be shown.
    """

    label: str
    traces: dict[int, dict[str, Any]] = field(default_factory=dict)
    layout: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure and the ways to show it.

    Attributes:
        figure: Stands as in the first view.
        views: None, or as many as the other pictures of the section have.
        height: In pixels.
        width: The least, in pixels; on a narrow screen it is scrolled.
    """

    figure: go.Figure
    views: list[View] = field(default_factory=list)
    height: int = 480
    width: int = 0


@dataclass(frozen=True)
class Section:
    """Pictures that belong together; their views, where they have several, are switched by the same buttons.

    Attributes:
        key: Short, for links.
        title: Heading.
        text: How to read it.
        pictures: At least one.
    """

    key: str
    title: str
    text: str
    pictures: list[Picture]


def plain(text: object) -> str:
    """Text from outside, so that Plotly shows it as it is: it would read tags in it."""
    return html.escape(str(text), quote=False)


def rounded(values: Iterable[Any]) -> list[float | int | None]:
    """Five significant figures are finer than a pixel, and keep the page small; None where a value is missing."""
    short: list[float | int | None] = []
    for value in values:
        text = f"{float(value):.5g}"
        near = float(text)
        known = near == near and abs(near) != float("inf")
        short.append((int(near) if near.is_integer() else near) if known else None)
    return short


def base_layout(**changes: Any) -> dict[str, Any]:
    """The look that all pictures share."""
    return {
        "template": "none",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#1f2328"},
        "margin": {"l": 75, "r": 20, "t": 20, "b": 70},
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "bgcolor": "white", "font": {"size": 12}, "namelength": -1},
        "legend": {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0, "font": {"size": 12}},
        "plot_bgcolor": "white",
        "paper_bgcolor": "white",
        **changes,
    }


def axis(title: str, log: bool = False, **changes: Any) -> dict[str, Any]:
    """An axis with grid lines, its title and its scale."""
    scale = {"type": "log", "dtick": "D2", "exponentformat": "SI"} if log else {"exponentformat": "SI"}
    return {
        "title": {"text": title, "standoff": 12},
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": "#8a9099",
        "ticks": "outside",
        "automargin": True,
        "autorange": True,
        **scale,
        **changes,
    }


def hover(report: Report, rows: pd.DataFrame) -> list[str]:
    """What a point says: name, state, run id, figures with units, overrides."""
    names = dict.fromkeys([report.quality, *(recorded_name(one.metric) for one in report.objectives), *report.costs])
    figures = [name for name in names if name in rows]
    labels = {name: plain(layout.metric(name).label) for name in figures}
    texts = []
    told = ["label", "run_id", "state", "knee", "chosen", "quality_low", "quality_high", "overrides"]
    told += ["compression", "origin_label"]
    for row in rows[[name for name in dict.fromkeys([*told, *figures]) if name in rows]].to_dict("records"):
        lines = [f"<b>{plain(row['label'])}</b> ({plain(_standing(row))})", f"run {plain(row['run_id'])}"]
        if row.get("compression"):
            lines.append(f"compressed ({plain(row['compression'])}) from {plain(row['origin_label'])}")
        for name in figures:
            interval = _interval(row) if name == report.quality else ""
            lines.append(f"{labels[name]}: {plain(layout.figure(name, row[name]))}{interval}")
        lines += [plain(line) for line in textwrap.wrap(str(row.get("overrides") or ""), 70)[:6]]
        texts.append("<br>".join(lines))
    return texts


def front(report: Report) -> Section | None:
    """The front over each cost: dominated trials pale, the front in colour with intervals, knee and choices named."""
    costs = [name for name in report.costs if len(layout.drawn(report, name))]
    if not costs:
        return None
    traces = [*interactive_origins.traces(report), *_rest(report), *_fronts(report), *_names(report), _targets(report)]
    views = [_view(report, traces, cost) for cost in costs]
    quality = report.table["quality"]
    # WebGL is drawn above SVG, so that it is all or nothing
    kind = go.Scattergl if quality.notna().sum() > WEBGL_FROM else go.Scatter
    figure = go.Figure(
        [kind(trace) for trace, _ in traces],
        base_layout(
            xaxis=views[0].layout["xaxis"],
            yaxis=axis(layout.axis_title(report, report.quality, "<br>"), **_bounds(quality)),
            legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0, "itemsizing": "trace"},
        ),
    )
    for position, change in views[0].traces.items():
        figure.data[position].update(change)
    text = (
        "Each point is a trial. Those on the front are in colour and joined by the best quality up to each cost; a "
        "member below the line is there for another objective. Point at one to see which run it is; drag to zoom, "
        "double-click to zoom out; click in the legend to hide."
    ) + (f" {interactive_origins.TEXT}" if len(origins.compressed(report.table)) else "")
    return Section("front", "The front", text, [Picture(figure, views, 620)])


def _bounds(quality: pd.Series) -> dict[str, Any]:
    """A fraction's axis need not go beyond 0 and 1, not even around a single point."""
    known = quality.dropna()
    return {"autorangeoptions": {"clipmin": -0.02, "clipmax": 1.02}} if known.between(0, 1).all() else {}


def _standing(row: dict[Hashable, Any]) -> str:
    parts = [str(row["state"]).replace("_", " "), "knee" if row.get("knee") else "", str(row.get("chosen") or "")]
    return "; ".join(part for part in parts if part)


def _interval(row: dict[Hashable, Any]) -> str:
    low, high = row.get("quality_low"), row.get("quality_high")
    return f" [{layout.number(low)}, {layout.number(high)}]" if pd.notna(low) and pd.notna(high) else ""


# What a trace is made of, and the rows whose costs are its x; a step line has none.
Drawn = tuple[dict[str, Any], pd.DataFrame]


def _rest(report: Report) -> list[Drawn]:
    found: list[Drawn] = []
    table = report.table[report.table["quality"].notna()]
    faint = {"opacity": 0.45} if len(table) > WEBGL_FROM else {}
    for state in _STATES:
        rows = table[table["state"] == state]
        if len(rows):
            name = f"{state.replace('_', ' ')} ({len(rows)})"
            found.append(({"name": name, **_points(report, rows, mark(state)), **faint}, rows))
    return found


def _fronts(report: Report) -> list[Drawn]:
    found: list[Drawn] = []
    members = layout.members(report)
    several = len(report.studies) > 1
    for position, study in enumerate(report.studies):
        rows = members[members["study"] == study] if several else members
        look = mark("front")
        if several:
            look = Mark(cycle(position), SHAPES[position % len(SHAPES)][0], "", look.size)
        of = f" of {plain(study)}" if several else ""
        line = {"shape": "hv", "color": look.colour, "width": 2, "dash": DASHES[position % len(DASHES)][0]}
        group = f"front {position}"
        steps = {"mode": "lines", "line": line, "hoverinfo": "skip", "showlegend": False, "legendgroup": group}
        found.append(({**steps, "meta": {"study": study if several else ""}}, rows.iloc[:0]))
        points = _points(report, rows, look)
        points |= {"name": f"front{of} ({len(rows)})", "legendgroup": group, "legendrank": 1}
        if rows["quality_high"].notna().any():
            points["error_y"] = {
                "type": "data",
                "array": rounded(rows["quality_high"] - rows["quality"]),
                "arrayminus": rounded(rows["quality"] - rows["quality_low"]),
                "color": look.colour,
                "thickness": 1,
                "width": 3,
            }
        found.append((points, rows))
    return found


def _names(report: Report) -> list[Drawn]:
    """A mark and a legend entry for each run that is named."""
    found: list[Drawn] = []
    for position, (_, row) in enumerate(layout.named(report).iterrows()):
        if pd.isna(row["quality"]):
            continue
        look = KNEE if row["knee"] else CHOSEN
        rows = row.to_frame().T
        points = _points(report, rows, look)
        points |= {
            "mode": "markers+text",
            "text": [plain(row["label"])],
            "name": f"{plain(row['name'])}: {plain(row['label'])}",
            "legendrank": 2,
        }
        if not row["knee"]:
            points["marker"]["symbol"] = f"{SHAPES[1 + position % (len(SHAPES) - 1)][0]}-open"
        found.append((points, rows))
    return found


def _targets(report: Report) -> Drawn:
    """Unseen points above the front and the named runs: of points in one place, Plotly lets the smallest speak."""
    rows = report.table.set_index("run_id", drop=False)
    rows = rows.loc[layout.important(report)]
    rows = rows[rows["quality"].notna()]
    target = Mark("rgba(0,0,0,0)", "circle", "", 5)
    return {**_points(report, rows, target), "name": "targets", "showlegend": False, "opacity": 0}, rows


def _points(report: Report, rows: pd.DataFrame, look: Mark) -> dict[str, Any]:
    edge = {"width": 1.5 if look.hollow else 1, "color": look.colour if look.hollow else "white"}
    symbol = f"{look.symbol}-open" if look.hollow else look.symbol
    return {
        "mode": "markers",
        "y": rounded(rows["quality"]),
        "hovertext": hover(report, rows),
        "hovertemplate": "%{hovertext}<extra></extra>",
        "marker": {"color": look.colour, "symbol": symbol, "size": look.size, "line": edge},
    }


def _view(report: Report, traces: list[Drawn], cost: str) -> View:
    """The x of each trace on this axis."""
    changes: dict[int, dict[str, Any]] = {}
    members = layout.members(report)
    descending = layout.direction(report, report.quality).startswith("lower")
    known = layout.drawn(report, cost)
    for position, (trace, rows) in enumerate(traces):
        if kind := trace.get("meta", {}).get(interactive_origins.KIND):
            changes[position] = interactive_origins.view(report, kind, cost)
        elif trace["mode"] == "lines":
            study = trace["meta"]["study"]
            own = members[members["study"] == study] if study else members
            x, y = layout.staircase(own, cost, descending) if cost in own else ([], [])
            changes[position] = {"x": rounded(x), "y": rounded(y)}
        else:
            changes[position] = {"x": rounded(rows[cost])}
        if trace["mode"] == "markers+text":  # towards the middle, so that no name is cut off
            at = rows[cost].iloc[0]  # of several at the edge none leans over it
            side = "left" if (known[cost] < at).mean() + (known[cost] <= at).mean() > 1 else "right"
            changes[position]["textposition"] = f"{('top', 'bottom')[position % 2]} {side}"
    hidden = int(report.table["quality"].notna().sum()) - len(known)
    note = f"{hidden} trials with a result are not shown here: they have no {layout.metric(cost).label}."
    title = "<br>".join(layout.wrapped(part, 38, "<br>") for part in layout.axis_title(report, cost, "\n").split("\n"))
    scale = axis(title, layout.logarithmic(cost, known[cost]))
    return View(layout.metric(cost).axis, changes, {"xaxis": scale}, note if hidden else "")
