"""Draws charts with matplotlib: PNG and SVG files for papers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import colormaps, ticker
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from src.reporting import style
from src.reporting.charts import Chart, View
from src.reporting.style import Axis, Trace

DPI = 160
SINGLE = (3.8, 2.9)  # inches: about 600 px
MOST_NAMES = 5
MOST_LOG_TICKS = 4
RASTER_FROM = 2000  # points; as single shapes they would make an SVG of many megabytes
STYLE = Path(__file__).with_name("plots.mplstyle")
_HATCHES = ("", "///", "xx", "...", "--", "++")
_BOX: Any = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.4}


def write(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Write each chart as PNG (160 dpi) and as SVG; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    several = [one for one in charts if one.single and len(one.panels[0]) > 1]
    together = [replace(one, key=f"{one.key}_by_cost", single=None) for one in several]
    with mpl.rc_context(fname=STYLE):
        for chart in (*charts, *together):
            files += save(draw(chart), folder / chart.key)
    return files


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG (160 dpi) and SVG, without a date: equal figures give equal files."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)  # else each file would compute the layout again
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    for file, key in zip(files, ("Software", "Date"), strict=True):
        figure.savefig(file, dpi=DPI, metadata={key: None})
    return files


def draw(chart: Chart) -> Figure:
    """The panels of a chart with one legend below them; use it under `STYLE`.

    A single panel is readable at a width of 600 px: its legend and up to `MOST_NAMES` names are
    inside.
    """
    panels = chart.panels or [[views[0] for views in chart.pictures]]
    panels = [[chart.single]] if chart.single else panels
    rows, columns = len(panels), len(panels[0])
    width, height = SINGLE if chart.single else chart.panel_size
    size = (max(3.5, width * columns + 0.4), height * rows + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    shared: Any = {"sharey": "row", "sharex": "col" if rows > 1 else "none"}
    grid = figure.subplots(rows, columns, squeeze=False, **shared)
    views = [view for row in panels for view in row]
    names = [style.wrapped(trace["name"], 52) for trace in views[0].traces if trace.get("meta")]
    inside = bool(chart.single) and len(names) <= MOST_NAMES
    labels: dict[str, Any] = {}
    for number, (axes, view) in enumerate(zip(grid.flat, views, strict=True)):
        _panel(axes, view)
        if view.x:
            x = style.wrapped(_short(view.x), 24 if view.x.get("ticktext") else 40)
            y = style.wrapped(_short(view.y), int(16 * height))
            axes.set_xlabel(x if number >= len(views) - columns else "")
            axes.set_ylabel("" if number % columns else y)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    if inside:
        labels = {label: handle for label, handle in labels.items() if label not in names}
        grid[0, 0].legend(list(labels.values()), list(labels), loc="best", framealpha=0.7)
    elif len(labels) > 1 or chart.legend:
        across = 1 if size[0] < 5 and max(map(len, labels)) > 30 else 2
        texts = [style.wrapped(label, 50) for label in labels]
        title = style.wrapped(chart.legend, 64)
        lines = sum(text.count("\n") + 1 for text in texts) / across + title.count("\n") + 1
        figure.set_figheight(figure.get_figheight() + 0.15 * lines)
        look: Any = {"title": title or None, "title_fontsize": 7, "frameon": False}
        look |= {"loc": "outside lower center", "ncols": across}
        figure.legend(list(labels.values()), texts, **look)
    figure.draw_without_rendering()  # fixes the layout, so that labels can avoid the points
    for axes, view in zip(grid.flat, views, strict=True):
        _label_points(axes, view, inside)
    figure.set_layout_engine(None)
    return figure


def _short(axis: Axis) -> str:
    """The title of an axis, with an arrow for the better direction."""
    return axis["title"].replace(", higher is better", " ↑").replace(", lower is better", " ↓")


def _panel(axes: Axes, view: View) -> None:
    draw = {"scatter": _scatter, "bar": _bar, "heatmap": _heatmap, "parcoords": _parallel}
    for number, trace in enumerate(view.traces):
        draw[trace["type"]](axes, trace, number, len(view.traces))
    if not view.x:
        return
    _scale(axes.xaxis, view.x)
    _scale(axes.yaxis, view.y)
    if "range" in view.x:
        axes.set_xlim(*view.x["range"])
    values = [one["y"] for one in view.traces if one["type"] == "scatter"]
    # an interval may reach below what can be measured
    if values and axes.get_ylim()[0] < 0 and np.nanmin(np.concatenate(values)) >= 0:
        axes.set_ylim(bottom=0)


def _scatter(axes: Axes, trace: Trace, number: int, traces: int) -> None:
    if trace["opacity"] == 0:
        return
    x, y = np.asarray(trace["x"], dtype=float), np.asarray(trace["y"], dtype=float)
    label = style.wrapped(trace["name"], 52) if trace["name"] and len(x) else "_nothing"
    line, marker = trace.get("line"), trace.get("marker")
    if line:
        look: dict[str, Any] = {"alpha": trace["opacity"], "zorder": 2.5, "color": line["color"]}
        look |= {"linestyle": style.DASHES[line["dash"]], "linewidth": 0.6 * line["width"]}
        look |= {"drawstyle": "steps-post" if line["shape"] == "hv" else "default"}
        axes.plot(x, y, label="_nothing" if marker else label, **look)
    if interval := trace.get("error_y"):
        spans = np.abs([interval["arrayminus"], interval["array"]])
        finite = ~np.isnan(spans).any(axis=0)
        look = {"elinewidth": 0.6, "capsize": 1.5, "fmt": "none", "alpha": 0.7}
        axes.errorbar(x[finite], y[finite], spans[:, finite], ecolor=interval["color"], **look)
    if marker:
        shape, look = marker["symbol"].removesuffix("-open"), {"color": marker["color"]}
        if shape == "x-thin":
            look["linewidths"] = 0.8
        elif marker["symbol"] != shape:
            look = {"facecolors": "none", "edgecolors": marker["color"], "linewidths": 0.8}
        look |= {"marker": style.SHAPES[shape], "zorder": 4 if "text" in trace else 3}
        look |= {"alpha": trace["opacity"], "rasterized": len(x) > RASTER_FROM}
        axes.scatter(x, y, (marker["size"] / 2) ** 2, label=label, **look)


class LogLocator(ticker.LogLocator):
    """At most `MOST_LOG_TICKS` round ticks, but two at least."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Called by matplotlib with the ends of an axis."""
        decades = 10.0 ** np.arange(np.floor(np.log10(vmin)), np.ceil(np.log10(vmax)) + 1)
        ticks = decades
        for mantissas in ((1, 2, 5), (1, 3), (1,)):
            ticks = np.outer(decades, mantissas).ravel()
            ticks = ticks[(ticks >= vmin) & (ticks <= vmax)]
            if len(ticks) <= MOST_LOG_TICKS:
                break
        if len(ticks) < 2:
            ticks = np.asarray(ticker.MaxNLocator(MOST_LOG_TICKS).tick_values(vmin, vmax))
            ticks = ticks[(ticks >= vmin) & (ticks <= vmax)]
        return ticks[:: -(-len(ticks) // MOST_LOG_TICKS)]


def _scale(axis: Any, scale: Axis) -> None:
    is_log = scale.get("type") == "log"
    if scale.get("type") == "category":
        return
    if is_log:
        axis._set_axes_scale("log")
        axis.set_minor_locator(ticker.NullLocator())
    if (texts := scale.get("ticktext")) is not None:
        look: dict[str, Any] = {}
        if len(texts) > 3 and max(map(len, texts)) > 5:
            look = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        else:
            texts = [style.wrapped(text, 9) for text in texts]
        axis.set_ticks(scale["tickvals"], texts, fontsize=6.5, **look)
    elif scale.get("tickformat") == ".0%":
        axis.set_major_formatter(ticker.PercentFormatter(1, 0))
    else:
        linear = ticker.MaxNLocator(5, integer=scale.get("tickformat") == "d")
        axis.set_major_locator(LogLocator() if is_log else linear)
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: style.tick(value)))


def _bar(axes: Axes, trace: Trace, number: int, traces: int) -> None:
    thickness, names = 0.8 / traces, trace["y"]
    positions = np.arange(len(names)) + 0.4 - thickness * (number + 0.5)
    look: dict[str, Any] = {"color": trace["marker"]["color"], "hatch": _HATCHES[number % 6]}
    look |= {"label": trace["name"], "edgecolor": "white"}
    bars = axes.barh(positions, trace["x"], thickness, **look)
    axes.bar_label(bars, trace["text"], padding=2, fontsize=6)
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.1)


def _heatmap(axes: Axes, trace: Trace, number: int, traces: int) -> None:
    image = axes.imshow(trace["z"], cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(trace["z"]):
        text = "-" if np.isnan(value) else f"{value:.2f}"
        colour = "white" if value < 0.55 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
    columns, rows = trace["x"], trace["y"]
    axes.set_xticks(range(len(columns)), columns, rotation=45 if len(columns) > 8 else 0)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_title(trace["colorbar"]["title"]["text"])
    _without_frame(axes)
    axes.figure.colorbar(image, ax=axes, shrink=min(1.0, 8 / len(rows)), anchor=(0, 1))


def _parallel(axes: Axes, trace: Trace, number: int, traces: int) -> None:
    dimensions, colours = trace["dimensions"], trace["line"]["color"]
    low, high = np.array([axis["range"] for axis in dimensions]).T
    heights = (np.column_stack([axis["values"] for axis in dimensions]) - low) / (high - low)
    order = np.argsort(colours, kind="stable")
    columns = np.tile(np.arange(len(dimensions)), (len(heights), 1))
    scale = Normalize(colours.min(), colours.max())
    look: dict[str, Any] = {"linewidths": 0.6, "alpha": 0.8, "rasterized": len(heights) > 300}
    look["colors"] = colormaps["cividis"](scale(colours[order]))
    lines = np.stack([columns, heights], axis=2)[order]
    axes.add_collection(LineCollection(list(lines), **look))
    for column, axis in enumerate(dimensions):
        axes.axvline(column, color="black", linewidth=0.7)
        spots = (np.array(axis["tickvals"]) - low[column]) / (high - low)[column]
        for spot, text in zip(spots, axis["ticktext"], strict=True):
            axes.annotate(text, (column + 0.03, spot), fontsize=6, va="center", bbox=_BOX)
    titles = [style.wrapped(axis["label"], 19) for axis in dimensions]
    axes.set_xticks(range(len(dimensions)), titles, fontsize=6.5)
    axes.set(xlim=(-0.2, len(dimensions) - 0.6), ylim=(-0.04, 1.04), yticks=[])
    _without_frame(axes)
    bar = axes.figure.colorbar(ScalarMappable(scale, "cividis"), ax=axes, pad=0.02)
    bar.set_label(style.wrapped(trace["line"]["colorbar"]["title"]["text"], 40))


def _without_frame(axes: Axes) -> None:
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _label_points(axes: Axes, view: View, names: bool) -> None:
    """Put the name or label of each labelled point beside it, far from other labels and points."""
    points = [dot for dot in view.traces if dot["type"] == "scatter" and dot["opacity"]]
    labelled = [
        dot for dot in points if "text" in dot and np.isfinite([*dot["x"], *dot["y"]]).all()
    ]
    if not labelled:
        return
    pixels = axes.figure.dpi / 72  # of a point, 1/72 inch
    every = np.concatenate([np.column_stack([dot["x"], dot["y"]]).astype(float) for dot in points])
    occupied = axes.transData.transform(every[np.isfinite(every).all(axis=1)])
    placed = np.empty((0, 3))  # x, y and half of the width of each label
    angles = np.arange(0.8, 7, np.pi / 8)
    circle = np.column_stack([np.cos(angles), np.sin(angles)])
    offsets = np.concatenate([reach * circle for reach in (11, 17, 25, 34, 45)])
    low, high = np.array(axes.bbox.min) + 6, np.array(axes.bbox.max) - 6
    look: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center"}
    look |= {"fontweight": "bold", "fontsize": 7.5, "zorder": 6}
    look["arrowprops"] = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 3, "shrinkB": 4}
    for dot in labelled:
        label = dot["meta"] if names else dot["text"][0]
        point = (float(dot["x"][0]), float(dot["y"][0]))
        half = 2.8 * len(label)
        spots = axes.transData.transform(point) + offsets * pixels
        margin = np.array([half * pixels, 0])
        inside = ((spots - margin > low) & (spots + margin < high)).all(axis=1)
        gaps = np.abs(spots[:, None] - occupied) / pixels
        gaps[:, :, 0] = np.maximum(gaps[:, :, 0] - half, 0)
        to_points = np.linalg.norm(gaps, axis=2).min(axis=1)
        gaps = np.abs(spots[:, None] - placed[:, :2]) / pixels
        covers = ((gaps[:, :, 0] < half + placed[:, 2]) & (gaps[:, :, 1] < 9)).any(axis=1)
        score = np.minimum(to_points, 9) - np.linalg.norm(offsets, axis=1) / 5
        best = int(np.argmax(score - 1000.0 * (~inside + covers)))
        placed = np.vstack([placed, [*spots[best], half]])
        axes.annotate(label, point, offsets[best], **look)
