"""Small pictures, a tiny exported net, and a store with a trial of two seeds."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import CLASSES, MEAN, SIZE, STD, Exported, Place, Typed

from src import predict, train
from src.deployment import onnx
from src.deployment.camera import CameraNet
from src.deployment.description import Decision, Description
from src.models.custom import CustomCNN
from src.tracking import history, read
from src.tracking.run import Run
from src.tracking.store import Store


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(1)
    net = CustomCNN(image_size=SIZE, outputs=len(CLASSES), width=4, depth=1, dense=[8]).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)  # farther from equal probabilities
    decision = Decision("mel", 0.3, "sensitivity >= 0.8 on val", temperature=1.7)
    said = Description("3f2a" * 8, "custom", CLASSES, SIZE, "pad", "made", "grouped", "none", decision=decision)
    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    onnx.write(CameraNet(net, MEAN, STD), said, path)
    return Exported(path, net, decision)


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def place(kept: Path, run_entry: Typed, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Made for the first test that asks."""
    monkeypatch.chdir(kept)
    monkeypatch.setenv("PARETODERM_CACHE", str(kept / "cache"))
    store = Store(folder=kept / "mlruns")
    if not (kept / "mlruns").exists():
        (kept / "mlruns").mkdir()
        shutil.copy(empty_database, kept / "mlruns" / "mlflow.db")
        tiny = [f"model.image_size={SIZE}", "model.net.width=4", "model.net.depth=1", "model.net.dense=[8]"]
        data = ["data=synthetic", "data.source.lesions=100", "trainer=cpu", "trainer.max_epochs=1", "efficiency=fast"]
        status, said = run_entry(train.main, "model=custom", *tiny, *data, "threads=1", "test=false")
        assert status == 0, said
        [first] = read.runs(store)["run_id"]
        with Run.start(store, "custom", {"kind": "trial", "model": "custom", "data": "synthetic"}) as trial:
            pass
        for run_id in (first, another_seed(store, first, kept)):
            Run.attach(store, run_id).move_below(trial)
    ids = read.runs(store).set_index("tags.seed")["run_id"]
    [above] = read.runs(store, "tags.kind = 'trial'")["run_id"]
    return Place(kept, (ids["0"], ids["1"]), above)


def another_seed(store: Store, run_id: str, folder: Path) -> str:
    """A run as a second training would leave it: other weights, other predictions of the same images."""
    tags = {key: value for key, value in store.client.get_run(run_id).data.tags.items() if "mlflow" not in key}
    state = torch.load(read.artifact(store, run_id, "checkpoint/best.ckpt"), weights_only=True)["state_dict"]
    torch.save({"state_dict": {name: 2 * values for name, values in state.items()}}, folder / "best.ckpt")
    val = history.predictions(store, run_id, "val")
    columns = [name for name in val if name.startswith("p/")]
    val[columns] = val[columns].sample(frac=1, random_state=0).to_numpy()
    with Run.start(store, "custom", tags | {"seed": "1"}) as run:
        run.artifact(read.artifact(store, run_id, "config.yaml"))
        run.artifact(folder / "best.ckpt", "checkpoint")
        run.table(val, "predictions/val.csv")
    return run.id


@pytest.fixture
def predicted(run_entry: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Typed:
    """`python -m src.predict <arguments>` in an empty folder: status and output."""
    threads, environment = torch.get_num_threads(), dict(os.environ)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        try:
            return run_entry(predict.main, "threads=1", *arguments)
        finally:
            torch.set_num_threads(threads)
            os.environ.clear()
            os.environ.update(environment)

    return run
