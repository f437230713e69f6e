"""Any data set with one folder per class."""

from dataclasses import dataclass

import pandas as pd

from src.core.errors import DataError
from src.data.source import FolderSource, Manifest, class_order, image_names


@dataclass(eq=False)
class ClassFolders(FolderSource):
    """Images in one folder per class, named like the class: `<root>/<class>/<image>`.

    Every image is a group, because a folder does not say which images show one lesion; use
    `src.data.table.CsvTable` if that is known. Hidden entries and other files are ignored.

    Attributes:
        positive: The class to detect if there are two: it becomes label 1. None: the last by name.
    """

    positive: str | None = None

    name = "folder"
    title = "the class folders"

    def manifest(self) -> Manifest:
        """List the images; the id of an image is `<class>/<file name>`."""
        root = self.folder()
        names = sorted(item.name for item in root.iterdir() if item.is_dir())
        names = [name for name in names if not name.startswith(".")]
        if not names:
            way = "set data.root= to a folder that has one for each class"
            raise DataError(f"has no class folders; {way}", root)
        classes = class_order(names, self.positive, root)
        rows = []
        for label, name in enumerate(classes):
            files = image_names(root / name)
            if not files:
                problem = "this class folder has no image; add some, or remove the folder"
                raise DataError(problem, root / name)
            rows += [(f"{name}/{file}", label, None, str(root / name / file)) for file in files]
        frame = pd.DataFrame(rows, columns=["image_id", "label", "group", "path"])
        return self.assemble(classes, frame, "image", root)
