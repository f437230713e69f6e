"""MLflow's server: what a browser shows of a study, its processes, and its arguments."""

import contextlib
import re

import psutil
import pytest

from src.core.errors import UserError
from src.tracking.run import Run
from src.tracking.store import Store
from src.tracking.ui import main

CHILDREN = {"custom": (30037824, 0.4321), "resnet50": (4087136256, 0.5678)}


@pytest.mark.slow
def test_a_browser_shows_the_parent_its_children_their_metrics_and_artifacts(
    server, browser, tmp_path
):
    store = Store(uri=server, experiment="browser", folder=tmp_path)
    ids = {}
    with Run.start(store, "a_study") as study:
        for name, (flops, accuracy) in CHILDREN.items():
            with Run.start(store, name, params={"name": name}, parent_id=study.id) as run:
                run.log({"val/balanced_accuracy": 0.1}, 0)
                run.log({"val/balanced_accuracy": accuracy, "efficiency/flops": flops}, 1)
                run.text(f"model: {name}\n", "config/config.yaml")
            ids[name] = run.id
        study.text("model\n", "comparison.csv")
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(30_000)
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    experiment = f"{server}/#/experiments/{store.experiment_id}/runs"

    # The children are hidden behind the expander of their parent.
    page.goto(f"{experiment}?workflowType=machine_learning")
    parent = page.get_by_role("link", name="a_study", exact=True)
    page.get_by_role("gridcell").filter(has=parent).get_by_role("button").first.click()
    for name in CHILDREN:
        page.get_by_role("link", name=name, exact=True).wait_for()
    parent.click()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("comparison.csv", exact=True).wait_for()
    for name, values in CHILDREN.items():
        page.goto(f"{experiment}/{study.id}")
        page.get_by_role("tab", name="Overview").click()
        page.get_by_role("link", name=name, exact=True).click()
        page.wait_for_url(f"**/{ids[name]}**")
        page.get_by_role("heading", name=name).wait_for()
        for value in values:
            page.get_by_text(str(value), exact=True).wait_for()
        for metric in ("efficiency/flops", "val/balanced_accuracy"):
            assert page.get_by_role("link", name=metric, exact=True).is_visible()
        page.get_by_role("tab", name="Artifacts").click()
        page.get_by_text("config", exact=True).click()
        page.get_by_text("config.yaml", exact=True).click()
        page.get_by_text(re.compile(rf"model:\s*{name}")).first.wait_for()
    page.close()
    assert [url for url in urls if not url.startswith((server, "data:", "blob:"))] == []


@pytest.mark.slow
def test_the_server_has_no_processes_for_jobs_and_its_port_is_busy(server):
    port, commands = server.rpartition(":")[2], []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # one that another test has started may end now
            commands.append(" ".join(process.cmdline()))
    assert any("mlflow server" in command and port in command for command in commands)
    assert not [command for command in commands if "mlflow.server.jobs" in command]
    with pytest.raises(UserError, match="is not free"):
        main([f"port={port}"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("port=0", "port: must be a number from 1 to 65535"),
        ("prt=5000", "prt=5000: not an argument of"),
    ],
)
def test_bad_arguments_are_named(argument, message):
    with pytest.raises(UserError, match=message):
        main([argument])
