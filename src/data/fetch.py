"""COMMAND: download public data sets through their owners' clients, in the layout that is read.

  python -m src.data.fetch name=ham10000                 # into data/ham10000, or HAM10000_DIR
  python -m src.data.fetch name=isic2019 root=/big/isic2019
  python -m src.data.fetch name=dermamnist size=64       # into data/medmnist; size=28|64|128|224

name=   {names}, or another two-dimensional set of MedMNIST
root=   folder to fill; it is created if it does not exist
size=   side of MedMNIST's images, px (28)
url=    another address of the same files: a mirror of the archive's API, or of the file

Needs the extra `fetch`: pip install -e '.[fetch]'.
The same command resumes an interrupted download.
"""

import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlparse

import pandas as pd
import requests
import yaml
from filelock import FileLock, Timeout
from tqdm import tqdm

from src.core.errors import ConfigError, DataError, DependencyError, UserError, printable, require
from src.core.files import CONF, atomic_file
from src.data.ham10000 import HAM10000
from src.data.isic2019 import ISIC2019
from src.data.siim2020 import SIIM2020
from src.data.source import FolderSource

TIMEOUT = (10, 30)  # seconds: to connect, to wait for the next bytes
ISIC_API = "https://api.isic-archive.com/api/v2/"
CHALLENGES = "https://isic-archive.s3.amazonaws.com/challenges/"
Record = Mapping[str, Any]  # one image in the answers of the ISIC Archive's API


@dataclass(frozen=True)
class ArchiveCollection:
    """A data set of the ISIC Archive.

    Without `tables`, the table of HAM10000 is made from the archive's records: its owners publish
    it elsewhere.
    """

    number: int  # of the collection in the archive
    size: int  # images of the data set
    source: type[FolderSource]  # reads the layout; names the environment variable and the licence
    title: str  # name and size, for people
    manual: str  # what to download by hand instead, and from where
    folder: str  # of the images in the layout
    tables: Mapping[str, str]  # published tables: name in the layout -> address below CHALLENGES

    def path_of(self, image: str, listed: frozenset[str]) -> str | None:
        """Path of an image by the ids in the first table; None if it is not in the data set."""
        if not self.tables:  # the collection of HAM10000 contains the test images of 2018 too
            part = 1 if image <= "ISIC_0029305" else 2
            inside = "ISIC_0024306" <= image <= "ISIC_0034320"
            return f"{self.folder}{part}/{image}.jpg" if inside else None
        names = [name for name in (image, f"{image}_downsampled") if name in listed]
        return f"{self.folder}/{names[0]}.jpg" if names else None


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit status is 2 after a UserError and 130 when interrupted."""
    if {"-h", "--help"} & set(arguments):
        print(str(__doc__).partition(": ")[2].strip().format(names=NAMES))
        return 0
    try:
        settings: dict[str, str] = {}
        for argument in arguments:
            key, _, value = argument.partition("=")
            if key not in ("name", "root", "size", "url") or not value:
                problem = "must be name=, root=, size= or url= with a value; see --help"
                raise ConfigError(argument, problem)
            settings[key] = value
        if "name" not in settings:
            raise ConfigError("name", f"which data set? {NAMES}")
        fetch(**settings)
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command resumes here", file=sys.stderr)
        return 130
    return 0


def fetch(
    name: str, root: Path | str | None = None, size: str = "28", url: str | None = None
) -> Path:
    """Download a data set into a folder, which is returned.

    Args:
        name: A key of `COLLECTIONS`, or MedMNIST's name of a set.
        root: The folder; by default the environment variable of the set or data/<name>.
        size: Side of MedMNIST's images, px.
        url: A mirror.

    Raises:
        ConfigError: No such data set or size.
        DependencyError: No network, or a client is not installed; names the manual steps.
        DataError: The downloaded files are not what the owners published.
    """
    default = "data/medmnist"
    collection = COLLECTIONS.get(name)
    if collection is not None:
        require("fetch", "isic_cli")
        default = os.environ.get(collection.source.variable, f"data/{name}")
        notice = f"{collection.title}\nLicence: {collection.source.licence}"
        manual = collection.manual
    else:
        address, md5, file, notice = _medmnist_file(name, size)
        manual = f"from MedMNIST's record on Zenodo (10519652) download {file}"
    folder = Path(root or default).expanduser().absolute()
    digest = hashlib.md5(bytes(folder)).hexdigest()
    lock = Path(tempfile.gettempdir()) / f"paretoderm-fetch-{digest}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=0):
            if collection is not None:
                print(notice)
                download_collection(collection, folder, url or ISIC_API)
            elif not (path := folder / file).exists() or checksum(path) != md5:
                print(notice)
                download(url or address, path, md5)
    except Timeout as error:
        raise DataError("another process fetches into this folder; wait for it", folder) from error
    except DependencyError as error:
        raise DependencyError(f"{error}\nBy hand: {manual}, put it into {folder}") from error
    except OSError as error:
        problem = f"cannot be written to ({error.strerror or error}); choose another by root="
        raise DataError(problem, folder) from error
    finally:
        with suppress(OSError):
            folder.rmdir()  # succeeds only if it is empty
    print(f"{name} is in {folder}")
    return folder


def _medmnist_file(name: str, size: str) -> tuple[str, str, str, str]:
    """Address, MD5, file name and notice of a MedMNIST file."""
    if size not in ("28", "64", "128", "224"):
        raise ConfigError("size", f"must be 28, 64, 128 or 224, but got {size}")
    if name == "dermamnist":
        require("fetch", "medmnist")
    try:
        from medmnist import INFO
    except ImportError:
        INFO = {}  # noqa: N806
    if name not in INFO or name.endswith("3d"):
        raise ConfigError("name", f"must be one of {NAMES}, but got {name}")
    entry, suffix = INFO[name], "" if size == "28" else f"_{size}"
    notice = (
        f"{entry['python_class']}, {size} px. Licence: {entry['license']}\n"
        "Cite: Yang et al., Scientific Data 10:41, 2023, and the authors of the set"
    )
    return entry[f"url{suffix}"], entry[f"MD5{suffix}"], f"{name}{suffix}.npz", notice


def download(url: str, path: Path, md5: str | None = None) -> None:
    """Download one file; resume after interruptions; move it to its path when it is complete.

    `<name>.part` beside it holds what has been downloaded so far. Without a checksum nothing is
    resumed, because the parts of an old and a new file could not be distinguished.

    Raises:
        DependencyError: The server cannot be reached, refuses, or sends nothing new.
        DataError: The checksum differs; the file is removed.
    """
    part = path.with_name(f"{path.name}.part")
    if md5 is None:
        part.unlink(missing_ok=True)
    while True:
        before = _size(part)
        try:
            _transfer(url, part, path.name)
            break
        except (requests.RequestException, ValueError) as error:  # of an address
            if md5 is None or _size(part) <= before:  # no progress: do not burden the server
                kept = f"; {_size(part):,} bytes are kept, the same command resumes there"
                problem = f"cannot download {url} ({_reason(error)})"
                raise DependencyError(problem + (kept if md5 and _size(part) else "")) from error
    if md5 is not None and (actual := checksum(part)) != md5:
        part.unlink()
        way = "fetch again, or elsewhere"
        raise DataError(f"MD5 of {url} is {actual}, but its owners publish {md5}; {way}", path)
    part.replace(path)


def checksum(path: Path) -> str:
    """MD5 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, requests.TooManyRedirects | ValueError):  # of an address, or its answer
        return str(error)
    return "no answer in time" if isinstance(error, requests.Timeout) else "no connection"


def _check_redirect(response: requests.Response, **_: Any) -> None:
    """Refuse to be sent from an encrypted connection to a plain one."""
    address = urljoin(response.url, response.headers.get("Location", ""))
    if response.url.startswith("https:") and urlparse(address).scheme == "http":
        raise requests.exceptions.InvalidURL(f"the server redirects to {address}")


_get = partial(requests.get, timeout=TIMEOUT, hooks={"response": _check_redirect})


def _transfer(url: str, part: Path, title: str) -> None:
    start = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with _get(url, headers=headers, stream=True) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # already complete, or another file: the checksum decides
        response.raise_for_status()
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        start = start if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(desc=title, total=total, initial=start, unit="B", unit_scale=True) as bar,
        ):
            for chunk in response.iter_content(1 << 18):
                file.write(chunk)
                bar.update(len(chunk))


def download_collection(collection: ArchiveCollection, folder: Path, api: str = ISIC_API) -> None:
    """Download the missing files of a data set. Needs isic-cli, of the extra `fetch`.

    `api` is the address of the archive's API with a slash at its end; a mirror serves the published
    tables below it too.

    Raises:
        DependencyError: The archive cannot be reached, or refuses.
        DataError: The downloaded files are not what the owners published.
    """
    challenges = CHALLENGES if api == ISIC_API else api
    listed: frozenset[str] = frozenset()
    try:
        # The client itself retries for many minutes before it reports a missing network.
        _get(f"{api}collections/{collection.number}/").raise_for_status()
        for table, address in collection.tables.items():
            download(challenges + address, folder / table)
            listed = listed or frozenset(pd.read_csv(folder / table).iloc[:, 0])
        records = _download_images(collection, folder, api, listed)
        if len(records) != collection.size:
            missing = f"{len(records):,} of {collection.size:,} images"
            raise DataError(f"the archive gave {missing}; fetch again later", folder)
        if not collection.tables:
            with atomic_file(folder / "HAM10000_metadata.csv", "the table of the images") as draft:
                ham10000_table(records).to_csv(draft, index=False)
    except requests.RequestException as error:
        raise DependencyError(f"cannot reach the ISIC Archive ({_reason(error)})") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        problem = f"is not in the format of the ISIC Archive ({type(error).__name__}: {error})"
        raise DataError(f"the answer {problem}: fetch without url=", folder) from error


def _download_images(
    collection: ArchiveCollection, folder: Path, api: str, listed: frozenset[str]
) -> list[Record]:
    """Download missing images by the archive's client; returns the records of the data set."""
    from isic_cli.io.http import download_image, get_images, get_num_images
    from isic_cli.session import get_session
    from rich.progress import Progress
    from tenacity import RetryError

    for stale in folder.rglob(".isic-partial.*"):  # of a process that was killed
        stale.unlink()
    records: list[Record] = []
    number = str(collection.number)
    with get_session(api) as session, Progress() as progress, ThreadPoolExecutor(10) as pool:
        session.hooks["response"].append(_check_redirect)
        # a server could send pages for ever
        images = islice(get_images(session, collections=number), 2 * collection.size)
        task = progress.add_task("images", total=get_num_images(session, collections=number))

        def get(record: Record) -> Record | None:
            image, size = record["isic_id"], record["files"]["full"]["size"]
            if not re.fullmatch(r"ISIC_\d{7,}", str(image)):  # it becomes a path
                raise DataError(f"the server sent an image with the id {image!r}", folder)
            name = collection.path_of(image, listed)
            path = folder / name if name is not None else None
            if path is None or _size(path) == size:
                progress.update(task, advance=1)
                return None if path is None else record
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            try:
                download_image(dict(record), path.parent, progress, task)
            except RetryError as error:
                raise requests.ConnectionError(f"{image} cannot be downloaded") from error
            downloaded = next(path.parent.glob(f"{image}.*"))  # the server chooses the suffix
            if downloaded.stat().st_size != size:
                downloaded.unlink()
                raise requests.ConnectionError(f"{image} is incomplete")
            downloaded.replace(path)
            return record

        # One page at a time, because the addresses of the images expire.
        while page := list(islice(images, 100)):
            records += [record for record in pool.map(get, page) if record is not None]
    return records


def ham10000_table(records: Sequence[Record]) -> pd.DataFrame:
    """The metadata table of HAM10000; `localization` is coarser in the archive.

    Raises:
        DataError: A diagnosis is not one of the seven classes.
    """
    rows = []
    for record in records:
        values = {**record["metadata"]["acquisition"], **record["metadata"]["clinical"]}
        levels = [values.get(f"diagnosis_{level}") for level in range(1, 6)]
        dx = next((HAM10000_DX[name] for name in reversed(levels) if name in HAM10000_DX), None)
        if dx is None or not values.get("lesion_id"):
            diagnosis = " / ".join(filter(None, levels)) or "none"
            problem = f"record of {record['isic_id']} is unknown (diagnosis {diagnosis})"
            raise DataError(f"the archive's {problem}")
        confirmed = values.get("diagnosis_confirm_type")
        rows.append(
            {
                "lesion_id": values["lesion_id"],
                "image_id": record["isic_id"],
                "dx": dx,
                "dx_type": HAM10000_DX_TYPE.get(confirmed or "", confirmed),
                "age": values.get("age_approx"),
                "sex": values.get("sex") or "unknown",
                "localization": values.get("anatom_site_general") or "unknown",
            }
        )
    return pd.DataFrame(rows).sort_values("image_id")


_DATA = yaml.safe_load((CONF / "command" / "fetch.yaml").read_text(encoding="utf-8"))
HAM10000_DX, HAM10000_DX_TYPE = _DATA["diagnoses"], _DATA["confirmations"]
COLLECTIONS = {
    source.name: ArchiveCollection(source=source, **_DATA["collections"][source.name])
    for source in (HAM10000, ISIC2019, SIIM2020)
}
NAMES = ", ".join([*COLLECTIONS, "dermamnist"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
