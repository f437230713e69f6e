"""Draws charts with matplotlib: PNG and SVG files for papers."""

from collections.abc import Sequence
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
from src.reporting.charts import Axis, Bars, Chart, Heatmap, Parallel, Series, View

DPI = 160
RASTER_FROM = 2000  # points; as single shapes they would make an SVG of many megabytes
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "text.parse_math": False,  # a dollar in a run's name is a dollar
    "svg.hashsalt": "paretoderm",  # the same report gives the same file
}
_HATCHES = ("", "///", "xx", "...", "--", "++")
_TABLE: Any = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.4}


def write(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Write each chart as PNG (160 dpi) and as SVG.

    Args:
        charts: From `src.reporting.charts.charts`.
        folder: Created if it does not exist.

    Returns:
        The files, PNG before SVG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with mpl.rc_context(STYLE):
        for chart in charts:
            figure = draw(chart)
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                files.append(folder / f"{chart.key}.{kind}")
                figure.savefig(files[-1], dpi=DPI, metadata=metadata)
    return files


def draw(chart: Chart) -> Figure:
    """The panels of a chart with one legend below them; use it under `STYLE`."""
    rows, columns = len(chart.panels), len(chart.panels[0])
    width, height = chart.panel_size
    size = (max(3.5, width * columns + 0.4), height * rows + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    shared: Any = {"sharey": "row", "sharex": "col" if rows > 1 else "none"}
    grid = figure.subplots(rows, columns, squeeze=False, **shared)
    for (row, column), axes in np.ndenumerate(grid):
        view = chart.panels[row][column]
        _panel(figure, axes, view)
        if not isinstance(view.series[0], Parallel):
            x = style.wrapped(view.x.title, 24 if view.x.ticks else 34)
            axes.set_xlabel(x if row == rows - 1 else "")
            axes.set_ylabel(style.wrapped(view.y.title, int(14 * height)) if column == 0 else "")
    labels: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    if len(labels) > 1 or chart.legend:
        columns = 1 if size[0] < 5 and max(map(len, labels)) > 30 else 2
        texts = [style.wrapped(label, 50) for label in labels]
        title = style.wrapped(chart.legend, 64)
        lines = sum(text.count("\n") + 1 for text in texts) / columns + title.count("\n") + 1
        figure.set_figheight(figure.get_figheight() + 0.15 * lines)
        legend: Any = {"title": title or None, "title_fontsize": 7, "frameon": False}
        handles = list(labels.values())
        figure.legend(handles, texts, loc="outside lower center", ncols=columns, **legend)
    figure.draw_without_rendering()  # fixes the layout, so that labels can avoid the points
    for axes, view in zip(
        grid.flat, (view for views in chart.panels for view in views), strict=True
    ):
        _number_points(axes, view)
    figure.set_layout_engine(None)  # else each file would compute the layout again
    return figure


def _panel(figure: Figure, axes: Axes, view: View) -> None:
    for number, one in enumerate(view.series):
        if isinstance(one, Series):
            _series(axes, one)
        elif isinstance(one, Heatmap):
            _heatmap(figure, axes, one)
        elif isinstance(one, Parallel):
            _parallel(figure, axes, one)
        else:
            thick = 0.8 / len(view.series)
            places = np.arange(len(one.categories)) + 0.4 - thick * (number + 0.5)
            _bars(axes, one, places, thick, _HATCHES[number % len(_HATCHES)])
    if isinstance(view.series[0], Parallel):
        return
    _scale(axes.xaxis, view.x)
    _scale(axes.yaxis, view.y)
    if view.x.limits:
        axes.set_xlim(*view.x.limits)
    if isinstance(view.series[0], Series) and axes.get_ylim()[0] < 0:
        values = np.concatenate([np.asarray(one.y, dtype=float) for one in view.series])  # type: ignore[union-attr]
        if np.nanmin(values) >= 0:  # an interval may reach below what can be measured
            axes.set_ylim(bottom=0)


def _series(axes: Axes, one: Series) -> None:
    if one.opacity == 0:
        return
    x, y = np.asarray(one.x, dtype=float), np.asarray(one.y, dtype=float)
    label = style.wrapped(one.name, 52) if one.name and len(x) else "_nothing"
    line: dict[str, Any] = {"alpha": one.opacity, "zorder": 2.5, "color": one.colour}
    line |= {"linestyle": style.DASHES[one.dash], "linewidth": 0.6 * one.width}
    if one.colour:
        draw = axes.step if one.steps else axes.plot
        where: dict[str, Any] = {"where": "post"} if one.steps else {}
        draw(x, y, label="_nothing" if one.marker else label, **line, **where)
    if len(one.low):
        colour = one.marker.colour if one.marker else one.colour
        spans = np.abs([y - np.asarray(one.low), np.asarray(one.high) - y])
        known = ~np.isnan(spans).any(axis=0)
        look: dict[str, Any] = {"ecolor": colour, "elinewidth": 0.6, "capsize": 1.5}
        axes.errorbar(x[known], y[known], spans[:, known], fmt="none", alpha=0.7, **look)
    if one.marker:
        marker = one.marker
        edge: dict[str, Any] = {"edgecolors": marker.colour, "linewidths": 0.8}
        faces = {"facecolors": "none", **edge} if marker.hollow else {"color": marker.colour}
        if marker.shape == "x-thin":
            faces = {"color": marker.colour, "linewidths": 0.8}
        many = len(x) > RASTER_FROM
        faces |= {"marker": style.SHAPES[marker.shape], "zorder": 4 if one.label else 3}
        axes.scatter(
            x, y, (marker.size / 2) ** 2, label=label, alpha=one.opacity, rasterized=many, **faces
        )


def _scale(axis: Any, scale: Axis) -> None:
    if scale.kind == "category":
        return
    if scale.log:
        axis._set_axes_scale("log")
        axis.set_minor_locator(ticker.NullLocator())
    if scale.ticks is not None:
        axis.set_ticks([place for place, _ in scale.ticks])
        long = len(scale.ticks) > 3 and max(len(text) for _, text in scale.ticks) > 5
        angle: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        texts = [text if long else style.wrapped(text, 9) for _, text in scale.ticks]
        axis.set_ticklabels(texts, fontsize=6.5, **(angle if long else {}))
        return
    if scale.kind == "percent":
        axis.set_major_formatter(ticker.PercentFormatter(1, 0))
        return
    few = ticker.LogLocator(subs=(1, 3), numticks=6)
    linear = ticker.MaxNLocator(5, integer=scale.kind == "integer")
    axis.set_major_locator(few if scale.log else linear)
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: style.tick(value)))


def _bars(axes: Axes, one: Bars, places: np.ndarray, thick: float, hatch: str) -> None:
    look: dict[str, Any] = {"color": one.colour, "hatch": hatch, "edgecolor": "white"}
    bars = axes.barh(places, one.lengths, thick, label=one.name, **look)
    texts = ["-" if np.isnan(value) else f"{value:.0%}" for value in one.lengths]
    axes.bar_label(bars, texts, padding=2, fontsize=6)
    axes.set_yticks(range(len(one.categories)), list(one.categories))
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.1)


def _heatmap(figure: Figure, axes: Axes, one: Heatmap) -> None:
    image = axes.imshow(one.values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(one.values):
        text = "-" if np.isnan(value) else f"{value:.2f}"
        colour = "white" if value < 0.55 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
    rotation = 45 if len(one.columns) > 8 else 0
    axes.set_xticks(range(len(one.columns)), list(one.columns), rotation=rotation)
    axes.set_yticks(range(len(one.rows)), list(one.rows))
    axes.set_title(one.title)
    _without_frame(axes)
    figure.colorbar(image, ax=axes, shrink=min(1.0, 8 / len(one.rows)), anchor=(0, 1))


def _parallel(figure: Figure, axes: Axes, one: Parallel) -> None:
    heights = np.column_stack(
        [(axis.positions - axis.low) / (axis.high - axis.low) for axis in one.axes]
    )
    places = np.tile(np.arange(len(one.axes)), (len(heights), 1))
    order = np.argsort(one.colours, kind="stable")
    scale = Normalize(one.colours.min(), one.colours.max())
    look: dict[str, Any] = {"linewidths": 0.6, "alpha": 0.8, "rasterized": len(heights) > 300}
    colours = colormaps["cividis"](scale(one.colours[order]))
    lines = np.stack([places, heights], axis=2)[order]
    axes.add_collection(LineCollection(list(lines), colors=colours, **look))
    for place, axis in enumerate(one.axes):
        axes.axvline(place, color="black", linewidth=0.7)
        for value, text in axis.ticks:
            spot = (place + 0.03, (value - axis.low) / (axis.high - axis.low))
            axes.annotate(text, spot, fontsize=6, va="center", bbox=_TABLE)
    titles = [style.wrapped(axis.title, 19) for axis in one.axes]
    axes.set_xticks(range(len(one.axes)), titles, fontsize=6.5)
    axes.set(xlim=(-0.2, len(one.axes) - 0.6), ylim=(-0.04, 1.04), yticks=[])
    _without_frame(axes)
    bar = figure.colorbar(ScalarMappable(scale, "cividis"), ax=axes, pad=0.02)
    bar.set_label(style.wrapped(one.title, 40))


def _without_frame(axes: Axes) -> None:
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _number_points(axes: Axes, view: View) -> None:
    """Put the label of each labelled point beside it, far from other labels and points."""
    points = [one for one in view.series if isinstance(one, Series) and one.opacity]
    labelled = [one for one in points if one.label and np.isfinite([*one.x, *one.y]).all()]
    if not labelled:
        return
    pixels = axes.figure.dpi / 72  # of a point, 1/72 inch
    every = np.concatenate([np.column_stack([one.x, one.y]).astype(float) for one in points])
    taken = axes.transData.transform(every[np.isfinite(every).all(axis=1)])
    placed = np.empty((0, 3))  # x, y and half of the width of each label
    angles = np.arange(0.8, 7, np.pi / 8)
    circle = np.column_stack([np.cos(angles), np.sin(angles)])
    offsets = np.concatenate([reach * circle for reach in (11, 17, 25, 34)])
    for one in labelled:
        at = axes.transData.transform([one.x[0], one.y[0]])
        spots = at + offsets * pixels
        low, high = np.array(axes.bbox.min) + 6, np.array(axes.bbox.max) - 6
        inside = ((spots > low) & (spots < high)).all(axis=1)
        to_points = np.linalg.norm(spots[:, None] - taken, axis=2).min(axis=1) / pixels
        half = 2.8 * len(one.label)
        gaps = np.abs(spots[:, None] - placed[:, :2]) / pixels
        covers = ((gaps[:, :, 0] < half + placed[:, 2]) & (gaps[:, :, 1] < 9)).any(axis=1)
        score = np.minimum(to_points, 9) - np.linalg.norm(offsets, axis=1) / 5
        best = int(np.argmax(score - 1000.0 * (~inside + covers)))
        placed = np.vstack([placed, [*spots[best], half]])
        arrow = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 3, "shrinkB": 4}
        place: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center"}
        look: dict[str, Any] = {"fontweight": "bold", "fontsize": 7.5, "zorder": 6}
        spot = (float(one.x[0]), float(one.y[0]))
        axes.annotate(one.label, spot, offsets[best], arrowprops=arrow, **place, **look)
