"""A study's Optuna database, SQLite or PostgreSQL, and the lock of its one scheduler."""

import contextlib
import copy
import errno
import functools
import hashlib
import json
import logging
import os
import re
import socket
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import psutil
import sqlalchemy as sql
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

from src.core.errors import ConfigError, UserError, require
from src.core.files import atomic_file
from src.tracking.retry import Retry

KEY = "hydra.sweeper.storage"
# File systems, by their names in the mount table, that only one machine writes.
_LOCAL = {"apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "ntfs"}
_LOCAL |= {"overlay", "tmpfs", "xfs", "zfs"}
_BUSY_SECONDS = 60  # a writer waits so long for others; one commit takes milliseconds
_CONNECT_SECONDS = 5
_CREATE_SECONDS = 120.0
# A silent loss of the connection is noticed within about a minute, on both sides.
_KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
_HOLDER = """SELECT a.application_name
    || to_char(a.backend_start, '", since "YYYY-MM-DD HH24:MI:SS TZ')
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.classid::bigint = :high AND l.objid::bigint = :low"""
# Who owned a study last: a lock that was lost and taken again does not tell.
_OWNERS = """CREATE TABLE IF NOT EXISTS paretoderm_owners
    (study TEXT PRIMARY KEY, owner TEXT NOT NULL)"""
_ENTER = """INSERT INTO paretoderm_owners VALUES (:study, :owner)
    ON CONFLICT (study) DO UPDATE SET owner = :owner"""
_LAST = "SELECT owner FROM paretoderm_owners WHERE study = :study"
_CREATION = "paretoderm:creation"  # system attribute of a trial, by which a repeated write knows it


class Connection(sqlite3.Connection):
    """Waits for the disk only when the write-ahead log is folded in, where there is one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            self.execute("PRAGMA synchronous = NORMAL")


def set_journal(file: Path, busy_seconds: float) -> None:
    """Set the journal mode of a SQLite database that suits its disk; SQLite stores it in the file.

    After waiting `busy_seconds` for other users the mode stays as it is.
    """
    mode = "wal" if is_local(file) else "delete"
    with contextlib.closing(sqlite3.connect(file, timeout=busy_seconds)) as connection:
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != mode:
            with contextlib.suppress(sqlite3.OperationalError):
                connection.execute(f"PRAGMA journal_mode = {mode}")


def is_local(path: Path) -> bool:
    """Whether only this machine can write there; False where that is unknown."""
    path = path.absolute()
    mounts = {Path(m.mountpoint): m.fstype.lower() for m in psutil.disk_partitions(all=True)}
    kinds = (mounts[folder] for folder in (path, *path.parents) if folder in mounts)
    return next(kinds, "") in _LOCAL


def default_url(folder: Path) -> str:
    """URL of the SQLite database `optuna.db` in `folder`, the default of a study."""
    return f"sqlite:///{Path(folder).absolute() / 'optuna.db'}"


def resolve_url(url: str) -> str:
    """The URL as every process can use it: absolute, with the driver's name.

    Args:
        url: `sqlite:///<file>` or `postgresql://<user>:<password>@<host>/<database>`.

    Raises:
        ConfigError: Another kind of URL, or a database that would not outlive the process.
    """
    expected = "must be sqlite:///<file> or postgresql://<user>:<password>@<host>/<database>"
    if url.startswith("sqlite:"):
        name = url.removeprefix("sqlite:///")
        if name == url or name in ("", ":memory:") or re.search("[%?]", str(Path(name).absolute())):
            raise ConfigError(KEY, f"{expected}, the file's path without % and ?, but got {url}")
        return f"sqlite:///{Path(name).absolute()}"
    scheme, separator, rest = url.partition("://")
    resolved = f"postgresql+psycopg://{rest}"
    try:
        if not separator or scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
            raise ValueError
        host = sql.make_url(resolved).host or ""
    except (sql.exc.ArgumentError, ValueError):  # its text may contain a part of the password
        raise ConfigError(KEY, f"{expected}, but got {url}") from None
    if "@" in host:
        raise ConfigError(KEY, f"must have each @ of its password written as %40, but got {url}")
    return resolved


class ServerStorage(RDBStorage):
    """Optuna's storage on a server; waits while it is away, and writes nothing twice.

    Only the owner of a study creates and claims trials.

    Args:
        retry: Repeats each access.
        arguments: Of `RDBStorage`.
    """

    def __init__(self, retry: Retry, *arguments: Any, **options: Any) -> None:
        self._retry = retry
        super().__init__(*arguments, **options)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """As Optuna's."""

        def write(is_repeated: bool) -> bool:
            if is_repeated and self.get_trial(trial_id).state is state:
                return True
            return RDBStorage.set_trial_state_values(self, trial_id, state, values)

        return self._retry.call(write)

    def _create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> FrozenTrial:
        if template_trial is None:  # what Optuna creates
            template = optuna.trial.create_trial(state=TrialState.RUNNING)
            template.datetime_start = datetime.now()
        else:
            template = copy.copy(template_trial)
        template.system_attrs = {**template.system_attrs, _CREATION: uuid.uuid4().hex}
        create = functools.partial(RDBStorage._create_new_trial, self, study_id, template)
        return self._retry.call(lambda is_repeated: create())

    def _get_prepared_new_trial(self, study_id: int, template_trial: Any, session: Any) -> Any:
        """The trial of an earlier attempt whose answer was lost; Optuna itself tries again too."""
        trials = session.query(models.TrialModel).filter_by(study_id=study_id)
        newest = trials.order_by(models.TrialModel.trial_id.desc()).first()
        creation = json.dumps(template_trial.system_attrs[_CREATION])
        attributes = newest.system_attributes if newest else ()
        if any(item.key == _CREATION and item.value_json == creation for item in attributes):
            return newest
        return super()._get_prepared_new_trial(study_id, template_trial, session)


def _repeated(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: ServerStorage, *arguments: Any, **options: Any) -> Any:
        return self._retry.call(lambda is_repeated: method(self, *arguments, **options))

    return call


# All other methods that Optuna calls; they read, or write the same value again.
_PUBLIC = {name for name in vars(RDBStorage).keys() & vars(BaseStorage) if name[0] != "_"}
_CALLED = {*_PUBLIC, "_set_trial_param", "_get_trials", "_get_best_trial_id"}
for _name in _CALLED - vars(ServerStorage).keys() - {"remove_session"}:
    setattr(ServerStorage, _name, _repeated(getattr(RDBStorage, _name)))


def open_storage(url: str, retry: Retry | None = None) -> BaseStorage:
    """Open a database, created first if there is none; several processes may do so at once.

    Args:
        url: As for `resolve_url`. The folder of a SQLite database is created.
        retry: Of a server, from `ownership`: repeats what it does not answer; None: nothing.

    Returns:
        Optuna's storage, which caches finished trials: open it once and pass it on.

    Raises:
        ConfigError: An impossible URL.
        DependencyError: PostgreSQL's driver is not installed.
        UserError: The database cannot be reached, created or read; reported within seconds, without
            the password.
    """
    url = resolve_url(url)
    with _one_line_errors(url), contextlib.ExitStack() as stack:
        if file := _database_file(url):
            file.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{file}.create.lock", timeout=_CREATE_SECONDS))
            set_journal(file, _CONNECT_SECONDS)
        else:
            connection = stack.enter_context(_session(url, "paretoderm"))
            lock = sql.text("SELECT pg_advisory_lock(:key)")
            connection.execute(lock, {"key": _lock_key("tables")})
        return optuna.storages.get_storage(_rdb(url, retry))


def attach(
    url: str,
    study_name: str,
    trial_id: int,
    pruner: optuna.pruners.BasePruner | None = None,
    wait_s: float = 0.0,
) -> optuna.Trial:
    """The trial with that id, for the process that runs it.

    Nothing is created or migrated; no other trial is read until the pruner needs them.

    Args:
        url: Of a database that `open_storage` has opened before.
        study_name: The study of the trial.
        trial_id: Optuna's id, not its number.
        pruner: Used by `should_prune`; None never prunes.
        wait_s: The longest outage of a server that the trial waits for, now and later.

    Raises:
        UserError: The database cannot be reached, or has no such study or trial.
    """
    url = resolve_url(url)
    with _one_line_errors(url):
        retry = Retry(KEY, url, wait_s)
        storage = _rdb(url, retry, skip_compatibility_check=True, skip_table_creation=True)
        sampler, pruner = optuna.samplers.RandomSampler(), pruner or optuna.pruners.NopPruner()
        try:
            return optuna.Trial(optuna.Study(study_name, storage, sampler, pruner), trial_id)
        except KeyError:
            problem = f"no study {study_name!r} with a trial of id {trial_id}"
            raise UserError(f"{url}: {problem}") from None


@contextlib.contextmanager
def ownership(
    url: str, study_name: str, retry: Retry | None = None
) -> Iterator[Callable[[], bool]]:
    """Hold the lock of the one process that asks and tells a study.

    The lock ends with the process, even if that is killed. A plainly forked child would keep it:
    start trials from a fork server, or by spawning.

    Args:
        url: The study's database, as for `resolve_url`.
        study_name: The study; it need not exist yet.
        retry: Of the study's storage on a server. Before it repeats an access, it takes the lock
            again, which a lost connection loses.

    Yields:
        A function that says whether the lock is still held. False once another process had it.

    Raises:
        UserError: Another process holds the lock; the message names it.
    """
    url = resolve_url(url)
    stack = contextlib.ExitStack()
    try:
        with _one_line_errors(url):
            if url.startswith("sqlite:"):
                is_held = _lock_file(url, study_name, stack)
            else:
                lock, retry = _ServerLock(url, study_name, stack), retry or Retry(KEY, url)
                retry.restore = lock.regain
                is_held = functools.partial(lock.is_held, retry)
        yield is_held
    finally:
        with contextlib.suppress(sql.exc.SQLAlchemyError):  # a lost connection lost the lock
            stack.close()


def _lock_file(url: str, study_name: str, stack: contextlib.ExitStack) -> Callable[[], bool]:
    name = f"{_database_file(url)}.{quote(study_name, safe='')}.owner"
    note, lock = Path(f"{name}.txt"), FileLock(f"{name}.lock", timeout=0, thread_local=False)
    note.parent.mkdir(parents=True, exist_ok=True)
    try:
        stack.enter_context(lock)
    except Timeout:
        if not Path(lock.lock_file).exists():  # a folder that takes no files, such as /proc
            reason = os.strerror(errno.ENOENT)
            raise FileNotFoundError(errno.ENOENT, reason, lock.lock_file) from None
        owner = ""
        with contextlib.suppress(OSError):
            owner = note.read_text()
        raise _refused(study_name, owner) from None
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    with atomic_file(note) as draft:
        draft.write_text(f"{socket.gethostname()}, process {os.getpid()}, since {since}")
    stack.callback(note.unlink, missing_ok=True)
    return lambda: lock.is_locked


class _ServerLock:
    """An advisory lock of a server, taken again after a lost connection if nobody else had it."""

    def __init__(self, url: str, study_name: str, stack: contextlib.ExitStack) -> None:
        self._url = url
        self._study = study_name
        self._holder = f"{socket.gethostname()[:40]}, process {os.getpid()}"
        self._entry = {"study": study_name, "owner": uuid.uuid4().hex}
        self._session = stack.enter_context(contextlib.ExitStack())
        self._lost: UserError | None = None
        self._connection = self._connect()
        # Two processes may create the table at once.
        with contextlib.suppress(sql.exc.IntegrityError, sql.exc.ProgrammingError):
            self._connection.execute(sql.text(_OWNERS))
        self._connection.execute(sql.text(_ENTER), self._entry)
        stack.callback(self._release)

    def _connect(self) -> sql.Connection:
        connection = self._session.enter_context(_session(self._url, self._holder))
        key = _lock_key(f"owner of {self._study}")
        lock = sql.text("SELECT pg_try_advisory_lock(:key)")
        if not connection.execute(lock, {"key": key}).scalar():
            halves = {"high": (key >> 32) & 0xFFFFFFFF, "low": key & 0xFFFFFFFF}
            raise _refused(self._study, connection.execute(sql.text(_HOLDER), halves).scalar())
        return connection

    def _release(self) -> None:
        self._lost = UserError(f"study {self._study}: its lock is released")

    def regain(self) -> None:
        """Take the lock again if its connection is lost; a UserError if another process had it."""
        if self._lost is not None:
            raise self._lost
        with contextlib.suppress(sql.exc.SQLAlchemyError):
            self._connection.execute(sql.text("SELECT 1"))
            return
        with contextlib.suppress(sql.exc.SQLAlchemyError):
            self._session.close()
        try:
            self._connection = self._connect()
            owner = self._connection.execute(sql.text(_LAST), self._entry).scalar()
            if owner != self._entry["owner"]:
                problem = "another process has run it while the database did not answer"
                raise UserError(f"study {self._study}: {problem}; the same command continues it")
        except UserError as error:
            self._session.close()
            if f"{self._holder}, since" in str(error):
                # The server takes the lost connection for alive: not yet.
                raise sql.exc.OperationalError("lock", None, error) from None
            self._lost = error
            raise

    def is_held(self, retry: Retry) -> bool:
        """Whether the lock is held, after an outage too."""
        try:
            retry.call(lambda is_repeated: self.regain())
        except UserError:
            if self._lost is None:
                raise
        return self._lost is None


def _refused(study_name: str, owner: str | None) -> UserError:
    way = "wait for it, or end it"
    return UserError(f"study {study_name} is being run by {owner or 'another process'}: {way}")


@contextlib.contextmanager
def _session(url: str, name: str) -> Iterator[sql.Connection]:
    """A separate connection; its session's locks end with it."""
    options = _engine_options(url)
    options["connect_args"]["application_name"] = name
    engine = sql.create_engine(url, poolclass=sql.NullPool, isolation_level="AUTOCOMMIT", **options)
    settings = {f"tcp_{name}": value for name, value in _KEEPALIVE.items()}
    with engine.connect() as connection:
        for setting, value in {**settings, "idle_session_timeout": 0}.items():
            # A socket has no keepalive, an old server has no such timeout.
            with contextlib.suppress(sql.exc.DBAPIError):
                connection.execute(sql.text(f"SET {setting} = {value}"))
        yield connection


def _rdb(url: str, retry: Retry | None = None, **options: Any) -> RDBStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    template = url.replace("{", "{{").replace("}", "}}")  # Optuna formats its URL
    if _database_file(url):
        return RDBStorage(template, _engine_options(url), **options)
    # Its warning about a connection that was lost has several lines.
    logging.getLogger("optuna.storages._rdb.storage").setLevel(logging.ERROR)
    retry, engine = retry or Retry(KEY, url), _engine_options(url)
    return retry.call(lambda is_repeated: ServerStorage(retry, template, engine, **options))


def _engine_options(url: str) -> dict[str, Any]:
    if _database_file(url):
        return {"connect_args": {"timeout": _BUSY_SECONDS, "factory": Connection}}
    require("postgres", "psycopg")
    # The encoding is set because a server that was created under the C locale would send bytes.
    arguments = {"connect_timeout": _CONNECT_SECONDS, "client_encoding": "utf8", "keepalives": 1}
    # Keepalives are not sent while data wait for their acknowledgement.
    arguments |= {"tcp_user_timeout": 60_000, **_KEEPALIVE}
    return {"pool_pre_ping": True, "connect_args": arguments}


@contextlib.contextmanager
def _one_line_errors(url: str) -> Iterator[None]:
    internal = optuna.exceptions.StorageInternalError
    try:
        yield
    except (sql.exc.SQLAlchemyError, sqlite3.Error, internal, OSError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, internal) else error
        text = " ".join(str(getattr(cause, "orig", None) or cause).split())
        if password := sql.make_url(url).password:
            text = text.replace(str(password), "***")
        raise UserError(f"{KEY}: cannot use {url}: {text[:300]}") from error


def _database_file(url: str) -> Path | None:
    """The file of a resolved SQLite URL."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:") else None


def _lock_key(purpose: str) -> int:
    """A signed 64-bit number, as PostgreSQL's advisory locks take them."""
    digest = hashlib.sha256(f"paretoderm {purpose}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)
