"""From a picture file of any mode and depth to what a viewer shows: upright 8-bit RGB, cleaned."""

import functools
import io
import struct
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps

SHAPES, CLEANING = ("squash", "center_crop", "pad"), ("+crop_corners", "+shades_of_grey")
if TYPE_CHECKING:
    Geometry = str
else:  # how an image becomes a square, see `src.data.cache.square`
    CHOICES = ("", *CLEANING, "".join(CLEANING))
    Geometry = Literal[tuple(shape + cleaning for cleaning in CHOICES for shape in SHAPES)]
DARK = 32  # of 255: darker is the rim of a dermatoscope, in a corner
BACKGROUND = (255, 255, 255, 255)  # behind transparent parts, as in a browser
# What Pillow raises for files that are truncated, not an image, or too large to be one.
_BOMB = Image.DecompressionBombError
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, _BOMB)
_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF
_SRGB = ImageCms.createProfile("sRGB")


def as_viewed(image: Image.Image) -> Image.Image:
    """An opened picture as upright 8-bit RGB, in the colours in which a viewer shows it.

    The EXIF orientation and an embedded colour profile are applied, transparent parts are white,
    and 16-bit greys are scaled. Without a profile colours are sRGB. Of an animation it is the first
    picture. Several threads may call this at once.

    Raises:
        OSError: The file is truncated, or of a mode without a fixed white (32-bit integers, floats
            of unknown range).
    """
    tags = getattr(image, "tag_v2", {})
    profile, kind = image.info.get("icc_profile"), image.format
    image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM")):
        image = _eight_bits(image, tags)
    elif mode in ("I", "F"):
        problem = "numbers of this kind have no fixed white; save it with 8 or 16 bits"
        raise OSError(f"a picture of mode {mode}: {problem}")
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return ImageCms.buildTransform(lab, _SRGB, "LAB", "RGB").apply(image)
    if image.has_transparency_data:
        layer = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, "RGBA")).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, BACKGROUND), layer)
    if profile and mode == "CMYK" and (transform := _to_srgb(profile, mode)):
        return transform.apply(image)
    image = image.convert("RGB")
    transform = _to_srgb(profile, "RGB") if profile else None
    return transform.apply(image) if transform else image


def _eight_bits(image: Image.Image, tags: "Image.Exif | dict[int, object]") -> Image.Image:
    """A grey picture of 9 to 16 bits as L, or LA if one of its greys is transparent."""
    levels = np.asarray(image).astype(np.int64)
    bits = tags.get(_BITS, (16,))
    top = 2 ** int(bits[0] if isinstance(bits, tuple) else 16) - 1
    pixels: npt.NDArray[np.uint8] = ((levels * 255 + top // 2) // top).clip(0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero
        pixels = 255 - pixels
    grey = Image.fromarray(pixels)
    if "transparency" in image.info:
        grey.putalpha(
            Image.fromarray((levels != image.info["transparency"]).astype(np.uint8) * 255)
        )
    return grey


@functools.lru_cache(maxsize=64)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the colours of an embedded profile; None if they are sRGB or it cannot be used."""
    try:
        colours = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(colours):
            return None
        return ImageCms.buildTransform(colours, _SRGB, mode, "RGB")
    except (ImageCms.PyCMSError, OSError):  # broken, or of other channels than the picture
        return None


def crop_corners(image: Image.Image) -> Image.Image:
    """A picture without the dark rim of a dermatoscope, cut to the rectangle that it leaves.

    Dark rows and columns at the sides are cut. If two or more corners are still dark, all sides
    move in by the least equal share, at most 16% (a circle that touches all sides needs 14.6%),
    that leaves none, and by 1% more. A picture without a rim, or with one that stays, is unchanged.
    """
    reduced = image.convert("L").resize((100, 100), Image.Resampling.BOX)  # in per cent
    bright = np.asarray(reduced) > DARK
    if not bright.any():
        return image
    rows, columns = (np.flatnonzero(bright.any(axis=axis))[[0, -1]] for axis in (1, 0))
    inwards, (width, height) = np.array([1, -1]), image.size
    for inset in range(17):
        ends = [side + inwards * (np.ptp(side) * inset // 100) for side in (rows, columns)]
        corners = bright[np.ix_(*ends)]
        if corners.all() or (inset == 0 and corners.sum() > 2):
            (top, bottom), (left, right) = (np.add(ends, (0, 1)) + inwards * (inset > 0)).tolist()
            box = (width * left, height * top, width * right, height * bottom)
            return image.crop(tuple(side // 100 for side in box))
    return image


def shades_of_grey(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """An image (S, S, 3) as if under white light, by the Minkowski norm of each channel with p = 6.

    Finlayson & Trezzi, Shades of gray and colour constancy, CIC 2004; black bars have no influence.
    """
    light = np.maximum((pixels.astype(np.float64) ** 6).mean(axis=(0, 1)) ** (1 / 6), 1)
    white = np.sqrt((light**2).mean())  # of the same strength
    return (pixels * (white / light)).round().clip(0, 255).astype(np.uint8)
