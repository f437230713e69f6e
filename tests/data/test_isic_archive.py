import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.data.ham10000 import HAM10000
from src.data.isic2019 import ISIC2019
from src.data.fetch import COLLECTIONS
from src.data.fetch import HAM10000_DX
from src.data.fetch import ArchiveCollection
from src.data.fetch import fill
from src.data.fetch import ham10000_table
from src.data.siim2020 import SIIM2020
from src.core.errors import DataError
from src.core.errors import DependencyError

pytest.importorskip("isic_cli", reason="no isic-cli: the extra `fetch` is not installed")

# The archive's words for HAM10000's classes, one image each, and the class that is meant.
DIAGNOSES = {
    24306: ("nv", {"diagnosis_1": "Benign", "diagnosis_3": "Nevus", "diagnosis_confirm_type": "histopathology"}),
    24400: ("akiec", {"diagnosis_3": "Solar or actinic keratosis"}),
    24401: ("akiec", {"diagnosis_3": "Squamous cell carcinoma, NOS"}),
    24402: ("bcc", {"diagnosis_3": "Basal cell carcinoma"}),
    29305: ("bkl", {"diagnosis_3": "Pigmented benign keratosis"}),
    29306: ("df", {"diagnosis_3": "Dermatofibroma"}),
    29307: ("mel", {"diagnosis_2": "Malignant melanocytic proliferations", "diagnosis_3": "Melanoma, NOS"}),
    34320: ("vasc", {"diagnosis_2": "Benign soft tissue proliferations - Vascular", "diagnosis_3": "Hemangioma"}),
}


def resized(name: str, size: int) -> ArchiveCollection:
    return dataclasses.replace(COLLECTIONS[name], size=size)


@pytest.fixture
def ham(owner):
    """HAM10000 with one image of each diagnosis; gives the collection and the images' bytes."""
    bodies = []
    for number, (_, diagnosis) in DIAGNOSES.items():
        bodies.append(owner.add_image(number, **diagnosis, lesion_id=f"IL_{number // 1000}", age_approx=45))
    # of the test set of 2018: not in HAM10000
    owner.add_image(34500, diagnosis_3="Nevus", lesion_id="IL_34")
    return resized("ham10000", len(bodies)), bodies


def test_ham10000_is_read_by_its_source(owner, ham, tmp_path):
    collection, bodies = ham
    fill(collection, tmp_path, owner.url)
    manifest = HAM10000(tmp_path).manifest()
    frame = manifest.frame.sort_values("image_id")
    assert [manifest.classes[label] for label in frame["label"]] == [dx for dx, _ in DIAGNOSES.values()]
    assert frame["group"].tolist() == ["IL_24"] * 4 + ["IL_29"] * 3 + ["IL_34"]
    assert frame["dx_type"].iloc[0] == "histo"
    assert (frame["age"] == 45).all()
    assert [Path(path).read_bytes() for path in frame["path"]] == bodies
    assert [re.search(r"part_\d", path)[0] for path in frame["path"]] == ["part_1"] * 5 + ["part_2"] * 3


def test_images_that_are_there_are_not_fetched_again(owner, ham, tmp_path):
    fill(ham[0], tmp_path, owner.url)
    cut_short = tmp_path / "HAM10000_images_part_1" / "ISIC_0024306.jpg"
    cut_short.write_bytes(cut_short.read_bytes()[:100])
    (cut_short.parent / ".isic-partial.1.abc").write_bytes(b"left by a killed process")
    kept = [f"ISIC_{number:07d}.jpg" for number in DIAGNOSES if number <= 29305]
    owner.requests.clear()
    fill(ham[0], tmp_path, owner.url)
    assert [path for path, _ in owner.requests if path.startswith("store/")] == ["store/ISIC_0024306.JPG"]
    assert sorted(path.name for path in cut_short.parent.iterdir()) == sorted(kept)


@pytest.mark.usefixtures("ham")
def test_too_few_images_write_no_table(owner, tmp_path):
    with pytest.raises(DataError, match="8 of 10,015 images"):
        fill(COLLECTIONS["ham10000"], tmp_path, owner.url)
    assert not (tmp_path / "HAM10000_metadata.csv").exists()


def test_an_unknown_diagnosis_is_named(owner, ham, tmp_path):
    owner.records[0]["metadata"]["clinical"]["diagnosis_3"] = "Scar"
    with pytest.raises(DataError, match=r"ISIC_0024306 .*Benign / Scar"):
        fill(ham[0], tmp_path, owner.url)


def test_isic2019_is_read_by_its_source(owner, tmp_path):
    classes = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
    names = ["ISIC_0000002_downsampled", *(f"ISIC_{number:07d}" for number in range(24306, 24313))]
    marks = pd.DataFrame(np.eye(8, 9), columns=classes)
    marks.insert(0, "image", names)
    about = "image,age_approx,anatom_site_general,lesion_id,sex\nISIC_0024306,45,,HAM_1,male\n"
    owner.files["2019/ISIC_2019_Training_GroundTruth.csv"] = marks.to_csv(index=False).encode()
    owner.files["2019/ISIC_2019_Training_Metadata.csv"] = about.encode()
    bodies = [owner.add_image(number) for number in (2, *range(24306, 24313))]
    for _ in range(2):  # the second time all is there
        fill(resized("isic2019", 8), tmp_path, owner.url)
    assert sum(path.startswith("store/") for path, _ in owner.requests) == 8
    manifest = ISIC2019(tmp_path).manifest()
    frame = manifest.frame.set_index("image_id").loc[names]
    assert [manifest.classes[label].upper() for label in frame["label"]] == classes[:8]
    assert [Path(path).read_bytes() for path in frame["path"]] == bodies


def test_siim2020_is_read_by_its_source(owner, tmp_path):
    header = "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target"
    rows = ["ISIC_2637011,IP_1,male,45,head/neck,unknown,benign,0", "ISIC_0015719,IP_2,,,,melanoma,malignant,1"]
    owner.files["2020/ISIC_2020_Training_GroundTruth.csv"] = "\n".join([header, *rows]).encode()
    for number in (2637011, 15719):
        owner.add_image(number)
    fill(resized("siim2020", 2), tmp_path, owner.url)
    frame = SIIM2020(tmp_path).manifest().frame.set_index("image_id")
    assert frame["label"].to_dict() == {"ISIC_2637011": 0, "ISIC_0015719": 1}


def test_an_archive_that_is_not_there_is_named(nobody, tmp_path):
    with pytest.raises(DependencyError, match=r"cannot reach the ISIC Archive \(no connection\)"):
        fill(COLLECTIONS["siim2020"], tmp_path, nobody)
    assert list(tmp_path.iterdir()) == []


def test_published_classes_are_all_reached():
    assert set(HAM10000_DX.values()) == {"akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"}


def test_table_keeps_the_official_columns(shared_data):
    official = pd.read_csv(shared_data / "ham10000" / "HAM10000_metadata.csv", nrows=5)
    clinical = {"diagnosis_3": "Nevus", "lesion_id": "IL_1"}
    record = {"isic_id": "ISIC_0024306", "metadata": {"acquisition": {}, "clinical": clinical}}
    assert list(ham10000_table([record]).columns) == list(official.columns)
