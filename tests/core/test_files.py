"""A folder is written completely or not at all."""

from collections.abc import Callable
from pathlib import Path

import pytest

from src.core.errors import UserError
from src.core.files import atomic_folder


def raise_bug() -> None:
    raise ValueError("a bug")


def interrupt() -> None:
    raise KeyboardInterrupt


def fill_disk() -> None:
    Path("/dev/full").write_text("x")


def test_the_new_folder_replaces_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old.txt").write_text("old")
    with atomic_folder(tmp_path / "made", "the page") as draft:
        (draft / "new.txt").write_text("new")
        assert [file.name for file in (tmp_path / "made").iterdir()] == ["old.txt"]
    files = [str(file.relative_to(tmp_path)) for file in sorted(tmp_path.rglob("*"))]
    assert files == ["made", "made/new.txt"]


@pytest.mark.parametrize(
    ("fail", "error", "message"),
    [
        (raise_bug, ValueError, "a bug"),
        (interrupt, KeyboardInterrupt, ""),
        (fill_disk, UserError, "the page cannot be written there .*No space left on device"),
    ],
)
def test_nothing_changes_after_an_exception(
    tmp_path: Path, fail: Callable[[], None], error: type[BaseException], message: str
) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old.txt").write_text("old")

    def write() -> None:
        with atomic_folder(tmp_path / "made", "the page") as draft:
            (draft / "half.txt").write_text("half")
            fail()

    with pytest.raises(error, match=message):
        write()
    files = [str(file.relative_to(tmp_path)) for file in sorted(tmp_path.rglob("*"))]
    assert files == ["made", "made/old.txt"]


def test_the_old_folder_returns_if_the_draft_cannot_be_moved(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old.txt").write_text("old")
    message = "the page cannot be written there"
    with (
        pytest.raises(UserError, match=message),
        atomic_folder(tmp_path / "made", "the page") as draft,
    ):
        draft.rmdir()
    assert (tmp_path / "made" / "old.txt").read_text() == "old"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    message = f"^folder={tmp_path}/file: the page cannot be written there"
    with pytest.raises(UserError, match=message):
        atomic_folder(tmp_path / "file" / "made", "the page").__enter__()
