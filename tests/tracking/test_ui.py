import contextlib
import math
import re

import pandas as pd
import psutil
import pytest

from src.core.errors import UserError
from src.tracking.read import artifact, children
from src.tracking.run import Run
from src.tracking.store import Store
from src.tracking.ui import main

CHILDREN = {"custom": (30037824, 0.4321), "resnet50": (4087136256, 0.5678)}


def write_study(store: Store, name: str) -> Run:
    """A parent with a comparison table and a child for each architecture."""
    with Run.start(store, name, tags={"study": name}) as parent:
        for child, (flops, accuracy) in CHILDREN.items():
            with Run.start(
                store, child, {"study": name}, {"model": {"name": child}}, parent.id
            ) as run:
                for epoch in range(3):
                    run.log({"val/balanced_accuracy": accuracy - (2 - epoch) / 10}, epoch)
                run.log({"efficiency/flops": flops, "nan": math.nan, "inf": math.inf})
                run.text(f"model: {child}\n", "config/config.yaml")
        parent.table(pd.DataFrame(CHILDREN), "comparison.csv")
    return parent


@pytest.mark.slow
def test_a_browser_shows_the_parent_its_children_their_metrics_and_artifacts(
    server, served_store, browser
):
    parent = write_study(served_store, "seen_study")
    found = children(served_store, parent.id).set_index("name")
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(30_000)
    outside: list[str] = []
    page.on(
        "request",
        lambda r: None if r.url.startswith((server, "data:", "blob:")) else outside.append(r.url),
    )
    experiment = f"{server}/#/experiments/{served_store.experiment_id}/runs"

    # the list of runs: the children hide behind their parent's expander
    page.goto(f"{experiment}?workflowType=machine_learning")
    row = page.get_by_role("gridcell").filter(
        has=page.get_by_role("link", name="seen_study", exact=True)
    )
    row.get_by_role("button").first.click()
    for name in CHILDREN:
        page.get_by_role("link", name=name, exact=True).wait_for()

    # the parent's page: its artifacts, and its children as links
    page.get_by_role("link", name="seen_study", exact=True).click()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("comparison.csv", exact=True).wait_for()

    for name, (flops, accuracy) in CHILDREN.items():
        page.goto(f"{experiment}/{parent.id}")
        page.get_by_role("tab", name="Overview").click()
        page.get_by_role("link", name=name, exact=True).click()
        page.wait_for_url(f"**/{found.run_id[name]}**")
        page.get_by_role("heading", name=name).wait_for()
        page.get_by_text(str(flops), exact=True).wait_for()
        page.get_by_text(str(accuracy), exact=True).wait_for()
        assert page.get_by_role("link", name="efficiency/flops", exact=True).is_visible()
        assert page.get_by_role("link", name="val/balanced_accuracy", exact=True).is_visible()
        page.get_by_role("tab", name="Artifacts").click()
        page.get_by_text("config", exact=True).click()
        page.get_by_text("config.yaml", exact=True).click()
        page.get_by_text(re.compile(rf"model:\s*{name}")).first.wait_for()
    page.close()
    assert outside == []


@pytest.mark.slow
def test_runs_written_and_read_through_the_server_are_the_same(server, served_store, tmp_path):
    remote = Store(uri=server, experiment="remote", folder=tmp_path).open()
    parent = write_study(remote, "remote_study")
    found = children(remote, parent.id).set_index("name")
    for name, (flops, accuracy) in CHILDREN.items():
        assert found.status[name] == "FINISHED"
        assert found["metrics.efficiency/flops"][name] == flops
        assert found["metrics.val/balanced_accuracy"][name] == accuracy
        assert math.isnan(found["metrics.nan"][name])
        assert found["metrics.inf"][name] == math.inf
        assert (
            artifact(remote, found.run_id[name], "config/config.yaml").read_text()
            == f"model: {name}\n"
        )
    with pytest.raises(ValueError, match="why"), Run.start(remote, "dies") as run:
        raise ValueError("why")
    assert remote.client.get_run(run.id).data.tags["failure"] == "ValueError: why"
    assert "Traceback" in artifact(remote, run.id, "traceback.txt").read_text()


def command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):  # one that another test has started may end now
        return " ".join(process.cmdline())
    return ""


@pytest.mark.slow
def test_no_process_waits_for_jobs_that_never_come(server):
    commands = [command(process) for process in psutil.Process().children(recursive=True)]
    assert any(
        "mlflow server" in command and server.rpartition(":")[2] in command for command in commands
    )
    assert not [command for command in commands if "mlflow.server.jobs" in command]


@pytest.mark.slow
def test_a_busy_port_is_named(server):
    with pytest.raises(UserError, match="is not free"):
        main([f"port={server.rpartition(':')[2]}"])


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
