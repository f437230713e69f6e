"""Pictures of every mode and depth become what a viewer shows."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from layouts import png_content  # of tests/data
from PIL import Image, ImageCms

from src.data.cache import square
from src.data.decoding import as_viewed, crop_corners, shades_of_grey
from src.deployment.benchmark.worker import encoded

RAMP = np.tile(np.arange(256, dtype=np.uint8), (4, 1))  # all greys, four rows
GREY = np.stack([RAMP] * 3, axis=-1)
COLOURS = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 90)], axis=-1)


def reopened(image: Image.Image, kind: str, **options: object) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return Image.open(file)


def png(levels: np.ndarray, colour_type: int, *chunks: tuple[bytes, bytes]) -> Image.Image:
    """A 16-bit PNG, written by hand: (H, W) or (H, W, C) numbers up to 65,535."""
    height, width = levels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return Image.open(io.BytesIO(png_content(header, rows, *chunks)))


def tiff(levels: np.ndarray, bits: int, photometric: int, order: str = "<") -> Image.Image:
    """An uncompressed TIFF, written by hand, of (H, W) 16-bit or (H, W, 3) numbers."""
    height, width = levels.shape[:2]
    samples = levels.shape[2] if levels.ndim == 3 else 1
    if bits == 12:  # packed: two numbers in three bytes
        a, b = levels[:, ::2].astype(int), levels[:, 1::2].astype(int)
        packed = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], axis=-1)
        pixels = packed.astype(np.uint8).tobytes()
    else:
        pixels = levels.astype(f"{order}u2").tobytes()
    depths = 8 + 2 + 10 * 12 + 4  # offset of the depths of several samples
    tags = [(256, 3, 1, width), (257, 3, 1, height)]
    tags += [(258, 3, samples, bits if samples == 1 else depths), (259, 3, 1, 1)]
    tags += [(262, 3, 1, photometric), (273, 4, 1, depths + 6), (277, 3, 1, samples)]
    tags += [(278, 3, 1, height), (279, 4, 1, len(pixels)), (284, 3, 1, 1)]
    content = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    for tag, kind, count, value in tags:
        shown = f"{order}HHI" + ("HH" if kind == 3 and count == 1 else "I")
        content += struct.pack(
            shown, tag, kind, count, *([value, 0] if shown[-1] == "H" else [value])
        )
    content += bytes(4) + struct.pack(f"{order}HHH", bits, bits, bits) + pixels
    return Image.open(io.BytesIO(content))


def with_alpha(mode: str) -> Image.Image:
    """Opaque on the left, invisible black in the middle, half transparent black on the right."""
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:, :2], pixels[:, 4:, 3] = (10, 10, 10, 255), 128
    return Image.fromarray(pixels).convert(mode)


def palette_and_alpha() -> Image.Image:
    image = palette()
    image.putalpha(Image.fromarray(np.array([[255, 128, 0]] * 2, np.uint8)))
    assert image.mode == "PA"
    return image


def palette(**transparency: object) -> Image.Image:
    image = Image.fromarray(np.tile(np.array([0, 1, 2], np.uint8), (2, 1)), mode=None).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    return reopened(image, "PNG", **transparency)


SIXTEEN = np.tile(np.arange(0, 65536, 257), (4, 1))  # v * 257 is the same grey with 16 bits
SHOWN_ALPHA = np.array([[[value] * 3 for value in (10, 10, 255, 255, 127, 127)]] * 4)
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
CASES: dict[str, tuple[Callable[[], Image.Image], np.ndarray]] = {
    "1": (lambda: reopened(Image.fromarray(RAMP > 99), "PNG"), 255 * (GREY > 99)),
    "L": (lambda: reopened(Image.fromarray(RAMP), "PNG"), GREY),
    "RGB": (lambda: reopened(Image.fromarray(COLOURS), "PNG"), COLOURS),
    "RGBX": (lambda: Image.fromarray(COLOURS).convert("RGBX"), COLOURS),
    "YCbCr": (lambda: Image.fromarray(COLOURS).convert("YCbCr"), COLOURS),
    "HSV": (lambda: Image.fromarray(COLOURS).convert("HSV"), COLOURS),
    "CMYK": (lambda: reopened(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"), COLOURS),
    "16-bit PNG": (lambda: png(SIXTEEN, 0), GREY),
    "16-bit PNG with alpha": (
        lambda: png(np.stack([SIXTEEN, np.full_like(SIXTEEN, 65535)], axis=-1), 4),
        GREY,
    ),
    "16-bit PNG with a transparent grey": (
        lambda: png(SIXTEEN, 0, (b"tRNS", struct.pack(">H", 257 * 7))),
        np.where(GREY == 7, 255, GREY),
    ),
    "16-bit RGB PNG": (lambda: png(COLOURS.astype(int) * 257, 2), COLOURS),
    "I;16": (lambda: tiff(SIXTEEN, 16, 1), GREY),
    "I;16B": (lambda: tiff(SIXTEEN, 16, 1, ">"), GREY),
    "I;16, white is zero": (lambda: tiff(SIXTEEN, 16, 0), 255 - GREY),
    "12-bit TIFF": (lambda: tiff(RAMP * 16.0 + RAMP // 16, 12, 1), GREY),
    "16-bit RGB TIFF": (lambda: tiff(COLOURS.astype(int) * 257, 16, 2), COLOURS),
    "16-bit PGM": (
        lambda: Image.open(io.BytesIO(b"P5 256 4 65535\n" + SIXTEEN.astype(">u2").tobytes())),
        GREY,
    ),
    "RGBA": (lambda: reopened(with_alpha("RGBA"), "PNG"), SHOWN_ALPHA),
    "LA": (lambda: reopened(with_alpha("LA"), "PNG"), SHOWN_ALPHA),
    "PA": (palette_and_alpha, np.array([[RED, (127, 255, 127), WHITE]] * 2)),
    "RGBa": (lambda: with_alpha("RGBA").convert("RGBa"), SHOWN_ALPHA),
    "La": (lambda: with_alpha("LA").convert("La"), SHOWN_ALPHA),
    "P": (palette, np.array([[RED, GREEN, BLUE]] * 2)),
    "P with a transparent colour": (
        lambda: palette(transparency=1),
        np.array([[RED, WHITE, BLUE]] * 2),
    ),
    "P with alphas": (
        lambda: palette(transparency=bytes([255, 128, 0])),
        np.array([[RED, (127, 255, 127), WHITE]] * 2),
    ),
    "RGB with a transparent colour": (
        lambda: reopened(Image.fromarray(COLOURS), "PNG", transparency=(0, 255, 90)),
        np.where((COLOURS == (0, 255, 90)).all(axis=-1, keepdims=True), 255, COLOURS),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_picture_of_any_mode_looks_as_in_a_viewer(name: str) -> None:
    make, expected = CASES[name]
    shown = as_viewed(make())
    assert shown.mode == "RGB"
    # 16-bit colours are cut, not rounded, by Pillow; a hue of 8 bits is 6 * 255 / 256 levels wide
    tolerance = {"HSV": 6, "YCbCr": 3}.get(name, 1)
    assert np.abs(np.asarray(shown).astype(int) - expected).max() <= tolerance


def test_lab_by_the_formula_of_the_cie() -> None:
    """L 50 without colour is XYZ 0.1842 of white, sRGB 0.4663 (119); a = 40 is reddish."""
    neutral = Image.fromarray(np.full((2, 2, 3), (128, 128, 128), np.uint8), mode=None)
    lab = Image.merge("LAB", neutral.split())
    assert np.abs(np.asarray(as_viewed(reopened(lab, "TIFF"))).astype(int) - 119).max() <= 2
    red = Image.merge(
        "LAB", [neutral.getchannel(0), Image.new("L", (2, 2), 168), *neutral.split()[:1]]
    )
    pixel = as_viewed(red).getpixel((0, 0))
    assert pixel[0] > 150 > pixel[1]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_fixed_white_are_refused_with_their_mode(mode: str) -> None:
    with pytest.raises(OSError, match=f"mode {mode}: .*save it with 8 or 16 bits"):
        as_viewed(reopened(Image.new(mode, (4, 4), 3), "TIFF"))


# For each EXIF orientation: how the stored pixels are turned to be upright.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pictures_are_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    levels = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5140  # 20 greys apart
    expected = UPRIGHT[orientation](levels) // 257
    for picture in (Image.fromarray(levels), Image.fromarray((levels // 257).astype(np.uint8))):
        for kind in ("PNG", "TIFF"):
            shown = np.asarray(as_viewed(reopened(picture, kind, exif=exif)))[..., 0]
            assert np.array_equal(shown, expected)


def test_an_embedded_profile_is_applied_and_a_broken_one_ignored() -> None:
    """The profile swaps red and green, so the picture is shown with both swapped."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"tmp!", 1).replace(b"gXYZ", b"rXYZ", 1)
    swapped = (
        swapped.replace(b"tmp!", b"gXYZ", 1)
        .replace(b"sRGB", b"odd!")
        .replace("sRGB".encode("utf-16-be"), "odd!".encode("utf-16-be"))
    )
    picture = Image.fromarray(COLOURS)
    for profile, expected in (
        (srgb, COLOURS),
        (swapped, COLOURS[..., [1, 0, 2]]),
        (b"broken", COLOURS),
    ):
        shown = np.asarray(as_viewed(reopened(picture, "PNG", icc_profile=profile)))
        assert np.abs(shown.astype(int) - expected).max() <= 2


def test_the_benchmark_decodes_as_training_does(tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    Image.fromarray(SIXTEEN.astype(np.uint16)).save(path)
    with Image.open(io.BytesIO(encoded(str(path))[0])) as photograph:
        assert np.abs(np.asarray(photograph.convert("RGB")).astype(int) - GREY).max() <= 4


def through_dermatoscope(
    width: int, height: int, radius: float, centre: tuple[float, float] | None = None
) -> Image.Image:
    """Skin in a bright circle; around it nothing."""
    x0, y0 = centre or (width / 2, height / 2)
    y, x = np.mgrid[:height, :width]
    inside = np.hypot(x + 0.5 - x0, y + 0.5 - y0) < radius
    pixels = np.where(inside[..., None], (200, 150, 130), (4, 3, 2)).astype(np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("image", "share"),
    [
        # the largest rectangle of the picture's shape in a circle of radius r has the diagonal 2r
        (through_dermatoscope(400, 400, 200), 2**-0.5),
        (through_dermatoscope(600, 450, 300), 600 / 750),
        (through_dermatoscope(500, 400, 150), 300 * 2**-0.5 / 500),  # dark on all sides
        (through_dermatoscope(500, 400, 150, (200, 180)), 300 * 2**-0.5 / 500),  # not centred
    ],
    ids=["square", "wide", "small", "off_centre"],
)
def test_dark_corners_are_cut_and_little_else(image: Image.Image, share: float) -> None:
    cut = crop_corners(image)
    assert np.asarray(cut.convert("L")).min() > 100
    assert share - 0.04 < cut.width / image.width <= share


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((60, 80, 3), 180, np.uint8),
        np.zeros((60, 80, 3), np.uint8),  # nothing to find
        np.where(np.hypot(*np.mgrid[:60, :80])[..., None] < 20, 10, 180).repeat(3, 2),  # one corner
        np.where(np.hypot(*np.mgrid[-30:30, -40:40])[..., None] < 20, 10, 180).repeat(3, 2),
        # a dark rim that is wider than that of a circle
        np.where(np.abs(np.add(*np.mgrid[-30:30, -30:30]))[..., None] < 20, 180, 10).repeat(3, 2),
    ],
    ids=["none", "black", "one_corner", "lesion", "diagonal"],
)
def test_other_pictures_are_not_cut(pixels: np.ndarray) -> None:
    pixels = pixels.astype(np.uint8)
    assert np.array_equal(crop_corners(Image.fromarray(pixels)), pixels)


def test_shades_of_grey_by_hand() -> None:
    # norms of one colour are the colour: grey of the same strength, sqrt((200^2+100^2+50^2)/3)
    one = np.tile(np.array([200, 100, 50], np.uint8), (4, 4, 1))
    assert set(shades_of_grey(one).ravel()) == {round(((200**2 + 100**2 + 50**2) / 3) ** 0.5)}
    # two pixels: the norm of a channel is (half the sum of the sixth powers)^(1/6)
    two = np.array([[[120, 60, 30], [60, 60, 60]]], np.uint8)
    norms = [((120**6 + 60**6) / 2) ** (1 / 6), 60, ((30**6 + 60**6) / 2) ** (1 / 6)]
    white = (sum(norm**2 for norm in norms) / 3) ** 0.5
    expected = [
        [[round(v * white / n) for v, n in zip(p, norms, strict=True)] for p in two[0].tolist()]
    ]
    assert shades_of_grey(two).tolist() == expected
    assert not shades_of_grey(np.zeros((2, 2, 3), np.uint8)).any()
    # the colour of the light is undone
    grey = np.random.default_rng(0).integers(20, 200, (32, 32, 1)).repeat(3, 2)
    scene = (grey * [1.0, 0.9, 0.8]).astype(np.uint8)
    bluish = (grey * [0.6, 0.7, 1.0]).astype(np.uint8)
    seen, other = (shades_of_grey(image).astype(int) for image in (scene, bluish))
    assert np.ptp(seen, axis=2).max() <= 3  # grey again, up to rounding
    assert np.abs(seen / seen.mean() - other / other.mean()).max() < 0.05


def test_cleaning_is_part_of_the_geometry() -> None:
    image = through_dermatoscope(600, 450, 300)
    image = Image.fromarray((np.asarray(image) * [1.0, 0.8, 0.5]).astype(np.uint8))
    cut = crop_corners(image)
    for shape in ("squash", "center_crop", "pad"):
        expected = square(cut, 32, shape)
        assert np.array_equal(square(image, 32, f"{shape}+crop_corners"), expected)
        both = square(image, 32, f"{shape}+crop_corners+shades_of_grey")
        assert np.array_equal(both, shades_of_grey(expected))
        plain = square(image, 32, shape)
        assert np.array_equal(square(image, 32, f"{shape}+shades_of_grey"), shades_of_grey(plain))
