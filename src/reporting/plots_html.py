"""Draws charts with Plotly, as the JSON that plotly.js reads."""

import functools
import html
from collections.abc import Iterable
from typing import Any

import pandas as pd

from src.reporting import style
from src.reporting.charts import Axis, Bars, Drawable, Heatmap, Parallel, Picture, Series, View

WEBGL_FROM = 2000  # points; below, SVG is as fast and sharper
_LONGEST_TICK = 14  # characters on an axis of parallel coordinates
_PATTERNS = ("", "/", "x", "-", ".", "+")
_HOVER = {"hovertemplate": "%{hovertext}<extra></extra>"}
_LAYOUT: dict[str, Any] = {
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#1f2328"},
    "margin": {"l": 75, "r": 20, "t": 20, "b": 70},
    "hovermode": "closest",
    "hoverlabel": {"align": "left", "bgcolor": "white", "font": {"size": 12}, "namelength": -1},
}
_LEGEND: dict[str, Any] = {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0}
_LEGEND |= {"font": {"size": 12}, "itemsizing": "trace", "traceorder": "normal"}
_AXIS: dict[str, Any] = {"gridcolor": style.GRID, "zeroline": False, "linecolor": "#8a9099"}
_AXIS |= {"ticks": "outside", "automargin": True, "autorange": True, "exponentformat": "SI"}


def figure(picture: Picture) -> dict[str, Any]:
    """One picture as JSON values.

    Returns:
        data: The traces of the first view.
        layout: The layout of the first view.
        views: For each view what differs between views: traces by position, layout by key, note.
    """
    series = picture.views[0].series
    points = sum(len(one.x) for one in series if isinstance(one, Series) and one.marker)
    kind = "scattergl" if points > WEBGL_FROM else "scatter"
    data = [
        [_trace(one, kind, number) for number, one in enumerate(view.series)]
        for view in picture.views
    ]
    differing = [
        [
            key
            for key in dict.fromkeys(key for trace in traces for key in trace)
            if any(trace.get(key) != traces[0].get(key) for trace in traces)
        ]
        for traces in zip(*data, strict=True)
    ]
    layouts = [_layout(view) for view in picture.views]
    views = []
    for view, traces, layout in zip(picture.views, data, layouts, strict=True):
        changes = {
            number: {key: trace.get(key) for key in keys}
            for number, (trace, keys) in enumerate(zip(traces, differing, strict=True))
        }
        axes = {key: layout[key] for key in ("xaxis", "yaxis") if key in layout}
        views.append({"traces": changes, "layout": axes, "note": view.note})
    return {"data": data[0], "layout": layouts[0], "views": views}


def rounded(values: Iterable[Any]) -> list[Any]:
    """Five significant figures are finer than a pixel and keep the page small; None if missing.

    Texts are returned as they are.
    """
    short: list[Any] = []
    for value in values:
        if isinstance(value, str):
            short.append(value)
            continue
        near = float(f"{float(value):.5g}")
        finite = near == near and abs(near) != float("inf")
        short.append((int(near) if near.is_integer() else near) if finite else None)
    return short


@functools.lru_cache(maxsize=100_000)
def plain(text: str) -> str:
    """A text that Plotly shows as it is: Plotly would read tags in it."""
    return html.escape(text, quote=False).replace("\n", "<br>")


@functools.lru_cache(maxsize=100_000)
def _heading(text: str) -> str:
    """A text whose first line is bold."""
    first, _, rest = text.partition("\n")
    return f"<b>{plain(first)}</b><br>{plain(rest)}"


def _trace(one: Drawable, kind: str, number: int) -> dict[str, Any]:
    if isinstance(one, Series):
        return _scatter(one, kind)
    if isinstance(one, Bars):
        pattern = {"shape": _PATTERNS[number % 6], "fillmode": "overlay", "fgcolor": "white"}
        return {
            "type": "bar",
            "orientation": "h",
            "name": plain(one.name),
            "y": [plain(name) for name in one.categories],
            "x": rounded(one.lengths),
            "text": ["-" if pd.isna(value) else f"{value:.0%}" for value in one.lengths],
            "textposition": "outside",
            "cliponaxis": False,
            "hovertemplate": "%{y}: %{x:.1%}<extra>%{fullData.name}</extra>",
            "marker": {"color": one.colour, "pattern": pattern},
        }
    if isinstance(one, Heatmap):
        title = {"text": plain(one.title), "side": "right"}
        bar = {"title": title, "lenmode": "pixels", "len": 260, "y": 1, "yanchor": "top"}
        return {
            "type": "heatmap",
            "z": [rounded(row) for row in one.values],
            "x": [plain(name) for name in one.columns],
            "y": [plain(name) for name in one.rows],
            "hovertext": [[_heading(text) for text in row] for row in one.texts],
            **{"zmin": 0, "zmax": 1, "colorscale": "Cividis", "texttemplate": "%{z:.2f}"},
            **{"xgap": 1, "ygap": 1, "colorbar": bar, **_HOVER},
        }
    heading = {"text": plain(style.wrapped(one.title, 44)), "side": "right", "font": {"size": 12}}
    scale = {"colorscale": "Cividis", "showscale": True, "colorbar": {"title": heading}}
    return {
        "type": "parcoords",
        "line": {"color": rounded(one.colours), **scale},
        "dimensions": [_dimension(one, number) for number in range(len(one.axes))],
        "labelside": "bottom",  # long names have room to grow there
        "labelfont": {"size": 11},
        "tickfont": {"size": 10},
    }


def _scatter(one: Series, kind: str) -> dict[str, Any]:
    parts = {"lines": one.colour, "markers": one.marker, "text": one.label}
    trace: dict[str, Any] = {
        "type": kind,
        "mode": "+".join(part for part, value in parts.items() if value),
        "name": plain(one.name),
        "showlegend": bool(one.name),
        "x": rounded(one.x),
        "y": rounded(one.y),
        "opacity": one.opacity,
    }
    if one.colour:
        shape = "hv" if one.steps else "linear"
        trace["line"] = {"color": one.colour, "width": one.width, "dash": one.dash, "shape": shape}
    if look := one.marker:
        edge = (
            {"width": 1.5, "color": look.colour} if look.hollow else {"width": 1, "color": "white"}
        )
        symbol = f"{look.shape}-open" if look.hollow else look.shape
        trace["marker"] = {"color": look.colour, "symbol": symbol, "size": look.size, "line": edge}
    if len(one.low):
        middle = pd.Series(one.y, dtype=float)
        trace["error_y"] = {
            "type": "data",
            "array": rounded(pd.Series(one.high, dtype=float) - middle),
            "arrayminus": rounded(middle - pd.Series(one.low, dtype=float)),
            "color": one.marker.colour if one.marker else one.colour,
            **{"thickness": 1, "width": 3},
        }
    if one.label:
        trace |= {"text": [plain(one.label)] * len(one.x), "textposition": "top right"}
    if len(one.texts):
        return trace | {"hovertext": [_heading(text) for text in one.texts], **_HOVER}
    return trace | {"hoverinfo": "x+y+name" if one.name and one.marker else "skip"}


def _dimension(one: Parallel, number: int) -> dict[str, Any]:
    axis = one.axes[number]
    texts = [text for _, text in axis.ticks]
    longest = _LONGEST_TICK
    short = [f"{text[: longest - 1]}…" if len(text) > longest else text for text in texts]
    return {
        "label": plain(style.wrapped(axis.title, 18 if len(one.axes) <= 8 else 13)),
        "values": rounded(axis.positions),
        "range": [axis.low, axis.high],
        "tickvals": [position for position, _ in axis.ticks],
        "ticktext": [plain(text) for text in (short if len(set(short)) == len(texts) else texts)],
    }


def _layout(view: View) -> dict[str, Any]:
    first = view.series[0]
    entries = sum(bool(getattr(one, "name", "")) for one in view.series)
    layout = _LAYOUT | {"showlegend": entries > 1, "legend": _LEGEND}
    if isinstance(first, Parallel):
        lines = max(style.wrapped(axis.title, 13).count("\n") + 1 for axis in first.axes)
        return layout | {"margin": {"l": 85, "r": 30, "t": 20, "b": 30 + 15 * lines}}
    layout |= {"xaxis": _axis(view.x, 38), "yaxis": _axis(view.y, 44)}
    if isinstance(first, Bars):
        return layout | {"barmode": "group", "bargap": 0.25}
    if isinstance(first, Heatmap):
        layout["xaxis"] |= {"showgrid": False, "ticks": "", "side": "top"}
        layout["yaxis"] |= {"showgrid": False, "ticks": "", "autorange": "reversed"}
        return layout | {"margin": {"l": 20, "r": 10, "t": 60, "b": 20}}
    values = [value for one in view.series if isinstance(one, Series) for value in one.y]
    if pd.Series(values, dtype=float).dropna().between(0, 1).all():
        # a fraction's axis need not go beyond 0 and 1, not even around a single point
        layout["yaxis"] |= {"autorangeoptions": {"clipmin": -0.02, "clipmax": 1.02}}
    return layout


def _axis(axis: Axis, width: int) -> dict[str, Any]:
    title = {"text": plain(style.wrapped(axis.title, width)), "standoff": 12}
    kinds: dict[str, dict[str, Any]] = {
        "integer": {"tickformat": "d"},
        "percent": {"tickformat": ".0%"},
        "time": {"type": "date"},
        "category": {"type": "category"},
    }
    scale = {"title": title, **_AXIS, **kinds.get(axis.kind, {})}
    if axis.log:
        scale["type"] = "log"
    if axis.ticks is not None:
        scale |= {
            "tickmode": "array",
            "tickvals": rounded(position for position, _ in axis.ticks),
            "ticktext": [plain(text) for _, text in axis.ticks],
            "ticklabeloverflow": "allow",  # else a text that reaches over the edge is omitted
        }
    elif axis.log:
        scale["dtick"] = "D2"
    if axis.limits:
        scale |= {"autorange": False, "range": list(axis.limits)}
    return scale
