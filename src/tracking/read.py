"""Runs, metric histories and predictions read back from the store, cached as Parquet files.

`cached_runs` asks the store only for what may be new: runs that started, ended or were written to
(see `src.tracking.run.UPDATED`) since the last look, and those that had not ended. Changes that
another program makes to a run that has ended are seen with `refresh=True` only.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import posixpath
import re
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from src.core.errors import UserError
from src.core.files import atomic_file
from src.tracking.run import UPDATED, batches
from src.tracking.store import Store, TrackingError, mlflow_errors, one_line

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

COLUMNS = ("run_id", "parent_id", "status", "name", "start_time", "end_time")
_TIMES = ("start_time", "end_time")  # in tables of Arrow: ms since the epoch
_GROUPS = ("tags.", "params.", "metrics.")
_UPDATED = "updated"  # column of the cached table of runs: the metric `UPDATED`
_NOT_ENDED = ("RUNNING", "SCHEDULED")
# Columns of predictions that are text even if numeric, and the start of another one.
_TEXT, _DECISION = ("image_id", "group", "label"), "decision/"
_FORMAT = 2  # of the cache's files; files of another one are not read
_MARGIN_S = 300.0  # by which the clocks of the machines that write runs may differ
_KEY = b"paretoderm"  # of the cache's notes in a Parquet file
_LOCK_SECONDS = 60.0  # then a reader continues without the lock: files are replaced atomically
_IDS_PER_QUERY = 100
_REQUESTS = 8  # to a server at once
_POINT = ["run_id", "step", "timestamp", "value"]
_logger = logging.getLogger(__name__)


def runs(store: Store, filter: str = "") -> pd.DataFrame:
    """All runs of the store's experiment that match an MLflow filter and are not deleted.

    Returns:
        A row for each run, the newest first: run_id, parent_id (missing without one), status
        (RUNNING, FINISHED, FAILED, KILLED), name, start_time and end_time (UTC; NaT while it runs),
        then `tags.<tag>`, `params.<key>` (text) and `metrics.<name>` (the last value; NaN if
        absent), each group in alphabetical order, without `src.tracking.run.UPDATED`.

    Raises:
        TrackingError: The filter is not in MLflow's search language.
    """
    return _frame(_table(store.search(filter)))


def cached_runs(store: Store, refresh: bool = False) -> pd.DataFrame:
    """`runs` without a filter, from the cache and what changed since; `refresh` reads all again."""
    return _frame(_updated_runs(store, refresh))


def children(store: Store, parent_id: str) -> pd.DataFrame:
    """The runs directly below a parent, as `runs` returns them."""
    return runs(store, f"tags.`mlflow.parentRunId` = '{parent_id}'")


def texts(frame: pd.DataFrame, column: str) -> pd.Series:
    """A column of `runs` with "" where a value, or the column, is missing."""
    values = frame.get(column, pd.Series(index=frame.index, dtype=object))
    return values.astype(object).fillna("")


def artifact(store: Store, run_id: str, name: str) -> Path:
    """The local path of an artifact, a file or a folder; from a server a temporary copy.

    Raises:
        TrackingError: No such run, or no such artifact in it.
    """
    client = store.client
    with mlflow_errors(f"artifact {name!r} of run {run_id}"):
        root = store.artifact_root(run_id)
        path: Path | None = Path(root) / name  # MLflow would copy a local artifact
        if urlsplit(root).scheme:
            items = client.list_artifacts(run_id, posixpath.dirname(name) or None)
            present = name in [item.path for item in items]
            path = Path(client.download_artifacts(run_id, name)) if present else None
        if path is not None and path.exists():
            return path
        names = ", ".join(item.path for item in client.list_artifacts(run_id)) or "none"
    raise TrackingError(f"run {run_id} has no artifact {name!r}; it has: {names}")


def artifacts(store: Store, run_id: str, folder: str) -> list[str]:
    """The artifacts in a folder of a run, such as "predictions/val.csv"; none: an empty list."""
    root = store.artifact_root(run_id)
    if urlsplit(root).scheme:
        return [item.path for item in store.client.list_artifacts(run_id, folder)]
    paths = sorted(Path(root, folder).glob("*"))  # MLflow is slower
    return [f"{folder}/{path.name}" for path in paths]


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
    """
    ids = list(dict.fromkeys(run_ids))
    columns = _updated_runs(store).select(["run_id", "status", "end_time", _UPDATED]).to_pydict()
    versions = {run_id: _version(*rest) for run_id, *rest in zip(*columns.values(), strict=True)}
    cache = _Cache(store, "history", metric)
    with cache.lock():
        cached = None if refresh else cache.read()
        old = cached[0].to_pandas() if cached else pd.DataFrame({"run_id": [], "version": []})
        seen = dict(zip(old["run_id"], old["version"], strict=True))
        stale = [run for run in ids if not versions.get(run) or seen.get(run) != versions[run]]
        points = pd.DataFrame(_fetch(store, stale, metric), columns=_POINT)
        points = points.sort_values(_POINT[:3], kind="stable").drop(columns="timestamp")
        points = points.drop_duplicates(["run_id", "step"], keep="last")
        # A run without any value has one row without a step.
        fresh = pd.DataFrame({"run_id": stale}, dtype="str").merge(points, on="run_id", how="left")
        fresh["version"] = fresh["run_id"].map(versions)
        frame = pd.concat([old[~old["run_id"].isin(stale)], fresh] if cached else [fresh])
        if any(versions.get(run_id) for run_id in stale):
            ended = frame[frame["version"].notna()]
            cache.write(pa.Table.from_pandas(ended, preserve_index=False), {})
    frame = frame[frame["step"].notna()].drop(columns="version").sort_values("step", kind="stable")
    frame = pd.DataFrame({"run_id": ids}, dtype="str").merge(frame, on="run_id")
    return frame.astype({"run_id": "str", "step": "int64", "value": "float64"})


def has_predictions(store: Store, run_id: str, split: str) -> bool:
    """Whether a run has predictions for a split."""
    return f"predictions/{split}.csv" in artifacts(store, run_id, "predictions")


def predictions(store: Store, run_id: str, split: str) -> pd.DataFrame:
    """The predictions of a run for a split: its artifact predictions/<split>.csv.

    Those that come from a server are cached, if the run has ended. The split is train, val, test or
    another data set on which the run was evaluated.

    Returns:
        As recorded: image_id, group and label (text, even if numeric), then a column `p/<class>`
        for each class, and `decision/<rule>` (text) if the run has a decision rule.

    Raises:
        TrackingError: No such run, or it has no predictions for that split.
    """
    client, version = store.client, None
    if store.is_server:
        with mlflow_errors(f"run {run_id}"):
            run = client.get_run(run_id)
        version = _version(run.info.status, run.info.end_time, run.data.metrics.get(UPDATED))
    cache = _Cache(store, "predictions", run_id, split)
    cached = cache.read() if version else None
    if cached and cached[1]["version"] == version:
        return cached[0].to_pandas()
    name = f"predictions/{split}.csv"
    path = artifact(store, run_id, name)
    try:
        columns = [str(column) for column in pd.read_csv(path, nrows=0)]
        numeric = [name for name in columns if name not in _TEXT and _DECISION not in name[:9]]
        frame = pd.read_csv(
            path,
            dtype=dict.fromkeys(set(columns) - set(numeric), "str"),
            # Missing values in numeric columns only: an image may be called NA.
            na_values={column: ["", "nan", "NaN"] for column in numeric},
            keep_default_na=False,
            float_precision="round_trip",
        )
    except ValueError as error:
        problem = f"artifact {name!r} of run {run_id} is no table: {one_line(error)}"
        raise TrackingError(problem) from error
    if version:
        cache.write(pa.Table.from_pandas(frame, preserve_index=False), {"version": version})
    return frame


class _Cache:
    """One table in `<store.folder>/cache/`, with notes.

    The file's name has a digest of the format, the store, the experiment with its time of creation,
    the kind of table and `of`, what it is about; neither it nor the file holds the store's URI. A
    damaged file is not used. A folder that cannot be written is reported once; everything works
    without it.
    """

    def __init__(self, store: Store, kind: str, *of: str) -> None:
        url = urlsplit(store.uri)
        created = store.client.get_experiment(store.experiment_id).creation_time
        # Without the password and without the query, which may hold one.
        about = [_FORMAT, url.scheme, url.username, url.hostname, url.port, url.path]
        about += [store.experiment, store.experiment_id, created, kind, *of]
        digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", store.experiment)[:40]
        self.path = store.folder / "cache" / f"{name}-{kind}-{digest}.parquet"

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
                _warn_unwritable(self.path.parent, error.strerror)
            yield

    def read(self) -> tuple[pa.Table, dict[str, Any]] | None:
        """The table and the notes, or None if there is no usable file."""
        try:
            table = pq.read_table(self.path, page_checksum_verification=True, partitioning=None)
            notes = json.loads(table.schema.metadata[_KEY])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:  # any that a damaged file raises
            reason = one_line(error)[:200] or type(error).__name__
            _logger.warning("%s cannot be used and is made anew: %s", self.path, reason)
            return None
        return table.replace_schema_metadata(None), notes

    def write(self, table: pa.Table, notes: dict[str, Any]) -> None:
        """Replace the file; a failure is reported once and has no other consequence."""
        table = table.replace_schema_metadata({_KEY: json.dumps(notes).encode()})
        try:
            with atomic_file(self.path, "the cache", make_folder=True) as draft:
                pq.write_table(table, draft, compression="zstd", write_page_checksum=True)
        except UserError as error:
            cause = error.__cause__
            _warn_unwritable(self.path.parent, getattr(cause, "strerror", None) or str(cause))


@functools.cache
def _warn_unwritable(folder: Path, reason: str) -> None:
    """Once for each folder and reason."""
    _logger.warning("%s cannot be written (%s): the store is read anew every time", folder, reason)


def _updated_runs(store: Store, refresh: bool = False) -> pa.Table:
    """The experiment's runs as `_table` has them, newest first, after the cache was updated."""
    cache = _Cache(store, "runs")
    with cache.lock():
        began = time.time()
        cached = None if refresh else cache.read()
        if cached is not None and cached[1]["looked"] > began + _MARGIN_S:
            cached = None  # the clock was set back: what is new since then is unknown
        gone = {run.info.run_id for run in store.search(deleted=True)}
        if cached is None:
            _logger.info("reading all runs of experiment %s ...", store.experiment)
            table = _table(store.search())
        else:
            old, gone_before = cached[0], set(cached[1]["deleted"])
            since = cached[1]["looked"] - _MARGIN_S
            filters = [
                "attributes.status = 'RUNNING'",
                f"attributes.start_time > {since * 1000:.0f}",
                f"attributes.end_time > {since * 1000:.0f}",
                f"metrics.`{UPDATED}` > {since:.3f}",
            ]
            not_ended = old.filter(pc.is_in(old["status"], pa.array(_NOT_ENDED)))["run_id"]
            restored = gone_before - gone
            for batch in batches({*not_ended.to_pylist(), *restored}, _IDS_PER_QUERY):
                listed = ", ".join(f"'{run_id}'" for run_id in batch)
                filters.append(f"attributes.run_id IN ({listed})")
            fresh = _table(itertools.chain.from_iterable(map(store.search, filters)))
            if not fresh.num_rows and gone == gone_before:
                return old
            changed = pa.array({*fresh["run_id"].to_pylist(), *gone}, pa.string())
            old = old.filter(pc.invert(pc.is_in(old["run_id"], changed)))
            table = pa.concat_tables([old, fresh], promote_options="default")
        current = [
            name
            for name in table.column_names
            if not name.startswith(_GROUPS) or table[name].null_count < table.num_rows
        ]
        order = [("start_time", "descending"), ("run_id", "ascending")]
        table = table.select(current).sort_by(order).combine_chunks()
        cache.write(table, {"looked": began, "deleted": sorted(gone)})
        return table


def _table(runs: Iterable["MlflowRun"]) -> pa.Table:
    """Runs as a table: the columns of `runs`, times in ms, and `updated`.

    Null is what a run does not have, whereas NaN is a value. A run may come twice, because new runs
    shift the pages of a search.
    """
    rows: dict[str, dict[str, Any]] = {}
    for run in runs:
        info, data = run.info, run.data
        head = (info.run_id, data.tags.get("mlflow.parentRunId"), info.status, info.run_name)
        times = info.start_time, info.end_time
        row: dict[str, Any] = dict(zip(COLUMNS, (*head, *times), strict=True))
        row |= {f"tags.{key}": value for key, value in data.tags.items()}
        row |= {f"params.{key}": value for key, value in data.params.items()}
        row |= {f"metrics.{key}": _number(value) for key, value in data.metrics.items()}
        rows[info.run_id] = row | {_UPDATED: row.pop(f"metrics.{UPDATED}", None)}

    def dtype(name: str) -> pa.DataType:
        if name in _TIMES:
            return pa.int64()
        return pa.float64() if name.startswith(("metrics.", _UPDATED)) else pa.string()

    others = {name for row in rows.values() for name in row} - {*COLUMNS, _UPDATED}
    names = [*COLUMNS, *others, _UPDATED]
    arrays = [pa.array([row.get(name) for row in rows.values()], dtype(name)) for name in names]
    return pa.table(arrays, names=names)


def _frame(table: pa.Table) -> pd.DataFrame:
    """The table as `runs` returns it."""
    names = sorted(table.column_names)
    names = [name for group in _GROUPS for name in names if name.startswith(group)]
    frame = table.select([*COLUMNS, *names]).to_pandas()
    for column in _TIMES:
        frame[column] = pd.to_datetime(frame[column].astype("float64"), unit="ms", utc=True)
    return frame


def _number(value: float) -> float:
    """A metric's value as it was logged: SQL stores hold infinity as the largest float."""
    return value if abs(value) < sys.float_info.max else float("inf") * value


def _version(status: str, end_time: int | None, updated: float | None) -> str | None:
    """A text that changes when the record of an ended run does; None while it runs."""
    return None if status in _NOT_ENDED else f"{end_time} {updated}"


def _fetch(store: Store, run_ids: list[str], metric: str) -> list[tuple[str, int, int, float]]:
    """All values of the metric: run id, step, timestamp, value. A server has several requests."""
    client = store.client

    def points(run_id: str) -> list[tuple[str, int, int, float]]:
        entries = client.get_metric_history(run_id, metric)
        return [(run_id, item.step, item.timestamp, _number(item.value)) for item in entries]

    with (
        mlflow_errors(f"cannot read the history of {metric!r}"),
        ThreadPoolExecutor(_REQUESTS if store.is_server else 1) as pool,
    ):
        return list(itertools.chain.from_iterable(pool.map(points, run_ids)))
