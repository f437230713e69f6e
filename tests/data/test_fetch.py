import dataclasses
import os
import re
import subprocess
import sys

import pytest

from src.data import fetch
from src.data.fetch import COLLECTIONS
from src.core.errors import ConfigError
from src.core.errors import DataError

medmnist = pytest.importorskip("medmnist", reason="no medmnist: the extra `fetch` is not installed")
pytest.importorskip("isic_cli", reason="no isic-cli: the extra `fetch` is not installed")


class TestMedMNIST:
    def serve(self, owner, monkeypatch, suffix=""):
        body = os.urandom(5000)
        published = owner.add_file(f"dermamnist{suffix}.npz", body)
        monkeypatch.setitem(medmnist.INFO["dermamnist"], f"MD5{suffix}", published)
        monkeypatch.setitem(medmnist.INFO["dermamnist"], f"url{suffix}", f"{owner.url}dermamnist{suffix}.npz")
        return body

    @pytest.mark.parametrize(("size", "suffix"), [("28", ""), ("64", "_64")])
    def test_file_of_the_asked_size(self, owner, tmp_path, monkeypatch, capsys, size, suffix):
        body = self.serve(owner, monkeypatch, suffix)
        assert fetch.main(["name=dermamnist", f"root={tmp_path}", f"size={size}"]) == 0
        assert (tmp_path / f"dermamnist{suffix}.npz").read_bytes() == body
        assert "CC BY-NC 4.0" in capsys.readouterr().out

    def test_what_is_there_is_not_fetched_again(self, owner, tmp_path, monkeypatch):
        self.serve(owner, monkeypatch)
        for _ in range(2):
            fetch.fetch("dermamnist", tmp_path)
        assert len(owner.requests) == 1

    def test_a_changed_file_is_refused(self, owner, tmp_path, monkeypatch, capsys):
        self.serve(owner, monkeypatch)
        owner.files["dermamnist.npz"] = b"something else"
        assert fetch.main(["name=dermamnist", f"root={tmp_path / 'new'}"]) == 2
        assert "MD5" in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


def test_ham10000_with_its_licence_into_the_folder_of_the_environment(owner, tmp_path, monkeypatch, capsys):
    body = owner.add_image(24306, diagnosis_3="Nevus", lesion_id="IL_1")
    monkeypatch.setitem(COLLECTIONS, "ham10000", dataclasses.replace(COLLECTIONS["ham10000"], size=1))
    monkeypatch.setenv("HAM10000_DIR", str(tmp_path))
    assert fetch.main(["name=ham10000", f"url={owner.url}"]) == 0
    shown = capsys.readouterr().out
    assert "CC BY-NC 4.0" in shown
    assert f"ham10000 is in {tmp_path}" in shown
    assert (tmp_path / "HAM10000_images_part_1" / "ISIC_0024306.jpg").read_bytes() == body
    assert (tmp_path / "HAM10000_metadata.csv").is_file()


@pytest.mark.parametrize("name", [*COLLECTIONS, "dermamnist"])
def test_without_a_network_one_line_and_the_manual_steps(nobody, tmp_path, name):
    root = tmp_path / "new"
    command = [sys.executable, "-m", "src.data.fetch", f"name={name}", f"root={root}", f"url={nobody}"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    error, manual = [line for line in ended.stderr.splitlines() if line.strip()]
    assert error.startswith("error: cannot ")
    assert "no connection" in error
    assert manual.startswith("By hand: from ")
    assert str(root) in manual
    assert not root.exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "name: which data set? ham10000, isic2019, siim2020, dermamnist"),
        (["name=ham1000"], "name: must be one of ham10000, isic2019, siim2020, dermamnist, but got ham1000"),
        (["name=organmnist3d"], "name: must be one of"),
        (["name=dermamnist", "size=65"], "size: must be 28, 64, 128 or 224, but got 65"),
        (["ham10000"], "ham10000: must be name=, root=, size= or url="),
        (["name="], "name=: must be"),
        (["nmae=ham10000"], "nmae=ham10000: must be"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, named):
    assert fetch.main(arguments) == 2
    shown = capsys.readouterr().err
    assert named in shown
    assert shown.count("\n") == 1


def test_help_and_readme_name_what_is_known(capsys, root):
    assert fetch.main(["--help"]) == 0
    shown, readme = capsys.readouterr().out, (root / "README.md").read_text()
    known = {*COLLECTIONS, "dermamnist"}
    assert known == set(re.search(r"^name= +(.*), or ", shown, re.M)[1].split(", "))
    commands = re.findall(r"src\.data\.fetch name=(\w+)", shown), re.findall(r"src\.data\.fetch name=(\w+)", readme)
    for named in commands:
        assert named
        assert set(named) <= known
    for name, collection in COLLECTIONS.items():
        assert re.search(rf"^\| `{name}` .*`{collection.variable}`", readme, re.M)


def test_a_root_that_is_a_file_is_named(owner, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "file"))):
        fetch.fetch("dermamnist", tmp_path / "file", url=owner.url)


def test_unknown_size_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError):
        fetch.fetch("dermamnist", tmp_path / "new", size="30")
    assert not (tmp_path / "new").exists()
