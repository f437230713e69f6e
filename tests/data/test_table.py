import pandas as pd
import pytest

from src.core.errors import ConfigError, DataError
from src.data.table import CsvTable


@pytest.fixture
def root(layout):
    return layout("table")[1]


def manifest(root, **options):
    return CsvTable(root, csv="images.csv", **options).manifest()


def test_groups_and_classes(root):
    grouped = manifest(root, group_column="lesion")
    assert grouped.classes == ("melanoma", "nevus", "other")
    assert grouped.grouped_by == "group"
    assert grouped.frame["image_id"][0] == "pictures/IMG_0000.png"
    assert grouped.frame["path"][0] == str(root / "pictures/IMG_0000.png")
    plain = manifest(root)
    assert plain.grouped_by == "image"
    assert plain.frame["group"].is_unique
    assert "lesion" in plain.frame
    frame = manifest(root, group_column="path").frame  # one column may have two roles
    assert frame["group"].tolist() == frame["image_id"].tolist()


def test_columns_may_have_any_name_and_others_are_kept(root, tmp_path):
    names = {"path": "file", "label": "diagnosis", "lesion": "patient"}
    table = pd.read_csv(root / "images.csv").rename(columns=names)
    table["file"] = f"{root}/" + table["file"]  # paths may be absolute
    table["split"] = ["train", "val", "test"] * 12
    table["label"] = "something else"
    table.to_csv(tmp_path / "elsewhere.csv", index=False)
    roles = {"path_column": "file", "label_column": "diagnosis", "group_column": "patient"}
    source = CsvTable(root, csv=tmp_path / "elsewhere.csv", **roles, split_column="split")
    frame = source.manifest().frame
    assert frame["path"].tolist() == table["file"].tolist()
    assert frame["split"].tolist() == table["split"].tolist()
    assert frame["group"].tolist() == table["patient"].tolist()
    assert set(frame["label_given"]) == {"something else"}
    assert source.picture(source.manifest(), 5).size == (20, 15)


@pytest.mark.parametrize("other", ["./{}", "pictures/../{}", "{root}/{}"])
def test_two_paths_of_one_file_are_one_image(root, other):
    table = pd.read_csv(root / "images.csv")
    again = table.tail(1).assign(path=other.format(table["path"].iloc[-1], root=root))
    pd.concat([table, again]).to_csv(root / "images.csv", index=False)
    expected = f"image {root}/pictures/IMG_0035.png is listed more than once"
    with pytest.raises(DataError, match=expected):
        manifest(root)


def test_unknown_splits_and_classes_are_named(root):
    assert manifest(root, classes=["other", "nevus", "melanoma"]).frame["label"][0] == 2
    table = pd.read_csv(root / "images.csv").assign(fold="train")
    table.loc[1, "fold"] = "dev"
    table.to_csv(root / "images.csv", index=False)
    for options, expected in (
        ({"classes": ["melanoma", "nevus"]}, "unknown label 'other' of image"),
        ({"classes": ["melanoma", "nevus", "other", "wart"]}, "no image of class wart"),
        (
            {"split_column": "fold"},
            "images.csv: unknown split 'dev' of image pictures/IMG_0001.png in line 3;",
        ),
    ):
        with pytest.raises(DataError, match=expected):
            manifest(root, **options)
    for classes in (["a"], ["a", "a"], []):
        with pytest.raises(ConfigError, match="classes: must be two or more different names"):
            CsvTable(root, csv="images.csv", classes=classes)
