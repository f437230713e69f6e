"""ONNX: written by torch's exporter, run by ONNX Runtime."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.core.errors import UserError
from src.deployment.description import KEY, Description
from src.deployment.runtimes.base import (
    ImageBatch,
    Name,
    Probabilities,
    naming_operators,
    needs,
    quiet,
)

if TYPE_CHECKING:
    from src.deployment.runtimes.eager import CameraNet


FORMAT = "ONNX"
ALONE = (
    f"{KEY}.alone"  # in the metadata of a model whose answer depends on what else is in the batch
)
INPUT, OUTPUT = "pictures", "probabilities"


def write(camera: "CameraNet", description: Description, path: Path) -> None:
    """Write a model of any batch size, its description in the file's metadata.

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
        import onnxscript  # noqa: F401  torch's exporter asks for them late, and with a traceback
    import torch

    size = description.image_size
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with naming_operators(FORMAT), quiet():
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
        threads: Of one call.

    Raises:
        UserError: The extra is not installed, or the file is no such model.
    """

    name: Name = "onnx"
    batch: int | None = None

    def __init__(self, path: Path, threads: int = 1) -> None:
        with needs("onnx"):
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own classes differ from version to version
            raise UserError(
                f"{path}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}"
            ) from error
        held = self._session.get_modelmeta().custom_metadata_map
        self.description = Description.from_json(held.get(KEY, ""), str(path))
        self.batch = 1 if held.get(ALONE) else None

    def __call__(self, pictures: ImageBatch) -> Probabilities:
        """Probabilities of the classes, (N, K)."""
        found: Probabilities = self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(pictures)})[
            0
        ]
        return found
