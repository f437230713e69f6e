"""MLflow URI, database, experiment; orphaned runs."""

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


_PAGE = 1000  # runs a request, MLflow's default
_LOCK_SECONDS = 120.0  # creating takes 2-10 s
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
# on an experiment whose artifacts lie beside its database, and move with it
_PLACE_TAG = "paretoderm.artifacts"
_BESIDE = "beside the database"


class TrackingError(UserError):
    """The run store cannot be reached, read or written."""


class Store:
    """An MLflow store and the experiment in it that holds the runs.

    Args:
        uri: MLflow tracking URI. None or empty: the environment's MLFLOW_TRACKING_URI; without that
            SQLite, `<folder>/mlflow.db`. A SQLite file is created where it does not exist.
        experiment: Name of the MLflow experiment; created where it does not exist.
        folder: Where the default database goes, and the artifacts (`<folder>/artifacts`) of every
            store that is not a server. A SQLite database named by `uri` has its artifacts beside
            it.

    Raises:
        ConfigError: A URI that MLflow can't use or that would not outlive the process, or an empty
            experiment name.
    """

    def __init__(
        self, uri: str | None = None, experiment: str = "paretoderm", folder: Path | str = "mlruns"
    ) -> None:
        if not experiment.strip():
            raise ConfigError(
                "experiment", "must be the name of an MLflow experiment, but is empty"
            )
        self.experiment = experiment
        self.folder = Path(folder).resolve()
        self.uri = (
            uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.folder / 'mlflow.db'}"
        )
        self.database: Path | None = None  # the SQLite file, if it is one
        scheme = urlsplit(self.uri).scheme
        if self.uri.startswith("sqlite:"):
            name = self.uri.removeprefix("sqlite:///").split("?")[0]
            if not self.uri.startswith("sqlite:///") or name in ("", ":memory:"):
                raise ConfigError("uri", f"must be sqlite:///<a file>, but got {self.uri}")
            self.database = Path(name).resolve()
            if "%" in name or "%" in str(self.database):
                # SQLAlchemy 2.1 decodes them, 2.0 does not
                raise ConfigError(
                    "folder",
                    f"must be a path without percent signs, but got {self.database.parent}",
                )
            self.uri = self.uri.replace(name, str(self.database), 1)
        elif scheme in ("", "file"):
            raise ConfigError(
                "uri", f"must be sqlite:///<a file> or a server's URL, but got {self.uri}"
            )
        self._client: MlflowClient | None = None
        self._experiment_id = ""

    @property
    def is_server(self) -> bool:
        """Whether the store is a tracking server, which decides itself where its artifacts go."""
        return urlsplit(self.uri).scheme.split("+")[0] not in ("sqlite", *_PORTS)

    @property
    def artifacts(self) -> Path:
        """Where the artifacts of a store without a server go."""
        return (self.database.parent if self.database else self.folder) / "artifacts"

    @property
    def client(self) -> "MlflowClient":
        """MLflow's client for this store, opened on first use."""
        if self._client is None:
            self.open()
        assert self._client is not None
        return self._client

    @property
    def experiment_id(self) -> str:
        """MLflow's id of the experiment, opened on first use."""
        if self._client is None:
            self.open()
        return self._experiment_id

    def open(self, create: bool = True) -> "Store":
        """Make sure that the database and the experiment are there, and connect to them.

        Safe in several processes at once. The first opening of a new store takes seconds and says
        so.

        Args:
            create: Make what is not there. False, for those who only read, refuses instead.

        Returns:
            The store itself.

        Raises:
            TrackingError: The server does not answer, the database cannot be created or read, or
                `create` is False and there is no such database or experiment.
        """
        if self._client is not None:
            return self
        if not create and self.database is not None and not self.database.exists():
            raise TrackingError(
                f"{self.uri}: no run store is there: train something first, or set tracking.uri"
            )
        _import_mlflow()
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        self._check_database_server()
        try:
            if self.database is not None:
                if not self.database.exists():
                    with self._lock():
                        self._create_database(self.database)
                _check_database_file(self.database)
            with brief_http(), _quiet():
                client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                self._experiment_id = self._find_or_create_experiment(client, create)
        except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
            raise self._unusable(error) from error
        self._client = client
        return self

    def search(self, filter: str = "", deleted: bool = False) -> "Iterator[MlflowRun]":
        """The experiment's runs, or its deleted ones, that MLflow's search language finds; the newest first, in pages.

        Raises:
            TrackingError: The filter is not in that language.
        """
        client, token = self.client, None
        from mlflow.entities import ViewType
        from mlflow.exceptions import MlflowException

        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        while token != "":
            try:
                page = client.search_runs(
                    [self.experiment_id], filter, view, max_results=_PAGE, page_token=token
                )
            except MlflowException as error:
                raise TrackingError(
                    f"cannot search the runs for {filter!r}: {' '.join(str(error).split())}"
                ) from error
            yield from page
            token = page.token or ""

    def discard(self, run_id: str) -> None:
        """Delete a run that has nothing to tell, such as a parent without children (MLflow keeps it as deleted)."""
        self.client.delete_run(run_id)

    def __getstate__(self) -> dict[str, Any]:
        """A store travels to other processes closed: connections do not survive the journey."""
        return {**self.__dict__, "_client": None, "_experiment_id": ""}

    def _find_or_create_experiment(self, client: "MlflowClient", create: bool) -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self.experiment)
        if found is None and not create:
            names = [each.name for each in client.search_experiments() if each.name != "Default"]
            raise TrackingError(
                f"experiment {self.experiment!r}: not in {self.uri}; there {'are' if len(names) > 1 else 'is'} "
                f"{', '.join(names) or 'none'}"
            )
        if found is None:
            with self._lock() if not self.is_server else contextlib.nullcontext():
                found = client.get_experiment_by_name(
                    self.experiment
                )  # somebody else may have been first
                if found is None:
                    place = None if self.is_server else str(self.artifacts)
                    tags = {_PLACE_TAG: _BESIDE} if self.database else {}
                    try:
                        return str(
                            client.create_experiment(
                                self.experiment, artifact_location=place, tags=tags
                            )
                        )
                    except MlflowException as error:
                        found = client.get_experiment_by_name(self.experiment)
                        if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                            raise
        if found.lifecycle_stage != "active":
            raise ConfigError(
                "experiment",
                f"{self.experiment!r} was deleted from {self.uri}: take another name, or bring it back with "
                f"`mlflow experiments restore --experiment-id {found.experiment_id}`",
            )
        if (
            self.database
            and found.tags.get(_PLACE_TAG) == _BESIDE
            and found.artifact_location != str(self.artifacts)
        ):
            self._follow_move(self.database, found.artifact_location)
        return str(found.experiment_id)

    def _create_database(self, database: Path) -> None:
        """Make the whole database under another name, then move it to its place. To be called under the lock."""
        if database.exists():
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        print(
            f"creating the run store {database} (once, takes some seconds) ...",
            file=sys.stderr,
            flush=True,
        )
        for leftover in database.parent.glob(f"{database.name}.creating-*"):
            leftover.unlink()
        unfinished = database.with_name(f"{database.name}.creating-{os.getpid()}")
        # a folder that can't be written shows here at once, not after MLflow's retries
        unfinished.touch()
        with _quiet():
            store = SqlAlchemyStore(f"sqlite:///{unfinished}", str(self.artifacts))
            store.engine.dispose()
        unfinished.replace(database)

    def _follow_move(self, database: Path, old: str) -> None:
        """Point a database that was moved or copied to the artifacts that moved with it: MLflow keeps full paths."""
        new = str(self.artifacts)
        with (
            self._lock(),
            contextlib.closing(sqlite3.connect(database, timeout=20)) as connection,
            connection,
        ):
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?",
                (new, old),
            )
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE substr(artifact_uri, 1, ?) = ?",
                (new, len(old) + 1, len(old) + 1, f"{old}/"),
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
            raise TrackingError(
                f"{path}: another process has held it for {_LOCK_SECONDS:.0f} s, creating a store takes a few: end it"
            ) from error

    def _check_database_server(self) -> None:
        """One quick try at a database server's port: MLflow itself would go on trying for minutes."""
        parts = urlsplit(self.uri)
        port = _PORTS.get(parts.scheme.split("+")[0])
        if port and parts.hostname:
            try:
                socket.create_connection((parts.hostname, parts.port or port), timeout=5).close()
            except OSError as error:
                raise self._unusable(error) from error

    def _unusable(self, error: BaseException) -> TrackingError:
        reason = " ".join(str(_root_cause(error)).split())[:300] or type(error).__name__
        way_out = (
            "mend the file or move it away"
            if self.database
            else "start the server, or mend MLFLOW_TRACKING_URI"
        )
        message = f"{self.uri}: the run store cannot be used ({reason}): {way_out}"
        password = urlsplit(self.uri).password
        return TrackingError(message.replace(f":{password}@", ":***@") if password else message)


def _check_database_file(path: Path) -> None:
    """One quick read of a SQLite file: where that fails, MLflow itself would go on trying for minutes."""
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection:
        connection.execute("PRAGMA schema_version").fetchone()


@contextlib.contextmanager
def brief_http() -> Iterator[None]:
    """Let requests to a tracking server give up within some seconds (MLflow's default is minutes).

    What the environment sets itself stays as it is.
    """
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    ours = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _import_mlflow() -> None:
    """Import MLflow (about a second) so that it neither reports home nor chats on the terminal."""
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow from printing tracebacks of what is raised, and reported in one line, anyway."""
    loggers = [
        logging.getLogger("mlflow"),
        logging.getLogger("mlflow.store.db.utils"),
        logging.getLogger("urllib3"),
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _root_cause(error: BaseException) -> BaseException:
    """What the operating system said, if it is at the bottom of this; libraries wrap it in paragraphs."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError) and below.strerror:
            return below
        below = below.__cause__ or below.__context__
    return error


def existing(config: DictConfig, experiment: str | None = None) -> Store:
    """The store that a program's config names, opened.

    Args:
        config: Whole, with `tracking`.
        experiment: Instead of the one that it names.

    Raises:
        ConfigError: A value of `tracking` that cannot be.
        TrackingError: There is no such store, or it cannot be read.
    """
    node = (
        OmegaConf.merge(config.tracking, {"experiment": experiment})
        if experiment
        else config.tracking
    )
    assert isinstance(node, DictConfig)
    check(resolve(node), "tracking")
    store: Store = instantiate(node, "tracking")
    return store.open(create=False)


VANISHED = "the process vanished (killed?)"


def owner_tags() -> dict[str, str]:
    """Tags that name this process for good: process ids are used again, so the start belongs to it."""
    return {
        "host": socket.gethostname(),
        "pid": str(psutil.Process().pid),
        "process_start": f"{_seconds_after_boot(psutil.Process()):.2f}",
    }


def reap(store: Store) -> list[str]:
    """End the runs of this host that still count as running though their process is gone.

    They become FAILED, with the tags `failure` and `trial_state`. Runs of other hosts and programs
    are left alone.

    Args:
        store: The store to tidy, opened if it is not yet.

    Returns:
        The ids of the runs that were ended.
    """
    query = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
    gone = [run for run in store.search(query) if not _is_alive(run.data.tags)]
    for run in gone:
        store.client.set_tag(run.info.run_id, "failure", VANISHED)
        store.client.set_tag(run.info.run_id, "trial_state", "fail")
        store.client.set_terminated(run.info.run_id, "FAILED")
    return [run.info.run_id for run in gone]


def close(store: Store, run_id: str, state: str, reason: str) -> None:
    """End a run whose process cannot do it any more, or overrule how it ended.

    Args:
        store: Opened if it is not yet.
        run_id: The run.
        state: Its `trial_state`: complete, pruned, over_limit or fail; fail makes it FAILED, the
            others FINISHED.
        reason: One line; the tag `failure` or `ended_early`. Empty for none.
    """
    status = "FAILED" if state == "fail" else "FINISHED"
    run = store.client.get_run(run_id)
    tag = "failure" if state == "fail" else "ended_early"
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
        return True  # not started by us: not ours to end
    try:
        process = psutil.Process(int(tags["pid"]))
        same = abs(_seconds_after_boot(process) - float(tags["process_start"])) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _seconds_after_boot(process: psutil.Process) -> float:
    """Start of a process, counted from the boot: a clock that is set while it runs does not move this."""
    return process.create_time() - psutil.boot_time()
