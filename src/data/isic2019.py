"""ISIC 2019: dermatoscopic images of three collections (HAM10000, BCN_20000, MSK) in eight classes."""
from collections.abc import Sequence
from pathlib import Path
from src.core.errors import DataError
from src.data.ham10000 import CLASSES as HAM_CLASSES
from src.data.source import Limit
from src.data.source import Manifest
from src.data.source import Source
from src.data.source import assemble
from src.data.source import encode
from src.data.source import image_paths
from src.data.source import read_csv
from src.data.source import root_folder
from src.data.source import subfolder
from typing import Literal
import pandas as pd


CLASSES = ("ak", "bcc", "bkl", "df", "mel", "nv", "scc", "vasc")
# Actinic keratosis is HAM10000's akiec; squamous cell carcinoma is no clean fit, but the usual
# choice.
AS_HAM10000 = {"ak": "akiec", "scc": "akiec"}


class ISIC2019(Source):
    """The training set of ISIC 2019 in its official layout.

    That is `ISIC_2019_Training_Input/`, `ISIC_2019_Training_GroundTruth.csv` (one column a class,
    one of them 1.0) and, if it is there, `ISIC_2019_Training_Metadata.csv` with `lesion_id`. Images
    of one lesion are a group; an image without a lesion_id is a group of its own. It contains
    HAM10000: do not train on one and test on the other without taking those out. Tschandl et al.
    2018, Codella et al. 2018, Combalia et al. 2019. Licence: CC BY-NC 4.0.

    Args:
        root: The folder that holds these.
        classes: "native" keeps the eight classes; "ham10000" gives HAM10000's seven, with AK and
            SCC as akiec. Either way the column `original_label` keeps the class of the eight.
        limit: Take about so many images only.
    """

    name = "isic2019"

    def __init__(
        self, root: Path | str, classes: Literal["native", "ham10000"] = "native", limit: Limit = None
    ) -> None:
        self.root = root
        self.classes = classes
        self.limit = limit

    def manifest(self) -> Manifest:
        """Read and check the list of images; `age_approx`, `sex` and `anatom_site_general` are kept beside it.

        Raises:
            DataError: A folder, file or column is missing, or a row is not as it should be.
        """
        root = root_folder(self.root, "ISIC 2019", "ISIC2019_DIR", "isic2019")
        folder = subfolder(root, "ISIC_2019_Training_Input")
        path = root / "ISIC_2019_Training_GroundTruth.csv"
        table = read_csv(path, ["image", *(name.upper() for name in CLASSES)])
        # "UNK" is no class to learn: it is let through here, and reported as unknown label
        names = one_hot(table, [*CLASSES, *(["UNK"] if "UNK" in table else [])], path)
        as_ham = self.classes == "ham10000"
        classes = HAM_CLASSES if as_ham else CLASSES
        frame = pd.DataFrame(
            {
                "image_id": table["image"],
                "label": encode(names.replace(AS_HAM10000) if as_ham else names, classes, table["image"], path),
                "path": image_paths(table["image"], [folder]),
                "original_label": names,
            }
        )
        metadata = _metadata(root / "ISIC_2019_Training_Metadata.csv")
        frame = frame.merge(metadata, how="left", left_on="image_id", right_index=True)
        grouped_by = "image" if frame["group"].isna().all() else "lesion"
        return assemble(self.name, classes, frame, grouped_by, path, limit=self.limit)


def one_hot(table: pd.DataFrame, classes: Sequence[str], path: Path) -> pd.Series:
    """Class of each row of an ISIC challenge's ground truth: one column a class, its name in capitals.

    Args:
        table: With a column `image` and those of the classes.
        classes: Names to give; the column of each is its name in capitals.
        path: The file, for the message.

    Raises:
        DataError: A row that has not 1 in one of the columns and 0 in the others.
    """
    names = {name.upper(): name for name in classes}
    marks = table[list(names)].apply(pd.to_numeric, errors="coerce")
    wrong = table.index[~(marks.isin([0, 1]).all(axis=1) & (marks.sum(axis=1) == 1))]
    if len(wrong):
        image = str(table.at[wrong[0], "image"])
        raise DataError(
            f"image {image} in line {wrong[0] + 2} must have 1 in one of the columns {', '.join(names)} "
            f"and 0 in the others; mend or take out the row ({len(wrong)} such rows)",
            path,
        )
    return marks.idxmax(axis=1).replace(names)


def _metadata(path: Path) -> pd.DataFrame:
    """The owners' metadata by image, `lesion_id` as `group`; without rows where there is no such file."""
    if not path.exists():
        return pd.DataFrame({"group": pd.Series(dtype="str")}, index=pd.Index([], dtype="str"))
    table = read_csv(path, ["image", "lesion_id"], complete=["image"])
    twice = table.loc[table["image"].duplicated(), "image"]
    if len(twice):
        raise DataError(f"image {twice.iloc[0]} is listed more than once; keep one row an image", path)
    return table.rename(columns={"lesion_id": "group"}).set_index("image")
