"""Which pictures are listed, in which order, and the reasons of those that cannot be read."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.core.errors import ConfigError, DataError
from src.data.cache import square
from src.deployment.inputs import ImageInput


def write(folder: Path, name: str, colour: tuple[int, int, int] = (200, 30, 60)) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(path)
    return path


def names(path: Path) -> list[str]:
    return list(ImageInput(path).manifest().frame["image_id"])


def test_a_folder_is_listed_with_its_subfolders_without_hidden_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b.png", "a.jpg", "sub/deep/c.PNG", "sub/a.jpg", ".hidden.png", ".git/d.png"):
        write(tmp_path, name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.jpg").mkdir()
    assert names(tmp_path) == ["a.jpg", "b.png", "sub/a.jpg", "sub/deep/c.PNG"]
    assert not caplog.messages
    for name in ("d.GIF", "sub/e.gif", "f.ppm", ".g.gif"):
        write(tmp_path, name)
    assert names(tmp_path) == ["a.jpg", "b.png", "sub/a.jpg", "sub/deep/c.PNG"]
    kinds = "2 .gif, 1 .ppm; name them singly, or convert them"
    assert caplog.messages == [f"{tmp_path}: not read: {kinds}"]


@pytest.mark.parametrize("column", ["path", "image"])
def test_a_csv_keeps_its_order_and_repeats(tmp_path: Path, column: str) -> None:
    other, near = write(tmp_path, "other/001.png"), write(tmp_path, "lists/b.png")
    csv = tmp_path / "lists" / "list.csv"
    csv.write_text(f"age,{column}\n50,b.png\n60,{other}\n70,../other/001.png\n50,b.png\n")
    assert names(csv) == ["b.png", str(other), "../other/001.png", "b.png"]
    paths = [Path(path).resolve() for path in ImageInput(csv).manifest().frame["path"]]
    assert paths == [near, other, other, near]


def test_a_csv_of_numbers_is_a_csv_of_names(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\n0012\n")
    assert names(tmp_path / "list.csv") == ["0012"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("file,age\na.png,3\n", "has no column 'path' (or 'image'), only file, age; add it"),
        ("path\n", "lists no image"),
        ("", "is empty"),
        ("path,age\na.png,3\n,4\n", "column 'path' is empty in line 3"),
    ],
)
def test_a_csv_that_lists_nothing_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(DataError, match="list.csv") as refused:
        names(tmp_path / "list.csv")
    assert problem in str(refused.value)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"input: .* has no picture in it or below it \(\.bmp, "):
        names(tmp_path)


def test_batches_hold_the_squares_in_order_and_the_reasons(tmp_path: Path) -> None:
    paths = [write(tmp_path, f"{n}.png", (10 * n, 100, 250 - 10 * n)) for n in range(7)]
    paths[2].write_text("a text")
    paths[5].unlink()
    csv = tmp_path / "list.csv"
    csv.write_text("path\n" + "\n".join(path.name for path in paths) + "\n")
    source = ImageInput(csv)
    batches = list(source.batches(source.manifest(), 3, 8, "pad", 2))
    assert [rows for rows, _, _ in batches] == [[0, 1], [3, 4], [6]]
    assert [problems for _, _, problems in batches] == [{2: "not an image"}, {5: "absent"}, {}]
    expected = [square(Image.open(paths[number]), 8, "pad") for number in (0, 1, 3, 4, 6)]
    np.testing.assert_array_equal(np.concatenate([part for _, part, _ in batches]), expected)


def test_a_name_that_is_no_text_can_be_shown(tmp_path: Path) -> None:
    try:
        Image.new("RGB", (4, 4)).save(bytes(tmp_path / "x").decode() + "\udce9.png")
    except (OSError, UnicodeError):
        pytest.skip("this file system takes texts only")
    assert names(tmp_path) == ["x\\udce9.png"]


def test_a_name_gives_no_commands_to_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[31m\nb\u202f\u00e9.png").touch()
    assert names(tmp_path) == ["a\\x1b[31m\\nb\u202f\u00e9.png"]


def test_special_files_and_impossible_names_have_a_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # reading it would never end
    csv = tmp_path / "list.csv"
    csv.write_text(f"path\npipe.png\n~no such user/a.png\n{'a' * 300}.png\n{tmp_path}\n/dev/zero\n")
    source = ImageInput(csv)
    [(rows, _, problems)] = source.batches(source.manifest(), 8, 8, "pad", 1)
    assert rows == []
    assert "too long" in problems.pop(2)
    assert problems == {0: "not a file", 1: "absent", 3: "not a file", 4: "not a file"}
