"""ISIC 2018, task 3: the official test images that go with HAM10000."""
from pathlib import Path
from src.data.ham10000 import CLASSES
from src.data.isic2019 import one_hot
from src.data.source import Limit
from src.data.source import Manifest
from src.data.source import Source
from src.data.source import assemble
from src.data.source import encode
from src.data.source import image_paths
from src.data.source import read_csv
from src.data.source import root_folder
from src.data.source import subfolder
import pandas as pd


_TRUTH = "ISIC2018_Task3_Test_GroundTruth"


class ISIC2018(Source):
    """The test set of ISIC 2018's task 3 in its official layout: 1,512 images in HAM10000's seven classes.

    That is `ISIC2018_Task3_Test_Input/` and `ISIC2018_Task3_Test_GroundTruth.csv` (one column a
    class, one of them
    1.0), which may lie in a folder of its own name as it is unpacked. It does not say which images
    show one lesion:
    every image is a group. Codella et al., arXiv:1902.03368; Tschandl et al., Scientific Data
    5:180161, 2018. Licence: CC BY-NC 4.0.

    Args:
        root: The folder that holds these.
        limit: Take about so many images only.
    """

    name = "isic2018"

    def __init__(self, root: Path | str, limit: Limit = None) -> None:
        self.root = root
        self.limit = limit

    def manifest(self) -> Manifest:
        """Read and check the list of images.

        Raises:
            DataError: A folder, file or column is missing, or a row is not as it should be.
        """
        root = root_folder(self.root, "ISIC 2018", "ISIC2018_DIR")
        folder = subfolder(root, "ISIC2018_Task3_Test_Input")
        unpacked = root / _TRUTH / f"{_TRUTH}.csv"
        path = unpacked if unpacked.exists() else root / f"{_TRUTH}.csv"
        table = read_csv(path, ["image", *(name.upper() for name in CLASSES)])
        images = table["image"]
        frame = pd.DataFrame(
            {
                "image_id": images,
                "label": encode(one_hot(table, CLASSES, path), CLASSES, images, path),
                "group": images,
                "path": image_paths(images, [folder]),
            }
        )
        return assemble(self.name, CLASSES, frame, "image", path, limit=self.limit)
