"""Optuna database, ownership lock."""

import contextlib
import hashlib
import json
import os
import re
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import optuna
import psutil
import sqlalchemy as sql
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, RDBStorage

from src.core.errors import ConfigError, DependencyError, UserError

# By their names in the mount table. A disk of another kind may be shared by machines.
_LOCAL = {
    "apfs",
    "bcachefs",
    "btrfs",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "hfs",
    "ntfs",
    "overlay",
    "tmpfs",
    "xfs",
    "zfs",
}


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
        busy_seconds: How long to wait for others; where they do not let go the journal stays as it
            is.
    """
    wanted = "wal" if is_local(file) else "delete"
    with contextlib.closing(sqlite3.connect(file, timeout=busy_seconds)) as connection:
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != wanted:
            with contextlib.suppress(sqlite3.OperationalError):
                connection.execute(f"PRAGMA journal_mode = {wanted}")


def is_local(path: Path) -> bool:
    """Whether only this machine can write there; False where that is not known."""
    place = path.absolute()
    mounts = {
        Path(mount.mountpoint): mount.fstype.lower() for mount in psutil.disk_partitions(all=True)
    }
    return next(
        (mounts[folder] in _LOCAL for folder in (place, *place.parents) if folder in mounts), False
    )


KEY = "hydra.sweeper.storage"
_BUSY_SECONDS = 60  # a writer waits so long for the others; one commit takes milliseconds
_CONNECT_SECONDS = 5
_CREATE_SECONDS = 120.0
# A server that vanished without a word is noticed within about a minute, by us and (an owner's
# lock) by the server.
_KEEPALIVE = {
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}
_SERVER_KEEPALIVE = {
    "tcp_keepalives_idle": 30,
    "tcp_keepalives_interval": 10,
    "tcp_keepalives_count": 3,
}


def default_url(folder: Path) -> str:
    """URL of the SQLite database that a study has if none is named: `optuna.db` in `folder`."""
    return f"sqlite:///{Path(folder).absolute() / 'optuna.db'}"


def resolve_url(url: str) -> str:
    """The URL as every process can use it, from whichever working directory: absolute, and naming its driver.

    Args:
        url: `sqlite:///<file>` or `postgresql://<user>:<password>@<host>/<database>`.

    Raises:
        ConfigError: Another kind of URL, or one that would not outlive the process.
    """
    expected = "must be sqlite:///<file> or postgresql://<user>:<password>@<host>/<database>"
    if url.startswith("sqlite:"):
        name = url.removeprefix("sqlite:///")
        if name == url or name in ("", ":memory:") or re.search("[%?]", str(Path(name).absolute())):
            raise ConfigError(KEY, f"{expected}, the file's path without % and ?, but got {url}")
        return f"sqlite:///{Path(name).absolute()}"
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise ConfigError(KEY, f"{expected}, but got {_masked(url)}")
    resolved = f"postgresql+psycopg://{rest}"
    try:
        host = sql.make_url(resolved).host or ""
    except (sql.exc.ArgumentError, ValueError):  # its text may hold a piece of the password
        raise ConfigError(KEY, f"{expected}, but got {_masked(url)}") from None
    if "@" in host:
        raise ConfigError(
            KEY, f"must have each @ of its password written as %40, but got {_masked(url)}"
        )
    return resolved


def open_storage(url: str) -> BaseStorage:
    """Open a database, made first if there is none; safe in several processes at once.

    Args:
        url: As for `resolve_url`. The folder of a SQLite database is made.

    Returns:
        Optuna's storage, which keeps finished trials in memory: open it once and hand it on.

    Raises:
        ConfigError: The URL cannot be.
        DependencyError: PostgreSQL's driver is not installed.
        UserError: The database cannot be reached, made or read; said within seconds, the password
            left out.
    """
    url = resolve_url(url)
    _be_quiet()
    with _one_line_errors(url), _creation_lock(url):
        if file := _database_file(url):
            set_journal(file, _CONNECT_SECONDS)
        return optuna.storages.get_storage(RDBStorage(_template(url), _engine_options(url)))


def attach(
    url: str, study_name: str, trial_id: int, pruner: optuna.pruners.BasePruner | None = None
) -> optuna.Trial:
    """The trial with that id, for the process that runs it: it reports and reads, and never asks.

    Nothing is created or migrated, and no other trial is read, until the pruner needs them.

    Args:
        url: Of a database that `open_storage` has opened before.
        study_name: The study that the trial belongs to.
        trial_id: Optuna's id of the trial; not its number.
        pruner: What `should_prune` asks; None never prunes.

    Raises:
        UserError: The database cannot be reached, or has no such study or trial.
    """
    url = resolve_url(url)
    _be_quiet()
    with _one_line_errors(url):
        backend = RDBStorage(
            _template(url),
            _engine_options(url),
            skip_compatibility_check=True,
            skip_table_creation=True,
        )
        try:
            study = optuna.Study(
                study_name,
                backend,
                optuna.samplers.RandomSampler(),
                pruner or optuna.pruners.NopPruner(),
            )
            return optuna.Trial(study, trial_id)
        except KeyError:
            raise UserError(
                f"{_masked(url)}: no study {study_name!r} with a trial of id {trial_id}"
            ) from None


class Ownership:
    """Held by the one process that asks and tells a study; a context manager.

    The lock goes with the process, also when it is killed. Children made by a plain fork would keep
    it: start trials from a fork server, or by spawning.

    Args:
        url: The study's database, as for `resolve_url`.
        study_name: The study; it need not exist yet.

    Raises:
        UserError: On entering: another process owns the study; the message names it.
    """

    def __init__(self, url: str, study_name: str) -> None:
        self.url = resolve_url(url)
        self.study_name = study_name
        self._held: contextlib.ExitStack | None = None
        self._connection: sql.Connection | None = None

    def __enter__(self) -> "Ownership":
        with contextlib.ExitStack() as stack:
            if _database_file(self.url):
                self._lock_file(stack)
            else:
                self._lock_server(stack)
            self._held = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        held, self._held, self._connection = self._held, None, None
        if held is not None:
            with contextlib.suppress(
                sql.exc.SQLAlchemyError
            ):  # the connection is gone, and the lock with it
                held.close()

    def is_held(self) -> bool:
        """Whether the study is still ours: a lost connection to the server loses the lock."""
        if self._connection is None:
            return self._held is not None
        try:
            self._connection.execute(sql.text("SELECT 1"))
        except sql.exc.SQLAlchemyError:
            return False
        return True

    def _lock_file(self, stack: contextlib.ExitStack) -> None:
        beside = f"{_database_file(self.url)}.{quote(self.study_name, safe='')}.owner"
        with _one_line_errors(self.url):
            Path(beside).parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{beside}.lock", timeout=0, thread_local=False)
            try:
                stack.enter_context(lock)
            except Timeout:
                raise self._refused(_read(Path(f"{beside}.json"))) from None
            _write(
                Path(f"{beside}.json"),
                {
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
                },
            )
            stack.callback(Path(f"{beside}.json").unlink, missing_ok=True)

    def _lock_server(self, stack: contextlib.ExitStack) -> None:
        key = _lock_key(f"owner of {self.study_name}")
        with _one_line_errors(self.url):
            connection = stack.enter_context(
                _session(self.url, f"{socket.gethostname()[:40]} {os.getpid()}")
            )
            if not connection.execute(
                sql.text("SELECT pg_try_advisory_lock(:key)"), {"key": key}
            ).scalar():
                raise self._refused(_holder(connection, key))
        self._connection = connection

    def _refused(self, owner: dict[str, Any]) -> UserError:
        who = "{host}, process {pid}, since {since}".format(**owner) if owner else "another process"
        return UserError(f"study {self.study_name} is being run by {who}: wait for it, or end it")


def _holder(connection: sql.Connection, key: int) -> dict[str, Any]:
    """Who holds an advisory lock: the name that its session gave itself, seen by the same user and by superusers."""
    query = """SELECT a.application_name, to_char(a.backend_start, 'YYYY-MM-DD HH24:MI:SS TZ')
        FROM pg_locks l JOIN pg_stat_activity a USING (pid)
        WHERE l.locktype = 'advisory' AND l.granted AND l.database = (SELECT oid FROM pg_database
        WHERE datname = current_database()) AND l.classid::bigint = :high AND l.objid::bigint = :low"""
    halves = {"high": (key >> 32) & 0xFFFFFFFF, "low": key & 0xFFFFFFFF}
    row = connection.execute(sql.text(query), halves).first()
    host, _, pid = (row[0] or "").rpartition(" ") if row else ("", "", "")
    return {"host": host, "pid": pid, "since": row[1]} if row and host else {}


@contextlib.contextmanager
def _creation_lock(url: str) -> Iterator[None]:
    file = _database_file(url)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.create.lock", timeout=_CREATE_SECONDS):
            yield
    else:
        with _session(url, "paretoderm") as connection:
            connection.execute(
                sql.text("SELECT pg_advisory_lock(:key)"), {"key": _lock_key("tables")}
            )
            yield


@contextlib.contextmanager
def _session(url: str, name: str) -> Iterator[sql.Connection]:
    """A connection of its own, whose session's locks end with it."""
    options = _engine_options(url)
    options["connect_args"]["application_name"] = name
    engine = sql.create_engine(url, poolclass=sql.NullPool, isolation_level="AUTOCOMMIT", **options)
    with engine.connect() as connection:
        for setting, value in {**_SERVER_KEEPALIVE, "idle_session_timeout": 0}.items():
            with contextlib.suppress(
                sql.exc.DBAPIError
            ):  # a socket has no keepalive, an old server no such timeout
                connection.execute(sql.text(f"SET {setting} = {value}"))
        yield connection


def _engine_options(url: str) -> dict[str, Any]:
    if _database_file(url):
        return {"connect_args": {"timeout": _BUSY_SECONDS, "factory": Connection}}
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"{KEY}: PostgreSQL needs psycopg: run `pip install 'paretoderm[postgres]'` ({error})"
        ) from error
    # the encoding is set because a server made under the C locale would send bytes
    arguments = {"connect_timeout": _CONNECT_SECONDS, "client_encoding": "utf8", **_KEEPALIVE}
    return {"pool_pre_ping": True, "connect_args": arguments}


@contextlib.contextmanager
def _one_line_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (
        sql.exc.SQLAlchemyError,
        sqlite3.Error,
        optuna.exceptions.StorageInternalError,
        OSError,
        RuntimeError,
    ) as error:
        cause = (
            error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        )
        text = " ".join(str(getattr(cause, "orig", None) or cause).split())
        password = sql.make_url(url).password
        text = text.replace(str(password), "***") if password else text
        raise UserError(f"{KEY}: cannot use {_masked(url)}: {text[:300]}") from error


def _database_file(url: str) -> Path | None:
    """The file of a resolved SQLite URL."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:") else None


def _template(url: str) -> str:
    return url.replace("{", "{{").replace("}", "}}")  # Optuna formats its URL


def _masked(url: str) -> str:
    return re.sub(r"(password=)[^&\s]*", r"\1***", re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url))


def _lock_key(purpose: str) -> int:
    """A signed 64-bit number, as PostgreSQL's advisory locks take them."""
    return int.from_bytes(
        hashlib.sha256(f"paretoderm {purpose}".encode()).digest()[:8], signed=True
    )


def _be_quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a line a trial is the owner's to write


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)
