"""Runs kept locally as Parquet, so that a report asks the store only for what is new.

What MLflow's search can find is asked for: runs that run, that began or ended since the last look, and that our own
code changed after their end (`src.tracking.run.UPDATED`); beside them the runs that had not ended when last seen, and
what was deleted or brought back. NOT seen, unless everything is read again (`refresh`): what was changed by hand, in
MLflow's user interface, after a run's end; what `mlflow gc` removed between two looks; runs that other tools imported
with an old end time, or that a machine whose clock is more than `MARGIN_S` late wrote.
"""

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from src.tracking.limits import batches
from src.tracking.parquet import Kept
from src.tracking.read import COLUMNS, ordered, row, timed
from src.tracking.run import UPDATED
from src.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

MARGIN_S = 300.0  # how far the clocks of the machines that write runs may be apart
_IDS_PER_QUERY = 100
NOT_ENDED = ("RUNNING", "SCHEDULED")
_CHANGED = "updated"  # this column is the cache's own
Cells = dict[str, Any]  # of a run, by column

_logger = logging.getLogger(__name__)


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
        The columns of `src.tracking.read.runs`, times in ms; null is what a run does not have. And `updated`: seconds
        since the epoch of the last write to a run that had ended.
    """
    kept = Kept(store, "runs")
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
    return pa.table([pa.array([one.get(name) for one in rows], _type(name)) for name in names], names=names)


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
        [name for name in table.column_names if name in fixed or table[name].null_count < table.num_rows]
    )
    return table.sort_by([("start_time", "descending"), ("run_id", "ascending")]).combine_chunks()


def _frame(table: pa.Table) -> pd.DataFrame:
    frame = table.select(ordered(set(table.column_names) - {_CHANGED})).to_pandas()
    for name in COLUMNS:
        if table[name].null_count == table.num_rows:
            frame[name] = pd.Series([None] * len(frame), dtype="object")  # as pandas takes a column of nothing else
    return timed(frame)
