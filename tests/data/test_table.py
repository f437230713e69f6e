import pandas as pd
import pytest

from src.core.errors import ConfigError, DataError
from src.data.table import CsvTable


def test_groups_and_classes(layout):
    source, root = layout("table")
    manifest = source.manifest()
    assert manifest.classes == ("melanoma", "nevus", "other")
    assert manifest.grouped_by == "group"
    assert manifest.frame["image_id"][0] == "pictures/IMG_0000.png"
    assert manifest.frame["path"][0] == str(root / "pictures/IMG_0000.png")
    manifest = CsvTable(root, csv="images.csv").manifest()
    assert manifest.grouped_by == "image"
    assert manifest.frame["group"].is_unique
    assert "lesion" in manifest.frame


def test_columns_may_have_any_name_and_others_are_kept(layout, tmp_path):
    _, root = layout("table")
    names = {"path": "file", "label": "diagnosis", "lesion": "patient"}
    table = pd.read_csv(root / "images.csv").rename(columns=names)
    table["split"] = ["train", "val", "test"] * 12
    table["label"] = "something else"
    table.to_csv(tmp_path / "elsewhere.csv", index=False)
    columns = {
        f"{role}_column": name
        for role, name in zip(("path", "label", "group"), names.values(), strict=True)
    }
    source = CsvTable(root, csv=tmp_path / "elsewhere.csv", **columns, split_column="split")
    frame = source.manifest().frame
    assert frame["split"].tolist() == table["split"].tolist()
    assert frame["group"].tolist() == table["patient"].tolist()
    assert set(frame["label_given"]) == {"something else"}
    assert source.picture(source.manifest(), 5).size == (20, 15)


def test_one_column_may_have_two_roles(layout):
    _, root = layout("table")
    frame = CsvTable(root, csv="images.csv", group_column="path").manifest().frame
    assert frame["group"].tolist() == frame["image_id"].tolist()


def test_paths_may_be_absolute(layout):
    _, root = layout("table")
    table = pd.read_csv(root / "images.csv")
    table["path"] = f"{root}/" + table["path"]
    table.to_csv(root / "images.csv", index=False)
    frame = CsvTable(root, csv="images.csv").manifest().frame
    assert frame["path"].tolist() == table["path"].tolist()


def test_unknown_split_is_named(layout):
    _, root = layout("table")
    table = pd.read_csv(root / "images.csv").assign(fold="train")
    table.loc[1, "fold"] = "dev"
    table.to_csv(root / "images.csv", index=False)
    expected = r"images.csv: unknown split 'dev' of image pictures/IMG_0001.png in line 3;"
    with pytest.raises(DataError, match=expected):
        CsvTable(root, csv="images.csv", split_column="fold").manifest()


def test_classes_argument_sets_the_order_and_refuses_others(layout):
    _, root = layout("table")

    def frame(classes: list[str]) -> pd.DataFrame:
        return CsvTable(root, csv="images.csv", classes=classes).manifest().frame

    assert frame(["other", "nevus", "melanoma"])["label"][0] == 2
    with pytest.raises(DataError, match="unknown label 'other' of image"):
        frame(["melanoma", "nevus"])
    with pytest.raises(DataError, match="no image of class wart"):
        frame(["melanoma", "nevus", "other", "wart"])


@pytest.mark.parametrize("classes", [["a"], ["a", "a"], []])
def test_invalid_classes(tmp_path, classes):
    with pytest.raises(ConfigError, match="classes: must be two or more different names"):
        CsvTable(tmp_path, csv="images.csv", classes=classes)
