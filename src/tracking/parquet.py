"""Tables kept as Parquet files beside a store, whole or not at all, for one experiment of one store only."""

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from src.tracking.store import Store

FORMAT = 1  # of the files; another one is not read
_KEY = b"paretoderm"  # of what we say about a table in its file
_LOCK_SECONDS = 60.0  # then a reader goes on beside the other one: files are replaced whole

_logger = logging.getLogger(__name__)


class Kept:
    """One table in `<store.folder>/cache/`, with what was noted beside it.

    The file's name tells experiments, stores and kinds of table apart by a digest; neither it nor the file holds the
    store's URI. A file that is broken, of another format or of an experiment that has since been deleted and made anew
    is not used. Where the folder cannot be written that is said once, and everything works without it.

    Args:
        store: Opened if it is not yet.
        kind: What is kept, such as "runs"; part of the file's name.
        of: What the table is about, for a kind of which there are several.
    """

    def __init__(self, store: Store, kind: str, *of: str) -> None:
        place = urlsplit(store.uri)
        # without the password and without the query, which may hold one
        address = [place.scheme, place.username, place.hostname, place.port, place.path, store.experiment, kind, *of]
        digest = hashlib.sha256(json.dumps(address).encode()).hexdigest()[:16]
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", store.experiment)[:40]
        self.path = store.folder / "cache" / f"{name}-{kind}-{digest}.parquet"
        experiment = store.client.get_experiment(store.experiment_id)
        self._identity = {
            "format": FORMAT,
            "experiment": experiment.experiment_id,
            "created": experiment.creation_time,
        }

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Let others wait, for a while, that would read the same from the store; no error if it can't be had."""
        from filelock import FileLock, Timeout

        with contextlib.ExitStack() as held:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(self.path.with_suffix(".lock"), timeout=_LOCK_SECONDS))
            except Timeout:
                _logger.info("%s: another process has held it for %.0f s: not waited for", self.path, _LOCK_SECONDS)
            except OSError as error:
                _cannot_write(self.path.parent, str(error))
            yield

    def read(self) -> tuple[pa.Table, dict[str, Any]] | None:
        """The table and the notes, or None if there is no file that can be used."""
        try:
            table = pq.read_table(self.path, page_checksum_verification=True, partitioning=None)
            notes = json.loads(table.schema.metadata[_KEY])
            if notes["identity"]["format"] != FORMAT:
                raise ValueError(f"it has format {notes['identity']['format']}, this is {FORMAT}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:  # whatever a broken file makes of its reader
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            _logger.warning("%s cannot be used and is made anew: %s", self.path, reason)
            return None
        if notes["identity"] != self._identity:
            _logger.info("%s is of an experiment that is gone, and is made anew", self.path)
            return None
        return table.replace_schema_metadata(None), notes["notes"]

    def write(self, table: pa.Table, notes: dict[str, Any]) -> None:
        """Replace the file; a failure is said once and has no other consequence."""
        said = json.dumps({"identity": self._identity, "notes": notes}).encode()
        unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            for leftover in self.path.parent.glob(f".{self.path.name}.*"):
                leftover.unlink()  # of a process that was killed
            self.path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(
                table.replace_schema_metadata({_KEY: said}), unfinished, compression="zstd", write_page_checksum=True
            )
            unfinished.replace(self.path)
        except OSError as error:
            _cannot_write(self.path.parent, str(error))
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)


@functools.cache
def _cannot_write(folder: Path, reason: str) -> None:
    """Said once a folder and reason."""
    _logger.warning("%s cannot be written (%s): the store is read anew every time", folder, reason)
