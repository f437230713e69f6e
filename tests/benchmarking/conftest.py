"""A tiny model as a file, a store with trained runs in it, and contenders on a clock of their own."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from made_up_models import CLASSES, write_onnx
from omegaconf import OmegaConf

from src.core.cli import ROOT
from src.deployment import trained
from src.tracking.run import Run
from src.tracking.store import Store
from src.training.checkpoint import save_weights


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mean colour of a 16 px picture, as probabilities; of run `0123abcd`."""
    pytest.importorskip("onnxruntime")
    return write_onnx(tmp_path_factory.mktemp("onnx") / "tiny.onnx", run_id="0123abcd")


@pytest.fixture
def store(empty_database: Path, tmp_path: Path) -> Store:
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_database, tmp_path / "mlruns" / "mlflow.db")
    return Store(folder=tmp_path / "mlruns", uri=f"sqlite:///{tmp_path}/mlruns/mlflow.db").open()


@pytest.fixture
def study(store: Store, tmp_path: Path) -> dict[str, str]:
    """A study of three untrained nets, two of them on its front, one of those of two seeds: ids by name."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(
            "train",
            ["model=custom", "model.image_size=16", "model.net.width=4", "model.net.depth=1"],
        )
    OmegaConf.save(config, tmp_path / "config.yaml", resolve=True)
    save_weights(trained.build_classifier(config, CLASSES), tmp_path / "best.ckpt")
    own = {f"p/{name}": np.full(4, 1 / len(CLASSES)) for name in CLASSES}
    about = {"image_id": list("abcd"), "group": list("abcd"), "label": [*CLASSES, CLASSES[0]]}
    pd.DataFrame(about | own).to_csv(tmp_path / "val.csv", index=False)

    def run(name: str, above: str | None, **tags: str) -> str:
        every = {
            "study": "widths",
            "model": "custom",
            "data": "drawn",
            "split": "grouped",
            "seed": "0",
        } | tags
        with Run.start(store, name, every, parent_id=above) as made:
            if every["kind"] == "run":
                made.artifact(tmp_path / "config.yaml")
                made.artifact(tmp_path / "best.ckpt", "checkpoint")
                made.artifact(tmp_path / "val.csv", "predictions")
        return made.id

    found = {"study": run("widths", None, kind="study")}
    found["member"] = run("member", found["study"], kind="run", front="true")
    found["other"] = run("other", found["study"], kind="run", front="false")
    found["trial"] = run("trial", found["study"], kind="trial", front="true")
    found["seed1"] = run("seed1", found["trial"], kind="run", seed="1")
    found["seed0"] = run("seed0", found["trial"], kind="run", seed="0")
    return found
