"""A folder is there whole, or as it was."""

from pathlib import Path

import pytest

from src.core.errors import UserError
from src.core.files import atomic_folder


def test_the_new_takes_the_place_of_the_old(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old.txt").write_text("old")
    with atomic_folder(tmp_path / "made", "the page") as draft:
        (draft / "new.txt").write_text("new")
        assert [file.name for file in (tmp_path / "made").iterdir()] == ["old.txt"]
    assert [file.name for file in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made" / "new.txt").read_text() == "new"
    assert not (tmp_path / "made" / "old.txt").exists()


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_nothing_changes_if_it_breaks_off(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old.txt").write_text("old")

    def broken_off() -> None:
        with atomic_folder(tmp_path / "made", "the page") as draft:
            (draft / "half.txt").write_text("half")
            raise error

    with pytest.raises(type(error)):
        broken_off()
    assert [str(file.relative_to(tmp_path)) for file in sorted(tmp_path.rglob("*"))] == [
        "made",
        "made/old.txt",
    ]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(
        UserError, match=f"^folder={tmp_path}/file: the page cannot be written there"
    ):
        atomic_folder(tmp_path / "file" / "made", "the page").__enter__()


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="No space left on device"),
        atomic_folder(tmp_path / "made", "the page"),
    ):
        Path("/dev/full").write_text("x")
    assert not list(tmp_path.iterdir())
