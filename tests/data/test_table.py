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


def test_unknown_split_is_named(root):
    table = pd.read_csv(root / "images.csv").assign(fold="train")
    table.loc[1, "fold"] = "dev"
    table.to_csv(root / "images.csv", index=False)
    expected = r"images.csv: unknown split 'dev' of image pictures/IMG_0001.png in line 3;"
    with pytest.raises(DataError, match=expected):
        manifest(root, split_column="fold")


def test_classes_argument_sets_the_order_and_refuses_others(root):
    assert manifest(root, classes=["other", "nevus", "melanoma"]).frame["label"][0] == 2
    with pytest.raises(DataError, match="unknown label 'other' of image"):
        manifest(root, classes=["melanoma", "nevus"])
    with pytest.raises(DataError, match="no image of class wart"):
        manifest(root, classes=["melanoma", "nevus", "other", "wart"])


@pytest.mark.parametrize("classes", [["a"], ["a", "a"], []])
def test_invalid_classes(tmp_path, classes):
    with pytest.raises(ConfigError, match="classes: must be two or more different names"):
        CsvTable(tmp_path, csv="images.csv", classes=classes)
