"""ROC, reliability, subgroups, drop."""

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
from src.reporting.clinical.audit import rules
from src.reporting.clinical.record import ClinicalAudit, Evaluation
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
# of matplotlib's style for colour-blind people (tableau-colorblind10)
PLOT_BLUE, ORANGE, GREY = "#006BA4", "#C85200", "#898989"
_COLUMNS = 4


def titles(found: ClinicalAudit) -> dict[str, str]:
    """Which pictures there are for this audit, by file name, and what they show."""
    shown = {
        "roc": "ROC curves, a class a panel",
        "precision_recall": "Precision-recall curves, a class a panel",
        "reliability": f"Reliability{' before and after temperature scaling' if found.temperatures else ''}",
        "subgroups": "Subgroups with intervals and sizes",
    }
    if found.roc.empty:
        shown = {
            name: title for name, title in shown.items() if name not in ("roc", "precision_recall")
        }
    return (
        shown
        if len(found.subgroups)
        else {name: title for name, title in shown.items() if name != "subgroups"}
    )


def write(found: ClinicalAudit, folder: Path) -> list[Path]:
    """Write each picture that there is something for as PNG (150 dpi) and SVG into an existing folder."""
    files = []
    for name in titles(found):
        with mpl.rc_context(STYLE):
            figure = PICTURES[name](found)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # placed once; each file would do it again
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                files.append(folder / f"{name}.{kind}")
                figure.savefig(files[-1], dpi=DPI, metadata=metadata)
    return files


def roc(found: ClinicalAudit) -> Figure:
    """A panel a class: the curve of each net, chance, and the operating points."""
    figure, panels = _panels(found, found.roc)
    for name, axes in panels.items():
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        _lines(axes, found.roc[found.roc["class"] == name], "false_positive_rate", "sensitivity")
        for rule, point in _points(found, name).items():
            axes.plot(1 - point["specificity"], point["sensitivity"], **_marker(rule))
        _title(axes, found, name, "auroc", "AUROC")
    _finish(
        figure,
        found,
        panels,
        ("1 - specificity\n(lower is better)", "sensitivity\n(higher is better)"),
    )
    return figure


def precision_recall(found: ClinicalAudit) -> Figure:
    """A panel a class: the curve of each net, the share of the class (chance), and the operating points."""
    figure, panels = _panels(found, found.precision_recall)
    sizes = found.per_class[found.per_class["measure"] == "recall"].set_index("class")["images"]
    for name, axes in panels.items():
        axes.axhline(sizes[name] / found.images, color=GREY, linestyle=":", linewidth=1)
        _lines(
            axes,
            found.precision_recall[found.precision_recall["class"] == name],
            "recall",
            "precision",
            steps=True,
        )
        for rule, point in _points(found, name).items():
            axes.plot(point["sensitivity"], point["ppv"], **_marker(rule))
        _title(axes, found, name, "average_precision", "AP")
    _finish(figure, found, panels, ("recall\n(higher is better)", "precision\n(higher is better)"))
    return figure


def reliability(found: ClinicalAudit) -> Figure:
    """What was said against what came true, for the predicted class and the one looked for, with counts below."""
    names = (calibration.TOP, found.positive)
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, height_ratios=(3, 1), squeeze=False)
    for column, name in enumerate(names):
        upper, lower = grid[0][column], grid[1][column]
        upper.plot(
            [0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="what is said comes true"
        )
        for after, (colour, marker, dash, label) in enumerate(
            ((PLOT_BLUE, "o", "-", "as it is"), (ORANGE, "D", "--", "after temperature scaling"))
        ):
            rows = found.bins[(found.bins["class"] == name) & (found.bins["scaled"] == bool(after))]
            if len(rows):
                _bins(upper, lower, rows, {"color": colour, "linestyle": dash}, marker, label)
        what = "the predicted class" if name == calibration.TOP else name
        upper.set_title(f"{what}: said and come true, by 15 bins")
        upper.set_ylim(-0.03, 1.03)
        _count_axis(lower)
        lower.set_xlabel(f"probability of {what}")
    grid[0][0].set_ylabel("share that it was right")
    grid[1][0].set_ylabel("images in a bin")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def subgroups(found: ClinicalAudit) -> Figure:
    """A forest plot: a line a subgroup, a panel a measure; the dashed line is the figure for all images."""
    order = found.subgroups.drop_duplicates(["by", "subgroup"]).reset_index(drop=True)
    places = {
        (row["by"], row["subgroup"]): len(order) - number
        for number, row in enumerate(order.to_dict("records"))
    }
    heads = {
        **{
            measure: f"recall of {found.positive} by\n{fill(rule, 23)}"
            for measure, rule in rules(found).items()
        },
        "auroc": f"AUROC of {found.positive}\nagainst the rest",
        "balanced_accuracy": "balanced accuracy\n(number of classes)",
    }
    figure = Figure(figsize=(2.8 + 1.8 * len(heads), 1.3 + 0.19 * len(order)), layout="constrained")
    panels = figure.subplots(1, len(heads), sharey=True)
    first_of_kind = [
        places[row["by"], row["subgroup"]] for row in order.drop_duplicates("by").to_dict("records")
    ]
    for axes, (measure, head) in zip(panels, heads.items(), strict=True):
        rows = found.subgroups[found.subgroups["measure"] == measure]
        _forest(axes, rows, places)
        axes.set_xlabel(f"{head}\n(higher is better)")
        for place in first_of_kind[1:]:
            axes.axhline(place + 0.5, color="black", linewidth=0.6)
        if measure in rules(found):
            axes.axvline(found.settings.goal, color=ORANGE, linewidth=1)
            axes.set_title(f"solid line: goal, {found.settings.goal:g}", color=ORANGE)
    labels = [
        f"{row['subgroup'] if row['by'] in ('all', row['subgroup']) else row['by'] + ': ' + row['subgroup']}"
        f"  ({row['images']} images; {found.positive}: {row['positives']} of {row['positive_lesions']} lesions)"
        for _, row in order.iterrows()
    ]
    panels[0].set_yticks(list(places.values()), labels)
    panels[-1].set_title("dashed line: all images", color=GREY)
    panels[0].set_ylim(0.3, len(order) + 0.7)
    return figure


PICTURES: dict[str, Callable[[ClinicalAudit], Figure]] = {
    "roc": roc,
    "precision_recall": precision_recall,
    "reliability": reliability,
    "subgroups": subgroups,
}


def _panels(found: ClinicalAudit, points: pd.DataFrame) -> tuple[Figure, dict[str, Axes]]:
    """A square panel for each class that has a curve, the one looked for first."""
    drawn = set(points["class"])
    names = sorted(
        (name for name in found.classes if name in drawn), key=lambda name: name != found.positive
    )
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.1 * columns + 0.4, 2.5 * rows + 0.9), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in grid[len(names) :]:
        unused.set_visible(False)
    return figure, dict(zip(names, grid, strict=False))


def _lines(axes: Axes, points: pd.DataFrame, x: str, y: str, steps: bool = False) -> None:
    for _, curve in points.groupby("seed"):
        # precision between two thresholds is that of the laxer one, as average precision counts it
        axes.plot(
            curve[x],
            curve[y],
            color=PLOT_BLUE,
            linewidth=0.9,
            alpha=0.8,
            drawstyle="steps-post" if steps else "default",
        )


def _points(found: ClinicalAudit, name: str) -> dict[str, dict[str, float]]:
    """Operating points by rule: the most probable class, and for the class looked for the chosen thresholds."""
    own = found.per_class[found.per_class["class"] == name].set_index("measure")["estimate"]
    points = {
        thresholds.ARGMAX: {
            "sensitivity": own["recall"],
            "specificity": own["specificity"],
            "ppv": own["precision"],
        }
    }
    if name == found.positive:
        for rule, rows in found.operating.groupby("rule", sort=False):
            points[str(rule)] = dict(zip(rows["measure"], rows["estimate"], strict=True))
    return points


def _marker(rule: str) -> dict[str, Any]:
    kind = rule.split(" ")[0]
    look = {"argmax": ("o", "black"), "sensitivity": ("D", ORANGE), "specificity": ("s", ORANGE)}[
        kind
    ]
    return {
        "marker": look[0],
        "color": look[1],
        "markersize": 5,
        "markeredgecolor": "white",
        "linestyle": "none",
    }


def _title(axes: Axes, found: ClinicalAudit, name: str, metric: str, label: str) -> None:
    rows = found.ranking[(found.ranking["class"] == name) & (found.ranking["metric"] == metric)]
    row = rows.iloc[0]
    size = found.per_class[
        (found.per_class["class"] == name) & (found.per_class["measure"] == "recall")
    ].iloc[0]
    span = f" [{row['low']:.2f}, {row['high']:.2f}]" if np.isfinite(row["low"]) else ""
    looked_for = " (looked for)" if name == found.positive else ""
    axes.set_title(
        f"{name}{looked_for}: {size['images']} images\n{label} {row['estimate']:.2f}{span}"
    )


def _finish(
    figure: Figure, found: ClinicalAudit, panels: dict[str, Axes], labels: tuple[str, str]
) -> None:
    """Scales and the labels of the outer panels; one legend for all."""
    for number, axes in enumerate(panels.values()):
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_box_aspect(1)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if number + _COLUMNS >= len(panels):
            axes.set_xlabel(labels[0])
        if number % _COLUMNS == 0:
            axes.set_ylabel(labels[1])
    handles = [Line2D([], [], color=PLOT_BLUE), Line2D([], [], color=GREY, linestyle=":")]
    names = [f"each of {found.seeds} nets (seeds)" if found.seeds > 1 else "the net", "chance"]
    for rule in dict.fromkeys(found.operating["rule"]):
        handles.append(Line2D([], [], **_marker(rule)))
        names.append(
            "most probable class" if rule == thresholds.ARGMAX else f"threshold from val: {rule}"
        )
    columns = 3 if len(panels) > 2 else 2
    title = "points are means over the nets" if found.seeds > 1 else None
    figure.legend(
        handles,
        names,
        title=title,
        title_fontsize=7.5,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )


def _count_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.3)
    axes.yaxis.set_major_locator(LogLocator(numticks=4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _bins(
    upper: Axes, lower: Axes, rows: pd.DataFrame, line: dict[str, Any], marker: str, label: str
) -> None:
    upper.plot(
        rows["confidence"],
        rows["frequency"],
        marker=marker,
        markersize=3.5,
        linewidth=1,
        label=label,
        **line,
    )
    edges = np.arange(calibration.BINS + 1) / calibration.BINS
    counts = rows.set_index("bin")["images"].reindex(range(calibration.BINS), fill_value=0)
    lower.stairs(counts.to_numpy(), edges, linewidth=1, **line)


def _forest(axes: Axes, rows: pd.DataFrame, places: dict[tuple[str, str], int]) -> None:
    for row in rows.to_dict("records"):
        at = places[row["by"], row["subgroup"]]
        if row["note"]:
            axes.text(0.02, at, "too few", color=GREY, fontsize=7, va="center")
            continue
        everything = row["by"] == "all"
        if everything:
            axes.axvline(row["estimate"], color=GREY, linestyle="--", linewidth=1)
        # a mean over nets may lie outside its interval, and there may be none
        ends = (row["estimate"] - row["low"], row["high"] - row["estimate"])
        reach = [[max(0.0, float(np.nan_to_num(end)))] for end in ends]
        marker = "D" if everything else "o"
        axes.errorbar(
            row["estimate"],
            at,
            xerr=reach,
            fmt=marker,
            color=PLOT_BLUE,
            markersize=4,
            elinewidth=1,
            capsize=2,
        )
        if row["measure"] == "balanced_accuracy":
            axes.annotate(
                f"{row['classes']}",
                (row["estimate"] + reach[1][0], at),
                (4, 0),
                textcoords="offset points",
                fontsize=6.5,
                va="center",
            )
    axes.set_xlim(0, 1.03)


def examples(found: Evaluation) -> Figure:
    """Some own and some external images of each class, whole frames squashed: what differs is often seen at once.

    Args:
        found: With examples.
    """
    figure = Figure(figsize=(9, 0.5 + 0.58 * len(found.examples)), dpi=150, layout="constrained")
    panels = figure.subplots(len(found.examples), 2, squeeze=False)
    for (name, sides), row in zip(found.examples.items(), panels, strict=True):
        for images, axes in zip(sides, row, strict=True):
            axes.set(xticks=[], yticks=[], frame_on=False)
            if len(images):
                axes.imshow(np.concatenate(list(images), axis=1), interpolation="nearest")
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    panels[0][0].set_title(f"own {found.evaluated.data}", fontsize=10)
    panels[0][1].set_title(found.data, fontsize=10)
    return figure


def named(metric: str) -> str:
    """A metric of the drop for people."""
    return metric.removeprefix("chosen/").replace("_", " ")


def drop(found: Evaluation) -> Figure:
    """Own test and external data side by side, a row a metric, with intervals.

    Args:
        found: With a drop.
    """
    table = found.drop.iloc[::-1].reset_index(drop=True)
    figure = Figure(figsize=(7.2, 1.3 + 0.42 * len(table)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    sides = (
        ("own", f"own {found.compared_with}", BLUE, "o", 0.13),
        ("external", found.data, VERMILLION, "s", -0.13),
    )
    for key, label, colour, marker, shift in sides:
        points = table[key]
        spans = [
            (points - table[f"{key}_low"]).clip(lower=0),
            (table[f"{key}_high"] - points).clip(lower=0),
        ]
        axes.errorbar(
            points,
            table.index + shift,
            xerr=spans,
            fmt=marker,
            color=colour,
            label=label,
            markersize=5,
            capsize=2.5,
        )
    axes.set_yticks(table.index, table["metric"].map(named))
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(
        "0 to 1, higher is better; intervals by lesion and seed\n"
        "sensitivity and specificity: at the threshold chosen on own val"
    )
    axes.grid(alpha=0.3)
    axes.set_title(
        f"{found.evaluated.title}: own {found.compared_with} and {found.data}", fontsize=10
    )
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure
