import pandas as pd
import pytest
from layouts import TRUTH_2019 as TRUTH  # of tests/data

from src.core.errors import DataError
from src.data.isic2019 import ISIC2019

METADATA = "ISIC_2019_Training_Metadata.csv"


def names_of(manifest) -> list[str]:
    return [manifest.classes[label] for label in manifest.frame["label"]]


def test_native_and_ham10000_classes(layout):
    source, root = layout("isic2019")
    native = source.manifest()
    assert native.classes == ("ak", "bcc", "bkl", "df", "mel", "nv", "scc", "vasc")
    assert names_of(native) == native.frame["original_label"].tolist()
    mapped = ISIC2019(root, classes="ham10000").manifest()
    assert mapped.classes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    as_akiec = {"ak": "akiec", "scc": "akiec"}
    originals = mapped.frame["original_label"]
    assert names_of(mapped) == originals.replace(as_akiec).tolist()
    assert set(originals) >= {"ak", "scc"}


def test_image_without_lesion_is_a_group_of_one(layout):
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
    (root / METADATA).unlink()
    manifest = source.manifest()
    assert manifest.grouped_by == "image"
    assert manifest.frame["group"].tolist() == manifest.frame["image_id"].tolist()


@pytest.mark.parametrize(
    ("columns", "values", "problem"),
    [
        (["AK", "UNK"], (0.0, 1.0), "unknown label 'UNK' of image IMG_0003 in line 5"),
        (["AK", "MEL"], (1.0, 1.0), "image IMG_0003 in line 5 must have 1 in one of"),
        (["AK", "MEL"], (0.0, 0.0), "image IMG_0003 in line 5 must have 1 in one of"),
        (["AK", "MEL"], (0.5, 0.5), "image IMG_0003 in line 5 must have 1 in one of"),
    ],
)
def test_invalid_row(layout, columns, values, problem):
    source, root = layout("isic2019")
    table = pd.read_csv(root / TRUTH)
    table.loc[3, columns] = values
    table.to_csv(root / TRUTH, index=False)
    with pytest.raises(DataError, match=f"{TRUTH}: {problem}"):
        source.manifest()


def test_counts_of_the_real_set(shared_data):
    root = shared_data / "isic2019_bcn"
    frame = ISIC2019(root).manifest().frame
    assert len(frame) == 12_381
    assert frame["group"].nunique() == 3574
    truth = pd.read_csv(root / TRUTH, index_col="image")
    expected = {name.lower(): int(count) for name, count in truth.sum().items() if count}
    assert frame["original_label"].value_counts().to_dict() == expected
    mapped = ISIC2019(root, classes="ham10000").manifest().frame
    assert (mapped["label"] == 0).sum() == expected["ak"] + expected["scc"]


def test_counts_of_the_complete_set():
    native, mapped = (ISIC2019("", classes=classes).published for classes in ("native", "ham10000"))
    assert sum(native.values()) == sum(mapped.values()) == 25_331  # the owners' page
    assert mapped["akiec"] == 867 + 628
