"""Figures of the clinical audit: ROC, precision-recall, reliability, subgroups; domain shift."""

from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from src.metrics import calibration, thresholds
from src.metrics.registry import PRIMARY, short_label
from src.reporting.clinical.presentation import figure_titles, shift_label
from src.reporting.clinical.results import ClinicalAudit, Evaluation
from src.reporting.clinical.subgroups import display_name
from src.reporting.style import BLUE, VERMILLION

DPI = 150
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7.5,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.hashsalt": "paretoderm",  # the same audit, the same file
}
GREY = "#898989"
COLUMNS = 4  # panels in a row
LINE: dict[str, Any] = {"color": BLUE, "linewidth": 0.9, "alpha": 0.8}
CHANCE: dict[str, Any] = {"color": GREY, "linestyle": ":", "linewidth": 1}
MARKERS = {
    "argmax": {"marker": "o", "color": "black"},
    "sensitivity": {"marker": "D", "color": VERMILLION},
    "specificity": {"marker": "s", "color": VERMILLION},
}


def write(result: ClinicalAudit, folder: Path) -> None:
    """Write the figures of an audit as PNG (150 dpi) and SVG into an existing folder."""
    for name in figure_titles(result):
        with mpl.rc_context(STYLE):
            figure = FIGURES[name](result)
            figure.savefig(folder / f"{name}.png", dpi=DPI, metadata={"Software": None})
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def _grid(
    rows: int, columns: int, panel: tuple[float, float], margins: tuple[float, ...], **options: Any
) -> tuple[Figure, Any]:
    """A figure with a grid of axes of `panel` (width, height); all sizes are in inches.

    The margins are left, right, bottom, top, between columns and between rows. They are set here,
    because a layout engine takes half as long as all of the drawing.
    """
    (width, height), (start, end, bottom, top, across, down) = panel, margins
    full_width = start + columns * (width + across) - across + end
    full_height = bottom + rows * (height + down) - down + top
    figure = Figure(figsize=(full_width, full_height))
    options["gridspec_kw"] = {
        "left": start / full_width,
        "right": 1 - end / full_width,
        "bottom": bottom / full_height,
        "top": 1 - top / full_height,
        "wspace": across / width,
        "hspace": down / height,
    }
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def roc(result: ClinicalAudit) -> Figure:
    """One panel per class: the curve of each net, chance, and the operating points."""
    figure, panels = _panels(result, result.roc)
    for name, axes in panels.items():
        axes.plot([0, 1], [0, 1], **CHANCE)
        for _, curve in result.roc[result.roc["class"] == name].groupby("seed"):
            axes.plot(curve["false_positive_rate"], curve["sensitivity"], **LINE)
        for rule, point in _operating_points(result, name).items():
            axes.plot(1 - point["specificity"], point["sensitivity"], **_marker(rule))
    labels = ("1 - specificity\n(lower is better)", "sensitivity\n(higher is better)")
    return _finish(figure, result, panels, labels, "auroc")


def precision_recall(result: ClinicalAudit) -> Figure:
    """One panel per class: the curve of each net, chance (the share of the class), the points."""
    figure, panels = _panels(result, result.precision_recall)
    for name, axes in panels.items():
        axes.axhline(_row(result.per_class, name, "recall")["images"] / result.images, **CHANCE)
        rows = result.precision_recall[result.precision_recall["class"] == name]
        for _, curve in rows.groupby("seed"):
            # precision between two thresholds is that of the lower one, as average precision has it
            axes.plot(curve["recall"], curve["precision"], drawstyle="steps-post", **LINE)
        for rule, point in _operating_points(result, name).items():
            axes.plot(point["sensitivity"], point["ppv"], **_marker(rule))
    labels = ("recall\n(higher is better)", "precision\n(higher is better)")
    return _finish(figure, result, panels, labels, "average_precision")


def _panels(result: ClinicalAudit, points: pd.DataFrame) -> tuple[Figure, dict[str, Axes]]:
    """A square panel for each class that has a curve, the class looked for first."""
    names = [name for name in result.classes if name in set(points["class"])]
    names.sort(key=lambda name: name != result.positive)
    columns = min(COLUMNS, len(names))
    margins = (0.65, 0.15, 1.1 if columns > 2 else 1.35, 0.42, 0.28, 0.95)
    how: dict[str, Any] = {"sharex": True, "sharey": True}
    figure, axes = _grid(-(-len(names) // columns), columns, (1.8, 1.8), margins, **how)
    grid = list(axes.flat)
    for unused in grid[len(names) :]:
        unused.set_visible(False)
    return figure, dict(zip(names, grid, strict=False))


def _finish(
    figure: Figure,
    result: ClinicalAudit,
    panels: dict[str, Axes],
    labels: tuple[str, str],
    metric: str,
) -> Figure:
    """Set scales and titles, label the outer panels, add one legend."""
    for number, (name, axes) in enumerate(panels.items()):
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))  # more take twice as long to draw
        if number + COLUMNS >= len(panels):
            axes.set_xlabel(labels[0])
            axes.tick_params(labelbottom=True)
        if number % COLUMNS == 0:
            axes.set_ylabel(labels[1])
        row, images = _row(result.ranking, name, metric), _row(result.per_class, name, "recall")
        span = f" [{row['low']:.2f}, {row['high']:.2f}]" if np.isfinite(row["low"]) else ""
        looked_for = " (looked for)" if name == result.positive else ""
        value = f"{short_label(f'val/{metric}/{name}')} {row['estimate']:.2f}{span}"
        axes.set_title(f"{name}{looked_for}: {images['images']} images\n{value}")
    several = result.seeds > 1
    handles = [Line2D([], [], color=BLUE), Line2D([], [], color=GREY, linestyle=":")]
    names = [f"each of {result.seeds} nets (seeds)" if several else "the net", "chance"]
    for rule in result.operating["rule"].unique():
        argmax = rule == thresholds.ARGMAX
        handles.append(Line2D([], [], **_marker(rule)))
        names.append("most probable class" if argmax else f"threshold from val: {rule}")
    title = "points are means over the nets" if several else None
    legend: dict[str, Any] = {"loc": "lower center", "ncols": 3 if len(panels) > 2 else 2}
    figure.legend(handles, names, title=title, title_fontsize=7.5, frameon=False, **legend)
    return figure


def _operating_points(result: ClinicalAudit, name: str) -> dict[str, dict[Any, float]]:
    """Rates by rule: the most probable class; of the class looked for, the thresholds too."""
    rows = result.per_class[result.per_class["class"] == name]
    rates = rows.set_index("measure")["estimate"]
    rates = rates.rename({"recall": "sensitivity", "precision": "ppv"})
    points = {thresholds.ARGMAX: rates.to_dict()}
    if name == result.positive:
        for rule, table in result.operating.groupby("rule", sort=False):
            points[str(rule)] = table.set_index("measure")["estimate"].to_dict()
    return points


def _marker(rule: str) -> dict[str, Any]:
    style = {"markersize": 5, "markeredgecolor": "white", "linestyle": "none"}
    return {**MARKERS[rule.split(" ")[0]], **style}


def _row(table: pd.DataFrame, name: str, measure: str) -> pd.Series:
    column = "measure" if "measure" in table else "metric"
    return table[(table["class"] == name) & (table[column] == measure)].iloc[0]


def reliability(result: ClinicalAudit) -> Figure:
    """Confidence and frequency of the predicted class and of the class looked for, with counts."""
    margins = (0.6, 0.1, 0.8, 0.3, 0.5, 0.15)
    figure, grid = _grid(2, 2, (3, 1.55), margins, sharex=True, height_ratios=(3, 1))
    styles: dict[bool, dict[str, Any]] = {
        False: {"color": BLUE, "linestyle": "-", "label": "as it is", "marker": "o"},
        True: {
            **{"color": VERMILLION, "linestyle": "--"},
            **{"label": "after temperature scaling", "marker": "D"},
        },
    }
    for (upper, lower), name in zip(grid.T, (calibration.TOP, result.positive), strict=True):
        upper.plot([0, 1], [0, 1], label="perfect", **CHANCE)
        for scaled, style in styles.items():
            rows = result.bins[(result.bins["class"] == name) & (result.bins["scaled"] == scaled)]
            if rows.empty:
                continue
            upper.plot(rows["confidence"], rows["frequency"], markersize=3.5, linewidth=1, **style)
            bins = range(calibration.BINS)
            counts = rows.set_index("bin")["images"].reindex(bins, fill_value=0)
            edges = np.arange(calibration.BINS + 1) / calibration.BINS
            line = {key: style[key] for key in ("color", "linestyle")}
            lower.stairs(counts.to_numpy(), edges, linewidth=1, **line)
        what = "the predicted class" if name == calibration.TOP else name
        upper.set(title=f"{what}: confidence and frequency in 15 bins", ylim=(-0.03, 1.03))
        lower.set(xlabel=f"probability of {what}", yscale="log")
        lower.set_ylim(bottom=0.3)
        lower.yaxis.set_major_locator(LogLocator(numticks=4))
        lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        lower.yaxis.set_minor_locator(NullLocator())
    grid[0][0].set_ylabel("share that is right")
    grid[1][0].set_ylabel("images in a bin")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False)
    return figure


def subgroups(result: ClinicalAudit) -> Figure:
    """A forest plot: one line per subgroup, one panel per measure; dashed: all images."""
    order = result.subgroups.drop_duplicates(["by", "subgroup"]).to_dict("records")
    heights = {(row["by"], row["subgroup"]): len(order) - n for n, row in enumerate(order)}
    heads = {
        measure: f"recall of {result.positive} by\n{fill(rule, 23)}"
        for measure, rule in result.rules.items()
    }
    heads["auroc"] = f"{short_label('val/auroc')} of {result.positive}\nagainst the rest"
    heads[PRIMARY] = "balanced accuracy\n(number of classes)"
    labels = [
        f"{display_name(row['by'], row['subgroup'])}  ({row['images']} images; {result.positive}: "
        f"{row['positives']} of {row['positive_lesions']} lesions)"
        for row in order
    ]
    margins = (0.2 + 0.055 * max(map(len, labels)), 0.15, 0.9, 0.3, 0.2, 0)
    figure, grid = _grid(1, len(heads), (1.6, 0.19 * len(order) + 0.1), margins, sharey=True)
    panels = grid[0]
    firsts = {row["by"]: heights[row["by"], row["subgroup"]] for row in reversed(order)}
    for axes, (measure, head) in zip(panels, heads.items(), strict=True):
        rows = result.subgroups[result.subgroups["measure"] == measure]
        for row in rows.to_dict("records"):
            _forest_row(axes, row, heights[row["by"], row["subgroup"]])
        axes.set(xlabel=f"{head}\n(higher is better)", xlim=(0, 1.03))
        for height in firsts.values():
            axes.axhline(height + 0.5, color="black", linewidth=0.6)
        if measure in result.rules:
            axes.axvline(result.settings.goal, color=VERMILLION, linewidth=1)
            axes.set_title(f"solid line: goal, {result.settings.goal:g}", color=VERMILLION)
    panels[0].set_yticks(list(heights.values()), labels)
    panels[0].set_ylim(0.3, len(order) + 0.7)
    panels[-1].set_title("dashed line: all images", color=GREY)
    return figure


def _forest_row(axes: Axes, row: dict[Any, Any], height: int) -> None:
    if row["note"]:
        axes.text(0.02, height, "too few", color=GREY, fontsize=7, va="center")
        return
    value, everything = row["estimate"], row["by"] == "all"
    if everything:
        axes.axvline(value, color=GREY, linestyle="--", linewidth=1)
    # a mean over nets may lie outside its interval, and there may be none
    ends = [[max(0.0, float(np.nan_to_num(e)))] for e in (value - row["low"], row["high"] - value)]
    style: dict[str, Any] = {"color": BLUE, "markersize": 4, "elinewidth": 1, "capsize": 2}
    axes.errorbar(value, height, xerr=ends, fmt="D" if everything else "o", **style)
    if row["measure"] == PRIMARY:
        at, text = (value + ends[1][0], height), str(row["classes"])
        axes.annotate(text, at, (4, 0), textcoords="offset points", fontsize=6.5, va="center")


FIGURES: dict[str, Callable[[ClinicalAudit], Figure]] = {
    "roc": roc,
    "precision_recall": precision_recall,
    "reliability": reliability,
    "subgroups": subgroups,
}


def shift(result: Evaluation) -> Figure:
    """Metrics on the run's own split and on other data side by side, with intervals."""
    table = result.drop.iloc[::-1].reset_index(drop=True)
    figure = Figure(figsize=(7.2, 1.3 + 0.42 * len(table)), dpi=DPI, layout="constrained")
    axes, source = figure.add_subplot(), f"own {result.compared_with}"
    for key, label, colour, marker, offset in (
        ("own", source, BLUE, "o", 0.13),
        ("external", result.data, VERMILLION, "s", -0.13),
    ):
        spans = [table[key] - table[f"{key}_low"], table[f"{key}_high"] - table[key]]
        style: dict[str, Any] = {"fmt": marker, "color": colour, "markersize": 5, "capsize": 2.5}
        spans = [span.clip(lower=0) for span in spans]
        axes.errorbar(table[key], table.index + offset, xerr=spans, label=label, **style)
    axes.set_yticks(table.index, table["metric"].map(shift_label))
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(
        "0 to 1, higher is better; intervals by lesion and seed\n"
        "sensitivity and specificity: at the threshold chosen on own val"
    )
    axes.grid(alpha=0.3)
    axes.set_title(f"{result.evaluated.title}: {source} and {result.data}", fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def examples(result: Evaluation) -> Figure:
    """Some images of the run and some external ones of each class, full frames squashed."""
    size = (9, 0.5 + 0.58 * len(result.examples))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(len(result.examples), 2, squeeze=False)
    for (name, sides), row in zip(result.examples.items(), panels, strict=True):
        for images, axes in zip(sides, row, strict=True):
            axes.set(xticks=[], yticks=[], frame_on=False)
            if len(images):
                axes.imshow(np.concatenate(list(images), axis=1), interpolation="nearest")
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    panels[0][0].set_title(f"own {result.evaluated.data}", fontsize=10)
    panels[0][1].set_title(result.data, fontsize=10)
    return figure
