"""Any data set that is kept as a folder per class."""
from pathlib import Path
from src.core.errors import DataError
from src.data.source import Limit
from src.data.source import Manifest
from src.data.source import Source
from src.data.source import assemble
from src.data.source import class_order
from src.data.source import image_names
from src.data.source import root_folder
import pandas as pd


class ClassFolders(Source):
    """Images in a folder per class, whose name is the class: `<root>/<class>/<image>`.

    Which images show one lesion or patient is not known, so each is a group of its own: use `Table`
    where it is known. Hidden folders, hidden files and files without an image's suffix are left
    out.

    Args:
        root: The folder that holds the class folders.
        positive: The class that is looked for where there are two, which becomes label 1; None: the
            last one by name.
        limit: Take about so many images only.
    """

    name = "folder"

    def __init__(self, root: Path | str, positive: str | None = None, limit: Limit = None) -> None:
        self.root = root
        self.positive = positive
        self.limit = limit

    def manifest(self) -> Manifest:
        """List the images; an image's id is `<class>/<file name>`.

        Raises:
            ConfigError: `positive` is none of two classes.
            DataError: The folder is missing, there are not two class folders, or one has no image.
        """
        root = root_folder(self.root, "the class folders")
        found = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if not found:
            raise DataError("has no class folders; set data.root= to a folder that has one for each class", root)
        classes, positive = class_order(found, self.positive, root)
        rows = [
            (f"{name}/{file}", label, f"{name}/{file}", str(root / name / file))
            for label, name in enumerate(classes)
            for file in _images(root / name)
        ]
        frame = pd.DataFrame(rows, columns=["image_id", "label", "group", "path"])
        return assemble(self.name, classes, frame, "image", root, positive, self.limit)


def _images(folder: Path) -> list[str]:
    names = image_names(folder)
    if not names:
        raise DataError("this class folder has no image; add some, or take the folder away", folder)
    return names
