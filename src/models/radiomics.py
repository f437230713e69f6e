"""Global image descriptors: Hu moments, Haralick features, colour histogram."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image
from threadpoolctl import ThreadpoolController
from tqdm import tqdm

Descriptor = Literal["hu", "haralick", "histogram"]
DESCRIPTORS: tuple[Descriptor, ...] = get_args(Descriptor)
Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float64]
HARALICK = (
    *("angular_second_moment", "contrast", "correlation", "variance"),
    *("inverse_difference_moment", "sum_average", "sum_variance", "sum_entropy", "entropy"),
    *("difference_variance", "difference_entropy", "information_1", "information_2"),
)


# Inspecting the libraries is slow.
_blas_libraries = cache(ThreadpoolController)


def limit_blas(threads: int) -> AbstractContextManager[Any]:
    """A context in which a matrix product uses at most this many threads."""
    return _blas_libraries().limit(limits=threads, user_api="blas")


def grey(image: Pixels) -> Pixels:
    """Luma of an RGB image, uint8 (S, S, 3) -> (S, S)."""
    return np.asarray(Image.fromarray(image).convert("L"))


def hu_moments(image: Pixels) -> Values:
    """Seven moments that are invariant to translation, rotation and scale.

    A reflection changes the sign of the last one. The grey levels are not inverted, so a bright
    background weighs more than a dark lesion. The values span many orders of magnitude.

    Source: Hu, Visual pattern recognition by moment invariants, 1962, from scale-invariant central
        moments.

    Returns:
        float64 (7,); zeros for a black image, which has no moments.
    """
    mass = image.astype(np.float64)
    total = mass.sum()
    if total == 0:
        return np.zeros(7)
    powers = []  # of the centred coordinates of each axis
    for axis, length in enumerate(mass.shape):
        position = np.arange(length, dtype=np.float64)
        position -= position @ mass.sum(axis=1 - axis) / total
        powers.append(position ** np.arange(4)[:, None])
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
    """Thirteen texture features of the grey-level co-occurrence, averaged over four directions.

    They are invariant to reflections and quarter turns, and in the order of `HARALICK`.

    Source: Haralick, Shanmugam & Dinstein, Textural features for image classification, 1973,
        features 1 to 13, computed by mahotas.
    """
    from mahotas import features  # only runs of this model need the library

    return np.asarray(features.haralick(image, distance=1, return_mean=True), dtype=np.float64)


def histogram(image: Pixels, bins: int) -> Values:
    """Share of an RGB image's pixels in each cell of hue, saturation and value.

    Each channel has `bins` equal intervals; in the result, (bins^3,), the value varies fastest, the
    hue slowest.
    """
    hsv = np.asarray(Image.fromarray(image).convert("HSV")).reshape(-1, 3)
    cell = (hsv.astype(np.int64) * bins >> 8) @ np.array([bins**2, bins, 1])
    return np.bincount(cell, minlength=bins**3) / len(cell)


def names(descriptors: Sequence[Descriptor], bins: int) -> tuple[str, ...]:
    """Name of each feature, in the order of `extract`."""
    features: dict[Descriptor, Sequence[str]] = {
        "hu": [str(number) for number in range(1, 8)],
        "haralick": HARALICK,
        "histogram": [".".join(map(str, cell)) for cell in np.ndindex(bins, bins, bins)],
    }
    return tuple(f"{kind}/{name}" for kind in descriptors for name in features[kind])


def extract(
    images: Pixels,
    descriptors: Sequence[Descriptor],
    bins: int,
    rows: npt.NDArray[np.int64] | None = None,
    threads: int = 1,
    title: str | None = None,
) -> Values:
    """Features of images.

    Args:
        images: RGB, uint8 (N, S, S, 3); may be memory-mapped.
        descriptors: Which, in this order.
        bins: Of the histogram.
        rows: Which images, (M,); None: all.
        threads: Images at once; most of the work releases the GIL.
        title: Of a progress bar, shown on a terminal; None: no bar.

    Returns:
        float64 (M, F).
    """
    functions: dict[Descriptor, Callable[[Pixels], Values]] = {
        "hu": lambda image: hu_moments(grey(image)),
        "haralick": lambda image: haralick(grey(image)),
        "histogram": lambda image: histogram(image, bins),
    }

    def describe(row: int) -> Values:
        image = np.ascontiguousarray(images[row])
        return np.concatenate([functions[kind](image) for kind in descriptors])

    numbers = range(len(images)) if rows is None else rows
    silent = None if title else True  # None: silent unless there is a terminal
    # mahotas multiplies short vectors, where more BLAS threads wait for each other: 20 times the
    # CPU time.
    with limit_blas(1), ThreadPoolExecutor(threads) as pool:
        results = pool.map(describe, numbers) if threads > 1 else map(describe, numbers)
        bar = tqdm(results, title, len(numbers), unit="image", leave=False, disable=silent)
        features = list(bar)
    return np.stack(features) if features else np.zeros((0, len(names(descriptors, bins))))
