"""A folder is written completely or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from src.core.errors import UserError
from src.core.files import atomic_folder


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with one file."""
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old.txt").write_text("old")
    return tmp_path / "made"


def paths(folder: Path) -> list[str]:
    return [str(file.relative_to(folder)) for file in sorted(folder.rglob("*"))]


def raise_bug(draft: Path) -> None:
    raise ValueError("a bug")


def interrupt(draft: Path) -> None:
    raise KeyboardInterrupt


def fill_disk(draft: Path) -> None:
    Path("/dev/full").write_text("x")


def test_the_new_folder_replaces_the_old_one(tmp_path: Path, made: Path) -> None:
    with atomic_folder(made, "the page") as draft:
        (draft / "new.txt").write_text("new")
        assert [file.name for file in made.iterdir()] == ["old.txt"]
    assert paths(tmp_path) == ["made", "made/new.txt"]


@pytest.mark.parametrize(
    ("fail", "error", "message"),
    [
        (raise_bug, ValueError, "a bug"),
        (interrupt, KeyboardInterrupt, ""),
        (fill_disk, UserError, "the page cannot be written there .*No space left on device"),
        (shutil.rmtree, UserError, "the page cannot be written there"),  # it cannot be moved
    ],
)
def test_nothing_changes_after_an_exception(
    tmp_path: Path,
    made: Path,
    fail: Callable[[Path], None],
    error: type[BaseException],
    message: str,
) -> None:
    def write() -> None:
        with atomic_folder(made, "the page") as draft:
            (draft / "half.txt").write_text("half")
            fail(draft)

    with pytest.raises(error, match=message):
        write()
    assert paths(tmp_path) == ["made", "made/old.txt"]
    assert (made / "old.txt").read_text() == "old"


def test_a_folder_that_cannot_be_written_is_named(made: Path) -> None:
    file = made / "old.txt"
    with pytest.raises(UserError, match=f"^folder={file}: the page cannot be written there"):
        atomic_folder(file / "made", "the page").__enter__()
