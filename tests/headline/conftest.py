import shutil
from pathlib import Path

import pytest

from src.tracking.store import Store


@pytest.fixture
def made(empty_database: Path, tmp_path: Path) -> Store:
    """A store without runs."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Store(uri=f"sqlite:///{tmp_path}/mlflow.db").open()
