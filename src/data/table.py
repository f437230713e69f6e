"""Any data set that a CSV file lists: path, label, and optionally group and split."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from src.core.errors import ConfigError
from src.data import source
from src.data.source import SPLITS, encode


@dataclass(eq=False)
class CsvTable(source.FolderSource):
    """Images that a CSV file lists, one row per image.

    The path as written is the image id. Other columns are kept as metadata; one whose name is a
    column of the manifest (image_id, label, group, path, split) gets the suffix `_given`. Relative
    image paths start at `root`.

    Attributes:
        group_column: Column with the lesion or patient, whose images stay on one side of a split;
            an empty cell makes the image a group of one. None: every image is a group.
        split_column: Column with train, val or test; None: there is no official split.
        classes: Class names in label order; None: the names in the file, sorted.
        positive: The class to detect if there are two: it becomes label 1. None: the last one.
    """

    csv: Path | str = field(kw_only=True)  # a relative path starts at `root`
    path_column: str = "path"
    label_column: str = "label"
    group_column: str | None = None
    split_column: str | None = None
    classes: list[str] | None = None
    positive: str | None = None

    name = "table"
    title = "the table's images"

    def __post_init__(self) -> None:
        names = self.classes
        if names is not None and len(set(names)) < max(2, len(names)):
            raise ConfigError("classes", f"must be two or more different names, but got {names}")

    def manifest(self) -> source.Manifest:
        """Read and check the list of images."""
        root = self.folder()
        path = root / Path(self.csv).expanduser()
        required = [self.path_column, self.label_column, *filter(None, [self.split_column])]
        used = [*required, *filter(None, [self.group_column])]
        table = source.read_csv(path, used, complete=required)
        images, names = table[self.path_column], table[self.label_column]
        source.refuse_repeated(images.map(lambda image: os.path.normpath(root / image)), path)
        classes = self.classes or sorted(names.unique())
        order = source.class_order(classes, self.positive, path)
        columns = {
            "image_id": images,
            "label": encode(names, order, images, path),
            "group": table[self.group_column] if self.group_column else images,
            "path": [str(root / image) for image in images],
        }
        if self.split_column:
            encode(table[self.split_column], SPLITS, images, path, "split")  # checks the names
            columns["split"] = table[self.split_column]
        renamed = {name: f"{name}_given" for name in source.MANIFEST_COLUMNS}
        metadata = table.drop(columns=used).rename(columns=renamed)
        frame = pd.concat([pd.DataFrame(columns), metadata], axis=1)
        return self.assemble(order, frame, "group" if self.group_column else "image", path)
