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


class OnnxRuntime(base.FileRuntime):
    """A model in ONNX Runtime."""

    name, label, suffix = "onnx", "ONNX", ".onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")
    library = "onnxruntime"

    def _open(self, path: Path, threads: int) -> str:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.batch = 1 if metadata.get(SINGLE_KEY) else None
        return metadata.get(KEY, "")

    def __call__(self, pictures: base.ImageBatch) -> base.Probabilities:
        """Probabilities of the classes, (N, K)."""
        feed = {INPUT: np.ascontiguousarray(pictures)}
        probabilities: base.Probabilities = self._session.run([OUTPUT], feed)[0]
        return probabilities

    @staticmethod
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
