"""Small data sets in the layouts of their owners."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from src.data.folder import ClassFolders
from src.data.ham10000 import CLASSES as HAM_CLASSES
from src.data.ham10000 import HAM10000
from src.data.isic2018 import ISIC2018
from src.data.isic2019 import CLASSES as ISIC_CLASSES
from src.data.isic2019 import ISIC2019
from src.data.joined import Joined
from src.data.medmnist import MedMNIST
from src.data.siim2020 import SIIM2020
from src.data.source import Source
from src.data.table import CsvTable

GROUPS = 6  # of two images each, per class
TRUTH_2018 = "ISIC2018_Task3_Test_GroundTruth.csv"
TRUTH_2019 = "ISIC_2019_Training_GroundTruth.csv"


def write_picture(path: Path, seed: int, size: tuple[int, int] = (20, 15)) -> None:
    """A noise image, width x height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def png_content(header: bytes, pixels: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """The bytes of a PNG file; `header` is the content of its IHDR, `pixels` of its IDAT."""
    content = b"\x89PNG\r\n\x1a\n"
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    for name, body in parts:
        content += struct.pack(">I", len(body)) + name + body
        content += struct.pack(">I", zlib.crc32(name + body))
    return content


def rows_of(classes: tuple[str, ...]) -> pd.DataFrame:
    """Two images of each of `GROUPS` groups of every class."""
    numbers = range(2 * GROUPS * len(classes))
    return pd.DataFrame(
        {
            "image": [f"IMG_{number:04d}" for number in numbers],
            "name": [classes[number // 2 // GROUPS] for number in numbers],
            "group": [f"G_{number // 2:03d}" for number in numbers],
        }
    )


def write_pictures(rows: pd.DataFrame, pattern: str, root: Path) -> None:
    """One picture per row; `pattern` is a path with the fields image, name and part."""
    for number, (image, name) in enumerate(zip(rows["image"], rows["name"], strict=True)):
        path = root / pattern.format(image=image, name=name, part=1 + number % 2)
        write_picture(path, number)


def one_hot(rows: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    """ISIC's ground truth: one column per class."""
    marks = {name: (rows["name"].str.upper() == name).astype(float) for name in order}
    return pd.DataFrame({"image": rows["image"], **marks})


def write_ham10000(root: Path) -> Source:
    rows = rows_of(HAM_CLASSES)
    write_pictures(rows, "HAM10000_images_part_{part}/{image}.jpg", root)
    table = rows.rename(columns={"image": "image_id", "name": "dx", "group": "lesion_id"})
    table.assign(age=50.0).to_csv(root / "HAM10000_metadata.csv", index=False)
    return HAM10000(root)


def write_isic2018(root: Path) -> Source:
    rows = rows_of(HAM_CLASSES)
    write_pictures(rows, "ISIC2018_Task3_Test_Input/{image}.jpg", root)
    order = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]  # of the official file
    one_hot(rows, order).to_csv(root / TRUTH_2018, index=False)
    return ISIC2018(root)


def write_isic2019(root: Path) -> Source:
    rows = rows_of(ISIC_CLASSES)
    write_pictures(rows, "ISIC_2019_Training_Input/{image}.jpg", root)
    order = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
    one_hot(rows, order).to_csv(root / TRUTH_2019, index=False)
    metadata = rows[["image"]].assign(age_approx=40.0, lesion_id=rows["group"], sex="male")
    metadata.to_csv(root / "ISIC_2019_Training_Metadata.csv", index=False)
    return ISIC2019(root)


def write_siim2020(root: Path) -> Source:
    rows = rows_of(("benign", "malignant"))
    write_pictures(rows, "jpeg/train/{image}.jpg", root)
    table = rows.rename(columns={"image": "image_name", "group": "patient_id"})
    table = table.assign(sex="female", target=(rows["name"] == "malignant").astype(int))
    table.drop(columns="name").to_csv(root / "train.csv", index=False)
    return SIIM2020(root)


def write_medmnist(root: Path) -> Source:
    random = np.random.default_rng(0)
    arrays = {}
    for side, repeats in {"train": 4, "val": 2, "test": 3}.items():
        labels = np.repeat(np.arange(7), repeats)[:, None]
        arrays[f"{side}_labels"] = labels.astype(np.uint8)
        arrays[f"{side}_images"] = random.integers(0, 256, (len(labels), 28, 28, 3), dtype=np.uint8)
    root.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(root / "dermamnist.npz", **arrays)
    return MedMNIST(root)


def write_table(root: Path) -> Source:
    rows = rows_of(("melanoma", "nevus", "other"))
    write_pictures(rows, "pictures/{image}.png", root)
    table = pd.DataFrame({"path": "pictures/" + rows["image"] + ".png", "label": rows["name"]})
    table.assign(lesion=rows["group"]).to_csv(root / "images.csv", index=False)
    return CsvTable(root, csv="images.csv", group_column="lesion")


def write_folder(root: Path) -> Source:
    write_pictures(rows_of(("benign", "malignant")), "{name}/{image}.JPG", root)
    return ClassFolders(root)


def write_joined(root: Path) -> Source:
    """HAM10000, and of ISIC 2019 the images whose ids HAM10000 does not have."""
    parts = {"ham10000": write_ham10000(root), "isic2019": write_isic2019(root)}
    return Joined(parts, ["isic2019"], {"isic2019": {"ak": "akiec", "scc": "akiec"}})


LAYOUTS: dict[str, Callable[[Path], Source]] = {
    name.removeprefix("write_"): function
    for name, function in list(globals().items())
    if name.startswith("write_") and name not in ("write_picture", "write_pictures")
}
