"""Matplotlib PNG and SVG for papers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)
from matplotlib.transforms import Bbox

from src.reporting import collect
from src.reporting import style as layout
from src.reporting.record import Report
from src.reporting.style import (
    CHOSEN,
    DASHES,
    KNEE,
    ORIGIN,
    PALE,
    SEQUENTIAL,
    SHAPES,
    Marker,
    cycle,
    mark,
)

MOST_LINES = 1000
MOST_ROWS = 30
_HATCHES = ("", "///", "xx", "...", "--", "++")


def effects(report: Report) -> Figure | None:
    """A column a parameter, a row an objective: the mean of all trials with its interval, and the best setting."""
    frame = report.effects
    if frame.empty:
        return None
    parameters, objectives = (
        list(dict.fromkeys(frame["parameter"])),
        list(dict.fromkeys(frame["objective"])),
    )
    size = (max(3.5, 0.7 + 1.65 * len(parameters)), 0.6 + 1.6 * len(objectives))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(
        len(objectives), len(parameters), squeeze=False, sharey="row", sharex="col"
    )
    for line, objective in zip(grid, objectives, strict=True):
        for axes, parameter in zip(line, parameters, strict=True):
            rows = frame[(frame["parameter"] == parameter) & (frame["objective"] == objective)]
            if len(rows):
                _effect(axes, rows.sort_values("position"))
        if (frame.loc[frame["objective"] == objective, ["mean", "best"]].min() >= 0).all():
            line[0].set_ylim(
                bottom=max(0.0, line[0].get_ylim()[0])
            )  # an interval may reach below what can be measured
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
        figsize=(4.6, 0.9 + 0.2 * len(wide) * len(wide.columns) + 0.15 * len(wide.columns)),
        layout="constrained",
    )
    axes = figure.add_subplot()
    thick = 0.8 / len(wide.columns)
    for position, name in enumerate(wide):
        places = np.arange(len(wide)) + 0.4 - thick * (position + 0.5)
        hatch = _HATCHES[position % len(_HATCHES)]
        label = layout.metric(str(name)).label
        bars = axes.barh(
            places,
            wide[name],
            thick,
            color=cycle(position),
            hatch=hatch,
            edgecolor="white",
            label=label,
        )
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
        LineCollection(
            list(lines), colors=colours, linewidths=0.6, alpha=0.8, rasterized=len(rows) > 300
        )
    )
    for place, one in enumerate(found):
        axes.axvline(place, color="black", linewidth=0.7)
        for value, text in one.ticks:
            spot = (place + 0.03, (value - one.low) / (one.high - one.low))
            box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.4}
            axes.annotate(text, spot, fontsize=6, va="center", bbox=box)
    axes.set_xticks(
        range(len(found)), [layout.wrapped_at(".", one.label, 19) for one in found], fontsize=6.5
    )
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
        ((name, found) for name in ("test", "val") if len(found := layout.recalls(report, name))),
        ("", pd.DataFrame()),
    )
    if wide.empty:
        return None
    total = len(wide)
    wide = wide.head(MOST_ROWS)
    labels = report.recalls.drop_duplicates("run_id").set_index("run_id")["label"]
    figure = Figure(
        figsize=(2.4 + 0.45 * wide.shape[1], 1.0 + 0.19 * len(wide)), layout="constrained"
    )
    axes = figure.add_subplot()
    values = wide.to_numpy(dtype=float)
    image = axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = layout.NOTHING if pd.isna(value) else f"{value:.2f}"
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=6.5,
            color="white" if value < 0.55 else "black",
        )
    axes.set_xticks(
        range(wide.shape[1]), [str(name) for name in wide], rotation=45 if wide.shape[1] > 8 else 0
    )
    axes.set_yticks(range(len(wide)), [str(labels[run]) for run in wide.index])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("class")
    of = f", the first {len(wide)} of {total} runs" if len(wide) < total else ""
    axes.set_title(
        f"recall on {'validation' if split == 'val' else split} (higher is better){of}, the cheapest first"
    )
    figure.colorbar(
        image, ax=axes, shrink=min(1.0, 8 / len(wide)) if len(wide) > 8 else 1.0, anchor=(0, 1)
    )
    return figure


def _effect(axes: Axes, rows: pd.DataFrame) -> None:
    numeric = layout.numeric(rows)
    x = rows["position"].to_numpy(dtype=float)
    spans = np.abs(
        np.vstack([rows["mean"] - rows["low"], rows["high"] - rows["mean"]]).astype(float)
    )
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


DPI = 160
WIDTH = 7.2  # inches: a page with two columns
MOST_CURVES = 200
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "text.parse_math": False,  # a dollar in a run's name is a dollar
    "svg.hashsalt": "paretoderm",  # the same report, the same file
}
_STATES = ("over_limit", "pruned", "no value", "over limit", "dominated")
_MOST_PANELS = 3
_RASTER_FROM = 2000  # points; as single shapes they would make an SVG of many megabytes


def write(report: Report, folder: Path) -> list[Path]:
    """Writes each picture that there is something to draw for, as PNG (160 dpi) and as SVG.

    Args:
        report: What is drawn.
        folder: Made if need be.

    Returns:
        The files, PNG before SVG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, make in PICTURES.items():
        with mpl.rc_context(STYLE):
            figure = make(report)
            if figure is None:
                continue
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                path = folder / f"{name}.{kind}"
                figure.savefig(path, dpi=DPI, metadata=metadata)
                files.append(path)
    return files


def front(report: Report) -> Figure | None:
    """A panel a cost; named runs carry numbers that the key below explains."""
    costs = _panels(report)
    if not costs:
        return None
    figure = Figure(
        figsize=(max(3.5, WIDTH * len(costs) / _MOST_PANELS), 3.7), layout="constrained"
    )
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    named = layout.named(report)
    named = named[named["quality"].notna()]
    for axes, cost in zip(panels, costs, strict=True):
        _front_panel(report, axes, cost, named)
    panels[0].set_ylabel(layout.wrapped(layout.axis_title(report, report.quality), 30))
    handles, labels = panels[0].get_legend_handles_labels()
    keys = [
        f"{number}: {row['label']} ({row['name']})"
        for number, row in enumerate(named.to_dict("records"), 1)
    ]
    blank = mpl.lines.Line2D([], [], linestyle="none")
    text = [*labels, *(layout.wrapped(key, 52 if len(costs) > 1 else 60) for key in keys)]
    columns = 2 if len(costs) > 1 else 1
    figure.legend(
        [*handles, *[blank] * len(keys)],
        text,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )
    rows = -(-len(text) // columns)
    figure.set_figheight(
        2.8 + 0.17 * rows + 0.12 * sum(entry.count("\n") for entry in text) / columns
    )
    # fixes the layout, so that the numbers can be put where there is room
    figure.draw_without_rendering()
    for axes, cost in zip(panels, costs, strict=True):
        _put_numbers(report, axes, named, cost)
    return figure


def curves(report: Report) -> Figure | None:
    """The quality by epoch; pruned trials end where they ended, the front is bold."""
    frame = report.curves
    if frame.empty:
        return None
    runs = layout.thin(layout.curve_order(report), layout.important(report), MOST_CURVES)
    shown = frame[frame["run_id"].isin(runs)].sort_values("epoch")
    names = layout.named(report).set_index("run_id")["name"].to_dict()
    figure, axes = _single(3.2)
    rest = shown[~shown["run_id"].isin(names)].groupby("run_id")
    for _, curve in sorted(rest, key=lambda pair: pair[1]["state"].iloc[0] == "front"):
        _curve(axes, curve)
    for position, run in enumerate(run for run in names if run in set(shown["run_id"])):
        curve = shown[shown["run_id"] == run]
        style: dict[str, Any] = {
            "color": cycle(position + 1),
            "linestyle": DASHES[position % len(DASHES)][1],
        }
        label = layout.wrapped(f"{curve['label'].iloc[0]} ({names[run]})", 52)
        axes.plot(curve["epoch"], curve["value"], label=label, zorder=4, linewidth=2, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(layout.wrapped(layout.axis_title(report, layout.curve_metric(report)), 28))
    several = (
        pd.to_numeric(report.table.get("repeats", pd.Series(dtype=float)), errors="coerce")
        .gt(1)
        .any()
    )
    _legend_below(figure, axes, layout.wrapped(layout.CURVES_OF_SEEDS, 64) if several else "")
    return figure


def progress(report: Report) -> Figure | None:
    """Hypervolume of the front by trials ended."""
    if report.progress.empty:
        return None
    figure, axes = _single(2.4)
    for position, (study, rows) in enumerate(report.progress.groupby("study", sort=False)):
        steps = layout.steps(rows)
        style: dict[str, Any] = {
            "color": cycle(position),
            "linestyle": DASHES[position % len(DASHES)][1],
        }
        axes.step(steps["trials"], steps["hypervolume"], where="post", label=str(study), **style)
    axes.set_xlabel("trials ended")
    axes.set_ylabel("hypervolume of the front,\nhigher is better")
    if report.progress["study"].nunique() > 1:
        axes.legend(frameon=False)
    return figure


PICTURES: dict[str, Callable[[Report], Figure | None]] = {
    "front": front,
    "recalls": recalls,
    "effects": effects,
    "importance": importance,
    "parallel": parallel,
    "curves": curves,
    "progress": progress,
}


def _single(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, height), layout="constrained")
    return figure, figure.add_subplot()


def _panels(report: Report) -> list[str]:
    """Costs with points, objectives before others; one latency is enough, for all look alike."""
    objectives = [objective.metric for objective in report.objectives]
    ordered = sorted(
        (cost for cost in report.costs if len(layout.drawn(report, cost))),
        key=lambda c: c not in objectives,
    )
    chosen: list[str] = []
    for cost in ordered:
        if "latency" not in cost or not any("latency" in other for other in chosen):
            chosen.append(cost)
    return sorted(chosen[:_MOST_PANELS], key=report.costs.index)


def _front_panel(report: Report, axes: Axes, cost: str, named: pd.DataFrame) -> None:
    known = layout.drawn(report, cost)
    for state in _STATES:
        rows = known[known["state"] == state]
        if len(rows):
            points = _points(axes, rows, cost, mark(state), state.replace("_", " "))
            if len(rows) > _RASTER_FROM:
                points.set(rasterized=True, alpha=0.5, linewidths=0.3)
    members = layout.members(report)
    descending = layout.direction(report, report.quality).startswith("lower")
    several = len(report.studies) > 1
    for position, study in enumerate(report.studies):
        rows = members[members["study"] == study] if several else members
        look = mark("front")
        if several:
            look = Marker(cycle(position), "", SHAPES[position % len(SHAPES)][1], look.size)
        x, y = layout.staircase(rows, cost, descending)
        axes.step(
            x,
            y,
            where="post",
            color=look.colour,
            linestyle=DASHES[position % len(DASHES)][1],
            zorder=2,
        )
        _errors(axes, rows, cost, look.colour)
        _points(axes, rows, cost, look, f"front of {study}" if several else "front")
    joined = collect.joins(report, cost)
    _origins(axes, joined)
    knees = named[named["knee"].astype(bool)]
    _points(axes, knees, cost, KNEE, "knee", zorder=5)
    _points(axes, named.drop(knees.index), cost, CHOSEN, "chosen", zorder=5)
    if layout.logarithmic(cost, pd.concat([known[cost], joined["from_x"]])):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=8))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: layout.tick(value)))
    axes.margins(x=0.09, y=0.09)
    axes.set_xlabel(layout.wrapped(layout.axis_title(report, cost), 34))


def _origins(axes: Axes, joined: pd.DataFrame) -> None:
    """A thin line from each origin to what it was compressed to; origins without a point of their own are hollow."""
    x, y = (joined[[f"from_{axis}", f"to_{axis}"]].to_numpy(dtype=float).T for axis in "xy")
    lines = axes.plot(x, y, color=ORIGIN.colour, linewidth=0.8, zorder=2.6)
    for line in lines[:1]:
        line.set_label(
            layout.wrapped(f"{collect.LEGEND} ({', '.join(joined['compression'].unique())})", 40)
        )
    outside = (
        joined[joined["outside"]].drop_duplicates("origin").rename(columns={"from_y": "quality"})
    )
    _points(axes, outside, "from_x", ORIGIN, collect.OUTSIDE)


def _points(
    axes: Axes, rows: pd.DataFrame, cost: str, look: Marker, label: str, zorder: float = 3
) -> Any:
    size = (look.size / 2) ** 2 * (1.0 if look.hollow else 1.3)
    faces: dict[str, Any] = {"facecolors": "none", "edgecolors": look.colour, "linewidths": 0.8}
    if not look.hollow:
        faces = {"facecolors": look.colour, "edgecolors": "white", "linewidths": 0.4}
    if look.marker in ("x", "+"):
        faces = {"color": look.colour, "linewidths": 0.8}
    handle = label if len(rows) else "_nothing"
    return axes.scatter(
        rows[cost], rows["quality"], size, marker=look.marker, label=handle, zorder=zorder, **faces
    )


def _errors(axes: Axes, rows: pd.DataFrame, cost: str, colour: str) -> None:
    known = rows[rows[[cost, "quality_low", "quality_high"]].notna().all(axis=1)]
    spans = np.abs(
        [known["quality"] - known["quality_low"], known["quality_high"] - known["quality"]]
    )
    if len(known):
        axes.errorbar(
            known[cost],
            known["quality"],
            spans,
            fmt="none",
            ecolor=colour,
            elinewidth=0.6,
            capsize=1.5,
            alpha=0.7,
        )


def _put_numbers(report: Report, axes: Axes, named: pd.DataFrame, cost: str) -> None:
    """Each number beside its point, where it covers no other number and as few points as can be."""
    known = named.assign(number=np.arange(1, len(named) + 1))
    known = known[known[cost].notna()]
    drawn = layout.drawn(report, cost)
    points = axes.transData.transform(drawn[[cost, "quality"]].to_numpy(dtype=float))
    marked = axes.transData.transform(known[[cost, "quality"]].to_numpy(dtype=float).reshape(-1, 2))
    pixels = axes.figure.dpi / 72  # a point is 1/72 inch
    taken: list[Bbox] = []
    for at, (_, row) in zip(marked, known.iterrows(), strict=True):
        half = np.array([2.8 * len(str(row["number"])), 4.0]) * pixels
        offsets = [
            reach * np.array([np.cos(a), np.sin(a)])
            for reach in (11, 17, 25)
            for a in np.arange(0.8, 7, np.pi / 8)
        ]
        boxes = [
            Bbox([at + offset * pixels - half, at + offset * pixels + half]) for offset in offsets
        ]
        costs = [_crowd(box, taken, points, marked, axes.bbox) for box in boxes]
        best = int(np.argmin(np.array(costs) + [np.hypot(*offset) / 5 for offset in offsets]))
        taken.append(boxes[best])
        axes.annotate(
            str(row["number"]),
            (row[cost], row["quality"]),
            tuple(offsets[best]),
            textcoords="offset points",
            ha="center",
            va="center",
            fontweight="bold",
            fontsize=7.5,
            zorder=6,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 3, "shrinkB": 4},
        )


def _crowd(
    box: Bbox, taken: list[Bbox], points: np.ndarray, marked: np.ndarray, frame: Bbox
) -> float:
    """How bad a place is: other numbers and the frame weigh most, then named points, then others."""
    outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
    numbers = sum(box.overlaps(other) for other in taken)
    return (
        1000.0 * (numbers + outside)
        + 100.0 * _inside(marked, box.padded(8))
        + 10.0 * min(_inside(points, box.padded(4)), 9)
    )


def _inside(points: np.ndarray, box: Bbox) -> int:
    return int(((points > box.min) & (points < box.max)).all(axis=1).sum())


def _curve(axes: Axes, curve: pd.DataFrame) -> None:
    state = str(curve["state"].iloc[0])
    bold, pruned = state == "front", state == "pruned"
    colour = mark(state).colour if bold or pruned else PALE
    known = set(axes.get_legend_handles_labels()[1])
    label = state if bold or pruned else "other trials"
    axes.plot(
        curve["epoch"],
        curve["value"],
        label=f"_{label}" if label in known else label,
        color=colour,
        linewidth=1.2 if bold else 0.6,
        alpha=1.0 if bold else 0.8,
        zorder=3 if bold else 2,
        marker="v" if pruned else "o",
        markersize=3,
        markevery=[len(curve) - 1],
        markerfacecolor=colour if bold else "none",
    )


def _legend_below(figure: Figure, axes: Axes, note: str = "") -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = 1 if max(map(len, labels)) > 30 else 3
        figure.legend(
            handles,
            labels,
            title=note,
            title_fontsize=7,
            loc="outside lower center",
            ncols=columns,
            frameon=False,
        )
        figure.set_figheight(figure.get_figheight() + 0.14 * (len(labels) + len(note.splitlines())))
