"""Figures and tables logged with each run: sheets of images, learning curves, confusion matrix."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont

from src.metrics.registry import class_metrics, count_metrics, default_quality_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from src.data.module import DataModule

Images = npt.NDArray[np.uint8]
CELL, GAP, MARGIN, TEXT = 72, 4, 16, 15  # of the contact sheet, px
HEADINGS = ("as stored", "as fed to the network")
PER_CLASS = 6  # images on the contact sheet
PANELS = {  # of the learning curves: axis label -> metrics
    "loss (lower is better)": ["train/loss", "val/loss"],
    "quality, 0 to 1 (higher is better)": [
        "train/accuracy",
        *(f"val/{name}" for name in (*default_quality_metrics(["mel"]), "auroc")),
    ],
}


def per_class_table(matrix: np.ndarray, classes: tuple[str, ...]) -> pd.DataFrame:
    """One row per class: number of images, recall, precision, F1 and specificity in [0, 1].

    It is computed from a confusion matrix (K, K); rows are true classes, columns predicted ones.
    """
    table = pd.DataFrame({"class": classes, "images": matrix.sum(axis=1).astype(int)})
    values = count_metrics(matrix, classes)
    for metric in class_metrics():
        table[metric] = [float(values[f"{metric}/{name}"]) for name in classes]
    return table


def confusion_matrix(matrix: np.ndarray, classes: tuple[str, ...], split: str) -> "Figure":
    """Counts, coloured by the share of the true class; the colour of the diagonal is the recall.

    `matrix` is (K, K): rows are true classes, columns predicted ones of a split.
    """
    from matplotlib.figure import Figure  # a start without a figure does not need it

    totals = matrix.sum(axis=1)
    share = matrix / np.maximum(totals, 1)[:, None]
    side = 2.4 + 0.62 * len(classes)
    figure = Figure(figsize=(side + 0.8, side), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        colour = "white" if share[row, column] > 0.6 else "black"
        axes.text(column, row, f"{int(count)}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    labels = [f"{name} ({int(total)})" for name, total in zip(classes, totals, strict=True)]
    axes.set_yticks(range(len(classes)), labels)
    axes.set(xlabel="predicted class", ylabel="true class (images)")
    axes.set_title(f"Confusion on {split}: images, {int(matrix.sum())} in all", fontsize=10)
    figure.colorbar(image, ax=axes, label="share of the true class (diagonal: recall)", shrink=0.8)
    return figure


def learning_curves(history: pd.DataFrame, chosen_epoch: int) -> "Figure":
    """Loss and validation quality over the epochs.

    `history` is indexed by epoch (from 0), with columns by recorded names, such as `train/loss`;
    empty ones are omitted. The kept epoch is marked by a line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=120)
    # a computed layout would take longer than the drawing
    figure.subplots_adjust(left=0.07, right=0.985, bottom=0.14, top=0.96, wspace=0.18)
    for axes, (label, names) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        for name in names:
            if name in history and history[name].notna().any():
                series = history[name].dropna()
                axes.plot(series.index + 1, series, marker=".", label=name)
        line = {"color": "0.5", "linestyle": "--", "linewidth": 1, "label": "kept epoch"}
        axes.axvline(chosen_epoch + 1, **line)
        axes.locator_params(axis="x", integer=True)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)  # of the kept epoch at least
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG. `savefig` would draw it twice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).print_png(path, pil_kwargs={"compress_level": 1})


def contact_sheet(data: "DataModule") -> Image.Image:
    """Some training images of each class, before and after augmentation."""
    before, after = {}, {}
    rows = data.rows("train")
    for label, (name, count) in enumerate(data.counts("train").items()):
        heading = f"{name} ({count})"
        before[heading] = data.cache.images[rows[data.labels[rows] == label][:PER_CLASS]]
        after[heading] = _augmented(data, before[heading])
    return draw_contact_sheet(before, after)


def _augmented(data: "DataModule", images: Images) -> Images:
    floats = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)
    if data.augment is not None:
        floats = data.augment(floats)
    return floats.mul(255).round().byte().permute(0, 2, 3, 1).numpy()


def augmentation_sheet(data: "DataModule") -> Image.Image:
    """The first training image as it is stored, and twelve augmentations of it in three rows.

    As in Sun and Sun 2023, figure 3. torch's random numbers after it are those without it.
    """
    image = data.cache.images[data.rows("train")[:1]]
    with torch.random.fork_rng(devices=[]):
        drawn = _augmented(data, np.repeat(image, 12, axis=0))
    after = {" " * row: drawn[4 * row : 4 * row + 4] for row in range(3)}
    before = {row: image[:0] if row else image for row in after}
    return draw_contact_sheet(before, after)


def draw_contact_sheet(before: Mapping[str, Images], after: Mapping[str, Images]) -> Image.Image:
    """Draw a row per class: its label, its images as stored on the left, augmented on the right.

    Both map a label to images, uint8 (n, H, W, 3); n may differ between labels and may be 0.

    Raises:
        ValueError: The labels of `before` and `after` differ.
    """
    if list(before) != list(after):
        labels = f"{list(before)} and {list(after)}"
        raise ValueError(f"before and after must have the same labels, but got {labels}")
    font = ImageFont.load_default(TEXT)
    columns = max([1, *(len(images) for block in (before, after) for images in block.values())])
    label_width = round(max([0.0, *(font.getlength(label) for label in before)])) + 2 * GAP
    block_width = columns * (CELL + GAP) - GAP
    starts = [MARGIN + label_width, MARGIN + label_width + block_width + 2 * MARGIN]
    width = starts[1] + max(block_width, round(font.getlength(HEADINGS[1]))) + MARGIN
    top = MARGIN + 2 * TEXT
    sheet = Image.new("RGB", (width, top + len(before) * (CELL + GAP) - GAP + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for start, heading in zip(starts, HEADINGS, strict=True):
        pen.text((start, MARGIN), heading, fill="black", font=font)
    for row, label in enumerate(before):
        y = top + row * (CELL + GAP)
        pen.text((MARGIN, y + CELL // 2), label, fill="black", font=font, anchor="lm")
        for start, images in zip(starts, (before[label], after[label]), strict=True):
            for column, pixels in enumerate(images):
                # small images are enlarged without smoothing: the pixels are what the net sees
                image = Image.fromarray(pixels)
                small = max(image.size) <= CELL
                method = Image.Resampling.NEAREST if small else Image.Resampling.BOX
                sheet.paste(image.resize((CELL, CELL), method), (start + column * (CELL + GAP), y))
    return sheet
