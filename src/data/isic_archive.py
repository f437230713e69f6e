"""Data sets of the ISIC Archive through its client (isic-cli), put into the layouts that the sources read.

The archive publishes no checksums: each image is held against its published size instead. HAM10000's table is made of
the archive's records.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import requests

from src.data.download import TIMEOUT, download, reason
from src.errors import DataError, DependencyError

ISIC_API = "https://api.isic-archive.com/api/v2/"
CHALLENGES = "https://isic-archive.s3.amazonaws.com/challenges/"

Record = Mapping[str, Any]  # one image in the answers of the ISIC Archive's API


@dataclass(frozen=True)
class Collection:
    """A data set of the ISIC Archive.

    Attributes:
        title: Its name and size, for people.
        number: The archive's number of the collection.
        variable: Environment variable that may name the folder.
        licence: Licence and citation.
        manual: What to get by hand instead, and from where.
        folders: Image folders of the layout.
        tables: Tables that the owners publish: name in the layout to address below `CHALLENGES`.
        size: Number of images that belong to the set.
        place: From an image's id and the images that the first table lists to its path; None: not part of the set.
        convert: Makes HAM10000's table of the archive's records: its owners publish theirs elsewhere.
    """

    title: str
    number: int
    variable: str
    licence: str
    manual: str
    folders: tuple[str, ...]
    tables: Mapping[str, str]
    size: int
    place: Callable[[str, frozenset[str]], str | None]
    convert: Callable[[Sequence[Record]], pd.DataFrame] | None = None


def fill(collection: Collection, folder: Path, api: str = ISIC_API) -> None:
    """Download what a folder still lacks of a data set. Needs isic-cli, of the extra `fetch`.

    Args:
        collection: The data set.
        folder: Root of the layout.
        api: Address of the archive's API, with a slash at its end; a mirror serves the published tables below it too.

    Raises:
        DependencyError: The archive cannot be reached, or refuses.
        DataError: What came is not what the owners published.
    """
    from isic_cli.io.http import get_images, get_num_images
    from isic_cli.session import get_session

    challenges = CHALLENGES if api == ISIC_API else api
    try:
        # The client itself would retry for many minutes before it admits that there is no network.
        requests.get(f"{api}collections/{collection.number}/", timeout=TIMEOUT).raise_for_status()
        for sub in collection.folders:
            (folder / sub).mkdir(parents=True, exist_ok=True)
        for table, address in collection.tables.items():
            download(challenges + address, folder / table)
        listed = _listed(folder, collection)
        with get_session(api) as session:
            total = get_num_images(session, collections=str(collection.number))
            images = get_images(session, collections=str(collection.number))
            records = _download_images(iter(images), total, collection, folder, listed)
    except requests.RequestException as error:
        raise DependencyError(f"cannot reach the ISIC Archive ({reason(error)})") from error
    if len(records) != collection.size:
        raise DataError(f"the archive gave {len(records):,} of {collection.size:,} images; fetch again later", folder)
    if collection.convert is not None:
        _write(collection.convert(records), folder / "HAM10000_metadata.csv")


def _download_images(
    images: Iterator[Record], total: int, collection: Collection, folder: Path, listed: frozenset[str]
) -> list[Record]:
    """Download what is not there yet with the archive's client; returns the records of the images that belong."""
    from isic_cli.io.http import download_image
    from rich.progress import Progress
    from tenacity import RetryError

    for stale in folder.rglob(".isic-partial.*"):  # of a fetch that was killed
        stale.unlink()
    kept: list[Record] = []
    with Progress() as progress, ThreadPoolExecutor(10) as pool:
        task = progress.add_task("images", total=total)

        def one(record: Record) -> Record | None:
            place = collection.place(record["isic_id"], listed)
            if place is None:
                progress.update(task, advance=1)
                return None
            path, full = folder / place, record["files"]["full"]
            if path.exists() and path.stat().st_size == full["size"]:
                progress.update(task, advance=1)
                return record
            path.unlink(missing_ok=True)
            try:
                download_image(dict(record), path.parent, progress, task)
            except RetryError as error:
                raise requests.ConnectionError(f"{record['isic_id']} does not come") from error
            came = next(path.parent.glob(f"{record['isic_id']}.*"))  # the suffix is the server's
            if came.stat().st_size != full["size"]:
                came.unlink()
                raise requests.ConnectionError(f"{record['isic_id']} came incomplete")
            came.replace(path)
            return record

        # A page at a time: the addresses of the images are valid for a while only.
        while page := list(islice(images, 100)):
            kept += [record for record in pool.map(one, page) if record is not None]
    return kept


def _listed(folder: Path, collection: Collection) -> frozenset[str]:
    """The images that the layout's first table lists, by its first column."""
    for table in collection.tables:
        return frozenset(pd.read_csv(folder / table).iloc[:, 0])
    return frozenset()


def _write(frame: pd.DataFrame, path: Path) -> None:
    part = path.with_name(f"{path.name}.part")
    frame.to_csv(part, index=False)
    part.replace(path)


# The archive names diagnoses by a tree; these leaves, and one branch, give back the seven classes as published.
HAM10000_DX = {
    "Solar or actinic keratosis": "akiec",
    "Squamous cell carcinoma, NOS": "akiec",
    "Squamous cell carcinoma in situ": "akiec",
    "Basal cell carcinoma": "bcc",
    "Pigmented benign keratosis": "bkl",
    "Dermatofibroma": "df",
    "Melanoma, NOS": "mel",
    "Nevus": "nv",
    "Benign soft tissue proliferations - Vascular": "vasc",
}
HAM10000_DX_TYPE = {
    "histopathology": "histo",
    "serial imaging showing no change": "follow_up",
    "single image expert consensus": "consensus",
    "confocal microscopy with consensus dermoscopy": "confocal",
}


def ham10000_table(records: Sequence[Record]) -> pd.DataFrame:
    """HAM10000's own table of the archive's records; `localization` is coarser in the archive.

    Raises:
        DataError: A diagnosis is none of the seven classes.
    """
    rows = []
    for record in records:
        about = {**record["metadata"]["acquisition"], **record["metadata"]["clinical"]}
        names = [about.get(f"diagnosis_{level}") for level in range(5, 0, -1)]
        dx = next((HAM10000_DX[name] for name in names if name in HAM10000_DX), None)
        if dx is None or not about.get("lesion_id"):
            told = " / ".join(name for name in reversed(names) if name)
            raise DataError(
                f"the archive's record of {record['isic_id']} is not understood (diagnosis {told or 'none'})"
            )
        confirmed = about.get("diagnosis_confirm_type")
        rows.append(
            {
                "lesion_id": about["lesion_id"],
                "image_id": record["isic_id"],
                "dx": dx,
                "dx_type": HAM10000_DX_TYPE.get(confirmed or "", confirmed),
                "age": about.get("age_approx"),
                "sex": about.get("sex") or "unknown",
                "localization": about.get("anatom_site_general") or "unknown",
            }
        )
    return pd.DataFrame(rows).sort_values("image_id")


def _place_ham10000(image: str, _: frozenset[str]) -> str | None:
    if not "ISIC_0024306" <= image <= "ISIC_0034320":
        return None  # the archive's collection holds the test images of 2018 too
    return f"HAM10000_images_part_{1 if image <= 'ISIC_0029305' else 2}/{image}.jpg"


def _place_isic2019(image: str, listed: frozenset[str]) -> str | None:
    name = image if image in listed else f"{image}_downsampled"
    return f"ISIC_2019_Training_Input/{name}.jpg" if name in listed else None


def _place_siim2020(image: str, listed: frozenset[str]) -> str | None:
    return f"jpeg/train/{image}.jpg" if image in listed else None


COLLECTIONS = {
    "ham10000": Collection(
        "HAM10000: 10,015 images, about 3 GB",
        212,
        "HAM10000_DIR",
        "Licence: CC BY-NC 4.0. Cite: Tschandl, Rosendahl & Kittler, Scientific Data 5:180161, 2018",
        "from the Harvard Dataverse (doi:10.7910/DVN/DBW86T) get "
        "HAM10000_metadata.csv and the unpacked folders HAM10000_images_part_1 and _2",
        ("HAM10000_images_part_1", "HAM10000_images_part_2"),
        {},
        10_015,
        _place_ham10000,
        ham10000_table,
    ),
    "isic2019": Collection(
        "ISIC 2019, training set: 25,331 images, about 9 GB",
        65,
        "ISIC2019_DIR",
        "Licence: CC BY-NC 4.0. Cite: Tschandl et al. 2018, Codella et al. 2018, Combalia et al. 2019",
        "from the ISIC Challenge's data page, 2019, get "
        "the unpacked ISIC_2019_Training_Input, ISIC_2019_Training_GroundTruth.csv and _Metadata.csv",
        ("ISIC_2019_Training_Input",),
        {
            "ISIC_2019_Training_GroundTruth.csv": "2019/ISIC_2019_Training_GroundTruth.csv",
            "ISIC_2019_Training_Metadata.csv": "2019/ISIC_2019_Training_Metadata.csv",
        },
        25_331,
        _place_isic2019,
    ),
    "siim2020": Collection(
        "SIIM-ISIC 2020, training set: 33,126 images, about 23 GB",
        70,
        "SIIM2020_DIR",
        "Licence: CC BY-NC 4.0. Cite: Rotemberg et al., Scientific Data 8:34, 2021",
        "from the ISIC Challenge's data page, 2020, get "
        "the training table as train.csv and the unpacked JPEG images as jpeg/train/",
        ("jpeg/train",),
        {"train.csv": "2020/ISIC_2020_Training_GroundTruth.csv"},
        33_126,
        _place_siim2020,
    ),
}
