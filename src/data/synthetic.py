"""The embedded data set: procedural skin lesions of seven kinds, drawn with numpy and Pillow, no files and no download.

A lesion is a map of pigments (melanin, blood, deep melanin seen blue, white keratin or scar) over
skin; its colour follows from how much light they absorb. What sets the kinds apart is what a
dermatoscope shows (Argenziano et al., J Am Acad Dermatol 48:679, 2003), coarser: the pictures are
made to be learnt from, not to be mistaken for patients.
"""
from PIL import Image
from PIL import ImageDraw
from annotated_types import Ge
from annotated_types import Le
from collections.abc import Mapping
from collections.abc import Sequence
from functools import lru_cache
from src.data.source import Manifest
from src.data.source import Source
from typing import Annotated
from typing import NamedTuple
import numpy as np
import numpy.typing as npt
import pandas as pd


VERSION = 1  # raise it with every change that moves a pixel: caches depend on it
Plane = npt.NDArray[np.floating]  # (size, size)
FloatArray = npt.NDArray[np.floating]
Range = tuple[float, float]
# the lesion's canvas reaches this far, in half-widths of a picture: turned and shifted views stay
# inside
MARGIN = 2.0
# absorption in red, green, blue at concentration 1
MELANIN, BLOOD = (0.85, 1.55, 2.05), (0.18, 1.35, 0.85)
# colours of the blue-white veil, and of keratin and scar
BLUE, WHITE = (0.40, 0.43, 0.55), (0.95, 0.88, 0.80)
SKINS = ((0.93, 0.76, 0.70), (0.86, 0.64, 0.55), (0.74, 0.53, 0.42))  # fair to brown


class LesionKind(NamedTuple):
    """How the lesions of one class look.

    Attributes:
        share: Part of all lesions.
        mimics: The kinds that its atypical lesions resemble.
        traits: From-to of each trait, uniformly drawn a lesion; a trait that is not named is
            absent.
    """

    share: float
    mimics: tuple[str, ...]
    traits: Mapping[str, Range]


# radius: in half-widths of the picture. border: amplitude of its waves. soft: width of its edge.
# ring: pigment at the rim, not in the middle. mottle: patchiness. asymmetry: pigment to one side.
# Others: strength of colours, structures.
KINDS: dict[str, LesionKind] = {
    "akiec": LesionKind(0.07, ("bcc", "bkl"), {
        "radius": (0.45, 0.75), "elongation": (0.0, 0.4), "border": (0.15, 0.35), "soft": (0.2, 0.4),
        "melanin": (0.0, 0.25), "blood": (0.3, 0.6), "mottle": (0.3, 0.8), "asymmetry": (0.1, 0.5), "scale": (0.4, 1.0),
        "vessels": (0.0, 0.2)}),
    "bcc": LesionKind(0.09, ("akiec", "mel"), {
        "radius": (0.35, 0.65), "elongation": (0.0, 0.3), "border": (0.05, 0.25), "soft": (0.15, 0.35),
        "melanin": (0.0, 0.15), "blood": (0.15, 0.4), "white": (0.0, 0.35), "mottle": (0.1, 0.5), "nests": (0.2, 1.0),
        "asymmetry": (0.1, 0.6), "vessels": (0.5, 1.0)}),
    "bkl": LesionKind(0.13, ("mel", "nv", "akiec"), {
        "radius": (0.4, 0.75), "elongation": (0.0, 0.5), "border": (0.1, 0.35), "soft": (0.04, 0.12),
        "melanin": (0.25, 0.6), "blood": (0.0, 0.15), "blue": (0.0, 0.35), "mottle": (0.2, 0.7),
        "asymmetry": (0.0, 0.4), "cysts": (0.4, 1.0), "globules": (0.0, 0.4)}),
    "df": LesionKind(0.045, ("nv", "bcc"), {
        "radius": (0.35, 0.6), "elongation": (0.0, 0.2), "border": (0.03, 0.12), "soft": (0.3, 0.5),
        "melanin": (0.2, 0.45), "blood": (0.1, 0.35), "mottle": (0.05, 0.2), "asymmetry": (0.0, 0.2),
        "ring": (0.4, 1.0), "scar": (0.4, 1.0), "network": (0.1, 0.5)}),
    "mel": LesionKind(0.145, ("nv", "bkl"), {
        "radius": (0.45, 0.85), "elongation": (0.1, 0.5), "border": (0.2, 0.5), "soft": (0.06, 0.2),
        "melanin": (0.5, 1.1), "blood": (0.05, 0.35), "blue": (0.2, 0.8), "mottle": (0.5, 1.0), "asymmetry": (0.5, 1.0),
        "network": (0.2, 0.8), "globules": (0.1, 0.6), "white": (0.0, 0.2)}),
    "nv": LesionKind(0.465, ("mel", "bkl", "df"), {
        "radius": (0.25, 0.65), "elongation": (0.0, 0.4), "border": (0.02, 0.15), "soft": (0.08, 0.25),
        "melanin": (0.3, 0.8), "blood": (0.0, 0.25), "mottle": (0.0, 0.35), "asymmetry": (0.0, 0.3),
        "network": (0.0, 0.9), "globules": (0.0, 0.7)}),
    "vasc": LesionKind(0.055, ("mel", "df"), {
        "radius": (0.2, 0.5), "elongation": (0.0, 0.3), "border": (0.05, 0.2), "soft": (0.04, 0.15),
        "melanin": (0.0, 0.2), "blood": (0.5, 1.1), "blue": (0.0, 0.3), "mottle": (0.0, 0.4), "asymmetry": (0.0, 0.3),
        "lacunae": (0.4, 1.0)}),
}  # fmt: skip
TRAITS = sorted({trait for kind in KINDS.values() for trait in kind.traits})


class Synthetic(Source):
    """Procedural lesions. A picture depends on the seed, its lesion's and its view's number, and on nothing else.

    Args:
        lesions: Number of lesions; the first ones stay as they are when there are more.
        max_views: Pictures a lesion, 1 to this many, uniformly drawn.
        native_size: Side of the square pictures in px.
        ambiguity: How far an atypical lesion may look like another kind: 0 is never, at 1 some look
            wholly like it.
        seed: Seed of everything.
    """

    name = "synthetic"

    def __init__(
        self,
        lesions: Annotated[int, Ge(100)] = 540,
        max_views: Annotated[int, Ge(1)] = 3,
        native_size: Annotated[int, Ge(16)] = 96,
        ambiguity: Annotated[float, Ge(0), Le(1)] = 0.25,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        self.lesions = lesions
        self.max_views = max_views
        self.native_size = native_size
        self.ambiguity = ambiguity
        self.seed = seed
        # Views of one lesion follow each other, also across a few threads.
        self._canvas = lru_cache(maxsize=32)(self._draw_canvas)

    def manifest(self) -> Manifest:
        """List the pictures; extra columns `lesion` and `view` number them."""
        kinds = list(KINDS)
        rows = []
        for lesion in range(self.lesions):
            kind = self._kind(lesion)
            views = 1 + int(np.random.default_rng([self.seed, lesion, 1]).integers(self.max_views))
            for view in range(views):
                rows.append((f"SYN_{lesion:05d}_{view}", kinds.index(kind), f"SYN_{lesion:05d}", "", lesion, view))
        frame = pd.DataFrame(rows, columns=["image_id", "label", "group", "path", "lesion", "view"])
        return Manifest(self.name, tuple(kinds), frame, grouped_by="lesion")

    def picture(self, manifest: Manifest, row: int) -> Image.Image:
        """Draw one view, RGB, `native_size` px square."""
        lesion, view = manifest.frame[["lesion", "view"]].to_numpy()[row].tolist()
        rng = np.random.default_rng([self.seed, lesion, 2, view])
        return _photograph(rng, self._canvas(lesion), self.native_size)

    def stamps(self, manifest: Manifest) -> list[str]:
        """The generator's version, its parameters, and which picture it is."""
        common = f"v{VERSION}:seed={self.seed}:size={self.native_size}:ambiguity={self.ambiguity}"
        return [f"{common}:{image}" for image in manifest.frame["image_id"]]

    def _kind(self, lesion: int) -> str:
        """A golden-ratio sequence through the shares: every stretch of lesions has nearly the exact class balance."""
        start = np.random.default_rng([self.seed, 3]).random()
        place = (start + lesion * (5**0.5 - 1) / 2) % 1.0
        edges = np.cumsum([kind.share for kind in KINDS.values()])
        return list(KINDS)[min(int(np.searchsorted(edges, place, side="right")), len(KINDS) - 1)]

    def _draw_canvas(self, lesion: int) -> Image.Image:
        rng = np.random.default_rng([self.seed, lesion, 0])
        kind = KINDS[self._kind(lesion)]
        own = _draw_traits(rng, kind)
        other = _draw_traits(rng, KINDS[kind.mimics[rng.integers(len(kind.mimics))]])
        weight = self.ambiguity * rng.random() ** 2  # most are typical, a few hardly
        return _lesion(
            rng, {name: (1 - weight) * own[name] + weight * other[name] for name in TRAITS}, self.native_size
        )


def _draw_traits(rng: np.random.Generator, kind: LesionKind) -> dict[str, float]:
    values = rng.random(len(TRAITS))
    ranges = [kind.traits.get(name, (0.0, 0.0)) for name in TRAITS]
    return {name: low + (high - low) * value for name, (low, high), value in zip(TRAITS, ranges, values, strict=True)}


def _lesion(rng: np.random.Generator, traits: Mapping[str, float], native_size: int) -> Image.Image:
    """The skin around one lesion, RGB, evenly lit, `MARGIN` times as wide as a picture."""
    size = round(MARGIN * native_size)
    axis = np.linspace(-MARGIN, MARGIN, size, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    depth, mask = _outline(rng, traits, x, y)
    patches, fine = _noise(rng, size, 9), _noise(rng, size, 30)
    side = x * np.cos(angle := rng.uniform(0, 2 * np.pi)) + y * np.sin(angle)
    body = mask * np.clip(
        1 + traits["mottle"] * (0.7 * patches + 0.3 * fine) + 1.2 * traits["asymmetry"] * side, 0.08, 2.2
    )
    body *= 1 - traits["ring"] * np.exp(-((1.6 * np.clip(depth, 0, None)) ** 2))
    inside = np.clip(1.15 - depth, 0, 1)

    def spots(structure: str, most: int, radii: Range, reach: float = 1.0) -> Plane:
        strength = traits[structure]
        return strength * mask * _spots(rng, size, reach * traits["radius"], most * strength, radii)

    mesh = _mesh(rng, x, y, period=rng.uniform(0.11, 0.16))
    melanin = traits["melanin"] * body * (1 + 1.3 * traits["network"] * (mesh - 0.5))
    melanin += 0.9 * spots("globules", 26, (0.035, 0.07)) + 0.5 * spots("cysts", 8, (0.03, 0.06))
    blood = traits["blood"] * body + 0.9 * traits["vessels"] * inside**0.3 * _vessels(rng, size, traits)
    blood += 0.7 * spots("lacunae", 14, (0.09, 0.17))
    blue = traits["blue"] * mask * np.clip(0.6 + 1.2 * _noise(rng, size, 7) * inside, 0, 1)
    blue += 0.9 * spots("nests", 6, (0.08, 0.16), reach=0.8)
    white = 0.6 * traits["white"] * mask * np.clip(0.5 + _noise(rng, size, 6), 0, 1)
    white += 0.85 * traits["scar"] * np.exp(-((depth / 0.5) ** 2)) * np.clip(1 + 0.3 * patches, 0, None)
    white += 0.75 * traits["scale"] * mask * np.clip(1.3 * fine + 0.8 * patches - 0.2, 0, 1)
    white += 0.7 * spots("cysts", 16, (0.03, 0.055))
    return _colour(rng, size, melanin, blood, blue, white)


def _outline(rng: np.random.Generator, traits: Mapping[str, float], x: Plane, y: Plane) -> tuple[Plane, Plane]:
    """How far out each pixel is (0: middle, 1: border), and how much of it belongs to the lesion (0 to 1)."""
    stretch = 1 + traits["elongation"]
    angle = np.arctan2(y, x)
    turns = np.linspace(-np.pi, np.pi, 181)
    waves = sum(rng.standard_normal() * np.cos(k * turns + rng.uniform(0, 2 * np.pi)) / k**0.7 for k in range(2, 9))
    radius = traits["radius"] * np.clip(1 + 0.55 * traits["border"] * np.interp(angle, turns, waves), 0.4, 1.7)
    depth = np.hypot(x / stretch**0.5, y * stretch**0.5) / radius + 0.35 * traits["border"] * (
        _noise(rng, len(x), 18) + 0.6 * _noise(rng, len(x), 40)
    )
    depth = depth.astype(np.float32)
    return depth, 1 / (1 + np.exp(np.clip((depth - 1) / (0.4 * max(traits["soft"], 0.02)), -30, 30)))


def _colour(
    rng: np.random.Generator, size: int, melanin: Plane, blood: Plane, blue: Plane, white: Plane
) -> Image.Image:
    """Pigments to a picture: Beer and Lambert's law for what absorbs, a mixture for what scatters."""
    tone = rng.random() ** 1.5 * (len(SKINS) - 1)
    skin = np.array([np.interp(tone, range(len(SKINS)), [s[i] for s in SKINS]) for i in range(3)])
    cast = 1 + 0.06 * rng.standard_normal(3)  # the clinic's camera
    melanin = melanin + 0.02 * _noise(rng, size, 12) + 0.02 * _noise(rng, size, 60)
    blood = blood + 0.25 * rng.random() ** 2 + 0.03 * _noise(rng, size, 14) + 0.02 * _noise(rng, size, 40)
    planes = []
    for i in range(3):
        plane = skin[i] * np.exp(-MELANIN[i] * melanin - BLOOD[i] * blood)
        plane += (BLUE[i] * 0.9 - plane) * np.clip(0.8 * blue, 0, 0.8)
        plane += (WHITE[i] - plane) * np.clip(white, 0, 0.85)
        planes.append(plane * cast[i])
    return _to_image(np.stack(planes, axis=2))


def _photograph(rng: np.random.Generator, canvas: Image.Image, size: int) -> Image.Image:
    """One view of a lesion: turned, moved, nearer or farther, lit, with hairs, a vignette, and the camera's noise."""
    zoom, angle = np.exp(rng.uniform(-0.16, 0.2)), rng.uniform(0, 2 * np.pi)
    mirror = rng.choice([-1.0, 1.0])
    a, b = np.cos(angle) / zoom, np.sin(angle) / zoom
    centre_x, centre_y = canvas.width / 2 + 0.08 * size * rng.standard_normal(2).clip(-2, 2)
    half = size / 2
    matrix = (mirror * a, -b, centre_x - half * (mirror * a - b), mirror * b, a, centre_y - half * (mirror * b + a))
    view = canvas.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    pixels = np.asarray(view, dtype=np.float32) / 255

    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    if rng.random() < 0.35:
        strength = rng.uniform(0.5, 0.95)
        pixels = pixels * (1 - strength * _hairs(rng, size)[..., None] * (1 - np.array([0.16, 0.12, 0.1], np.float32)))
    light = rng.uniform(0.82, 1.12) * (1 + 0.1 * rng.standard_normal() * x + 0.1 * rng.standard_normal() * y)
    radius = np.hypot(x, y)
    light *= 1 - rng.uniform(0, 0.2) * radius**2
    if rng.random() < 0.2:  # the dark edge of the dermatoscope's field
        light *= 1 / (1 + np.exp(np.clip((radius - rng.uniform(1.0, 1.2)) * 40, -30, 30)))
    pixels = pixels * light[..., None] * (1 + 0.03 * rng.standard_normal(3))
    pixels = pixels + rng.uniform(0.005, 0.025) * rng.standard_normal(pixels.shape, dtype=np.float32)
    return _to_image(pixels)


def _noise(rng: np.random.Generator, size: int, cells: int) -> Plane:
    """Smooth noise of about unit variance with `cells` bumps across."""
    grid = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return 1.3 * np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))


def _mesh(rng: np.random.Generator, x: Plane, y: Plane, period: float) -> Plane:
    """The lines of a pigment network (1) and its holes (0): a honeycomb, bent."""
    bend_x, bend_y = (0.05 * _noise(rng, len(x), 14) for _ in range(2))
    turn, factor = rng.uniform(0, np.pi), 2 * np.pi / period
    waves = sum(
        np.cos(factor * ((x + bend_x) * np.cos(turn + k * np.pi / 3) + (y + bend_y) * np.sin(turn + k * np.pi / 3)))
        for k in range(3)
    )
    return np.clip(0.75 - 0.6 * waves, 0, 1)


def _spots(rng: np.random.Generator, size: int, reach: float, most: float, radii: Range) -> Plane:
    """Round spots within `reach` of the middle, up to `most` of them."""
    count = round(most * rng.uniform(0.6, 1.0))
    out, angle = reach * rng.random(count) ** 0.5, rng.uniform(0, 2 * np.pi, count)
    middles = np.stack([out * np.cos(angle), out * np.sin(angle)], axis=1)
    radius = rng.uniform(*radii, count)[:, None]
    boxes = (np.concatenate([middles - radius, middles + radius], axis=1) / MARGIN + 1) * size
    image = Image.new("L", (2 * size, 2 * size))
    pen = ImageDraw.Draw(image)
    for box in boxes:
        pen.ellipse(tuple(box), fill=255)
    return _reduced(image)


def _lines(size: int, lines: Sequence[tuple[FloatArray, float]]) -> Plane:
    """Paint polylines: points (k, 2) in units of the picture's width, 0 to 1, each with its width in px of 192."""
    image = Image.new("L", (2 * size, 2 * size))
    pen = ImageDraw.Draw(image)
    for points, width in lines:
        pen.line([tuple(point) for point in points * 2 * size], 255, max(1, round(width * size / 96)), joint="curve")
    return _reduced(image)


def _vessels(rng: np.random.Generator, size: int, traits: Mapping[str, float]) -> Plane:
    """Arborising vessels: a few trunks that wander in from the border and branch into thinner ones."""
    lines: list[tuple[FloatArray, float]] = []
    for _ in range(round(5 * traits["vessels"])):
        angle = rng.uniform(0, 2 * np.pi)
        start = traits["radius"] * rng.uniform(0.6, 1.0) * np.array([np.cos(angle), np.sin(angle)])
        twigs = [(start, angle + np.pi + 0.5 * rng.standard_normal(), 1.9)]
        while twigs:
            point, heading, width = twigs.pop()
            headings = heading + 0.35 * np.cumsum(rng.standard_normal(5))
            steps = 0.09 * np.stack([np.cos(headings), np.sin(headings)], axis=1)
            line = np.concatenate([point[None], point + np.cumsum(steps, axis=0)])
            lines.append(((line / MARGIN + 1) / 2, width))
            if width > 0.9:
                twigs += [(line[-1], headings[-1] + bend * rng.uniform(0.4, 1.0), 0.6 * width) for bend in (-1, 1)]
    return _lines(size, lines)


def _hairs(rng: np.random.Generator, size: int) -> Plane:
    """Hairs across the picture: quadratic curves, mostly in one direction."""
    count, flow = int(rng.integers(2, 16)), rng.uniform(0, 2 * np.pi)
    steps = np.linspace(0, 1, 9)[:, None]
    lines = []
    for _ in range(count):
        start, heading = rng.uniform(0, 1, 2), flow + 0.4 * rng.standard_normal()
        end = start + rng.uniform(0.3, 0.9) * np.array([np.cos(heading), np.sin(heading)])
        middle = (start + end) / 2 + 0.12 * rng.standard_normal(2)
        lines.append(((1 - steps) ** 2 * start + 2 * steps * (1 - steps) * middle + steps**2 * end, 1.7))
    return _lines(size, lines)


def _reduced(image: Image.Image) -> Plane:
    """A painting of twice the size, 0 to 255, to its own size, 0 to 1."""
    return np.asarray(image.reduce(2), dtype=np.float32) / np.float32(255)


def _to_image(pixels: FloatArray) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
