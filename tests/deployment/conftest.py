import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_store import SmallStore, write_run

from src.deployment import trained
from src.tracking.store import Store


@pytest.fixture(scope="session")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> Iterator[SmallStore]:
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
        yield SmallStore(folder, store, run_id, file)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def compressed(recorded: SmallStore) -> str:
    """Id of a run whose model is a file."""
    file = recorded.folder / "compressed" / "model.onnx"
    file.parent.mkdir()
    shutil.copy(recorded.onnx, file)
    return write_run(recorded.store, recorded.folder, seed=0, deployed=file)
