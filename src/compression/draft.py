"""A model's file that is written whole or not at all."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.errors import UserError


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A file to write, in a folder of its own beside `path`, which takes its place if the block ends well.

    What else the block leaves in that folder goes.

    Raises:
        UserError: It cannot be written: no such folder, no right to, a full disk.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            draft_path = Path(folder) / path.name
            yield draft_path
            draft_path.replace(path)
    except OSError as error:
        raise UserError(f"{path}: the model cannot be written there ({error})") from error
