"""The pictures of a prediction: a file, a folder with its subfolders, or the rows of a CSV."""

import functools
import logging
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from src.core.errors import ConfigError, DataError
from src.core.files import expanded
from src.data.cache import decode
from src.data.decoding import Geometry
from src.data.source import IMAGE_SUFFIXES, Manifest, Source, image_names, read_csv

# Unicode categories of control characters, lone surrogates and line separators.
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
log = logging.getLogger(__name__)
COLUMNS = ("path", "image")  # of a CSV; the first one that it has


class ImageInput(Source):
    """Pictures without labels, decoded as in training.

    Args:
        path: An existing picture, folder or CSV.
    """

    name = "input"

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def single(self) -> bool:
        """Whether the input is one picture and not a list of pictures."""
        return not self.path.is_dir() and self.path.suffix.lower() != ".csv"

    def manifest(self) -> Manifest:
        """List the pictures: `image_id`, a printable name that need not be unique, and `path`.

        Raises:
            ConfigError: The folder has no picture.
            DataError: The CSV cannot be read or lacks the column; the folder cannot be listed.
        """
        if self.single:
            named = [(self.path.name, self.path)]
        elif self.path.is_dir():
            named = [(str(path.relative_to(self.path)), path) for path in _pictures(self.path)]
            if not named:
                suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
                problem = f"{self.path} has no picture in it or below it ({suffixes})"
                raise ConfigError("input", problem)
        else:
            header = list(map(str, read_csv(self.path, []).columns))
            column = next((name for name in COLUMNS if name in header), None)
            if column is None:
                missing = f"has no column {COLUMNS[0]!r} (or {COLUMNS[1]!r})"
                raise DataError(f"{missing}, only {', '.join(header)}; add it", self.path)
            names = map(str, read_csv(self.path, [column])[column])
            named = [(name, self.path.parent / expanded(name)) for name in names]
        rows = [(_printable(name), str(path)) for name, path in named]
        # dtype object: a path may contain bytes that are not text
        frame = pd.DataFrame(rows, columns=["image_id", "path"], dtype=object)
        return Manifest(self.name, (), frame, "image")

    def picture(self, manifest: Manifest, row: int) -> Image.Image:
        """Decode one picture; a pipe or device is refused, because reading it may never end."""
        if not stat.S_ISREG(Path(str(manifest.frame.at[row, "path"])).stat().st_mode):
            raise OSError("not a file")
        return super().picture(manifest, row)

    def batches(
        self, manifest: Manifest, size: int, image_size: int, geometry: Geometry, workers: int
    ) -> Iterator[tuple[list[int], npt.NDArray[np.uint8], dict[int, str]]]:
        """Decode `size` pictures at a time in threads, one batch ahead.

        At most two batches are in memory. S is `image_size`, px.

        Yields:
            Rows of the manifest that could be read, in order; their squares, uint8 (M, S, S, 3);
            other rows of the batch -> why they could not be read.
        """
        total = len(manifest.frame)
        batches = [range(start, min(start + size, total)) for start in range(0, total, size)]
        one = functools.partial(decode, self, manifest, image_size=image_size, geometry=geometry)
        with ThreadPoolExecutor(workers) as pool:
            jobs = (pool.map(one, rows) for rows in batches)
            try:
                # a batch is submitted before the one in front of it is taken
                pairs = pairwise(chain(jobs, [iter(())]))
                for rows, (results, _) in zip(batches, pairs, strict=True):
                    decoded = dict(zip(rows, results, strict=True))
                    problems = {row: item for row, item in decoded.items() if isinstance(item, str)}
                    readable = [row for row in decoded if row not in problems]
                    squares = np.array([decoded[row] for row in readable], dtype=np.uint8)
                    shape = (len(readable), image_size, image_size, 3)
                    yield readable, squares.reshape(shape), problems
            finally:
                pool.shutdown(cancel_futures=True)  # the caller may have stopped early


def _pictures(folder: Path) -> list[Path]:
    """Pictures in a folder and its subfolders, sorted, without hidden ones and linked folders.

    Pictures of other formats that Pillow opens are counted in a warning.
    """
    formats = Image.registered_extensions().items()
    others = {suffix for suffix, name in formats if name in Image.OPEN} - IMAGE_SUFFIXES

    def refuse(error: OSError) -> None:
        problem = f"this folder cannot be listed ({error.strerror}); mend it, or name another"
        raise DataError(problem, error.filename)

    paths: list[Path] = []
    skipped: list[str] = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(parent, name) for name in image_names(Path(parent))]
        skipped += [Path(name).suffix.lower() for name in files if not name.startswith(".")]
    if counts := Counter(suffix for suffix in skipped if suffix in others):
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
        log.warning("%s: not read: %s; name them singly, or convert them", folder, kinds)
    return sorted(path for path in paths if not path.is_dir())


def _printable(name: str) -> str:
    """Escape control characters, which a terminal may execute, and bytes that are not text."""
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in UNPRINTABLE
        else letter
        for letter in name
    )
