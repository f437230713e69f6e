"""A picture of what the network is fed: a row of images a class, as stored and as augmented."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Images = npt.NDArray[np.uint8]

CELL = 72  # side of one image on the sheet, px
GAP = 4
MARGIN = 16
TEXT = 15
HEADINGS = ("as stored", "as fed to the network")


def draw(before: Mapping[str, Images], after: Mapping[str, Images]) -> Image.Image:
    """Draw a row a class: its label, its images as stored on the left, as augmented on the right.

    Args:
        before: Images of each class, uint8 (n, H, W, 3), by the label that is shown; n may differ and may be 0.
        after: The same images after augmentation, same labels and shapes.

    Returns:
        The sheet, RGB.

    Raises:
        ValueError: The labels of `before` and `after` differ.
    """
    if list(before) != list(after):
        raise ValueError(f"before and after must have the same labels, but got {list(before)} and {list(after)}")
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
