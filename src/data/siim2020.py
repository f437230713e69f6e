"""SIIM-ISIC 2020: dermatoscopic images of patients, melanoma or not."""

from src.data.source import FolderSource, Manifest, encode, image_paths, read_csv

CLASSES = ("benign", "malignant")


class SIIM2020(FolderSource):
    """The training set of the SIIM-ISIC 2020 competition: `train.csv` and `jpeg/train/`.

    The images of one patient are a group; the complete set has 2,056 patients.
    """

    name = "siim2020"
    title = "SIIM-ISIC 2020"
    variable = "SIIM2020_DIR"
    published = {"benign": 32_542, "malignant": 584}
    licence = "CC BY-NC 4.0. Cite: Rotemberg et al., Scientific Data 8:34, 2021"

    def manifest(self) -> Manifest:
        """Read and check the list; sex, age, site and `diagnosis` are metadata."""
        root = self.folder()
        folder = self.folder("jpeg/train")
        path = root / "train.csv"
        table = read_csv(path, ["image_name", "patient_id", "target"])
        images = table["image_name"]
        frame = table.drop(columns=["patient_id", "target", "image_name"]).assign(
            image_id=images,
            label=encode(table["target"], ("0", "1"), images, path),
            group=table["patient_id"],
            path=image_paths(images, [folder]),
        )
        return self.assemble(CLASSES, frame, "patient", path)
