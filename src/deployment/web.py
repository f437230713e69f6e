"""A page that runs an ONNX file in a browser: `format=web` of src.export."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from src.core.errors import ConfigError, UserError
from src.core.files import atomic_folder, expanded
from src.deployment.description import Description

NAME = "web"
VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
SCRIPT, BINARY = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
SHA256 = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    BINARY: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
PRECISIONS = ("float32", "int8")
MAX_MB = 15.0  # of the folder: a phone loads it
_NPM_TIMEOUT_S = 600  # for 33 MB


@dataclass
class WebSettings:
    """The keys below `web` of conf/command/export.yaml."""

    runtime: str | None = None
    unsure_below: Annotated[float, Ge(0), Le(1)] | None = None


def find_runtime(folder: str | None) -> Path:
    """The folder with the two files of onnxruntime-web, by their digests.

    Args:
        folder: The unpacked package, or its folder `dist`. None: the user's cache folder; npm
            fetches the package into it, the first time.

    Raises:
        ConfigError: The folder does not hold them.
        UserError: npm is not installed or cannot fetch the package, or the cache is not writable.
    """
    if folder is not None:
        path = expanded(folder)
        for candidate in (path, path / "dist"):
            if _is_intact(candidate):
                return candidate
        files = f"{SCRIPT} and {BINARY} of {PACKAGE}"
        raise ConfigError("web.runtime", f"{folder} does not hold {files}; unpack that package")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(caches) / "paretoderm" / PACKAGE
    if not _is_intact(cache):
        with atomic_folder(cache, PACKAGE, "XDG_CACHE_HOME") as draft:
            _fetch(draft)
    return cache


def _is_intact(folder: Path) -> bool:
    files = {name: folder / name for name in SHA256}
    return all(
        file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == SHA256[name]
        for name, file in files.items()
    )


def _fetch(folder: Path) -> None:
    """Let npm, whose settings name the registry, fetch the package; keep the two files of it."""
    problem = f"format=web: {PACKAGE} cannot be fetched"
    remedy = "name a folder with the unpacked package: web.runtime=<folder>"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"{problem}, because npm is not installed; install it, or {remedy}")
    command = [npm, "pack", PACKAGE, "--loglevel=error", "--fetch-retries=1"]
    with tempfile.TemporaryDirectory() as downloads:
        try:
            done = subprocess.run(
                command, cwd=downloads, capture_output=True, text=True, timeout=_NPM_TIMEOUT_S
            )
            reason = next(iter(done.stderr.splitlines()), f"npm ended with {done.returncode}")
        except subprocess.TimeoutExpired:
            reason = f"npm took more than {_NPM_TIMEOUT_S} s"
        archive = next(Path(downloads).glob("*.tgz"), None)
        if archive is None:
            raise UserError(f"{problem} ({reason}); {remedy}")
        with tarfile.open(archive) as package:
            for member in package:
                name = Path(member.name).name
                if name in SHA256 and (content := package.extractfile(member)) is not None:
                    (folder / name).write_bytes(content.read())
    if not _is_intact(folder):
        raise UserError(f"{problem}: what npm fetched is not that package; {remedy}")


@contextmanager
def atomic_page(folder: Path, about: Description, settings: WebSettings) -> Iterator[Path]:
    """Yield a draft path for an ONNX file. Then `folder` becomes a page that runs it in a browser.

    Raises:
        UserError: The page would be larger than `MAX_MB`, takes no weights of this precision, or
            cannot be written; the folder is unchanged then, as after any exception.
    """
    if about.precision not in PRECISIONS:
        problem = f"takes {' or '.join(PRECISIONS)}, but the run is {about.precision}"
        raise UserError(f"format=web: {problem}; take format=onnx")
    runtime = find_runtime(settings.runtime)
    with atomic_folder(folder, "the page") as draft:
        yield draft / "model.onnx"
        for name, copy in (("web.html", "index.html"), ("web.js", "page.js")):
            shutil.copyfile(Path(__file__).with_name(name), draft / copy)
        # .js, because not all servers know the type of .mjs
        shutil.copyfile(runtime / SCRIPT, draft / "onnxruntime.js")
        binary = gzip.compress((runtime / BINARY).read_bytes(), 6, mtime=0)
        (draft / "onnxruntime.wasm.gz").write_bytes(binary)
        facts = {
            "description": json.loads(about.to_json()),
            "runtime": PACKAGE,
            "unsure_below": settings.unsure_below or 0,
            "size_mb": folder_mb(draft / "model.onnx"),
        }
        (draft / "model.json").write_text(json.dumps(facts))
        if (size := folder_mb(draft)) > MAX_MB:
            problem = f"the page would take {size:.1f} MB, more than {MAX_MB:g} MB"
            raise UserError(f"format=web: {problem}; take a smaller net, or compress it to int8")


def folder_mb(path: Path) -> float:
    """Size of a file, or of the files in a folder, 10^6 bytes."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files) / 1e6
