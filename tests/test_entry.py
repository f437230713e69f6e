"""The command line as a user meets it: in processes of its own, and where only what is typed differs, in this one."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from src import train
from src.core.cli import ROOT


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m src.train` with all its folders below `tmp_path`."""
    environment = {
        **os.environ,
        "PARETODERM_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "src.train", *arguments]
    return subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, run_entry) -> Callable[..., tuple[int, str]]:
    """`typed(folder, *arguments)`: the same in this process, so that the imports are paid once: status and output."""

    def run_in(folder: Path, *arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PARETODERM_CACHE", str(folder / "cache"))
        return run_entry(train.main, *arguments)

    return run_in


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the runs that get as far as a run store, which takes seconds to create."""
    return tmp_path_factory.mktemp("runs")


def test_help_names_groups_and_examples_without_loading_torch(tmp_path: Path) -> None:
    result = run(tmp_path, "--help")
    assert result.returncode == 0
    for group in (
        "model",
        "data",
        "augment",
        "loss",
        "optimizer",
        "scheduler",
        "trainer",
        "callbacks",
        "experiment",
    ):
        assert f"\n  {group}: " in result.stdout or f"\n{group}: " in result.stdout, group
    assert result.stdout.count("python -m src.train") >= 3
    assert "efficientnet_lite0" in result.stdout
    assert "_base" not in result.stdout


def test_a_mistake_is_one_line_on_stderr_and_status_2(tmp_path: Path) -> None:
    result = run(tmp_path, "model.net.width=0")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: model.net.width: ")
    assert result.stderr.count("\n") == 1, result.stderr


@pytest.mark.parametrize("module", ["src", "src.train"])
def test_importing_is_light(module: str) -> None:
    code = f"import {module}, sys; print([name for name in ('torch', 'mlflow', 'optuna', 'timm') if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["model=cutsom"], "model=cutsom: no such choice, did you mean custom?"),
        (["model.net.widht=3"], "model.net.widht: unknown key; did you mean model.net.width?"),
        (["+model.net.foo=3"], "model.net.foo: unknown key"),
        (["model.net.dropout=1.3"], "model.net.dropout: "),
        (["model.net.width=0"], "model.net.width: "),
        (["model.net.width=abc"], "model.net.width: "),
        (["trainer.max_epochs=ten"], "trainer.max_epochs: "),
        (["seed=abc"], "seed: "),
        (["test=perhaps"], "test: "),
        (["test=yes"], "test: "),
        (["objective.objectives=[{metric:test/accuracy}]"], "objective.objectives[0]"),
        (["model.net.width=["], "model.net.width=["),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_override_ends_with_one_line_that_names_it(
    tmp_path: Path, typed, arguments: list[str], culprit: str
) -> None:
    status, said = typed(tmp_path, *arguments)
    assert status == 2
    assert said.count("\n") == 1, said
    assert culprit in said
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["experiment=smoke", "data.fractions=[0.5,0.2,0.2]"], "data.fractions: "),
        (["experiment=smoke", "model.image_size=16"], "model.net.image_size: "),
        (["experiment=smoke", "optimizer.lr=-1"], "optimizer: "),
        (["experiment=smoke", "trainer.max_epochs=0"], "trainer.max_epochs: "),
        (["experiment=smoke", "optimizer.lr=1e9", "loss=focal"], "train/loss is "),
        (["data=ham10000", "data.root=nowhere"], "nowhere"),
    ],
)
def test_bad_value_found_later_is_one_line_too_and_a_failed_run(
    shared_folder: Path, typed, arguments: list[str], culprit: str
) -> None:
    status, said = typed(shared_folder, *arguments)
    assert status == 2
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert culprit in errors[0]
    assert "Traceback" not in said
