"""`python -m src.benchmark` in this process; the parts are in tests/benchmarking."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from src import benchmark
from src.core.cli import ROOT
from src.tracking.run import Run
from src.tracking.store import Store

Entry = Callable[..., tuple[int, str]]
QUICK = ("queries=30", "seconds=0", "warm_up_s=0", "turn_ms=1", "cold_starts=1", "jpeg_queries=2")


def test_the_status_tells_that_nothing_could_be_measured(
    run_entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    Path("broken.onnx").write_bytes(b"not a model")
    status, said = run_entry(benchmark.main, "file=broken.onnx", "out=broken.onnx", *QUICK)
    assert status == 2
    assert "error: out: broken.onnx is a model, which would be lost" in said
    status, said = run_entry(benchmark.main, "file=broken.onnx", "out=result.json", *QUICK)
    assert status == 1
    assert "broken.onnx: ONNX Runtime cannot load it" in said
    assert "join=" not in said
    [row] = json.loads(Path("result.json").read_text())["rows"]
    assert "ONNX Runtime cannot load it" in row["reason"]


def test_a_file_is_measured_without_a_store_and_joins_one_later(
    run_entry: Entry, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = pytest.importorskip("benchmarking.made_up_models", reason="needs onnx")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_database, tmp_path / "mlruns" / "mlflow.db")
    store = Store()
    with Run.start(store, "custom") as run:
        pass
    models.write_onnx(tmp_path / "tiny.onnx", run.id)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    status, said = run_entry(
        benchmark.main,
        "file=../tiny.onnx",
        "out=result.json",
        "device=Pi 4",
        "cores=1",
        "memory_mb=2000",
        *QUICK,
    )
    assert status == 0, said
    assert "EMULATION: 1 core, 2000 MB" in said
    assert "not MLPerf's minimum" in said
    assert max(map(len, said.split("at least")[0].splitlines())) <= 100
    assert not (elsewhere / "mlruns").exists()
    assert (elsewhere / "result.csv").read_text().startswith("label,")
    result = json.loads((elsewhere / "result.json").read_text())
    assert result["device"]["name"] == "Pi_4-emulating-1_core_2000_MB"

    monkeypatch.chdir(tmp_path)
    status, said = run_entry(benchmark.main, "join=elsewhere/result.json")
    assert status == 0, said
    assert f"joined the record of {run.id}" in said
    name = "benchmark/Pi_4-emulating-1_core_2000_MB/onnx/t1/b1/p50_ms"
    assert store.client.get_run(run.id).data.metrics[name] == result["rows"][0]["figures"]["p50_ms"]


def test_a_device_needs_neither_torch_nor_mlflow(tmp_path: Path) -> None:
    models = pytest.importorskip("benchmarking.made_up_models", reason="needs onnx")
    file = models.write_onnx(tmp_path / "tiny.onnx", "0123abcd")
    absent = [
        "torch",
        "pytorch_lightning",
        "mlflow",
        "pandas",
        "scipy",
        "sklearn",
        "psutil",
        "filelock",
    ]
    arguments = [f"file={file}", "out=result.json", *QUICK]
    program = f"import sys; sys.modules.update(dict.fromkeys({absent})); sys.argv = ['benchmark', *{arguments}]"
    program += "; from src import benchmark; benchmark.main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    [row] = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert row["run_id"] == "0123abcd"
    assert row["reason"] == ""
