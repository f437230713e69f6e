"""`python -m src.benchmark` in this process; the parts are in tests/benchmarking."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from src import benchmark
from src.core.cli import ROOT, quoted
from src.tracking.run import Run
from src.tracking.store import Store

Entry = Callable[..., tuple[int, str]]
QUICK = ("queries=30", "seconds=0", "warm_up_s=0", "turn_ms=1", "cold_starts=1", "jpeg_queries=2")


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("run=12e4", "run='12e4'"),
        ("run=[3f2a, 0012]", "run=['3f2a','0012']"),
        ("run=dense_size", "run='dense_size'"),
        ("file=a b.onnx", "file='a b.onnx'"),
        ("file=['a.onnx',b.onnx]", "file=['a.onnx','b.onnx']"),
        ("run=null", "run=null"),
        ("threads=2", "threads=2"),
        ("runtime=[eager,onnx]", "runtime=[eager,onnx]"),
        ("runtime=eager,onnx", "runtime=[eager,onnx]"),
        ("run=12e4,0012", "run=['12e4','0012']"),
        ("--help", "--help"),
    ],
)
def test_ids_and_paths_stay_texts(typed: str, read: str) -> None:
    assert benchmark.as_hydra_reads(typed) == read


@pytest.mark.parametrize("text", ["a\\b", "it's", "a\\'b", "end\\", "a, b (c)=[d]"])
def test_what_is_quoted_is_read_back_as_it_was(text: str) -> None:
    assert OverridesParser.create().parse_override(f"file={quoted(text)}").value() == text


def test_help_shows_examples_and_every_key(run_entry: Entry) -> None:
    _, said = run_entry(benchmark.main, "--help")
    assert "python -m src.benchmark join=result.json" in said
    for key in (
        "run:",
        "file:",
        "join:",
        "runtime:",
        "threads:",
        "reference:",
        "memory_mb:",
        "publish:",
    ):
        assert f"\n{key}" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "error: run: name runs or a study"),
        (("file=none.onnx",), "error: file=none.onnx: no such file"),
        (("file=model.h5",), "error: file=model.h5: no kind of model that is known"),
        (("file=a.onnx", "join=b.json"), "error: join: brings in a file and measures nothing"),
        (("file=a.onnx", "threads=0"), "error: threads: "),
        (("file=a.onnx", "runtime=tensorrt"), "error: runtime: "),
        (("file=a.onnx", "image=none.jpg"), "error: image=none.jpg: cannot be read as a picture"),
        (("join=none.json",), "none.json"),
        (("file=a.onnx", "out=result.csv"), "error: out: result.csv would be the CSV"),
        (("file=a.onnx", "out=."), "error: out: . is no file"),
        (("file=a.onnx", "out=/dev/null"), "error: out: /dev/null is no file"),
        (("file=a.onnx", "cores=9999"), "error: cores: must be at most"),
    ],
)
def test_bad_input_ends_in_one_line(
    run_entry: Entry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, output = run_entry(benchmark.main, *arguments)
    assert status == 2
    assert said in output
    assert "Traceback" not in output


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
