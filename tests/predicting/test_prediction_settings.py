"""Which paths are refused before anything is computed."""

from pathlib import Path

import pytest

from src.core.errors import ConfigError
from src.deployment.predict import PredictSettings


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("list.csv", "it.png", "custom.onnx", "of yesterday.csv"):
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("out", "problem"),
    [
        ("empty", "empty is a folder"),
        ("./list.csv", "./list.csv is the input, which would be lost"),
        ("./custom.onnx", "./custom.onnx is the model, which would be lost"),
        ("it.png", "it.png is a picture's name"),
        (
            "/dev/null",
            "/dev/null is no file that can be written anew",
        ),  # by root it would be replaced
        (" ", "name a CSV to write"),
    ],
)
def test_nothing_is_lost_by_what_is_written(here: Path, out: str, problem: str) -> None:
    with pytest.raises(ConfigError, match="out: ") as refused:
        _ = PredictSettings(named="custom.onnx", input="list.csv", out=out).table
    assert problem in str(refused.value)


@pytest.mark.parametrize("out", ["said.csv", "new/said.csv", "of yesterday.csv"])
def test_other_files_are_written(here: Path, out: str) -> None:
    assert PredictSettings(named="custom.onnx", input="list.csv", out=out).table == Path(out)


@pytest.mark.parametrize("given", ["nosuch", "~no such user/it.png", "a" * 300])
def test_what_cannot_be_there_is_not_there(here: Path, given: str) -> None:
    with pytest.raises(ConfigError, match="input: .* is not there"):
        _ = PredictSettings(input=given).pictures
