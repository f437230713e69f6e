"""Small pictures, a tiny exported net, and a store with a trial of two seeds."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from scipy.special import softmax
from tiny_models import CLASSES, CODES, MEAN, SIZE, STD, Exported, Place, Typed

from src import predict
from src.core.cli import ROOT
from src.deployment import trained
from src.deployment.description import Decision, Description
from src.deployment.runtimes import onnx
from src.deployment.runtimes.eager import CameraNet
from src.models.custom import CustomCNN
from src.tracking.run import Run
from src.tracking.store import Store
from src.training.checkpoint import save_weights


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(1)
    net = CustomCNN(image_size=SIZE, outputs=len(CLASSES), width=4, depth=1, dense=[8]).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)  # farther from equal probabilities
    decision = Decision("mel", 0.3, "sensitivity >= 0.8 on val", temperature=1.7)
    said = Description(
        "3f2a" * 8, "custom", CLASSES, SIZE, "pad", "made", "grouped", "none", decision=decision
    )
    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    onnx.write(CameraNet(net, MEAN, STD), said, path)
    return Exported(path, net, decision)


@pytest.fixture(scope="session")
def place(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Made once; a test that adds a run takes it away again."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "mlruns").mkdir()
    shutil.copy(empty_database, folder / "mlruns" / "mlflow.db")
    store = Store(folder=folder / "mlruns")
    tiny = [
        f"model.image_size={SIZE}",
        "model.net.width=4",
        "model.net.depth=1",
        "model.net.dense=[8]",
    ]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", ["model=custom", "data=synthetic", *tiny])
    with Run.start(
        store, "custom", {"kind": "trial", "model": "custom", "data": "synthetic"}
    ) as trial:
        pass
    first, second = (one_seed(store, config, seed, trial, folder) for seed in (0, 1))
    return Place(folder, (first, second), trial.id)


def one_seed(store: Store, config: DictConfig, seed: int, trial: Run, folder: Path) -> str:
    """A run as a training leaves it, its weights and predictions drawn."""
    torch.manual_seed(seed)
    net = trained.build_classifier(config, CODES)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 + seed)  # other weights in each
    save_weights(net, folder / "best.ckpt")
    label = np.arange(70) % len(CODES)
    probability = softmax(
        2 * np.eye(len(CODES))[label] + np.random.default_rng(seed).normal(size=(70, len(CODES))), 1
    )
    val = pd.DataFrame(
        {"image_id": [f"{row:02d}" for row in range(70)], "label": np.array(CODES)[label]}
    )
    val = val.assign(
        group=val["image_id"], **{f"p/{name}": probability[:, at] for at, name in enumerate(CODES)}
    )
    tags = {
        "kind": "run",
        "model": "custom",
        "data": "synthetic",
        "split": "grouped",
        "seed": str(seed),
    }
    with Run.start(store, "custom", tags, parent_id=trial.id) as run:
        run.text(OmegaConf.to_yaml(config, resolve=True), "config.yaml")
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
