"""The examples of docs/extending.md, written into a copy of the project and run as they stand."""

import os
import re
import shlex
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
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the files of the page; a titled block that exists is appended."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("src", "conf", "sweeps", "hydra_plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for _, title, text in BLOCK.findall(PAGE.read_text()):
        if title:
            path = folder / title
            path.write_text((path.read_text() + "\n\n" if path.exists() else "") + text)
    return folder


def run(project: Path, command: str) -> str:
    """Run one command of the page in the copy; its output, after it ended with status 0."""
    arguments = shlex.split(command)
    assert arguments[0] == "python"
    environment = {**os.environ, "PYTHONPATH": str(project)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    ended = subprocess.run(
        [sys.executable, *arguments[1:]],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def commands() -> list[str]:
    """The lines of the page that start with a prompt, in order."""
    blocks = [text for kind, _, text in BLOCK.findall(PAGE.read_text()) if kind == "console"]
    return [line[2:] for text in blocks for line in text.splitlines() if line.startswith("$ ")]


@pytest.mark.timeout(900)
def test_every_command_of_the_page_runs(project: Path) -> None:
    outputs: list[str] = []
    run_ids: list[str] = []
    for command in commands():
        text = run(project, command.replace("<run id>", run_ids[0] if run_ids else ""))
        outputs.append(text)
        run_ids += re.findall(r"\b[0-9a-f]{32}\b", text)
    assert len(outputs) == 4
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
