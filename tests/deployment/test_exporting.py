"""`python -m src.export`, from the run to the checked and recorded file."""

import dataclasses
import errno
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_store import Place

from src import export
from src.deployment.description import Description
from src.deployment.runtimes.eager import CameraNet
from src.deployment.runtimes.files import FORMATS, open_file
from src.tracking import read

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def exported(
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_entry: Callable[..., tuple[int, str]],
) -> Command:
    """`python -m src.export` in an empty folder; ONNX's slow exporter gives the file that it gave before."""

    def again(camera: CameraNet, description: Description, path: Path) -> None:
        path.write_bytes(place.onnx.read_bytes())

    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["onnx"], write=again))
    monkeypatch.chdir(tmp_path)
    common = [
        f"tracking.uri=sqlite:///{place.folder / 'mlruns' / 'mlflow.db'}",
        f"cache_dir={place.folder / 'cache'}",
    ]
    return lambda *arguments: run_entry(
        export.main, *common, f"hydra.run.dir={tmp_path / 'log'}", *arguments
    )


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("model*"))


def test_a_file_is_written_checked_and_recorded(
    exported: Command, place: Place, tmp_path: Path
) -> None:
    (tmp_path / "exports" / f"custom_{place.run_id[:8]}").mkdir(parents=True)
    (other := tmp_path / "exports" / f"custom_{place.run_id[:8]}" / "model.pte").write_text(
        "of another day"
    )
    status, said = exported(f"run={place.run_id[:12]}")
    assert status == 0, said
    path = other.with_name("model.onnx")
    assert open_file(path).description.run_id == place.run_id
    assert other.read_text() == "of another day"
    assert "100.00%" in said
    assert "mel from 0." in said
    assert f"exports/{path.parent.name}/model.onnx" in said
    metrics = place.store.client.get_run(place.run_id).data.metrics
    assert metrics["export/onnx/max_difference"] < 1e-5
    assert metrics["export/onnx/agreement"] == 1
    assert metrics["export/onnx/size_mb"] == path.stat().st_size / 1e6
    assert metrics["export/onnx/images"] > 10
    assert (
        read.artifact(place.store, place.run_id, "export/onnx/model.onnx").read_bytes()
        == path.read_bytes()
    )
    assert place.store.client.get_run(place.run_id).info.status == "FINISHED"


def test_over_tolerance_leaves_no_file(exported: Command, place: Place, tmp_path: Path) -> None:
    status, said = exported(f"run={place.run_id}", "tolerance=1e-30", "publish=false")
    assert status == 2
    assert "error: format=onnx: differs by" in said
    assert "no file was left" in said
    assert not files(tmp_path)


def test_a_full_disk_is_told_in_one_line(
    exported: Command, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.suffix == ".onnx":
            write(path, content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    status, said = exported(f"run={place.run_id}", "publish=false")
    assert status == 2
    assert (
        "error: folder=exports: the export cannot be written there ([Errno 28] No space left on device)"
        in said
    )
    assert not files(tmp_path)


def test_a_compressed_run_is_copied_in_its_own_format(
    exported: Command, place: Place, compressed: str, tmp_path: Path
) -> None:
    status, said = exported(f"run={compressed}", "format=[onnx,litert]")
    assert (status, files(tmp_path)) == (2, [])
    assert (
        f"error: format: run {compressed} was compressed into a .onnx file; take format=onnx"
        in said
    )
    status, said = exported(f"run={compressed}", "format=onnx", "publish=false")
    assert status == 0, said
    assert "its recorded predictions" in said
    assert (
        tmp_path / "exports" / f"custom_{compressed[:8]}" / "model.onnx"
    ).read_bytes() == place.onnx.read_bytes()


def test_a_missing_extra_ends_before_anything_is_computed(
    exported: Command, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    status, said = exported(f"run={place.run_id}", "format=litert")
    assert (status, files(tmp_path)) == (2, [])
    assert (
        "error: litert_torch: not installed, and needed here; install it with: pip install -e '.[litert]'"
        in said
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "run: name one"),
        (["run=ffffffffffff"], "run=ffffffffffff: no such run"),
        (["run=3f2a", "format=tflite"], "format: input should be"),
        (["run=3f2a", "format=[]"], "format: name at least one of onnx, executorch, litert"),
        (["run=3f2a", "images=10"], "images: input should be greater than or equal to 256"),
        (["run=3f2a", "tolerance=0"], "tolerance: input should be greater than 0"),
        (["run=3f2a", "treads=1"], "treads: unknown key"),
    ],
)
def test_bad_input_is_told_in_one_line(exported: Command, arguments: list[str], told: str) -> None:
    status, said = exported(*arguments)
    assert status == 2
    assert f"error: {told}" in said


def test_a_folder_is_refused_for_drawn_data(exported: Command, place: Place) -> None:
    status, said = exported(f"run={place.run_id}", "root=/somewhere")
    assert status == 2
    assert "error: data.root: the run's data (synthetic) lie in no folder; leave it out" in said
