"""Which models a benchmark measures."""

from collections.abc import Callable
from pathlib import Path

import pytest

from src.core.errors import ConfigError, UserError
from src.deployment.benchmark.models import BenchmarkSettings, of_files, of_runs
from src.tracking.store import Store


def test_files_with_equal_names_are_labelled_by_their_paths(
    onnx_file: Path, tmp_path: Path, write_onnx: Callable[[Path, str], Path]
) -> None:
    twins = [write_onnx(tmp_path / name / "model.onnx", "0123abcd") for name in "ab"]
    files = [str(path) for path in (twins[0], onnx_file, twins[1], twins[0])]
    models = of_files(BenchmarkSettings(file=files))
    assert [model.label for model in models] == [str(twins[0]), onnx_file.name, str(twins[1])]


def test_a_study_is_its_front_and_a_trial_its_first_seed(
    study: tuple[Store, dict[str, str]], tmp_path: Path
) -> None:
    store, ids = study
    models = of_runs(
        store, BenchmarkSettings(run=["widths"], runtime=["eager", "compile"]), tmp_path
    )
    expected = {
        (ids[name], runtime) for name in ("member", "seed0") for runtime in ("eager", "compile")
    }
    assert {(model.run_id, model.runtime) for model in models} == expected
    with pytest.raises(UserError, match="no front yet; .* python -m src.report study=frontless"):
        of_runs(store, BenchmarkSettings(run=["frontless"]), tmp_path)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "run: name runs or a study"),
        ({"run": "a", "join": "b.json"}, "join: adds a file and measures nothing"),
        ({"run": "a", "cores": 9999}, "cores: must be at most"),
        ({"run": "a", "out": "result.csv"}, "out: result.csv would be the CSV"),
        ({"run": "a", "out": "."}, "out: . is a folder"),
        ({"run": "a", "out": "/dev/null"}, "out: /dev/null is not a file"),
        ({"file": __file__, "out": __file__}, "is a model, which would be lost"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BenchmarkSettings(**settings).validate()  # type: ignore[arg-type]
    assert problem in str(caught.value)
