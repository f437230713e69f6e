import os

import pytest

from src.data.fetch import download
from src.core.errors import DataError
from src.core.errors import DependencyError

BODY = os.urandom(1_000_000)


def test_whole(owner, tmp_path):
    published = owner.add_file("a.bin", BODY)
    download(f"{owner.url}a.bin", tmp_path / "a.bin", published)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_goes_on_by_itself_after_a_broken_connection(owner, tmp_path):
    published = owner.add_file("a.bin", BODY)
    owner.cut = [300_000, 400_000]
    download(f"{owner.url}a.bin", tmp_path / "a.bin", published)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    first, second, third = owner.ranges("a.bin")
    assert first is None
    assert 0 < int(second[6:-1]) < int(third[6:-1]) < len(BODY)


def test_goes_on_where_an_earlier_process_stopped(owner, tmp_path):
    published = owner.add_file("a.bin", BODY)
    owner.cut = [600_000, 0]  # the second answer brings nothing: give up
    with pytest.raises(DependencyError, match=r"bytes are kept, the same command goes on"):
        download(f"{owner.url}a.bin", tmp_path / "a.bin", published)
    kept = (tmp_path / "a.bin.part").stat().st_size
    assert kept > 0
    assert not (tmp_path / "a.bin").exists()
    download(f"{owner.url}a.bin", tmp_path / "a.bin", published)
    assert owner.ranges("a.bin")[-1] == f"bytes={kept}-"
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_all_bytes_there_but_not_yet_in_place(owner, tmp_path):
    published = owner.add_file("a.bin", BODY)
    (tmp_path / "a.bin.part").write_bytes(BODY)
    download(f"{owner.url}a.bin", tmp_path / "a.bin", published)
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_wrong_checksum_leaves_nothing(owner, tmp_path):
    published = owner.add_file("a.bin", BODY)
    with pytest.raises(DataError, match="MD5") as error:
        download(f"{owner.url}a.bin", tmp_path / "a.bin", "0" * 32)
    assert published in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_half_of_another_file_is_found_out(owner, tmp_path):
    published = owner.add_file("a.bin", BODY)
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="MD5"):
        download(f"{owner.url}a.bin", tmp_path / "a.bin", published)
    download(f"{owner.url}a.bin", tmp_path / "a.bin", published)  # from the start this time
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_without_a_checksum_it_starts_afresh(owner, tmp_path):
    owner.files["a.csv"] = b"image\n1\n"
    (tmp_path / "a.csv.part").write_bytes(b"old")
    download(f"{owner.url}a.csv", tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == b"image\n1\n"
    assert owner.ranges("a.csv") == [None]


def test_a_missing_file_names_the_status(owner, tmp_path):
    with pytest.raises(DependencyError, match="HTTP status 404"):
        download(f"{owner.url}absent", tmp_path / "absent", "0" * 32)
    assert list(tmp_path.iterdir()) == []
