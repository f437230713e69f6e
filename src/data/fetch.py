"""Get public data sets from their owners: `python -m src.data.fetch name=ham10000`. Stopped, it goes on where it was.

Images of the ISIC Archive come through the archive's client (see `src.data.isic_archive`); MedMNIST's files from the
address and with the MD5 that its package (medmnist) names. What is left is the layout that the sources read.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from src.data import isic_archive
from src.data.download import checksum, download
from src.data.isic_archive import COLLECTIONS, ISIC_API, Collection
from src.errors import ConfigError, DataError, DependencyError, UserError

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


def _isic(collection: Collection, folder: Path, api: str) -> Callable[[], None]:
    try:
        import isic_cli  # noqa: F401  told before anything is made
    except ImportError as error:
        raise _missing("isic-cli") from error

    def job() -> None:
        with _announced(f"{collection.title}\n{collection.licence}", f"{collection.manual}, put them into {folder}"):
            isic_archive.fill(collection, folder, api)

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
