"""A tiny model file without a net (exporters take seconds), and a store with a study."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from torch import nn

from src.core.cli import CONF
from src.deployment import trained
from src.deployment.description import KEY, Description
from src.tracking.run import Run
from src.tracking.store import Store
from src.training.checkpoint import save_weights

CLASSES = ("red", "green", "blue")
SIZE = 16


@pytest.fixture(scope="session")
def describe() -> Callable[[str], Description]:
    """The description of the model of a run."""
    return lambda run_id: Description(
        run_id, "tiny", CLASSES, SIZE, "squash", "drawn", "grouped", "none applies"
    )


@pytest.fixture(scope="session")
def write_onnx(describe: Callable[[str], Description]) -> Callable[[Path, str], Path]:
    """Write a model: the softmax of the mean colours of (N, 16, 16, 3)."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    from src.deployment.runtimes.onnx import INPUT, OUTPUT

    def write(path: Path, run_id: str) -> Path:
        sides = helper.make_tensor("sides", TensorProto.INT64, [2], [1, 2])
        shape = ["N", SIZE, SIZE, 3]
        graph = helper.make_graph(
            [
                helper.make_node("Cast", [INPUT], ["float"], to=TensorProto.FLOAT),
                helper.make_node("ReduceMean", ["float", "sides"], ["mean"], keepdims=0),
                helper.make_node("Softmax", ["mean"], [OUTPUT], axis=1),
            ],
            "tiny",
            [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape)],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", 3])],
            [sides],
        )
        opset = helper.make_opsetid("", 18)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
        helper.set_model_props(model, {KEY: describe(run_id).to_json()})
        path.parent.mkdir(exist_ok=True)
        onnx.save(model, str(path))
        return path

    return write


@pytest.fixture(scope="session")
def onnx_file(
    tmp_path_factory: pytest.TempPathFactory, write_onnx: Callable[[Path, str], Path]
) -> Path:
    """A model of run `0123abcd`."""
    return write_onnx(tmp_path_factory.mktemp("onnx") / "tiny.onnx", "0123abcd")


@pytest.fixture
def store(empty_database: Path, tmp_path: Path) -> Store:
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_database, tmp_path / "mlruns" / "mlflow.db")
    return Store(folder=tmp_path / "mlruns", uri=f"sqlite:///{tmp_path}/mlruns/mlflow.db").open()


@pytest.fixture
def study(store: Store, tmp_path: Path) -> dict[str, str]:
    """Ids of a study of three untrained nets; on its front: a run, and a trial of two seeds."""
    GlobalHydra.instance().clear()
    tiny = ["model.image_size=16", "model.net.width=4", "model.net.depth=1"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["model=custom", *tiny])
    OmegaConf.save(config, tmp_path / "config.yaml", resolve=True)
    net = trained.build_net(config, CLASSES)
    save_weights(nn.ModuleDict({"net": net}), tmp_path / "best.ckpt")
    frame = pd.DataFrame({"image_id": list("abcd"), "group": list("abcd")})
    frame["label"] = [*CLASSES, CLASSES[0]]
    frame[[f"p/{name}" for name in CLASSES]] = np.full((4, 3), 1 / 3)
    frame.to_csv(tmp_path / "val.csv", index=False)
    common = {"study": "widths", "model": "custom", "data": "drawn", "split": "grouped"}

    def record(name: str, parent: str | None, **tags: str) -> str:
        tags = common | {"seed": "0"} | tags
        with Run.start(store, name, tags, parent_id=parent) as run:
            if tags["kind"] == "run":
                run.artifact(tmp_path / "config.yaml")
                run.artifact(tmp_path / "best.ckpt", "checkpoint")
                run.artifact(tmp_path / "val.csv", "predictions")
        return run.id

    ids = {"study": record("widths", None, kind="study")}
    ids["member"] = record("member", ids["study"], kind="run", front="true")
    ids["other"] = record("other", ids["study"], kind="run", front="false")
    ids["trial"] = record("trial", ids["study"], kind="trial", front="true")
    ids["seed1"] = record("seed1", ids["trial"], kind="run", seed="1")
    ids["seed0"] = record("seed0", ids["trial"], kind="run", seed="0")
    return ids
