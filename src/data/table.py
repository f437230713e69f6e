"""Any data set that a CSV file describes: path, label, and optionally group and split."""
from pathlib import Path
from src.core.errors import ConfigError
from src.data.source import Limit
from src.data.source import Manifest
from src.data.source import Source
from src.data.source import assemble
from src.data.source import check_splits
from src.data.source import class_order
from src.data.source import encode
from src.data.source import read_csv
from src.data.source import root_folder
import pandas as pd


_OURS = ("image_id", "label", "group", "path", "split")


class CsvTable(Source):
    """Images that a CSV file lists, a row each.

    The path as written is the image's id. Further columns are kept as metadata; one that is called
    like a column of the manifest (image_id, label, group, path, split) but was not chosen for it
    gets the suffix `_given`.

    Args:
        csv: The file; a relative path starts at `root`.
        root: The folder where relative image paths start.
        path_column: Column with the path of the image.
        label_column: Column with the class name.
        group_column: Column with the lesion or patient, whose images stay on one side of a split;
            an empty cell means a group of its own. None: every image is one.
        split_column: Column that says train, val or test, or None.
        classes: Class names in label order; None: those found, sorted.
        positive: The class that is looked for where there are two, which becomes label 1; None: the
            last one.
        limit: Take about so many images only.
    """

    name = "table"

    def __init__(
        self,
        csv: Path | str,
        root: Path | str,
        path_column: str = "path",
        label_column: str = "label",
        group_column: str | None = None,
        split_column: str | None = None,
        classes: list[str] | None = None,
        positive: str | None = None,
        limit: Limit = None,
    ) -> None:
        if classes is not None and len(set(classes)) < max(2, len(classes)):
            raise ConfigError("classes", f"must be two or more different names, but got {classes}")
        self.csv = csv
        self.root = root
        self.path_column = path_column
        self.label_column = label_column
        self.group_column = group_column
        self.split_column = split_column
        self.classes = classes
        self.positive = positive
        self.limit = limit

    def manifest(self) -> Manifest:
        """Read and check the list of images.

        Raises:
            ConfigError: `positive` is none of two classes.
            DataError: The folder, the file or a column is missing, or a row is not as it should be.
        """
        root = root_folder(self.root, "the table's images")
        path = root / Path(self.csv).expanduser()
        needed = [self.path_column, self.label_column, *filter(None, [self.split_column])]
        table = read_csv(path, [*needed, *filter(None, [self.group_column])], complete=needed)
        images, names = table[self.path_column], table[self.label_column]
        classes, positive = class_order(self.classes or sorted(names.unique()), self.positive, path)
        columns = {
            "image_id": images,
            "label": encode(names, classes, images, path),
            "group": table[self.group_column] if self.group_column else images,
            "path": [str(root / image) for image in images],
        }
        if self.split_column:
            check_splits(table[self.split_column], images, path)
            columns["split"] = table[self.split_column]
        chosen = [*needed, *filter(None, [self.group_column])]
        metadata = table.drop(columns=chosen).rename(columns={name: f"{name}_given" for name in _OURS})
        frame = pd.concat([pd.DataFrame(columns), metadata], axis=1)
        grouped_by = "group" if self.group_column else "image"
        return assemble(self.name, classes, frame, grouped_by, path, positive, self.limit)
