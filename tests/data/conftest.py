"""Small data sets in the layouts of their owners, and a local server in the owners' place."""

import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from src.data.folder import ClassFolders
from src.data.ham10000 import CLASSES as HAM_CLASSES
from src.data.ham10000 import HAM10000
from src.data.isic2019 import CLASSES as ISIC_CLASSES
from src.data.isic2019 import ISIC2019
from src.data.medmnist import MedMNIST
from src.data.siim2020 import SIIM2020
from src.data.source import Source
from src.data.table import CsvTable

GROUPS = 6  # of two images each, per class


def write_picture(path: Path, seed: int, size: tuple[int, int] = (20, 15)) -> None:
    """A noisy picture, width x height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def listed(classes: tuple[str, ...]) -> pd.DataFrame:
    """Two images of each of `GROUPS` groups of every class."""
    rows = [
        {"image": f"IMG_{number:04d}", "name": classes[number // 2 // GROUPS], "group": f"G_{number // 2:03d}"}
        for number in range(2 * GROUPS * len(classes))
    ]
    return pd.DataFrame(rows)


def write_ham10000(root: Path) -> Source:
    rows = listed(HAM_CLASSES)
    for number, image in enumerate(rows["image"]):
        write_picture(root / f"HAM10000_images_part_{1 + number % 2}" / f"{image}.jpg", number)
    table = pd.DataFrame({"lesion_id": rows["group"], "image_id": rows["image"], "dx": rows["name"], "age": 50.0})
    table.to_csv(root / "HAM10000_metadata.csv", index=False)
    return HAM10000(root)


def write_isic2019(root: Path) -> Source:
    rows = listed(ISIC_CLASSES)
    for number, image in enumerate(rows["image"]):
        write_picture(root / "ISIC_2019_Training_Input" / f"{image}.jpg", number)
    order = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
    marks = {name: (rows["name"].str.upper() == name).astype(float) for name in order}
    pd.DataFrame({"image": rows["image"], **marks}).to_csv(root / "ISIC_2019_Training_GroundTruth.csv", index=False)
    metadata = pd.DataFrame({"image": rows["image"], "age_approx": 40.0, "lesion_id": rows["group"], "sex": "male"})
    metadata.to_csv(root / "ISIC_2019_Training_Metadata.csv", index=False)
    return ISIC2019(root)


def write_siim2020(root: Path) -> Source:
    rows = listed(("benign", "malignant"))
    for number, image in enumerate(rows["image"]):
        write_picture(root / "jpeg" / "train" / f"{image}.jpg", number)
    target = (rows["name"] == "malignant").astype(int)
    table = pd.DataFrame({"image_name": rows["image"], "patient_id": rows["group"], "sex": "female", "target": target})
    table.to_csv(root / "train.csv", index=False)
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
    rows = listed(("melanoma", "nevus", "other"))
    for number, image in enumerate(rows["image"]):
        write_picture(root / "pictures" / f"{image}.png", number)
    table = pd.DataFrame({"path": "pictures/" + rows["image"] + ".png", "label": rows["name"], "lesion": rows["group"]})
    table.to_csv(root / "images.csv", index=False)
    return CsvTable("images.csv", root, group_column="lesion")


def write_folder(root: Path) -> Source:
    rows = listed(("benign", "malignant"))
    for number, (image, name) in enumerate(zip(rows["image"], rows["name"], strict=True)):
        write_picture(root / name / f"{image}.JPG", number)
    return ClassFolders(root)


LAYOUTS: dict[str, Callable[[Path], Source]] = {
    "ham10000": write_ham10000,
    "isic2019": write_isic2019,
    "siim2020": write_siim2020,
    "medmnist": write_medmnist,
    "table": write_table,
    "folder": write_folder,
}


@pytest.fixture
def layout(tmp_path: Path) -> Callable[[str], tuple[Source, Path]]:
    """Write a small data set by its name; gives its source and its root."""

    def write(name: str) -> tuple[Source, Path]:
        return LAYOUTS[name](tmp_path / name), tmp_path / name

    return write


class Owner:
    """A local server in the owners' place: files with byte ranges, and the part of the archive's API that is used."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        # close the connection after so many bytes of a file, once an entry
        self.cut: list[int] = []
        self.requests: list[tuple[str, str | None]] = []  # path, range
        self.records: list[dict[str, Any]] = []  # of the archive's images
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # noqa: N802
                owner.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = urlparse(request.path).path.lstrip("/")
        wanted = request.headers.get("Range")
        self.requests.append((path, wanted))
        if path not in self.files:
            if (body := self.api(path, parse_qs(urlparse(request.path).query))) is None:
                return request.send_error(404)
            return self.send(request, 200, body, {})
        body = self.files[path]
        if wanted is None:
            return self.send(request, 200, body, {}, cut=True)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        if start >= len(body):
            return request.send_error(416)
        place = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        return self.send(request, 206, body[start:], place, cut=True)

    def send(
        self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str], cut: bool = False
    ) -> None:
        request.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            request.send_header(key, value)
        request.end_headers()
        request.wfile.write(body[: self.cut.pop(0)] if cut and self.cut else body)

    def api(self, path: str, query: dict[str, list[str]]) -> bytes | None:
        if path.startswith("collections/"):
            return b"{}"
        if path != "images/search/":
            return None
        page, start = 2, int(query.get("cursor", ["0"])[0])
        more = f"{self.url}images/search/?cursor={start + page}" if start + page < len(self.records) else None
        answer = {"count": len(self.records), "results": self.records[start : start + page], "next": more}
        return json.dumps(answer).encode()

    def add_file(self, path: str, body: bytes) -> str:
        """Serve a file; gives its MD5."""
        self.files[path] = body
        return hashlib.md5(body).hexdigest()

    def ranges(self, path: str) -> list[str | None]:
        """The byte ranges that were asked of a file, in order."""
        return [wanted for name, wanted in self.requests if name == path]

    def add_image(self, number: int, **clinical: Any) -> bytes:
        """Serve an image of the archive; gives its bytes."""
        name, body = f"ISIC_{number:07d}", os.urandom(2000 + number % 100)
        self.files[f"store/{name}.JPG"] = body
        address = {"full": {"url": f"{self.url}store/{name}.JPG", "size": len(body)}}
        about = {"acquisition": {}, "clinical": clinical}
        self.records.append({"isic_id": name, "files": address, "metadata": about})
        return body


@pytest.fixture
def owner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Owner]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Owner()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address where nobody listens."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/"
