"""COMMAND: download public sets through their owners' clients."""
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass
from filelock import FileLock
from filelock import Timeout
from itertools import islice
from pathlib import Path
from src.core.errors import ConfigError
from src.core.errors import DataError
from src.core.errors import DependencyError
from src.core.errors import UserError
from tqdm import tqdm
from typing import Any
import hashlib
import os
import pandas as pd
import requests
import sys
import tempfile


TIMEOUT = (10, 30)  # seconds to connect, to wait for the next bytes


def download(url: str, path: Path, md5: str | None = None) -> None:
    """Download one file, going on after an interruption, and put it in place when it is whole and right.

    Args:
        url: Address.
        path: Where it shall be; `<name>.part` beside it holds what has come so far.
        md5: Checksum, hexadecimal. Without one nothing is resumed: old and new halves could not be
            told apart.

    Raises:
        DependencyError: The server cannot be reached, refuses, or stops sending without having sent
            anything new.
        DataError: The checksum is another one; nothing is left behind.
    """
    part = path.with_name(f"{path.name}.part")
    if md5 is None:
        part.unlink(missing_ok=True)
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(url, part, path.name)
            break
        except requests.RequestException as error:
            now = part.stat().st_size if part.exists() else 0
            if md5 is None or now <= before:  # no headway: do not hammer the server
                kept = f"; {now:,} bytes are kept, the same command goes on from there" if now and md5 else ""
                raise DependencyError(f"cannot download {url} ({reason(error)}){kept}") from error
    if md5 is not None and (found := checksum(part)) != md5:
        part.unlink()
        raise DataError(f"MD5 of {url} is {found}, but its owners publish {md5}; fetch again, or elsewhere", path)
    part.replace(path)


def checksum(path: Path) -> str:
    """MD5 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def reason(error: requests.RequestException) -> str:
    """What went wrong on the network, in a few words for the user."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    return "no answer in time" if isinstance(error, requests.Timeout) else "no connection"


def _transfer(url: str, part: Path, title: str) -> None:
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # all of it is there already, or it is not what we think: the checksum tells
        response.raise_for_status()
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        start = start if resumed else 0
        total = start + int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(desc=title, total=total, initial=start, unit="B", unit_scale=True, unit_divisor=1024) as bar,
        ):
            for chunk in response.iter_content(1 << 18):
                file.write(chunk)
                bar.update(len(chunk))


ISIC_API = "https://api.isic-archive.com/api/v2/"
CHALLENGES = "https://isic-archive.s3.amazonaws.com/challenges/"
Record = Mapping[str, Any]  # one image in the answers of the ISIC Archive's API


@dataclass(frozen=True)
class ArchiveCollection:
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
        place: From an image's id and the images that the first table lists to its path; None: not
            part of the set.
        convert: Makes HAM10000's table of the archive's records: its owners publish theirs
            elsewhere.
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


def fill(collection: ArchiveCollection, folder: Path, api: str = ISIC_API) -> None:
    """Download what a folder still lacks of a data set. Needs isic-cli, of the extra `fetch`.

    Args:
        collection: The data set.
        folder: Root of the layout.
        api: Address of the archive's API, with a slash at its end; a mirror serves the published
            tables below it too.

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
    images: Iterator[Record], total: int, collection: ArchiveCollection, folder: Path, listed: frozenset[str]
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


def _listed(folder: Path, collection: ArchiveCollection) -> frozenset[str]:
    """The images that the layout's first table lists, by its first column."""
    for table in collection.tables:
        return frozenset(pd.read_csv(folder / table).iloc[:, 0])
    return frozenset()


def _write(frame: pd.DataFrame, path: Path) -> None:
    part = path.with_name(f"{path.name}.part")
    frame.to_csv(part, index=False)
    part.replace(path)


# The archive names diagnoses by a tree; these leaves, and one branch, give back the seven classes
# as published.
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
    "ham10000": ArchiveCollection(
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
    "isic2019": ArchiveCollection(
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
    "siim2020": ArchiveCollection(
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
NAMES = ", ".join([*COLLECTIONS, "dermamnist"])
MEDMNIST_CITATION = "Cite: Yang et al., Scientific Data 10:41, 2023, and the authors of the set"
HELP = """Get a public data set from its owners, in the layout that the sources read.

  python -m src.data.fetch name=ham10000                 # into data/ham10000, or HAM10000_DIR
  python -m src.data.fetch name=isic2019 root=/big/isic2019
  python -m src.data.fetch name=dermamnist size=64       # into data/medmnist; size=28|64|128|224

name=   {names}, or another two-dimensional set of MedMNIST
root=   folder to fill; made if it is not there
size=   side of MedMNIST's images, px (28)
url=    another address of the same files: a mirror of the archive's API, or of the file

Needs the extra `fetch`: pip install -e '.[fetch]'. Stopped, the same command goes on where it was."""


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit status: 0, 2 after a mistake or without a network, 130 when stopped."""
    if {"-h", "--help"} & set(arguments):
        print(HELP.format(names=NAMES))
        return 0
    try:
        given = _parse(arguments)
        fetch(given["name"], given.get("root"), given.get("size", "28"), given.get("url"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def fetch(name: str, root: Path | str | None = None, size: str = "28", url: str | None = None) -> Path:
    """Fill a folder with a data set.

    Args:
        name: A key of `isic_archive.COLLECTIONS`, or MedMNIST's name of a set.
        root: The folder; by default the environment's or data/<name>.
        size: Side of MedMNIST's images, px.
        url: A mirror.

    Returns:
        The folder.

    Raises:
        ConfigError: No such data set or size.
        DependencyError: No network, or a client is not installed; says what to do by hand.
        DataError: What came is not what the owners published.
    """
    collection = COLLECTIONS.get(name)
    default = os.environ.get(collection.variable, f"data/{name}") if collection else "data/medmnist"
    folder = Path(root or default).expanduser().absolute()
    job = _isic(collection, folder, url or ISIC_API) if collection else _medmnist(name, size, folder, url)
    lock = Path(tempfile.gettempdir()) / f"paretoderm-fetch-{hashlib.md5(bytes(folder)).hexdigest()}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=0):
            job()
    except Timeout as error:
        raise DataError("another fetch is filling this folder; wait for it to end", folder) from error
    except OSError as error:  # the network's own errors have become DependencyError by now
        raise DataError(f"cannot be written to ({error.strerror or error}); choose another by root=", folder) from error
    finally:
        with suppress(OSError):
            folder.rmdir()  # only where nothing came
    print(f"{name} is in {folder}")
    return folder


@contextmanager
def _announced(notice: str, manual: str) -> Iterator[None]:
    """Show title, licence and citation first, and the manual steps where the download fails."""
    print(notice)
    try:
        yield
    except DependencyError as error:
        raise DependencyError(f"{error}\nBy hand: {manual}") from error


def _isic(collection: ArchiveCollection, folder: Path, api: str) -> Callable[[], None]:
    try:
        import isic_cli  # noqa: F401  told before anything is made
    except ImportError as error:
        raise _missing("isic-cli") from error

    def job() -> None:
        with _announced(f"{collection.title}\n{collection.licence}", f"{collection.manual}, put them into {folder}"):
            fill(collection, folder, api)

    return job


def _medmnist(name: str, size: str, folder: Path, url: str | None) -> Callable[[], None]:
    if size not in ("28", "64", "128", "224"):
        raise ConfigError("size", f"must be 28, 64, 128 or 224, but got {size}")
    try:
        from medmnist import INFO
    except ImportError as error:
        if name != "dermamnist":
            raise _unknown(name) from error
        raise _missing("medmnist") from error
    if name not in INFO or name.endswith("3d"):
        raise _unknown(name)
    suffix = "" if size == "28" else f"_{size}"
    address, md5, path = INFO[name][f"url{suffix}"], INFO[name][f"MD5{suffix}"], folder / f"{name}{suffix}.npz"

    def job() -> None:
        if path.exists() and checksum(path) == md5:
            return
        notice = f"{INFO[name]['python_class']}, {size} px. Licence: {INFO[name]['license']}\n{MEDMNIST_CITATION}"
        manual = f"from MedMNIST's record on Zenodo (10519652) download {path.name}, put it into {folder}"
        with _announced(notice, manual):
            download(url or address, path, md5)

    return job


def _parse(arguments: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in ("name", "root", "size", "url") or not equals or not value:
            raise ConfigError(argument, "must be name=, root=, size= or url= with a value; --help tells more")
        given[key] = value
    if "name" not in given:
        raise ConfigError("name", f"which data set? {NAMES}")
    return given


def _unknown(name: str) -> ConfigError:
    return ConfigError("name", f"must be one of {NAMES}, but got {name}")


def _missing(package: str) -> DependencyError:
    return DependencyError(f"the package {package} is not installed; install it with: pip install -e '.[fetch]'")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
