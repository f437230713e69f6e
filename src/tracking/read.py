"""Runs, metric histories and predictions read back from the store, cached as Parquet files.

`cached_runs` asks the store only for what may be new: runs that started, ended or were written to
(see `src.tracking.run.UPDATED`) since the last look, and those that had not ended. Changes that
another program makes to a run that has ended are seen with `refresh=True` only.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import posixpath
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from src.tracking.run import UPDATED, batches
from src.tracking.store import Store, TrackingError

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

COLUMNS = ("run_id", "parent_id", "status", "name", "start_time", "end_time")
NOT_ENDED = ("RUNNING", "SCHEDULED")
TEXT = ("image_id", "group", "label")  # columns of predictions that are text even if numeric
FORMAT = 1  # of the cache's files; files of another one are not read
MARGIN_S = 300.0  # by which the clocks of the machines that write runs may differ
_KEY = b"paretoderm"  # of the cache's notes in a Parquet file
_CHANGED = "updated"  # column of the cached table of runs
_LOCK_SECONDS = 60.0  # then a reader continues without the lock: files are replaced atomically
_IDS_PER_QUERY = 100
_VALUES_PER_REQUEST = 25_000  # what a server returns
_THREADS = 8
_BULK = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
_HISTORY = pa.schema(
    {"run_id": pa.string(), "version": pa.string(), "step": pa.int64(), "value": pa.float64()}
)
_logger = logging.getLogger(__name__)
Cells = dict[str, Any]  # of a run, by column
Point = tuple[str, int, int, float]  # run id, step, timestamp, value


def runs(store: Store, filter: str = "") -> pd.DataFrame:
    """All runs of the store's experiment that are not deleted.

    Args:
        store: Opened if it is not yet.
        filter: MLflow's search language, such as `tags.study = 'dense_size'`.

    Returns:
        A row for each run, the newest first: run_id, parent_id (missing without one), status
        (RUNNING, FINISHED, FAILED, KILLED), name, start_time and end_time (UTC; NaT while it runs),
        then `tags.<tag>`, `params.<key>` (text) and `metrics.<name>` (the last value; NaN if
        absent), each group in alphabetical order, without `src.tracking.run.UPDATED`.

    Raises:
        TrackingError: The filter is not in MLflow's search language.
    """
    rows = [_cells(run) for run in store.search(filter)]
    return _with_times(pd.DataFrame(rows, columns=_ordered(name for row in rows for name in row)))


def children(store: Store, parent_id: str) -> pd.DataFrame:
    """The runs directly below a parent, as `runs` returns them."""
    return runs(store, f"tags.`mlflow.parentRunId` = '{parent_id}'")


def artifact(store: Store, run_id: str, name: str) -> Path:
    """An artifact as a local path: its own, or a temporary copy if it comes from a server.

    Args:
        store: Opened if it is not yet.
        run_id: The run.
        name: Its path within the run's artifacts; a folder is possible.

    Raises:
        TrackingError: No such run, or no such artifact in it.
    """
    client = store.client
    from mlflow.exceptions import MlflowException

    path: Path | None = None
    try:
        root = client.get_run(run_id).info.artifact_uri
        if urlsplit(root).scheme == "":
            path = Path(root) / name  # MLflow would copy it
        else:
            items = client.list_artifacts(run_id, posixpath.dirname(name) or None)
            if name in [item.path for item in items]:
                path = Path(client.download_artifacts(run_id, name))
        if path is not None and path.exists():
            return path
        names = ", ".join(item.path for item in client.list_artifacts(run_id)) or "none"
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise TrackingError(f"artifact {name!r} of run {run_id}: {reason}") from error
    raise TrackingError(f"run {run_id} has no artifact {name!r}; it has: {names}")


def cached_runs(store: Store, refresh: bool = False) -> pd.DataFrame:
    """`runs` without a filter, from the cache and what changed since.

    Args:
        store: Opened if it is not yet.
        refresh: Read everything again.

    Raises:
        TrackingError: The store cannot be used.
    """
    table = _updated_runs(store, refresh)
    frame = table.select(_ordered(set(table.column_names) - {_CHANGED})).to_pandas()
    for name in COLUMNS:
        if table[name].null_count == table.num_rows:  # pandas reads these as object columns
            frame[name] = pd.Series([None] * len(frame), dtype="object")
    return _with_times(frame)


def history(
    store: Store, run_ids: Iterable[str], metric: str, refresh: bool = False
) -> pd.DataFrame:
    """A metric's value at each step, for many runs; those of ended runs are cached.

    Args:
        store: Opened if it is not yet.
        run_ids: Runs of the store's experiment.
        metric: As it is recorded, such as "val/loss".
        refresh: Read everything again.

    Returns:
        Columns run_id, step (int), value (NaN and infinity as logged); runs in the order of
        `run_ids`, steps ascending. Of several values at one step the last one. A run without the
        metric has no rows.

    Raises:
        TrackingError: The store cannot be used.
    """
    ids = list(dict.fromkeys(run_ids))
    columns = _updated_runs(store).select(["run_id", "status", "end_time", _CHANGED]).to_pylist()
    versions = {
        run["run_id"]: _version(run["status"], run["end_time"], run[_CHANGED]) for run in columns
    }
    cache = CachedFrame(store, "history", metric)
    with cache.lock():
        cached = None if refresh else cache.read()
        old = cached[0] if cached else _HISTORY.empty_table()
        seen = dict(zip(old["run_id"].to_pylist(), old["version"].to_pylist(), strict=True))
        missing = [run for run in ids if not versions.get(run) or seen.get(run) != versions[run]]
        fresh = _history_table(missing, _fetch(store, missing, metric), versions)
        old = old.filter(pc.invert(pc.is_in(old["run_id"], pa.array(missing, pa.string()))))
        table = pa.concat_tables([old, fresh])
        if any(versions.get(run_id) for run_id in missing):
            cache.write(table.filter(pc.is_valid(table["version"])), {})
    frame = table.filter(pc.is_valid(table["step"])).drop_columns("version").to_pandas()
    order = {run_id: position for position, run_id in enumerate(ids)}
    frame = frame.assign(order=frame["run_id"].map(order)).dropna(subset=["order"])
    return frame.sort_values(["order", "step"]).drop(columns="order").reset_index(drop=True)


def has_predictions(store: Store, run_id: str, split: str) -> bool:
    """Whether a run has predictions for a split."""
    items = store.client.list_artifacts(run_id, "predictions")
    return f"predictions/{split}.csv" in [item.path for item in items]


def predictions(store: Store, run_id: str, split: str) -> pd.DataFrame:
    """The predictions of a run for a split: its artifact predictions/<split>.csv.

    Those that come from a server are cached, if the run has ended.

    Args:
        store: Opened if it is not yet.
        run_id: The run.
        split: train, val, test or another data set on which the run was evaluated.

    Returns:
        As recorded: image_id, group and label (text, even if numeric), then a column `p/<class>`
        for each class.

    Raises:
        TrackingError: No such run, or it has no predictions for that split.
    """
    from mlflow.exceptions import MlflowException

    name = f"predictions/{split}.csv"
    if not store.is_server:
        return _read_predictions(store, run_id, name)
    try:
        run = store.client.get_run(run_id)
    except MlflowException as error:
        raise TrackingError(f"run {run_id}: {' '.join(str(error).split())}") from error
    version = _version(run.info.status, run.info.end_time, run.data.metrics.get(UPDATED))
    if version is None:
        return _read_predictions(store, run_id, name)
    cache = CachedFrame(store, "predictions", run_id, split)
    cached = cache.read()
    if cached and cached[1]["version"] == version:
        return cached[0].to_pandas()
    frame = _read_predictions(store, run_id, name)
    cache.write(pa.Table.from_pandas(frame, preserve_index=False), {"version": version})
    return frame


class CachedFrame:
    """One table in `<store.folder>/cache/`, with notes.

    The file's name has a digest of the experiment, the store and the kind of table; neither it nor
    the file holds the store's URI. A file that is damaged, of another format or of an experiment
    that has since been deleted and created again is not used. A folder that cannot be written is
    reported once; everything works without it.

    Args:
        store: Opened if it is not yet.
        kind: What is cached, such as "runs"; part of the file's name.
        of: What the table is about, if there are several of a kind.
    """

    def __init__(self, store: Store, kind: str, *of: str) -> None:
        url = urlsplit(store.uri)
        # Without the password and without the query, which may hold one.
        address = [url.scheme, url.username, url.hostname, url.port, url.path, store.experiment]
        digest = hashlib.sha256(json.dumps([*address, kind, *of]).encode()).hexdigest()[:16]
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", store.experiment)[:40]
        self.path = store.folder / "cache" / f"{name}-{kind}-{digest}.parquet"
        experiment = store.client.get_experiment(store.experiment_id)
        created = {"experiment": experiment.experiment_id, "created": experiment.creation_time}
        self._identity = {"format": FORMAT, **created}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Let other readers of the same data wait; without an error if there is no lock."""
        from filelock import FileLock, Timeout

        with contextlib.ExitStack() as stack:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(self.path.with_suffix(".lock"), timeout=_LOCK_SECONDS))
            except Timeout:
                _logger.info("%s: locked for %.0f s: not waited for", self.path, _LOCK_SECONDS)
            except OSError as error:
                _warn_unwritable(self.path.parent, str(error))
            yield

    def read(self) -> tuple[pa.Table, dict[str, Any]] | None:
        """The table and the notes, or None if there is no usable file."""
        try:
            table = pq.read_table(self.path, page_checksum_verification=True, partitioning=None)
            notes = json.loads(table.schema.metadata[_KEY])
            if notes["identity"]["format"] != FORMAT:
                raise ValueError(f"it has format {notes['identity']['format']}, this is {FORMAT}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:  # any that a damaged file raises
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            _logger.warning("%s cannot be used and is made anew: %s", self.path, reason)
            return None
        if notes["identity"] != self._identity:
            _logger.info("%s is of an experiment that is gone, and is made anew", self.path)
            return None
        return table.replace_schema_metadata(None), notes["notes"]

    def write(self, table: pa.Table, notes: dict[str, Any]) -> None:
        """Replace the file; a failure is reported once and has no other consequence."""
        metadata = {_KEY: json.dumps({"identity": self._identity, "notes": notes}).encode()}
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            for leftover in self.path.parent.glob(f".{self.path.name}.*"):
                leftover.unlink()  # of a process that was killed
            self.path.parent.mkdir(parents=True, exist_ok=True)
            table = table.replace_schema_metadata(metadata)
            pq.write_table(table, draft, compression="zstd", write_page_checksum=True)
            draft.replace(self.path)
        except OSError as error:
            _warn_unwritable(self.path.parent, str(error))
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)


@functools.cache
def _warn_unwritable(folder: Path, reason: str) -> None:
    """Once for each folder and reason."""
    _logger.warning("%s cannot be written (%s): the store is read anew every time", folder, reason)


def _updated_runs(store: Store, refresh: bool = False) -> pa.Table:
    """The experiment's runs as an Arrow table, newest first, after the cache was updated.

    Returns:
        The columns of `runs`, times in ms; null is what a run does not have. And `updated`: the
        metric `src.tracking.run.UPDATED`.
    """
    cache = CachedFrame(store, "runs")
    with cache.lock():
        began = time.time()
        cached = None if refresh else cache.read()
        if cached is not None and cached[1]["looked"] > began + MARGIN_S:
            cached = None  # the clock was set back: what is new since then is unknown
        if cached is None:
            _logger.info("reading all runs of experiment %s ...", store.experiment)
            fresh = _arrow(_by_id(store.search()))
            old, gone_before = fresh.slice(0, 0), set()
        else:
            old, gone_before = cached[0], set(cached[1]["deleted"])
            fresh = _arrow(_changed_runs(store, old, cached[1]["looked"] - MARGIN_S))
        gone = {run.info.run_id for run in store.search(deleted=True)}
        if restored := gone_before - gone:
            fresh = _merge(fresh, _arrow(_by_ids(store, restored)), set())
        if cached is not None and not fresh.num_rows and gone == gone_before:
            return old
        table = _merge(old, fresh, gone)
        cache.write(table, {"looked": began, "deleted": sorted(gone)})
        return table


def _changed_runs(store: Store, old: pa.Table, since: float) -> dict[str, Cells]:
    """Runs that may differ from the cached ones, by id."""
    filters = (
        "attributes.status = 'RUNNING'",
        f"attributes.start_time > {since * 1000:.0f}",
        f"attributes.end_time > {since * 1000:.0f}",
        f"metrics.`{UPDATED}` > {since:.3f}",
    )
    changed: dict[str, Cells] = {}
    for filter in filters:
        changed |= _by_id(store.search(filter))
    not_ended = old.filter(pc.is_in(old["status"], pa.array(NOT_ENDED)))["run_id"].to_pylist()
    return changed | _by_ids(store, set(not_ended) - changed.keys())


def _by_ids(store: Store, run_ids: Iterable[str]) -> dict[str, Cells]:
    """Those of the runs that are not deleted."""
    cells: dict[str, Cells] = {}
    for batch in batches(sorted(run_ids), _IDS_PER_QUERY):
        listed = ", ".join(f"'{run_id}'" for run_id in batch)
        cells |= _by_id(store.search(f"attributes.run_id IN ({listed})"))
    return cells


def _by_id(runs: Iterable["MlflowRun"]) -> dict[str, Cells]:
    """Cells by run id. A run can come twice: new runs shift the pages of a search."""
    return {
        run.info.run_id: _cells(run) | {_CHANGED: run.data.metrics.get(UPDATED)} for run in runs
    }


def _cells(run: "MlflowRun") -> Cells:
    """One run by the columns of `runs`; times in ms since the epoch."""
    info, data = run.info, run.data
    cells: Cells = {"run_id": info.run_id, "parent_id": data.tags.get("mlflow.parentRunId")}
    cells |= {"status": info.status, "name": info.run_name}
    cells |= {"start_time": info.start_time, "end_time": info.end_time}
    cells |= {f"tags.{key}": value for key, value in data.tags.items()}
    cells |= {f"params.{key}": value for key, value in data.params.items()}
    metrics = {key: value for key, value in data.metrics.items() if key != UPDATED}
    return cells | {f"metrics.{key}": _number(value) for key, value in metrics.items()}


def _number(value: float) -> float:
    """A metric's value as it was logged: SQL stores hold infinity as the largest float."""
    return value if abs(value) < sys.float_info.max else float("inf") * value


def _ordered(names: Iterable[str]) -> list[str]:
    """The columns of a table of runs, in their order."""
    others = sorted(set(names) - set(COLUMNS))
    groups = ("tags.", "params.", "metrics.")
    return [*COLUMNS, *(name for group in groups for name in others if name.startswith(group))]


def _with_times(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame, its times converted from ms since the epoch to UTC."""
    for column in ("start_time", "end_time"):
        frame[column] = pd.to_datetime(frame[column].astype("float64"), unit="ms", utc=True)
    return frame


def _arrow(cells: dict[str, Cells]) -> pa.Table:
    """A row for each run: null where it has no such value, whereas NaN is a value."""

    def dtype(name: str) -> pa.DataType:
        if name in ("start_time", "end_time"):
            return pa.int64()
        return pa.float64() if name == _CHANGED or name.startswith("metrics.") else pa.string()

    rows = list(cells.values())
    names = [*_ordered({name for row in rows for name in row} - {_CHANGED}), _CHANGED]
    arrays = [pa.array([row.get(name) for row in rows], dtype(name)) for name in names]
    return pa.table(arrays, names=names)


def _merge(old: pa.Table, fresh: pa.Table, gone: set[str]) -> pa.Table:
    """`fresh` over `old`, without the runs in `gone` and columns that no run has any more."""
    old = old.filter(pc.invert(pc.is_in(old["run_id"], fresh["run_id"].combine_chunks())))
    table = pa.concat_tables([old, fresh], promote_options="default")
    if gone:
        table = table.filter(pc.invert(pc.is_in(table["run_id"], pa.array(sorted(gone)))))
    kept = [
        name
        for name in table.column_names
        if name in (*COLUMNS, _CHANGED) or table[name].null_count < table.num_rows
    ]
    order = [("start_time", "descending"), ("run_id", "ascending")]
    return table.select(kept).sort_by(order).combine_chunks()


def _version(status: str, end_time: int | None, updated: float | None) -> str | None:
    """A text that changes when the record of an ended run does; None while it runs."""
    return None if status in NOT_ENDED else f"{end_time} {updated}"


def _read_predictions(store: Store, run_id: str, name: str) -> pd.DataFrame:
    path = artifact(store, run_id, name)
    try:
        numeric = [str(column) for column in pd.read_csv(path, nrows=0) if column not in TEXT]
        return pd.read_csv(
            path,
            dtype=dict.fromkeys(TEXT, "str"),
            # Missing values in numeric columns only: an image may be called NA.
            na_values={column: ["", "nan", "NaN"] for column in numeric},
            keep_default_na=False,
            float_precision="round_trip",
        )
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise TrackingError(f"artifact {name!r} of run {run_id} is no table: {reason}") from error


def _history_table(
    run_ids: Sequence[str], points: Iterable[Point], versions: Mapping[str, str | None]
) -> pa.Table:
    """The last value at each step; a run without any has one row without a step."""
    last: dict[tuple[str, int | None], float] = {}
    for run_id, step, _, value in sorted(points, key=lambda point: point[:3]):
        last[run_id, step] = value
    present = {run_id for run_id, _ in last}
    keys = [*last, *((run_id, None) for run_id in run_ids if run_id not in present)]
    columns = [
        [run_id for run_id, _ in keys],
        [versions.get(run_id) for run_id, _ in keys],
        [step for _, step in keys],
        [last.get(key) for key in keys],
    ]
    return pa.table(columns, schema=_HISTORY)


def _fetch(store: Store, run_ids: Sequence[str], metric: str) -> list[Point]:
    """All values of the metric, in bulk where possible.

    Measured with 500 runs of 20 steps. SQLite: 0.14 s in bulk, 0.8 s run by run. A server: 0.27 s
    in bulk (by the request of its user interface), 2.4 s by the documented bulk request, 3 s run
    by run in 8 threads.
    """
    inner = getattr(getattr(store.client, "_tracking_client", None), "store", None)
    points: list[Point] = []
    for batch in batches(run_ids, _IDS_PER_QUERY):
        try:
            rows = (_server_bulk if store.is_server else _database_bulk)(inner, batch, metric)
        except Exception as error:  # not public: another version of MLflow may raise anything
            _logger.debug("no histories in bulk (%s): one by one", error)
            rows = _one_by_one(store, batch, metric)
        points += [
            (row["run_id"], row["step"], row["timestamp"], _number(float(row["value"])))
            for row in rows
        ]
    return points


def _database_bulk(inner: Any, run_ids: list[str], metric: str) -> list[Cells]:
    rows = inner.get_metric_history_bulk(run_ids, metric, 2**31 - 1)
    return [row.to_dict() for row in rows]


def _server_bulk(inner: Any, run_ids: list[str], metric: str) -> list[Cells]:
    from mlflow.utils.rest_utils import http_request

    query = {"run_id": run_ids, "metric_key": metric, "max_results": _VALUES_PER_REQUEST}
    answer = http_request(inner.get_host_creds(), _BULK, "GET", params=query)
    answer.raise_for_status()
    rows: list[Cells] = answer.json()["metrics"]
    if len(rows) < _VALUES_PER_REQUEST:
        return rows
    if len(run_ids) == 1:  # the answer was cut off
        raise ValueError(f"run {run_ids[0]} has too many values")
    half = len(run_ids) // 2
    parts = (run_ids[:half], run_ids[half:])
    return [row for part in parts for row in _server_bulk(inner, part, metric)]


def _one_by_one(store: Store, run_ids: list[str], metric: str) -> list[Cells]:
    from mlflow.exceptions import MlflowException

    def read(run_id: str) -> list[Cells]:
        points = store.client.get_metric_history(run_id, metric)
        return [{**dict(point), "run_id": run_id} for point in points]

    try:
        with ThreadPoolExecutor(_THREADS if store.is_server else 1) as threads:
            return [row for rows in threads.map(read, run_ids) for row in rows]
    except MlflowException as error:
        reason = " ".join(str(error).split())
        raise TrackingError(f"cannot read the history of {metric!r}: {reason}") from error
