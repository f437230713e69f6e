"""Small data sets in the layouts of their owners, and a local server in place of the owners."""

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
from src.data.isic2018 import ISIC2018
from src.data.isic2019 import CLASSES as ISIC_CLASSES
from src.data.isic2019 import ISIC2019
from src.data.medmnist import MedMNIST
from src.data.siim2020 import SIIM2020
from src.data.source import Source
from src.data.table import CsvTable

GROUPS = 6  # of two images each, per class
TRUTH_2018 = "ISIC2018_Task3_Test_GroundTruth.csv"


def write_picture(path: Path, seed: int, size: tuple[int, int] = (20, 15)) -> None:
    """A noise image, width x height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


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
    one_hot(rows, order).to_csv(root / "ISIC_2019_Training_GroundTruth.csv", index=False)
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
    return CsvTable("images.csv", root, group_column="lesion")


def write_folder(root: Path) -> Source:
    write_pictures(rows_of(("benign", "malignant")), "{name}/{image}.JPG", root)
    return ClassFolders(root)


LAYOUTS: dict[str, Callable[[Path], Source]] = {
    name.removeprefix("write_"): function
    for name, function in list(globals().items())
    if name.startswith("write_") and name not in ("write_picture", "write_pictures")
}


@pytest.fixture
def layout(tmp_path: Path) -> Callable[[str], tuple[Source, Path]]:
    """Write a small data set by its name; returns its source and its root."""
    return lambda name: (LAYOUTS[name](tmp_path / name), tmp_path / name)


class Owner:
    """A local server: files with byte ranges, and the part of the ISIC API that is used."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: list[int] = []  # close the connection after this many bytes; one per answer
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
        address, span = urlparse(request.path), request.headers.get("Range")
        path = address.path.lstrip("/")
        self.requests.append((path, span))
        status, headers, length = 200, {}, None
        if path in self.files:
            body = self.files[path]
            length = self.cut.pop(0) if self.cut else None
            if span is not None:
                start = int(re.fullmatch(r"bytes=(\d+)-", span)[1])
                if start >= len(body):
                    request.send_error(416)
                    return
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                status, body = 206, body[start:]
        elif path.startswith("collections/"):
            body = b"{}"
        elif path == "images/search/":
            body = self.page(int(parse_qs(address.query).get("cursor", ["0"])[0]))
        else:
            request.send_error(404)
            return
        request.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            request.send_header(key, value)
        request.end_headers()
        request.wfile.write(body[:length])

    def page(self, start: int) -> bytes:
        end = start + 2
        more = f"{self.url}images/search/?cursor={end}" if end < len(self.records) else None
        answer = {"count": len(self.records), "results": self.records[start:end], "next": more}
        return json.dumps(answer).encode()

    def add_file(self, path: str, body: bytes) -> str:
        """Serve a file; returns its MD5."""
        self.files[path] = body
        return hashlib.md5(body).hexdigest()

    def ranges(self, path: str) -> list[str | None]:
        """The byte ranges that were requested of a file, in order."""
        return [span for name, span in self.requests if name == path]

    def add_image(self, number: int, **clinical: Any) -> bytes:
        """Serve an image of the archive; returns its bytes."""
        name, body = f"ISIC_{number:07d}", os.urandom(2000 + number % 100)
        self.files[f"store/{name}.JPG"] = body
        address = {"full": {"url": f"{self.url}store/{name}.JPG", "size": len(body)}}
        metadata = {"acquisition": {}, "clinical": clinical}
        self.records.append({"isic_id": name, "files": address, "metadata": metadata})
        return body


@pytest.fixture
def owner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Owner]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Owner()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address where nothing listens."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/"
