"""How a study's SQLite file is written: without waiting for the disk at each of a trial's dozen small commits.

With a write-ahead log a killed process still loses nothing; a power cut may lose the last moments, never the database.
The log needs memory that all processes share, so on a disk of the network the file keeps its slower rollback journal.
"""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import psutil

# By their names in the mount table. A disk of another kind may be shared by machines.
_LOCAL = {"apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "ntfs", "overlay", "tmpfs", "xfs", "zfs"}


class Connection(sqlite3.Connection):
    """Waits for the disk only where the journal demands it: in a write-ahead log when that is folded in."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            self.execute("PRAGMA synchronous = NORMAL")


def set_journal(file: Path, busy_seconds: float) -> None:
    """Choose the journal that fits the disk; kept in the file, so once is enough.

    Args:
        file: A SQLite database.
        busy_seconds: How long to wait for others; where they do not let go the journal stays as it is.
    """
    wanted = "wal" if is_local(file) else "delete"
    with contextlib.closing(sqlite3.connect(file, timeout=busy_seconds)) as connection:
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != wanted:
            with contextlib.suppress(sqlite3.OperationalError):
                connection.execute(f"PRAGMA journal_mode = {wanted}")


def is_local(path: Path) -> bool:
    """Whether only this machine can write there; False where that is not known."""
    place = path.absolute()
    mounts = {Path(mount.mountpoint): mount.fstype.lower() for mount in psutil.disk_partitions(all=True)}
    return next((mounts[folder] in _LOCAL for folder in (place, *place.parents) if folder in mounts), False)
