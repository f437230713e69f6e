"""`python -m src.card`: what may be typed, what comes of it, and what is said of mistakes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from src import card

Entry = Callable[..., tuple[int, str]]


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("model=3f2a9c", "subject='3f2a9c'"),
        ("model=12e4", "subject='12e4'"),
        ("model=derm@champion", "subject='derm@champion'"),
        ("model=it's", "subject='it\\'s'"),
        ("model=a\\b.onnx", "subject='a\\b.onnx'"),
        ("model=null", "subject=null"),
        ("folder=x", "folder=x"),
    ],
)
def test_what_is_typed_as_model_is_a_text(typed: str, read: str) -> None:
    assert card.as_hydra_reads(typed) == read


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ([], "model: name one"),
        (
            ["model=nosuch"],
            "model=nosuch: no run, no registered model and no file is called so; no model is registered",
        ),
        (["model=abcdef"], "model=abcdef: no such run"),
        (["model=derm@champion"], "model=derm@champion"),
        (["model=gone.onnx"], "model=gone.onnx: no such file"),
        (["model=abc", "clinical.goal=2"], "clinical.goal: must be between 0 and 1"),
        (["model=abc", "claims=1"], "claims"),
    ],
)
def test_mistakes_end_in_one_line(
    run_entry: Entry,
    empty_database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    store = [f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "tracking.experiment=template"]
    status, told = run_entry(card.main, *typed, *store)
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    assert status == 2
    assert len(lines) == 1, told
    assert said in lines[0]
    assert "Traceback" not in told
