"""Cache of decoded images: resized to squares, memory-mapped, shared by all runs; its entries."""

import contextlib
import copy
import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
from src.data.decoding import DECODING_ERRORS, Geometry, crop_corners, shades_of_grey
from src.data.source import Manifest, Source

log = logging.getLogger(__name__)
OnUnreadable = Literal["error", "skip"]
PAD_COLOUR = (0, 0, 0)
FORMAT_VERSION = 4  # increase it when the same files give other pixels or files
VALUES = "values.bin"
_RECORD = "cache.json"
_VERIFIED = "verified.json"
_VERIFY_AFTER_S = 30 * 24 * 3600  # a disk may change bytes without changing the file's times
_SIMILAR = 4  # of 128 bits of two perceptual hashes may differ
_MOST_SHOWN = 5
_CHUNK = 32  # images per decoding thread that may be in memory at once


@dataclass(frozen=True)
class ImageCache:
    """The images of a data set as squares.

    Attributes:
        frame: Rows of the manifest whose images could be read, in the order of `images`, with a
            RangeIndex.
        fingerprint: SHA-256 of image ids, class names, groups and pixels of `frame`; independent
            of the folders.
    """

    images: npt.NDArray[np.uint8]  # (N, S, S, 3), RGB, memory-mapped (pickling it copies it)
    identical: npt.NDArray[np.int64]  # (N,) the first row with the same pixels
    similar: npt.NDArray[np.int64]  # (N,) the first row that looks alike, see `perceptual_hash`
    frame: pd.DataFrame
    unreadable: list[tuple[str, str]]  # path and reason of the other images
    fingerprint: str


def square(image: Image.Image, size: int, geometry: Geometry) -> npt.NDArray[np.uint8]:
    """Resize to a square with Pillow's bilinear filter, which is antialiased.

    Args:
        image: Upright RGB image.
        size: Side of the square, px.
        geometry: "squash" scales both sides separately: nothing is lost, shapes are distorted;
            "center_crop" takes the largest square in the middle; "pad" keeps the complete image
            and its shapes, with black bars. "+crop_corners" behind it cuts a dark rim before, and
            "+shades_of_grey" evens out the colour of the light after (`src.data.decoding`).

    Returns:
        uint8 (size, size, 3).
    """
    if geometry.endswith("+shades_of_grey"):
        return shades_of_grey(square(image, size, geometry.removesuffix("+shades_of_grey")))
    if geometry.endswith("+crop_corners"):
        return square(crop_corners(image), size, geometry.removesuffix("+crop_corners"))
    bilinear = Image.Resampling.BILINEAR
    width, height = image.size
    if geometry == "pad":
        scale = size / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        padded = Image.new("RGB", (size, size), PAD_COLOUR)
        corner = ((size - inner[0]) // 2, (size - inner[1]) // 2)
        padded.paste(image.resize(inner, bilinear), corner)
        return np.asarray(padded)
    if geometry == "center_crop":
        # Crop first: resize(box=...) would mix pixels from outside the box into the border.
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image.resize((size, size), bilinear))


def perceptual_hash(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """128 bits of an image (S, S, 3), as two numbers: where it brightens to the right, and down.

    Of 9 x 9 mean greys (dHash, N. Krawetz, "Kind of like that", 2013); copies of a picture that
    were scaled or compressed differ in few bits.
    """
    grey = Image.fromarray(image).convert("L").resize((9, 9), Image.Resampling.BOX)
    levels = np.asarray(grey)
    brighter = [levels[:8, 1:] > levels[:8, :-1], levels[1:, :8] > levels[:-1, :8]]
    return np.packbits(np.stack(brighter)).view(np.uint64)


def first_similar(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """For each perceptual hash, (N, 2), the first row that differs in at most `_SIMILAR` bits."""
    first = np.arange(len(hashes))
    for start in range(0, len(hashes), 64):
        rows = slice(start, start + 64)
        differ = np.bitwise_count(hashes[rows, None] ^ hashes[None, : start + 64]).sum(axis=-1)
        first[rows] = (differ <= _SIMILAR).argmax(axis=1)
    return first


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
    except DECODING_ERRORS as error:
        return " ".join(str(error).split()) or type(error).__name__


def load(
    source: Source,
    manifest: Manifest,
    image_size: int,
    geometry: Geometry,
    folder: Path | str,
    on_unreadable: OnUnreadable = "error",
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
        geometry: See `square`.
        folder: Folder of all caches.
        on_unreadable: "error" raises if an image is unreadable; "skip" leaves such images out.
        workers: Decoding threads; None means one per processor.

    Raises:
        DataError: Images are unreadable and must not be skipped, or a class has no image left.
        UserError: The folder cannot be written, for example because the disk is full.
    """
    folder = Path(folder).absolute()
    rows, ids = len(manifest.frame), manifest.frame["image_id"].tolist()
    stamps = source.stamps(manifest)
    key = digest_of([FORMAT_VERSION, manifest.source, image_size, geometry, ids, stamps])
    entry = folder / f"{manifest.source}-{image_size}-{geometry}-{key[:16]}"
    threads = workers or os.cpu_count() or 1
    with turn(entry, "decoded images", "data.cache_dir= to another folder"):
        record = read_record(entry, key)
        # An image may be readable now, such as after a disk came back.
        if record is None or any(
            not isinstance(decode(source, manifest, row, 1, "squash"), str)
            for row, _ in record["unreadable"]
        ):
            title = f"decoding {manifest.source} to {image_size} px"
            decoded = _decode_all(source, manifest, image_size, geometry, threads)
            with tqdm(decoded, title, rows, unit="image") as images:
                record = _build(entry, key, images, rows * image_size**2 * 3)
        paths = manifest.frame["path"]
        names = paths.where(paths != "", manifest.frame["image_id"])
        unreadable = [(names[row], reason) for row, reason in record["unreadable"]]
        frame = manifest.frame.drop(index=[row for row, _ in record["unreadable"]])
        frame = frame.reset_index(drop=True)
        listing = entry.with_name(f"{entry.name}.unreadable.txt")
        _report_unreadable(manifest, frame, unreadable, listing, on_unreadable)
        shape = (len(frame), image_size, image_size, 3)
        pixels = np.memmap(entry / VALUES, dtype=np.uint8, mode="r", shape=shape)
    labels = [manifest.classes[label] for label in frame["label"]]
    parts = [frame["image_id"].tolist(), labels, frame["group"].tolist(), record["digest"]]
    firsts = [np.arange(len(frame)), np.arange(len(frame))]
    for first, name in zip(firsts, ("identical", "similar"), strict=True):
        for row, earlier in record[name]:
            first[row] = earlier
    return ImageCache(pixels, firsts[0], firsts[1], frame, unreadable, digest_of(parts))


def stand_in(source: Source, manifest: Manifest, image_size: int, geometry: Geometry) -> ImageCache:
    """A cache in memory in which the first readable picture stands for all: for estimates.

    Raises:
        DataError: No image is readable.
    """
    count = len(manifest.frame)
    decoded = (decode(source, manifest, row, image_size, geometry) for row in range(count))
    picture = next((image for image in decoded if not isinstance(image, str)), None)
    if picture is None:
        raise DataError(f"none of the {count} images of {manifest.source} can be read")
    rows, images = np.arange(count), np.broadcast_to(picture, (count, *picture.shape))
    return ImageCache(images, rows, rows, manifest.frame, [], "")


def _decode_all(
    source: Source, manifest: Manifest, image_size: int, geometry: Geometry, threads: int
) -> Iterator[npt.NDArray[np.uint8] | str]:
    reader = copy.copy(source)  # what it loads for decoding is freed when the cache is built
    rows = len(manifest.frame)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, rows, _CHUNK * threads):
            chunk = range(start, min(start + _CHUNK * threads, rows))
            yield from pool.map(
                lambda row: decode(reader, manifest, row, image_size, geometry), chunk
            )


def digest_of(parts: list[Any]) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@contextlib.contextmanager
def turn(entry: Path, what: str, setting: str) -> Iterator[None]:
    """Wait until no other process opens or builds this entry; a UserError names the setting."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(entry.with_name(f".{entry.name}.lock"))
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another process that builds %s", entry)
            held = lock.acquire()
        with held:  # the system releases the lock of a process that dies
            yield
    except OSError as error:
        raise UserError(
            f"{entry.parent}: the cache of {what} cannot be kept here "
            f"({error.strerror or error}); make room, or set {setting}"
        ) from error


def read_record(entry: Path, key: str) -> dict[str, Any] | None:
    """The record of a complete entry; None if there is none or it is damaged."""
    try:
        record: dict[str, Any] = json.loads((entry / _RECORD).read_text())
        intact = record["key"] == key and _is_intact(entry, record["digest"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        log.warning("%s is damaged and is rebuilt", entry)
    return record if intact else None


def _is_intact(entry: Path, digest: str) -> bool:
    """Whether the values are those that were written.

    All are read where the file has changed since they were last verified, and once a month.
    """
    status = (entry / VALUES).stat()
    stamp = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    with contextlib.suppress(OSError, ValueError, TypeError):
        verified_stamp, verified = json.loads((entry / _VERIFIED).read_text())
        if verified_stamp == stamp and 0 <= time.time() - verified < _VERIFY_AFTER_S:
            return True
    with (entry / VALUES).open("rb") as file:
        intact = hashlib.file_digest(file, "sha256").hexdigest() == digest
    if intact:
        with contextlib.suppress(OSError):  # of a folder that only others may write
            (entry / _VERIFIED).write_text(json.dumps([stamp, time.time()]))
    return intact


@contextlib.contextmanager
def building(entry: Path, key: str, size: int) -> Iterator[tuple[BinaryIO, dict[str, Any]]]:
    """Yield a file for at most `size` bytes, and its record; rename both when they are on the disk.

    More can be added to the record.
    """
    draft = entry.with_name(f"{entry.name}.building")
    for former in filter(Path.exists, (draft, entry)):
        shutil.rmtree(former)
    record: dict[str, Any] = {"key": key}
    try:
        draft.mkdir()
        with (draft / VALUES).open("wb") as file:
            try:  # a full disk fails at once, not after minutes of decoding
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
            yield file, record
            file.truncate()
        with (draft / VALUES).open("rb") as file:
            record["digest"] = hashlib.file_digest(file, "sha256").hexdigest()
        (draft / _RECORD).write_text(json.dumps(record))
        for path in (draft / VALUES, draft / _RECORD, draft):
            _sync(path)
        _is_intact(draft, record["digest"])
        draft.replace(entry)
        _sync(entry.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _build(
    entry: Path, key: str, images: Iterable[npt.NDArray[np.uint8] | str], size: int
) -> dict[str, Any]:
    """Build an entry of squares of `size` bytes in sum."""
    unreadable: list[tuple[int, str]] = []
    rows: dict[bytes, int] = {}  # content -> the first row that has it
    identical: list[int] = []
    hashes: list[npt.NDArray[np.uint64]] = []
    with building(entry, key, size) as (file, record):
        for row, image in enumerate(images):
            if isinstance(image, str):
                unreadable.append((row, image))
            else:
                file.write(pixels := image.tobytes())
                content = hashlib.sha256(pixels).digest()
                identical.append(rows.setdefault(content, len(identical)))
                hashes.append(perceptual_hash(image))
        record["unreadable"] = unreadable
        similar = first_similar(np.array(hashes, np.uint64).reshape(-1, 2)).tolist()
        for name, first in (("identical", identical), ("similar", similar)):
            record[name] = [(row, earlier) for row, earlier in enumerate(first) if row != earlier]
    return record


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _report_unreadable(
    manifest: Manifest,
    frame: pd.DataFrame,
    unreadable: list[tuple[str, str]],
    listing: Path,
    on_unreadable: OnUnreadable,
) -> None:
    """Write the list of unreadable images; raise or warn as `load` says."""
    if not unreadable:
        listing.unlink(missing_ok=True)
        return
    with atomic_file(listing, "the list of unreadable images") as draft:
        draft.write_text("".join(f"{image}\t{reason}\n" for image, reason in unreadable))
    count = f"{len(unreadable)} of {len(manifest.frame)} images of {manifest.source} cannot be read"
    if on_unreadable == "error":
        examples = ", ".join(f"{image} ({reason})" for image, reason in unreadable[:_MOST_SHOWN])
        more = ", ..." if len(unreadable) > _MOST_SHOWN else ""
        raise DataError(
            f"{count}: {examples}{more}; all of them are listed in {listing}: repair them, "
            "or leave them out with data.on_unreadable=skip"
        )
    present = set(frame["label"])
    lost = [name for label, name in enumerate(manifest.classes) if label not in present]
    if lost:
        problem = f"{count}, and none is left of {', '.join(lost)}"
        raise DataError(f"{problem}; they are listed in {listing}: repair them")
    log.warning("%s and are left out; they are listed in %s", count, listing)
