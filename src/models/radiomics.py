"""Hu moments, Haralick, colour histogram."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from threadpoolctl import ThreadpoolController
from tqdm import tqdm


def blas(most: int) -> AbstractContextManager[Any]:
    """A context in which a matrix product takes no more than so many threads; as before at its end.

    Args:
        most: At least 1.
    """
    return _libraries().limit(limits=most, user_api="blas")


@cache
def _libraries() -> ThreadpoolController:
    return (
        ThreadpoolController()
    )  # looks through all that is loaded, which takes longer than an image


Kind = Literal["hu", "haralick", "histogram"]
Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float64]
HARALICK = (
    "angular_second_moment",
    "contrast",
    "correlation",
    "variance",
    "inverse_difference_moment",
    "sum_average",
    "sum_variance",
    "sum_entropy",
    "entropy",
    "difference_variance",
    "difference_entropy",
    "information_1",
    "information_2",
)


def grey(image: Pixels) -> Pixels:
    """Luma of an RGB image, uint8 (S, S, 3) -> (S, S)."""
    return np.asarray(Image.fromarray(image).convert("L"))


def hu_moments(image: Pixels) -> Values:
    """The seven moments that no shift, turn or change of size alters; a mirrored image turns the sign of the last.

    Of the grey levels as they are, so a bright frame weighs more than a dark lesion. They span many
    powers of ten.

    Source: Hu, Visual pattern recognition by moment invariants, 1962, from scale-invariant central
        moments.

    Args:
        image: Grey levels, uint8 (S, S).

    Returns:
        float64 (7,); zeros for a black image, which has no moments.
    """
    mass = image.astype(np.float64)
    total = mass.sum()
    if total == 0:
        return np.zeros(7)
    powers = []
    for axis, length in enumerate(mass.shape):
        place = np.arange(length, dtype=np.float64)
        place -= place @ mass.sum(axis=1 - axis) / total
        powers.append(place ** np.arange(4)[:, None])
    order = np.add.outer(np.arange(4), np.arange(4))
    n = powers[0] @ mass @ powers[1].T / total ** (1 + order / 2)
    plus, minus = n[2, 0] + n[0, 2], n[2, 0] - n[0, 2]
    a, b = n[3, 0] + n[1, 2], n[2, 1] + n[0, 3]
    c, d = n[3, 0] - 3 * n[1, 2], 3 * n[2, 1] - n[0, 3]
    return np.array(
        [
            plus,
            minus**2 + 4 * n[1, 1] ** 2,
            c**2 + d**2,
            a**2 + b**2,
            c * a * (a**2 - 3 * b**2) + d * b * (3 * a**2 - b**2),
            minus * (a**2 - b**2) + 4 * n[1, 1] * a * b,
            d * a * (a**2 - 3 * b**2) - c * b * (3 * a**2 - b**2),
        ]
    )


def haralick(image: Pixels) -> Values:
    """Thirteen measures of how often grey levels are neighbours, each the mean over the four directions.

    Source: Haralick, Shanmugam & Dinstein, Textural features for image classification, 1973,
        features 1 to 13;
    mahotas computes them. Mirrored and quarter-turned images have the same ones.

    Args:
        image: Grey levels, uint8 (S, S).

    Returns:
        float64 (13,), in the order of `HARALICK`.
    """
    from mahotas.features import (
        haralick as by_direction,  # only runs of this model need the library
    )

    return np.asarray(by_direction(image, distance=1, return_mean=True), dtype=np.float64)


def histogram(image: Pixels, bins: int) -> Values:
    """Share of the pixels in each cell of hue, saturation and value; wherever in the image they are.

    Args:
        image: RGB, uint8 (S, S, 3).
        bins: Equal intervals a channel.

    Returns:
        float64 (bins^3,), adding up to 1; the value's interval changes fastest, the hue's slowest.
    """
    hsv = np.asarray(Image.fromarray(image).convert("HSV")).reshape(-1, 3)
    cell = (hsv.astype(np.int64) * bins >> 8) @ np.array([bins**2, bins, 1])
    return np.bincount(cell, minlength=bins**3) / len(cell)


_DESCRIPTORS: dict[Kind, Callable[[Pixels, int], Values]] = {
    "hu": lambda image, bins: hu_moments(grey(image)),
    "haralick": lambda image, bins: haralick(grey(image)),
    "histogram": histogram,
}


def names(kinds: Sequence[Kind], bins: int) -> tuple[str, ...]:
    """Name of each feature, in the order of `extract`."""
    cells = [
        f"{hue}.{saturation}.{value}" for hue, saturation, value in np.ndindex(bins, bins, bins)
    ]
    by_kind: dict[Kind, Iterable[str]] = {
        "hu": (str(number) for number in range(1, 8)),
        "haralick": HARALICK,
        "histogram": cells,
    }
    return tuple(f"{kind}/{name}" for kind in kinds for name in by_kind[kind])


def extract(
    images: Pixels,
    kinds: Sequence[Kind],
    bins: int,
    rows: npt.NDArray[np.int64] | None = None,
    threads: int = 1,
    title: str | None = None,
) -> Values:
    """Features of many images.

    Args:
        images: RGB, uint8 (N, S, S, 3); may be mapped from a file.
        kinds: Which, in this order.
        bins: Of the histogram.
        rows: Which images, (M,); None: all.
        threads: Images at once; most of the work leaves Python's lock.
        title: Of a progress bar, on a terminal; None for none.

    Returns:
        float64 (M, F).
    """
    numbers = range(len(images)) if rows is None else rows
    one = partial(_describe, images, tuple(kinds), bins)
    silent = None if title else True  # None: wherever there is no terminal
    # mahotas multiplies vectors so short that further BLAS threads only wait for each other: 20
    # times the CPU time
    with blas(1), ThreadPoolExecutor(threads) as pool:
        found = pool.map(one, numbers) if threads > 1 else map(one, numbers)
        described = list(
            tqdm(found, title, len(numbers), unit="image", leave=False, disable=silent)
        )
    return np.stack(described) if described else np.zeros((0, len(names(kinds, bins))))


def _describe(images: Pixels, kinds: Sequence[Kind], bins: int, number: int) -> Values:
    image = np.ascontiguousarray(images[number])
    return np.concatenate([_DESCRIPTORS[kind](image, bins) for kind in kinds])
