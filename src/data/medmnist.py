"""MedMNIST files, such as DermaMNIST at 28, 64, 128 and 224 px."""

import threading
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from src.core.errors import DataError
from src.data import ham10000
from src.data.source import SPLITS, FolderSource, Manifest


@dataclass(eq=False)
class MedMNIST(FolderSource):
    """A two-dimensional MedMNIST set with one label per image, or an `.npz` file of the same form.

    The file holds `train_images`, `train_labels`, `val_images` and so on: uint8 (N, S, S) or
    (N, S, S, 3), and integers from 0, (N,) or (N, 1). The column `split` is the official split.
    Every image is a group: DermaMNIST is HAM10000, and its official split has lesions on two
    sides. Yang et al., Scientific Data 10:41, 2023.

    Attributes:
        root: The folder of `<flag>.npz` (28 px) or `<flag>_<size>.npz`; or an `.npz` file.
        flag: MedMNIST's name of the set.
        size: Side of the stored images, px.
    """

    flag: str = "dermamnist"
    size: Literal[28, 64, 128, 224] = 28

    name = "medmnist"
    title = "MedMNIST"

    def __post_init__(self) -> None:
        self.name = self.fetch_name = self.flag
        self._arrays: dict[str, npt.NDArray[np.uint8]] = {}
        self._lock = threading.Lock()

    @classmethod
    def licence_of(cls, settings: Mapping[str, Any]) -> str:
        """DermaMNIST is HAM10000; the licences of the other sets are unknown here."""
        return ham10000.LICENCE if settings.get("flag", "dermamnist") == "dermamnist" else ""

    def manifest(self) -> Manifest:
        """Read the labels; `position` is the index of an image in the array of its split."""
        path = self._file()
        labels = {split: pd.Series(_labels(path, split)) for split in SPLITS}
        frame = pd.concat(labels, names=["split", "position"]).rename("label").reset_index()
        if frame.empty:
            raise DataError("holds no image; fetch the file again", path)
        names = frame["split"] + "_" + frame["position"].astype("str").str.zfill(6)
        frame = frame.assign(path=str(path), image_id=names, group=names)
        largest = int(frame["label"].max())
        classes = tuple(f"class_{label}" for label in range(largest + 1))
        if self.flag == "dermamnist":
            classes = ham10000.CLASSES
        if largest >= len(classes):
            expected = f"{self.flag} has labels 0 to {len(classes) - 1}"
            raise DataError(f"unknown label {largest}; {expected}", path)
        return self.assemble(classes, frame, "image", path)

    def picture(self, manifest: Manifest, row: int) -> Image.Image:
        """One stored image as RGB. The first call reads the array of its split into memory.

        Raises:
            DataError: The array of images is invalid.
        """
        split = str(manifest.frame.at[row, "split"])
        with self._lock:
            if split not in self._arrays:
                self._arrays[split] = _images(self._file(), split)
        position = manifest.frame["position"].to_numpy()[row]
        return Image.fromarray(self._arrays[split][position]).convert("RGB")

    def _file(self) -> Path:
        path = Path(self.root).expanduser().absolute()
        if path.suffix != ".npz":
            path = self.folder() / f"{self.flag}{'' if self.size == 28 else f'_{self.size}'}.npz"
        if not path.is_file():
            raise DataError(
                "this file is missing; set data.root= to the folder that holds it or to the file, "
                f"or fetch it with: python -m src.data.fetch name={self.flag}",
                path,
            )
        return path


def _labels(path: Path, split: str) -> npt.NDArray[np.int64]:
    array = _array(path, f"{split}_labels")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or array.min(initial=0) < 0:
        raise DataError(
            f"{split}_labels must be one whole number from 0 for each image, but is {array.dtype} "
            f"{array.shape}; take a set with one label per image",
            path,
        )
    return array.astype(np.int64)


def _images(path: Path, split: str) -> npt.NDArray[np.uint8]:
    array, count = _array(path, f"{split}_images"), len(_labels(path, split))
    flat = array.ndim == 3 or (array.ndim == 4 and array.shape[-1] == 3)
    if not flat or array.dtype != np.uint8 or len(array) != count:
        raise DataError(
            f"{split}_images must be uint8 (N, S, S) or (N, S, S, 3) with N = {count}, "
            f"but is {array.dtype} {array.shape}; take a two-dimensional set",
            path,
        )
    return array


def _array(path: Path, name: str) -> np.ndarray:
    problem = "cannot be read as an .npz file of plain arrays"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if name in arrays:
                return arrays[name]
            problem = f"has no array {name!r}, only {', '.join(arrays.files)}"
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{problem} ({error}); fetch it again", path) from error
    raise DataError(f"{problem}; fetch the file again", path)
