"""Runs read back from the store, as tables."""

import posixpath
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pandas as pd

from src.tracking.store import Store, TrackingError

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

_COLUMNS = ("run_id", "parent_id", "status", "name", "start_time", "end_time")


def runs(store: Store, filter: str = "") -> pd.DataFrame:
    """All runs of the store's experiment that are not deleted.

    Args:
        store: Opened if it is not yet.
        filter: MLflow's search language, such as `tags.study = 'dense_size' and metrics."val/auroc" > 0.9`.

    Returns:
        A row per run, the newest first: run_id, parent_id (missing without one), status (RUNNING, FINISHED, FAILED,
        KILLED), name, start_time and end_time (UTC; NaT while it runs), then `tags.<tag>`, `params.<key>` (text) and
        `metrics.<name>` (the last value; NaN if absent), each group in alphabetical order.

    Raises:
        TrackingError: The filter is not in MLflow's search language.
    """
    return _table([_row(run) for run in store.search(filter)])


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
        elif any(item.path == name for item in client.list_artifacts(run_id, posixpath.dirname(name) or None)):
            path = Path(client.download_artifacts(run_id, name))
        if path is not None and path.exists():
            return path
        known = ", ".join(item.path for item in client.list_artifacts(run_id)) or "none"
    except (MlflowException, OSError) as error:
        raise TrackingError(f"artifact {name!r} of run {run_id}: {' '.join(str(error).split())}") from error
    raise TrackingError(f"run {run_id} has no artifact {name!r}; it has: {known}")


def _row(run: "MlflowRun") -> dict[str, Any]:
    info, data = run.info, run.data
    row = {
        "run_id": info.run_id,
        "parent_id": data.tags.get("mlflow.parentRunId"),
        "status": info.status,
        "name": info.run_name,
        "start_time": info.start_time,
        "end_time": info.end_time,
    }
    row |= {f"tags.{key}": value for key, value in data.tags.items()}
    row |= {f"params.{key}": value for key, value in data.params.items()}
    return row | {f"metrics.{key}": _number(value) for key, value in data.metrics.items()}


def _number(value: float) -> float:
    """SQL stores hold infinity as the largest float."""
    return value if abs(value) < sys.float_info.max else float("inf") * value


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    found = {column for row in rows for column in row} - set(_COLUMNS)
    groups = ("tags.", "params.", "metrics.")
    order = [column for group in groups for column in sorted(found) if column.startswith(group)]
    frame = pd.DataFrame(rows, columns=[*_COLUMNS, *order])
    for column in ("start_time", "end_time"):
        frame[column] = pd.to_datetime(frame[column].astype("float64"), unit="ms", utc=True)
    return frame
