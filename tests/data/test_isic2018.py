from pathlib import Path

import pandas as pd
import pytest
from conftest import listed, write_picture  # of tests/data

from src.data.ham10000 import CLASSES
from src.data.isic2018 import ISIC2018
from src.core.errors import DataError

TRUTH = "ISIC2018_Task3_Test_GroundTruth.csv"
ORDER = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]  # of the official file


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """The official layout; gives its root."""
    rows = listed(CLASSES)
    for number, image in enumerate(rows["image"]):
        write_picture(tmp_path / "ISIC2018_Task3_Test_Input" / f"{image}.jpg", number)
    marks = {name: (rows["name"].str.upper() == name).astype(float) for name in ORDER}
    pd.DataFrame({"image": rows["image"], **marks}).to_csv(tmp_path / TRUTH, index=False)
    return tmp_path


def test_reads_the_official_layout(official: Path) -> None:
    manifest = ISIC2018(official).manifest()
    assert manifest.classes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert manifest.grouped_by == "image"
    assert manifest.frame["image_id"].tolist() == listed(CLASSES)["image"].tolist()
    assert [manifest.classes[label] for label in manifest.frame["label"]] == listed(CLASSES)["name"].tolist()
    assert manifest.frame["group"].tolist() == manifest.frame["image_id"].tolist()
    assert all(Path(path).is_file() for path in manifest.frame["path"])


def test_the_table_may_lie_in_a_folder_of_its_own_name(official: Path) -> None:
    expected = ISIC2018(official).manifest().frame
    folder = official / Path(TRUTH).stem
    folder.mkdir()
    (official / TRUTH).rename(folder / TRUTH)
    pd.testing.assert_frame_equal(ISIC2018(official).manifest().frame, expected)


def test_limit_takes_a_part_with_every_class(official: Path) -> None:
    frame = ISIC2018(official, limit=28).manifest().frame
    assert 7 <= len(frame) <= 35
    assert set(frame["label"]) == set(range(7))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / TRUTH).unlink(), f"{TRUTH}: this file is missing"),
        (lambda root: (root / "ISIC2018_Task3_Test_Input").rename(root / "x"), "Test_Input: this folder is missing"),
        (
            lambda root: pd.read_csv(root / TRUTH).drop(columns="AKIEC").to_csv(root / TRUTH, index=False),
            "has no column 'AKIEC'",
        ),
        (
            lambda root: pd.read_csv(root / TRUTH).assign(NV=1.0).to_csv(root / TRUTH, index=False),
            f"{TRUTH}: image IMG_0000 in line 2 must have 1 in one of the columns",
        ),
    ],
)
def test_what_is_not_as_it_should_be_is_told(official: Path, spoil, message: str) -> None:
    spoil(official)
    with pytest.raises(DataError, match=message):
        ISIC2018(official).manifest()


def test_a_missing_root_names_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder of ISIC 2018 is not there; set data.root=<folder>"):
        ISIC2018(tmp_path / "nosuch").manifest()
