import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import requests

from src.core.errors import DataError, DependencyError
from src.data import fetch
from src.data.fetch import COLLECTIONS, HAM10000_DX, download, download_collection, ham10000_table
from src.data.ham10000 import HAM10000
from src.data.isic2019 import ISIC2019
from src.data.siim2020 import SIIM2020

medmnist = pytest.importorskip("medmnist", reason="the extra `fetch` is not installed")
pytest.importorskip("isic_cli", reason="the extra `fetch` is not installed")

BODY = os.urandom(1_000_000)
VASCULAR = "Benign soft tissue proliferations - Vascular"
# The archive's diagnoses of HAM10000's classes by image number: the class, the diagnosis of level
# 3, and other fields.
DIAGNOSES = {
    24306: ("nv", "Nevus", {"diagnosis_1": "Benign", "diagnosis_confirm_type": "histopathology"}),
    24400: ("akiec", "Solar or actinic keratosis", {}),
    24401: ("akiec", "Squamous cell carcinoma, NOS", {}),
    24402: ("bcc", "Basal cell carcinoma", {}),
    29305: ("bkl", "Pigmented benign keratosis", {}),
    29306: ("df", "Dermatofibroma", {}),
    29307: ("mel", "Melanoma, NOS", {"diagnosis_2": "Malignant melanocytic proliferations"}),
    34320: ("vasc", "Hemangioma", {"diagnosis_2": VASCULAR}),
}


@pytest.fixture
def file(tmp_path):
    """The path of a download, `a.bin`."""
    return tmp_path / "a.bin"


def check_body(path: Path) -> None:
    assert path.read_bytes() == BODY
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_download_resumes_after_interruptions(owner, file):
    md5 = owner.add_file("a.bin", BODY)
    owner.cut = [300_000, 400_000]
    download(f"{owner.url}a.bin", file, md5)
    check_body(file)
    first, second, third = owner.ranges("a.bin")
    assert first is None
    assert 0 < int(second[6:-1]) < int(third[6:-1]) < len(BODY)


def test_download_resumes_the_work_of_another_process(owner, file):
    md5, part = owner.add_file("a.bin", BODY), file.with_name("a.bin.part")
    owner.cut = [600_000, 0]  # the second answer brings nothing: give up
    with pytest.raises(DependencyError, match=r"bytes are kept, the same command resumes"):
        download(f"{owner.url}a.bin", file, md5)
    kept = part.stat().st_size
    assert kept > 0
    assert not file.exists()
    download(f"{owner.url}a.bin", file, md5)
    assert owner.ranges("a.bin")[-1] == f"bytes={kept}-"
    check_body(file)
    file.rename(part)  # complete, but not yet moved
    download(f"{owner.url}a.bin", file, md5)
    check_body(file)


def test_wrong_checksum_leaves_nothing(owner, file):
    md5 = owner.add_file("a.bin", BODY)
    with pytest.raises(DataError, match=f"MD5.*{md5}"):
        download(f"{owner.url}a.bin", file, "0" * 32)
    assert list(file.parent.iterdir()) == []
    file.with_name("a.bin.part").write_bytes(b"x" * 1000)  # of another file
    with pytest.raises(DataError, match="MD5"):
        download(f"{owner.url}a.bin", file, md5)
    download(f"{owner.url}a.bin", file, md5)  # from the start this time
    check_body(file)


def test_without_a_checksum_nothing_is_resumed(owner, file):
    owner.files["a.bin"] = b"image\n1\n"
    file.with_name("a.bin.part").write_bytes(b"old")
    download(f"{owner.url}a.bin", file)
    assert file.read_bytes() == b"image\n1\n"
    assert owner.ranges("a.bin") == [None]


def test_missing_file_names_the_status(owner, file):
    with pytest.raises(DependencyError, match="HTTP status 404"):
        download(f"{owner.url}absent", file, "0" * 32)
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("file:///etc/passwd", "No connection adapters were found for 'file:///etc/passwd'"),
        ("ftp://127.0.0.1/x", "No connection adapters were found for 'ftp://127.0.0.1/x'"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("a.bin", "Exceeded 30 redirects"),
    ],
)
def test_a_server_redirects_to_other_servers_only(owner, tmp_path, address, problem):
    number = COLLECTIONS["ham10000"].number
    for path in ("a.bin", f"collections/{number}/", "store/ISIC_0024306.JPG"):
        owner.redirects[path] = address if address != "a.bin" else f"{owner.url}{path}"
    with pytest.raises(DependencyError, match=f"cannot download .*{problem}"):
        download(f"{owner.url}a.bin", tmp_path / "a.bin")
    with pytest.raises((DependencyError, DataError), match=f"cannot reach|{problem}"):
        download_collection(COLLECTIONS["ham10000"], tmp_path, owner.url)
    del owner.redirects[f"collections/{number}/"]
    owner.add_image(24306, diagnosis_3="Nevus", lesion_id="IL_24")
    del owner.files["store/ISIC_0024306.JPG"]
    with pytest.raises((DependencyError, DataError)):
        download_collection(resized("ham10000", 1), tmp_path, owner.url)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    owner.files["b.bin"], owner.redirects["a.bin"] = BODY, "/b.bin"
    download(f"{owner.url}a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_an_encrypted_connection_is_not_left():
    answer = requests.Response()
    answer.status_code, answer.url = 302, "https://example.org/a"
    for address in ("http://example.org/a", "HTTP://example.org/a", "ht\ttp://example.org/a"):
        answer.headers["Location"] = address
        with pytest.raises(requests.exceptions.InvalidURL, match=f"redirects to {address}"):
            fetch._check_redirect(answer)
    for address in ("https://example.com/a", "/b", "//example.com/a"):
        answer.headers["Location"] = address
        fetch._check_redirect(answer)


def test_endless_pages_of_images_are_read_to_a_limit(owner, tmp_path, monkeypatch):
    owner.add_image(24306, diagnosis_3="Nevus", lesion_id="IL_24")
    answer = {"count": 1, "results": owner.records, "next": f"{owner.url}images/search/"}
    monkeypatch.setattr(owner, "page", lambda start: json.dumps(answer).encode())
    with pytest.raises(DataError, match="4 of 2 images"):
        download_collection(resized("ham10000", 2), tmp_path, owner.url)


@pytest.fixture
def dermamnist(owner, monkeypatch):
    """Serve DermaMNIST files of two sizes; returns their bytes."""
    bodies = {"": os.urandom(5000), "_64": os.urandom(5000)}
    info = medmnist.INFO["dermamnist"]
    for suffix, body in bodies.items():
        name = f"dermamnist{suffix}.npz"
        monkeypatch.setitem(info, f"MD5{suffix}", owner.add_file(name, body))
        monkeypatch.setitem(info, f"url{suffix}", f"{owner.url}{name}")
    return bodies


def test_medmnist(owner, dermamnist, tmp_path, capsys):
    for size, suffix in (("28", ""), ("64", "_64"), ("28", "")):  # the third is there already
        assert fetch.main(["name=dermamnist", f"root={tmp_path}", f"size={size}"]) == 0
        assert (tmp_path / f"dermamnist{suffix}.npz").read_bytes() == dermamnist[suffix]
    assert len(owner.requests) == 2
    assert "CC BY-NC 4.0" in capsys.readouterr().out
    owner.files["dermamnist.npz"] = b"something else"
    assert fetch.main(["name=dermamnist", f"root={tmp_path / 'new'}"]) == 2
    assert "MD5" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def resized(name: str, size: int) -> fetch.ArchiveCollection:
    return dataclasses.replace(COLLECTIONS[name], size=size)


@pytest.fixture
def ham(owner):
    """HAM10000 with one image of each diagnosis; returns the collection and the images' bytes."""
    bodies = []
    for number, (_, diagnosis, others) in DIAGNOSES.items():
        clinical = {"diagnosis_3": diagnosis, "lesion_id": f"IL_{number // 1000}", **others}
        bodies.append(owner.add_image(number, age_approx=45, **clinical))
    # of the test set of 2018: not in HAM10000
    owner.add_image(34500, diagnosis_3="Nevus", lesion_id="IL_34")
    return resized("ham10000", len(bodies)), bodies


def downloaded(owner) -> list[str]:
    return [path for path, _ in owner.requests if path.startswith("store/")]


def test_ham10000_is_read_by_its_source(owner, ham, tmp_path, monkeypatch, capsys):
    collection, bodies = ham
    monkeypatch.setitem(COLLECTIONS, "ham10000", collection)
    monkeypatch.setenv("HAM10000_DIR", str(tmp_path))
    assert fetch.main(["name=ham10000", f"url={owner.url}"]) == 0
    output = capsys.readouterr().out
    assert "CC BY-NC 4.0" in output
    assert f"ham10000 is in {tmp_path}" in output
    manifest = HAM10000(tmp_path).manifest()
    frame = manifest.frame.sort_values("image_id")
    classes = [manifest.classes[label] for label in frame["label"]]
    assert classes == [dx for dx, _, _ in DIAGNOSES.values()]
    assert frame["group"].tolist() == ["IL_24"] * 4 + ["IL_29"] * 3 + ["IL_34"]
    assert frame["dx_type"].iloc[0] == "histo"
    assert (frame["age"] == 45).all()
    assert [Path(path).read_bytes() for path in frame["path"]] == bodies
    parts = [re.search(r"part_\d", path)[0] for path in frame["path"]]
    assert parts == ["part_1"] * 5 + ["part_2"] * 3


def test_existing_images_are_not_downloaded_again(owner, ham, tmp_path):
    download_collection(ham[0], tmp_path, owner.url)
    truncated = tmp_path / "HAM10000_images_part_1" / "ISIC_0024306.jpg"
    truncated.write_bytes(truncated.read_bytes()[:100])
    (truncated.parent / ".isic-partial.1.abc").write_bytes(b"of a killed process")
    owner.requests.clear()
    download_collection(ham[0], tmp_path, owner.url)
    assert downloaded(owner) == ["store/ISIC_0024306.JPG"]
    expected = [f"ISIC_{number:07d}.jpg" for number in DIAGNOSES if number <= 29305]
    assert sorted(path.name for path in truncated.parent.iterdir()) == sorted(expected)


@pytest.mark.parametrize("name", ["ham10000", "siim2020"])
@pytest.mark.parametrize("image", ["ISIC_0024306/../../../x", "../ISIC_0024307", "/tmp/x", "a\n"])
def test_an_id_that_would_leave_the_folder_is_refused(owner, tmp_path, name, image):
    owner.add_image(24306, diagnosis_3="Nevus", lesion_id="IL_24")
    owner.records[0]["isic_id"] = image
    table = "2020/ISIC_2020_Training_GroundTruth.csv"
    owner.files[table] = f'image_name,target\n"{image}",0\n'.encode()
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    with pytest.raises(DataError, match="the server sent an image with the id"):
        download_collection(resized(name, 1), folder, owner.url)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".csv"]


@pytest.mark.parametrize(
    "record",
    [
        {"isic_id": "ISIC_0024306"},
        {"isic_id": "ISIC_0024306", "files": None},
        {"isic_id": "ISIC_0024306", "files": {"full": {"size": 3, "url": 3}}},
        {"files": {"full": {"size": 3}}},
        ["ISIC_0024306"],
        None,
    ],
)
def test_a_record_of_another_form_is_one_error(owner, tmp_path, record):
    owner.records.append(record)
    with pytest.raises(DataError, match="is not in the format of the ISIC Archive"):
        download_collection(resized("ham10000", 1), tmp_path, owner.url)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_incomplete_archive_writes_no_table(owner, ham, tmp_path):
    with pytest.raises(DataError, match="8 of 10,015 images"):
        download_collection(COLLECTIONS["ham10000"], tmp_path, owner.url)
    owner.records[0]["metadata"]["clinical"]["diagnosis_3"] = "Scar"
    with pytest.raises(DataError, match=r"ISIC_0024306 .*Benign / Scar"):
        download_collection(ham[0], tmp_path, owner.url)
    assert not (tmp_path / "HAM10000_metadata.csv").exists()


def test_isic2019_is_read_by_its_source(owner, tmp_path):
    classes = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
    names = ["ISIC_0000002_downsampled", *(f"ISIC_{number:07d}" for number in range(24306, 24313))]
    marks = pd.DataFrame(np.eye(8, 9), columns=classes)
    marks.insert(0, "image", names)
    metadata = "image,age_approx,anatom_site_general,lesion_id,sex\nISIC_0024306,45,,HAM_1,male\n"
    owner.files["2019/ISIC_2019_Training_GroundTruth.csv"] = marks.to_csv(index=False).encode()
    owner.files["2019/ISIC_2019_Training_Metadata.csv"] = metadata.encode()
    bodies = [owner.add_image(number) for number in (2, *range(24306, 24313))]
    for _ in range(2):  # the second time everything is there
        download_collection(resized("isic2019", 8), tmp_path, owner.url)
    assert len(downloaded(owner)) == 8
    manifest = ISIC2019(tmp_path).manifest()
    frame = manifest.frame.set_index("image_id").loc[names]
    assert [manifest.classes[label].upper() for label in frame["label"]] == classes[:8]
    assert [Path(path).read_bytes() for path in frame["path"]] == bodies


def test_siim2020_is_read_by_its_source(owner, tmp_path):
    owner.files["2020/ISIC_2020_Training_GroundTruth.csv"] = (
        b"image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,"
        b"benign_malignant,target\n"
        b"ISIC_2637011,IP_1,male,45,head/neck,unknown,benign,0\n"
        b"ISIC_0015719,IP_2,,,,melanoma,malignant,1\n"
    )
    for number in (2637011, 15719):
        owner.add_image(number)
    download_collection(resized("siim2020", 2), tmp_path, owner.url)
    frame = SIIM2020(tmp_path).manifest().frame.set_index("image_id")
    assert frame["label"].to_dict() == {"ISIC_2637011": 0, "ISIC_0015719": 1}


def test_table_has_the_official_classes_and_columns(shared_data):
    assert set(HAM10000_DX.values()) == {"akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"}
    official = pd.read_csv(shared_data / "ham10000" / "HAM10000_metadata.csv", nrows=5)
    clinical = {"diagnosis_3": "Nevus", "lesion_id": "IL_1"}
    record = {"isic_id": "ISIC_0024306", "metadata": {"acquisition": {}, "clinical": clinical}}
    assert list(ham10000_table([record]).columns) == list(official.columns)


@pytest.mark.parametrize("name", [*COLLECTIONS, "dermamnist"])
def test_without_a_network_one_line_and_the_manual_steps(closed_port, tmp_path, name, capsys):
    root = tmp_path / "new"
    assert fetch.main([f"name={name}", f"root={root}", f"url={closed_port}"]) == 2
    error, manual = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert error.startswith("error: cannot ")
    assert "no connection" in error
    assert manual.startswith("By hand: from ")
    assert str(root) in manual
    assert not root.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name: which data set? ham10000, isic2019, siim2020, dermamnist"),
        (["name=ham1000"], f"name: must be one of {fetch.NAMES}, but got ham1000"),
        (["name=organmnist3d"], "name: must be one of"),
        (["name=dermamnist", "size=65"], "size: must be 28, 64, 128 or 224, but got 65"),
        (["ham10000"], "ham10000: must be name=, root=, size= or url="),
        (["name="], "name=: must be"),
        (["nmae=ham10000"], "nmae=ham10000: must be"),
        (["name=dermamnist", "root=file"], "file: cannot be written to"),
    ],
)
def test_invalid_arguments_are_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert fetch.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_help_of_the_command(capsys):
    assert fetch.main(["--help"]) == 0
    text = capsys.readouterr().out
    names = re.search(r"^name= +(.*), or ", text, re.M)[1].split(", ")
    assert names == [*COLLECTIONS, "dermamnist"]
    examples = set(re.findall(r"src\.data\.fetch name=(\w+)", text))
    assert examples
    assert examples <= set(names)
