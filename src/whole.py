"""Folders that are written whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.errors import UserError


@contextmanager
def whole_folder(folder: Path, what: str, key: str = "folder") -> Iterator[Path]:
    """An empty draft beside `folder`, which takes its place if the block ends well; what was there then goes.

    Args:
        folder: Where the files shall be.
        what: Is written, for the message: "the report".
        key: Of the config value that names the parent folder, for the message.

    Raises:
        UserError: The folder cannot be written. It is then as it was, and so it is after any other exception.
    """
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    former = folder.with_name(f".{folder.name}.{os.getpid()}.former")
    try:
        draft.mkdir(parents=True)
        yield draft
        if folder.exists():
            folder.replace(former)
        draft.replace(folder)
    except OSError as error:
        raise UserError(f"{key}={folder.parent}: {what} cannot be written there ({error})") from error
    finally:
        for leftover in (draft, former):
            shutil.rmtree(leftover, ignore_errors=True)
