import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def server(empty_database: Path, tmp_path_factory: pytest.TempPathFactory, serve) -> Iterator[str]:
    """The address of MLflow's server on a store."""
    database = tmp_path_factory.mktemp("served") / "mlflow.db"
    shutil.copy(empty_database, database)
    with serve(database) as address:
        yield address
