"""Decoded, resized, memory-mapped pictures."""
from PIL import Image
from collections import deque
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from filelock import FileLock
from filelock import Timeout
from pathlib import Path
from src.core.errors import DataError
from src.core.errors import UserError
from src.data.source import Manifest
from src.data.source import Source
from tqdm import tqdm
from typing import BinaryIO
from typing import Literal
import copy
import errno
import hashlib
import json
import logging
import numpy as np
import numpy.typing as npt
import os
import pandas as pd
import shutil
import struct
import sys


Geometry = Literal["squash", "center_crop", "pad"]
PAD_COLOUR = (0, 0, 0)


def square(image: Image.Image, size: int, geometry: Geometry) -> npt.NDArray[np.uint8]:
    """Resize to a square, with Pillow's bilinear filter, which averages over all covered pixels when it shrinks.

    Args:
        image: Upright RGB picture.
        size: Side of the square, px.
        geometry: "squash" shrinks each side by its own factor, so that nothing is lost and shapes
            are distorted; "center_crop" takes the largest square in the middle; "pad" keeps all and
            the shapes, with black bars.

    Returns:
        uint8 (size, size, 3).
    """
    width, height = image.size
    if geometry == "squash":
        resized = image.resize((size, size), Image.Resampling.BILINEAR)
    elif geometry == "center_crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        # Cut first: resize(box=...) would let pixels beyond the box into the rim.
        middle = image.crop((left, top, left + side, top + side))
        resized = middle.resize((size, size), Image.Resampling.BILINEAR)
    else:
        scale = size / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        resized = Image.new("RGB", (size, size), PAD_COLOUR)
        corner = ((size - inner[0]) // 2, (size - inner[1]) // 2)
        resized.paste(image.resize(inner, Image.Resampling.BILINEAR), corner)
    return np.asarray(resized)


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
        SHA-256 of the file, and row and reason of the pictures that cannot be read: those are left
        out.

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


log = logging.getLogger(__name__)
FORMAT_VERSION = 1  # raise it when the same files shall give other pixels
_PIXELS = "pixels.bin"
_RECORD = "cache.json"
_SHOWN = 5


@dataclass(frozen=True)
class ImageCache:
    """The pictures of a data set as squares.

    Attributes:
        images: uint8 (N, S, S, 3), RGB, read-only, memory-mapped (pickling it copies it).
        frame: Rows of the manifest whose pictures could be read, in the order of `images`, with a
            RangeIndex.
        unreadable: Path and reason of the others.
        fingerprint: SHA-256 over image ids, class names, groups and pixels of `frame`: the same
            wherever these are.
    """

    images: np.memmap
    frame: pd.DataFrame
    unreadable: list[tuple[str, str]]
    fingerprint: str


@dataclass(frozen=True)
class _Record:
    """What is stored beside the pixels."""

    key: str
    pixel_digest: str
    unreadable: list[tuple[int, str]]  # row in the manifest, reason


def load(
    source: Source,
    manifest: Manifest,
    image_size: int,
    geometry: Geometry,
    folder: Path,
    on_unreadable: Literal["error", "skip"] = "error",
    workers: int | None = None,
) -> ImageCache:
    """Open the cache of these pictures, building it first if there is none.

    It is kept under a key of data set, image ids, sizes and times of the files, image size and
    geometry. One process builds while others wait; a builder that is killed leaves nothing that is
    taken for a cache.

    Args:
        source: Makes the pictures.
        manifest: Which pictures.
        image_size: Side of the square S, px.
        geometry: How a picture becomes a square.
        folder: Where caches are kept.
        on_unreadable: "error" raises if any picture cannot be read; "skip" leaves those out.
        workers: Decoding threads; as many as there are processors when None.

    Raises:
        DataError: Pictures cannot be read and shall not be left out, or too few are left.
        UserError: The folder cannot be written, for example because the disk is full.
    """
    key = _key(source, manifest, image_size, geometry)
    place = folder.absolute() / f"{manifest.source}-{image_size}-{geometry}-{key[:16]}"
    with _writing_to(folder), _lock(place):
        record = _read_record(place, key, len(manifest.frame), image_size)
        if record is None or _mended(record, source, manifest):
            record = _build(source, manifest, image_size, geometry, place, key, workers or os.cpu_count() or 1)
        frame, unreadable = _readable(manifest, record)
        listing = place.with_name(f"{place.name}.unreadable.txt")
        _write_listing(listing, unreadable)
        _check_unreadable(manifest, frame, unreadable, listing, on_unreadable)
        shape = (len(frame), image_size, image_size, 3)
        images = np.memmap(place / _PIXELS, dtype=np.uint8, mode="r", shape=shape)
    return ImageCache(images, frame, unreadable, _fingerprint(manifest.classes, frame, record.pixel_digest))


def _key(source: Source, manifest: Manifest, image_size: int, geometry: Geometry) -> str:
    ids = manifest.frame["image_id"].tolist()
    parts = [FORMAT_VERSION, manifest.source, image_size, geometry, ids, source.stamps(manifest)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _fingerprint(classes: tuple[str, ...], frame: pd.DataFrame, pixel_digest: str) -> str:
    names = [classes[label] for label in frame["label"]]
    parts = [frame["image_id"].tolist(), names, frame["group"].tolist(), pixel_digest]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Say in one line what went wrong when the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{folder.absolute()}: the cache of decoded images cannot be kept here ({reason}); "
            "make room, or set data.cache_dir= to another folder"
        ) from error


@contextmanager
def _lock(place: Path) -> Iterator[None]:
    """One process at a time; the system frees the lock of a process that dies."""
    lock = FileLock(place.with_name(f".{place.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process is at work on %s: waiting for it", place)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _read_record(place: Path, key: str, n_images: int, image_size: int) -> _Record | None:
    """The record of a complete cache, None if there is none or it is damaged."""
    try:
        stored = json.loads((place / _RECORD).read_text())
        record = _Record(stored["key"], stored["pixel_digest"], [(row, reason) for row, reason in stored["unreadable"]])
        size = (place / _PIXELS).stat().st_size
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        log.warning("%s is damaged and is built anew", place)
        return None
    if record.key != key or size != (n_images - len(record.unreadable)) * image_size**2 * 3:
        log.warning("%s is damaged and is built anew", place)
        return None
    return record


def _mended(record: _Record, source: Source, manifest: Manifest) -> bool:
    """Whether a picture that could not be read now can: a disk that came back, a permission that was given."""
    return any(_reason(source, manifest, row) is None for row, _ in record.unreadable)


def _reason(source: Source, manifest: Manifest, row: int) -> str | None:
    decoded = decode(source, manifest, row, 1, "squash")
    return decoded if isinstance(decoded, str) else None


def _build(
    source: Source, manifest: Manifest, image_size: int, geometry: Geometry, place: Path, key: str, workers: int
) -> _Record:
    """Decode everything into a temporary folder, and give it its name once it is safely on the disk."""
    temporary = place.with_name(f"{place.name}.building")
    for leftover in (temporary, place):
        if leftover.exists():
            shutil.rmtree(leftover)
    builder = copy.copy(source)  # what it loads to make pictures goes when the cache is built
    try:
        temporary.mkdir()
        digest, unreadable = write_squares(builder, manifest, image_size, geometry, temporary / _PIXELS, workers)
        record = _Record(key, digest, unreadable)
        with (temporary / _RECORD).open("w") as file:
            json.dump(record.__dict__, file)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(temporary)
        temporary.replace(place)
        _sync_folder(place.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return record


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _readable(manifest: Manifest, record: _Record) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """The rows that have a picture, and path and reason of those that have none."""
    frame = manifest.frame
    names = frame["path"].where(frame["path"] != "", frame["image_id"])
    unreadable = [(names[row], reason) for row, reason in record.unreadable]
    return frame.drop(index=[row for row, _ in record.unreadable]).reset_index(drop=True), unreadable


def _write_listing(path: Path, unreadable: list[tuple[str, str]]) -> None:
    if not unreadable:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text("".join(f"{image}\t{reason}\n" for image, reason in unreadable))
    temporary.replace(path)


def _check_unreadable(
    manifest: Manifest,
    frame: pd.DataFrame,
    unreadable: list[tuple[str, str]],
    listing: Path,
    on_unreadable: Literal["error", "skip"],
) -> None:
    if not unreadable:
        return
    shown = ", ".join(f"{image} ({reason})" for image, reason in unreadable[:_SHOWN])
    count = f"{len(unreadable)} of {len(manifest.frame)} images of {manifest.source} cannot be read"
    if on_unreadable == "error":
        rest = ", ..." if len(unreadable) > _SHOWN else ""
        raise DataError(
            f"{count}: {shown}{rest}; all of them are listed in {listing}: mend them, "
            "or leave them out with data.on_unreadable=skip"
        )
    lost = [name for label, name in enumerate(manifest.classes) if label not in set(frame["label"])]
    if lost:
        raise DataError(f"{count}, and none is left of {', '.join(lost)}; they are listed in {listing}: mend them")
    log.warning("%s and are left out; they are listed in %s", count, listing)
