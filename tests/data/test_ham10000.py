from pathlib import Path

import pandas as pd
import pytest

from src.core.errors import DataError
from src.data.ham10000 import CLASSES, HAM10000


def test_classes_groups_and_metadata(layout):
    source, root = layout("ham10000")
    for path in list((root / "HAM10000_images_part_2").iterdir())[:9]:  # either part has any image
        path.rename(root / "HAM10000_images_part_1" / path.name)
    manifest = source.manifest()
    table = pd.read_csv(root / "HAM10000_metadata.csv").sort_values("image_id", ignore_index=True)
    assert manifest.classes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert manifest.grouped_by == "lesion"
    assert [manifest.classes[label] for label in manifest.frame["label"]] == table["dx"].tolist()
    assert manifest.frame["group"].tolist() == table["lesion_id"].tolist()
    assert manifest.frame["age"].tolist() == table["age"].tolist()
    assert all(Path(path).is_file() for path in manifest.frame["path"])


def test_missing_lesion_is_named(layout):
    source, root = layout("ham10000")
    table = pd.read_csv(root / "HAM10000_metadata.csv")
    table.loc[0, "lesion_id"] = None
    table.to_csv(root / "HAM10000_metadata.csv", index=False)
    with pytest.raises(DataError, match="column 'lesion_id' is empty in line 2"):
        source.manifest()


def test_counts_of_the_real_set(shared_data):
    frame = HAM10000(shared_data / "ham10000").manifest().frame
    counts = dict(zip(CLASSES, frame["label"].value_counts().sort_index(), strict=True))
    assert len(frame) == 10_015
    assert list(counts.values()) == [327, 514, 1099, 115, 1113, 6705, 142]
    assert HAM10000.published == counts  # the complete set
    sizes = frame["group"].value_counts()
    assert (len(sizes), (sizes > 1).sum()) == (7470, 1956)
