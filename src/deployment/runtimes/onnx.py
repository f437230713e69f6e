"""ONNX: written by torch's exporter, run by ONNX Runtime."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.deployment.description import KEY, Description
from src.deployment.runtimes.base import (
    Format,
    ImageBatch,
    Probabilities,
    naming_file,
    naming_operators,
    needs,
    quiet,
)

if TYPE_CHECKING:
    from src.deployment.runtimes.eager import CameraNet

INPUT, OUTPUT = "pictures", "probabilities"
# Metadata entry of a model whose output depends on the other pictures of the batch.
SINGLE_KEY = f"{KEY}.alone"


def write(camera: "CameraNet", description: Description, path: Path) -> None:
    """Write a model of any batch size, with the description in the file's metadata.

    Args:
        camera: On the CPU.
        description: Of the model.
        path: Ends in .onnx.

    Raises:
        UserError: The extra is not installed, or the format has no such operator.
        OSError: The file cannot be written.
    """
    with quiet(), needs("onnx"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401  torch's exporter imports them late, with a traceback
    import torch

    size = description.image_size
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with naming_operators(FORMAT.label), quiet():
        program = torch.onnx.export(
            camera.portable(),
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"pictures": {0: torch.export.Dim("N")}},
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props[KEY] = description.to_json()
    path.write_bytes(program.model_proto.SerializeToString())


class OnnxRuntime:
    """A model in ONNX Runtime, on the CPU.

    Args:
        path: Written by `write`, or quantised from such a file.
        threads: Per call.

    Raises:
        UserError: The extra is not installed, or the file is not such a model.
    """

    name = "onnx"
    batch: int | None = None

    def __init__(self, path: Path, threads: int = 1) -> None:
        with needs("onnx"):
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        with naming_file(path, "ONNX Runtime"):
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.description = Description.from_json(metadata.get(KEY, ""), str(path))
        self.batch = 1 if metadata.get(SINGLE_KEY) else None

    def __call__(self, pictures: ImageBatch) -> Probabilities:
        """Probabilities of the classes, (N, K)."""
        feed = {INPUT: np.ascontiguousarray(pictures)}
        probabilities: Probabilities = self._session.run([OUTPUT], feed)[0]
        return probabilities


FORMAT = Format(
    name=OnnxRuntime.name,
    label="ONNX",
    suffix=".onnx",
    packages=("onnx", "onnxscript", "onnxruntime"),
    library="onnxruntime",
    write=write,
    load=OnnxRuntime,
)
