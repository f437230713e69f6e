"""Plotly: front, curves, profiles."""

import html
import textwrap
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from src.metrics.registry import recorded_name
from src.reporting import collect, style
from src.reporting.collect import LEGEND, OUTSIDE, compressed, joins
from src.reporting.record import Report
from src.reporting.style import (
    CHOSEN,
    DASHES,
    GRID,
    KNEE,
    ORIGIN,
    PALE,
    SEQUENTIAL,
    SHAPES,
    Marker,
    cycle,
    mark,
)

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
    lines = {
        "mode": "lines",
        "name": name,
        "line": line,
        "hoverinfo": "skip",
        "meta": {KIND: "lines"},
    }
    points = {
        "mode": "markers",
        "name": OUTSIDE,
        "marker": marker | {"line": {"width": 1.5}},
        "meta": {KIND: "points"},
    }
    hover = {"hovertemplate": "%{hovertext}<extra></extra>"}
    return [(lines, rows.iloc[:0]), (points | hover, rows.iloc[:0])]


def view(report: Report, kind: str, cost: str) -> dict[str, Any]:
    """Where the trace of that kind runs on this axis."""
    found = joins(report, cost)
    if kind == "lines":
        ends = zip(found["from_x"], found["to_x"], found["from_y"], found["to_y"], strict=True)
        pairs = [((start, end, None), (below, above, None)) for start, end, below, above in ends]
        return {
            axis: [value for pair in pairs for value in pair[at]] for at, axis in enumerate("xy")
        }
    outside = found[found["outside"]].drop_duplicates("origin")
    texts = [
        f"<b>{html.escape(str(row['origin_label']), quote=False)}</b> ({OUTSIDE})<br>run "
        f"{html.escape(str(row['origin']), quote=False)}<br>"
        f"{style.metric(report.quality).label}: {style.figure(report.quality, row['from_y'])}<br>"
        f"{style.metric(cost).label}: {style.figure(cost, row['from_x'])}"
        for row in outside.to_dict("records")
    ]
    return {"x": outside["from_x"].tolist(), "y": outside["from_y"].tolist(), "hovertext": texts}


WEBGL_FROM = 2000  # points; below, SVG is as quick, sharper and needs no graphics
# In the order in which they are drawn: what ended early below what has a result.
_STATES = (
    "running",
    "killed",
    "failed",
    "over_limit",
    "pruned",
    "no value",
    "over limit",
    "dominated",
)


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
class Figure:
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
    pictures: list[Figure]


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
    scale = (
        {"type": "log", "dtick": "D2", "exponentformat": "SI"} if log else {"exponentformat": "SI"}
    )
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
    names = dict.fromkeys(
        [report.quality, *(recorded_name(one.metric) for one in report.objectives), *report.costs]
    )
    figures = [name for name in names if name in rows]
    labels = {name: plain(style.metric(name).label) for name in figures}
    texts = []
    told = [
        "label",
        "run_id",
        "state",
        "knee",
        "chosen",
        "quality_low",
        "quality_high",
        "overrides",
    ]
    told += ["compression", "origin_label"]
    for row in rows[[name for name in dict.fromkeys([*told, *figures]) if name in rows]].to_dict(
        "records"
    ):
        lines = [
            f"<b>{plain(row['label'])}</b> ({plain(_standing(row))})",
            f"run {plain(row['run_id'])}",
        ]
        if row.get("compression"):
            lines.append(
                f"compressed ({plain(row['compression'])}) from {plain(row['origin_label'])}"
            )
        for name in figures:
            interval = _interval(row) if name == report.quality else ""
            lines.append(f"{labels[name]}: {plain(style.figure(name, row[name]))}{interval}")
        lines += [plain(line) for line in textwrap.wrap(str(row.get("overrides") or ""), 70)[:6]]
        texts.append("<br>".join(lines))
    return texts


def front(report: Report) -> Section | None:
    """The front over each cost: dominated trials pale, the front in colour with intervals, knee and choices named."""
    costs = [name for name in report.costs if len(style.drawn(report, name))]
    if not costs:
        return None
    traces_ = [*traces(report), *_rest(report), *_fronts(report), *_names(report), _targets(report)]
    views = [_view(report, traces_, cost) for cost in costs]
    quality = report.table["quality"]
    # WebGL is drawn above SVG, so that it is all or nothing
    kind = go.Scattergl if quality.notna().sum() > WEBGL_FROM else go.Scatter
    figure = go.Figure(
        [kind(trace) for trace, _ in traces_],
        base_layout(
            xaxis=views[0].layout["xaxis"],
            yaxis=axis(style.axis_title(report, report.quality, "<br>"), **_bounds(quality)),
            legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0, "itemsizing": "trace"},
        ),
    )
    for position, change in views[0].traces.items():
        figure.data[position].update(change)
    text = (
        "Each point is a trial. Those on the front are in colour and joined by the best quality up to each cost; a "
        "member below the line is there for another objective. Point at one to see which run it is; drag to zoom, "
        "double-click to zoom out; click in the legend to hide."
    ) + (f" {TEXT}" if len(collect.compressed(report.table)) else "")
    return Section("front", "The front", text, [Figure(figure, views, 620)])


def _bounds(quality: pd.Series) -> dict[str, Any]:
    """A fraction's axis need not go beyond 0 and 1, not even around a single point."""
    known = quality.dropna()
    return (
        {"autorangeoptions": {"clipmin": -0.02, "clipmax": 1.02}}
        if known.between(0, 1).all()
        else {}
    )


def _standing(row: dict[Hashable, Any]) -> str:
    parts = [
        str(row["state"]).replace("_", " "),
        "knee" if row.get("knee") else "",
        str(row.get("chosen") or ""),
    ]
    return "; ".join(part for part in parts if part)


def _interval(row: dict[Hashable, Any]) -> str:
    low, high = row.get("quality_low"), row.get("quality_high")
    return (
        f" [{style.number(low)}, {style.number(high)}]" if pd.notna(low) and pd.notna(high) else ""
    )


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
    members = style.members(report)
    several = len(report.studies) > 1
    for position, study in enumerate(report.studies):
        rows = members[members["study"] == study] if several else members
        look = mark("front")
        if several:
            look = Marker(cycle(position), SHAPES[position % len(SHAPES)][0], "", look.size)
        of = f" of {plain(study)}" if several else ""
        line = {
            "shape": "hv",
            "color": look.colour,
            "width": 2,
            "dash": DASHES[position % len(DASHES)][0],
        }
        group = f"front {position}"
        steps = {
            "mode": "lines",
            "line": line,
            "hoverinfo": "skip",
            "showlegend": False,
            "legendgroup": group,
        }
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
    for position, (_, row) in enumerate(style.named(report).iterrows()):
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
    rows = rows.loc[style.important(report)]
    rows = rows[rows["quality"].notna()]
    target = Marker("rgba(0,0,0,0)", "circle", "", 5)
    return {
        **_points(report, rows, target),
        "name": "targets",
        "showlegend": False,
        "opacity": 0,
    }, rows


def _points(report: Report, rows: pd.DataFrame, look: Marker) -> dict[str, Any]:
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
    members = style.members(report)
    descending = style.direction(report, report.quality).startswith("lower")
    known = style.drawn(report, cost)
    for position, (trace, rows) in enumerate(traces):
        if kind := trace.get("meta", {}).get(KIND):
            changes[position] = view(report, kind, cost)
        elif trace["mode"] == "lines":
            study = trace["meta"]["study"]
            own = members[members["study"] == study] if study else members
            x, y = style.staircase(own, cost, descending) if cost in own else ([], [])
            changes[position] = {"x": rounded(x), "y": rounded(y)}
        else:
            changes[position] = {"x": rounded(rows[cost])}
        if trace["mode"] == "markers+text":  # towards the middle, so that no name is cut off
            at = rows[cost].iloc[0]  # of several at the edge none leans over it
            side = "left" if (known[cost] < at).mean() + (known[cost] <= at).mean() > 1 else "right"
            changes[position]["textposition"] = f"{('top', 'bottom')[position % 2]} {side}"
    hidden = int(report.table["quality"].notna().sum()) - len(known)
    note = f"{hidden} trials with a result are not shown here: they have no {style.metric(cost).label}."
    title = "<br>".join(
        style.wrapped(part, 38, "<br>") for part in style.axis_title(report, cost, "\n").split("\n")
    )
    scale = axis(title, style.logarithmic(cost, known[cost]))
    return View(style.metric(cost).axis, changes, {"xaxis": scale}, note if hidden else "")


MOST_CURVES = 250
MOST_ROWS = 40


def curves(report: Report) -> Section | None:
    """The quality by epoch; pruned trials end where they ended."""
    frame = report.curves
    if frame.empty:
        return None
    runs = style.thin(style.curve_order(report), style.important(report), MOST_CURVES)
    shown = frame[frame["run_id"].isin(runs)].sort_values(["run_id", "epoch"])
    names = style.named(report).set_index("run_id")["name"].to_dict()
    named, rest = shown[shown["run_id"].isin(names)], shown[~shown["run_id"].isin(names)]
    traces = []
    for state, rows in sorted(rest.groupby("state"), key=lambda pair: pair[0] == "front"):
        bold = state == "front"
        colour = mark(str(state)).colour if state in ("front", "pruned") else PALE
        look = {"color": colour, "width": 2 if bold else 1}
        traces += _lines(
            str(state).replace("_", " "), rows, look, mark(str(state)).symbol, 1.0 if bold else 0.8
        )
    for position, (run, rows) in enumerate(named.groupby("run_id", sort=False)):
        look = {"color": cycle(position + 1), "width": 3, "dash": DASHES[position % len(DASHES)][0]}
        label = f"{plain(names[run])}: {plain(rows['label'].iloc[0])}"
        traces += _lines(label, rows, look, SHAPES[position % len(SHAPES)][0], 1.0)
    title = style.axis_title(report, style.curve_metric(report), "<br>")
    figure = go.Figure(traces, base_layout(xaxis=axis("epoch", tickformat="d"), yaxis=axis(title)))
    total = frame["run_id"].nunique()
    note = f"{len(set(shown['run_id']))} of {total} curves are drawn, in even steps of quality, the front's all."
    views = [View("all", note=note if len(set(shown["run_id"])) < total else "")]
    text = (
        "The end of each curve is marked: pruned trials (triangles) end where they were stopped. The front is bold. "
        f"{style.CURVES_OF_SEEDS}"
    )
    return Section("curves", "Learning curves", text, [Figure(figure, views, 520)])


def progress(report: Report) -> Section | None:
    """How the front grew, by trials and by time."""
    frame = report.progress
    if frame.empty:
        return None
    traces, by_trials, by_time = [], {}, {}
    for position, (study, rows) in enumerate(frame.groupby("study", sort=False)):
        steps = style.steps(rows)
        by_trials[position] = {"x": rounded(steps["trials"])}
        by_time[position] = {"x": [f"{ended:%Y-%m-%d %H:%M:%S}" for ended in steps["ended"]]}
        line = {
            "shape": "hv",
            "color": cycle(position),
            "width": 2,
            "dash": DASHES[position % len(DASHES)][0],
        }
        traces.append(
            go.Scatter(
                name=plain(study),
                mode="lines+markers" if len(steps) <= 60 else "lines",
                marker={"symbol": SHAPES[position % len(SHAPES)][0], "size": 6},
                line=line,
                y=rounded(steps["hypervolume"]),
                hovertemplate="%{x}: %{y:.4f}<extra>%{fullData.name}</extra>",
                **by_trials[position],
            )
        )
    views = [View("by trials", by_trials, {"xaxis": axis("trials ended")})]
    if frame["ended"].notna().all():
        views.append(View("by time", by_time, {"xaxis": axis("time (UTC)", type="date")}))
    scales = {
        "xaxis": views[0].layout["xaxis"],
        "yaxis": axis("hypervolume of the front, higher is better"),
    }
    figure = go.Figure(traces, base_layout(showlegend=len(traces) > 1, **scales))
    text = "A line that is flat at its end says that more trials of this kind would hardly move the front."
    return Section("progress", "Hypervolume over time", text, [Figure(figure, views, 400)])


def recalls(report: Report) -> Section | None:
    """Recall of each class, of the front and the chosen runs; of test where it was measured."""
    splits = [split for split in ("test", "val") if len(style.recalls(report, split))]
    if not splits:
        return None
    views = [_recall_view(report, split) for split in splits]
    heat = go.Heatmap(
        zmin=0,
        zmax=1,
        colorscale=SEQUENTIAL,
        texttemplate="%{z:.2f}",
        hovertemplate="%{text}<extra></extra>",
        xgap=1,
        ygap=1,
        colorbar={
            "title": {"text": "recall, higher is better", "side": "right"},
            "lenmode": "pixels",
            "len": 260,
            "y": 1,
            "yanchor": "top",
        },
        **views[0].traces[0],
    )
    scales = {
        "xaxis": axis("class", side="top", showgrid=False, type="category", ticks=""),
        "yaxis": axis("", autorange="reversed", showgrid=False, type="category", ticks=""),
    }
    figure = go.Figure(heat, base_layout(margin={"l": 20, "r": 10, "t": 60, "b": 20}, **scales))
    text = "The share of each class's images that was recognised: the front and the chosen runs, the cheapest at the top."
    height = max(360, 110 + 28 * max(len(view.traces[0]["y"]) for view in views))
    return Section("recalls", "Recall of each class", text, [Figure(figure, views, height, 560)])


def _lines(
    name: str, rows: pd.DataFrame, look: dict[str, Any], symbol: str, opacity: float
) -> list[go.Scatter]:
    """All curves of one kind as one line with gaps, and a mark where each ends."""
    x: list[Any] = []
    y: list[Any] = []
    texts: list[str] = []
    for run, curve in rows.groupby("run_id", sort=False):
        x += [*rounded(curve["epoch"]), None]
        y += [*rounded(curve["value"]), None]
        texts += [f"<b>{plain(curve['label'].iloc[0])}</b><br>run {plain(run)}"] * (len(curve) + 1)
    ends = [place - 1 for place, value in enumerate(x) if value is None]
    shared = {
        "hovertemplate": "%{text}<br>epoch %{x}: %{y:.4f}<extra></extra>",
        "legendgroup": name,
        "opacity": opacity,
    }
    hollow = look["width"] == 1
    marks = {
        "color": look["color"],
        "symbol": f"{symbol}-open" if hollow else symbol,
        "size": 6 if hollow else 8,
    }
    return [
        go.Scatter(name=name, mode="lines", line=look, x=x, y=y, text=texts, **shared),
        go.Scatter(
            mode="markers",
            marker=marks,
            showlegend=False,
            x=[x[place] for place in ends],
            y=[y[place] for place in ends],
            text=[texts[place] for place in ends],
            **shared,
        ),
    ]


def _recall_view(report: Report, split: str) -> View:
    wide = style.recalls(report, split)
    shown = wide.head(MOST_ROWS)
    rows = report.recalls[report.recalls["split"] == split].set_index(["run_id", "class"])
    labels = rows.reset_index().drop_duplicates("run_id").set_index("run_id")["label"]
    texts = [
        [_recall_text(rows, labels[run], str(run), str(name)) for name in shown]
        for run in shown.index
    ]
    heat = {
        "z": [rounded(values) for values in shown.to_numpy(dtype=np.float64)],
        "x": [plain(name) for name in shown],
        "y": [plain(labels[run]) for run in shown.index],
        "text": texts,
    }
    note = f"The first {len(shown)} of {len(wide)} runs." if len(shown) < len(wide) else ""
    return View({"val": "validation"}.get(split, split), {0: heat}, {}, note)


def _recall_text(rows: pd.DataFrame, label: str, run: str, name: str) -> str:
    head = f"<b>{plain(label)}</b><br>run {plain(run)}<br>{plain(name)}"
    if (run, name) not in rows.index:
        return f"{head}: not measured"
    recall, low, high, images = (
        style.number(rows.at[(run, name), key]) for key in ("recall", "low", "high", "images")
    )
    interval = "" if low == style.NOTHING else f" [{low}, {high}]"
    return f"{head}: {recall}{interval}<br>{images} images"


MOST_LINES = 1500  # more is a grey wall, and slow
AXIS_WIDTH = 95  # pixels; twelve axes of parallel coordinates fit the page, more are scrolled
_LONGEST = 14  # characters of a value on such an axis
_ROOM = 44  # characters below a small picture
_PATTERNS = ("", "/", "x", "-", ".", "+")
_MEAN, _BEST = 0, 1


def parallel(report: Report) -> Section | None:
    """A line a trial through the values of its parameters and objectives, coloured by quality."""
    axes, rows = style.parallel(report, MOST_LINES)
    if len(rows) < 2 or len(axes) < 2:
        return None
    dimensions = [_dimension(one, 18 if len(axes) <= 8 else 13) for one in axes]
    below = 30 + 15 * max(one["label"].count("<br>") + 1 for one in dimensions)
    quality = _wrapped(style.axis_title(report, report.quality), 44)
    lines = {
        "color": rounded(rows["quality"]),
        "colorscale": SEQUENTIAL,
        "showscale": True,
        "colorbar": {"title": {"text": quality, "side": "right", "font": {"size": 12}}},
    }
    figure = go.Figure(
        go.Parcoords(
            dimensions=dimensions,
            line=lines,
            labelside="bottom",  # long names have room to grow there
            labelfont={"size": 11},
            tickfont={"size": 10},
        ),
        base_layout(margin={"l": 85, "r": 30, "t": 20, "b": below}),
    )
    total = style.swept(report)
    note = f"{len(rows)} of {total} trials are drawn, in even steps of quality, the front's all."
    text = (
        "A line is a trial; its colour is its quality. Drag along an axis to keep only the trials that pass there, "
        "click on the axis to let go; drag an axis by its name to move it."
    )
    if any(tick.endswith("…") for one in dimensions for tick in one["ticktext"]):
        text += " Long values are cut short (…)."
    views = [View("all", note=note if len(rows) < total else "")]
    return Section(
        "parallel",
        "Parameters and objectives, trial by trial",
        text,
        [Figure(figure, views, 360 + below, AXIS_WIDTH * len(axes))],
    )


def _dimension(one: style.PlotAxis, width: int) -> dict[str, Any]:
    """Values of a trial's parameter in one line each: Plotly breaks the name of an axis, but not its ticks."""
    texts = [text for _, text in one.ticks]
    short = [f"{text[: _LONGEST - 1]}…" if len(text) > _LONGEST else text for text in texts]
    return {
        "label": plain(style.wrapped_at(".", one.label, width)).replace("\n", "<br>"),
        "values": rounded(one.positions),
        "range": [one.low, one.high],
        "tickvals": [place for place, _ in one.ticks],
        "ticktext": [plain(text) for text in (short if len(set(short)) == len(texts) else texts)],
    }


def effects(report: Report) -> Section | None:
    """A small picture a parameter: its effect on an objective, averaged and at the best setting of the others."""
    frame = report.effects
    if frame.empty:
        return None
    objectives = list(dict.fromkeys(frame["objective"]))
    pictures = []
    for parameter, rows in frame.groupby("parameter", sort=False):
        views = [
            _effect(report, str(parameter), rows[rows["objective"] == name], name)
            for name in objectives
        ]
        figure = go.Figure(
            _effect_traces(),
            base_layout(showlegend=True, margin={"l": 70, "r": 15, "t": 15, "b": 60}),
        )
        figure.layout.legend.update(
            y=1.02, yanchor="bottom"
        )  # below, names in lines would run into it
        for position, change in views[0].traces.items():
            figure.data[position].update(change)
        figure.layout.update(views[0].layout)
        pictures.append(Figure(figure, views, 360))
    text = (
        "Filled points: the mean of all finished trials with that value, whatever else they had, with its "
        "interval. Hollow points: at the best setting of all other parameters. A difference within intervals may be "
        "chance, and where the sampler preferred some settings the mean is over what it preferred."
    )
    return Section("effects", "The effect of each parameter", text, pictures)


def importance(report: Report) -> Section | None:
    """Which parameters matter, for each objective."""
    wide = style.importance(report)
    if wide is None:
        return None
    bars = [
        go.Bar(
            name=plain(style.metric(str(name)).label),
            y=[plain(parameter) for parameter in wide.index],
            x=rounded(wide[name]),
            orientation="h",
            text=[style.NOTHING if pd.isna(value) else f"{value:.0%}" for value in wide[name]],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.1%}<extra>%{fullData.name}</extra>",
            marker={
                "color": cycle(position),
                "pattern": {
                    "shape": _PATTERNS[position % len(_PATTERNS)],
                    "fillmode": "overlay",
                    "fgcolor": "white",
                },
            },
        )
        for position, name in enumerate(wide)
    ]
    scale = axis(
        "importance<br>(share of what all parameters explain)", tickformat=".0%", rangemode="tozero"
    )
    figure = go.Figure(
        bars,
        base_layout(
            xaxis=scale,
            yaxis=axis(""),
            barmode="group",
            bargap=0.25,
            margin={"l": 20, "r": 50, "t": 10, "b": 60},
        ),
    )
    figure.layout.legend.traceorder = "normal"
    text = (
        "PED-ANOVA's share: how much of what sets the best trials apart from all each parameter explains; the shares "
        "of an objective sum to one. It describes which settings the best trials had, not what a change would do: with "
        "trials that a sampler drew, or that were stopped early, parameters that went along with others look "
        "important too."
    )
    height = 190 + 24 * len(wide) * max(len(bars), 1)
    return Section("importance", "Which parameters matter", text, [Figure(figure, [], height)])


def _effect_traces() -> list[go.Scatter]:
    common = {"hovertemplate": "%{text}<extra></extra>"}
    return [
        go.Scatter(
            name="mean of all",
            mode="lines+markers",
            line={"color": cycle(0), "width": 2},
            marker={"symbol": SHAPES[0][0], "size": 8},
            **common,
        ),
        go.Scatter(
            name="at the best setting",
            mode="lines+markers",
            line={"color": cycle(1), "width": 1.5, "dash": "dash"},
            marker={"symbol": "diamond-open", "size": 9},
            **common,
        ),
    ]


def _effect(report: Report, parameter: str, rows: pd.DataFrame, objective: str) -> View:
    rows = rows.sort_values("position")
    mode = (
        "lines+markers" if style.numeric(rows) else "markers"
    )  # a line would put texts in an order
    place = rounded(rows["position"])
    unit = style.metric(objective)
    settings = [f"{plain(parameter)} = {plain(value)}" for value in rows["value"]]
    mean = {
        "mode": mode,
        "x": place,
        "y": rounded(rows["mean"]),
        "error_y": {
            "type": "data",
            "array": rounded(rows["high"] - rows["mean"]),
            "arrayminus": rounded(rows["mean"] - rows["low"]),
            "thickness": 1.2,
            "width": 4,
        },
        "text": [
            f"{setting}<br>mean {style.figure(objective, row.mean)} "
            f"[{style.number(row.low)}, {style.number(row.high)}]<br>{row.n} trials"
            for setting, row in zip(settings, rows.itertuples(), strict=True)
        ],
    }
    best = {
        "mode": mode,
        "x": place,
        "y": rounded(rows["best"]),
        "text": [
            f"{setting}<br>{style.figure(objective, row.best)}<br>run {plain(row.best_run)}"
            for setting, row in zip(settings, rows.itertuples(), strict=True)
        ],
    }
    scales = {
        "xaxis": _parameter_axis(parameter, rows),
        "yaxis": axis(_wrapped(style.axis_title(report, objective), 26), title_font={"size": 12}),
    }
    return View(unit.label, {_MEAN: mean, _BEST: best}, scales)


def _parameter_axis(parameter: str, rows: pd.DataFrame) -> dict[str, Any]:
    """Values as they are where there are few, else numbers; logarithmic where they span much."""
    numeric = style.numeric(rows)
    log = numeric and style.logarithmic("", rows["position"])
    scale = axis(plain(parameter), log, tickangle=0)
    if not numeric:
        return scale | _profile_names(rows)
    if style.apart(rows):
        texts = [plain(value) for value in rows["value"]]
        scale |= {"tickmode": "array", "tickvals": rounded(rows["position"]), "ticktext": texts}
        scale.pop("dtick", None)
    return scale


def _profile_names(rows: pd.DataFrame) -> dict[str, Any]:
    """A tick for each text, in lines below each other, or upright where they are too many for that."""
    room = _ROOM // max(len(rows), 1)
    texts = [style.wrapped_at("_", str(value), max(room, 1)) for value in rows["value"]]
    level = max((len(line) for text in texts for line in text.split("\n")), default=0) <= room
    lines = texts if level else [str(value) for value in rows["value"]]
    found = {
        "tickmode": "array",
        "tickvals": rounded(rows["position"]),
        "ticktext": [plain(text).replace("\n", "<br>") for text in lines],
        "tickangle": 0 if level else -90,
        "tickfont": {"size": 11},
        "ticklabeloverflow": "allow",  # else one that reaches over the edge is left out
    }
    if len(rows):
        found |= {
            "autorange": False,
            "range": [rows["position"].min() - 0.5, rows["position"].max() + 0.5],
        }
    return found


def _wrapped(text: str, width: int = 22) -> str:
    return style.wrapped(plain(text), width, "<br>")


_MAKERS = (
    front,
    recalls,
    effects,
    importance,
    parallel,
    curves,
    progress,
)


def sections(report: Report) -> list[Section]:
    """The sections that there is something to draw for."""
    return [section for section in (make(report) for make in _MAKERS) if section is not None]


COLUMNS = ["run_id", "label", "state", "epoch", "value"]


def learning_curves(
    history: pd.DataFrame, table: pd.DataFrame, trial_of: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """A curve a trial, over the epochs that it was trained: that of a pruned trial ends where the trial ended.

    The curve of a trial with several seeds is the mean over those that have any epoch, as far as
    all of them go: one that went on over fewer seeds would jump where a seed ends.

    Args:
        history: What the runs recorded after their epochs: run_id, step (of the optimizer), value.
            In any order; of a step that a resumed run recorded twice the last row counts. Missing
            values keep their place, but are no points.
        table: A row a trial: run_id, label, state.
        trial_of: Trial of a run, by run ids, where they are not the same: for the seeds of a trial.

    Returns:
        Columns run_id (of the trial), label, state, epoch (from 1), value; in the table's order,
        then by epoch. Runs that belong to no trial of the table are left out, as are trials without
        an epoch.
    """
    points = history.drop_duplicates(["run_id", "step"], keep="last").sort_values(
        ["run_id", "step"], kind="stable"
    )
    points = points.assign(epoch=points.groupby("run_id").cumcount() + 1)
    points = points.assign(trial=points["run_id"].map(lambda run: (trial_of or {}).get(run, run)))
    seeds = points.groupby("trial")["run_id"].nunique()
    means = points.groupby(["trial", "epoch"])["value"].agg(["mean", "size", "count"]).reset_index()
    # every seed has this epoch, and a number there
    complete = means[
        (means["size"] == means["trial"].map(seeds)) & (means["count"] == means["size"])
    ]
    known = table.set_index("run_id")
    found = complete[complete["trial"].isin(known.index)].rename(
        columns={"trial": "run_id", "mean": "value"}
    )
    found = found.assign(**{name: found["run_id"].map(known[name]) for name in ("label", "state")})
    place = {run: number for number, run in enumerate(known.index)}
    return found.sort_values("run_id", key=lambda runs: runs.map(place), kind="stable")[
        COLUMNS
    ].reset_index(drop=True)
