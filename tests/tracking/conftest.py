import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.tracking.store import Store


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
def server(served_store, serve) -> Iterator[str]:
    """The user interface on `served_store`; its address."""
    with serve(served_store.database) as address:
        yield address
