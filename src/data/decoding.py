"""From a picture file of any mode and depth to what a viewer shows: upright 8-bit RGB."""

import functools
import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps

BACKGROUND = (255, 255, 255, 255)  # behind transparent parts, as in a browser
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
        return _from_lab().apply(image)
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
        grey.putalpha(Image.fromarray((levels != image.info["transparency"]).astype(np.uint8) * 255))
    return grey


@functools.lru_cache(maxsize=1)
def _from_lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), _SRGB, "LAB", "RGB")


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
