"""The photograph that end-to-end queries begin with."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from src.errors import UserError

SIZE = (600, 450)  # px, as HAM10000's photographs
QUALITY = 95
SKIN, LESION = (214, 168, 148), (108, 66, 52)
GRAIN = 9.0  # deviation of the noise: the file is then about as large as HAM10000's, and as slow to decode


def encoded(image: str | None) -> tuple[bytes, str]:
    """A JPEG file's content, and what it is.

    Args:
        image: A picture's file: a JPEG as it is, any other one is encoded. None: a lesion is drawn.

    Raises:
        UserError: The file is no picture.
    """
    if image is None:
        return _jpeg(_drawn()), f"drawn, {SIZE[0]}x{SIZE[1]} px"
    try:
        content = Path(image).read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            told = f"{Path(image).name}, {picture.width}x{picture.height} px"
            return (content if picture.format == "JPEG" else _jpeg(picture.convert("RGB"))), told
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"image={image}: cannot be read as a picture ({error})") from error


def _drawn() -> Image.Image:
    image = Image.new("RGB", SIZE, SKIN)
    ImageDraw.Draw(image).ellipse((190, 110, 430, 330), fill=LESION)
    grain = np.random.default_rng(0).normal(0, GRAIN, (SIZE[1], SIZE[0], 3))
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(12)), dtype=np.float64)
    return Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8))


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
