import pandas as pd
from layouts import TRUTH_2018, rows_of  # of tests/data

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
