"""The pictures that a prediction is asked for: a file, a folder with its subfolders, or those that a CSV lists."""

import os
import stat
import unicodedata
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from src.core.errors import ConfigError, DataError
from src.core.files import expanded
from src.data.cache import Geometry, decode
from src.data.source import IMAGE_SUFFIXES, Manifest, Source, image_names, read_csv

UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # Unicode's: controls, halves of pairs, separators of lines
COLUMNS = ("path", "image")  # of a CSV, the first that it has


@dataclass(frozen=True)
class Batch:
    """Some of the pictures, one after the other in the order of the input.

    Attributes:
        rows: Their numbers in the listing.
        squares: Of those that could be read, uint8 (M, S, S, 3).
        problems: A reason for each of `rows`; empty where the picture could be read.
    """

    rows: range
    squares: npt.NDArray[np.uint8]
    problems: tuple[str, ...]

    @property
    def readable(self) -> list[int]:
        """Places within `rows` of `squares`."""
        return [place for place, problem in enumerate(self.problems) if not problem]


class ImageInput(Source):
    """Pictures of which nothing is known but where they are; they are decoded as those that nets are trained on.

    Args:
        given: A picture, a folder or a CSV, which is there.
    """

    name = "input"

    def __init__(self, given: Path) -> None:
        self.given = given

    @property
    def single(self) -> bool:
        """Whether one picture is named, and no list of them."""
        return not self.given.is_dir() and self.given.suffix.lower() != ".csv"

    def manifest(self) -> Manifest:
        """List them: `image_id`, which is the name that is shown and may stand twice in a CSV, and `path`.

        Raises:
            ConfigError: The folder has no picture.
            DataError: The CSV has no such column, or cannot be read.
        """
        if self.single:
            named = [(self.given.name, self.given)]
        elif self.given.is_dir():
            named = [(str(path.relative_to(self.given)), path) for path in _below(self.given)]
            if not named:
                suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
                raise ConfigError(
                    "input", f"{self.given} has no picture in it or below it ({suffixes})"
                )
        else:
            named = [(text, self.given.parent / expanded(text)) for text in _listed(self.given)]
        rows = [(_printable(name), str(path)) for name, path in named]
        frame = pd.DataFrame(
            rows, columns=["image_id", "path"], dtype=object
        )  # a path may hold what is no text
        return Manifest(self.name, (), frame, "image")

    def picture(self, manifest: Manifest, row: int) -> Image.Image:
        """Decode one, see `src.data.source.Source`; a pipe or device is refused: reading it might never end."""
        if not stat.S_ISREG(Path(str(manifest.frame.at[row, "path"])).stat().st_mode):
            raise OSError("not a file")
        return super().picture(manifest, row)

    def batches(
        self, manifest: Manifest, size: int, image_size: int, geometry: Geometry, workers: int
    ) -> Iterator[Batch]:
        """Decode them in threads, one batch ahead of the one that is worked on; no more are in memory.

        Args:
            manifest: Of these pictures.
            size: Pictures a batch.
            image_size: Side of the square S, px.
            geometry: How a picture becomes a square.
            workers: Threads.
        """
        total = len(manifest.frame)
        ahead: deque[tuple[range, list[Future[npt.NDArray[np.uint8] | str]]]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            try:
                for start in range(0, total, size):
                    rows = range(start, min(start + size, total))
                    work = [
                        pool.submit(decode, self, manifest, row, image_size, geometry)
                        for row in rows
                    ]
                    ahead.append((rows, work))
                    if len(ahead) > 1:
                        yield _batch(*ahead.popleft(), image_size)
                while ahead:
                    yield _batch(*ahead.popleft(), image_size)
            finally:
                pool.shutdown(cancel_futures=True)  # where the caller has broken off


def _batch(rows: range, work: list[Future[npt.NDArray[np.uint8] | str]], image_size: int) -> Batch:
    found = [each.result() for each in work]
    squares = [each for each in found if not isinstance(each, str)]
    stacked = (
        np.stack(squares) if squares else np.empty((0, image_size, image_size, 3), dtype=np.uint8)
    )
    return Batch(rows, stacked, tuple(each if isinstance(each, str) else "" for each in found))


def _below(folder: Path) -> list[Path]:
    """The pictures of a folder and its subfolders, sorted; hidden ones, and folders behind links, are left out."""
    found = []
    for place, folders, _ in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in image_names(Path(place))]
    return sorted(path for path in found if not path.is_dir())


def _refuse(error: OSError) -> None:
    raise DataError(
        f"this folder cannot be listed ({error.strerror}); mend it, or name another", error.filename
    )


def _listed(csv: Path) -> list[str]:
    """The paths as they stand in the file."""
    header = list(read_csv(csv, []).columns)
    column = next((name for name in COLUMNS if name in header), None)
    if column is None:
        has = ", ".join(map(str, header))
        raise DataError(
            f"has no column {COLUMNS[0]!r} (or {COLUMNS[1]!r}), only {has}; add it", csv
        )
    return [str(text) for text in read_csv(csv, [column])[column]]


def _printable(name: str) -> str:
    """A file's name may hold bytes that are no text, or commands to a terminal; they are shown as numbers."""
    return "".join(
        each.encode("unicode_escape").decode()
        if unicodedata.category(each) in UNPRINTABLE
        else each
        for each in name
    )
