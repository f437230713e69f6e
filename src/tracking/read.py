"""Runs, curves, predictions read back, cached as Parquet."""

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


def runs(store: Store, filter: str = "") -> pd.DataFrame:
    """All runs of the store's experiment that are not deleted.

    Args:
        store: Opened if it is not yet.
        filter: MLflow's search language, such as `tags.study = 'dense_size' and metrics."val/auroc"
            > 0.9`.

    Returns:
        A row per run, the newest first: run_id, parent_id (missing without one), status (RUNNING,
        FINISHED, FAILED, KILLED), name, start_time and end_time (UTC; NaT while it runs), then
        `tags.<tag>`, `params.<key>` (text) and `metrics.<name>` (the last value; NaN if absent),
        each group in alphabetical order. The date of later changes (`src.tracking.run.UPDATED`) is
        left out.

    Raises:
        TrackingError: The filter is not in MLflow's search language.
    """
    return _table([row(run) for run in store.search(filter)])


def children(store: Store, parent_id: str) -> pd.DataFrame:
    """The runs directly under a parent, as `runs` gives them."""
    return runs(store, f"tags.`mlflow.parentRunId` = '{parent_id}'")


def artifact(store: Store, run_id: str, name: str) -> Path:
    """An artifact as a local path: where it lies, or a temporary copy if it comes from a server.

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
        elif any(
            item.path == name
            for item in client.list_artifacts(run_id, posixpath.dirname(name) or None)
        ):
            path = Path(client.download_artifacts(run_id, name))
        if path is not None and path.exists():
            return path
        known = ", ".join(item.path for item in client.list_artifacts(run_id)) or "none"
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"artifact {name!r} of run {run_id}: {' '.join(str(error).split())}"
        ) from error
    raise TrackingError(f"run {run_id} has no artifact {name!r}; it has: {known}")


def row(run: "MlflowRun") -> dict[str, Any]:
    """One run as `runs` names its values, those that it has; times in ms since the epoch."""
    info, data = run.info, run.data
    found = {
        "run_id": info.run_id,
        "parent_id": data.tags.get("mlflow.parentRunId"),
        "status": info.status,
        "name": info.run_name,
        "start_time": info.start_time,
        "end_time": info.end_time,
    }
    found |= {f"tags.{key}": value for key, value in data.tags.items()}
    found |= {f"params.{key}": value for key, value in data.params.items()}
    return found | {
        f"metrics.{key}": number(value) for key, value in data.metrics.items() if key != UPDATED
    }


def number(value: float) -> float:
    """A metric's value as it was logged: SQL stores hold infinity as the largest float."""
    return value if abs(value) < sys.float_info.max else float("inf") * value


def ordered(found: Iterable[str]) -> list[str]:
    """The columns of a table of runs, in their order."""
    groups = ("tags.", "params.", "metrics.")
    names = sorted(set(found) - set(COLUMNS))
    return [*COLUMNS, *(name for group in groups for name in names if name.startswith(group))]


def timed(frame: pd.DataFrame) -> pd.DataFrame:
    """The same frame, its times from ms since the epoch to UTC."""
    for column in ("start_time", "end_time"):
        frame[column] = pd.to_datetime(frame[column].astype("float64"), unit="ms", utc=True)
    return frame


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return timed(pd.DataFrame(rows, columns=ordered({column for row in rows for column in row})))


FORMAT = 1  # of the files; another one is not read
_KEY = b"paretoderm"  # of what we say about a table in its file
_LOCK_SECONDS = 60.0  # then a reader goes on beside the other one: files are replaced whole
_logger = logging.getLogger(__name__)


class CachedFrame:
    """One table in `<store.folder>/cache/`, with what was noted beside it.

    The file's name tells experiments, stores and kinds of table apart by a digest; neither it nor
    the file holds the store's URI. A file that is broken, of another format or of an experiment
    that has since been deleted and made anew is not used. Where the folder cannot be written that
    is said once, and everything works without it.

    Args:
        store: Opened if it is not yet.
        kind: What is kept, such as "runs"; part of the file's name.
        of: What the table is about, for a kind of which there are several.
    """

    def __init__(self, store: Store, kind: str, *of: str) -> None:
        place = urlsplit(store.uri)
        # without the password and without the query, which may hold one
        address = [
            place.scheme,
            place.username,
            place.hostname,
            place.port,
            place.path,
            store.experiment,
            kind,
            *of,
        ]
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
                _logger.info(
                    "%s: another process has held it for %.0f s: not waited for",
                    self.path,
                    _LOCK_SECONDS,
                )
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
                table.replace_schema_metadata({_KEY: said}),
                unfinished,
                compression="zstd",
                write_page_checksum=True,
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


MARGIN_S = 300.0  # how far the clocks of the machines that write runs may be apart
_IDS_PER_QUERY = 100
NOT_ENDED = ("RUNNING", "SCHEDULED")
_CHANGED = "updated"  # this column is the cache's own
Cells = dict[str, Any]  # of a run, by column


def cached_runs(store: Store, refresh: bool = False) -> pd.DataFrame:
    """All runs of the store's experiment, as `src.tracking.read.runs` gives them without a filter.

    Args:
        store: Opened if it is not yet.
        refresh: Read everything again. Needed to see what the module says is not seen otherwise.

    Raises:
        TrackingError: The store cannot be used.
    """
    return _frame(look(store, refresh))


def look(store: Store, refresh: bool = False) -> pa.Table:
    """The experiment's runs as an Arrow table, the newest first, after the cache was brought up to date.

    Returns:
        The columns of `src.tracking.read.runs`, times in ms; null is what a run does not have. And
        `updated`: seconds since the epoch of the last write to a run that had ended.
    """
    kept = CachedFrame(store, "runs")
    with kept.lock():
        began = time.time()
        found = None if refresh else kept.read()
        if found is not None and found[1]["looked"] > began + MARGIN_S:
            found = None  # the clock was set back: what is new since then cannot be told
        if found is None:
            _logger.info("reading all runs of experiment %s ...", store.experiment)
            fresh = _arrow(_by_id(store.search()))
            known, gone_before = fresh.slice(0, 0), set()
        else:
            known, gone_before = found[0], set(found[1]["deleted"])
            fresh = _arrow(_new(store, known, found[1]["looked"]))
        gone = {run.info.run_id for run in store.search(deleted=True)}
        if back := gone_before - gone:
            fresh = _merged(fresh, _arrow(_these(store, back)), set())
        if found is not None and not fresh.num_rows and gone == gone_before:
            return known
        table = _merged(known, fresh, gone)
        kept.write(table, {"looked": began, "deleted": sorted(gone)})
        return table


def _new(store: Store, known: pa.Table, looked: float) -> dict[str, Cells]:
    """Runs that may differ from what is known of them."""
    since = looked - MARGIN_S
    filters = (
        "attributes.status = 'RUNNING'",
        f"attributes.start_time > {since * 1000:.0f}",
        f"attributes.end_time > {since * 1000:.0f}",
        f"metrics.`{UPDATED}` > {since:.3f}",
    )
    found: dict[str, Cells] = {}
    for filter in filters:
        found |= _by_id(store.search(filter))
    open_ = known.filter(pc.is_in(known["status"], pa.array(NOT_ENDED)))["run_id"].to_pylist()
    return found | _these(store, set(open_) - found.keys())


def _these(store: Store, run_ids: Iterable[str]) -> dict[str, Cells]:
    """Those of the runs that are not deleted."""
    found: dict[str, Cells] = {}
    for batch in batches(sorted(run_ids), _IDS_PER_QUERY):
        listed = ", ".join(f"'{run_id}'" for run_id in batch)
        found |= _by_id(store.search(f"attributes.run_id IN ({listed})"))
    return found


def _by_id(runs: Iterable["MlflowRun"]) -> dict[str, Cells]:
    """What is kept of the runs; once of those that come twice, as when runs begin while a search turns its pages."""
    return {run.info.run_id: row(run) | {_CHANGED: run.data.metrics.get(UPDATED)} for run in runs}


def _arrow(found: dict[str, Cells]) -> pa.Table:
    """A row a run: a null where it has no such value, whereas NaN is a value."""
    rows = found.values()
    names = [*ordered({name for one in rows for name in one} - {_CHANGED}), _CHANGED]
    return pa.table(
        [pa.array([one.get(name) for one in rows], _type(name)) for name in names], names=names
    )


def _type(name: str) -> pa.DataType:
    if name in ("start_time", "end_time"):
        return pa.int64()
    return pa.float64() if name == _CHANGED or name.startswith("metrics.") else pa.string()


def _merged(known: pa.Table, fresh: pa.Table, gone: set[str]) -> pa.Table:
    """Both tables, `fresh` over `known`, without the runs in `gone` and columns that no run has any more."""
    known = known.filter(pc.invert(pc.is_in(known["run_id"], fresh["run_id"].combine_chunks())))
    table = pa.concat_tables([known, fresh], promote_options="default")
    if gone:
        table = table.filter(pc.invert(pc.is_in(table["run_id"], pa.array(sorted(gone)))))
    fixed = (*COLUMNS, _CHANGED)
    table = table.select(
        [
            name
            for name in table.column_names
            if name in fixed or table[name].null_count < table.num_rows
        ]
    )
    return table.sort_by([("start_time", "descending"), ("run_id", "ascending")]).combine_chunks()


def _frame(table: pa.Table) -> pd.DataFrame:
    frame = table.select(ordered(set(table.column_names) - {_CHANGED})).to_pandas()
    for name in COLUMNS:
        if table[name].null_count == table.num_rows:
            frame[name] = pd.Series(
                [None] * len(frame), dtype="object"
            )  # as pandas takes a column of nothing else
    return timed(frame)


TEXT = ("image_id", "group", "label")  # of predictions: also where they look like numbers
_RUNS_PER_REQUEST = 100  # what a server takes
_VALUES_PER_REQUEST = 25_000  # what a server gives
_THREADS = 8
_BULK = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
_SCHEMA = pa.schema(
    {"run_id": pa.string(), "version": pa.string(), "step": pa.int64(), "value": pa.float64()}
)
_Point = tuple[str, int, int, float]  # run id, step, timestamp, value


def history(
    store: Store, run_ids: Iterable[str], metric: str, refresh: bool = False
) -> pd.DataFrame:
    """A metric's value at each step, of many runs; of those that have ended from the cache.

    Args:
        store: Opened if it is not yet.
        run_ids: Runs of the store's experiment.
        metric: As it is recorded, such as "val/loss".
        refresh: Read everything again; see `src.tracking.read`.

    Returns:
        Columns run_id, step (int), value (NaN and infinity as they were logged); runs in the order
        of `run_ids`, steps ascending. Of several values at one step the last one. A run without the
        metric has no rows.

    Raises:
        TrackingError: The store cannot be used.
    """
    wanted = list(dict.fromkeys(run_ids))
    versions = _versions(look(store))
    kept = CachedFrame(store, "history", metric)
    with kept.lock():
        found = None if refresh else kept.read()
        known = found[0] if found else _SCHEMA.empty_table()
        seen = dict(zip(known["run_id"].to_pylist(), known["version"].to_pylist(), strict=True))
        missing = [
            run_id
            for run_id in wanted
            if run_id not in versions or seen.get(run_id) != versions[run_id]
        ]
        fresh = _points(missing, _fetch(store, missing, metric), versions)
        known = known.filter(pc.invert(pc.is_in(known["run_id"], pa.array(missing, pa.string()))))
        table = pa.concat_tables([known, fresh])
        if missing and any(run_id in versions for run_id in missing):
            kept.write(table.filter(pc.is_valid(table["version"])), {})
    frame = table.filter(pc.is_valid(table["step"])).drop_columns("version").to_pandas()
    place = frame["run_id"].map({run_id: position for position, run_id in enumerate(wanted)})
    frame = frame.assign(place=place).dropna(subset=["place"]).sort_values(["place", "step"])
    return frame.drop(columns="place").reset_index(drop=True)


def has_predictions(store: Store, run_id: str, split: str) -> bool:
    """Whether a run has been evaluated on a split."""
    return any(
        item.path == f"predictions/{split}.csv"
        for item in store.client.list_artifacts(run_id, "predictions")
    )


def predictions(store: Store, run_id: str, split: str) -> pd.DataFrame:
    """What a run predicted for the images of a split: its artifact predictions/<split>.csv.

    Where the artifacts come from a server, those of a run that has ended are kept.

    Args:
        store: Opened if it is not yet.
        run_id: The run.
        split: train, val, test or whatever else the run was evaluated on.

    Returns:
        As recorded: image_id, group and label (text, whatever they look like), then `p/<class>`, a
        column a class.

    Raises:
        TrackingError: No such run, or it has no predictions for that split.
    """
    name = f"predictions/{split}.csv"
    if not store.is_server:
        return _read_predictions(store, run_id, name)
    version = _version_of(store, run_id)
    kept = CachedFrame(store, "predictions", run_id, split)
    found = kept.read() if version else None
    if found and found[1]["version"] == version:
        return found[0].to_pandas()
    frame = _read_predictions(store, run_id, name)
    if version:
        kept.write(pa.Table.from_pandas(frame, preserve_index=False), {"version": version})
    return frame


def _read_predictions(store: Store, run_id: str, name: str) -> pd.DataFrame:
    path = artifact(store, run_id, name)
    try:
        names = [str(name) for name in pd.read_csv(path, nrows=0) if name not in TEXT]
        missing = {
            name: ["", "nan", "NaN"] for name in names
        }  # of figures alone: an image may be called NA
        types = {str(name): "str" for name in TEXT}
        return pd.read_csv(
            path,
            dtype=types,
            na_values=missing,
            keep_default_na=False,
            float_precision="round_trip",
        )
    except ValueError as error:
        raise TrackingError(
            f"artifact {name!r} of run {run_id} is no table: {' '.join(str(error).split())}"
        ) from error


def _versions(table: pa.Table) -> dict[str, str]:
    """Of each run that has ended, what changes when its record does."""
    names = ("run_id", "status", "end_time", "updated")
    columns = (table[name].to_pylist() for name in names)
    return {
        run_id: f"{end} {updated}"
        for run_id, status, end, updated in zip(*columns, strict=True)
        if status not in NOT_ENDED
    }


def _version_of(store: Store, run_id: str) -> str | None:
    """The same of one run, asked from the store."""
    from mlflow.exceptions import MlflowException

    try:
        run = store.client.get_run(run_id)
    except MlflowException as error:
        raise TrackingError(f"run {run_id}: {' '.join(str(error).split())}") from error
    return (
        None
        if run.info.status in NOT_ENDED
        else f"{run.info.end_time} {run.data.metrics.get(UPDATED)}"
    )


def _points(
    run_ids: Sequence[str], points: Iterable[_Point], versions: Mapping[str, str]
) -> pa.Table:
    """The last value at each step; a run without any has one row, without step, that says so."""
    last: dict[tuple[str, int | None], float] = {}
    for run_id, step, _, value in sorted(points, key=lambda point: point[:3]):
        last[run_id, step] = value
    having = {run_id for run_id, _ in last}
    keys = [*last, *((run_id, None) for run_id in run_ids if run_id not in having)]
    rows = [
        {
            "run_id": run_id,
            "version": versions.get(run_id),
            "step": step,
            "value": last.get((run_id, step)),
        }
        for run_id, step in keys
    ]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _fetch(store: Store, run_ids: Sequence[str], metric: str) -> list[_Point]:
    """All values of the metric, in bulk where the store can: measured, 500 runs of 20 steps.

    SQLite: 0.14 s in bulk, 0.8 s one by one. A server: 0.27 s in bulk (through what its user
        interface asks), 2.4 s
    through the documented bulk interval, 3 s one by one in 8 threads.
    """
    inner = getattr(getattr(store.client, "_tracking_client", None), "store", None)
    bulk = _server_bulk if store.is_server else _database_bulk
    found: list[_Point] = []
    for batch in batches(run_ids, _RUNS_PER_REQUEST):
        try:
            found += bulk(inner, batch, metric)
        except Exception as error:  # not public: whatever another version of MLflow makes of it
            _logger.debug("no histories in bulk (%s): one by one", error)
            found += _one_by_one(store, batch, metric)
    return found


def _database_bulk(inner: Any, run_ids: list[str], metric: str) -> list[_Point]:
    found = [one.to_dict() for one in inner.get_metric_history_bulk(run_ids, metric, 2**31 - 1)]
    return [(one["run_id"], one["step"], one["timestamp"], number(one["value"])) for one in found]


def _server_bulk(inner: Any, run_ids: list[str], metric: str) -> list[_Point]:
    from mlflow.utils.rest_utils import http_request

    wanted = {"run_id": run_ids, "metric_key": metric, "max_results": _VALUES_PER_REQUEST}
    answer = http_request(inner.get_host_creds(), _BULK, "GET", params=wanted)
    answer.raise_for_status()
    found = answer.json()["metrics"]
    if len(found) >= _VALUES_PER_REQUEST:  # cut off
        if len(run_ids) == 1:
            raise ValueError(f"run {run_ids[0]} has too many values")
        middle = len(run_ids) // 2
        return _server_bulk(inner, run_ids[:middle], metric) + _server_bulk(
            inner, run_ids[middle:], metric
        )
    return [
        (one["run_id"], one["step"], one["timestamp"], number(float(one["value"]))) for one in found
    ]


def _one_by_one(store: Store, run_ids: list[str], metric: str) -> list[_Point]:
    from mlflow.exceptions import MlflowException

    def read(run_id: str) -> list[_Point]:
        found = store.client.get_metric_history(run_id, metric)
        return [(run_id, one.step, one.timestamp, number(one.value)) for one in found]

    try:
        with ThreadPoolExecutor(_THREADS if store.is_server else 1) as threads:
            return [point for points in threads.map(read, run_ids) for point in points]
    except MlflowException as error:
        raise TrackingError(
            f"cannot read the history of {metric!r}: {' '.join(str(error).split())}"
        ) from error
