"""Files and folders that are written completely or not at all, and paths as users type them."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from src.core.errors import ConfigError, UserError

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
FORMULA_STARTS = ("=", "+", "@", "-", "\t", "\r")


@contextmanager
def atomic_file(path: Path, what: str = "the file", make_folder: bool = False) -> Iterator[Path]:
    """Yield a draft path; the draft replaces `path` if the block ends without an exception.

    The draft lies in a temporary folder beside `path`, whose other files are deleted. `what` is
    named in the error message, such as "the model".

    Raises:
        UserError: The file cannot be written: no such folder, no permission, or the disk is full.
    """
    with _writing(path, what):
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            draft = Path(folder) / path.name
            yield draft
            draft.replace(path)


@contextmanager
def atomic_folder(folder: Path, what: str, key: str = "folder") -> Iterator[Path]:
    """Yield an empty draft folder; it replaces `folder` if the block ends without an exception.

    The error message names `what` is written, such as "the report", and the config `key` of the
    parent folder.

    Raises:
        UserError: The folder cannot be written. It is unchanged then, as after any exception.
    """
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    former = folder.with_name(f"{draft.name}.former")
    try:
        with _writing(f"{key}={folder.parent}", what):
            draft.mkdir(parents=True)
            yield draft
            if folder.exists():
                folder.replace(former)
            draft.replace(folder)
    finally:
        if former.exists() and not folder.exists():  # the draft could not be moved
            former.replace(folder)
        for leftover in (draft, former):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _writing(where: Path | str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{where}: {what} cannot be written there ({error})") from error


def refuse_unwritable(folder: Path, what: str, key: str = "folder") -> None:
    """Check, before any work, that `atomic_folder(folder, what)` will be possible.

    A UserError if the parent folder cannot be created or written, or `folder` is a file.
    """
    with _writing(f"{key}={folder.parent}", what):
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder.parent).close()
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{folder} is a file")


def expanded(name: str) -> Path:
    """A path with `~` expanded; unchanged where there is no such user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def is_there(path: Path) -> bool:
    """Whether the file or folder exists; False for names that the system refuses."""
    try:
        return path.exists()
    except OSError:
        return False


def output_file(key: str, name: str, inputs: Iterable[tuple[str, Path]]) -> Path:
    """The path of a file to write, by the value `name` of a config key.

    Raises:
        ConfigError: It is a folder, a device or one of the inputs, such as ("the model", path).
    """
    path, problem = expanded(name), ""
    if not is_there(path):
        return path
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "is not a file that can be replaced"
    for content, other in inputs:
        if is_there(other) and path.samefile(other):
            problem = f"is {content}, which would be lost"
    if problem:
        raise ConfigError(key, f"{name} {problem}; name another file")
    return path


def slug(text: str, default: str = "unnamed") -> str:
    """The text as a part of a file's or a metric's name; `default` if nothing remains of it."""
    return re.sub(r"[^\w.-]+", "_", text).strip("_.") or default


def escape_formula(value: object) -> object:
    """Put an apostrophe before text that a spreadsheet would run as a formula."""
    dangerous = isinstance(value, str) and value.startswith(FORMULA_STARTS)
    return f"'{value}" if dangerous else value


def spreadsheet(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table with `escape_formula` applied to every cell."""
    return table.map(escape_formula)
