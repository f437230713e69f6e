import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.tracking.store import Store


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    """A database with all its tables: creating one takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("database")
    Store(experiment="template", folder=folder, uri=f"sqlite:///{folder}/mlflow.db").open()
    return folder / "mlflow.db"


def _store(empty_database: Path, folder: Path) -> Store:
    folder.mkdir(exist_ok=True)
    shutil.copy(empty_database, folder / "mlflow.db")
    return Store(uri=f"sqlite:///{folder}/mlflow.db")


@pytest.fixture
def store(empty_database, tmp_path) -> Store:
    return _store(empty_database, tmp_path / "mlruns")


@pytest.fixture(scope="session")
def served_store(empty_database, tmp_path_factory) -> Store:
    """The store that `server` serves."""
    return _store(empty_database, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def server(root, served_store, free_port, tmp_path_factory) -> Iterator[str]:
    """The user interface, started as `make ui` starts it; its address."""
    assert served_store.database is not None
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [sys.executable, "-m", "src.tracking.ui", f"port={free_port}", f"uri=sqlite:///{served_store.database}"]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=root, stdout=output, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{free_port}"
    try:
        for _ in range(480):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError):
                assert process.poll() is None, log.read_text()
                time.sleep(0.25)
        assert f"{address}/#/experiments/" in log.read_text()
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)
