import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_picture

from src.data import cache
from src.data.cache import square
from src.data.ham10000 import HAM10000
from src.data.source import Manifest
from src.data.source import Source
from src.core.errors import DataError
from src.core.errors import UserError

# A builder in a process of its own: each decoded picture leaves a mark in a file, and takes a
# while.
BUILDER = """
import hashlib, sys, time
from pathlib import Path
import src
from src.data import cache
from src.data.folder import Folder
from src.core.errors import UserError

root, folder, marks, pause = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
if len(sys.argv) > 5:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[5]), resource.RLIM_INFINITY))

class Slow(Folder):
    def picture(self, manifest, row):
        if pause:
            with marks.open("a") as file:
                file.write(f"{row}\\n")
            time.sleep(pause)
        return super().picture(manifest, row)

source = Slow(root)
try:
    stored = cache.load(source, source.manifest(), 16, "squash", folder, workers=2)
except UserError as error:
    sys.exit(f"refused: {error}")
print(stored.fingerprint, hashlib.sha256(stored.images.tobytes()).hexdigest())
"""


def start_builder(root: Path, folder: Path, marks: Path, pause: float, *limit: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", BUILDER, str(root), str(folder), str(marks), str(pause), *limit]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def test_images_are_the_squares_of_the_rows(layout, folder):
    source, _ = layout("ham10000")
    manifest = source.manifest()
    stored = cache.load(source, manifest, 8, "pad", folder)
    assert stored.images.shape == (len(manifest.frame), 8, 8, 3)
    assert stored.images.dtype == np.uint8
    assert not stored.images.flags.writeable
    assert isinstance(stored.images, np.memmap)
    assert stored.unreadable == []
    pd.testing.assert_frame_equal(stored.frame, manifest.frame)
    for row in range(len(manifest.frame)):
        assert np.array_equal(stored.images[row], square(source.picture(manifest, row), 8, "pad"))


def test_nothing_is_decoded_twice(layout, folder):
    source, _ = layout("folder")
    first = cache.load(source, source.manifest(), 8, "squash", folder)
    (kept,) = left_in(folder)
    before = (folder / kept / "pixels.bin").stat()
    second = cache.load(source, source.manifest(), 8, "squash", folder, workers=1)
    assert (folder / kept / "pixels.bin").stat().st_ino == before.st_ino
    assert second.fingerprint == first.fingerprint
    assert np.array_equal(second.images, first.images)


def test_another_size_geometry_or_file_is_another_cache(layout, folder):
    source, root = layout("folder")
    fingerprints = set()
    for count, (size, geometry) in enumerate([(8, "squash"), (9, "squash"), (8, "pad"), (8, "center_crop")], start=1):
        fingerprints.add(cache.load(source, source.manifest(), size, geometry, folder).fingerprint)
        assert len(left_in(folder)) == len(fingerprints) == count
    write_picture(root / "benign" / "IMG_0000.JPG", seed=999)
    changed = cache.load(source, source.manifest(), 8, "squash", folder)
    assert len(left_in(folder)) == 5
    assert changed.fingerprint not in fingerprints


def test_labels_and_groups_share_pixels_but_not_the_fingerprint(layout, folder):
    source, _ = layout("table")
    manifest = source.manifest()
    fingerprint = cache.load(source, manifest, 8, "squash", folder).fingerprint
    for change in ({"label": 0}, {"group": "one"}):
        other = Manifest(manifest.source, manifest.classes, manifest.frame.assign(**change), manifest.grouped_by)
        assert cache.load(source, other, 8, "squash", folder).fingerprint != fingerprint
    assert len(left_in(folder)) == 1


def test_fingerprint_does_not_depend_on_the_place(layout, tmp_path, folder):
    source, root = layout("ham10000")
    here = cache.load(source, source.manifest(), 8, "squash", folder)
    shutil.copytree(root, tmp_path / "elsewhere", copy_function=shutil.copy)  # new times
    elsewhere = HAM10000(tmp_path / "elsewhere")
    there = cache.load(elsewhere, elsewhere.manifest(), 8, "squash", tmp_path / "cache 2")
    assert there.fingerprint == here.fingerprint


def test_two_processes_at_once_build_once(layout, tmp_path, folder):
    _, root = layout("folder")
    marks = tmp_path / "marks"
    builders = [start_builder(root, folder, marks, 0.02) for _ in range(2)]
    outputs = [builder.communicate(timeout=120) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] != ""
    assert sorted(map(int, lines(marks))) == list(range(24))  # each picture once
    assert len(left_in(folder)) == 1


def test_a_killed_builder_leaves_nothing_behind(layout, tmp_path, folder):
    source, root = layout("folder")
    marks = tmp_path / "marks"
    builder = start_builder(root, folder, marks, 0.3)
    deadline = time.monotonic() + 60
    while len(lines(marks)) < 8:
        assert builder.poll() is None, builder.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(builder.pid, signal.SIGKILL)
    builder.communicate(timeout=60)
    assert len(lines(marks)) < 24
    (unfinished,) = left_in(folder)
    assert unfinished.endswith(".building")

    stored = cache.load(source, source.manifest(), 16, "squash", folder)
    assert len(stored.images) == 24
    assert left_in(folder) == [unfinished.removesuffix(".building")]
    reference = cache.load(source, source.manifest(), 16, "squash", tmp_path / "other")
    assert np.array_equal(stored.images, reference.images)
    assert stored.fingerprint == reference.fingerprint


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limit on Windows")
def test_no_room_is_said_in_one_line_and_leaves_nothing(layout, tmp_path, folder):
    _, root = layout("folder")
    builder = start_builder(root, folder, tmp_path / "marks", 0, "4096")
    output, errors = builder.communicate(timeout=120)
    assert builder.returncode == 1, output
    refusal = next(line for line in errors.splitlines() if line.startswith("refused: "))
    assert str(folder) in refusal
    assert "File too large" in refusal
    assert "data.cache_dir=" in refusal
    assert left_in(folder) == []


def test_a_folder_that_cannot_be_written(layout, tmp_path):
    source, _ = layout("folder")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/cache: the cache of decoded images cannot be kept here"):
        cache.load(source, source.manifest(), 8, "squash", tmp_path / "file" / "cache")


def spoil(source: Source) -> list[Path]:
    """Make the first seven pictures unreadable, the first of them by taking it away."""
    paths = [Path(path) for path in source.manifest().frame["path"][:7]]
    paths[0].unlink()
    for path in paths[1:]:
        path.write_text("no picture")
    return paths


def test_unreadable_images_are_listed_together(layout, folder):
    source, _ = layout("ham10000")
    paths = spoil(source)
    with pytest.raises(DataError) as caught:
        cache.load(source, source.manifest(), 8, "squash", folder)
    message = str(caught.value)
    assert message.startswith(
        f"7 of 84 images of ham10000 cannot be read: {paths[0]} (absent), {paths[1]} (not an image)"
    )
    assert str(paths[4]) in message
    assert str(paths[5]) not in message
    assert "data.on_unreadable=skip" in message
    assert "\n" not in message
    (listing,) = folder.glob("*.unreadable.txt")
    assert str(listing) in message
    assert listing.read_text().splitlines() == [
        f"{path}\t{'absent' if number == 0 else 'not an image'}" for number, path in enumerate(paths)
    ]


def test_unreadable_images_are_skipped_when_wanted(layout, folder):
    source, _ = layout("ham10000")
    whole = cache.load(source, source.manifest(), 8, "squash", folder)
    paths = [str(path) for path in spoil(source)]
    with pytest.raises(DataError):
        cache.load(source, source.manifest(), 8, "squash", folder)
    stored = cache.load(source, source.manifest(), 8, "squash", folder, on_unreadable="skip")
    assert [path for path, _ in stored.unreadable] == paths
    assert len(stored.images) == len(stored.frame) == 77
    assert isinstance(stored.frame.index, pd.RangeIndex)
    kept = ~whole.frame["path"].isin(paths).to_numpy()
    assert stored.frame["path"].tolist() == whole.frame["path"][kept].tolist()
    assert np.array_equal(stored.images, whole.images[kept])


def test_a_class_must_not_vanish(layout, folder):
    source, root = layout("folder")
    for path in (root / "malignant").iterdir():
        path.write_text("no picture")
    with pytest.raises(DataError, match="12 of 24 images of folder cannot be read.*none is left of malignant"):
        cache.load(source, source.manifest(), 8, "squash", folder, on_unreadable="skip")


def test_a_picture_that_was_mended_is_taken_up(layout, folder):
    source, root = layout("folder")
    path = root / "benign" / "IMG_0003.JPG"
    good, status = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(good)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match="IMG_0003"):
        cache.load(source, source.manifest(), 8, "squash", folder)
    path.write_bytes(good)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as where a disk came back
    assert len(cache.load(source, source.manifest(), 8, "squash", folder).images) == 24
    assert len(left_in(folder)) == 1


@pytest.mark.parametrize("damage", ["short", "no pixels", "no record", "bad record"])
def test_a_damaged_cache_is_built_anew(layout, folder, damage):
    source, _ = layout("folder")
    fingerprint = cache.load(source, source.manifest(), 8, "squash", folder).fingerprint
    (kept,) = folder.glob("folder-8-squash-*")
    if damage == "short":
        (kept / "pixels.bin").write_bytes(b"\0" * 100)
    elif damage == "no pixels":
        (kept / "pixels.bin").unlink()
    elif damage == "no record":
        (kept / "cache.json").unlink()
    else:
        (kept / "cache.json").write_text("{")
    stored = cache.load(source, source.manifest(), 8, "squash", folder)
    assert stored.fingerprint == fingerprint
    assert len(stored.images) == 24


def test_real_pictures_in_order(shared_data, folder):
    source = HAM10000(shared_data / "ham10000", limit=300)
    manifest = source.manifest()
    stored = cache.load(source, manifest, 64, "squash", folder)
    for row in (0, 150, len(manifest.frame) - 1):
        assert np.array_equal(stored.images[row], square(source.picture(manifest, row), 64, "squash"))
    digest = hashlib.sha256(stored.images.tobytes()).hexdigest()
    again = cache.load(source, manifest, 64, "squash", folder.with_name("other"), workers=1)
    assert hashlib.sha256(again.images.tobytes()).hexdigest() == digest
    assert again.fingerprint == stored.fingerprint
