"""The contract of a data source, and the errors of listings."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class
from layouts import LAYOUTS, TRUTH_2018, TRUTH_2019  # of tests/data

from src.core.config import check, resolve
from src.core.errors import ConfigError, DataError
from src.data import source as sources
from src.data.folder import ClassFolders
from src.data.ham10000 import HAM10000
from src.data.siim2020 import SIIM2020
from src.data.source import SPLITS, Source, class_order, read_csv, subset
from src.data.table import CsvTable

CONF = Path(__file__).resolve().parents[2] / "conf"
CONFIGS = sorted(file.stem for file in (CONF / "data").glob("[!_]*.yaml"))
# file with the list, column of the image, column of the label, folder of images
LISTS = {
    "ham10000": ("HAM10000_metadata.csv", "image_id", "dx", "HAM10000_images_part_2"),
    "isic2018": (TRUTH_2018, "image", "DF", "ISIC2018_Task3_Test_Input"),
    "isic2019": (TRUTH_2019, "image", "SCC", "ISIC_2019_Training_Input"),
    "siim2020": ("train.csv", "image_name", "target", "jpeg/train"),
    "table": ("images.csv", "path", "label", None),  # which names the path of each image
}
every_list = pytest.mark.parametrize("name", LISTS)


@pytest.mark.parametrize("config", CONFIGS)
def test_config_names_a_source_and_its_arguments(config: str) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(f"data/{config}", overrides=["+model.image_size=64"])
    source = resolve(composed)["data"]["source"]
    check(source, "data.source")
    kind = get_class(source["_target_"])
    assert issubclass(kind, Source)
    assert kind.name
    assert isinstance(kind.licence_of(source), str)


@pytest.mark.parametrize("name", LAYOUTS)
def test_source_keeps_the_contract(layout, tmp_path, name):
    source, root = layout(name)
    manifest = source.manifest()
    frame = manifest.frame
    assert isinstance(frame.index, pd.RangeIndex)
    assert frame["image_id"].is_unique
    assert frame["image_id"].is_monotonic_increasing
    assert frame["label"].dtype == np.int64
    assert set(frame["label"]) == set(range(len(manifest.classes)))
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in frame["path"])
    assert "split" not in frame or set(frame["split"]) <= set(SPLITS)
    sizes = frame["group"].value_counts()
    assert sizes.sum() == len(frame)
    assert (sizes == (1 if manifest.grouped_by == "image" else 2)).all()
    assert source.picture(manifest, 0).mode == "RGB"
    stamps = source.stamps(manifest)
    assert len(stamps) == len(frame)
    assert "absent" not in stamps
    # The order of the rows does not depend on the file.
    for path in root.glob("*.csv"):
        pd.read_csv(path).sample(frac=1, random_state=0).to_csv(path, index=False)
    pd.testing.assert_frame_equal(source.manifest().frame, frame)
    # A limit keeps complete groups of every class, always the same.
    if name != "joined":  # a limit is a source's
        source.limit = 1
        few = source.manifest().frame
        assert set(few["label"]) == set(frame["label"])
        assert len(few) < len(frame)
        kept = frame[frame["group"].isin(few["group"])].reset_index(drop=True)
        pd.testing.assert_frame_equal(few, kept)
        pd.testing.assert_frame_equal(source.manifest().frame, few)
    # A missing root names the alternatives.
    root.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=rf"^{root}: .*data\.root=") as caught:
        source.manifest()
    assert "\n" not in str(caught.value)
    if name in ("ham10000", "isic2018", "isic2019", "siim2020"):
        assert f"{name.upper()}_DIR" in str(caught.value)


@every_list
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda table, label: table.drop(columns=label), "has no column '{label}', only .*"),
        (lambda table, label: table.iloc[:0], "lists no image"),
        (lambda table, label: None, "is empty"),
        (
            lambda table, label: table.assign(**{label: table[label].drop([3, 5])}),
            r"column '{label}' is empty in line 5 \(and 1 more\)",
        ),
        (
            lambda table, label: pd.concat([table, table.iloc[[7]]]),
            "image .*IMG_0007.* is listed more than once",
        ),
    ],
)
def test_invalid_list(layout, name, change, problem):
    source, root = layout(name)
    file, _, label, _ = LISTS[name]
    changed = change(pd.read_csv(root / file, dtype=str), label)
    (root / file).write_text("" if changed is None else changed.to_csv(index=False))
    with pytest.raises(DataError, match=f"{file}: .*{problem.format(label=label)}"):
        source.manifest()


@every_list
def test_absent_image_is_reported_by_the_cache_and_absent_folder_and_list_here(layout, name):
    source, root = layout(name)
    file, _, _, folder = LISTS[name]
    before = source.manifest().frame
    Path(before["path"][2]).unlink()
    after = source.manifest()
    assert after.frame["image_id"].tolist() == before["image_id"].tolist()
    assert Path(after.frame["path"][2]).stem == Path(before["path"][2]).stem
    assert source.stamps(after)[2] == "absent"
    (root / file).rename(root / "moved")
    with pytest.raises(DataError, match=f"{file}: this file is missing.*data.root="):
        source.manifest()
    (root / "moved").rename(root / file)
    if folder is not None:
        shutil.rmtree(root / folder)
        with pytest.raises(DataError, match=f"{folder}: this folder is missing.*data.root"):
            source.manifest()


@pytest.mark.parametrize(
    ("name", "unknown", "removed", "removed_name"),
    [("ham10000", "mole", "df", "df"), ("siim2020", "2", "1", "malignant")],
)
def test_unknown_label_and_class_without_images_are_named(
    layout, name, unknown, removed, removed_name
):
    source, root = layout(name)
    file, image, column, _ = LISTS[name]
    table = pd.read_csv(root / file, dtype=str)
    table[table[column] != removed].to_csv(root / file, index=False)
    with pytest.raises(DataError, match=f"{file}: no image of class {removed_name};"):
        source.manifest()
    table.loc[4, column] = unknown
    table.to_csv(root / file, index=False)
    expected = f"{file}: unknown label '{unknown}' of image {table[image][4]} in line 6;"
    with pytest.raises(DataError, match=expected):
        source.manifest()


def test_csv_of_any_style_and_a_file_that_is_no_table(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes("\ufeffimage,label,age\n 001 , mel ,3\n\n002,NA,\n\n".encode())
    frame = read_csv(path, ["image", "label"])
    assert frame["image"].tolist() == ["001", "002"]
    assert frame["label"].tolist() == ["mel", "NA"]
    assert frame.index.tolist() == [0, 2]  # lines 2 and 4
    assert np.isnan(frame["age"].iloc[1])
    for content in (b"image,label\n\xff\xfe,mel\n", b'image,label\n"a,mel\n'):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as a comma-separated table") as caught:
            read_csv(path, ["image", "label"])
        assert "\n" not in str(caught.value)


def test_class_order_puts_the_positive_class_last(tmp_path):
    assert class_order(["ill", "well"], "ill", tmp_path) == ("well", "ill")
    assert class_order(["ill", "well"], None, tmp_path) == ("ill", "well")
    assert class_order(["a", "b", "c"], None, tmp_path) == ("a", "b", "c")
    with pytest.raises(ConfigError, match="data.source.positive: must be one of ill, well, but"):
        class_order(["ill", "well"], "sick", tmp_path)
    with pytest.raises(ConfigError, match="must be null, because there are 3 classes, but got a"):
        class_order(["a", "b", "c"], "a", tmp_path)
    with pytest.raises(DataError, match="only one class, a"):
        class_order(["a"], None, tmp_path)


def test_images_are_searched_by_stem_in_each_folder(tmp_path):
    for name in ("one/a.jpg", "one/b.JPEG", "two/b.png", "two/c.png", "two/c.txt", "two/.d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    one, two = tmp_path / "one", tmp_path / "two"
    assert sources.image_names(two) == ["b.png", "c.png"]
    expected = [f"{one}/a.jpg", f"{one}/b.JPEG", f"{two}/c.png", f"{one}/x.jpg"]
    assert sources.image_paths(["a", "b", "c", "x"], [one, two]) == expected


@pytest.mark.parametrize(("kind", "limit", "slack"), [(HAM10000, 2000, 20), (SIIM2020, 500, 60)])
def test_subset_of_real_data_keeps_groups_and_shares(shared_data, kind, limit, slack):
    manifest = kind(shared_data / kind.name).manifest()
    few = subset(manifest, limit).frame
    assert abs(len(few) - limit) <= slack
    complete = manifest.frame["group"].value_counts()
    groups = set(few["group"])
    assert few["group"].value_counts().to_dict() == {group: complete[group] for group in groups}
    if kind is HAM10000:
        shares = manifest.frame["label"].value_counts(normalize=True).sort_index()
        subset_shares = few["label"].value_counts(normalize=True).sort_index()
        assert np.abs(subset_shares - shares).max() < 0.005
    assert subset(manifest, len(manifest.frame)) is manifest


def test_root_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file, not a folder"):
        ClassFolders(tmp_path / "file").manifest()
    with pytest.raises(DataError, match="the table's images is not there"):
        CsvTable(tmp_path / "absent", csv="images.csv").manifest()
