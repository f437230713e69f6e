"""`python -m src.export`, from the run to the compared and recorded file."""

import dataclasses
import errno
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_store import SmallStore

from src import export
from src.deployment.description import Decision
from src.deployment.export import compare
from src.deployment.runtimes.files import FORMATS, open_file
from src.tracking import read

Command = Callable[..., tuple[int, str]]
REFERENCE = np.array([[0.6, 0.4], [0.45, 0.55], [0.9, 0.1], [0.75, 0.25]], np.float32)


@pytest.fixture
def command(
    recorded: SmallStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_entry: Callable[..., tuple[int, str]],
) -> Command:
    """`python -m src.export` in an empty folder; the slow ONNX exporter is replaced by a copy."""

    copy = dataclasses.replace(FORMATS["onnx"], export=lambda *_: recorded.onnx.read_bytes())
    monkeypatch.setitem(FORMATS, "onnx", copy)
    monkeypatch.chdir(tmp_path)
    common = [
        f"tracking.uri=sqlite:///{recorded.folder / 'mlruns' / 'mlflow.db'}",
        f"cache_dir={recorded.folder / 'cache'}",
        f"hydra.run.dir={tmp_path / 'log'}",
    ]
    return lambda *arguments: run_entry(export.main, *common, *arguments)


def models(folder: Path) -> list[Path]:
    return sorted(folder.rglob("model*"))


def test_a_file_is_written_compared_and_recorded(
    command: Command, recorded: SmallStore, tmp_path: Path
) -> None:
    folder = tmp_path / "exports" / f"custom_{recorded.run_id[:8]}"
    folder.mkdir(parents=True)
    (folder / "model.pte").write_text("of an earlier export")
    status, output = command(f"run={recorded.run_id[:12]}")
    assert status == 0, output
    path = folder / "model.onnx"
    assert open_file(path).description.run_id == recorded.run_id
    assert (folder / "model.pte").read_text() == "of an earlier export"
    assert "100.00%" in output
    assert "mel from 0." in output
    assert f"exports/{folder.name}/model.onnx" in output
    run = recorded.store.client.get_run(recorded.run_id)
    metrics = {name.removeprefix("export/onnx/"): value for name, value in run.data.metrics.items()}
    assert metrics["max_difference"] < 1e-5
    assert metrics["agreement"] == 1
    assert metrics["size_mb"] == path.stat().st_size / 1e6
    assert metrics["images"] > 10
    artifact = read.artifact(recorded.store, recorded.run_id, "export/onnx/model.onnx")
    assert artifact.read_bytes() == path.read_bytes()
    assert run.info.status == "FINISHED"


def test_a_difference_above_the_tolerance_leaves_no_file(
    command: Command, recorded: SmallStore, tmp_path: Path
) -> None:
    status, output = command(f"run={recorded.run_id}", "tolerance=1e-30", "publish=false")
    assert (status, models(tmp_path)) == (2, [])
    assert "error: format=onnx: differs by" in output
    assert "no file was left" in output


def test_a_full_disk_ends_in_one_line(
    command: Command, recorded: SmallStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.suffix == ".onnx":
            write(path, content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    status, output = command(f"run={recorded.run_id}", "publish=false")
    assert (status, models(tmp_path)) == (2, [])
    assert "error: folder=exports: the export cannot be written there ([Errno 28]" in output


def test_the_file_of_a_compressed_run_is_copied(
    command: Command, recorded: SmallStore, compressed: str, tmp_path: Path
) -> None:
    status, output = command(f"run={compressed}", "format=[onnx,litert]")
    assert (status, models(tmp_path)) == (2, [])
    assert f"format: run {compressed} was compressed into a .onnx file; take format=onnx" in output
    status, output = command(f"run={compressed}", "format=onnx", "publish=false")
    assert status == 0, output
    assert "its recorded predictions" in output
    path = tmp_path / "exports" / f"custom_{compressed[:8]}" / "model.onnx"
    assert path.read_bytes() == recorded.onnx.read_bytes()


def test_a_missing_extra_ends_before_any_work(
    command: Command, recorded: SmallStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    status, output = command(f"run={recorded.run_id}", "format=litert")
    assert (status, models(tmp_path)) == (2, [])
    assert "error: litert_torch: not installed, and needed here; install it with: pip" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "run: name one"),
        (["run=ffffffffffff"], "run=ffffffffffff: no such run"),
        (["run=3f2a", "format=tflite"], "format: input should be"),
        (["run=3f2a", "format=[]"], "format: name at least one of onnx, executorch, litert"),
        (["run=3f2a", "images=10"], "images: input should be greater than or equal to 256"),
        (["run=3f2a", "tolerance=0"], "tolerance: input should be greater than 0"),
        (["run=3f2a", "treads=1"], "treads: unknown key"),
        (["run=RUN", "root=/x"], "data.root: the run's data (synthetic) lie in no folder"),
    ],
)
def test_bad_input_ends_in_one_line(
    command: Command, recorded: SmallStore, arguments: list[str], message: str
) -> None:
    status, output = command(*(text.replace("RUN", recorded.run_id) for text in arguments))
    assert status == 2
    assert f"error: {message}" in output


def test_differences_and_decisions_are_counted() -> None:
    # Image 0 changes its class, image 3 the side of the threshold.
    output = np.array([[0.4, 0.6], [0.45, 0.55], [0.89, 0.11], [0.65, 0.35]], np.float32)
    parity = compare(REFERENCE, output, ("nv", "mel"), Decision("mel", 0.3, "sensitivity"))
    assert parity.pop("max_difference") == pytest.approx(0.2, abs=1e-6)
    assert parity == {"images": 4, "same_class": 0.75, "same_side": 0.75, "agreement": 0.5}
    parity = compare(REFERENCE, REFERENCE, ("a", "b"), None)
    assert np.isnan(parity.pop("same_side"))
    assert parity == {"images": 4, "max_difference": 0, "same_class": 1, "agreement": 1}
    output[2, 0] = np.nan
    assert not compare(REFERENCE, output, ("a", "b"), None)["max_difference"] <= 1
