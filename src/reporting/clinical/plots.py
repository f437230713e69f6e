"""Figures of the clinical audit: ROC, precision-recall, reliability, subgroups, and the loss."""

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
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from src.metrics import calibration, thresholds
from src.metrics.registry import short_label
from src.reporting.clinical.results import ClinicalAudit, Evaluation
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
MARKERS = {
    "argmax": {"marker": "o", "color": "black"},
    "sensitivity": {"marker": "D", "color": VERMILLION},
    "specificity": {"marker": "s", "color": VERMILLION},
}


def titles(result: ClinicalAudit) -> dict[str, str]:
    """The figures of an audit: file name -> what they show."""
    scaled = " before and after temperature scaling" if result.temperatures else ""
    names = {
        "roc": "ROC curves, one panel per class",
        "precision_recall": "Precision-recall curves, one panel per class",
        "reliability": f"Reliability{scaled}",
        "subgroups": "Subgroups with intervals and sizes",
    }
    empty = {"roc", "precision_recall"} if result.roc.empty else set()
    empty |= {"subgroups"} if result.subgroups.empty else set()
    return {name: title for name, title in names.items() if name not in empty}


def write(result: ClinicalAudit, folder: Path) -> list[Path]:
    """Write the figures of an audit as PNG (150 dpi) and SVG into an existing folder."""
    files = []
    for name in titles(result):
        with mpl.rc_context(STYLE):
            figure = FIGURES[name](result)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # placed once, not again for each file
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                files.append(folder / f"{name}.{kind}")
                figure.savefig(files[-1], dpi=DPI, metadata=metadata)
    return files


def roc(result: ClinicalAudit) -> Figure:
    """One panel per class: the curve of each net, chance, and the operating points."""
    figure, panels = _panels(result, result.roc)
    for name, axes in panels.items():
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        for _, curve in result.roc[result.roc["class"] == name].groupby("seed"):
            axes.plot(curve["false_positive_rate"], curve["sensitivity"], **_line())
        for rule, point in _operating_points(result, name).items():
            axes.plot(1 - point["specificity"], point["sensitivity"], **_marker(rule))
        _set_title(axes, result, name, "auroc")
    labels = ("1 - specificity\n(lower is better)", "sensitivity\n(higher is better)")
    return _finish(figure, result, panels, labels)


def precision_recall(result: ClinicalAudit) -> Figure:
    """One panel per class: the curve of each net, chance (the share of the class), the points."""
    figure, panels = _panels(result, result.precision_recall)
    for name, axes in panels.items():
        chance = _row(result.per_class, name, "recall")["images"] / result.images
        axes.axhline(chance, color=GREY, linestyle=":", linewidth=1)
        rows = result.precision_recall[result.precision_recall["class"] == name]
        for _, curve in rows.groupby("seed"):
            # precision between two thresholds is that of the lower one, as average precision has it
            axes.plot(curve["recall"], curve["precision"], drawstyle="steps-post", **_line())
        for rule, point in _operating_points(result, name).items():
            axes.plot(point["sensitivity"], point["ppv"], **_marker(rule))
        _set_title(axes, result, name, "average_precision")
    labels = ("recall\n(higher is better)", "precision\n(higher is better)")
    return _finish(figure, result, panels, labels)


def reliability(result: ClinicalAudit) -> Figure:
    """Confidence and frequency of the predicted class and of the class looked for, with counts."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, height_ratios=(3, 1), squeeze=False)
    styles: dict[bool, dict[str, Any]] = {
        False: {"color": BLUE, "linestyle": "-"},
        True: {"color": VERMILLION, "linestyle": "--"},
    }
    for column, name in enumerate((calibration.TOP, result.positive)):
        upper, lower = grid[0][column], grid[1][column]
        upper.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="perfect")
        for scaled, style in styles.items():
            rows = result.bins[(result.bins["class"] == name) & (result.bins["scaled"] == scaled)]
            if rows.empty:
                continue
            label, marker = ("after temperature scaling", "D") if scaled else ("as it is", "o")
            line = {**style, "linewidth": 1}
            points = (rows["confidence"], rows["frequency"])
            upper.plot(*points, marker=marker, markersize=3.5, label=label, **line)
            bins = range(calibration.BINS)
            counts = rows.set_index("bin")["images"].reindex(bins, fill_value=0)
            edges = np.arange(calibration.BINS + 1) / calibration.BINS
            lower.stairs(counts.to_numpy(), edges, **line)
        what = "the predicted class" if name == calibration.TOP else name
        upper.set(title=f"{what}: confidence and frequency in 15 bins", ylim=(-0.03, 1.03))
        lower.set(xlabel=f"probability of {what}", yscale="log")
        lower.set_ylim(bottom=0.3)
        lower.yaxis.set_major_locator(LogLocator(numticks=4))
        lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        lower.yaxis.set_minor_formatter(NullFormatter())
    grid[0][0].set_ylabel("share that is right")
    grid[1][0].set_ylabel("images in a bin")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def subgroups(result: ClinicalAudit) -> Figure:
    """A forest plot: one line per subgroup, one panel per measure; dashed: all images."""
    order = result.subgroups.drop_duplicates(["by", "subgroup"]).to_dict("records")
    places = {(row["by"], row["subgroup"]): len(order) - n for n, row in enumerate(order)}
    heads = {
        measure: f"recall of {result.positive} by\n{fill(rule, 23)}"
        for measure, rule in result.rules.items()
    }
    heads["auroc"] = f"{short_label('auroc')} of {result.positive}\nagainst the rest"
    heads["balanced_accuracy"] = "balanced accuracy\n(number of classes)"
    figure = Figure(figsize=(2.8 + 1.8 * len(heads), 1.3 + 0.19 * len(order)), layout="constrained")
    panels = figure.subplots(1, len(heads), sharey=True)
    firsts = {row["by"]: places[row["by"], row["subgroup"]] for row in reversed(order)}
    for axes, (measure, head) in zip(panels, heads.items(), strict=True):
        rows = result.subgroups[result.subgroups["measure"] == measure]
        for row in rows.to_dict("records"):
            _forest_row(axes, row, places[row["by"], row["subgroup"]])
        axes.set(xlabel=f"{head}\n(higher is better)", xlim=(0, 1.03))
        for place in firsts.values():
            axes.axhline(place + 0.5, color="black", linewidth=0.6)
        if measure in result.rules:
            axes.axvline(result.settings.goal, color=VERMILLION, linewidth=1)
            axes.set_title(f"solid line: goal, {result.settings.goal:g}", color=VERMILLION)
    labels = [
        f"{subgroup_name(row['by'], row['subgroup'])}  ({row['images']} images; {result.positive}: "
        f"{row['positives']} of {row['positive_lesions']} lesions)"
        for row in order
    ]
    panels[0].set_yticks(list(places.values()), labels)
    panels[0].set_ylim(0.3, len(order) + 0.7)
    panels[-1].set_title("dashed line: all images", color=GREY)
    return figure


FIGURES: dict[str, Callable[[ClinicalAudit], Figure]] = {
    "roc": roc,
    "precision_recall": precision_recall,
    "reliability": reliability,
    "subgroups": subgroups,
}


def subgroup_name(by: str, subgroup: str) -> str:
    """Such as "sex: male", or "all"."""
    return subgroup if by == subgroup else f"{by}: {subgroup}"


def shift(result: Evaluation) -> Figure:
    """Metrics on the own split and on other data side by side, with intervals.

    Args:
        result: With a `drop` table.
    """
    table = result.drop.iloc[::-1].reset_index(drop=True)
    figure = Figure(figsize=(7.2, 1.3 + 0.42 * len(table)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    own = f"own {result.compared_with}"
    for key, label, colour, marker, offset in (
        ("own", own, BLUE, "o", 0.13),
        ("external", result.data, VERMILLION, "s", -0.13),
    ):
        low, high = (table[key] - table[f"{key}_low"], table[f"{key}_high"] - table[key])
        style: dict[str, Any] = {"fmt": marker, "color": colour, "markersize": 5, "capsize": 2.5}
        spans = [low.clip(lower=0), high.clip(lower=0)]
        axes.errorbar(table[key], table.index + offset, xerr=spans, label=label, **style)
    axes.set_yticks(table.index, table["metric"].map(shift_label))
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(
        "0 to 1, higher is better; intervals by lesion and seed\n"
        "sensitivity and specificity: at the threshold chosen on own val"
    )
    axes.grid(alpha=0.3)
    axes.set_title(f"{result.evaluated.title}: {own} and {result.data}", fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def shift_label(metric: str) -> str:
    """A metric of the `drop` table for people, such as "recall/mel"."""
    return metric.removeprefix("chosen/").replace("_", " ")


def examples(result: Evaluation) -> Figure:
    """Some own and some external images of each class, whole frames squashed.

    Args:
        result: With examples.
    """
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


def _panels(result: ClinicalAudit, points: pd.DataFrame) -> tuple[Figure, dict[str, Axes]]:
    """A square panel for each class that has a curve, the class looked for first."""
    names = [name for name in result.classes if name in set(points["class"])]
    names.sort(key=lambda name: name != result.positive)
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.1 * columns + 0.4, 2.5 * rows + 0.9), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in grid[len(names) :]:
        unused.set_visible(False)
    return figure, dict(zip(names, grid, strict=False))


def _finish(
    figure: Figure, result: ClinicalAudit, panels: dict[str, Axes], labels: tuple[str, str]
) -> Figure:
    """Set scales, label the outer panels, add one legend."""
    for number, axes in enumerate(panels.values()):
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), box_aspect=1)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if number + COLUMNS >= len(panels):
            axes.set_xlabel(labels[0])
        if number % COLUMNS == 0:
            axes.set_ylabel(labels[1])
    several = result.seeds > 1
    handles = [Line2D([], [], color=BLUE), Line2D([], [], color=GREY, linestyle=":")]
    names = [f"each of {result.seeds} nets (seeds)" if several else "the net", "chance"]
    for rule in result.operating["rule"].unique():
        argmax = rule == thresholds.ARGMAX
        handles.append(Line2D([], [], **_marker(rule)))
        names.append("most probable class" if argmax else f"threshold from val: {rule}")
    title = "points are means over the nets" if several else None
    legend: dict[str, Any] = {"loc": "outside lower center", "ncols": 3 if len(panels) > 2 else 2}
    figure.legend(handles, names, title=title, title_fontsize=7.5, frameon=False, **legend)
    return figure


def _operating_points(result: ClinicalAudit, name: str) -> dict[str, dict[Any, float]]:
    """Rates by rule: the most probable class; of the class looked for, the thresholds too."""
    rows = result.per_class[result.per_class["class"] == name]
    rates = rows.set_index("measure")["estimate"].rename({"recall": "sensitivity"})
    points = {thresholds.ARGMAX: rates.rename({"precision": "ppv"}).to_dict()}
    if name == result.positive:
        for rule, table in result.operating.groupby("rule", sort=False):
            points[str(rule)] = dict(zip(table["measure"], table["estimate"], strict=True))
    return points


def _line() -> dict[str, Any]:
    return {"color": BLUE, "linewidth": 0.9, "alpha": 0.8}


def _marker(rule: str) -> dict[str, Any]:
    style = {"markersize": 5, "markeredgecolor": "white", "linestyle": "none"}
    return {**MARKERS[rule.split(" ")[0]], **style}


def _row(table: pd.DataFrame, name: str, measure: str) -> pd.Series:
    column = "measure" if "measure" in table else "metric"
    return table[(table["class"] == name) & (table[column] == measure)].iloc[0]


def _set_title(axes: Axes, result: ClinicalAudit, name: str, metric: str) -> None:
    row, images = _row(result.ranking, name, metric), _row(result.per_class, name, "recall")
    span = f" [{row['low']:.2f}, {row['high']:.2f}]" if np.isfinite(row["low"]) else ""
    looked_for = " (looked for)" if name == result.positive else ""
    value = f"{short_label(f'{metric}/{name}')} {row['estimate']:.2f}{span}"
    axes.set_title(f"{name}{looked_for}: {images['images']} images\n{value}")


def _forest_row(axes: Axes, row: dict[Any, Any], place: int) -> None:
    if row["note"]:
        axes.text(0.02, place, "too few", color=GREY, fontsize=7, va="center")
        return
    value, everything = row["estimate"], row["by"] == "all"
    if everything:
        axes.axvline(value, color=GREY, linestyle="--", linewidth=1)
    # a mean over nets may lie outside its interval, and there may be none
    ends = [[max(0.0, float(np.nan_to_num(e)))] for e in (value - row["low"], row["high"] - value)]
    style: dict[str, Any] = {"color": BLUE, "markersize": 4, "elinewidth": 1, "capsize": 2}
    axes.errorbar(value, place, xerr=ends, fmt="D" if everything else "o", **style)
    if row["measure"] == "balanced_accuracy":
        at, text = (value + ends[1][0], place), str(row["classes"])
        axes.annotate(text, at, (4, 0), textcoords="offset points", fontsize=6.5, va="center")
