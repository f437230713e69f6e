"""What holds for every source that reads files, and what reading a list refuses."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.data.folder import ClassFolders
from src.data.ham10000 import HAM10000
from src.data.isic2019 import ISIC2019
from src.data.source import class_order
from src.data.source import encode
from src.data.source import image_names
from src.data.source import image_paths
from src.data.source import read_csv
from src.data.medmnist import MedMNIST
from src.data.siim2020 import SIIM2020
from src.data.source import SPLITS
from src.data.table import CsvTable
from src.core.errors import ConfigError
from src.core.errors import DataError

NAMES = ["ham10000", "isic2019", "siim2020", "medmnist", "table", "folder"]
FACTORIES = {
    "ham10000": HAM10000,
    "isic2019": ISIC2019,
    "siim2020": SIIM2020,
    "medmnist": MedMNIST,
    "table": lambda root, **more: CsvTable("images.csv", root, group_column="lesion", **more),
    "folder": ClassFolders,
}


@pytest.mark.parametrize("name", NAMES)
def test_manifest_keeps_the_contract(layout, name):
    source, _ = layout(name)
    manifest = source.manifest()
    frame = manifest.frame
    assert isinstance(frame.index, pd.RangeIndex)
    assert frame["image_id"].is_unique
    assert frame["image_id"].is_monotonic_increasing
    assert frame["label"].dtype == np.int64
    assert set(frame["label"]) == set(range(len(manifest.classes)))
    assert frame["group"].notna().all()
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in frame["path"])
    assert (manifest.positive is None) == (len(manifest.classes) != 2)
    assert manifest.positive in (None, manifest.classes[-1])
    if "split" in frame:
        assert set(frame["split"]) <= set(SPLITS)
    if manifest.grouped_by == "image":
        assert frame["group"].is_unique
    else:
        assert (frame["group"].value_counts() == 2).all()


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_rgb_and_stamped(layout, name):
    source, _ = layout(name)
    manifest = source.manifest()
    assert source.picture(manifest, 0).mode == "RGB"
    stamps = source.stamps(manifest)
    assert len(stamps) == len(manifest.frame)
    assert "absent" not in stamps


@pytest.mark.parametrize("name", NAMES)
def test_order_of_rows_does_not_depend_on_the_file(layout, name):
    source, root = layout(name)
    before = source.manifest().frame
    for path in root.glob("*.csv"):
        pd.read_csv(path).sample(frac=1, random_state=0).to_csv(path, index=False)
    pd.testing.assert_frame_equal(source.manifest().frame, before)


@pytest.mark.parametrize("name", NAMES)
def test_missing_root_names_the_ways_out(tmp_path, name):
    root = tmp_path / "nowhere"
    with pytest.raises(DataError) as caught:
        FACTORIES[name](root).manifest()
    message = str(caught.value)
    assert message.startswith(f"{root}: ")
    assert "data.root=" in message
    assert "\n" not in message
    if name in ("ham10000", "isic2019", "siim2020"):
        assert f"{name.upper()}_DIR" in message


@pytest.mark.parametrize("name", NAMES)
def test_limit_takes_whole_groups_of_every_class(layout, name):
    source, root = layout(name)
    whole = source.manifest().frame
    few = FACTORIES[name](root, limit=1).manifest()
    assert set(few.frame["label"]) == set(range(len(few.classes)))
    assert len(few.frame) < len(whole)
    kept = whole[whole["group"].isin(few.frame["group"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(few.frame, kept)
    pd.testing.assert_frame_equal(FACTORIES[name](root, limit=1).manifest().frame, few.frame)


LISTS = {
    "ham10000": ("HAM10000_metadata.csv", "image_id", "dx"),
    "isic2019": ("ISIC_2019_Training_GroundTruth.csv", "image", "SCC"),
    "siim2020": ("train.csv", "image_name", "target"),
    "table": ("images.csv", "path", "label"),
}


@pytest.mark.parametrize("name", LISTS)
def test_missing_column_is_named_with_those_present(layout, name):
    source, root = layout(name)
    file, image, label = LISTS[name]
    pd.read_csv(root / file).drop(columns=label).to_csv(root / file, index=False)
    with pytest.raises(DataError, match=rf"{file}: has no column '{label}', only .*{image}"):
        source.manifest()


@pytest.mark.parametrize("name", LISTS)
def test_missing_list_is_named(layout, name):
    source, root = layout(name)
    (root / LISTS[name][0]).unlink()
    with pytest.raises(DataError, match=f"{LISTS[name][0]}: this file is missing.*data.root="):
        source.manifest()


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize(("keep", "problem"), [("", "is empty"), ("header", "lists no image")])
def test_empty_list(layout, name, keep, problem):
    source, root = layout(name)
    path = root / LISTS[name][0]
    path.write_text(path.read_text().split("\n")[0] + "\n" if keep else "")
    with pytest.raises(DataError, match=f"{path.name}: .*{problem}"):
        source.manifest()


@pytest.mark.parametrize("name", LISTS)
def test_empty_label_is_named_by_line(layout, name):
    source, root = layout(name)
    file, _, label = LISTS[name]
    table = pd.read_csv(root / file, dtype=str)
    table.loc[[3, 5], label] = None
    table.to_csv(root / file, index=False)
    with pytest.raises(DataError, match=rf"{file}: column '{label}' is empty in line 5 \(and 1 more\)"):
        source.manifest()


@pytest.mark.parametrize("name", LISTS)
def test_image_listed_twice_is_named(layout, name):
    source, root = layout(name)
    file, image, _ = LISTS[name]
    table = pd.read_csv(root / file, dtype=str)
    pd.concat([table, table.iloc[[7]]]).to_csv(root / file, index=False)
    with pytest.raises(DataError, match=f"{file}: image {table[image][7]} is listed more than once"):
        source.manifest()


@pytest.mark.parametrize(("name", "label"), [("ham10000", "mole"), ("siim2020", "2")])
def test_unknown_label_is_named_with_its_image(layout, name, label):
    source, root = layout(name)
    file, image, column = LISTS[name]
    table = pd.read_csv(root / file, dtype=str)
    table.loc[4, column] = label
    table.to_csv(root / file, index=False)
    with pytest.raises(DataError, match=f"{file}: unknown label '{label}' of image {table[image][4]} in line 6;"):
        source.manifest()


@pytest.mark.parametrize(("name", "gone"), [("ham10000", "df"), ("siim2020", "1")])
def test_class_without_images_is_named(layout, name, gone):
    source, root = layout(name)
    file, _, column = LISTS[name]
    table = pd.read_csv(root / file, dtype=str)
    table[table[column] != gone].to_csv(root / file, index=False)
    expected = {"df": "df", "1": "malignant"}[gone]
    with pytest.raises(DataError, match=f"{file}: no image of class {expected};"):
        source.manifest()


@pytest.mark.parametrize("name", ["ham10000", "siim2020", "table", "isic2019"])
def test_listed_but_absent_image_is_left_to_the_cache(layout, name):
    source, _ = layout(name)
    before = source.manifest().frame
    Path(before["path"][2]).unlink()
    after = source.manifest()
    assert after.frame["image_id"].tolist() == before["image_id"].tolist()
    assert Path(after.frame["path"][2]).stem == Path(before["path"][2]).stem
    assert source.stamps(after)[2] == "absent"


def test_csv_with_byte_order_mark_blank_lines_and_spaces(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes("\ufeffimage,label,age\n 001 , mel ,3\n\n002,NA,\n\n".encode())
    frame = read_csv(path, ["image", "label"])
    assert frame["image"].tolist() == ["001", "002"]
    assert frame["label"].tolist() == ["mel", "NA"]
    assert frame.index.tolist() == [0, 2]  # lines 2 and 4
    assert np.isnan(frame["age"].iloc[1])


@pytest.mark.parametrize("content", [b"image,label\n\xff\xfe,mel\n", b'image,label\n"a,mel\n'])
def test_what_is_no_table_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as a comma-separated table") as caught:
        read_csv(path, ["image", "label"])
    assert "\n" not in str(caught.value)


def test_encode_follows_the_order_of_the_classes(tmp_path):
    names = pd.Series(["b", "a", "b"])
    assert encode(names, ("b", "a"), names, tmp_path).tolist() == [0, 1, 0]


def test_class_order_puts_the_wanted_class_last(tmp_path):
    assert class_order(["ill", "well"], "ill", tmp_path) == (("well", "ill"), "ill")
    assert class_order(["ill", "well"], None, tmp_path) == (("ill", "well"), "well")
    assert class_order(["a", "b", "c"], None, tmp_path) == (("a", "b", "c"), None)
    with pytest.raises(ConfigError, match="data.source.positive: must be one of ill, well, but got sick"):
        class_order(["ill", "well"], "sick", tmp_path)
    with pytest.raises(ConfigError, match="must be null, because there are 3 classes, but got a"):
        class_order(["a", "b", "c"], "a", tmp_path)
    with pytest.raises(DataError, match="only one class, a"):
        class_order(["a"], None, tmp_path)


def test_images_are_found_by_stem_in_the_first_folder_that_has_them(tmp_path):
    for name in ("one/a.jpg", "one/b.JPEG", "two/b.png", "two/c.png", "two/c.txt", "two/.d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    one, two = tmp_path / "one", tmp_path / "two"
    assert image_names(two) == ["b.png", "c.png"]
    expected = [f"{one}/a.jpg", f"{one}/b.JPEG", f"{two}/c.png", f"{one}/x.jpg"]
    assert image_paths(["a", "b", "c", "x"], [one, two]) == expected
