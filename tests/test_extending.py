"""The examples of docs/extending.md, written into a copy of the project and run as they stand."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from src.core.cli import ROOT

PAGE = ROOT / "docs" / "extending.md"
BLOCK = re.compile(r'```(\w+)(?: title="([^"]+)")?\n(.*?)```', re.DOTALL)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A copy of the project with the files of the page; a titled block that exists is appended."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("src", "conf", "sweeps", "hydra_plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for _, title, text in BLOCK.findall(PAGE.read_text()):
        if title:
            path = folder / title
            path.write_text((path.read_text() + "\n\n" if path.exists() else "") + text)
    (folder / "mlruns").mkdir()
    shutil.copy(empty_database, folder / "mlruns")
    return folder


# All commands run in one process, so that imports are paid once.
RUNNER = """
import json, runpy, shlex, sqlite3, sys
import quick_runs
for number, line in enumerate(json.loads(sys.argv.pop())):
    if number:
        store = sqlite3.connect("mlruns/mlflow.db")
        trained = store.execute("select run_uuid from tags where key = 'model'").fetchone()
        line = line.replace("<run id>", trained[0])
        store.close()
    sys.argv = shlex.split(line)[2:]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            sys.exit(f"{line}: status {end.code}")
"""


@pytest.mark.timeout(600)
def test_every_command_of_the_page_runs(project: Path) -> None:
    blocks = [text for kind, _, text in BLOCK.findall(PAGE.read_text()) if kind == "console"]
    lines = [line[2:] for text in blocks for line in text.splitlines() if line.startswith("$ ")]
    assert len(lines) == 4
    assert all(line.startswith("python -m src.train ") for line in lines)
    environment = {**os.environ, "PYTHONPATH": f"{project}{os.pathsep}{ROOT / 'tests'}"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    process = subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(lines)],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    connection = sqlite3.connect(project / "mlruns" / "mlflow.db")
    models = {row[0] for row in connection.execute("select value from tags where key = 'model'")}
    assert "tiny" in models
    kappas = connection.execute("select count(*) from metrics where key = 'best/val/kappa'")
    assert kappas.fetchone()[0] >= 2
    zeroed = connection.execute("select value from metrics where key = 'compression/zeroed'")
    assert zeroed.fetchone()[0] == 0.5
    trials = sqlite3.connect(project / "mlruns" / "optuna.db")
    names = {row[0] for row in trials.execute("select param_name from trial_params")}
    assert {"model", "optimizer.lr"} <= names
    connection.close()
    trials.close()
