"""Optuna's dashboard as a browser shows it: names of objectives, the front, notes of trials."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import optuna
import pytest

from src.core.cli import ROOT
from src.metrics.registry import Objective
from src.sweep import space as spaces
from src.sweep.storage import default_url, open_storage
from src.sweep.study import open_study, save_notes

OBJECTIVES = [
    Objective("val/balanced_accuracy", "maximize"),
    Objective("efficiency/flops", "minimize"),
]
NAMES = [objective.metric for objective in OBJECTIVES]
VALUES = [(0.45, 3e6), (0.6, 30037824.0), (0.55, 4e9), (0.4, 5e9)]  # the first two are the front
NOTE = "On the Pareto front"


@pytest.fixture(scope="module")
def address(
    tmp_path_factory: pytest.TempPathFactory, wait_for: Any, unused_port: Any
) -> Iterator[str]:
    """The address of the command's dashboard on a study of four trials."""
    folder = tmp_path_factory.mktemp("dashboard")
    space = spaces.parse(["width=choice(8,16,32,64)"], {}, {}, [], [])[0]
    sampler = optuna.samplers.RandomSampler(0)
    storage = open_storage(default_url(folder))
    study = open_study(storage, "widths", OBJECTIVES, [], space, [], sampler)
    for values in VALUES:
        trial = study.ask({"width": optuna.distributions.IntDistribution(8, 64)})
        study.tell(trial, values)
    save_notes(study, {0: f"**{NOTE}**: 0.450.", 1: f"**{NOTE}**: 0.600."})
    port, log = unused_port(), folder / "log.txt"
    command = [sys.executable, "-m", "src.sweep.dashboard", f"port={port}", f"folder={folder}"]
    variables = {name: text for name, text in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=output)
    try:
        wait_for(f"http://127.0.0.1:{port}/dashboard", process, log)
        printed = re.findall(r"http://\S+", log.read_text())
        assert printed == [f"http://127.0.0.1:{port}/dashboard"]
        yield printed[0]
    finally:
        process.terminate()
        process.wait(timeout=30)
    assert log.read_text().count("\n") == 1  # no line for each request


@pytest.mark.slow
def test_objectives_have_names_the_front_is_listed_and_its_trials_have_notes(
    address: str, browser: Any
) -> None:
    page = browser.new_page(viewport={"width": 1600, "height": 1400})
    page.set_default_timeout(60_000)
    page.goto(address)
    page.get_by_role("link", name="widths").first.click()
    page.wait_for_url("**/studies/**")
    for name in NAMES:
        page.get_by_text(name).first.wait_for()
    assert page.get_by_text("Objective 0").count() == 0
    page.get_by_text("Objective Values").nth(1).wait_for()
    best = page.inner_text("body").partition("Best Trials")[2]
    assert re.findall(r"^Trial \d+$", best, re.MULTILINE) == ["Trial 0", "Trial 1"]
    study = page.url.partition("/studies/")[2].partition("/")[0]
    for number, quality in ((0, "0.450"), (1, "0.600")):
        page.goto(f"{address}/studies/{study}/trials?numbers={number}")
        page.get_by_text(NOTE).first.wait_for()
        page.get_by_text(quality).first.wait_for()
    page.goto(f"{address}/studies/{study}/trials?numbers=2")
    page.get_by_text("Trial 2").first.wait_for()
    assert page.get_by_text(NOTE).count() == 0
    page.close()
