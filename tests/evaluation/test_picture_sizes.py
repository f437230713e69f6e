from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_world import Place

from src.data.folder import ClassFolders
from src.data.ham10000 import HAM10000
from src.data.synthetic import Synthetic
from src.reporting.clinical import external as pictures


def folder_of(root: Path, sizes: list[tuple[int, int]]) -> ClassFolders:
    for number, size in enumerate(sizes):
        for name in ("a", "b"):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size).save(root / name / f"{number}.png")
    return ClassFolders(root)


def test_one_size(trained: Place) -> None:
    source = HAM10000(trained.folder / "ham")
    found = pictures.sizes(source, source.manifest())
    assert found is not None
    assert (found.text, found.shape, found.shortest) == (
        "80x60 px (all of 84)",
        pytest.approx(4 / 3),
        60,
    )


def test_several_sizes(tmp_path: Path) -> None:
    source = folder_of(tmp_path, [(40, 30), (40, 30), (100, 50), (20, 20)])
    found = pictures.sizes(source, source.manifest())
    assert found is not None
    assert found.table.to_numpy().tolist()[0] == [40, 30, 4]
    assert found.shortest == 20
    assert found.text.startswith(
        "20x20 to 100x50 px, most often 40x30 (50%; all of 8), width/height 1.33 in the middle"
    )


def test_pictures_that_are_no_files() -> None:
    source = Synthetic(lesions=120, max_views=1, native_size=48, ambiguity=0.0, seed=0)
    found = pictures.sizes(source, source.manifest())
    assert found is not None
    assert found.text.startswith("48x48 px (50 looked at of 120)")


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    source = folder_of(tmp_path, [(40, 30), (40, 30)])
    manifest = source.manifest()
    (tmp_path / "a" / "0.png").write_text("no image")
    found = pictures.sizes(source, manifest)
    assert found is not None
    assert found.looked_at == 3
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    assert pictures.sizes(source, manifest) is None


def test_what_is_told(tmp_path: Path) -> None:
    own, external = (
        pictures.sizes(source, source.manifest())
        for source in (
            folder_of(tmp_path / "own", [(200, 150)]),
            folder_of(tmp_path / "external", [(84, 84)]),
        )
    )
    lines = pictures.told(own, external, 128, "squash", "pad")
    assert lines[0] == "Trained at 128 px, geometry squash, on pictures 200x150 px (all of 2)."
    assert lines[1] == "Shown here at 128 px, geometry pad, pictures 84x84 px (all of 2)."
    assert [line.split(":")[0] for line in lines[2:4]] == [
        "The geometry differs from the training's (pad here, squash there).",
        "The shapes differ",
    ]
    assert "smaller than 128 px are enlarged" in lines[4]
    assert len(pictures.told(own, own, 64, "squash", "squash")) == 2
    assert (
        "sizes that are not known here" in pictures.told(None, external, 64, "squash", "squash")[0]
    )


def test_dark_corners() -> None:
    images = np.full((4, 64, 64, 3), 200, dtype=np.uint8)
    for rows in (slice(None, 8), slice(-8, None)):
        images[0, rows, :8] = images[0, rows, -8:] = 0  # all four
    images[1, :8] = 0  # two of them
    assert pictures.dark_corners(images) == 0.25
