"""Figures of the clinical audit: ROC, precision-recall, reliability, subgroups; domain shift."""

import functools
import itertools
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
from src.reporting import plots_static
from src.reporting.clinical.presentation import estimate_text, figure_titles, shift_label
from src.reporting.clinical.results import ClinicalAudit, Evaluation
from src.reporting.clinical.subgroups import display_name
from src.reporting.style import BLUE, VERMILLION

FRAME = {f"axes.spines.{side}": True for side in ("top", "right")}
STYLE: Any = FRAME | {"axes.labelsize": 8, "legend.fontsize": 7.5}
GREY = "#898989"
COLUMNS = 4  # panels in a row
LINE: dict[str, Any] = {"color": BLUE, "linewidth": 0.9, "alpha": 0.8}
CHANCE: dict[str, Any] = {"color": GREY, "linestyle": ":", "linewidth": 1}
CURVES = {  # axes of the curve whose area is that metric
    "auroc": ("1 - specificity\n(lower is better)", "sensitivity\n(higher is better)"),
    "average_precision": ("recall\n(higher is better)", "precision\n(higher is better)"),
}
MARKERS = {
    "argmax": {"marker": "o", "color": "black"},
    "sensitivity": {"marker": "D", "color": VERMILLION},
    "specificity": {"marker": "s", "color": VERMILLION},
}


def write(result: ClinicalAudit, folder: Path) -> None:
    """Write the figures of an audit as PNG and SVG into an existing folder."""
    with mpl.rc_context(STYLE, plots_static.STYLE):
        for name in figure_titles(result):
            plots_static.save(FIGURES[name](result), folder / name)


def _grid(
    rows: int, columns: int, panel: tuple[float, float], **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of axes; a panel with its labels has a width and height in inches."""
    size = (columns * panel[0] + 0.3, rows * panel[1] + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def curves(result: ClinicalAudit, metric: str) -> Figure:
    """ROC curves ("auroc") or precision-recall curves ("average_precision") of each class.

    A square panel for each class that has a curve, the class looked for first: the curve of each
    net, chance (of precision the share of the class), and the operating points; one legend.
    """
    points = result.roc if metric == "auroc" else result.precision_recall
    x, y = points.columns[2:4]
    names = [name for name in result.classes if name in set(points["class"])]
    names.sort(key=lambda name: name != result.positive)
    columns, several = min(COLUMNS, len(names)), result.seeds > 1
    look = {"markersize": 5, "markeredgecolor": "white", "linestyle": "none"}
    rules = list(result.operating["rule"].unique())
    markers: dict[str, dict[str, Any]] = {
        rule: {**MARKERS.get(rule.split(" ")[0], MARKERS["argmax"]), **look}
        for rule in ["argmax", *rules]
    }
    shared: dict[str, Any] = {"sharex": True, "sharey": True}
    figure, grid = _grid(-(-len(names) // columns), columns, (2.1, 2.4), **shared)
    for number, (axes, name) in enumerate(itertools.zip_longest(grid.flat, names)):
        if name is None:
            axes.set_visible(False)
            continue
        of_class = result.per_class[result.per_class["class"] == name].set_index("measure")
        recalled: Any = of_class.loc["recall"]
        if metric == "auroc":
            axes.plot([0, 1], [0, 1], **CHANCE)
        else:
            axes.axhline(recalled["images"] / result.images, **CHANCE)
        for _, curve in points[points["class"] == name].groupby("seed"):
            # precision between two thresholds is that of the lower one, as average precision has it
            steps = "default" if metric == "auroc" else "steps-post"
            axes.plot(curve[x], curve[y], drawstyle=steps, **LINE)
        table = of_class.rename({"recall": "sensitivity", "precision": "ppv"}).assign(rule="argmax")
        table = result.operating.set_index("measure") if name == result.positive else table
        for rule, rates in table.groupby("rule", sort=False)["estimate"]:
            ends = (1 - rates["specificity"], rates["sensitivity"])
            ends = ends if metric == "auroc" else (rates["sensitivity"], rates["ppv"])
            axes.plot(*ends, **markers[str(rule)])
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        axes.set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))  # more take twice as long to draw
        if number + columns >= len(names):
            axes.set_xlabel(CURVES[metric][0])
            axes.tick_params(labelbottom=True)
        axes.set_ylabel("" if number % columns else CURVES[metric][1])
        ranking: Any = result.ranking.set_index(["class", "metric"]).loc[(name, metric)]
        looked_for = " (looked for)" if name == result.positive else ""
        value = f"{short_label(f'val/{metric}/{name}')} {estimate_text(ranking)}"
        recall = f"\nrecall {estimate_text(recalled)}" if metric == "auroc" else ""
        axes.set_title(f"{name}{looked_for}: {recalled['images']} images{recall}\n{value}")
    handles = [Line2D([], [], color=BLUE), Line2D([], [], color=GREY, linestyle=":")]
    names = [f"each of {result.seeds} nets (seeds)" if several else "the net", "chance"]
    for rule in rules:
        handles.append(Line2D([], [], **markers[rule]))
        chosen = f"threshold from val: {rule}"
        names.append(chosen if ">=" in rule else thresholds.rule_text(rule).removeprefix("the "))
    title = "points are means over the nets" if several else None
    legend: dict[str, Any] = {"loc": "outside lower center", "ncols": 3 if columns > 2 else 2}
    figure.legend(handles, names, title=title, title_fontsize=7.5, frameon=False, **legend)
    return figure


def reliability(result: ClinicalAudit) -> Figure:
    """Confidence and frequency of the predicted class and of the class looked for, with counts."""
    figure, grid = _grid(2, 2, (3.3, 1.7), sharex=True, height_ratios=(3, 1))
    scaled_label = "after temperature scaling"
    styles: dict[bool, dict[str, Any]] = {
        False: {"color": BLUE, "linestyle": "-", "label": "as it is", "marker": "o"},
        True: {"color": VERMILLION, "linestyle": "--", "label": scaled_label, "marker": "D"},
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
            lower.stairs(
                counts, edges, linewidth=1, color=style["color"], linestyle=style["linestyle"]
            )
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
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def subgroups(result: ClinicalAudit) -> Figure:
    """A forest plot: one line per subgroup, one panel per measure; dashed: all images."""
    name, table = result.positive, result.subgroups
    rank = table.groupby(["by", "subgroup"], sort=False).ngroup()
    table = table.assign(height=rank.max() + 1 - rank)
    lines = table.drop_duplicates("height")
    labels = [
        f"{display_name(row['by'], row['subgroup'])}  ({row['images']} images; {name}: "
        f"{row['positives']} of {row['positive_lesions']} lesions)"
        for row in lines.to_dict("records")
    ]
    rules = result.rules.items()
    heads = {measure: f"recall of {name} by\n{fill(rule, 23)}" for measure, rule in rules}
    heads["auroc"] = f"{short_label('val/auroc')} of {name}\nagainst the rest"
    heads[PRIMARY] = "balanced accuracy\n(number of classes)"
    panel = (1.7 + 0.055 * max(map(len, labels)) / len(heads), 0.19 * len(lines) + 0.6)
    figure, [panels] = _grid(1, len(heads), panel, sharey=True)
    for axes, (measure, head) in zip(panels, heads.items(), strict=True):
        rows = table[table["measure"] == measure]
        drawn, withheld = rows[rows["note"] == ""], rows.loc[rows["note"] != "", "height"]
        names = ("estimate", "low", "high")
        _intervals(axes, drawn, drawn["height"], names, fmt="o", color=BLUE, markersize=4)
        for height in withheld:
            axes.text(0.02, height, "too few", color=GREY, fontsize=7, va="center")
        for value in drawn.loc[drawn["by"] == "all", "estimate"]:
            axes.axvline(value, color=GREY, linestyle="--", linewidth=1)
        for row in drawn.to_dict("records") if measure == PRIMARY else ():
            at = (np.fmax(row["estimate"], row["high"]), row["height"])
            text: dict[str, Any] = {"textcoords": "offset points", "fontsize": 6.5}
            axes.annotate(str(row["classes"]), at, (4, -2), **text)
        axes.set(xlabel=f"{head}\n(higher is better)", xlim=(0, 1.03))
        for height in lines.groupby("by")["height"].max():
            axes.axhline(height + 0.5, color="black", linewidth=0.6)
        if measure in result.rules:
            axes.axvline(result.settings.goal, color=VERMILLION, linewidth=1)
            axes.set_title(f"solid line: goal, {result.settings.goal:g}", color=VERMILLION)
    panels[0].set_yticks(lines["height"], labels)
    panels[0].set_ylim(0.3, len(lines) + 0.7)
    panels[-1].set_title("dashed line: all images", color=GREY)
    return figure


def _intervals(
    axes: Axes, table: pd.DataFrame, heights: pd.Series, names: tuple[str, str, str], **style: Any
) -> None:
    """Points with horizontal intervals; `names` are the columns of the points and both ends."""
    point, low, high = (table[name].astype(float) for name in names)
    # A mean over nets may lie outside its interval, and there may be none.
    spans = [span.fillna(0).clip(lower=0) for span in (point - low, high - point)]
    axes.errorbar(point, heights, xerr=spans, elinewidth=1, capsize=2, **style)


FIGURES: dict[str, Callable[[ClinicalAudit], Figure]] = {
    "roc": functools.partial(curves, metric="auroc"),
    "precision_recall": functools.partial(curves, metric="average_precision"),
    "reliability": reliability,
    "subgroups": subgroups,
}


def shift(result: Evaluation) -> Figure:
    """Metrics on the run's own split and on other data side by side, with intervals."""
    table = result.drop.iloc[::-1].reset_index(drop=True)
    figure, [[axes]] = _grid(1, 1, (6.9, 0.9 + 0.42 * len(table)))
    for key, label, colour, marker, offset in (
        ("own", result.source, BLUE, "o", 0.13),
        ("external", result.data, VERMILLION, "s", -0.13),
    ):
        style: dict[str, Any] = {"fmt": marker, "color": colour, "markersize": 5, "label": label}
        names = (key, f"{key}_low", f"{key}_high")
        _intervals(axes, table, table.index.to_series() + offset, names, **style)
    axes.set_yticks(table.index, table["metric"].map(shift_label))
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(
        "0 to 1, higher is better; intervals by lesion and seed\n"
        "sensitivity and specificity: at the threshold chosen on the run's val"
    )
    axes.grid(alpha=0.3)
    axes.set_title(f"{result.evaluated.title}: {result.source} and {result.data}", fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def examples(result: Evaluation) -> Figure:
    """Some images of the run and some external ones of each class, full frames squashed."""
    figure, panels = _grid(len(result.examples), 2, (4.35, 0.58))
    for (name, sides), row in zip(result.examples.items(), panels, strict=True):
        for images, axes in zip(sides, row, strict=True):
            axes.set(xticks=[], yticks=[], frame_on=False)
            if len(images):
                axes.imshow(np.concatenate(list(images), axis=1), interpolation="nearest")
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    panels[0][0].set_title(f"the run's {result.evaluated.data}", fontsize=10)
    panels[0][1].set_title(result.data, fontsize=10)
    return figure
