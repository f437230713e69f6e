"""Completes charts to the JSON that plotly.js reads: escaped, rounded, with layouts."""

import functools
import html
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from src.reporting import style
from src.reporting.charts import View
from src.reporting.plots_static import LogLocator
from src.reporting.style import Axis, Trace

WEBGL_FROM = 2000  # points; below, SVG is as fast and sharper
_LONGEST_TICK = 14  # characters on an axis of parallel coordinates
_HOVER = {"hovertemplate": "%{hovertext}<extra></extra>"}


def figure(picture: Sequence[View]) -> dict[str, Any]:
    """One picture, with its views, as JSON values.

    Returns:
        data: The traces of the first view.
        layout: The layout of the first view.
        views: For each view what differs between views: traces by position, layout by key, note.
    """
    points = sum(len(one["x"]) for one in picture[0].traces if "markers" in one.get("mode", ""))
    data = [[_trace(one, points) for one in view.traces] for view in picture]
    layouts = [json_values(_layout(view)) for view in picture]
    views: list[dict[str, Any]] = []
    for view, layout in zip(picture, layouts, strict=True):
        axes = {key: layout[key] for key in ("xaxis", "yaxis") if key in layout}
        views.append({"traces": {}, "layout": axes, "note": view.note})
    for number, traces in enumerate(zip(*data, strict=True)):
        keys = dict.fromkeys(key for trace in traces for key in trace)
        differing = [k for k in keys if any(one.get(k) != traces[0].get(k) for one in traces)]
        for one, trace in zip(views, traces, strict=True):
            one["traces"][number] = {key: trace.get(key) for key in differing}
    return {"data": data[0], "layout": layouts[0], "views": views}


def json_values(value: Any, bold: bool = False) -> Any:
    """Plain values for JSON: numbers rounded, None if missing, texts escaped.

    Five significant figures are finer than a pixel and keep the page small. The first line of a
    `hovertext` is bold.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return plain(value, bold)
    if isinstance(value, Mapping):
        return {key: json_values(part, key == "hovertext") for key, part in value.items()}
    if hasattr(value, "__len__"):
        return [json_values(part, bold) for part in value]
    near = float(f"{float(value):.5g}")
    finite = near == near and abs(near) != float("inf")
    return (int(near) if near.is_integer() else near) if finite else None


@functools.lru_cache(maxsize=100_000)
def plain(text: str, bold: bool = False) -> str:
    """A text that Plotly shows as it is: Plotly would read tags in it; bold: its first line."""
    shown = html.escape(text, quote=False)
    if bold:
        first, _, body = shown.partition("\n")
        shown = f"<b>{first}</b>\n{body}"
    return shown.replace("\n", "<br>")


def _trace(trace: Trace, points: int) -> Trace:
    """A trace as JSON values; `points` is the number of points in its picture."""
    values: Trace = json_values(trace)
    if trace["type"] == "scatter" and points > WEBGL_FROM:
        values["type"] = "scattergl"
    if trace.get("name"):  # a legend does not wrap and is cut at the page's edge
        values["name"] = plain(style.wrapped(trace["name"], 44))
    if trace["type"] == "bar":
        values["hovertemplate"] = "%{y}: %{x:.1%}<extra>%{fullData.name}</extra>"
    if trace["type"] == "parcoords":
        title = style.wrapped(trace["line"]["colorbar"]["title"]["text"], 44)
        values["line"]["colorbar"]["title"] |= {"text": plain(title), "font": {"size": 12}}
        width = 18 if len(trace["dimensions"]) <= 8 else 13
        values["dimensions"] = [_dimension(dimension, width) for dimension in trace["dimensions"]]
        # long names have room to grow at the bottom
        values |= {"labelside": "bottom", "labelfont": {"size": 11}, "tickfont": {"size": 10}}
    return values | (_HOVER if "hovertext" in trace else {})


def _dimension(axis: Axis, width: int) -> Axis:
    """An axis of parallel coordinates; long ticks are cut unless they would be the same."""
    texts, longest = axis["ticktext"], _LONGEST_TICK
    short = [f"{text[: longest - 1]}…" if len(text) > longest else text for text in texts]
    ticks = short if len(set(short)) == len(texts) else texts
    changed = {"label": style.wrapped(axis["label"], width), "ticktext": ticks}
    return dict(json_values(axis | changed))


def _layout(view: View) -> dict[str, Any]:
    kind = view.traces[0]["type"]
    entries = sum(bool(trace.get("name")) for trace in view.traces)
    layout: dict[str, Any] = {"showlegend": entries > 1}
    if kind == "parcoords":
        names = [axis["label"] for axis in view.traces[0]["dimensions"]]
        lines = max(style.wrapped(name, 13).count("\n") + 1 for name in names)
        return layout | {"margin": {"l": 85, "r": 30, "t": 20, "b": 30 + 15 * lines}}
    for name, axis, width in (("x", view.x, 38), ("y", view.y, 34)):
        layout[f"{name}axis"] = _axis(axis, width, [trace[name] for trace in view.traces])
    if kind == "bar":
        return layout | {"barmode": "group", "bargap": 0.25}
    if kind == "heatmap":
        layout["xaxis"] |= {"showgrid": False, "ticks": "", "side": "top"}
        layout["yaxis"] |= {"showgrid": False, "ticks": "", "autorange": "reversed"}
        return layout | {"margin": {"l": 20, "r": 10, "t": 60, "b": 20}}
    values = [value for trace in view.traces for value in trace["y"]]
    if pd.Series(values, dtype=float).dropna().between(0, 1).all():
        # a fraction's axis need not go beyond 0 and 1, not even around a single point
        layout["yaxis"] |= {"autorangeoptions": {"clipmin": -0.02, "clipmax": 1.02}}
    return layout


def _axis(axis: Axis, width: int, positions: Sequence[Any]) -> Axis:
    title = {"text": style.wrapped(axis["title"], width), "standoff": 12, "font": {"size": 13}}
    scale = axis | {"title": title, "autorange": "range" not in axis}
    if "ticktext" in axis:
        # else a text that reaches over the edge is omitted
        scale |= {"tickmode": "array", "ticklabeloverflow": "allow"}
    elif axis.get("type") == "log" or axis.get("tickformat") == "d":
        numbers = pd.Series([value for one in positions for value in one], dtype=float)
        low, high = numbers[numbers > 0].min(), numbers.max()
        if axis.get("type") == "log" and low < high:
            # Plotly writes only the first digit of its own ticks beside a power of ten
            ticks = [(at, style.tick(at)) for at in LogLocator().tick_values(low, high)]
            scale |= style.positions(ticks) | {"tickformat": "~s" if high >= 1e4 else "~g"}
        elif high - low < 8:  # else whole numbers are repeated
            scale["dtick"] = 1
    return scale
