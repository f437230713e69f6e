"""Traces, axes, colours, axis titles and number formats of the charts and tables of a report."""

import functools
import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from src.core.errors import ConfigError
from src.metrics.formatting import engineering
from src.metrics.registry import Metric, describe
from src.reporting.record import Report

# Okabe and Ito, Color Universal Design, 2008: distinct for colour-blind readers.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
PALE = "#B8BCC2"
# For series side by side. Yellow is too faint for lines on white; black is the colour of text.
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
# Names of the same thing: Plotly's, then matplotlib's.
SHAPES = {"circle": "o", "diamond": "D", "square": "s", "triangle-up": "^", "cross": "P"}
SHAPES |= {"hexagon": "h", "triangle-down": "v", "star": "*", "x-thin": "x"}
DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
Values = Sequence[Any] | np.ndarray
Look = dict[str, Any]
Trace = dict[str, Any]
Axis = dict[str, Any]
Ticks = Sequence[tuple[float, str]]
_SIZES = ("efficiency/flops", "efficiency/params", "efficiency/trainable_params")
_LOG_RATIO = 8.0  # least ratio of the ends of a logarithmic axis


def marker(colour: str, shape: str = "circle", size: float = 8, hollow: bool = False) -> Look:
    """Points for Plotly: a key of `SHAPES`, a diameter in pixels; hollow: only the edge."""
    edge = {"width": 1.5, "color": colour} if hollow else {"width": 1, "color": "white"}
    symbol = f"{shape}-open" if hollow else shape
    return {"color": colour, "symbol": symbol, "size": size, "line": edge}


def line(colour: str, width: float = 2, dash: str = "solid", steps: bool = False) -> Look:
    """A line for Plotly: pixels, a key of `DASHES`; steps: horizontal up to the next point."""
    return {"color": colour, "width": width, "dash": dash, "shape": "hv" if steps else "linear"}


def scatter(
    name: str,
    x: Values,
    y: Values,
    low: Values = (),
    high: Values = (),
    texts: Sequence[str] = (),
    label: str = "",
    marker: Look | None = None,
    line: Look | None = None,
    opacity: float = 1.0,
    meta: str = "",
) -> Trace:
    """Points, a line, or both.

    Args:
        name: In the legend; empty: not in the legend.
        x: Positions, also times as texts.
        y: Positions.
        low: Lower ends of intervals of y; none: no intervals.
        high: Upper ends of intervals of y.
        texts: What a point says when it is pointed at; lines, the first one is a heading.
        label: Text beside the points.
        marker: From `marker()`; None: no points.
        line: From `line()`; None: no line.
        opacity: 0 to 1; at 0 the points only answer to the mouse.
        meta: What a file writes beside the points in place of the label, if there is room.
    """
    parts = {"lines": line, "markers": marker, "text": label}
    mode = "+".join(part for part, value in parts.items() if value)
    trace: Trace = {"type": "scatter", "mode": mode, "name": name, "showlegend": bool(name)}
    trace |= {"x": x, "y": y, "opacity": opacity}
    trace |= {key: look for key, look in (("line", line), ("marker", marker)) if look}
    if len(low):
        ends = {"array": np.subtract(high, y), "arrayminus": np.subtract(y, low)}
        look = {"color": (marker or line or {})["color"], "thickness": 1, "width": 3}
        trace["error_y"] = {"type": "data", **ends, **look}
    if label:
        trace |= {"text": [label] * len(x), "textposition": "top right", "meta": meta}
    if len(texts):
        return trace | {"hovertext": texts}
    return trace | {"hoverinfo": "x+y+name" if name and marker else "skip"}


def axis(title: str, ticks: Ticks | None = None, **look: Any) -> Axis:
    """An axis of Plotly; `ticks` are positions and texts, chosen freely without them."""
    return {"title": title, **look} | ({} if ticks is None else positions(ticks))


def positions(ticks: Ticks) -> Axis:
    """Ticks as keys of an axis."""
    return {"tickvals": [at for at, _ in ticks], "ticktext": [text for _, text in ticks]}


# By state of a trial; other states look like "no value".
STATES = {
    "front": marker(BLUE, "circle", 11),
    "dominated": marker(PALE, "circle", 8),
    "over limit": marker(ORANGE, "square", 7, hollow=True),
    "pruned": marker(PURPLE, "triangle-down", 7, hollow=True),
    "over_limit": marker(VERMILLION, "square", 6, hollow=True),
    "no value": marker("#7A7F87", "x-thin", 6, hollow=True),
}
KNEE = marker(VERMILLION, "star", 19)
ORIGIN = marker("#3B3F45", "circle", 9, hollow=True)


def look(position: int) -> tuple[str, str, str]:
    """Colour, shape and line style of the series at this position."""
    dashes = list(DASHES)
    return CYCLE[position % len(CYCLE)], list(SHAPES)[position % 6], dashes[position % len(dashes)]


@functools.cache
def metric(name: str) -> Metric:
    """The registry's entry; a metric that is not registered is shown by its recorded name."""
    try:
        return describe(name)
    except ConfigError:
        return Metric(name, name)


def direction(report: Report, name: str) -> str:
    """Which way is better, in words, from the objectives, else from the registry."""
    directions = {objective.metric: objective.direction for objective in report.objectives}
    try:
        better = directions.get(name) or describe(name).direction
    except ConfigError:
        return ""
    return "higher is better" if better == "maximize" else "lower is better"


def axis_title(report: Report, name: str) -> str:
    """Label, unit and direction, such as "FLOPs (multiply-adds), lower is better"."""
    return ", ".join(part for part in (metric(name).axis, direction(report, name)) if part)


def number(value: object) -> str:
    """Four significant figures; a letter for tens of thousands and above; "-" if missing."""
    if value is None or value != value:
        return "-"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if not isinstance(value, int | float | np.number):
        return str(value)
    size, sign = abs(float(value)), "-" if float(value) < 0 else ""
    if math.isinf(size):
        return f"{sign}infinite"
    if size >= 1e4:
        return f"{sign}{engineering(size)}"
    return f"{float(value):.4f}" if 0.001 <= size < 1 else f"{float(value):.4g}"


def tick(value: float) -> str:
    """Three significant figures, for an axis."""
    sign = "-" if value < 0 else ""
    return f"{sign}{engineering(abs(value))}" if abs(value) >= 1e4 else f"{value:.3g}"


def with_unit(name: str, value: object) -> str:
    """A metric's value with its unit."""
    unit, text = metric(name).unit, number(value)
    return f"{text} {unit}" if unit and text != "-" else text


def logarithmic(name: str, values: pd.Series) -> bool:
    """Whether an axis is logarithmic: sizes of nets, and positive values with a long tail."""
    numbers = finite(values).dropna()
    if numbers.empty or numbers.min() <= 0:
        return False
    low, high = numbers.min(), numbers.max()
    # between the middle of a linear axis and the middle of a logarithmic axis
    middle = math.sqrt(math.sqrt(low * high) * (low + high) / 2)
    return name in _SIZES or bool(high / low >= _LOG_RATIO and numbers.median() < middle)


def finite(values: pd.Series) -> pd.Series:
    """The values as floats; infinite ones become missing, because no axis can show them."""
    return values.astype(float).replace([math.inf, -math.inf], math.nan)


def wrapped(text: str, width: int) -> str:
    """The text in lines of at most `width` characters; names may break behind "." and "_"."""
    spaced = re.sub(r"(?<=[a-z])([._])(?=[a-z])", "\\1\0 ", text)
    lines = textwrap.wrap(spaced, width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(line.replace("\0 ", "").replace("\0", "") for line in lines)
