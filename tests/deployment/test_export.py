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
from src.deployment.description import Decision, Description
from src.deployment.export import compare
from src.deployment.runtimes.formats import open_file
from src.deployment.runtimes.onnx import OnnxRuntime
from src.tracking import read

REFERENCE = np.array([[0.6, 0.4], [0.45, 0.55], [0.9, 0.1], [0.75, 0.25]], np.float32)


@dataclasses.dataclass
class Export:
    """`python -m src.export` in an empty folder; a copy replaces the slow ONNX exporter."""

    folder: Path
    recorded: SmallStore
    run_entry: Callable[..., tuple[int, str]]

    def __call__(self, run_id: str, *arguments: str) -> tuple[int, str]:
        common = [
            f"tracking.uri=sqlite:///{self.recorded.folder / 'mlruns' / 'mlflow.db'}",
            f"cache_dir={self.recorded.folder / 'cache'}",
            f"hydra.run.dir={self.folder / 'log'}",
        ]
        return self.run_entry(export.main, *common, f"run={run_id}", *arguments)

    def models(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("model*"))


@pytest.fixture
def command(
    recorded: SmallStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_entry: Callable[..., tuple[int, str]],
) -> Export:
    monkeypatch.setattr(OnnxRuntime, "export", lambda *_: recorded.onnx.read_bytes())
    monkeypatch.chdir(tmp_path)
    return Export(tmp_path, recorded, run_entry)


def test_a_file_is_written_compared_and_recorded(command: Export, recorded: SmallStore) -> None:
    folder = Path("exports") / f"custom_{recorded.run_id[:8]}"
    folder.mkdir(parents=True)
    (folder / "model.pte").write_text("of an earlier export")
    status, output = command(recorded.run_id[:12])
    assert status == 0, output
    path = folder / "model.onnx"
    assert open_file(path).description.run_id == recorded.run_id
    assert (folder / "model.pte").read_text() == "of an earlier export"
    assert "100.00%" in output
    assert "mel from 0." in output
    assert f"exports/{folder.name}/model.onnx" in output
    run = recorded.store.client.get_run(recorded.run_id)
    metrics = {name.removeprefix("export/onnx/"): x for name, x in run.data.metrics.items()}
    assert metrics["max_difference"] < 1e-5
    assert metrics["agreement"] == 1
    assert metrics["size_mb"] == path.stat().st_size / 1e6
    assert metrics["images"] > 10
    artifact = read.artifact(recorded.store, recorded.run_id, "export/onnx/model.onnx")
    assert artifact.read_bytes() == path.read_bytes()
    assert run.info.status == "FINISHED"


def test_a_difference_above_the_tolerance_leaves_no_file(command: Export) -> None:
    status, output = command(command.recorded.run_id, "tolerance=1e-30", "publish=false")
    assert (status, command.models()) == (2, [])
    assert "error: format=onnx: differs by" in output
    assert "the file was deleted" in output


def test_a_full_disk_ends_in_one_line(command: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.suffix == ".onnx":
            write(path, content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    status, output = command(command.recorded.run_id, "publish=false")
    assert (status, command.models()) == (2, [])
    assert "model.onnx: the export cannot be written there ([Errno 28]" in output


def test_the_file_of_a_compressed_run_is_copied(command: Export, compressed: str) -> None:
    status, output = command(compressed, "format=[onnx,litert]")
    assert (status, command.models()) == (2, [])
    assert f"format: run {compressed} was compressed into a .onnx file; take format=onnx" in output
    status, output = command(compressed, "format=onnx", "publish=false")
    assert status == 0, output
    assert "its recorded predictions" in output
    path = Path("exports") / f"custom_{compressed[:8]}" / "model.onnx"
    assert path.read_bytes() == command.recorded.onnx.read_bytes()


def test_a_missing_extra_is_named(command: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    status, output = command(command.recorded.run_id, "format=litert")
    assert (status, command.models()) == (2, [])
    assert "error: litert_torch: not installed, and needed here; install it with: pip" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("null", "run: name one"),
        ("ffffffffffff", "run=ffffffffffff: no such run"),
        ("3f2a format=tflite", "format: input should be"),
        ("3f2a format=[]", "format: name at least one of onnx, executorch, litert"),
        ("3f2a images=10", "images: input should be greater than or equal to 256"),
        ("3f2a tolerance=0", "tolerance: input should be greater than 0"),
        ("3f2a treads=1", "treads: unknown key"),
        ("RUN root=/x", "data.root: the run's own data (synthetic) lie in no folder"),
    ],
)
def test_bad_input_ends_in_one_line(command: Export, arguments: str, message: str) -> None:
    status, output = command(*arguments.replace("RUN", command.recorded.run_id).split())
    assert status == 2
    assert f"error: {message}" in output


def test_differences_and_decisions_are_counted() -> None:
    # Image 0 changes its class, image 3 the side of the threshold.
    output = np.array([[0.4, 0.6], [0.45, 0.55], [0.89, 0.11], [0.65, 0.35]], np.float32)
    about = Description("3f2a", "net", ("nv", "mel"), 4, "squash", "x", "grouped", "free")
    decision = Decision("mel", 0.3, "sensitivity")
    parity = compare(REFERENCE, output, dataclasses.replace(about, decision=decision))
    assert parity.pop("max_difference") == pytest.approx(0.2, abs=1e-6)
    assert parity == {"images": 4, "same_class": 0.75, "same_side": 0.75, "agreement": 0.5}
    parity = compare(REFERENCE, REFERENCE, about)
    assert np.isnan(parity.pop("same_side"))
    assert parity == {"images": 4, "max_difference": 0, "same_class": 1, "agreement": 1}
    # log 0.6 - log 0.4 is 0.41: with -0.5 for nv image 0 is mel in both
    shifted = compare(REFERENCE, output, dataclasses.replace(about, offsets=(-0.5, 0.0)))
    assert shifted["same_class"] == 1
    output[2, 0] = np.nan
    assert not compare(REFERENCE, output, about)["max_difference"] <= 1
