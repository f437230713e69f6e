"""Runs read back from the store, as tables."""

import posixpath
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pandas as pd

from src.tracking.run import UPDATED
from src.tracking.store import Store, TrackingError

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

COLUMNS = ("run_id", "parent_id", "status", "name", "start_time", "end_time")


def runs(store: Store, filter: str = "") -> pd.DataFrame:
    """All runs of the store's experiment that are not deleted.

    Args:
        store: Opened if it is not yet.
        filter: MLflow's search language, such as `tags.study = 'dense_size' and metrics."val/auroc" > 0.9`.

    Returns:
        A row per run, the newest first: run_id, parent_id (missing without one), status (RUNNING, FINISHED, FAILED,
        KILLED), name, start_time and end_time (UTC; NaT while it runs), then `tags.<tag>`, `params.<key>` (text) and
        `metrics.<name>` (the last value; NaN if absent), each group in alphabetical order. The date of later changes
        (`src.tracking.run.UPDATED`) is left out.

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
        elif any(item.path == name for item in client.list_artifacts(run_id, posixpath.dirname(name) or None)):
            path = Path(client.download_artifacts(run_id, name))
        if path is not None and path.exists():
            return path
        known = ", ".join(item.path for item in client.list_artifacts(run_id)) or "none"
    except (MlflowException, OSError) as error:
        raise TrackingError(f"artifact {name!r} of run {run_id}: {' '.join(str(error).split())}") from error
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
    return found | {f"metrics.{key}": number(value) for key, value in data.metrics.items() if key != UPDATED}


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
