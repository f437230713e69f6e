import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import png_content, write_picture  # of tests/data
from made_data import noise
from PIL import Image, ImageFile

from src.core.errors import DataError, UserError
from src.data import cache
from src.data.cache import PAD_COLOUR, decode, square
from src.data.ham10000 import HAM10000
from src.data.source import Manifest, Source

# A builder in a separate process: each decoded image leaves a mark in a file, and takes a while.
BUILDER = """
import hashlib, sys, time
from pathlib import Path
import src
from src.data import cache
from src.data.folder import ClassFolders

root, folder, marks, pause = *map(Path, sys.argv[1:4]), float(sys.argv[4])

class Slow(ClassFolders):
    def picture(self, manifest, row):
        with marks.open("a") as file:
            file.write(f"{row}\\n")
        time.sleep(pause)
        return super().picture(manifest, row)

source = Slow(root)
stored = cache.load(source, source.manifest(), 16, "squash", folder, workers=2)
print(stored.fingerprint, hashlib.sha256(stored.images.tobytes()).hexdigest())
"""
GEOMETRIES = ["squash", "center_crop", "pad"]


class Files(Source):
    """Single files without classes."""

    name = "files"

    def __init__(self, *paths: Path) -> None:
        self.paths = paths

    def manifest(self) -> Manifest:
        names = [path.name for path in self.paths]
        paths = [str(path) for path in self.paths]
        frame = pd.DataFrame({"image_id": names, "label": 0, "group": names, "path": paths})
        return Manifest(self.name, ("only",), frame, "image")


def load(source: Source, folder: Path, size: int = 8, geometry: str = "squash", **options):
    return cache.load(source, source.manifest(), size, geometry, folder, **options)


def start_builder(root: Path, folder: Path, marks: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, *map(str, (root, folder, marks, pause))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def resized_by_torch(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    image = torch.nn.functional.interpolate(image, (height, width), mode="bilinear", antialias=True)
    return image[0].permute(1, 2, 0).numpy()


side = st.integers(1, 90)


@given(width=side, height=side, size=st.integers(1, 40), geometry=st.sampled_from(GEOMETRIES))
def test_square_of_any_image(width, height, size, geometry):
    result = square(Image.fromarray(noise(90)[:height, :width]), size, geometry)
    assert (result.shape, result.dtype) == ((size, size, 3), np.uint8)
    same = noise(size)
    assert np.array_equal(square(Image.fromarray(same), size, geometry), same)


def test_geometries_agree_with_torch():
    pixels = noise(200)[:150]
    image = Image.fromarray(pixels)
    padded = square(image, 64, "pad")
    assert (np.delete(padded, slice(8, 56), axis=0) == PAD_COLOUR).all()
    for result, expected in (
        (square(image, 64, "squash"), resized_by_torch(pixels, 64, 64)),
        (square(image, 64, "center_crop"), resized_by_torch(pixels[:, 25:175], 64, 64)),
        (padded[8:56], resized_by_torch(pixels, 48, 64)),
    ):
        assert np.abs(result - expected).max() <= 1.5
    upright = square(Image.fromarray(np.full((100, 50, 3), 200, np.uint8)), 20, "pad")
    assert (upright[:, 5:15] == 200).all()
    assert (np.delete(upright, slice(5, 15), axis=1) == PAD_COLOUR).all()


def write_bomb(path: Path) -> None:
    """A PNG file whose header says 400 million pixels."""
    path.write_bytes(png_content(struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0), b""))


def write_truncated(path: Path) -> None:
    write_picture(path, 0, (200, 150))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("absent.jpg", lambda path: None, "absent"),
        ("truncated.jpg", write_truncated, "truncated"),
        ("text.jpg", lambda path: path.write_text("no image"), "not an image"),
        ("empty.png", Path.touch, "not an image"),
        ("bomb.png", write_bomb, "decompression bomb"),
        ("folder.jpg", Path.mkdir, "directory"),
    ],
)
def test_unreadable_image_has_a_reason(tmp_path, name, write, reason):
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    write(tmp_path / name)
    source = Files(tmp_path / name)
    result = decode(source, source.manifest(), 0, 8, "squash")
    assert isinstance(result, str)
    assert reason in result
    assert "\n" not in result
    with pytest.raises(KeyError):  # a programming error is none
        decode(source, source.manifest(), 99, 8, "squash")


def test_squares_are_in_order_without_gaps_and_progress_is_shown(tmp_path, folder, capsys):
    paths = [tmp_path / f"{number}.png" for number in range(200)]
    for number, path in enumerate(paths):
        if number % 50 != 7:
            write_picture(path, number)
    stored = load(Files(*paths), folder, 6, "pad", on_unreadable="skip", workers=4)
    assert stored.unreadable == [(str(paths[row]), "absent") for row in (7, 57, 107, 157)]
    readable = [Image.open(path) for path in paths if path.exists()]
    assert np.array_equal(stored.images, np.stack([square(image, 6, "pad") for image in readable]))
    assert isinstance(stored.images, np.memmap)
    assert not stored.images.flags.writeable
    output = capsys.readouterr()
    assert "200/200" in output.err
    assert output.out == ""


def test_a_cache_is_built_once_for_each_size_geometry_and_content(layout, folder):
    source, root = layout("folder")
    variants = [(8, "squash"), (9, "squash"), (8, "pad"), (8, "center_crop")]
    variants += [(8, "pad+shades_of_grey")]
    stored = [load(source, folder, *variant) for variant in variants]
    assert len({item.fingerprint for item in stored}) == len(entries(folder)) == 5
    pd.testing.assert_frame_equal(stored[0].frame, source.manifest().frame)
    before = {path: path.stat().st_ino for path in folder.glob("*/values.bin")}
    again = load(source, folder, workers=1)
    assert {path: path.stat().st_ino for path in folder.glob("*/values.bin")} == before
    assert again.fingerprint == stored[0].fingerprint
    assert np.array_equal(again.images, stored[0].images)
    write_picture(root / "benign" / "IMG_0000.JPG", seed=999)
    assert load(source, folder).fingerprint not in {item.fingerprint for item in stored}
    assert len(entries(folder)) == 6


def test_fingerprint_depends_on_labels_and_groups_but_not_on_the_folder(layout, tmp_path, folder):
    source, root = layout("ham10000")
    manifest = source.manifest()
    fingerprint = load(source, folder).fingerprint
    for change in ({"label": 0}, {"group": "one"}):
        frame = manifest.frame.assign(**change)
        other = Manifest(manifest.source, manifest.classes, frame, manifest.grouped_by)
        assert cache.load(source, other, 8, "squash", folder).fingerprint != fingerprint
    assert len(entries(folder)) == 1  # the pixels are shared
    shutil.copytree(root, tmp_path / "elsewhere", copy_function=shutil.copy)  # new times
    there = load(HAM10000(tmp_path / "elsewhere"), tmp_path / "cache 2")
    assert there.fingerprint == fingerprint


def test_two_processes_at_once_build_once(layout, tmp_path, folder):
    _, root = layout("folder")
    marks = tmp_path / "marks"
    builders = [start_builder(root, folder, marks, 0.05) for _ in range(2)]
    outputs = [builder.communicate(timeout=120) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] != ""
    assert sorted(map(int, lines(marks))) == list(range(24))  # every image one time
    assert len(entries(folder)) == 1
    # no terminal: the bar of the process that built has its start, its end, and few lines between
    assert 2 <= sum(output[1].count("decoding") for output in outputs) <= 4


def test_killed_builder_leaves_nothing(layout, tmp_path, folder):
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
    (unfinished,) = entries(folder)
    assert unfinished.endswith(".building")
    stored = load(source, folder, 16)
    assert len(stored.images) == 24
    assert entries(folder) == [unfinished.removesuffix(".building")]
    assert stored.fingerprint == load(source, tmp_path / "other", 16).fingerprint


def test_full_disk_and_folder_that_cannot_be_written(layout, folder, monkeypatch):
    source, _ = layout("folder")

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with pytest.raises(UserError, match=r"No space left on device\).*data.cache_dir=") as caught:
        load(source, folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert entries(folder) == []
    (folder / "file").touch()
    expected = "file/cache: the cache of decoded images cannot be kept here"
    with pytest.raises(UserError, match=expected):
        load(source, folder / "file" / "cache")


def test_unreadable_images_are_listed_or_skipped(layout, folder):
    source, _ = layout("ham10000")
    complete = load(source, folder)
    paths = [Path(path) for path in source.manifest().frame["path"][:7]]
    paths[0].unlink()
    for path in paths[1:]:
        path.write_text("no picture")
    with pytest.raises(DataError) as caught:
        load(source, folder)
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
    reasons = ["absent"] + ["not an image"] * 6
    assert lines(listing) == [f"{p}\t{reason}" for p, reason in zip(paths, reasons, strict=True)]

    stored = load(source, folder, on_unreadable="skip")
    assert [Path(path) for path, _ in stored.unreadable] == paths
    assert len(stored.images) == len(stored.frame) == 77
    assert isinstance(stored.frame.index, pd.RangeIndex)
    kept = ~complete.frame["path"].isin(map(str, paths)).to_numpy()
    assert stored.frame["path"].tolist() == complete.frame["path"][kept].tolist()
    assert np.array_equal(stored.images, complete.images[kept])


def test_class_without_readable_image_is_an_error_and_a_repaired_one_is_used(layout, folder):
    source, root = layout("folder")
    path = root / "benign" / "IMG_0003.JPG"
    good, status = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(good)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match="IMG_0003"):
        load(source, folder)
    path.write_bytes(good)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as where a disk came back
    assert len(load(source, folder).images) == 24
    assert len(entries(folder)) == 1
    for path in (root / "malignant").iterdir():
        path.write_text("no picture")
    expected = "12 of 24 images of folder cannot be read.*none is left of malignant"
    with pytest.raises(DataError, match=expected):
        load(source, folder, on_unreadable="skip")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("values.bin", b""),
        ("values.bin", b"\0" * 100),
        ("values.bin", bytes(24 * 8 * 8 * 3)),  # of the right size
        ("values.bin", None),
        ("cache.json", None),
        ("cache.json", b"{"),
        ("cache.json", b"[]"),
        ("cache.json", b'{"key": "other", "digest": "", "unreadable": []}'),
    ],
)
def test_damaged_cache_is_rebuilt(layout, folder, name, content):
    source, _ = layout("folder")
    fingerprint = load(source, folder).fingerprint
    (entry,) = folder.glob("folder-8-squash-*")
    (entry / name).unlink()
    if content is not None:
        (entry / name).write_bytes(content)
    stored = load(source, folder)
    assert stored.fingerprint == fingerprint
    assert len(stored.images) == 24


def test_pixels_are_read_where_the_file_changed_and_after_a_month(
    layout, folder, monkeypatch, caplog
):
    source, _ = layout("folder")
    stored = load(source, folder)
    monkeypatch.setattr(cache.hashlib, "file_digest", None)  # whoever reads all pixels fails
    assert load(source, folder).fingerprint == stored.fingerprint
    monkeypatch.undo()
    (note,) = folder.glob("*/verified.json")
    stamp, verified = json.loads(note.read_text())
    note.write_text(json.dumps([stamp, verified - 31 * 24 * 3600]))
    load(source, folder)
    assert json.loads(note.read_text())[1] >= verified
    (pixels,) = folder.glob("*/values.bin")
    expected, status = stored.images.copy(), pixels.stat()
    with pixels.open("r+b") as file:  # bit rot that also keeps the time
        file.seek(1000)
        file.write(bytes(400))
    os.utime(pixels, ns=(status.st_atime_ns, status.st_mtime_ns))
    caplog.clear()
    again = load(source, folder)
    assert np.array_equal(again.images, expected)
    assert [record.getMessage() for record in caplog.records] == [
        f"{pixels.parent} is damaged and is rebuilt"
    ]


def test_identical_and_similar_pictures_are_known(tmp_path, folder):
    def lesion(centre: int, size: int = 90) -> Image.Image:
        down, right = np.mgrid[:90, :90]
        shade = np.hypot(down - 40, right - centre) + 5 * np.sin(down / 7 + right / 5)
        return Image.fromarray(np.stack([shade * 2] * 3, axis=-1).astype(np.uint8)).resize(
            [size] * 2
        )

    names = ["a.png", "copy.png", "smaller.png", "compressed.jpg", "other.png"]
    pictures = [lesion(30), lesion(30), lesion(30, 70), lesion(30), lesion(60)]
    for name, picture in zip(names, pictures, strict=True):
        picture.save(tmp_path / name)
    paths = [tmp_path / name for name in names]
    stored = load(Files(*paths, tmp_path / "." / "a.png"), folder, 32)
    assert stored.identical.tolist() == [0, 0, 2, 3, 4, 0]
    assert stored.similar.tolist() == [0, 0, 0, 0, 4, 0]
