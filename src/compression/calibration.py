"""The training images on which a quantiser sees how large the values in a net become."""

import numpy as np
import numpy.typing as npt

from src.data.module import DataModule
from src.deployment.runtime import Pictures


def pictures(data: DataModule, number: int, seed: int) -> Pictures:
    """Training images, every class with its share of them, in random order.

    Args:
        data: Ready.
        number: How many; no more than there are.
        seed: Of the draw.

    Returns:
        uint8 RGB (N, S, S, 3), as the camera gives them: not augmented.
    """
    rows = data.rows("train")
    chosen = rows[stratified(data.labels[rows], number, np.random.default_rng(seed))]
    return np.ascontiguousarray(data.cache.images[chosen])


def stratified(labels: npt.NDArray[np.int64], number: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Positions of `number` images, of each class its share, rounded by largest remainders, but at least one.

    Args:
        labels: Labels, shape (N,).
        number: How many; fewer than there are classes gives one of each class, more than N gives all.
        random: Draws them, and their order.

    Returns:
        Positions in `labels`, without repeats.
    """
    if number >= len(labels):
        return random.permutation(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    share = number * counts / len(labels)
    wanted = np.maximum(np.floor(share).astype(np.int64), 1)
    left = max(0, number - int(wanted.sum()))
    wanted[np.argsort(wanted - share, kind="stable")[:left]] += 1
    members = [
        random.choice(np.flatnonzero(labels == label), size, replace=False)
        for label, size in zip(classes, wanted, strict=True)
    ]
    return random.permutation(np.concatenate(members))
