"""Static pictures of parameters and classes: effects, importance, parallel coordinates, recall by class."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from src.reporting import layout
from src.reporting.palette import SEQUENTIAL, cycle
from src.reporting.record import Report

MOST_LINES = 1000
MOST_ROWS = 30
_HATCHES = ("", "///", "xx", "...", "--", "++")


def effects(report: Report) -> Figure | None:
    """A column a parameter, a row an objective: the mean of all trials with its interval, and the best setting."""
    frame = report.effects
    if frame.empty:
        return None
    parameters, objectives = list(dict.fromkeys(frame["parameter"])), list(dict.fromkeys(frame["objective"]))
    size = (max(3.5, 0.7 + 1.65 * len(parameters)), 0.6 + 1.6 * len(objectives))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(objectives), len(parameters), squeeze=False, sharey="row", sharex="col")
    for line, objective in zip(grid, objectives, strict=True):
        for axes, parameter in zip(line, parameters, strict=True):
            rows = frame[(frame["parameter"] == parameter) & (frame["objective"] == objective)]
            if len(rows):
                _effect(axes, rows.sort_values("position"))
        if (frame.loc[frame["objective"] == objective, ["mean", "best"]].min() >= 0).all():
            line[0].set_ylim(bottom=max(0.0, line[0].get_ylim()[0]))  # an interval may reach below what can be measured
        line[0].set_ylabel(layout.wrapped(layout.axis_title(report, objective), 26))
        line[0].yaxis.set_major_locator(MaxNLocator(5))
        line[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: layout.tick(value)))
    for axes, parameter in zip(grid[-1], parameters, strict=True):
        rows = frame[frame["parameter"] == parameter].drop_duplicates("position")
        _parameter_axis(axes, rows.sort_values("position"))
        axes.set_xlabel(layout.wrapped_at(".", str(parameter), 24))
    handles, labels = next(filter(all, (axes.get_legend_handles_labels() for axes in grid.flat)))
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def importance(report: Report) -> Figure | None:
    """Which parameters matter, for each objective."""
    wide = layout.importance(report)
    if wide is None:
        return None
    figure = Figure(
        figsize=(4.6, 0.9 + 0.2 * len(wide) * len(wide.columns) + 0.15 * len(wide.columns)), layout="constrained"
    )
    axes = figure.add_subplot()
    thick = 0.8 / len(wide.columns)
    for position, name in enumerate(wide):
        places = np.arange(len(wide)) + 0.4 - thick * (position + 0.5)
        hatch = _HATCHES[position % len(_HATCHES)]
        label = layout.metric(str(name)).label
        bars = axes.barh(places, wide[name], thick, color=cycle(position), hatch=hatch, edgecolor="white", label=label)
        axes.bar_label(bars, [_percent(value) for value in wide[name]], padding=2, fontsize=6)
    axes.set_yticks(range(len(wide)), [str(name) for name in wide.index])
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.set_xlabel("importance (share of what all parameters explain)")
    figure.legend(loc="outside lower center", ncols=1, frameon=False)
    return figure


def parallel(report: Report) -> Figure | None:
    """A line a trial through the values of its parameters and objectives, coloured by quality."""
    found, rows = layout.parallel(report, MOST_LINES)
    if len(rows) < 2 or len(found) < 2:
        return None
    figure = Figure(figsize=(max(4.5, 1.1 * len(found) + 1.2), 3.0), layout="constrained")
    axes = figure.add_subplot()
    heights = np.column_stack([(one.positions - one.low) / (one.high - one.low) for one in found])
    order = np.argsort(rows["quality"].to_numpy(), kind="stable")
    lines = np.stack([np.tile(np.arange(len(found)), (len(rows), 1)), heights], axis=2)[order]
    scale = Normalize(rows["quality"].min(), rows["quality"].max())
    colours = colormaps[SEQUENTIAL](scale(rows["quality"].to_numpy()[order]))
    axes.add_collection(
        LineCollection(list(lines), colors=colours, linewidths=0.6, alpha=0.8, rasterized=len(rows) > 300)
    )
    for place, one in enumerate(found):
        axes.axvline(place, color="black", linewidth=0.7)
        for value, text in one.ticks:
            spot = (place + 0.03, (value - one.low) / (one.high - one.low))
            box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.4}
            axes.annotate(text, spot, fontsize=6, va="center", bbox=box)
    axes.set_xticks(range(len(found)), [layout.wrapped_at(".", one.label, 19) for one in found], fontsize=6.5)
    axes.set(xlim=(-0.2, len(found) - 0.6), ylim=(-0.04, 1.04))
    axes.yaxis.set_major_locator(NullLocator())
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(ScalarMappable(scale, SEQUENTIAL), ax=axes, pad=0.02)
    bar.set_label(layout.wrapped(layout.axis_title(report, report.quality), 40))
    return figure


def recalls(report: Report) -> Figure | None:
    """Recall by class of the front and the chosen runs, of test where it was measured, else of validation."""
    split, wide = next(
        ((name, found) for name in ("test", "val") if len(found := layout.recalls(report, name))), ("", pd.DataFrame())
    )
    if wide.empty:
        return None
    total = len(wide)
    wide = wide.head(MOST_ROWS)
    labels = report.recalls.drop_duplicates("run_id").set_index("run_id")["label"]
    figure = Figure(figsize=(2.4 + 0.45 * wide.shape[1], 1.0 + 0.19 * len(wide)), layout="constrained")
    axes = figure.add_subplot()
    values = wide.to_numpy(dtype=float)
    image = axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = layout.NOTHING if pd.isna(value) else f"{value:.2f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color="white" if value < 0.55 else "black")
    axes.set_xticks(range(wide.shape[1]), [str(name) for name in wide], rotation=45 if wide.shape[1] > 8 else 0)
    axes.set_yticks(range(len(wide)), [str(labels[run]) for run in wide.index])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("class")
    of = f", the first {len(wide)} of {total} runs" if len(wide) < total else ""
    axes.set_title(f"recall on {'validation' if split == 'val' else split} (higher is better){of}, the cheapest first")
    figure.colorbar(image, ax=axes, shrink=min(1.0, 8 / len(wide)) if len(wide) > 8 else 1.0, anchor=(0, 1))
    return figure


def _effect(axes: Axes, rows: pd.DataFrame) -> None:
    numeric = layout.numeric(rows)
    x = rows["position"].to_numpy(dtype=float)
    spans = np.abs(np.vstack([rows["mean"] - rows["low"], rows["high"] - rows["mean"]]).astype(float))
    axes.errorbar(
        x,
        rows["mean"],
        spans,
        fmt="o",
        linestyle="-" if numeric else "none",
        color=cycle(0),
        markersize=3,
        capsize=2,
        label="mean of all trials",
    )
    axes.plot(
        x,
        rows["best"],
        "D",
        linestyle="--" if numeric else "none",
        color=cycle(1),
        markersize=3.5,
        markerfacecolor="none",
        linewidth=0.9,
        label="at the best setting of the others",
    )


def _parameter_axis(axes: Axes, rows: pd.DataFrame) -> None:
    """The values as they are where there is room for each, else round numbers."""
    numeric = layout.numeric(rows)
    x = rows["position"].to_numpy(dtype=float)
    log = numeric and layout.logarithmic("", rows["position"])
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if not numeric:
        axes.set_xlim(x.min() - 0.5, x.max() + 0.5)
    if not numeric or layout.apart(rows, 0.1):
        texts = [str(value) for value in rows["value"]]
        if numeric or len(rows) <= 3:
            axes.set_xticks(x, [layout.wrapped_at("_", text, 9) for text in texts], fontsize=6.5)
        else:
            axes.set_xticks(x, texts, fontsize=6.5, rotation=35, ha="right", rotation_mode="anchor")
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        # evenly between the ends on either scale: few enough to stand side by side
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=5) if log else MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: layout.tick(value)))


def _percent(value: float) -> str:
    return layout.NOTHING if pd.isna(value) else f"{value:.0%}"
