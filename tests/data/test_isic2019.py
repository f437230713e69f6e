import pandas as pd
import pytest

from src.data.isic2019 import ISIC2019
from src.core.errors import DataError

TRUTH = "ISIC_2019_Training_GroundTruth.csv"
METADATA = "ISIC_2019_Training_Metadata.csv"


def test_native_classes(layout):
    source, _ = layout("isic2019")
    manifest = source.manifest()
    assert manifest.classes == ("ak", "bcc", "bkl", "df", "mel", "nv", "scc", "vasc")
    assert [manifest.classes[label] for label in manifest.frame["label"]] == manifest.frame["original_label"].tolist()


def test_ham10000_classes_keep_the_original_label(layout):
    _, root = layout("isic2019")
    manifest = ISIC2019(root, classes="ham10000").manifest()
    frame = manifest.frame
    assert manifest.classes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    akiec = frame.loc[frame["label"] == 0, "original_label"]
    assert sorted(set(akiec)) == ["ak", "scc"]
    others = frame[frame["label"] > 0]
    assert [manifest.classes[label] for label in others["label"]] == others["original_label"].tolist()


def test_image_without_lesion_is_a_group_of_its_own(layout):
    source, root = layout("isic2019")
    table = pd.read_csv(root / METADATA)
    table.loc[0, "lesion_id"] = None
    table.drop(index=1).to_csv(root / METADATA, index=False)
    manifest = source.manifest()
    groups = manifest.frame.set_index("image_id")["group"]
    assert manifest.grouped_by == "lesion"
    assert groups[table["image"][0]] == table["image"][0]
    assert groups[table["image"][1]] == table["image"][1]
    assert groups[table["image"][2]] == groups[table["image"][3]] == table["lesion_id"][2]


def test_without_metadata_every_image_is_a_group(layout):
    source, root = layout("isic2019")
    (root / METADATA).unlink()
    manifest = source.manifest()
    assert manifest.grouped_by == "image"
    assert manifest.frame["group"].tolist() == manifest.frame["image_id"].tolist()


def test_unk_is_an_unknown_label(layout):
    source, root = layout("isic2019")
    table = pd.read_csv(root / TRUTH)
    table.loc[3, ["AK", "UNK"]] = [0.0, 1.0]
    table.to_csv(root / TRUTH, index=False)
    with pytest.raises(DataError, match=f"{TRUTH}: unknown label 'UNK' of image {table['image'][3]} in line 5"):
        source.manifest()


@pytest.mark.parametrize("values", [(1.0, 1.0), (0.0, 0.0), (0.5, 0.5)])
def test_row_that_is_not_one_hot(layout, values):
    source, root = layout("isic2019")
    table = pd.read_csv(root / TRUTH)
    table.loc[2, ["AK", "MEL"]] = values
    table.to_csv(root / TRUTH, index=False)
    with pytest.raises(DataError, match=f"{TRUTH}: image {table['image'][2]} in line 4 must have 1 in one of"):
        source.manifest()


def test_real_counts(shared_data):
    frame = ISIC2019(shared_data / "isic2019_bcn").manifest().frame
    assert len(frame) == 12_381
    assert frame["group"].nunique() == 3574
    truth = pd.read_csv(shared_data / "isic2019_bcn" / TRUTH, index_col="image")
    expected = {name.lower(): int(count) for name, count in truth.sum().items() if count}
    assert frame["original_label"].value_counts().to_dict() == expected
    as_ham = ISIC2019(shared_data / "isic2019_bcn", classes="ham10000").manifest().frame
    assert (as_ham["label"] == 0).sum() == expected["ak"] + expected["scc"]
