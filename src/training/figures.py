"""Pictures and tables logged with each run."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from src.metrics.registry import class_metrics, count_metrics

QUALITY = ("balanced_accuracy", "accuracy", "auroc", "recall/mel")


def per_class_table(matrix: np.ndarray, classes: tuple[str, ...]) -> pd.DataFrame:
    """One row a class: images, recall, precision, F1 and specificity, each in [0, 1].

    Args:
        matrix: Confusion matrix (K, K); rows are true classes, columns predicted ones.
        classes: Class names in label order.
    """
    table = pd.DataFrame({"class": classes, "images": matrix.sum(axis=1).astype(int)})
    values = count_metrics(matrix, classes)
    for metric in class_metrics():
        table[metric] = [float(values[f"{metric}/{name}"]) for name in classes]
    return table


def confusion_matrix(matrix: np.ndarray, classes: tuple[str, ...], split: str) -> Figure:
    """Counts, coloured by the share of the true class; recall stands on the diagonal.

    Args:
        matrix: Confusion matrix (K, K); rows are true classes, columns predicted ones.
        classes: Class names in label order.
        split: Which split was predicted; for the title.
    """
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.4 + 0.62 * len(classes)
    figure = Figure(figsize=(side + 0.8, side), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(classes)):
        for column in range(len(classes)):
            axes.text(
                column,
                row,
                f"{int(matrix[row, column])}",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if share[row, column] > 0.6 else "black",
            )
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(
        range(len(classes)),
        [f"{name} ({int(n)})" for name, n in zip(classes, matrix.sum(1), strict=True)],
    )
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class (images)")
    axes.set_title(f"Confusion on {split}: images, {int(matrix.sum())} in all", fontsize=10)
    figure.colorbar(image, ax=axes, label="share of the true class (diagonal: recall)", shrink=0.8)
    return figure


def learning_curves(history: pd.DataFrame, chosen_epoch: int | None) -> Figure:
    """Loss and validation quality over the epochs.

    Args:
        history: Indexed by epoch (from 0); columns by recorded names, such as `train/loss`; empty
            ones are left out.
        chosen_epoch: The epoch that was kept, marked by a line.
    """
    panels = [
        ("loss (lower is better)", ["train/loss", "val/loss"]),
        (
            "quality, 0 to 1 (higher is better)",
            ["val/balanced_accuracy", "val/accuracy", "val/auroc", "val/recall/mel"],
        ),
    ]
    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    for axes, (label, names) in zip(figure.subplots(1, 2), panels, strict=True):
        for name in names:
            if name in history and history[name].notna().any():
                series = history[name].dropna()
                axes.plot(series.index + 1, series, marker=".", label=name)
        if chosen_epoch is not None:
            axes.axvline(
                chosen_epoch + 1, color="0.5", linestyle="--", linewidth=1, label="kept epoch"
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    return figure


Images = npt.NDArray[np.uint8]
CELL = 72  # side of one image on the sheet, px
GAP = 4
MARGIN = 16
TEXT = 15
HEADINGS = ("as stored", "as fed to the network")


def draw(before: Mapping[str, Images], after: Mapping[str, Images]) -> Image.Image:
    """Draw a row a class: its label, its images as stored on the left, as augmented on the right.

    Args:
        before: Images of each class, uint8 (n, H, W, 3), by the label that is shown; n may differ
            and may be 0.
        after: The same images after augmentation, same labels and shapes.

    Returns:
        The sheet, RGB.

    Raises:
        ValueError: The labels of `before` and `after` differ.
    """
    if list(before) != list(after):
        raise ValueError(
            f"before and after must have the same labels, but got {list(before)} and {list(after)}"
        )
    font = ImageFont.load_default(TEXT)
    columns = max([1, *(len(images) for block in (before, after) for images in block.values())])
    label_width = round(max([0.0, *(font.getlength(label) for label in before)])) + 2 * GAP
    block_width = columns * (CELL + GAP) - GAP
    lefts = [MARGIN + label_width, MARGIN + label_width + block_width + 2 * MARGIN]
    width = lefts[1] + max(block_width, round(font.getlength(HEADINGS[1]))) + MARGIN
    top = MARGIN + 2 * TEXT
    sheet = Image.new("RGB", (width, top + len(before) * (CELL + GAP) - GAP + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for left, heading in zip(lefts, HEADINGS, strict=True):
        pen.text((left, MARGIN), heading, fill="black", font=font)
    for row, label in enumerate(before):
        y = top + row * (CELL + GAP)
        pen.text((MARGIN, y + CELL // 2), label, fill="black", font=font, anchor="lm")
        for left, images in zip(lefts, (before[label], after[label]), strict=True):
            for column, pixels in enumerate(images):
                sheet.paste(_cell(pixels), (left + column * (CELL + GAP), y))
    return sheet


def _cell(pixels: Images) -> Image.Image:
    """One image, enlarged without smoothing where it is small: pixels are what the network sees."""
    image = Image.fromarray(pixels)
    resampling = Image.Resampling.NEAREST if max(image.size) <= CELL else Image.Resampling.BOX
    return image.resize((CELL, CELL), resampling)
