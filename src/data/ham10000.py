"""HAM10000: 10,015 dermatoscopic images of 7,470 pigmented lesions in seven classes."""

from src.data.source import FolderSource, Manifest, encode, image_paths, read_csv

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
LICENCE = "CC BY-NC 4.0. Cite: Tschandl, Rosendahl & Kittler, Scientific Data 5:180161, 2018"


class HAM10000(FolderSource):
    """HAM10000 in its official layout: `HAM10000_metadata.csv`, `HAM10000_images_part_1/`, `_2/`.

    The images of one lesion are a group.
    """

    name = "ham10000"
    title = "HAM10000"
    variable = "HAM10000_DIR"
    fetch_name = "ham10000"
    published = dict(zip(CLASSES, (327, 514, 1_099, 115, 1_113, 6_705, 142), strict=True))
    licence = LICENCE

    def manifest(self) -> Manifest:
        """Read and check the list; `dx`, `dx_type`, `age`, `sex`, `localization` are metadata."""
        root = self.folder()
        folders = [self.folder(f"HAM10000_images_part_{part}") for part in (1, 2)]
        path = root / "HAM10000_metadata.csv"
        table = read_csv(path, ["image_id", "lesion_id", "dx"])
        frame = table.drop(columns="lesion_id").assign(
            label=encode(table["dx"], CLASSES, table["image_id"], path),
            group=table["lesion_id"],
            path=image_paths(table["image_id"], folders),
        )
        return self.assemble(CLASSES, frame, "lesion", path)
