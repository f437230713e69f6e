"""Links into MLflow's interface, and the views of a study that it saves for them.

A saved view is a tag of the experiment with the state of the runs page. MLflow's "share" button
writes the same; the interface lists the views by their names.
"""

import base64
import functools
import importlib.metadata
import json
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from src.tracking.run import Run
from src.tracking.store import Store, brief_http

VIEWS = ("table", "front", "parallel", "curves")
_COSTS = ("efficiency/flops", "efficiency/params", "efficiency/latency_ratio")
# Widths of columns in px. The first objective and the costs fit into 1280 px also beside the
# assistant that MLflow opens on the first visit.
_WIDTHS = {"attributes.`Run Name`": 200, "runDateAndNestInfo": 50, "attributes.`Dataset`": 200}
_WIDTHS |= dict(zip((f"metrics.`{name}`" for name in _COSTS), (115, 100, 75), strict=True))
COLOUR = "mlflow.runColor"  # tag of a run
# Of a run, for the horizontal axis of "front": MLflow's scatter chart has linear axes only.
LOG_FLOPS = f"log10/{_COSTS[0]}"
_MOST_PARAMS = 10  # of a view: a tag of an experiment has 5000 characters
_TAG = "mlflow.sharedViewState."
# Versions from which the interface has tabs, one of them for runs, and views with names.
_WITH_TABS, _WITH_VIEWS = (3, 0), (3, 16)
_IN_ADDRESS = ("searchFilter", "orderByKey", "orderByAsc")  # keys of a view too, since 2.0


def page(store: Store, run_id: str = "", view: str = "") -> str:
    """The path of a page of MLflow's interface, to be appended to its address.

    An interface that does not know saved views gets the view's filter and order by address.

    Args:
        store: Its experiment is shown.
        run_id: Of a run. Without it, all runs are listed.
        view: One of `VIEWS` of the study that has this run; without it, the run itself is shown.
    """
    path = f"/#/experiments/{store.experiment_id}/runs"
    # else the interface opens what it has for language models
    query = {"workflowType": "machine_learning"}
    if not view:
        return f"{path}/{run_id}".rstrip("/") + f"?{urlencode(query)}"
    query |= {} if view == "table" else {"compareRunsMode": "CHART"}
    key, version = f"{view}-{run_id[:8]}", _version(store.uri, store.is_server)
    if version >= _WITH_VIEWS:
        query["viewStateShareKey"] = key
    elif saved := store.client.get_experiment(store.experiment_id).tags.get(f"{_TAG}{key}"):
        packed = json.loads(saved)["state"].removeprefix("deflate;")
        state = json.loads(zlib.decompress(base64.b64decode(packed)))
        query |= {name: state[name] for name in _IN_ADDRESS}
        query["orderByAsc"] = json.dumps(state["orderByAsc"])
    path = path if version >= _WITH_TABS else path.removesuffix("/runs")
    return f"{path}?{urlencode(query)}"


@functools.cache
def _version(uri: str, is_server: bool) -> tuple[int, int]:
    """Version of the MLflow interface for a store, as 3, 17; if unknown, the lowest with tabs.

    A database is shown by the installed MLflow.
    """
    if not is_server:
        text = importlib.metadata.version("mlflow")
    else:
        from mlflow.exceptions import MlflowException
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        try:
            with brief_http():
                text = http_request(get_default_host_creds(uri), "/version", "GET").text
        except (MlflowException, OSError):
            text = ""
    numbers = re.match(r"(\d+)\.(\d+)\.", text)
    return (int(numbers[1]), int(numbers[2])) if numbers else _WITH_TABS


def pages(store: Store, study_run: str) -> dict[str, str]:
    """The path of each view of a study."""
    return {view: page(store, study_run, view) for view in VIEWS}


def save(
    study: Run, objectives: Mapping[str, str], columns: Sequence[str], params: Sequence[str]
) -> None:
    """Save the views of a study, in place of earlier ones, and link them from its description.

    Args:
        study: The study's run; the runs directly below it are shown.
        objectives: Name in the run record -> direction; the runs are sorted by the first one.
        columns: Metrics of the table, after the objectives and the costs.
        params: Names of the recorded parameters that were swept.
    """
    store, (first, *_), params = study.store, objectives, params[:_MOST_PARAMS]
    quality = next((name for name in objectives if not name.startswith("efficiency/")), first)
    pairs = [f"{split}/{name}" for name in ("accuracy", "loss") for split in ("train", "val")]
    curves = list(dict.fromkeys([quality.removeprefix("best/"), *pairs]))
    drawn = {"xaxis": LOG_FLOPS, "yaxis": quality}
    axes = {name: {"key": metric, "type": "METRIC"} for name, metric in drawn.items()}
    plain = {"lineSmoothness": 0, "useGlobalLineSmoothing": False}
    cards: dict[str, list[dict[str, Any]]] = {
        "table": [],
        "front": [{"type": "SCATTER", **axes}],
        "parallel": [
            {"type": "PARALLEL", "selectedParams": params, "selectedMetrics": [*objectives][::-1]}
        ],
        "curves": [{"type": "LINE", "metricKey": name, **plain} for name in curves],
    }
    view_columns = [f"metrics.`{name}`" for name in dict.fromkeys([*objectives, *_COSTS, *columns])]
    view_columns += [f"params.`{name}`" for name in params] + ["attributes.`Dataset`"]
    common = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{study.id}'",
        "orderByKey": f"metrics.`{first}`",
        "orderByAsc": objectives[first] == "minimize",
        "selectedColumns": view_columns,
        "columnOrder": [*dict.fromkeys([*list(_WIDTHS)[:2], *view_columns])],
        "columnWidths": dict.fromkeys(view_columns, 80) | _WIDTHS,
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,  # our section stays above those that MLflow adds
    }
    for view, charts in cards.items():
        section = {"uuid": view, "name": view, "display": True, "columns": 1, "cardHeight": 380}
        placed = [
            {"uuid": f"{view}{number}", "metricSectionId": view, "deleted": False, **chart}
            for number, chart in enumerate(charts)
        ]
        state = {**common, "compareRunSections": [section], "compareRunCharts": placed}
        packed = zlib.compress(json.dumps(state if charts else common).encode())
        saved = {"name": f"{study.name}: {view}", "createdAt": int(time.time() * 1000)}
        saved["state"] = "deflate;" + base64.b64encode(packed).decode()
        key = f"{_TAG}{view}-{study.id[:8]}"
        store.client.set_experiment_tag(store.experiment_id, key, json.dumps(saved))
    tags = store.client.get_run(study.id).data.tags
    if not tags.get("mlflow.note.content"):  # or somebody has described the study
        links = [f"[{view}]({path[1:]})" for view, path in pages(store, study.id).items()]
        study.tag(**{"mlflow.note.content": "Views of this study: " + ", ".join(links)})
