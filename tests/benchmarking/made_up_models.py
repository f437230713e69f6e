"""A model without a net, written with onnx alone: exporters take seconds."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from src.deployment.description import KEY, Description
from src.deployment.runtimes.onnx import INPUT, OUTPUT

CLASSES = ("red", "green", "blue")
SIZE = 16


def describe(run_id: str) -> Description:
    return Description(run_id, "tiny", CLASSES, SIZE, "squash", "drawn", "grouped", "none applies")


def write_onnx(path: Path, run_id: str) -> Path:
    """Softmax of the mean colours of (N, 16, 16, 3)."""
    nodes = [
        helper.make_node("Cast", [INPUT], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "sides"], ["mean"], keepdims=0),
        helper.make_node("Softmax", ["mean"], [OUTPUT], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor("sides", TensorProto.INT64, [2], [1, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {KEY: describe(run_id).to_json()})
    path.parent.mkdir(exist_ok=True)
    onnx.save(model, str(path))
    return path
