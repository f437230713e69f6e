import shutil

import pytest

from src.core.errors import DataError
from src.data.folder import ClassFolders


def test_folders_are_classes(layout):
    source, root = layout("folder")
    (root / "benign" / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    (root / "readme.md").write_text("no class")
    manifest = source.manifest()
    assert manifest.classes == ("benign", "malignant")
    assert manifest.grouped_by == "image"
    assert manifest.frame["image_id"][0] == "benign/IMG_0000.JPG"
    assert manifest.frame["label"].tolist() == [0] * 12 + [1] * 12
    manifest = ClassFolders(root, positive="benign").manifest()
    assert manifest.classes == ("malignant", "benign")
    assert manifest.frame["label"].tolist() == [1] * 12 + [0] * 12


def test_invalid_folders(layout):
    source, root = layout("folder")
    (root / "benign").rename(root / "naïve: é黑")
    assert "naïve: é黑" in source.manifest().classes
    (root / "naïve: é黑").rename(root / "a@b")
    problem = r"folder: the names of its classes must be made of letters.* but got 'a@b'"
    with pytest.raises(DataError, match=problem):  # which no metric can have
        source.manifest()
    (root / "other").mkdir()
    with pytest.raises(DataError, match="folder/other: this class folder has no image"):
        source.manifest()
    (root / "other").rmdir()
    shutil.rmtree(root / "a@b")
    with pytest.raises(DataError, match="only one class, malignant"):
        source.manifest()
    shutil.rmtree(root / "malignant")
    with pytest.raises(DataError, match="has no class folders"):
        source.manifest()
