"""A tiny model file without a net (exporters take seconds), and a store with a study."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_store import write_run

from src.deployment.description import KEY, Description
from src.tracking.run import Run
from src.tracking.store import Store

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


@pytest.fixture(scope="session")
def study(
    empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, dict[str, str]]:
    """A store, and ids of a study of untrained nets; on its front: a run, a trial of two seeds."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "mlruns").mkdir()
    shutil.copy(empty_database, folder / "mlruns" / "mlflow.db")
    store = Store(folder=folder / "mlruns", uri=f"sqlite:///{folder}/mlruns/mlflow.db").open()
    common = {"study": "widths", "model": "custom"}

    def parent(above: str | None, **tags: str) -> str:
        with Run.start(store, tags["kind"], common | tags, parent_id=above) as run:
            pass
        return run.id

    def net(above: str, seed: int, front: str = "") -> str:
        run_id = write_run(store, folder, seed, parent=above)
        for name, value in {"study": "widths", "front": front}.items():
            store.client.set_tag(run_id, name, value)
        return run_id

    study = parent(None, kind="study")
    trial = parent(study, kind="trial", front="true")
    ids = {"trial": trial, "seed1": net(trial, 1), "seed0": net(trial, 0)}
    ids |= {"member": net(study, 0, "true"), "other": net(study, 0, "false")}
    parent(None, kind="study", study="frontless")
    return store, ids
