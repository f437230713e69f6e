"""Source base class and Manifest; CSV and folder listing, checked."""
from PIL import Image
from PIL import ImageOps
from abc import ABC
from abc import abstractmethod
from annotated_types import Ge
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from src.core.errors import ConfigError
from src.core.errors import DataError
from src.data.sampling import _GROUPS_KEPT
from typing import Annotated
import hashlib
import numpy as np
import os
import pandas as pd




SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Manifest:
    """The images of a data set, before anything is decoded.

    Attributes:
        source: Name of the data set, such as "ham10000".
        classes: Class names in label order.
        frame: One row an image, in a fixed order, with a RangeIndex. Columns: `image_id` (str,
            unique), `label` (int, 0 to K-1), `group` (str: lesion or patient; images of one group
            belong on one side of a split), `path` (str, absolute; empty where the source makes its
            pictures itself), optionally `split` (one of `SPLITS`, where the owners published a
            split) and whatever metadata the owners give (age, sex, localization, original_label
            ...).
        grouped_by: What a group is: "lesion", "patient", "group" (a table's column) or "image"
            (where the set does not say).
        positive: Name of the class that is looked for where there are two, else None.
    """

    source: str
    classes: tuple[str, ...]
    frame: pd.DataFrame
    grouped_by: str
    positive: str | None = None


class Source(ABC):
    """A data set in its owners' layout. Nothing is decoded before `picture` is called."""

    name: str

    @abstractmethod
    def manifest(self) -> Manifest:
        """Read and check the list of images.

        Raises:
            DataError: A folder, file or column is missing, or a label is unknown; the message names
                it.
        """

    def picture(self, manifest: Manifest, row: int) -> Image.Image:
        """Decode one image, upright, as RGB. Called from several threads at once.

        Raises:
            OSError: The file is absent, truncated or no image.
        """
        with Image.open(Path(str(manifest.frame.at[row, "path"]))) as image:
            return ImageOps.exif_transpose(image).convert("RGB")

    def stamps(self, manifest: Manifest) -> list[str]:
        """What a cache of these pictures depends on, a string an image: a change of any makes the cache anew."""
        return [_file_stamp(Path(path)) for path in manifest.frame["path"]]


def _file_stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "absent"
    return f"{status.st_size}:{status.st_mtime_ns}"


IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
Limit = Annotated[int, Ge(1)] | None
_LEADING_COLUMNS = ("image_id", "label", "group", "path", "split")


def root_folder(root: Path | str, name: str, variable: str | None = None, fetch: str | None = None) -> Path:
    """Absolute path of a data set's folder.

    Args:
        root: What the user gave; `~` is expanded.
        name: Name of the data set.
        variable: Environment variable that may name the folder too.
        fetch: Name under which `python -m src.data.fetch` knows the data set.

    Raises:
        DataError: It is not there, or not a folder.
    """
    folder = absolute(root)
    if folder.is_dir():
        return folder
    problem = "is a file, not a folder" if folder.exists() else "is not there"
    ways = ["set data.root=<folder>"]
    if variable:
        ways.append(f"the environment variable {variable}")
    if fetch:
        ways.append(f"fetch it with: python -m src.data.fetch name={fetch}")
    raise DataError(f"the folder of {name} {problem}; {', or '.join(ways)}", folder)


def absolute(path: Path | str) -> Path:
    """The path, absolute, with `~` expanded."""
    return Path(path).expanduser().absolute()


def subfolder(root: Path, name: str) -> Path:
    """A folder that the official layout has below the root.

    Raises:
        DataError: It is not there.
    """
    if not (root / name).is_dir():
        raise DataError(
            f"this folder is missing; unpack it there, or set data.root= to the folder that holds {name}", root / name
        )
    return root / name


def read_csv(path: Path, columns: Sequence[str], complete: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a CSV file with a header; the line of a row in the file is its index + 2.

    Args:
        path: The file: UTF-8, comma-separated.
        columns: Columns that must be there; read as text, without surrounding blanks. Other columns
            are kept too.
        complete: Those of `columns` that must have a value in every row; all when None.

    Raises:
        DataError: The file or a column is missing, a needed cell is empty, there is no row, or it
            cannot be parsed.
    """
    try:
        # Only an empty cell and "nan" mean nothing: "NA" or "None" may well be a class.
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
    except FileNotFoundError as error:
        raise DataError(
            "this file is missing; put it there, or set data.root= to the folder that holds it", path
        ) from error
    except pd.errors.EmptyDataError as error:
        raise DataError("this file is empty; it must have a header and a row an image", path) from error
    except (pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"cannot be read as a comma-separated table in UTF-8 ({reason}); mend the file", path
        ) from error
    check_columns(frame, columns, path)
    if frame.empty:
        raise DataError("lists no image; it must have a header and a row an image", path)
    for column in columns:
        text = frame[column].str.strip()
        frame[column] = text.mask(text == "")
    for column in columns if complete is None else complete:
        empty = frame.index[frame[column].isna()]
        if len(empty):
            raise DataError(
                f"column {column!r} is empty in line {empty[0] + 2}{_more(len(empty) - 1)}; "
                "fill it in, or take the row out",
                path,
            )
    return frame


def check_columns(frame: pd.DataFrame, columns: Iterable[str], path: Path) -> None:
    """Check that a table has the columns.

    Raises:
        DataError: One is missing; the message lists those that are there.
    """
    for column in columns:
        if column not in frame:
            present = ", ".join(map(str, frame.columns))
            raise DataError(f"has no column {column!r}, only {present}; add it, or name the right file", path)


def encode(names: pd.Series, classes: Sequence[str], images: pd.Series, path: Path) -> pd.Series:
    """Label numbers of class names.

    Args:
        names: Class names, one an image.
        classes: Known class names in label order.
        images: Ids of the images, for the message.
        path: The file that gives the labels, for the message.

    Returns:
        int64 labels with the index of `names`.

    Raises:
        DataError: A name is not among the classes.
    """
    labels = names.map({name: label for label, name in enumerate(classes)})
    unknown = names.index[labels.isna()]
    if len(unknown):
        first = unknown[0]
        raise DataError(
            f"unknown label {names[first]!r} of image {images[first]} in line {first + 2}{_more(len(unknown) - 1)}; "
            f"known are {', '.join(classes)}: mend or take out the row",
            path,
        )
    return labels.astype(np.int64)


def check_splits(sides: pd.Series, images: pd.Series, path: Path) -> None:
    """Check that the owners' split says train, val or test of every image.

    Raises:
        DataError: It says something else.
    """
    unknown = sides.index[~sides.isin(SPLITS)]
    if len(unknown):
        first = unknown[0]
        raise DataError(
            f"unknown split {sides[first]!r} of image {images[first]} in line {first + 2}{_more(len(unknown) - 1)}; "
            f"known are {', '.join(SPLITS)}: mend the column",
            path,
        )


def class_order(names: Sequence[str], positive: str | None, path: Path) -> tuple[tuple[str, ...], str | None]:
    """Label order of classes that the user's files name: of two, the one that is looked for is label 1.

    Args:
        names: Class names.
        positive: The one that is looked for, if there are two; None means the last.
        path: The file or folder that names the classes, for the message.

    Returns:
        The names in label order, and the name of label 1 if there are two, else None.

    Raises:
        ConfigError: `positive` is none of two classes.
        DataError: There are fewer than two classes.
    """
    if len(names) < 2:
        raise DataError(f"has only one class, {', '.join(names)}; a classifier needs two or more", path)
    if positive is not None and (len(names) != 2 or positive not in names):
        expected = f"one of {', '.join(names)}" if len(names) == 2 else f"null, because there are {len(names)} classes"
        raise ConfigError("data.source.positive", f"must be {expected}, but got {positive}")
    ordered = tuple(sorted(names, key=lambda name: name == positive))
    return ordered, ordered[1] if len(ordered) == 2 else None


def image_paths(images: Iterable[str], folders: Sequence[Path]) -> list[str]:
    """Where the images are, looked up by file name without suffix in one listing of each folder.

    An image that is in none gets the path that it should have in the first folder: the cache
    reports it.

    Args:
        images: Ids of the images.
        folders: Where to look; an image that is in several is taken from the first.
    """
    found: dict[str, str] = {}
    for folder in folders:
        for name in image_names(folder):
            found.setdefault(Path(name).stem, f"{folder}/{name}")
    return [found.get(image, f"{folders[0]}/{image}.jpg") for image in images]


def image_names(folder: Path) -> list[str]:
    """File names of the images in a folder, sorted; hidden files and other suffixes are left out."""
    # One scandir instead of a stat for every image: on network drives that is the difference of
    # minutes.
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    return sorted(name for name in names if name[0] != "." and Path(name).suffix.lower() in IMAGE_SUFFIXES)


def assemble(
    source: str,
    classes: tuple[str, ...],
    frame: pd.DataFrame,
    grouped_by: str,
    path: Path,
    positive: str | None = None,
    limit: Limit = None,
) -> Manifest:
    """Check a list of images as a whole and put it in order, sorted by image id.

    Args:
        source: Name of the data set.
        classes: Class names in label order.
        frame: Columns `image_id`, `label`, `group`, `path`, optionally `split`, and metadata. An
            image without a group is a group of its own.
        grouped_by: What a group is.
        path: The file or folder that gives the list, for messages.
        positive: The class that is looked for where there are two.
        limit: Take about so many images only, see `src.data.source.subset`.

    Raises:
        DataError: An image is listed twice, or a class has no image.
    """
    twice = frame.loc[frame["image_id"].duplicated(), "image_id"].drop_duplicates()
    if len(twice):
        raise DataError(
            f"image {twice.iloc[0]} is listed more than once{_more(len(twice) - 1)}; keep one row an image", path
        )
    empty = [name for label, name in enumerate(classes) if label not in set(frame["label"])]
    if empty:
        raise DataError(
            f"no image of class {', '.join(empty)}; add some, or leave the class out of the list of classes", path
        )
    leading = [column for column in _LEADING_COLUMNS if column in frame]
    frame = frame[leading + [column for column in frame if column not in leading]]
    frame = frame.assign(group=frame["group"].fillna(frame["image_id"]).astype("str"))
    frame = frame.sort_values("image_id", kind="stable", ignore_index=True)
    manifest = Manifest(source, classes, frame, grouped_by, positive)
    return manifest if limit is None else subset(manifest, limit)


def _more(count: int) -> str:
    return f" (and {count} more)" if count else ""


def subset(manifest: Manifest, limit: int) -> Manifest:
    """About `limit` images of a data set, by whole groups, every class with its share; always the same ones.

    Every class keeps at least five groups (or all it has), so a small limit may be exceeded.

    Args:
        manifest: The images to choose from.
        limit: Wanted number of images.
    """
    frame = manifest.frame
    if limit >= len(frame):
        return manifest
    seed = int.from_bytes(hashlib.sha256(manifest.source.encode()).digest()[:8], "big")
    random = np.random.default_rng(seed)
    images = frame.groupby(["group", "label"]).size().unstack(fill_value=0)  # groups x classes
    images = images.iloc[random.permutation(len(images))]
    wanted = images.sum() * limit / len(frame)
    kept = np.zeros(len(images), dtype=bool)
    # Rare classes first: what their groups bring of other classes is counted before those choose.
    for label in images.sum().sort_values(kind="stable").index:
        for position in np.flatnonzero((images[label] > 0).to_numpy() & ~kept):
            chosen = images[label].to_numpy()[kept]
            if chosen.sum() >= wanted[label] and (chosen > 0).sum() >= _GROUPS_KEPT:
                break
            kept[position] = True
    frame = frame[frame["group"].isin(images.index[kept])].reset_index(drop=True)
    return Manifest(manifest.source, manifest.classes, frame, manifest.grouped_by, manifest.positive)
