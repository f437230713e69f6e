import pandas as pd
import pytest
from conftest import TRUTH_2018, rows_of  # of tests/data

from src.core.errors import DataError
from src.data.ham10000 import CLASSES


def test_official_layout_with_the_table_inside_or_outside_its_folder(layout):
    source, root = layout("isic2018")
    manifest = source.manifest()
    assert manifest.classes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert manifest.grouped_by == "image"
    assert manifest.frame["image_id"].tolist() == rows_of(CLASSES)["image"].tolist()
    names = [manifest.classes[label] for label in manifest.frame["label"]]
    assert names == rows_of(CLASSES)["name"].tolist()
    folder = root / TRUTH_2018.removesuffix(".csv")
    folder.mkdir()
    (root / TRUTH_2018).rename(folder / TRUTH_2018)
    pd.testing.assert_frame_equal(source.manifest().frame, manifest.frame)


def test_invalid_layout(layout):
    source, root = layout("isic2018")
    table = pd.read_csv(root / TRUTH_2018)
    table.assign(NV=1.0).to_csv(root / TRUTH_2018, index=False)
    expected = f"{TRUTH_2018}: image IMG_0000 in line 2 must have 1 in one of the columns"
    with pytest.raises(DataError, match=expected):
        source.manifest()
    (root / "ISIC2018_Task3_Test_Input").rename(root / "x")
    with pytest.raises(DataError, match="Test_Input: this folder is missing"):
        source.manifest()
