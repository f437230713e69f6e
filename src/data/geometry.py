"""How a picture of any shape becomes the square that a network sees."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Geometry = Literal["squash", "center_crop", "pad"]

PAD_COLOUR = (0, 0, 0)


def square(image: Image.Image, size: int, geometry: Geometry) -> npt.NDArray[np.uint8]:
    """Resize to a square, with Pillow's bilinear filter, which averages over all covered pixels when it shrinks.

    Args:
        image: Upright RGB picture.
        size: Side of the square, px.
        geometry: "squash" shrinks each side by its own factor, so that nothing is lost and shapes are distorted;
            "center_crop" takes the largest square in the middle; "pad" keeps all and the shapes, with black bars.

    Returns:
        uint8 (size, size, 3).
    """
    width, height = image.size
    if geometry == "squash":
        resized = image.resize((size, size), Image.Resampling.BILINEAR)
    elif geometry == "center_crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        # Cut first: resize(box=...) would let pixels beyond the box into the rim.
        middle = image.crop((left, top, left + side, top + side))
        resized = middle.resize((size, size), Image.Resampling.BILINEAR)
    else:
        scale = size / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        resized = Image.new("RGB", (size, size), PAD_COLOUR)
        corner = ((size - inner[0]) // 2, (size - inner[1]) // 2)
        resized.paste(image.resize(inner, Image.Resampling.BILINEAR), corner)
    return np.asarray(resized)
