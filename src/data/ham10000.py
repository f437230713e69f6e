"""HAM10000: 10,015 dermatoscopic images of 7,470 pigmented lesions in seven classes."""
from pathlib import Path
from src.data.source import Limit
from src.data.source import Manifest
from src.data.source import Source
from src.data.source import assemble
from src.data.source import encode
from src.data.source import image_paths
from src.data.source import read_csv
from src.data.source import root_folder
from src.data.source import subfolder


CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
_PARTS = ("HAM10000_images_part_1", "HAM10000_images_part_2")


class HAM10000(Source):
    """HAM10000 in its official layout: `HAM10000_metadata.csv` and `HAM10000_images_part_1/`, `_2/`.

    Images of one lesion are a group. Tschandl, Rosendahl & Kittler, Scientific Data 5:180161, 2018.
    Licence: CC BY-NC 4.0.

    Args:
        root: The folder that holds these.
        limit: Take about so many images only.
    """

    name = "ham10000"

    def __init__(self, root: Path | str, limit: Limit = None) -> None:
        self.root = root
        self.limit = limit

    def manifest(self) -> Manifest:
        """Read and check the list of images; `dx`, `dx_type`, `age`, `sex` and `localization` are kept beside it.

        Raises:
            DataError: A folder, file or column is missing, or a row is not as it should be.
        """
        root = root_folder(self.root, "HAM10000", "HAM10000_DIR", "ham10000")
        folders = [subfolder(root, part) for part in _PARTS]
        path = root / "HAM10000_metadata.csv"
        table = read_csv(path, ["image_id", "lesion_id", "dx"])
        frame = table.drop(columns="lesion_id").assign(
            label=encode(table["dx"], CLASSES, table["image_id"], path),
            group=table["lesion_id"],
            path=image_paths(table["image_id"], folders),
        )
        return assemble(self.name, CLASSES, frame, "lesion", path, limit=self.limit)
