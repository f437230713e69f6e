"""Small data sets by their names, and a local server in place of their owners."""

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

import pytest
from layouts import LAYOUTS  # of tests/data

from src.data.source import Source


@pytest.fixture
def layout(tmp_path: Path) -> Callable[[str], tuple[Source, Path]]:
    """Write a small data set by its name; returns its source and its root."""
    return lambda name: (LAYOUTS[name](tmp_path / name), tmp_path / name)


class Owner:
    """A local server: files with byte ranges, and the part of the ISIC API that is used."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}  # paths, and where they send to
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
        elif path in self.redirects:
            status, headers["Location"], body = 302, self.redirects[path], b""
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
