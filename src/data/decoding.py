"""Pictures to squares, in parallel; those that cannot be read are told, not raised."""

import errno
import hashlib
import os
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from src.data.geometry import Geometry, square
from src.data.source import Manifest, Source

_Square = npt.NDArray[np.uint8] | str  # or why there is none

# What Pillow raises for files that are absent, truncated, no image, or too large to be one.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def decode(source: Source, manifest: Manifest, row: int, image_size: int, geometry: Geometry) -> _Square:
    """The square of one row, uint8 (S, S, 3), or the reason why there is none."""
    try:
        return square(source.picture(manifest, row), image_size, geometry)
    except FileNotFoundError:
        return "absent"
    except Image.UnidentifiedImageError:
        return "not an image"
    except _DECODING_ERRORS as error:
        return " ".join(str(error).split()) or type(error).__name__


def write_squares(
    source: Source, manifest: Manifest, image_size: int, geometry: Geometry, path: Path, workers: int
) -> tuple[str, list[tuple[int, str]]]:
    """Decode all pictures in threads, with a progress bar; write the squares to a file, in order and without gaps.

    Args:
        source: Makes the pictures.
        manifest: Which pictures.
        image_size: Side of the square S, px.
        geometry: How a picture becomes a square.
        path: The file, raw uint8 (N, S, S, 3).
        workers: Threads.

    Returns:
        SHA-256 of the file, and row and reason of the pictures that cannot be read: those are left out.

    Raises:
        OSError: The file cannot be written.
    """

    def work(row: int) -> _Square:
        return decode(source, manifest, row, image_size, geometry)

    n_images = len(manifest.frame)
    label = f"decoding {manifest.source} to {image_size} px"
    digest = hashlib.sha256()
    unreadable: list[tuple[int, str]] = []
    with (
        path.open("wb") as file,
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=n_images, desc=label, unit="image", file=sys.stderr, mininterval=0.5) as bar,
    ):
        _reserve(file, n_images * image_size**2 * 3)
        for row, result in enumerate(_in_order(pool, work, range(n_images), ahead=16 * workers)):
            if isinstance(result, str):
                unreadable.append((row, result))
            else:
                pixels = result.tobytes()
                file.write(pixels)
                digest.update(pixels)
            bar.update()
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest(), unreadable


def _reserve(file: BinaryIO, size: int) -> None:
    """Have a full disk fail at once instead of after minutes of decoding, where the system can tell."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], _Square], rows: Iterable[int], ahead: int
) -> Iterator[_Square]:
    """Results of parallel work in the order of the rows, with at most `ahead` of them in memory."""
    pending: deque[Future[_Square]] = deque()
    for row in rows:
        pending.append(pool.submit(work, row))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
