"""The MLflow store: URI, database, experiment, and runs whose process is gone."""

import contextlib
import logging
import os
import socket
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
from omegaconf import DictConfig, OmegaConf

from src.core.config import check, instantiate, resolve
from src.core.errors import ConfigError, UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

VANISHED = "the process vanished (killed?)"
_PAGE = 1000  # runs per request, MLflow's default
_LOCK_SECONDS = 120.0  # creating a store takes 2-10 s
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
# Tag of an experiment whose artifacts lie beside its database, and move with it.
_ARTIFACTS_TAG = "paretoderm.artifacts"
_BESIDE = "beside the database"


class TrackingError(UserError):
    """The run store cannot be reached, read or written."""


class Store:
    """An MLflow store and the experiment in it that holds the runs.

    Args:
        uri: MLflow tracking URI. None or empty: the environment's MLFLOW_TRACKING_URI; without that
            SQLite, `<folder>/mlflow.db`. A missing SQLite file is created.
        experiment: Name of the MLflow experiment; created if missing.
        folder: Folder of the default database, of the cache, and of the artifacts
            (`<folder>/artifacts`) of a database server. A SQLite database has its artifacts beside
            it; a tracking server stores them itself.

    Raises:
        ConfigError: A URI that MLflow cannot use or that would not outlive the process, or an empty
            experiment name.
    """

    def __init__(
        self, uri: str | None = None, experiment: str = "paretoderm", folder: Path | str = "mlruns"
    ) -> None:
        if not experiment.strip():
            message = "must be the name of an MLflow experiment, but is empty"
            raise ConfigError("experiment", message)
        self.experiment = experiment
        self.folder = Path(folder).resolve()
        default = f"sqlite:///{self.folder / 'mlflow.db'}"
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or default
        self.database: Path | None = None  # the SQLite file, if it is one
        if self.uri.startswith("sqlite:"):
            name = self.uri.removeprefix("sqlite:///").split("?")[0]
            if not self.uri.startswith("sqlite:///") or name in ("", ":memory:"):
                raise ConfigError("uri", f"must be sqlite:///<a file>, but got {self.uri}")
            self.database = Path(name).resolve()
            if "%" in name or "%" in str(self.database):
                # SQLAlchemy 2.1 decodes percent signs, 2.0 does not.
                message = f"must be a path without percent signs, but got {self.database.parent}"
                raise ConfigError("folder", message)
            self.uri = self.uri.replace(name, str(self.database), 1)
        elif urlsplit(self.uri).scheme in ("", "file"):
            message = f"must be sqlite:///<a file> or a server's URL, but got {self.uri}"
            raise ConfigError("uri", message)
        self._client: MlflowClient | None = None
        self._experiment_id = ""

    @property
    def is_server(self) -> bool:
        """Whether the store is a tracking server, which decides where its artifacts go."""
        return urlsplit(self.uri).scheme.split("+")[0] not in ("sqlite", *_PORTS)

    @property
    def artifacts(self) -> Path:
        """The folder of the artifacts of a store without a server."""
        return (self.database.parent if self.database else self.folder) / "artifacts"

    @property
    def client(self) -> "MlflowClient":
        """MLflow's client for this store, opened on first use."""
        client = self._client or self.open()._client
        assert client is not None
        return client

    @property
    def experiment_id(self) -> str:
        """MLflow's id of the experiment; the store is opened on first use."""
        return self.open()._experiment_id

    def open(self, create: bool = True) -> "Store":
        """Connect to the database and the experiment.

        Safe in several processes at once. Creating a store takes seconds and prints a line.

        Args:
            create: Create what is missing. False, for readers, refuses instead.

        Returns:
            The store itself.

        Raises:
            TrackingError: The server does not answer, the database cannot be created or read, or
                `create` is False and there is no such database or experiment.
        """
        if self._client is not None:
            return self
        if not create and self.database is not None and not self.database.exists():
            message = "no run store is there: train something first, or set tracking.uri"
            raise TrackingError(f"{self.uri}: {message}")
        _import_mlflow()
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            self._check_connection()
            with brief_http(), quiet("mlflow", "mlflow.store.db.utils", "urllib3"):
                client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                self._experiment_id = self._open_experiment(client, create)
        except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
            reason = " ".join(str(_root_cause(error)).split())[:300] or type(error).__name__
            advice = "start the server, or correct MLFLOW_TRACKING_URI"
            advice = "repair the file or move it away" if self.database else advice
            message = f"{self.uri}: the run store cannot be used ({reason}): {advice}"
            password = urlsplit(self.uri).password
            message = message.replace(f":{password}@", ":***@") if password else message
            raise TrackingError(message) from error
        self._client = client
        return self

    def search(self, filter: str = "", deleted: bool = False) -> "Iterator[MlflowRun]":
        """The experiment's runs (or its deleted ones) that match MLflow's filter, newest first.

        Raises:
            TrackingError: The filter is not in MLflow's search language.
        """
        client, token = self.client, None
        from mlflow.entities import ViewType
        from mlflow.exceptions import MlflowException

        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        while token != "":
            try:
                page = client.search_runs([self.experiment_id], filter, view, _PAGE, None, token)
            except MlflowException as error:
                reason = " ".join(str(error).split())
                raise TrackingError(f"cannot search the runs for {filter!r}: {reason}") from error
            yield from page
            token = page.token or ""

    def discard(self, run_id: str) -> None:
        """Delete a run without content, such as an empty parent (MLflow can restore it)."""
        self.client.delete_run(run_id)

    def __getstate__(self) -> dict[str, Any]:
        """A store is pickled closed: connections cannot be."""
        return {**self.__dict__, "_client": None, "_experiment_id": ""}

    def _check_connection(self) -> None:
        """Create a missing SQLite file; else try once: MLflow itself would retry for minutes."""
        if self.database is not None:
            if not self.database.exists():
                with self._lock():
                    self._create_database(self.database)
            with contextlib.closing(sqlite3.connect(self.database, timeout=20)) as connection:
                connection.execute("PRAGMA schema_version").fetchone()
            return
        parts = urlsplit(self.uri)
        port = _PORTS.get(parts.scheme.split("+")[0])
        if port and parts.hostname:
            socket.create_connection((parts.hostname, parts.port or port), timeout=5).close()

    def _create_database(self, database: Path) -> None:
        """Create the database under another name, then rename it. Called under the lock."""
        if database.exists():
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        message = f"creating the run store {database} (once, takes some seconds) ..."
        print(message, file=sys.stderr, flush=True)
        for leftover in database.parent.glob(f"{database.name}.creating-*"):
            leftover.unlink()
        draft = database.with_name(f"{database.name}.creating-{os.getpid()}")
        draft.touch()  # a folder that cannot be written fails here, not after MLflow's retries
        with quiet("mlflow", "mlflow.store.db.utils", "urllib3"):
            SqlAlchemyStore(f"sqlite:///{draft}", str(self.artifacts)).engine.dispose()
        draft.replace(database)

    def _open_experiment(self, client: "MlflowClient", create: bool) -> str:
        from mlflow.exceptions import MlflowException

        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None and not create:
            names = [other.name for other in client.search_experiments() if other.name != "Default"]
            verb = "are" if len(names) > 1 else "is"
            message = f"not in {self.uri}; there {verb} {', '.join(names) or 'none'}"
            raise TrackingError(f"experiment {self.experiment!r}: {message}")
        if experiment is None:
            with contextlib.nullcontext() if self.is_server else self._lock():
                # Another process may have created it in the meantime.
                experiment = client.get_experiment_by_name(self.experiment)
                if experiment is None:
                    artifacts = None if self.is_server else str(self.artifacts)
                    tags = {_ARTIFACTS_TAG: _BESIDE} if self.database else {}
                    try:
                        return str(client.create_experiment(self.experiment, artifacts, tags))
                    except MlflowException as error:
                        experiment = client.get_experiment_by_name(self.experiment)
                        if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:
                            raise
        if experiment.lifecycle_stage != "active":
            raise ConfigError(
                "experiment",
                f"{self.experiment!r} was deleted from {self.uri}: choose another name, or restore "
                f"it with `mlflow experiments restore --experiment-id {experiment.experiment_id}`",
            )
        location, beside = experiment.artifact_location, experiment.tags.get(_ARTIFACTS_TAG)
        if self.database and beside == _BESIDE and location != str(self.artifacts):
            self._follow_move(self.database, location)
        return str(experiment.experiment_id)

    def _follow_move(self, database: Path, old: str) -> None:
        """Correct the artifact paths in a database that was moved: MLflow keeps full paths."""
        new, start = str(self.artifacts), len(old) + 1
        connection = sqlite3.connect(database, timeout=20)
        with self._lock(), contextlib.closing(connection), connection:
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?",
                (new, old),
            )
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE substr(artifact_uri, 1, ?) = ?",
                (new, start, start, f"{old}/"),
            )

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        beside = self.database or self.folder / "store"
        beside.parent.mkdir(parents=True, exist_ok=True)
        path = beside.with_name(f"{beside.name}.lock")
        try:
            with FileLock(path, timeout=_LOCK_SECONDS):
                yield
        except Timeout as error:
            message = f"another process has held it for {_LOCK_SECONDS:.0f} s; end that process"
            raise TrackingError(f"{path}: {message}") from error


def existing(config: DictConfig, experiment: str | None = None) -> Store:
    """The store that a command's config names, opened for reading.

    Args:
        config: The complete config, with `tracking`.
        experiment: Instead of the one in the config.

    Raises:
        ConfigError: A bad value below `tracking`.
        TrackingError: There is no such store, or it cannot be read.
    """
    override = {"experiment": experiment} if experiment else {}
    node = OmegaConf.merge(config.tracking, override)
    assert isinstance(node, DictConfig)
    check(resolve(node), "tracking")
    store: Store = instantiate(node, "tracking")
    return store.open(create=False)


@contextlib.contextmanager
def brief_http() -> Iterator[None]:
    """Requests to a tracking server fail after some seconds (MLflow's default is minutes).

    Variables that the environment sets keep their values.
    """
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    limits = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(limits)
    try:
        yield
    finally:
        for name in limits:
            os.environ.pop(name, None)


@contextlib.contextmanager
def quiet(*names: str, level: int = logging.CRITICAL) -> Iterator[None]:
    """Raise the level of loggers: errors of MLflow are raised and reported in one line anyway."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)


def _import_mlflow() -> None:
    """Import MLflow (about a second) without telemetry and without messages on the terminal."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401

    logging.getLogger("alembic").setLevel(logging.WARNING)


def _root_cause(error: BaseException) -> BaseException:
    """The operating system's error, if it caused this one; libraries wrap it in paragraphs."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def owner_tags() -> dict[str, str]:
    """Tags that identify this process; process ids are reused, so its start is one of them."""
    return {
        "host": socket.gethostname(),
        "pid": str(psutil.Process().pid),
        "process_start": f"{_seconds_after_boot(psutil.Process()):.2f}",
    }


def reap(store: Store) -> list[str]:
    """End the runs of this host that are RUNNING although their process is gone.

    They become FAILED, with the tags `failure` and `trial_state`. Runs of other hosts and programs
    are not changed.

    Returns:
        The ids of the runs that were ended.
    """
    query = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
    ids = [run.info.run_id for run in store.search(query) if not _is_alive(run.data.tags)]
    for run_id in ids:
        close(store, run_id, "fail", VANISHED)
    return ids


def close(store: Store, run_id: str, state: str, reason: str) -> None:
    """End a run from outside its process, or overrule how it ended.

    Args:
        store: Opened if it is not yet.
        run_id: The run.
        state: Its `trial_state`: complete, pruned, over_limit or fail; fail makes it FAILED, the
            others FINISHED.
        reason: One line, the tag `failure` or `ended_early`. Empty for none.
    """
    status = "FAILED" if state == "fail" else "FINISHED"
    tag = "failure" if state == "fail" else "ended_early"
    run = store.client.get_run(run_id)
    tags = run.data.tags
    if reason and tags.get(tag) != reason:
        store.client.set_tag(run_id, tag, reason)
    if state != "fail" and "failure" in tags:
        store.client.delete_tag(run_id, "failure")
    if tags.get("trial_state") != state:
        store.client.set_tag(run_id, "trial_state", state)
    if run.info.status != status and not (state == "fail" and run.info.status == "KILLED"):
        store.client.set_terminated(run_id, status)


def _is_alive(tags: dict[str, str]) -> bool:
    if "pid" not in tags or "process_start" not in tags:
        return True  # another program's run
    try:
        process = psutil.Process(int(tags["pid"]))
        same = abs(_seconds_after_boot(process) - float(tags["process_start"])) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _seconds_after_boot(process: psutil.Process) -> float:
    """Start of a process after the boot; setting the clock does not change it."""
    return process.create_time() - psutil.boot_time()
