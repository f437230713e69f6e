import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_picture
from PIL import Image, ImageFile

from src.data.cache import decode
from src.data.cache import write_squares
from src.data.cache import square
from src.data.source import Manifest
from src.data.source import Source


class Files(Source):
    name = "files"

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def manifest(self) -> Manifest:
        names = [path.name for path in self.paths]
        paths = [str(path) for path in self.paths]
        frame = pd.DataFrame({"image_id": names, "label": 0, "group": names, "path": paths})
        return Manifest(self.name, ("only",), frame, "image")


def write_bomb(path: Path) -> None:
    """A PNG file that says it has 400 million pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"")]
    framed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))


def write_bad_files(folder: Path) -> dict[str, Path]:
    names = ("absent.jpg", "truncated.jpg", "text.jpg", "empty.png", "bomb.png", "folder.jpg")
    paths = {name.split(".")[0]: folder / name for name in names}
    write_picture(paths["truncated"], 0, (200, 150))
    content = paths["truncated"].read_bytes()
    paths["truncated"].write_bytes(content[: len(content) // 2])
    paths["text"].write_text("this is no picture")
    paths["empty"].touch()
    write_bomb(paths["bomb"])
    paths["folder"].mkdir()
    return paths


REASONS = {
    "absent": "absent",
    "truncated": "truncated",
    "text": "not an image",
    "empty": "not an image",
    "bomb": "decompression bomb",
    "folder": "directory",
}


@pytest.mark.parametrize("kind", REASONS)
def test_what_cannot_be_read_is_told(tmp_path, kind):
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    source = Files([write_bad_files(tmp_path)[kind]])
    reason = decode(source, source.manifest(), 0, 8, "squash")
    assert isinstance(reason, str)
    assert REASONS[kind] in reason
    assert "\n" not in reason


def test_a_fault_of_the_program_is_not_taken_for_a_bad_picture(tmp_path):
    source = Files([tmp_path / "a.png"])
    with pytest.raises(KeyError):
        decode(source, source.manifest(), 99, 8, "squash")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / "picture.tif"
    Image.new("RGB", (9, 7), (255, 255, 255)).convert(mode).save(path)
    source = Files([path])
    result = decode(source, source.manifest(), 0, 8, "squash")
    assert isinstance(result, np.ndarray)
    assert (result == np.full((8, 8, 3), 255)).all()


def test_pictures_are_turned_upright(tmp_path):
    picture = Image.new("RGB", (40, 20), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise: what is left comes to the top
    picture.save(tmp_path / "turned.png", exif=exif)
    source = Files([tmp_path / "turned.png"])
    result = decode(source, source.manifest(), 0, 8, "squash")
    assert isinstance(result, np.ndarray)
    assert result[0].min() > 200
    assert result[-1].max() < 50


def test_squares_are_written_in_order_without_gaps(tmp_path, capsys):
    paths = [tmp_path / f"{number}.png" for number in range(200)]
    for number, path in enumerate(paths):
        if number % 50 != 7:
            write_picture(path, number)
    source = Files(paths)
    digest, unreadable = write_squares(source, source.manifest(), 6, "pad", tmp_path / "squares", workers=4)
    assert unreadable == [(row, "absent") for row in (7, 57, 107, 157)]
    written = (tmp_path / "squares").read_bytes()
    readable = [Image.open(path) for path in paths if path.exists()]
    assert written == b"".join(square(image, 6, "pad").tobytes() for image in readable)
    assert digest == hashlib.sha256(written).hexdigest()
    output = capsys.readouterr()
    assert "200/200" in output.err
    assert output.out == ""
