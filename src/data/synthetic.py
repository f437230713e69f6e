"""The embedded data set: procedural skin lesions of seven kinds, drawn with numpy and Pillow.

A lesion is a map of pigments (melanin, blood, deep melanin that looks blue, white keratin or scar)
over skin; its colour follows from the light that they absorb. The kinds differ in what a
dermatoscope shows (Argenziano et al., J Am Acad Dermatol 48:679, 2003), in a coarser form: the
images are for learning, they do not imitate patients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pandas as pd
from annotated_types import Ge, Le
from PIL import Image, ImageDraw

from src.data.source import Manifest, Source

VERSION = 1  # increase it with every change that alters a pixel: caches depend on it
Plane = npt.NDArray[np.floating]  # (size, size)
Range = tuple[float, float]
MARGIN = 2.0  # half side of the canvas in half-widths of a picture: rotated views stay inside
# Absorption in red, green, blue at concentration 1.
MELANIN, BLOOD = (0.85, 1.55, 2.05), (0.18, 1.35, 0.85)
# Colours of the blue-white veil, and of keratin and scar.
BLUE, WHITE = (0.40, 0.43, 0.55), (0.95, 0.88, 0.80)
SKINS = ((0.93, 0.76, 0.70), (0.86, 0.64, 0.55), (0.74, 0.53, 0.42))  # fair to brown
# Share of the lesions, the kinds that atypical ones resemble, and range of each trait (uniform;
# "." is 0). radius: half-widths of the picture. border: amplitude of its waves. soft: width of the
# edge. ring: pigment at the rim, not in the middle. mottle: patchiness. asymmetry: pigment to one
# side. Others: strength of colours and structures.
_TABLE = Path(__file__).with_suffix(".txt").read_text()
_ROWS, *_COLUMNS = zip(*(line.split() for line in _TABLE.strip().splitlines()), strict=True)
TRAITS = sorted(_ROWS[3:])
SHARES = {kind: float(share) for kind, share, *_ in _COLUMNS}
MIMICS = {kind: mimics.split(",") for kind, _, mimics, *_ in _COLUMNS}


@dataclass(eq=False)
class Synthetic(Source):
    """Procedural lesions. A picture depends on the seed and on its lesion and view number only.

    Attributes:
        lesions: Number of lesions; a larger set begins with the lesions of a smaller one.
        max_views: Pictures per lesion: 1 to this many, uniformly drawn.
        native_size: Side of the square pictures, px.
        ambiguity: How far an atypical lesion may resemble another kind: 0 is never, at 1 some
            look completely like it.
        seed: Of everything.
    """

    lesions: Annotated[int, Ge(100), Le(1_000_000)] = 540
    max_views: Annotated[int, Ge(1)] = 3
    native_size: Annotated[int, Ge(16), Le(4096)] = 96
    ambiguity: Annotated[float, Ge(0), Le(1)] = 0.25
    seed: Annotated[int, Ge(0)] = 0

    name = "synthetic"
    licence = "none applies: drawn pictures"

    def __post_init__(self) -> None:
        # The views of a lesion follow each other, across a few threads too.
        self._canvas = lru_cache(maxsize=32)(self._draw_canvas)

    def manifest(self) -> Manifest:
        """List the pictures; the columns `lesion` and `view` number them."""
        kinds = list(SHARES)
        rows = []
        for lesion in range(self.lesions):
            label, group = kinds.index(self._kind(lesion)), f"SYN_{lesion:05d}"
            views = 1 + int(np.random.default_rng([self.seed, lesion, 1]).integers(self.max_views))
            rows += [(f"{group}_{view}", label, group, "", lesion, view) for view in range(views)]
        frame = pd.DataFrame(rows, columns=["image_id", "label", "group", "path", "lesion", "view"])
        return Manifest(self.name, tuple(kinds), frame, grouped_by="lesion")

    def picture(self, manifest: Manifest, row: int) -> Image.Image:
        """Draw one view, RGB, `native_size` px square."""
        lesion, view = manifest.frame[["lesion", "view"]].to_numpy()[row].tolist()
        rng = np.random.default_rng([self.seed, lesion, 2, view])
        return _photograph(rng, self._canvas(lesion), self.native_size)

    def stamps(self, manifest: Manifest) -> list[str]:
        """Version of the generator, its parameters, and the id of the picture."""
        common = f"v{VERSION}:seed={self.seed}:size={self.native_size}:ambiguity={self.ambiguity}"
        return [f"{common}:{image}" for image in manifest.frame["image_id"]]

    def _kind(self, lesion: int) -> str:
        """Golden-ratio sequence through the shares: every run of lesions is nearly balanced."""
        start = np.random.default_rng([self.seed, 3]).random()
        point = (start + lesion * (5**0.5 - 1) / 2) % 1.0
        edges = np.cumsum(list(SHARES.values()))
        return list(SHARES)[min(int(np.searchsorted(edges, point, side="right")), len(SHARES) - 1)]

    def _draw_canvas(self, lesion: int) -> Image.Image:
        rng = np.random.default_rng([self.seed, lesion, 0])
        kind = self._kind(lesion)
        typical = _draw_traits(rng, kind)
        other = _draw_traits(rng, MIMICS[kind][rng.integers(len(MIMICS[kind]))])
        weight = self.ambiguity * rng.random() ** 2  # most lesions are typical
        mixed = {name: (1 - weight) * typical[name] + weight * other[name] for name in TRAITS}
        return _lesion(rng, mixed, self.native_size)


def _draw_traits(rng: np.random.Generator, kind: str) -> dict[str, float]:
    column = dict(zip(_ROWS, _COLUMNS[list(SHARES).index(kind)], strict=True))
    traits = {}
    for name, value in zip(TRAITS, rng.random(len(TRAITS)), strict=True):
        ends = "0-0" if column[name] == "." else column[name]
        low, high = map(float, ends.split("-"))
        traits[name] = low + (high - low) * value
    return traits


def _lesion(rng: np.random.Generator, traits: Mapping[str, float], native_size: int) -> Image.Image:
    """The skin around one lesion, RGB, evenly lit, `MARGIN` times as wide as a picture."""
    size = round(MARGIN * native_size)
    axis = np.linspace(-MARGIN, MARGIN, size, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    depth, mask = _outline(rng, traits, x, y)
    patches, fine = _noise(rng, size, 9), _noise(rng, size, 30)
    side = x * np.cos(angle := rng.uniform(0, 2 * np.pi)) + y * np.sin(angle)
    mottle = traits["mottle"] * (0.7 * patches + 0.3 * fine)
    body = mask * np.clip(1 + mottle + 1.2 * traits["asymmetry"] * side, 0.08, 2.2)
    body *= 1 - traits["ring"] * np.exp(-((1.6 * np.clip(depth, 0, None)) ** 2))
    inside = np.clip(1.15 - depth, 0, 1)

    def spots(structure: str, most: int, radii: Range, reach: float = 1.0) -> Plane:
        """Up to `most` round spots within `reach` of the middle."""
        count = round(most * traits[structure] * rng.uniform(0.6, 1.0))
        out = reach * traits["radius"] * rng.random(count) ** 0.5
        angle = rng.uniform(0, 2 * np.pi, count)
        middles = np.stack([out * np.cos(angle), out * np.sin(angle)], axis=1)
        radius = rng.uniform(*radii, count)[:, None]
        boxes = (np.concatenate([middles - radius, middles + radius], axis=1) / MARGIN + 1) * size
        image = Image.new("L", (2 * size, 2 * size))
        pen = ImageDraw.Draw(image)
        for box in boxes:
            pen.ellipse(tuple(box), fill=255)
        return traits[structure] * mask * _reduced(image)

    # lines of a pigment network (1) and its holes (0): a distorted honeycomb
    factor = 2 * np.pi / rng.uniform(0.11, 0.16)
    bent = [plane + 0.05 * _noise(rng, size, 14) for plane in (x, y)]
    turn, waves = rng.uniform(0, np.pi), 0.0
    for angle in (turn + k * np.pi / 3 for k in range(3)):
        waves = waves + np.cos(factor * (bent[0] * np.cos(angle) + bent[1] * np.sin(angle)))
    mesh = np.clip(0.75 - 0.6 * waves, 0, 1)
    melanin = traits["melanin"] * body * (1 + 1.3 * traits["network"] * (mesh - 0.5))
    melanin += 0.9 * spots("globules", 26, (0.035, 0.07)) + 0.5 * spots("cysts", 8, (0.03, 0.06))
    blood = traits["blood"] * body
    blood = blood + 0.9 * traits["vessels"] * inside**0.3 * _vessels(rng, size, traits)
    blood += 0.7 * spots("lacunae", 14, (0.09, 0.17))
    blue = traits["blue"] * mask * np.clip(0.6 + 1.2 * _noise(rng, size, 7) * inside, 0, 1)
    blue += 0.9 * spots("nests", 6, (0.08, 0.16), reach=0.8)
    white = 0.6 * traits["white"] * mask * np.clip(0.5 + _noise(rng, size, 6), 0, 1)
    scar = np.exp(-((depth / 0.5) ** 2)) * np.clip(1 + 0.3 * patches, 0, None)
    white += 0.85 * traits["scar"] * scar
    white += 0.75 * traits["scale"] * mask * np.clip(1.3 * fine + 0.8 * patches - 0.2, 0, 1)
    white += 0.7 * spots("cysts", 16, (0.03, 0.055))
    # pigments to a picture: Beer-Lambert law for absorption, a mixture for scattering
    tone = rng.random() ** 1.5 * (len(SKINS) - 1)
    skin = np.array([np.interp(tone, range(len(SKINS)), [s[i] for s in SKINS]) for i in range(3)])
    cast = 1 + 0.06 * rng.standard_normal(3)  # of the camera
    melanin = melanin + 0.02 * _noise(rng, size, 12) + 0.02 * _noise(rng, size, 60)
    blood = blood + 0.25 * rng.random() ** 2
    blood = blood + 0.03 * _noise(rng, size, 14) + 0.02 * _noise(rng, size, 40)
    planes = []
    for i in range(3):
        plane = skin[i] * np.exp(-MELANIN[i] * melanin - BLOOD[i] * blood)
        plane += (BLUE[i] * 0.9 - plane) * np.clip(0.8 * blue, 0, 0.8)
        plane += (WHITE[i] - plane) * np.clip(white, 0, 0.85)
        planes.append(plane * cast[i])
    return _to_image(np.stack(planes, axis=2))


def _outline(
    rng: np.random.Generator, traits: Mapping[str, float], x: Plane, y: Plane
) -> tuple[Plane, Plane]:
    """Relative depth of each pixel (0: middle, 1: border) and its membership (0 to 1)."""
    stretch = 1 + traits["elongation"]
    angle = np.arctan2(y, x)
    turns = np.linspace(-np.pi, np.pi, 181)
    waves = sum(
        rng.standard_normal() * np.cos(k * turns + rng.uniform(0, 2 * np.pi)) / k**0.7
        for k in range(2, 9)
    )
    border = traits["border"]
    radius = traits["radius"] * np.clip(
        1 + 0.55 * border * np.interp(angle, turns, waves), 0.4, 1.7
    )
    roughness = _noise(rng, len(x), 18) + 0.6 * _noise(rng, len(x), 40)
    depth = np.hypot(x / stretch**0.5, y * stretch**0.5) / radius + 0.35 * border * roughness
    depth = depth.astype(np.float32)
    edge = (depth - 1) / (0.4 * max(traits["soft"], 0.02))
    return depth, 1 / (1 + np.exp(np.clip(edge, -30, 30)))


def _photograph(rng: np.random.Generator, canvas: Image.Image, size: int) -> Image.Image:
    """One view of a lesion: rotated, shifted, zoomed, lit, with hairs, vignette and noise."""
    zoom, angle = np.exp(rng.uniform(-0.16, 0.2)), rng.uniform(0, 2 * np.pi)
    mirror = rng.choice([-1.0, 1.0])
    a, b = np.cos(angle) / zoom, np.sin(angle) / zoom
    centre_x, centre_y = canvas.width / 2 + 0.08 * size * rng.standard_normal(2).clip(-2, 2)
    half = size / 2
    offset_x = centre_x - half * (mirror * a - b)
    offset_y = centre_y - half * (mirror * b + a)
    matrix = (mirror * a, -b, offset_x, mirror * b, a, offset_y)
    view = canvas.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    pixels = np.asarray(view, dtype=np.float32) / 255

    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    if rng.random() < 0.35:
        strength = rng.uniform(0.5, 0.95)
        dark = 1 - np.array([0.16, 0.12, 0.1], np.float32)
        # hairs across the picture: quadratic curves, mostly in one direction
        count, flow = int(rng.integers(2, 16)), rng.uniform(0, 2 * np.pi)
        steps = np.linspace(0, 1, 9)[:, None]
        hairs = []
        for _ in range(count):
            start, heading = rng.uniform(0, 1, 2), flow + 0.4 * rng.standard_normal()
            end = start + rng.uniform(0.3, 0.9) * np.array([np.cos(heading), np.sin(heading)])
            middle = (start + end) / 2 + 0.12 * rng.standard_normal(2)
            curve = (1 - steps) ** 2 * start + 2 * steps * (1 - steps) * middle + steps**2 * end
            hairs.append((curve, 1.7))
        pixels = pixels * (1 - strength * _lines(size, hairs)[..., None] * dark)
    light = rng.uniform(0.82, 1.12) * (
        1 + 0.1 * rng.standard_normal() * x + 0.1 * rng.standard_normal() * y
    )
    radius = np.hypot(x, y)
    light *= 1 - rng.uniform(0, 0.2) * radius**2
    if rng.random() < 0.2:  # dark edge of the dermatoscope's field
        light *= 1 / (1 + np.exp(np.clip((radius - rng.uniform(1.0, 1.2)) * 40, -30, 30)))
    pixels = pixels * light[..., None] * (1 + 0.03 * rng.standard_normal(3))
    noise = rng.uniform(0.005, 0.025) * rng.standard_normal(pixels.shape, dtype=np.float32)
    return _to_image(pixels + noise)


def _noise(rng: np.random.Generator, size: int, cells: int) -> Plane:
    """Smooth noise of about unit variance with `cells` bumps across."""
    grid = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return 1.3 * np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))


def _lines(size: int, lines: Sequence[tuple[np.ndarray, float]]) -> Plane:
    """Polylines: points (k, 2) in widths of the picture, 0 to 1, and line width in px of 192."""
    image = Image.new("L", (2 * size, 2 * size))
    pen = ImageDraw.Draw(image)
    for points, width in lines:
        corners = [tuple(point) for point in points * 2 * size]
        pen.line(corners, 255, max(1, round(width * size / 96)), joint="curve")
    return _reduced(image)


def _vessels(rng: np.random.Generator, size: int, traits: Mapping[str, float]) -> Plane:
    """Arborising vessels: trunks from the border inwards that branch into thinner ones."""
    lines: list[tuple[np.ndarray, float]] = []
    for _ in range(round(5 * traits["vessels"])):
        angle = rng.uniform(0, 2 * np.pi)
        radius = traits["radius"] * rng.uniform(0.6, 1.0)
        start = radius * np.array([np.cos(angle), np.sin(angle)])
        twigs = [(start, angle + np.pi + 0.5 * rng.standard_normal(), 1.9)]
        while twigs:
            point, heading, width = twigs.pop()
            headings = heading + 0.35 * np.cumsum(rng.standard_normal(5))
            steps = 0.09 * np.stack([np.cos(headings), np.sin(headings)], axis=1)
            line = np.concatenate([point[None], point + np.cumsum(steps, axis=0)])
            lines.append(((line / MARGIN + 1) / 2, width))
            if width > 0.9:
                bends = [bend * rng.uniform(0.4, 1.0) for bend in (-1, 1)]
                twigs += [(line[-1], headings[-1] + bend, 0.6 * width) for bend in bends]
    return _lines(size, lines)


def _reduced(image: Image.Image) -> Plane:
    """A painting of twice the size, 0 to 255, as a plane, 0 to 1."""
    return np.asarray(image.reduce(2), dtype=np.float32) / np.float32(255)


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
