"""Download a file over HTTP: resumed after an interruption, held against its checksum, in place only when whole."""

import hashlib
from pathlib import Path

import requests
from tqdm import tqdm

from src.errors import DataError, DependencyError

TIMEOUT = (10, 30)  # seconds to connect, to wait for the next bytes


def download(url: str, path: Path, md5: str | None = None) -> None:
    """Download one file, going on after an interruption, and put it in place when it is whole and right.

    Args:
        url: Address.
        path: Where it shall be; `<name>.part` beside it holds what has come so far.
        md5: Checksum, hexadecimal. Without one nothing is resumed: old and new halves could not be told apart.

    Raises:
        DependencyError: The server cannot be reached, refuses, or stops sending without having sent anything new.
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
