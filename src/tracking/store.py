"""The MLflow store: URI, database, experiment, and runs whose process is gone."""

import contextlib
import logging
import os
import re
import shlex
import socket
import sqlite3
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import psutil
from omegaconf import DictConfig

from src.core.cli import quoted
from src.core.config import check, instantiate, resolve
from src.core.errors import ConfigError, UserError, causes
from src.tracking.retry import Retry

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

VANISHED = "the process vanished (killed?)"
_PAGE = 1000  # runs per request, MLflow's default
_LOCK_SECONDS = 120.0  # creating a store takes 2-10 s
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_SERVERS = ("http", "https", "databricks")
# Tag of an experiment whose artifacts lie beside its database, and move with it.
_ARTIFACTS_TAG = "paretoderm.artifacts"
_BESIDE = "beside the database"
_CREATION_TAG = "paretoderm.creation"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LOGGERS = ("mlflow", "mlflow.store.db.utils", "alembic", "urllib3", "torch.export", "torch.onnx")
_logger = logging.getLogger(__name__)
# MLflow reads these when it is imported: no telemetry, no messages on the terminal.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}.items():
    os.environ.setdefault(_name, _value)
# It prints tracebacks of errors that it raises as well.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
# MLflow's own retries take minutes.
_BRIEF = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}


class TrackingError(UserError):
    """The run store cannot be reached, read or written."""


class _ServerClient:
    """MLflow's client for a server: waits while that is away, and writes nothing twice.

    Requests to a tracking server are repeated by MLflow itself, except those that create a run.
    """

    def __init__(self, client: "MlflowClient", retry: Retry, is_http: bool) -> None:
        self._client = client
        self._retry = retry
        self._is_http = is_http

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(self._client, name)
        if self._is_http:
            return method
        return lambda *arguments, **options: self._retry.call(
            lambda is_repeated: method(*arguments, **options)
        )

    def create_run(
        self,
        experiment_id: str,
        start_time: int | None = None,
        tags: dict[str, Any] | None = None,
        run_name: str | None = None,
    ) -> "MlflowRun":
        """As MLflow's; a run whose creation was not answered is looked up."""
        tags = {**(tags or {}), _CREATION_TAG: uuid.uuid4().hex}

        def create(is_repeated: bool) -> "MlflowRun":
            query = f"tags.`{_CREATION_TAG}` = '{tags[_CREATION_TAG]}'"
            if is_repeated and (created := self._client.search_runs([experiment_id], query)):
                return created[0]
            no_retries = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"} if self._retry.seconds else {}
            with environment(**no_retries):
                return self._client.create_run(experiment_id, start_time, tags, run_name)

        return self._retry.call(create)


class Store:
    """An MLflow store and the experiment in it that holds the runs.

    Args:
        uri: MLflow tracking URI. None or empty: the environment's MLFLOW_TRACKING_URI; without that
            SQLite, `<folder>/mlflow.db`. A missing SQLite file is created.
        experiment: Name of the MLflow experiment; created if missing.
        folder: Folder of the default database, of the cache, and of the artifacts
            (`<folder>/artifacts`) of a database server. A SQLite database has its artifacts beside
            it; a tracking server stores them itself.

    Attributes:
        retry: Repeats what a server does not answer; by default nothing is repeated.

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
        try:
            parts = urlsplit(self.uri)
            scheme, _ = parts.scheme.split("+")[0], parts.port
        except ValueError as error:  # whose text may be a part of a password
            problem = "must be a URL with a number as its port and %2F for / in a password"
            raise ConfigError("uri", f"{problem}, but got {self.uri}") from error
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
        elif scheme not in (*_SERVERS, *_PORTS):
            message = f"must be sqlite:///<a file> or a server's URL, but got {self.uri}"
            raise ConfigError("uri", message)
        self.artifacts = (self.database.parent if self.database else self.folder) / "artifacts"
        self.is_server = scheme in _SERVERS  # which decides where its artifacts go
        self.retry = Retry("tracking.uri", self.uri)
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._artifact_roots: dict[str, str] = {}

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
        """Connect to the database and the experiment, and return the store itself.

        Safe in several processes at once. What is missing is created, which takes seconds and
        prints a line; with `create=False`, for readers, it is an error.

        Raises:
            TrackingError: The server does not answer, the database cannot be created or read, or
                `create` is False and there is no such database or experiment.
        """
        if self._client is not None:
            return self
        if not create and self.database is not None and not self.database.exists():
            message = "no run store is there: train something first, or set tracking.uri"
            raise TrackingError(f"{self.uri}: {message}")
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy import NullPool, create_engine
        from sqlalchemy.exc import SQLAlchemyError

        parts = urlsplit(self.uri)
        port = _PORTS.get(parts.scheme.split("+")[0])

        def connect(is_repeated: bool) -> MlflowClient:
            if port and parts.hostname:  # MLflow itself would retry for minutes
                socket.create_connection((parts.hostname, parts.port or port), timeout=5).close()
                create_engine(self.uri, poolclass=NullPool).connect().close()
            with brief_http(), quiet():
                client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                self._experiment_id = self._open_experiment(client, create)
            return client

        try:
            if self.database is not None:
                if not self.database.exists():
                    self._create_database(self.database)
                with contextlib.closing(sqlite3.connect(self.database, timeout=20)) as connection:
                    connection.execute("PRAGMA schema_version").fetchone()
            waits = self.database is None and self.retry.seconds
            client = self.retry.call(connect) if waits else connect(False)
        except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
            # of the operating system, if it is the cause: libraries wrap it in paragraphs
            of_system = (one for one in causes(error) if isinstance(one, OSError) and one.strerror)
            reason = one_line(next(of_system, error))[:300] or type(error).__name__
            advice = "start the server, or correct MLFLOW_TRACKING_URI"
            advice = "repair the file or move it away" if self.database else advice
            message = f"{self.uri}: the run store cannot be used ({reason}): {advice}"
            raise TrackingError(message) from error
        if self.database is None:
            client = cast("MlflowClient", _ServerClient(client, self.retry, self.is_server))
        self._client = client
        return self

    def artifact_root(self, run_id: str) -> str:
        """The URI of a run's artifacts, which is looked up once: it does not change."""
        if run_id not in self._artifact_roots:
            self._artifact_roots[run_id] = self.client.get_run(run_id).info.artifact_uri
        return self._artifact_roots[run_id]

    def search(self, filter: str = "", deleted: bool = False) -> "Iterator[MlflowRun]":
        """The experiment's runs (or its deleted ones) that match MLflow's filter, newest first.

        Raises:
            TrackingError: The filter is not in MLflow's search language.
        """
        client, token = self.client, None
        from mlflow.entities import ViewType

        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        while token != "":
            with mlflow_errors(f"cannot search the runs for {filter!r}"):
                page = client.search_runs([self.experiment_id], filter, view, _PAGE, None, token)
            yield from page
            token = page.token or ""

    def report_command(self, study: str) -> str:
        """A shell command for a study's report, with what is not the default of this store."""
        default, values = Store(), {"study": study}
        for name in ("uri", "experiment"):
            if getattr(self, name) != getattr(default, name):
                values[f"tracking.{name}"] = getattr(self, name)
        plain = re.compile(r"(?!(?i:null|true|false|nan|inf)$)[A-Za-z][\w./:+@-]*", re.ASCII)
        words = [f"{k}={v if plain.fullmatch(v) else quoted(v)}" for k, v in values.items()]
        return f"python -m src.report {shlex.join(words)}"

    def __getstate__(self) -> dict[str, Any]:
        """A store is pickled closed: connections cannot be."""
        return {**self.__dict__, "_client": None, "_experiment_id": ""}

    def _create_database(self, database: Path) -> None:
        """Create the database under another name, then rename it, in one process at a time."""
        from filelock import FileLock, Timeout
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        database.parent.mkdir(parents=True, exist_ok=True)
        lock = database.with_name(f"{database.name}.lock")
        try:
            with FileLock(lock, timeout=_LOCK_SECONDS), quiet():
                if database.exists():
                    return
                message = f"creating the run store {database} (once, takes some seconds) ..."
                print(message, file=sys.stderr, flush=True)
                for leftover in database.parent.glob(f"{database.name}.creating-*"):
                    leftover.unlink()
                draft = database.with_name(f"{database.name}.creating-{os.getpid()}")
                draft.touch()  # an unwritable folder fails here, not after MLflow's retries
                SqlAlchemyStore(f"sqlite:///{draft}", str(self.artifacts)).engine.dispose()
                draft.replace(database)
        except Timeout as error:
            message = f"another process has held it for {_LOCK_SECONDS:.0f} s; end that process"
            raise TrackingError(f"{lock}: {message}") from error

    def _open_experiment(self, client: "MlflowClient", create: bool) -> str:
        """The id of the experiment, after it was created or its artifact paths were corrected."""
        from mlflow.exceptions import MlflowException

        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None and not create:
            names = [other.name for other in client.search_experiments() if other.name != "Default"]
            verb = "are" if len(names) > 1 else "is"
            message = f"not in {self.uri}; there {verb} {', '.join(names) or 'none'}"
            raise TrackingError(f"experiment {self.experiment!r}: {message}")
        if experiment is None:
            artifacts = None if self.is_server else str(self.artifacts)
            tags = {_ARTIFACTS_TAG: _BESIDE} if self.database else {}
            try:
                return str(client.create_experiment(self.experiment, artifacts, tags))
            except MlflowException as error:
                experiment = client.get_experiment_by_name(self.experiment)
                # Another process may have created it in the meantime.
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
            # MLflow keeps full paths; the database was moved.
            values = {"old": location, "new": str(self.artifacts), "start": len(location) + 1}
            connection = sqlite3.connect(self.database, timeout=20)
            with contextlib.closing(connection), connection:
                connection.execute(
                    "UPDATE experiments SET artifact_location = :new "
                    "WHERE artifact_location = :old",
                    values,
                )
                connection.execute(
                    "UPDATE runs SET artifact_uri = :new || substr(artifact_uri, :start) "
                    "WHERE substr(artifact_uri, 1, :start) = :old || '/'",
                    values,
                )
        return str(experiment.experiment_id)


def existing(config: DictConfig, experiment: str | None = None) -> Store:
    """The store of `config.tracking`, opened for reading; `experiment` replaces that of the config.

    Raises:
        ConfigError: A bad value below `tracking`.
        TrackingError: There is no such store, or it cannot be read.
    """
    node: DictConfig = config.tracking.copy()
    if experiment:
        node.experiment = experiment
    check(resolve(node), "tracking")
    store: Store = instantiate(node, "tracking")
    return store.open(create=False)


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables and restore them afterwards."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(before)


def brief_http() -> contextlib.AbstractContextManager[None]:
    """Requests to a tracking server fail after some seconds, unless the environment says more."""
    return environment(**{name: os.environ.get(name, value) for name, value in _BRIEF.items()})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without messages of MLflow's loggers: its errors are raised and reported in one line."""
    with contextlib.ExitStack() as stack:
        for logger in map(logging.getLogger, _LOGGERS):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        yield


@contextlib.contextmanager
def mlflow_errors(what: str) -> Iterator[None]:
    """Raise errors of MLflow as a `TrackingError` of one line that begins with `what`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise TrackingError(f"{what}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())


def owner_tags() -> dict[str, str]:
    """Tags that identify this process; process ids are reused, so its start is one of them.

    `boot` names the start of the machine, and its container, also if the host is renamed.
    """
    boot = ""
    with contextlib.suppress(OSError):  # of Linux
        boot = f"{_BOOT_ID.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    return {
        "host": socket.gethostname(),
        "pid": str(psutil.Process().pid),
        "process_start": f"{_seconds_after_boot(psutil.Process()):.2f}",
        "boot": boot,
    }


def reap(store: Store) -> list[str]:
    """End the runs of this machine that are RUNNING although their process is gone; their ids.

    They become FAILED, with the tags `failure` and `trial_state`. Runs of other machines and
    programs are not changed; those in a SQLite file, which machines seldom share, are named.
    """
    here, ids, elsewhere = owner_tags(), list[str](), list[str]()
    for run in list(store.search("attributes.status = 'RUNNING'")):
        tags, run_id = run.data.tags, run.info.run_id
        if any(tags.get(name) == here[name] != "" for name in ("host", "boot")):
            if not _is_alive(tags):
                close(store, run_id, "fail", VANISHED)
                ids.append(run_id)
        elif store.database and "host" in tags:
            elsewhere.append(f"{run_id} of {tags['host']}")
    if elsewhere:
        way = "if that was a name of this machine, delete them"
        _logger.warning("runs of other hosts are RUNNING (%s): %s", ", ".join(elsewhere), way)
    return ids


def close(store: Store, run_id: str, state: str, reason: str) -> None:
    """End a run from outside its process, or overrule how it ended.

    Args:
        store: Opened if it is not yet.
        run_id: The run.
        state: Its `trial_state`; `fail` makes it FAILED; complete, pruned, over_limit and put_back
            make it FINISHED.
        reason: One line, the tag `failure` or `ended_early`. Empty for none.
    """
    client, failed = store.client, state == "fail"
    run = client.get_run(run_id)
    tags = {"failure" if failed else "ended_early": reason} if reason else {}
    for name, value in {**tags, "trial_state": state}.items():
        if run.data.tags.get(name) != value:
            client.set_tag(run_id, name, value)
    if not failed and "failure" in run.data.tags:
        client.delete_tag(run_id, "failure")
    status = "FAILED" if failed else "FINISHED"
    if run.info.status != status and not (failed and run.info.status == "KILLED"):
        client.set_terminated(run_id, status, max(int(time.time() * 1000), run.info.start_time))


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
