"""ONNX: written by torch's exporter, run by ONNX Runtime."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.deployment.description import KEY, Description
from src.deployment.runtimes import base

if TYPE_CHECKING:
    from torch import Tensor

    from src.deployment.runtimes.eager import CameraNet

INPUT, OUTPUT = "pictures", "probabilities"
# Metadata entry of a model whose output depends on the other pictures of the batch.
SINGLE_KEY = f"{KEY}.alone"


def export(camera: "CameraNet", example: "Tensor", description: Description) -> bytes:
    """A model of any batch size, with the description in the metadata."""
    import onnx  # noqa: F401
    import onnxscript  # noqa: F401  torch's exporter imports them late, with a traceback
    import torch

    program = torch.onnx.export(
        camera,
        (example,),
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes={"pictures": {0: torch.export.Dim("N")}},
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props[KEY] = description.to_json()
    return program.model_proto.SerializeToString()


class OnnxRuntime:
    """A model in ONNX Runtime, on the CPU, with a number of threads per call."""

    name = "onnx"
    batch: int | None = None

    def __init__(self, path: Path, threads: int = 1) -> None:
        with base.needs("onnx"):
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        with base.naming_file(path, "ONNX Runtime"):
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.description = Description.from_json(metadata.get(KEY, ""), str(path))
        self.batch = 1 if metadata.get(SINGLE_KEY) else None

    def __call__(self, pictures: base.ImageBatch) -> base.Probabilities:
        """Probabilities of the classes, (N, K)."""
        feed = {INPUT: np.ascontiguousarray(pictures)}
        probabilities: base.Probabilities = self._session.run([OUTPUT], feed)[0]
        return probabilities


FORMAT = base.Format(
    name="onnx",
    label="ONNX",
    suffix=".onnx",
    packages=("onnx", "onnxscript", "onnxruntime"),
    library="onnxruntime",
    export=export,
    load=OnnxRuntime,
)
