"""LiteRT (formerly TensorFlow Lite): written by litert-torch, run by LiteRT's interpreter."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.deployment.description import KEY, Description
from src.deployment.runtimes import base

if TYPE_CHECKING:
    from torch import Tensor

    from src.deployment.runtimes.eager import CameraNet

IDENTIFIER = b"TFL3"  # of the flatbuffer schema, bytes 4 to 8 of each file


class LitertRuntime(base.FileRuntime):
    """A model in LiteRT's interpreter."""

    name, label, suffix = "litert", "LiteRT", ".tflite"
    packages = ("litert_torch", "ai_edge_litert")
    library = "ai_edge_litert.interpreter"

    def _open(self, path: Path, threads: int) -> str:
        from ai_edge_litert import interpreter
        from ai_edge_litert import schema_py_generated as schema

        content = path.read_bytes()
        self._interpreter: Any = interpreter.Interpreter(model_content=content, num_threads=threads)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]
        model = schema.Model.GetRootAs(content, 0)
        entries = [model.Metadata(number) for number in range(model.MetadataLength())]
        buffers = [entry.Buffer() for entry in entries if entry.Name() == KEY.encode()]
        return bytes(model.Buffers(buffers[0]).DataAsNumpy()).decode() if buffers else ""

    def __call__(self, pictures: base.ImageBatch) -> base.Probabilities:
        """Probabilities of the classes of one picture, (1, K)."""
        self._interpreter.set_tensor(self._input, pictures)
        self._interpreter.invoke()
        probabilities: base.Probabilities = self._interpreter.get_tensor(self._output)
        return probabilities

    @staticmethod
    def export(camera: "CameraNet", example: "Tensor", description: Description) -> bytes:
        """A model of batch 1, with the description in a metadata buffer of the file.

        XNNPACK's kernels, which make it fast, do not take a batch that changes from call to call.
        """
        import flatbuffers
        import litert_torch
        from ai_edge_litert import schema_py_generated as schema

        content = litert_torch.convert(camera, (example[:1],)).model_content()
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(content), 0))
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(description.to_json().encode(), np.uint8)
        entry = schema.MetadataT()
        entry.name, entry.buffer = KEY, len(model.buffers)
        model.buffers.append(buffer)
        model.metadata = [*(model.metadata or []), entry]
        builder = flatbuffers.Builder(len(content) + 2 * len(buffer.data))
        builder.Finish(model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())
