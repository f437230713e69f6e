"""Links into MLflow's interface, opened in a browser: what they show without a click."""

import io
import math
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

import pytest
from rich.console import Console

from src.core import cli
from src.metrics.registry import parse_objectives
from src.reporting import comparison
from src.tracking import views
from src.tracking.run import Run
from src.tracking.store import Store

QUALITY, FLOPS = "best/val/balanced_accuracy", "efficiency/flops"
OBJECTIVES = parse_objectives(
    {"objectives": [{"metric": "val/balanced_accuracy"}, {"metric": FLOPS}]}
)
RUNS = {
    "#0 custom": ("custom", 0.5621, 30037824, 691911, 1.04),
    "#1 resnet50": ("resnet50", 0.6678, 4087136256, 23522375, 25.3),
    "#2 vgg16": ("vgg16", 0.4321, 15346630656, 134285383, 98.7),
}


@pytest.fixture(scope="module")
def links(server, tmp_path_factory, module_patch):
    """The links that the end of a study prints, by name; and the study's run."""
    store = Store(uri=server, experiment="views", folder=tmp_path_factory.mktemp("views"))
    with Run.start(store, "a_study", {"kind": "study", "study": "a_study"}) as study:
        for name, (model, quality, flops, params, ratio) in RUNS.items():
            tags = {"kind": "run", "model": model, "overrides": f"model={model}", "trial": name[1]}
            tags[views.COLOUR] = "#777777"
            with Run.start(store, name, tags, {"model": {"name": model}}, study.id) as run:
                for epoch in range(3):
                    run.log({"val/balanced_accuracy": quality * epoch / 2}, epoch)
                    run.log({"train/loss": 1 / (epoch + 1), "val/loss": 1.2 / (epoch + 1)}, epoch)
                    run.log({"train/accuracy": epoch / 2, "val/accuracy": epoch / 3}, epoch)
                run.log({QUALITY: quality, "best/val/accuracy": 0.8, "best/val/recall/mel": 0.7})
                run.log({FLOPS: flops, "efficiency/params": params})
                run.log({views.LOG_FLOPS: math.log10(flops)})
                run.log({"efficiency/latency_ratio": ratio})
                run.inputs("ham10000", "data/ham10000", "abc", {"train": {"mel": 3, "nv": 5}})
        printed = Console(width=400, record=True, file=io.StringIO())
        module_patch.setattr(cli, "console", printed)
        comparison.summarise_study(store, study, OBJECTIVES, [])
    links = dict(re.findall(r"^(\w+) +(http://\S+)", printed.export_text(), re.MULTILINE))
    assert list(links) == list(views.VIEWS)
    links["study"] = f"{server}{views.page(store, study.id)}"
    with pytest.MonkeyPatch.context() as patch:  # as for a server of an earlier version
        patch.setattr(views, "_version", lambda *_: (3, 10))
        return links | {"plain table": server + views.page(store, study.id, "table")}


@pytest.fixture
def opened(browser, links):
    """`opened(name, width)`: a page of a browser that has never been there, after it has loaded."""
    contexts = []

    def open_link(name, width=1280):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.goto(links[name])
        page.get_by_role("link", name="#0 custom").first.wait_for()
        # it is not there in the interface for language models
        page.get_by_role("link", name="Model registry").wait_for()
        return page

    yield open_link
    for context in contexts:
        context.close()


# The middle of the left and right side of a cell is not covered, and its text is not cut.
VISIBLE = """cell => {
    const box = cell.getBoundingClientRect();
    const inside = x => cell.contains(document.elementFromPoint(x, box.y + box.height / 2));
    const parts = [cell, ...cell.querySelectorAll('*')];
    const cut = parts.some(part => part.clientWidth > 0 && part.scrollWidth > part.clientWidth);
    return inside(box.x + 2) && inside(box.right - 2) && !cut;
}"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 1700])
def test_the_table_shows_quality_and_cost_of_each_model_without_a_click(opened, width):
    page = opened("table", width)
    names = [page.get_by_role("link", name=name, exact=True) for name in RUNS]
    heights = [name.bounding_box()["y"] for name in names]
    assert heights[1] < heights[0] < heights[2]  # by balanced accuracy
    for _, *values in RUNS.values():
        for value in values:
            cell = page.get_by_role("gridcell").filter(has_text=re.compile(f"^{value}$"))
            cell.wait_for()
            assert cell.evaluate(VISIBLE), value


@pytest.mark.slow
def test_the_views_of_charts_begin_with_their_charts(opened):
    # texts of their axes; the charts of "parallel" are drawn by another library
    axes = {"front": views.LOG_FLOPS, "parallel": "model.name", "curves": "Step"}
    for view, charts in {"front": 1, "parallel": 1, "curves": 5}.items():
        page = opened(view)
        page.get_by_text(re.compile(rf"^{view}\s*\({charts}\)$")).first.wait_for()
        axis = page.locator("svg text", has_text=re.compile(f"^{axes[view]}$"))
        axis.first.wait_for(state="attached")
        assert axis.count() > 0


@pytest.mark.slow
def test_the_description_of_the_study_links_its_views(opened):
    page = opened("study")
    with page.context.expect_page() as linked:
        page.get_by_role("link", name="front", exact=True).click()
    chart = linked.value.get_by_text(f"{views.LOG_FLOPS} vs. {QUALITY}")
    chart.wait_for()
    assert chart.is_visible()


@pytest.mark.slow
def test_a_plain_link_filters_and_sorts_without_a_saved_view(opened):
    page = opened("plain table")
    assert "viewStateShareKey" not in page.url
    heights = [page.get_by_role("link", name=name, exact=True).bounding_box()["y"] for name in RUNS]
    assert heights[1] < heights[0] < heights[2]  # by balanced accuracy
    assert not page.get_by_role("link", name="a_study", exact=True).count()  # the parent


VERSIONS = {
    "2.0.1": "/#/experiments/{id}?",
    "2.9.2": "/#/experiments/{id}?",
    "3.15.1": "/#/experiments/{id}/runs?",
    "3.16.0": "/#/experiments/{id}/runs?",
    "<html>no such page</html>": "/#/experiments/{id}/runs?",
}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_links_are_those_that_the_server_s_version_knows(
    version, empty_database, tmp_path, monkeypatch
):
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    store = Store(uri=f"sqlite:///{tmp_path}/mlflow.db", folder=tmp_path)
    with Run.start(store, "a_study", {"kind": "study"}) as study:
        views.save(study, {FLOPS: "minimize"}, [], ["model.name"])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == "/version"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(version.encode())

        def log_message(self, *_):
            pass

    views._version.cache_clear()  # a port may be that of an earlier test
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(store, "uri", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(store, "is_server", True)
        paths = views.pages(store, study.id)
        server.shutdown()
        thread.join()
    assert list(paths) == list(views.VIEWS)
    for view, path in paths.items():
        start, query = path.split("?")
        assert f"{start}?" == VERSIONS[version].format(id=store.experiment_id)
        values = dict(parse_qsl(query))
        assert values.pop("workflowType") == "machine_learning"
        assert values.pop("compareRunsMode", "") == ("" if view == "table" else "CHART")
        if version == "3.16.0":
            assert list(values) == ["viewStateShareKey"]
        else:
            assert values == {
                "searchFilter": f"tags.`mlflow.parentRunId` = '{study.id}'",
                "orderByKey": f"metrics.`{FLOPS}`",
                "orderByAsc": "true",
            }
