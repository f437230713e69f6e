"""Cache of decoded images: resized to squares, memory-mapped, shared by all runs."""

import copy
import errno
import hashlib
import json
import logging
import os
import shutil
import struct
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from src.core.errors import DataError, UserError
from src.core.files import atomic_file
from src.data.source import Manifest, Source

log = logging.getLogger(__name__)
Geometry = Literal["squash", "center_crop", "pad"]
PAD_COLOUR = (0, 0, 0)
FORMAT_VERSION = 1  # increase it when the same files give other pixels
_PIXELS = "pixels.bin"
_RECORD = "cache.json"
_MOST_SHOWN = 5
# What Pillow raises for files that are truncated, not an image, or too large to be one.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class ImageCache:
    """The images of a data set as squares.

    Attributes:
        images: uint8 (N, S, S, 3), RGB, read-only, memory-mapped (pickling it copies it).
        frame: Rows of the manifest whose images could be read, in the order of `images`, with a
            RangeIndex.
        unreadable: Path and reason of the other images.
        fingerprint: SHA-256 of image ids, class names, groups and pixels of `frame`; independent
            of the folders.
    """

    images: np.memmap
    frame: pd.DataFrame
    unreadable: list[tuple[str, str]]
    fingerprint: str


def square(image: Image.Image, size: int, geometry: Geometry) -> npt.NDArray[np.uint8]:
    """Resize to a square with Pillow's bilinear filter, which is antialiased.

    Args:
        image: Upright RGB image.
        size: Side of the square, px.
        geometry: "squash" scales both sides separately: nothing is lost, shapes are distorted;
            "center_crop" takes the largest square in the middle; "pad" keeps the whole image and
            its shapes, with black bars.

    Returns:
        uint8 (size, size, 3).
    """
    bilinear = Image.Resampling.BILINEAR
    width, height = image.size
    if geometry == "squash":
        return np.asarray(image.resize((size, size), bilinear))
    if geometry == "center_crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        # Crop first: resize(box=...) would mix pixels from outside the box into the border.
        middle = image.crop((left, top, left + side, top + side))
        return np.asarray(middle.resize((size, size), bilinear))
    scale = size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    padded = Image.new("RGB", (size, size), PAD_COLOUR)
    padded.paste(image.resize(inner, bilinear), ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return np.asarray(padded)


def decode(
    source: Source, manifest: Manifest, row: int, image_size: int, geometry: Geometry
) -> npt.NDArray[np.uint8] | str:
    """The square of one row, uint8 (S, S, 3), or the reason why the image is unreadable."""
    try:
        return square(source.picture(manifest, row), image_size, geometry)
    except FileNotFoundError:
        return "absent"
    except Image.UnidentifiedImageError:
        return "not an image"
    except _DECODING_ERRORS as error:
        return " ".join(str(error).split()) or type(error).__name__


def load(
    source: Source,
    manifest: Manifest,
    image_size: int,
    geometry: Geometry,
    folder: Path,
    on_unreadable: Literal["error", "skip"] = "error",
    workers: int | None = None,
) -> ImageCache:
    """Open the cache of these images; build it first if there is none.

    The key of a cache consists of data set, image ids, sizes and times of the files, image size
    and geometry. One process builds while others wait; a builder that is killed leaves nothing
    that is taken for a cache.

    Args:
        source: Decodes the images.
        manifest: Lists the images.
        image_size: Side of the square S, px.
        geometry: How an image becomes a square.
        folder: Folder of all caches.
        on_unreadable: "error" raises if an image is unreadable; "skip" leaves such images out.
        workers: Decoding threads; None means one per processor.

    Raises:
        DataError: Images are unreadable and must not be skipped, or a class has no image left.
        UserError: The folder cannot be written, for example because the disk is full.
    """
    stamps = source.stamps(manifest)
    ids = manifest.frame["image_id"].tolist()
    key = _digest([FORMAT_VERSION, manifest.source, image_size, geometry, ids, stamps])
    entry = folder.absolute() / f"{manifest.source}-{image_size}-{geometry}-{key[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(entry):
            record = _read_record(entry, key, len(ids), image_size)
            if (
                record is None
                or any(  # an image may be readable now, such as after a disk came back
                    not isinstance(decode(source, manifest, row, 1, "squash"), str)
                    for row, _ in record["unreadable"]
                )
            ):
                record = _build(
                    source,
                    manifest,
                    image_size,
                    geometry,
                    entry,
                    key,
                    workers or os.cpu_count() or 1,
                )
            paths = manifest.frame["path"]
            names = paths.where(paths != "", manifest.frame["image_id"])
            unreadable = [(names[row], reason) for row, reason in record["unreadable"]]
            skipped = [row for row, _ in record["unreadable"]]
            frame = manifest.frame.drop(index=skipped).reset_index(drop=True)
            listing = entry.with_name(f"{entry.name}.unreadable.txt")
            _report_unreadable(manifest, frame, unreadable, listing, on_unreadable)
            shape = (len(frame), image_size, image_size, 3)
            images = np.memmap(entry / _PIXELS, dtype=np.uint8, mode="r", shape=shape)
    except OSError as error:
        raise UserError(
            f"{folder.absolute()}: the cache of decoded images cannot be kept here "
            f"({error.strerror or error}); make room, or set data.cache_dir= to another folder"
        ) from error
    labels = [manifest.classes[label] for label in frame["label"]]
    parts = [frame["image_id"].tolist(), labels, frame["group"].tolist(), record["pixel_digest"]]
    return ImageCache(images, frame, unreadable, _digest(parts))


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@contextmanager
def _lock(entry: Path) -> Iterator[None]:
    """One process at a time; the system releases the lock of a process that dies."""
    lock = FileLock(entry.with_name(f".{entry.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that builds %s", entry)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _read_record(entry: Path, key: str, n_images: int, image_size: int) -> dict[str, Any] | None:
    """The record of a complete cache; None if there is none or it is damaged."""
    try:
        record: dict[str, Any] = json.loads((entry / _RECORD).read_text())
        size = (n_images - len(record["unreadable"])) * image_size**2 * 3
        intact = record["key"] == key and (entry / _PIXELS).stat().st_size == size
        intact = intact and isinstance(record["pixel_digest"], str)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        log.warning("%s is damaged and is rebuilt", entry)
    return record if intact else None


def _build(
    source: Source,
    manifest: Manifest,
    image_size: int,
    geometry: Geometry,
    entry: Path,
    key: str,
    workers: int,
) -> dict[str, Any]:
    """Decode all images into a temporary folder; rename it when it is safely on the disk."""
    draft = entry.with_name(f"{entry.name}.building")
    for leftover in (draft, entry):
        if leftover.exists():
            shutil.rmtree(leftover)
    reader = copy.copy(source)  # what it loads for decoding is freed when the cache is built

    def work(row: int) -> npt.NDArray[np.uint8] | str:
        return decode(reader, manifest, row, image_size, geometry)

    rows = len(manifest.frame)
    title = f"decoding {manifest.source} to {image_size} px"
    digest = hashlib.sha256()
    unreadable: list[tuple[int, str]] = []
    try:
        draft.mkdir()
        with (
            (draft / _PIXELS).open("wb") as file,
            ThreadPoolExecutor(workers) as pool,
            tqdm(total=rows, desc=title, unit="image", file=sys.stderr, mininterval=0.5) as bar,
        ):
            _reserve(file, rows * image_size**2 * 3)
            pending: deque[Future[npt.NDArray[np.uint8] | str]] = deque()
            ahead = 16 * workers  # bounds the number of decoded images in memory
            for row in range(rows + ahead):
                if row < rows:
                    pending.append(pool.submit(work, row))
                if row < ahead:
                    continue
                image = pending.popleft().result()
                if isinstance(image, str):
                    unreadable.append((row - ahead, image))
                else:
                    pixels = image.tobytes()
                    file.write(pixels)
                    digest.update(pixels)
                bar.update()
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        record = {"key": key, "pixel_digest": digest.hexdigest(), "unreadable": unreadable}
        with (draft / _RECORD).open("w") as file_of_record:
            json.dump(record, file_of_record)
            file_of_record.flush()
            os.fsync(file_of_record.fileno())
        _sync_folder(draft)
        draft.replace(entry)
        _sync_folder(entry.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return record


def _reserve(file: BinaryIO, size: int) -> None:
    """Fail on a full disk at once, not after minutes of decoding, where the system supports it."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _report_unreadable(
    manifest: Manifest,
    frame: pd.DataFrame,
    unreadable: list[tuple[str, str]],
    listing: Path,
    on_unreadable: Literal["error", "skip"],
) -> None:
    """Write the list of unreadable images; raise or warn as `load` says."""
    if not unreadable:
        listing.unlink(missing_ok=True)
        return
    with atomic_file(listing, "the list of unreadable images") as draft:
        draft.write_text("".join(f"{image}\t{reason}\n" for image, reason in unreadable))
    count = f"{len(unreadable)} of {len(manifest.frame)} images of {manifest.source} cannot be read"
    if on_unreadable == "error":
        shown = ", ".join(f"{image} ({reason})" for image, reason in unreadable[:_MOST_SHOWN])
        more = ", ..." if len(unreadable) > _MOST_SHOWN else ""
        raise DataError(
            f"{count}: {shown}{more}; all of them are listed in {listing}: repair them, "
            "or leave them out with data.on_unreadable=skip"
        )
    present = set(frame["label"])
    lost = [name for label, name in enumerate(manifest.classes) if label not in present]
    if lost:
        raise DataError(
            f"{count}, and none is left of {', '.join(lost)}; they are listed in {listing}: "
            "repair them"
        )
    log.warning("%s and are left out; they are listed in %s", count, listing)
