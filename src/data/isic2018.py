"""ISIC 2018, task 3: the official test images that belong to HAM10000."""

import pandas as pd

from src.data.ham10000 import CLASSES, LICENCE
from src.data.isic2019 import one_hot
from src.data.source import FolderSource, Manifest, encode, image_paths, read_csv

_TRUTH = "ISIC2018_Task3_Test_GroundTruth"


class ISIC2018(FolderSource):
    """The test set of ISIC 2018, task 3: 1,512 images in HAM10000's seven classes.

    Layout: `ISIC2018_Task3_Test_Input/` and `ISIC2018_Task3_Test_GroundTruth.csv` (one column per
    class), which may lie in a folder of the same name as it is unpacked. The set does not say
    which images show one lesion: every image is a group. Codella et al., arXiv:1902.03368.
    """

    name = "isic2018"
    title = "ISIC 2018"
    variable = "ISIC2018_DIR"
    licence = LICENCE

    def manifest(self) -> Manifest:
        """Read and check the list of images."""
        root = self.folder()
        folder = self.folder("ISIC2018_Task3_Test_Input")
        unpacked = root / _TRUTH / f"{_TRUTH}.csv"
        path = unpacked if unpacked.exists() else root / f"{_TRUTH}.csv"
        table = read_csv(path, ["image", *(name.upper() for name in CLASSES)])
        images = table["image"]
        labels = encode(one_hot(table, CLASSES, path), CLASSES, images, path)
        paths = image_paths(images, [folder])
        frame = pd.DataFrame({"image_id": images, "label": labels, "group": images, "path": paths})
        return self.assemble(CLASSES, frame, "image", path)
