"""What the fixtures give: a tiny exported net, a trial of two tiny nets, small pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from src.deployment.description import Decision
from src.models.custom import CustomCNN
from src.tracking.store import Store

CLASSES = ("bkl", "mel", "nv")
CODES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")  # of the recorded runs
SIZE = 16
MEAN, STD = (0.7, 0.5, 0.4), (0.2, 0.25, 0.3)
Typed = Callable[..., tuple[int, str]]


@dataclass(frozen=True)
class Exported:
    """An exported net, and the net itself."""

    path: Path
    net: CustomCNN
    decision: Decision


@dataclass(frozen=True)
class Place:
    """A folder with a store that holds a trial of two seeds.

    Attributes:
        folder: With mlruns/.
        seeds: Ids of the seeds' runs.
        trial: Above both.
    """

    folder: Path
    seeds: tuple[str, str]
    trial: str

    @property
    def store(self) -> Store:
        return Store(folder=self.folder / "mlruns")


def written(folder: Path, names: list[str]) -> None:
    """Pictures of which no two are alike."""
    for number, name in enumerate(names):
        coarse = np.random.default_rng(number).integers(0, 256, (5, 5, 3), np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((40 + number % 7, 30), Image.Resampling.BICUBIC).save(
            folder / name
        )
