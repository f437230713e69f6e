"""Small data sets in official layouts; the external ones overlap with the run's own."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from src.tracking.store import Store

HAM = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
ISIC = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
PER_CLASS = 12  # images of HAM10000, two a lesion
EXTERNAL_PER_CLASS = 4


def lesion(seed: int, kind: int, size: tuple[int, int] = (80, 60)) -> Image.Image:
    """A picture that no other seed gives: smooth random colours, with a tint for the kind."""
    random = np.random.default_rng((seed, kind))
    tint = np.array([(kind * 37) % 56, (kind * 11) % 56, (kind * 23) % 56])
    coarse = random.integers(0, 200, (8, 8, 3)) + tint
    return Image.fromarray(coarse.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


def encoded_anew(image: Image.Image) -> Image.Image:
    """The same picture, squashed to a square, smaller, compressed."""
    file = io.BytesIO()
    image.resize((48, 48), Image.Resampling.BILINEAR).save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


def write_ham10000(root: Path) -> None:
    """HAM10000's layout: ISIC_1000000 and on, lesions HAM_0000000 and on of two images each."""
    rows = []
    for number in range(PER_CLASS * len(HAM)):
        kind, name = number // PER_CLASS, f"ISIC_{1000000 + number}"
        folder = root / f"HAM10000_images_part_{1 + number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        lesion(number, kind).save(folder / f"{name}.jpg", quality=90)
        person = (40.0 + number % 40, ("male", "female")[number % 2], "back")
        rows.append((f"HAM_{number // 2:07d}", name, HAM[kind], *person))
    columns = ["lesion_id", "image_id", "dx", "age", "sex", "localization"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "HAM10000_metadata.csv", index=False)


def write_isic2019(root: Path, ham: Path) -> None:
    """ISIC 2019's layout: 32 images, of which three are also in HAM10000.

    ISIC_1000000_downsampled has the id of one there, ISIC_2000001 is image 5 encoded anew,
    ISIC_2000002 is another photograph of a lesion there.
    """
    folder = root / "ISIC_2019_Training_Input"
    folder.mkdir(parents=True)
    rows, about = [], []
    for number in range(EXTERNAL_PER_CLASS * len(ISIC)):
        kind, name = number // EXTERNAL_PER_CLASS, f"ISIC_{2000000 + number}"
        picture, group = lesion(1000 + number, kind, (64, 64)), f"BCN_{number // 2 + 100:07d}"
        if number == 0:
            name = "ISIC_1000000_downsampled"
        elif number == 1:
            picture = encoded_anew(Image.open(ham / "HAM10000_images_part_2" / "ISIC_1000005.jpg"))
        elif number == 2:
            group = "HAM_0000003"
        picture.save(folder / f"{name}.jpg", quality=90)
        rows.append((name, *(float(label == kind) for label in range(len(ISIC))), 0.0))
        about.append((name, 50.0, "anterior torso", group, "female"))
    about_columns = ["image", "age_approx", "anatom_site_general", "lesion_id", "sex"]
    for file, table, columns in (
        ("GroundTruth", rows, ["image", *ISIC, "UNK"]),
        ("Metadata", about, about_columns),
    ):
        frame = pd.DataFrame(table, columns=columns)
        frame.to_csv(root / f"ISIC_2019_Training_{file}.csv", index=False)


def write_siim2020(root: Path) -> None:
    """SIIM-ISIC 2020's layout: 12 images of 6 patients, four malignant."""
    folder = root / "jpeg" / "train"
    folder.mkdir(parents=True)
    rows = []
    for number in range(12):
        name, target = f"ISIC_{3000000 + number}", int(number < 4)
        lesion(5000 + number, 4 if target else 5, (64, 64)).save(folder / f"{name}.jpg")
        rows.append((name, f"IP_{number // 2:07d}", "male", 60.0, "torso", target))
    columns = ["image_name", "patient_id", "sex", "age_approx"]
    columns += ["anatom_site_general_challenge", "target"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "train.csv", index=False)


@dataclass(frozen=True)
class SmallStore:
    """A folder with a store, the run's data `ham`, and external data `isic` and `siim`.

    Attributes:
        folder: All of it.
        data: The folder with the data.
        single: A run that was tested.
        untested: A run that was not.
        trial: Above both.
    """

    folder: Path
    data: Path
    single: str
    untested: str
    trial: str

    @property
    def store(self) -> Store:
        return Store(folder=self.folder / "mlruns")


@dataclass(frozen=True)
class OnIsic:
    """The evaluation of the trial on ISIC 2019: its output, the store, and its folder."""

    output: str
    store: SmallStore
    folder: Path
