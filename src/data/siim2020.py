"""SIIM-ISIC 2020: dermatoscopic images of patients, melanoma or not."""
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


CLASSES = ("benign", "malignant")


class SIIM2020(Source):
    """The training set of the SIIM-ISIC 2020 competition in its layout: `train.csv` and `jpeg/train/`.

    Images of one patient are a group. Whole, it has 33,126 images, 584 of them (1.8%) malignant, of
    2,056 patients: a part with another share of melanomas must be stated with every figure.
    Rotemberg et al., Scientific Data 8:34, 2021.
    Licence: CC BY-NC 4.0.

    Args:
        root: The folder that holds these.
        limit: Take about so many images only.
    """

    name = "siim2020"

    def __init__(self, root: Path | str, limit: Limit = None) -> None:
        self.root = root
        self.limit = limit

    def manifest(self) -> Manifest:
        """Read and check the list of images; sex, age, site and `diagnosis` are kept beside it.

        Raises:
            DataError: A folder, file or column is missing, or a row is not as it should be.
        """
        root = root_folder(self.root, "SIIM-ISIC 2020", "SIIM2020_DIR")
        folder = subfolder(root, "jpeg/train")
        path = root / "train.csv"
        table = read_csv(path, ["image_name", "patient_id", "target"])
        frame = table.drop(columns=["patient_id", "target"]).rename(columns={"image_name": "image_id"})
        frame = frame.assign(
            label=encode(table["target"], ("0", "1"), table["image_name"], path),
            group=table["patient_id"],
            path=image_paths(table["image_name"], [folder]),
        )
        return assemble(self.name, CLASSES, frame, "patient", path, positive="malignant", limit=self.limit)
