"""The journal of a study's file fits the disk it lies on."""

import sqlite3
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from src.sweep.storage import Connection, is_local, set_journal


def disks(**kinds: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in kinds.items()]


def pragma(connection: sqlite3.Connection, name: str) -> object:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


@pytest.mark.parametrize(
    ("kind", "local"), [("ext4", True), ("XFS", True), ("nfs4", False), ("lustre", False)]
)
def test_disk_is_known_by_the_innermost_mount(
    monkeypatch: pytest.MonkeyPatch, kind: str, local: bool
) -> None:
    other = "nfs" if local else "ext4"
    mounts = disks(**{"/": other, "/home": kind, "/home/me/far": other, "/homes": other})
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    assert is_local(Path("/home/me/sweeps/optuna.db")) is local
    assert is_local(Path("/home/me/far/optuna.db")) is not local


def test_unknown_disk_counts_as_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [])
    assert not is_local(Path("/home/optuna.db"))


def test_journal_follows_the_file_from_disk_to_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "a.db"
    for local, journal, waits in [
        (False, "delete", 2),
        (True, "wal", 1),
        (True, "wal", 1),
        (False, "delete", 2),
    ]:
        monkeypatch.setattr("src.sweep.storage.is_local", lambda path, local=local: local)
        set_journal(file, 1.0)
        connection = Connection(str(file))
        assert (pragma(connection, "journal_mode"), pragma(connection, "synchronous")) == (
            journal,
            waits,
        )
        connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
        connection.close()


def test_journal_in_use_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    monkeypatch.setattr("src.sweep.storage.is_local", lambda path: True)
    user = sqlite3.connect(file)
    user.execute("CREATE TABLE t (x)")
    user.execute("INSERT INTO t VALUES (1)")  # a transaction is open
    set_journal(file, 0.0)
    user.commit()
    assert pragma(user, "journal_mode") == "delete"
