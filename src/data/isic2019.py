"""ISIC 2019: dermatoscopic images of HAM10000, BCN_20000 and MSK in eight classes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from src.core.errors import DataError
from src.data import ham10000, source
from src.data.source import FolderSource, Manifest, encode, image_paths, read_csv

CLASSES = ("ak", "bcc", "bkl", "df", "mel", "nv", "scc", "vasc")
# Actinic keratosis belongs to akiec; squamous cell carcinoma is the usual choice, not an exact one.
AS_HAM10000 = {"ak": "akiec", "scc": "akiec"}
_PUBLISHED = (867, 3_323, 2_624, 239, 4_522, 12_875, 628, 253)


@dataclass(eq=False)
class ISIC2019(FolderSource):
    """The training set of ISIC 2019 in its official layout.

    Layout: `ISIC_2019_Training_Input/`, `ISIC_2019_Training_GroundTruth.csv` (one column per
    class) and optionally `ISIC_2019_Training_Metadata.csv` with `lesion_id`. The images of one
    lesion are a group; an image without a lesion_id is a group of one. The set contains HAM10000:
    do not train on one of them and test on the other without removing these images.

    Attributes:
        classes: "native" keeps the eight classes; "ham10000" maps them to HAM10000's seven, AK and
            SCC to akiec. The column `original_label` holds the class of the eight in both cases.
    """

    classes: Literal["native", "ham10000"] = "native"

    name = "isic2019"
    title = "ISIC 2019"
    variable = "ISIC2019_DIR"
    fetch_name = "isic2019"
    licence = "CC BY-NC 4.0. Cite: Tschandl et al. 2018, Codella et al. 2018, Combalia et al. 2019"

    def __post_init__(self) -> None:
        names = AS_HAM10000 if self.classes == "ham10000" else {}
        published: Counter[str] = Counter()
        for name, count in zip(CLASSES, _PUBLISHED, strict=True):
            published[names.get(name, name)] += count
        self.published = published

    def manifest(self) -> Manifest:
        """Read and check the list; `age_approx`, `sex`, `anatom_site_general` are metadata."""
        root = self.folder()
        folder = self.folder("ISIC_2019_Training_Input")
        path = root / "ISIC_2019_Training_GroundTruth.csv"
        table = read_csv(path, ["image", *(name.upper() for name in CLASSES)])
        images = table["image"]
        # "UNK" is not a class: it is decoded here so that `encode` reports it as unknown label.
        names = one_hot(table, [*CLASSES, *(["UNK"] if "UNK" in table else [])], path)
        native = self.classes == "native"
        classes = CLASSES if native else ham10000.CLASSES
        mapped = names if native else names.replace(AS_HAM10000)
        frame = pd.DataFrame(
            {
                "image_id": images,
                "label": encode(mapped, classes, images, path),
                "path": image_paths(images, [folder]),
                "original_label": names,
            }
        )
        metadata = root / "ISIC_2019_Training_Metadata.csv"
        if metadata.exists():
            rows = read_csv(metadata, ["image", "lesion_id"], complete=["image"])
            source.refuse_repeated(rows["image"], metadata)
            rows = rows.rename(columns={"image": "image_id", "lesion_id": "group"})
            frame = frame.merge(rows, how="left", on="image_id")
        else:
            frame["group"] = pd.NA
        grouped_by = "image" if frame["group"].isna().all() else "lesion"
        return self.assemble(classes, frame, grouped_by, path)


def one_hot(table: pd.DataFrame, classes: Sequence[str], path: Path) -> pd.Series:
    """Class name of each row of an ISIC ground truth: one column per class, named in capitals.

    Raises:
        DataError: A row does not have 1 in one of these columns and 0 in the others.
    """
    names = {name.upper(): name for name in classes}
    marks = table[list(names)].apply(pd.to_numeric, errors="coerce")
    wrong = table.index[~(marks.isin([0, 1]).all(axis=1) & (marks.sum(axis=1) == 1))]
    if len(wrong):
        raise DataError(
            f"image {table['image'][wrong[0]]} in line {wrong[0] + 2} must have 1 in one of the "
            f"columns {', '.join(names)} and 0 in the others; correct or remove the row "
            f"({len(wrong)} such rows)",
            path,
        )
    return marks.idxmax(axis=1).replace(names)
