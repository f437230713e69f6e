"""Image sources: the base class, the manifest, and checked listings of CSV files and folders."""

import contextlib
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
from annotated_types import Ge
from PIL import Image

from src.core.errors import ConfigError, DataError, check_class_names
from src.data.decoding import DECODING_ERRORS, as_viewed

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
Limit = Annotated[int, Ge(1)] | None
MANIFEST_COLUMNS = ("image_id", "label", "group", "path", "split")
_SUBSET_GROUPS = 5  # groups of each class that a subset keeps: enough for five folds
_UNREADABLE_LISTS: dict[type[Exception], str] = {
    FileNotFoundError: "this file is missing; put it there, or set data.root= to the folder "
    "that holds it",
    pd.errors.EmptyDataError: "this file is empty; it must have a header and one row per image",
}


@dataclass(frozen=True)
class Manifest:
    """The list of images of a data set.

    Attributes:
        source: Name of the data set, such as "ham10000".
        classes: Class names in label order.
        frame: One row per image in a fixed order, with a RangeIndex. Columns: `image_id` (str,
            unique), `label` (int, 0 to K-1), `group` (str: lesion or patient; the images of a
            group belong on one side of a split), `path` (str, absolute; "" where the source
            draws its images), optionally `split` (one of `SPLITS`, the official split) and
            `only_train` (bool: no image for val and test), and metadata such as age, sex,
            localization, original_label.
        grouped_by: What a group is: "lesion", "patient", "group" (column of a table) or "image"
            (the data set does not say which images belong together).
    """

    source: str
    classes: tuple[str, ...]
    frame: pd.DataFrame
    grouped_by: str


class Source(ABC):
    """A data set in the layout of its owners; docs/extending.md says how to add one.

    The constructor must not read files. For a set of files, derive from `FolderSource` and use its
    `assemble`. Images that are not files, such as arrays or drawings, need `picture` and `stamps`.

    Attributes:
        name: Name of the data set.
        licence: Terms and citation, such as "CC BY-NC 4.0. Cite: ..."; "" if unknown.
        published: Images of each class in the complete public set; empty if unknown.
        only_train: Names of joined sources whose images are in training only.
    """

    name: str
    licence: str = ""
    published: Mapping[str, int] = {}
    only_train: Sequence[str] = ()

    @classmethod
    def licence_of(cls, settings: Mapping[str, Any]) -> str:
        """The licence of the images that these constructor arguments select; "" if unknown."""
        return cls.licence

    @abstractmethod
    def manifest(self) -> Manifest:
        """Read and check the list of images; no image is decoded.

        Raises:
            DataError: A folder, file or column is missing, or a row is invalid.
        """

    def picture(self, manifest: Manifest, row: int) -> Image.Image:
        """Decode one image, upright, as 8-bit RGB. Several threads call this at once.

        Raises:
            OSError: The file is absent, truncated, not an image, or of a mode without fixed white.
        """
        with Image.open(Path(str(manifest.frame.at[row, "path"]))) as image:
            return as_viewed(image)

    def stamps(self, manifest: Manifest) -> list[str]:
        """One string per image; if any of them changes, the cache of decoded images is rebuilt."""

        def stamp(path: str) -> str:
            try:
                status = os.stat(path)  # noqa: PTH116 Path.stat takes twice as long
            except OSError:
                return "absent"
            return f"{status.st_size}:{status.st_mtime_ns}"

        return [stamp(path) for path in manifest.frame["path"]]


@dataclass(eq=False)
class FolderSource(Source):
    """A source whose files lie below one folder.

    Attributes:
        root: The folder; `~` is expanded.
        limit: Use about this many images only, see `subset`; None uses all.
        title: Name of the data set, for messages.
        variable: Environment variable that may name the folder; "" if there is none.
        fetch_name: Name of the data set for `python -m src.data.fetch`; "" if it has none.
    """

    root: Path | str
    limit: Limit = field(default=None, kw_only=True)
    title: ClassVar[str]
    variable: ClassVar[str] = ""
    fetch_name = ""

    def folder(self, name: str = "") -> Path:
        """Absolute path of the folder, or of one that the official layout has below it.

        Raises:
            DataError: The folder does not exist or is a file.
        """
        root = Path(self.root).expanduser().absolute()
        if not root.is_dir():
            problem = "is a file, not a folder" if root.exists() else "is not there"
            ways = ["set data.root=<folder>"]
            if self.variable:
                ways.append(f"the environment variable {self.variable}")
            if self.fetch_name:
                ways.append(f"fetch it with: python -m src.data.fetch name={self.fetch_name}")
            raise DataError(f"the folder of {self.title} {problem}; {', or '.join(ways)}", root)
        if not (root / name).is_dir():
            way = f"unpack it there, or set data.root= to the folder that holds {name}"
            raise DataError(f"this folder is missing; {way}", root / name)
        return root / name

    def assemble(
        self, classes: tuple[str, ...], frame: pd.DataFrame, grouped_by: str, path: Path
    ) -> Manifest:
        """Check a complete list of images, sort it by image id, and apply the limit.

        The arguments are those of `Manifest`, and the file or folder that lists the images. An
        image without a group becomes a group of one.

        Raises:
            DataError: An image is listed twice, or a class has no image or an impossible name.
        """
        try:
            check_class_names(classes)
        except ConfigError as error:
            raise DataError(f"the names of its classes {error.problem}", path) from error
        refuse_repeated(frame["image_id"], path)
        empty = [name for label, name in enumerate(classes) if label not in set(frame["label"])]
        if empty:
            way = "add some, or remove the class from the list of classes"
            raise DataError(f"no image of class {', '.join(empty)}; {way}", path)
        leading = [column for column in MANIFEST_COLUMNS if column in frame]
        frame = frame[leading + [column for column in frame if column not in leading]]
        frame = frame.assign(group=frame["group"].fillna(frame["image_id"]).astype("str"))
        frame = frame.sort_values("image_id", kind="stable", ignore_index=True)
        manifest = Manifest(self.name, classes, frame, grouped_by)
        return manifest if self.limit is None else subset(manifest, self.limit)


def read_csv(
    path: Path, columns: Sequence[str], complete: Sequence[str] | None = None
) -> pd.DataFrame:
    """Read a CSV file with a header. The line of a row in the file is its index + 2.

    Args:
        path: The file: UTF-8, comma-separated.
        columns: Required columns, read as text and stripped. Other columns are kept.
        complete: Those of `columns` that must not have empty cells; None means all of them.

    Raises:
        DataError: The file or a column is missing, a required cell is empty, there is no row, or
            the file cannot be parsed.
    """
    try:
        # Only an empty cell and "nan" are missing values: "NA" or "None" may be a class name.
        frame = pd.read_csv(
            path,
            dtype=dict.fromkeys(columns, "str"),
            keep_default_na=False,
            na_values=["", "nan", "NaN"],
            skip_blank_lines=False,
            index_col=False,
            encoding="utf-8-sig",
            low_memory=False,
        ).dropna(how="all")
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeError, OSError) as error:
        reason = " ".join(str(error).split())
        other = f"cannot be read as a comma-separated table in UTF-8 ({reason}); correct the file"
        raise DataError(_UNREADABLE_LISTS.get(type(error), other), path) from error
    for column in columns:
        if column not in frame:
            present = ", ".join(map(str, frame.columns))
            way = "add it, or name the right file"
            raise DataError(f"has no column {column!r}, only {present}; {way}", path)
    if frame.empty:
        raise DataError("lists no image; it must have a header and one row per image", path)
    for column in columns:
        text = frame[column].str.strip()
        frame[column] = text.mask(text == "")
        empty = frame.index[frame[column].isna()]
        if len(empty) and (complete is None or column in complete):
            where = f"line {empty[0] + 2}{_more(empty)}"
            way = "fill it in, or remove the row"
            raise DataError(f"column {column!r} is empty in {where}; {way}", path)
    return frame


def refuse_repeated(images: pd.Series, path: Path) -> None:
    """Raise a DataError if the file lists an image more than one time."""
    repeated = images[images.duplicated()].drop_duplicates()
    if len(repeated):
        problem = f"image {repeated.iloc[0]} is listed more than once{_more(repeated)}"
        raise DataError(f"{problem}; keep one row per image", path)


def encode(
    names: pd.Series, classes: Sequence[str], images: pd.Series, path: Path, what: str = "label"
) -> pd.Series:
    """Position of each name in `classes`, int64 with the index of `names`: the row in the file.

    Raises:
        DataError: A name is not in `classes`; the message has the id of its image.
    """
    labels = names.map({name: label for label, name in enumerate(classes)})
    unknown = names.index[labels.isna()]
    if len(unknown):
        first = unknown[0]
        image = f"image {images[first]} in line {first + 2}{_more(unknown)}"
        way = f"known are {', '.join(classes)}: correct or remove the row"
        raise DataError(f"unknown {what} {names[first]!r} of {image}; {way}", path)
    return labels.astype(np.int64)


def class_order(names: Sequence[str], positive: str | None, path: Path) -> tuple[str, ...]:
    """The classes in label order: of two, the one to detect (None: the last) becomes label 1.

    Raises:
        ConfigError: `positive` is not one of two classes.
        DataError: There are fewer than two classes.
    """
    listed = ", ".join(names)
    if len(names) < 2:
        raise DataError(f"has only one class, {listed}; a classifier needs two or more", path)
    if positive is not None and not (len(names) == 2 and positive in names):
        many = f"null, because there are {len(names)} classes"
        expected = f"one of {listed}" if len(names) == 2 else many
        raise ConfigError("data.source.positive", f"must be {expected}, but got {positive}")
    return tuple(sorted(names, key=lambda name: name == positive))


def image_names(folder: Path) -> list[str]:
    """Sorted file names of the images in a folder, without hidden files and other suffixes."""
    # One scandir instead of one stat per image: this saves minutes on network drives.
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    return [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]


def image_paths(images: Iterable[str], folders: Sequence[Path]) -> list[str]:
    """Paths of images, found by file name without suffix in the first folder that has them.

    A missing image gets the path that it should have in the first folder: the cache reports it.
    """
    paths: dict[str, str] = {}
    for folder in folders:
        for name in image_names(folder):
            paths.setdefault(Path(name).stem, f"{folder}/{name}")
    return [paths.get(image, f"{folders[0]}/{image}.jpg") for image in images]


def file_sizes(paths: pd.Series, most: int) -> pd.DataFrame:
    """Sizes of pictures as they are stored, from the headers of their files.

    Returns:
        A row for each path: width and height, px; missing if it is no picture file. At most `most`
        files, evenly over the list, are looked at; others are missing.
    """
    sizes = np.full((len(paths), 2), np.nan)
    for row in evenly(len(paths), most):
        with contextlib.suppress(*DECODING_ERRORS), Image.open(str(paths.iloc[row])) as image:
            sizes[row] = image.size
    return pd.DataFrame(sizes, columns=["width", "height"])


def evenly(length: int, most: int) -> np.ndarray:
    """At most `most` of the positions 0 to `length` - 1, in even steps."""
    return np.unique(np.linspace(0, length - 1, most).astype(int)) if length else np.arange(0)


def size_summary(sizes: pd.DataFrame) -> dict[str, Any]:
    """Numbers of images and sizes in `file_sizes`, sizes as texts, median shape; {} of none."""
    counts = sizes.value_counts()
    if counts.empty:
        return {}
    texts = [f"{width:.0f}x{height:.0f}" for width, height in counts.index]
    areas = [width * height for width, height in counts.index]
    return {
        "images": len(sizes),
        "read": int(counts.sum()),
        "different": len(counts),
        "smallest": texts[int(np.argmin(areas))],
        "largest": texts[int(np.argmax(areas))],
        "most": texts[0],
        "share": counts.iloc[0] / counts.sum(),
        "shape": float((sizes["width"] / sizes["height"]).median()),
        "narrowest": float(np.nanmin(sizes.to_numpy())),
    }


def subset(manifest: Manifest, limit: int) -> Manifest:
    """About `limit` images: whole groups, the class shares kept, always the same images.

    Every class keeps at least five groups (or all that it has), so a small limit may be exceeded.
    """
    frame = manifest.frame
    if limit >= len(frame):
        return manifest
    seed = int.from_bytes(hashlib.sha256(manifest.source.encode()).digest()[:8], "big")
    counts = frame.groupby(["group", "label"]).size().unstack(fill_value=0)  # groups x classes
    counts = counts.iloc[np.random.default_rng(seed).permutation(len(counts))]
    targets = counts.sum() * limit / len(frame)
    is_kept = np.zeros(len(counts), dtype=bool)
    # Rare classes first: the images of other classes in their groups count before those choose.
    for label in counts.sum().sort_values(kind="stable").index:
        for position in np.flatnonzero((counts[label] > 0).to_numpy() & ~is_kept):
            chosen = counts[label].to_numpy()[is_kept]
            if chosen.sum() >= targets[label] and (chosen > 0).sum() >= _SUBSET_GROUPS:
                break
            is_kept[position] = True
    frame = frame[frame["group"].isin(counts.index[is_kept])].reset_index(drop=True)
    return replace(manifest, frame=frame)


def _more(rows: Sized) -> str:
    return f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
