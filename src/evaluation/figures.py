"""The pictures of an evaluation on other data."""

import numpy as np
from matplotlib.figure import Figure

from src.evaluation.record import Evaluation
from src.reporting.palette import BLUE, VERMILLION


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
        spans = [(points - table[f"{key}_low"]).clip(lower=0), (table[f"{key}_high"] - points).clip(lower=0)]
        axes.errorbar(
            points, table.index + shift, xerr=spans, fmt=marker, color=colour, label=label, markersize=5, capsize=2.5
        )
    axes.set_yticks(table.index, table["metric"].map(named))
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(
        "0 to 1, higher is better; intervals by lesion and seed\n"
        "sensitivity and specificity: at the threshold chosen on own val"
    )
    axes.grid(alpha=0.3)
    axes.set_title(f"{found.evaluated.title}: own {found.compared_with} and {found.data}", fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure
