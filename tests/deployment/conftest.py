import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_store import Place, write_run

from src.deployment import trained
from src.tracking.store import Store


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Place]:
    """A store with one run, and the ONNX file of the run."""
    folder = tmp_path_factory.mktemp("deployment")
    (folder / "mlruns").mkdir()
    shutil.copy(empty_database, folder / "mlruns" / "mlflow.db")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store = Store(folder=folder / "mlruns")
        run_id = write_run(store, folder, seed=0)
        file = trained.write_file(store, trained.single(store, run_id), "onnx", folder)
        yield Place(folder, store, run_id, file)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def compressed(place: Place) -> str:
    """Id of a run whose model is a file."""
    file = place.folder / "compressed" / "model.onnx"
    file.parent.mkdir()
    shutil.copy(place.onnx, file)
    return write_run(place.store, place.folder, seed=0, deployed=file)
