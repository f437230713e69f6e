"""The sizes of a data set's pictures, and what a net's geometry makes of them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, UnidentifiedImageError

from src.data.source import Manifest, Source

MOST = 2000  # files that are looked into
MOST_DRAWN = 50  # pictures that are made to know their size, where a source has no file an image
BLACK = 40  # mean brightness of a corner, of 255, that counts as black
SAME_SHAPE = 0.02  # relative difference of width to height that does not matter


@dataclass(frozen=True)
class Sizes:
    """Sizes of pictures.

    Attributes:
        table: A row a size, the most frequent first: width, height, images.
        looked_at: Pictures that were looked at, evenly over the set.
        images: Of the set.
    """

    table: pd.DataFrame
    looked_at: int
    images: int

    @property
    def shape(self) -> float:
        """Median of width / height."""
        return float(np.median(np.repeat(self.table["width"] / self.table["height"], self.table["images"])))

    @property
    def shortest(self) -> int:
        """The shortest side of any, px."""
        return int(self.table[["width", "height"]].to_numpy().min())

    @property
    def text(self) -> str:
        """In words, such as "84x84 px (all of 12,381)"."""
        first = self.table.iloc[0]
        of = "all" if self.looked_at == self.images else f"{self.looked_at:,} looked at"
        if len(self.table) == 1:
            return f"{first['width']}x{first['height']} px ({of} of {self.images:,})"
        smallest, largest = (
            self.table.loc[(self.table["width"] * self.table["height"]).agg(pick)] for pick in ("idxmin", "idxmax")
        )
        share = first["images"] / self.looked_at
        return (
            f"{smallest['width']}x{smallest['height']} to {largest['width']}x{largest['height']} px, most often "
            f"{first['width']}x{first['height']} ({share:.0%}; {of} of {self.images:,}), width/height {self.shape:.2f} "
            "in the middle"
        )


def sizes(source: Source, manifest: Manifest) -> Sizes | None:
    """Sizes of a set's pictures as they are stored; None where none can be read.

    Args:
        source: Makes the pictures, where they are no files.
        manifest: Of the set.
    """
    paths = manifest.frame["path"]
    files = bool(len(paths)) and paths.nunique() == len(paths)
    rows = np.unique(np.linspace(0, len(paths) - 1, MOST if files else MOST_DRAWN).astype(int))
    found = [size for row in rows if (size := _size(source, manifest, int(row), files)) is not None]
    if not found:
        return None
    table = pd.DataFrame(found, columns=["width", "height"]).value_counts().rename("images").reset_index()
    return Sizes(table, len(found), len(paths))


def dark_corners(images: npt.NDArray[np.uint8]) -> float:
    """Share of images that are black in all four corners, in [0, 1].

    Args:
        images: Whole frames, uint8 (N, S, S, 3); N over 0.
    """
    side = max(1, images.shape[1] // 8)
    ends = (slice(None, side), slice(-side, None))
    brightness = [images[:, rows, columns].mean(axis=(1, 2, 3)) for rows in ends for columns in ends]
    return float((np.max(brightness, axis=0) < BLACK).mean())


def _size(source: Source, manifest: Manifest, row: int, is_file: bool) -> tuple[int, int] | None:
    """Width and height; of a file from its header. What cannot be read is told by the cache."""
    try:
        if not is_file:
            return source.picture(manifest, row).size
        with Image.open(str(manifest.frame.at[row, "path"])) as image:
            return image.size
    except (OSError, UnidentifiedImageError):
        return None


def told(own: Sizes | None, external: Sizes | None, image_size: int, trained: str, now: str) -> list[str]:
    """What the net was trained on, what it is shown here, and what that does to the pictures.

    Args:
        own: Sizes of the training data's pictures, if they are known.
        external: Of the external ones.
        image_size: Side of the net's input, px.
        trained: The geometry of training: squash, center_crop or pad.
        now: The geometry here.
    """
    own_text = own.text if own else "of sizes that are not known here"
    lines = [
        f"Trained at {image_size} px, geometry {trained}, on pictures {own_text}.",
        f"Shown here at {image_size} px, geometry {now}, pictures {external.text if external else 'of unknown sizes'}.",
    ]
    if now != trained:
        lines.append(f"The geometry differs from the training's ({now} here, {trained} there).")
    if own and external and abs(own.shape / external.shape - 1) > SAME_SHAPE:
        squashed = " (or they were squashed before, which the files do not tell)" if external.shape == 1 else ""
        lines.append(
            f"The shapes differ: width/height {own.shape:.2f} in training, {external.shape:.2f} here{squashed}; "
            "a squashed lesion has another outline."
        )
    if external and external.shortest < image_size:
        lines.append(f"Pictures smaller than {image_size} px are enlarged, to a sharpness the net has not seen.")
    return lines
