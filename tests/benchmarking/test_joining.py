"""Results into a real store."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_result_files import made_up

from src.core.errors import UserError
from src.deployment.benchmark.benchmark import publish
from src.deployment.benchmark.result import BenchmarkResult
from src.tracking import read
from src.tracking.run import Run
from src.tracking.store import Store


def written(result: BenchmarkResult, folder: Path) -> Path:
    file = folder / f"{result.name}.json"
    file.write_text(result.to_json())
    return file


def of_run(run_id: str) -> BenchmarkResult:
    result = made_up()
    result.rows[0].run_id = run_id
    return result


def test_figures_and_file_stand_on_the_run(store: Store, tmp_path: Path) -> None:
    with Run.start(store, "custom") as run:
        pass
    result = of_run(run.id)
    file = written(result, tmp_path)
    assert publish(result, file, store) == [run.id]
    metrics = store.client.get_run(run.id).data.metrics
    assert metrics["benchmark/Pi_4/onnx/t1/b1/p50_ms"] == 0.5
    assert metrics["benchmark/Pi_4/onnx/t1/b1/ratio"] == 1.0
    assert (
        store.client.get_run(run.id).data.tags["benchmark/Pi_4/onnx/t1/b1/reference"]
        == "tiny.onnx in onnx"
    )
    kept = read.artifact(store, run.id, f"benchmark/{file.name}")
    assert json.loads(kept.read_text()) == json.loads(file.read_text())
    assert store.client.get_run(run.id).info.status == "FINISHED"


def test_nothing_is_written_where_one_run_is_unknown(store: Store, tmp_path: Path) -> None:
    with Run.start(store, "custom") as run:
        pass
    result = of_run(run.id)
    result.rows.append(replace(result.rows[0], run_id="f" * 32))
    with pytest.raises(UserError, match="ffff"):
        publish(result, written(result, tmp_path), store)
    assert not any(
        name.startswith("benchmark") for name in store.client.get_run(run.id).data.metrics
    )


def test_two_models_of_a_run_in_one_runtime_would_have_one_name(
    store: Store, tmp_path: Path
) -> None:
    with Run.start(store, "custom") as run:
        pass
    result = of_run(run.id)
    result.rows.append(result.rows[0])
    with pytest.raises(UserError, match="2 models of run"):
        publish(result, written(result, tmp_path), store)


def test_a_result_without_runs_cannot_be_joined(store: Store, tmp_path: Path) -> None:
    result = made_up(rows=made_up().rows[1:])
    with pytest.raises(UserError, match="names no run"):
        publish(result, written(result, tmp_path), store)
