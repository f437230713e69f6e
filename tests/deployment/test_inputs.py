"""Which pictures are meant, in which order, and what becomes of those that cannot be read."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.core.errors import ConfigError, DataError
from src.data.cache import square
from src.deployment.inputs import ImageInput

Colour = tuple[int, int, int]


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, colour: Colour = (200, 30, 60), size: tuple[int, int] = (40, 30)) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour).save(path)
        return path

    return write


def names(given: Path) -> list[str]:
    return list(ImageInput(given).manifest().frame["image_id"])


def test_a_folder_is_taken_with_its_subfolders_without_what_is_hidden(
    picture: Callable[..., Path], tmp_path: Path
) -> None:
    for name in ("b.png", "a.jpg", "sub/deep/c.PNG", "sub/a.jpg", ".hidden.png", ".git/d.png"):
        picture(name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.jpg").mkdir()
    assert names(tmp_path) == ["a.jpg", "b.png", "sub/a.jpg", "sub/deep/c.PNG"]


@pytest.mark.parametrize("column", ["path", "image"])
def test_a_csv_keeps_its_order_and_names_what_stands_twice_twice(
    picture: Callable[..., Path], tmp_path: Path, column: str
) -> None:
    elsewhere = picture("other/001.png")
    picture("lists/b.png")
    csv = tmp_path / "lists" / "list.csv"
    csv.write_text(f"age,{column}\n50,b.png\n60,{elsewhere}\n70,../other/001.png\n50,b.png\n")
    assert names(csv) == ["b.png", str(elsewhere), "../other/001.png", "b.png"]
    paths = [Path(path).resolve() for path in ImageInput(csv).manifest().frame["path"]]
    assert paths == [
        tmp_path / "lists" / "b.png",
        elsewhere,
        elsewhere,
        tmp_path / "lists" / "b.png",
    ]


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


def test_batches_hold_the_squares_in_order_and_the_reasons(
    picture: Callable[..., Path], tmp_path: Path
) -> None:
    colours = [(10 * number, 100, 250 - 10 * number) for number in range(7)]
    paths = [
        picture(f"{number}.png", colour, (30 + number, 20)) for number, colour in enumerate(colours)
    ]
    paths[2].write_text("a text")
    paths[5].unlink()
    csv = tmp_path / "list.csv"
    csv.write_text("path\n" + "\n".join(path.name for path in paths) + "\n")
    given = ImageInput(csv)
    batches = list(given.batches(given.manifest(), 3, 8, "pad", 2))
    assert [list(batch.rows) for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [batch.problems for batch in batches] == [
        ("", "", "not an image"),
        ("", "", "absent"),
        ("",),
    ]
    assert [batch.readable for batch in batches] == [[0, 1], [0, 1], [0]]
    expected = [square(Image.open(paths[number]), 8, "pad") for number in (0, 1, 3, 4, 6)]
    np.testing.assert_array_equal(np.concatenate([batch.squares for batch in batches]), expected)


def test_a_name_that_is_no_text_can_be_shown(tmp_path: Path) -> None:
    try:
        Image.new("RGB", (4, 4)).save(bytes(tmp_path / "x").decode() + "\udce9.png")
    except (OSError, UnicodeError):
        pytest.skip("this file system takes texts only")
    assert names(tmp_path) == ["x\\udce9.png"]


def test_a_name_gives_no_commands_to_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[31m\nb\u202f\u00e9.png").touch()
    assert names(tmp_path) == ["a\\x1b[31m\\nb\u202f\u00e9.png"]


def test_what_is_no_file_and_what_no_system_takes_is_a_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # opened, it would be waited for
    csv = tmp_path / "list.csv"
    csv.write_text(f"path\npipe.png\n~no such user/a.png\n{'a' * 300}.png\n{tmp_path}\n/dev/zero\n")
    given = ImageInput(csv)
    [batch] = given.batches(given.manifest(), 8, 8, "pad", 1)
    assert [batch.problems[at] for at in (0, 1, 3, 4)] == [
        "not a file",
        "absent",
        "not a file",
        "not a file",
    ]
    assert "too long" in batch.problems[2]
