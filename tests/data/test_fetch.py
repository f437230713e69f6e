import dataclasses
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import numpy as np
import pandas as pd
import pytest

from src.data import fetch
from src.data.ham10000 import HAM10000
from src.data.isic2019 import ISIC2019
from src.data.siim2020 import SIIM2020
from src.errors import ConfigError, DataError, DependencyError

medmnist = pytest.importorskip("medmnist", reason="no medmnist: the extra `fetch` is not installed")
pytest.importorskip("isic_cli", reason="no isic-cli: the extra `fetch` is not installed")


class Owner:
    """A local server in the owners' place: files with byte ranges, and the part of the archive's API that is used."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.cut: list[int] = []  # close the connection after so many bytes of a file, once an entry
        self.requests: list[tuple[str, str | None]] = []  # path, range
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):  # noqa: N802
                owner.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request):
        path = urlparse(request.path).path.lstrip("/")
        wanted = request.headers.get("Range")
        self.requests.append((path, wanted))
        if path not in self.files:
            if (body := self.api(path, parse_qs(urlparse(request.path).query))) is None:
                return request.send_error(404)
            return self.send(request, 200, body, {})
        body = self.files[path]
        if wanted is None:
            return self.send(request, 200, body, {}, cut=True)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        if start >= len(body):
            return request.send_error(416)
        place = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        return self.send(request, 206, body[start:], place, cut=True)

    def send(self, request, status, body, headers, cut=False):
        request.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            request.send_header(key, value)
        request.end_headers()
        request.wfile.write(body[: self.cut.pop(0)] if cut and self.cut else body)

    def api(self, path, query):
        records = getattr(self, "records", [])
        if path.startswith("collections/"):
            return b"{}"
        if path != "images/search/":
            return None
        page, start = 2, int(query.get("cursor", ["0"])[0])
        more = f"{self.url}images/search/?cursor={start + page}" if start + page < len(records) else None
        answer = {"count": len(records), "results": records[start : start + page], "next": more}
        return json.dumps(answer).encode()

    def add_image(self, number, **clinical):
        name, body = f"ISIC_{number:07d}", os.urandom(2000 + number % 100)
        self.files[f"store/{name}.JPG"] = body
        address = {"full": {"url": f"{self.url}store/{name}.JPG", "size": len(body)}}
        record = {"isic_id": name, "files": address, "metadata": {"acquisition": {}, "clinical": clinical}}
        self.records = [*getattr(self, "records", []), record]
        return body


@pytest.fixture
def owner(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Owner()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def nobody(monkeypatch):
    """An address where nobody listens."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/"


def ranges(owner, path):
    return [wanted for name, wanted in owner.requests if name == path]


def md5(body):
    return hashlib.md5(body).hexdigest()


class TestDownload:
    body = os.urandom(1_000_000)

    def test_whole(self, owner, tmp_path):
        owner.files["a.bin"] = self.body
        fetch.download(f"{owner.url}a.bin", tmp_path / "a.bin", md5(self.body))
        assert (tmp_path / "a.bin").read_bytes() == self.body
        assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]

    def test_goes_on_by_itself_after_a_broken_connection(self, owner, tmp_path):
        owner.files["a.bin"], owner.cut = self.body, [300_000, 400_000]
        fetch.download(f"{owner.url}a.bin", tmp_path / "a.bin", md5(self.body))
        assert (tmp_path / "a.bin").read_bytes() == self.body
        first, second, third = ranges(owner, "a.bin")
        assert first is None
        assert 0 < int(second[6:-1]) < int(third[6:-1]) < len(self.body)

    def test_goes_on_where_an_earlier_process_stopped(self, owner, tmp_path):
        owner.files["a.bin"], owner.cut = self.body, [600_000, 0]  # the second answer brings nothing: give up
        with pytest.raises(DependencyError, match=r"bytes are kept, the same command goes on"):
            fetch.download(f"{owner.url}a.bin", tmp_path / "a.bin", md5(self.body))
        kept = (tmp_path / "a.bin.part").stat().st_size
        assert kept > 0
        assert not (tmp_path / "a.bin").exists()
        fetch.download(f"{owner.url}a.bin", tmp_path / "a.bin", md5(self.body))
        assert ranges(owner, "a.bin")[-1] == f"bytes={kept}-"
        assert (tmp_path / "a.bin").read_bytes() == self.body

    def test_all_bytes_there_but_not_yet_in_place(self, owner, tmp_path):
        owner.files["a.bin"] = self.body
        (tmp_path / "a.bin.part").write_bytes(self.body)
        fetch.download(f"{owner.url}a.bin", tmp_path / "a.bin", md5(self.body))
        assert (tmp_path / "a.bin").read_bytes() == self.body

    def test_wrong_checksum_leaves_nothing(self, owner, tmp_path):
        owner.files["a.bin"] = self.body
        with pytest.raises(DataError, match="MD5") as error:
            fetch.download(f"{owner.url}a.bin", tmp_path / "a.bin", "0" * 32)
        assert md5(self.body) in str(error.value)
        assert list(tmp_path.iterdir()) == []

    def test_half_of_another_file_is_found_out(self, owner, tmp_path):
        owner.files["a.bin"] = self.body
        (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
        with pytest.raises(DataError, match="MD5"):
            fetch.download(f"{owner.url}a.bin", tmp_path / "a.bin", md5(self.body))
        fetch.download(f"{owner.url}a.bin", tmp_path / "a.bin", md5(self.body))  # from the start this time
        assert (tmp_path / "a.bin").read_bytes() == self.body

    def test_without_a_checksum_it_starts_afresh(self, owner, tmp_path):
        owner.files["a.csv"] = b"image\n1\n"
        (tmp_path / "a.csv.part").write_bytes(b"old")
        fetch.download(f"{owner.url}a.csv", tmp_path / "a.csv")
        assert (tmp_path / "a.csv").read_bytes() == b"image\n1\n"
        assert ranges(owner, "a.csv") == [None]

    def test_a_missing_file_names_the_status(self, owner, tmp_path):
        with pytest.raises(DependencyError, match="HTTP status 404"):
            fetch.download(f"{owner.url}absent", tmp_path / "absent", "0" * 32)
        assert list(tmp_path.iterdir()) == []


class TestMedMNIST:
    def serve(self, owner, monkeypatch, suffix=""):
        body = os.urandom(5000)
        owner.files[f"dermamnist{suffix}.npz"] = body
        monkeypatch.setitem(medmnist.INFO["dermamnist"], f"MD5{suffix}", md5(body))
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


def resize(monkeypatch, name, size):
    monkeypatch.setitem(fetch.COLLECTIONS, name, dataclasses.replace(fetch.COLLECTIONS[name], size=size))


class TestISICArchive:
    # The archive's words for HAM10000's classes, one image each, and the class that is meant.
    diagnoses = {
        24306: ("nv", {"diagnosis_1": "Benign", "diagnosis_3": "Nevus", "diagnosis_confirm_type": "histopathology"}),
        24400: ("akiec", {"diagnosis_3": "Solar or actinic keratosis"}),
        24401: ("akiec", {"diagnosis_3": "Squamous cell carcinoma, NOS"}),
        24402: ("bcc", {"diagnosis_3": "Basal cell carcinoma"}),
        29305: ("bkl", {"diagnosis_3": "Pigmented benign keratosis"}),
        29306: ("df", {"diagnosis_3": "Dermatofibroma"}),
        29307: ("mel", {"diagnosis_2": "Malignant melanocytic proliferations", "diagnosis_3": "Melanoma, NOS"}),
        34320: ("vasc", {"diagnosis_2": "Benign soft tissue proliferations - Vascular", "diagnosis_3": "Hemangioma"}),
    }

    def ham(self, owner, monkeypatch):
        bodies = []
        for number, (_, diagnosis) in self.diagnoses.items():
            bodies.append(owner.add_image(number, **diagnosis, lesion_id=f"IL_{number // 1000}", age_approx=45))
        owner.add_image(34500, diagnosis_3="Nevus", lesion_id="IL_34")  # of the test set of 2018: not in HAM10000
        resize(monkeypatch, "ham10000", len(bodies))
        return bodies

    def test_ham10000_is_read_by_its_source(self, owner, tmp_path, monkeypatch, capsys):
        bodies = self.ham(owner, monkeypatch)
        assert fetch.main(["name=ham10000", f"root={tmp_path}", f"url={owner.url}"]) == 0
        assert "CC BY-NC 4.0" in capsys.readouterr().out
        manifest = HAM10000(tmp_path).manifest()
        frame = manifest.frame.sort_values("image_id")
        assert [manifest.classes[label] for label in frame["label"]] == [dx for dx, _ in self.diagnoses.values()]
        assert frame["group"].tolist() == ["IL_24"] * 4 + ["IL_29"] * 3 + ["IL_34"]
        assert frame["dx_type"].iloc[0] == "histo"
        assert (frame["age"] == 45).all()
        assert [Path(path).read_bytes() for path in frame["path"]] == bodies
        assert [re.search(r"part_\d", path)[0] for path in frame["path"]] == ["part_1"] * 5 + ["part_2"] * 3

    def test_images_that_are_there_are_not_fetched_again(self, owner, tmp_path, monkeypatch):
        self.ham(owner, monkeypatch)
        fetch.fetch("ham10000", tmp_path, url=owner.url)
        cut_short = tmp_path / "HAM10000_images_part_1" / "ISIC_0024306.jpg"
        cut_short.write_bytes(cut_short.read_bytes()[:100])
        (cut_short.parent / ".isic-partial.1.abc").write_bytes(b"left by a killed process")
        kept = [f"ISIC_{number:07d}.jpg" for number in self.diagnoses if number <= 29305]
        owner.requests.clear()
        fetch.fetch("ham10000", tmp_path, url=owner.url)
        assert [path for path, _ in owner.requests if path.startswith("store/")] == ["store/ISIC_0024306.JPG"]
        assert sorted(path.name for path in cut_short.parent.iterdir()) == sorted(kept)

    def test_too_few_images_write_no_table(self, owner, tmp_path, monkeypatch):
        self.ham(owner, monkeypatch)
        resize(monkeypatch, "ham10000", 10_015)
        with pytest.raises(DataError, match="8 of 10,015 images"):
            fetch.fetch("ham10000", tmp_path, url=owner.url)
        assert not (tmp_path / "HAM10000_metadata.csv").exists()

    def test_an_unknown_diagnosis_is_named(self, owner, tmp_path, monkeypatch):
        self.ham(owner, monkeypatch)
        owner.records[0]["metadata"]["clinical"]["diagnosis_3"] = "Scar"
        with pytest.raises(DataError, match=r"ISIC_0024306 .*Benign / Scar"):
            fetch.fetch("ham10000", tmp_path, url=owner.url)

    def test_isic2019_is_read_by_its_source(self, owner, tmp_path, monkeypatch):
        classes = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
        names = ["ISIC_0000002_downsampled", *(f"ISIC_{number:07d}" for number in range(24306, 24313))]
        marks = pd.DataFrame(np.eye(8, 9), columns=classes)
        marks.insert(0, "image", names)
        about = "image,age_approx,anatom_site_general,lesion_id,sex\nISIC_0024306,45,,HAM_1,male\n"
        owner.files["2019/ISIC_2019_Training_GroundTruth.csv"] = marks.to_csv(index=False).encode()
        owner.files["2019/ISIC_2019_Training_Metadata.csv"] = about.encode()
        bodies = [owner.add_image(number) for number in (2, *range(24306, 24313))]
        resize(monkeypatch, "isic2019", 8)
        for _ in range(2):  # the second time all is there
            fetch.fetch("isic2019", tmp_path, url=owner.url)
        assert sum(path.startswith("store/") for path, _ in owner.requests) == 8
        manifest = ISIC2019(tmp_path).manifest()
        frame = manifest.frame.set_index("image_id").loc[names]
        assert [manifest.classes[label].upper() for label in frame["label"]] == classes[:8]
        assert [Path(path).read_bytes() for path in frame["path"]] == bodies

    def test_siim2020_is_read_by_its_source(self, owner, tmp_path, monkeypatch):
        header = "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target"
        rows = ["ISIC_2637011,IP_1,male,45,head/neck,unknown,benign,0", "ISIC_0015719,IP_2,,,,melanoma,malignant,1"]
        owner.files["2020/ISIC_2020_Training_GroundTruth.csv"] = "\n".join([header, *rows]).encode()
        for number in (2637011, 15719):
            owner.add_image(number)
        resize(monkeypatch, "siim2020", 2)
        fetch.fetch("siim2020", tmp_path, url=owner.url)
        frame = SIIM2020(tmp_path).manifest().frame.set_index("image_id")
        assert frame["label"].to_dict() == {"ISIC_2637011": 0, "ISIC_0015719": 1}

    def test_published_classes_are_all_reached(self):
        assert set(fetch.HAM10000_DX.values()) == {"akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"}

    def test_table_keeps_the_official_columns(self, shared_data):
        official = pd.read_csv(shared_data / "ham10000" / "HAM10000_metadata.csv", nrows=5)
        clinical = {"diagnosis_3": "Nevus", "lesion_id": "IL_1"}
        record = {"isic_id": "ISIC_0024306", "metadata": {"acquisition": {}, "clinical": clinical}}
        assert list(fetch.ham10000_table([record]).columns) == list(official.columns)


@pytest.mark.parametrize("name", [*fetch.COLLECTIONS, "dermamnist"])
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


def test_help_lists_the_names(capsys):
    assert fetch.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in [*fetch.COLLECTIONS, "dermamnist"]:
        assert name in shown


def test_a_root_that_is_a_file_is_named(owner, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "file"))):
        fetch.fetch("dermamnist", tmp_path / "file", url=owner.url)


def test_unknown_size_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError):
        fetch.fetch("dermamnist", tmp_path / "new", size="30")
    assert not (tmp_path / "new").exists()
