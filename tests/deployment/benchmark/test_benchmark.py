"""`python -m src.benchmark` in this process."""

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


def test_status_1_if_no_model_could_be_measured(
    run_entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    Path("broken.onnx").write_bytes(b"not a model")
    status, output = run_entry(benchmark.main, "file=broken.onnx", "out=result.json", *QUICK)
    assert status == 1
    assert "broken.onnx: the runtime of ONNX cannot load it" in " ".join(output.split())
    assert "join=" not in output
    [row] = json.loads(Path("result.json").read_text())["rows"]
    assert "cannot load it" in row["reason"]


def test_a_file_is_measured_without_a_store_and_added_to_one_later(
    run_entry: Entry,
    tmp_path: Path,
    empty_database: Path,
    write_onnx: Callable[[Path, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_database, tmp_path / "mlruns" / "mlflow.db")
    store = Store(folder=tmp_path / "mlruns", uri=f"sqlite:///{tmp_path}/mlruns/mlflow.db").open()
    with Run.start(store, "custom") as run:
        pass
    write_onnx(tmp_path / "tiny.onnx", run.id)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    emulation = ("device=Pi 4", "cores=1", "memory_mb=2000")
    files = ("file=../tiny.onnx", "out=result.json")
    status, output = run_entry(benchmark.main, *files, *emulation, *QUICK)
    assert status == 0, output
    assert "EMULATION: 1 core, 2000 MB" in output
    assert "not MLPerf's minimum" in output
    assert max(map(len, output.split("at least")[0].splitlines())) <= 100
    assert not (elsewhere / "mlruns").exists()
    assert (elsewhere / "result.csv").read_text().startswith("label,")
    result = json.loads((elsewhere / "result.json").read_text())
    assert result["device"]["name"] == "Pi_4-emulating-1_core_2000_MB"

    monkeypatch.chdir(tmp_path)
    status, output = run_entry(benchmark.main, "join=elsewhere/result.json")
    assert status == 0, output
    assert f"added to the record of {run.id}" in output
    name = "benchmark/Pi_4-emulating-1_core_2000_MB/onnx/t1/b1/p50_ms"
    metrics = store.client.get_run(run.id).data.metrics
    assert metrics[name] == result["rows"][0]["figures"]["p50_ms"]


def test_a_device_needs_neither_torch_nor_mlflow(tmp_path: Path, onnx_file: Path) -> None:
    absent = ["torch", "pytorch_lightning", "mlflow", "pandas", "scipy", "sklearn", "psutil"]
    arguments = [f"file={onnx_file}", "out=result.json", *QUICK]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({[*absent, 'filelock']})); "
        f"sys.argv = ['benchmark', *{arguments}]; from src import benchmark; benchmark.main()"
    )
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    [row] = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert (row["run_id"], row["reason"]) == ("0123abcd", "")
