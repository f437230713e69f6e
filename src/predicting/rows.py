"""The CSV of predictions, written row by row and yet whole or not at all."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd

from src.clinical.pages import spreadsheet
from src.errors import UserError

DIGITS = "%.9g"  # single precision comes back from it as it was


class Rows:
    """Takes rows for a file that nobody sees before it is whole.

    Args:
        path: Of the file, for messages.
        draft: What is written to.
        columns: Of every row.
    """

    def __init__(self, path: Path, draft: Path, columns: Sequence[str]) -> None:
        self._path = path
        self._draft = draft
        self._columns = list(columns)
        self.add(pd.DataFrame(columns=self._columns), header=True)

    def add(self, frame: pd.DataFrame, header: bool = False) -> None:
        """Write rows.

        Args:
            frame: Has the columns, in any order; what is missing becomes an empty cell, and what a spreadsheet would
                run as a formula stands behind an apostrophe.
            header: Begin the file with the columns' names.

        Raises:
            UserError: The file cannot be written.
        """
        with writing(self._path):
            spreadsheet(frame.reindex(columns=self._columns)).to_csv(
                self._draft, mode="w" if header else "a", header=header, index=False, float_format=DIGITS
            )


@contextmanager
def whole_csv(path: Path, columns: Sequence[str]) -> Iterator[Rows]:
    """A file that takes its place if the block ends well; after any exception what was there is as it was.

    Args:
        path: The file; its folder is made.
        columns: Of every row.

    Raises:
        UserError: The file cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        yield Rows(path, draft, columns)
        with writing(path):
            draft.replace(path)
    finally:
        with suppress(OSError):  # of a folder that is none there is nothing to clear
            draft.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line what the system says against it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"out={path}: cannot be written there ({error.strerror or error})") from error
