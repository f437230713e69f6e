"""Data sets of made-up pictures, and the data module of one."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from src.data.module import DataModule
from src.data.source import Manifest, Source


class Made(Source):
    """`paint(row)` gives the picture of a row, uint8 (S, S, 3).

    Equal stamps say that the pictures have not changed since they were cached.
    """

    name = "made"

    def __init__(
        self,
        paint: Callable[[int], np.ndarray],
        labels: np.ndarray,
        groups: np.ndarray,
        stamp: object = "",
        prefix: str = "i",
        classes: Sequence[str] = ("a", "b"),
        grouped_by: str = "lesion",
    ) -> None:
        self.paint, self.stamp = paint, stamp
        ids = [f"{prefix}{row:03d}" for row in range(len(labels))]
        names = [f"g{number:03d}" for number in groups]
        frame = pd.DataFrame({"image_id": ids, "label": labels, "group": names, "path": ""})
        self.listed = Manifest(self.name, tuple(classes), frame, grouped_by)

    def manifest(self) -> Manifest:
        return self.listed

    def picture(self, manifest: Manifest, row: int) -> Image.Image:
        return Image.fromarray(self.paint(row))

    def stamps(self, manifest: Manifest) -> list[str]:
        return [f"{self.stamp} {row}" for row in range(len(manifest.frame))]


def noise(size: int, *seed: int) -> np.ndarray:
    """A square without any symmetry."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def prepared(source: Source, folder: Path, **changes: object) -> DataModule:
    """A module with pictures of 8 px and a cache in `folder`."""
    settings: dict[str, object] = {
        **{"name": "made", "source": source, "image_size": 8, "geometry": "squash"},
        **{"split": "grouped", "fractions": [0.6, 0.2, 0.2], "split_seed": 0},
        **{"oversample": None, "on_unreadable": "error", "batch_size": 16},
        "cache_dir": str(folder),
    }
    return DataModule(**settings | changes).prepare()  # type: ignore[arg-type]
