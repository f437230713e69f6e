"""Interactive pictures of parameters: parallel coordinates, the effect of each one, and how much each matters."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from src.reporting import layout
from src.reporting.interactive import Picture, Section, View, axis, base_layout, plain, rounded
from src.reporting.palette import SEQUENTIAL, SHAPES, cycle
from src.reporting.record import Report

MOST_LINES = 1500  # more is a grey wall, and slow
AXIS_WIDTH = 95  # pixels; twelve axes of parallel coordinates fit the page, more are scrolled
_LONGEST = 14  # characters of a value on such an axis
_ROOM = 44  # characters below a small picture
_PATTERNS = ("", "/", "x", "-", ".", "+")
_MEAN, _BEST = 0, 1


def parallel(report: Report) -> Section | None:
    """A line a trial through the values of its parameters and objectives, coloured by quality."""
    axes, rows = layout.parallel(report, MOST_LINES)
    if len(rows) < 2 or len(axes) < 2:
        return None
    dimensions = [_dimension(one, 18 if len(axes) <= 8 else 13) for one in axes]
    below = 30 + 15 * max(one["label"].count("<br>") + 1 for one in dimensions)
    quality = _wrapped(layout.axis_title(report, report.quality), 44)
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
    total = layout.swept(report)
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
        [Picture(figure, views, 360 + below, AXIS_WIDTH * len(axes))],
    )


def _dimension(one: layout.Axis, width: int) -> dict[str, Any]:
    """Values of a trial's parameter in one line each: Plotly breaks the name of an axis, but not its ticks."""
    texts = [text for _, text in one.ticks]
    short = [f"{text[: _LONGEST - 1]}…" if len(text) > _LONGEST else text for text in texts]
    return {
        "label": plain(layout.wrapped_at(".", one.label, width)).replace("\n", "<br>"),
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
        views = [_effect(report, str(parameter), rows[rows["objective"] == name], name) for name in objectives]
        figure = go.Figure(_effect_traces(), base_layout(showlegend=True, margin={"l": 70, "r": 15, "t": 15, "b": 60}))
        figure.layout.legend.update(y=1.02, yanchor="bottom")  # below, names in lines would run into it
        for position, change in views[0].traces.items():
            figure.data[position].update(change)
        figure.layout.update(views[0].layout)
        pictures.append(Picture(figure, views, 360))
    text = (
        "Filled points: the mean of all finished trials with that value, whatever else they had, with its "
        "interval. Hollow points: at the best setting of all other parameters. A difference within intervals may be "
        "chance, and where the sampler preferred some settings the mean is over what it preferred."
    )
    return Section("effects", "The effect of each parameter", text, pictures)


def importance(report: Report) -> Section | None:
    """Which parameters matter, for each objective."""
    wide = layout.importance(report)
    if wide is None:
        return None
    bars = [
        go.Bar(
            name=plain(layout.metric(str(name)).label),
            y=[plain(parameter) for parameter in wide.index],
            x=rounded(wide[name]),
            orientation="h",
            text=[layout.NOTHING if pd.isna(value) else f"{value:.0%}" for value in wide[name]],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.1%}<extra>%{fullData.name}</extra>",
            marker={
                "color": cycle(position),
                "pattern": {"shape": _PATTERNS[position % len(_PATTERNS)], "fillmode": "overlay", "fgcolor": "white"},
            },
        )
        for position, name in enumerate(wide)
    ]
    scale = axis("importance<br>(share of what all parameters explain)", tickformat=".0%", rangemode="tozero")
    figure = go.Figure(
        bars,
        base_layout(
            xaxis=scale, yaxis=axis(""), barmode="group", bargap=0.25, margin={"l": 20, "r": 50, "t": 10, "b": 60}
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
    return Section("importance", "Which parameters matter", text, [Picture(figure, [], height)])


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
    mode = "lines+markers" if layout.numeric(rows) else "markers"  # a line would put texts in an order
    place = rounded(rows["position"])
    unit = layout.metric(objective)
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
            f"{setting}<br>mean {layout.figure(objective, row.mean)} "
            f"[{layout.number(row.low)}, {layout.number(row.high)}]<br>{row.n} trials"
            for setting, row in zip(settings, rows.itertuples(), strict=True)
        ],
    }
    best = {
        "mode": mode,
        "x": place,
        "y": rounded(rows["best"]),
        "text": [
            f"{setting}<br>{layout.figure(objective, row.best)}<br>run {plain(row.best_run)}"
            for setting, row in zip(settings, rows.itertuples(), strict=True)
        ],
    }
    scales = {
        "xaxis": _parameter_axis(parameter, rows),
        "yaxis": axis(_wrapped(layout.axis_title(report, objective), 26), title_font={"size": 12}),
    }
    return View(unit.label, {_MEAN: mean, _BEST: best}, scales)


def _parameter_axis(parameter: str, rows: pd.DataFrame) -> dict[str, Any]:
    """Values as they are where there are few, else numbers; logarithmic where they span much."""
    numeric = layout.numeric(rows)
    log = numeric and layout.logarithmic("", rows["position"])
    scale = axis(plain(parameter), log, tickangle=0)
    if not numeric:
        return scale | _names(rows)
    if layout.apart(rows):
        texts = [plain(value) for value in rows["value"]]
        scale |= {"tickmode": "array", "tickvals": rounded(rows["position"]), "ticktext": texts}
        scale.pop("dtick", None)
    return scale


def _names(rows: pd.DataFrame) -> dict[str, Any]:
    """A tick for each text, in lines below each other, or upright where they are too many for that."""
    room = _ROOM // max(len(rows), 1)
    texts = [layout.wrapped_at("_", str(value), max(room, 1)) for value in rows["value"]]
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
        found |= {"autorange": False, "range": [rows["position"].min() - 0.5, rows["position"].max() + 0.5]}
    return found


def _wrapped(text: str, width: int = 22) -> str:
    return layout.wrapped(plain(text), width, "<br>")
