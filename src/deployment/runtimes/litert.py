"""LiteRT (formerly TensorFlow Lite): written by litert-torch, run by LiteRT's interpreter."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

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


FORMAT = "LiteRT"
IDENTIFIER = b"TFL3"  # of the flatbuffer's schema, bytes 4 to 8 of each such file


def write(camera: "CameraNet", description: Description, path: Path) -> None:
    """Write a model of batch 1, its description in a metadata buffer of the file.

    XNNPACK's kernels, which make it fast, take no batch that changes from call to call.

    Args:
        camera: On the CPU.
        description: Of the model.
        path: Ends in .tflite.

    Raises:
        UserError: The extra is not installed, or the format has no such operator.
        OSError: The file cannot be written.
    """
    with quiet(), needs("litert"):
        import litert_torch
    import torch

    size = description.image_size
    example = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    with naming_operators(FORMAT), quiet():
        content = litert_torch.convert(camera.portable(), (example,)).model_content()
    path.write_bytes(described(content, description))


def described(content: bytes, description: Description) -> bytes:
    """A model's file with a description in it, in place of the one that it may have.

    Args:
        content: Of a .tflite file.
        description: Of the model.
    """
    with quiet(), needs("litert"):
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(content), 0))
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(description.to_json().encode(), np.uint8)
    entry = schema.MetadataT()
    entry.name, entry.buffer = KEY, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [each for each in model.metadata or [] if each.name != KEY.encode()] + [entry]
    builder = flatbuffers.Builder(len(content) + 2 * len(buffer.data))
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


class LitertRuntime:
    """A model in LiteRT's interpreter, on the CPU.

    Args:
        path: Written by `write`, or quantised from such a file.
        threads: Of one call.

    Raises:
        UserError: The extra is not installed, or the file is no such model.
    """

    name: Name = "litert"
    batch: int | None = 1

    def __init__(self, path: Path, threads: int = 1) -> None:
        with quiet(), needs("litert"):
            from ai_edge_litert import interpreter
        try:
            content = path.read_bytes()
            with quiet():
                self._interpreter: Any = interpreter.Interpreter(
                    model_content=content, num_threads=threads
                )
                self._interpreter.allocate_tensors()
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{path}: LiteRT cannot load it: {(str(error) or repr(error)).splitlines()[0]}"
            ) from error
        self.description = Description.from_json(_held(content), str(path))
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]

    def __call__(self, pictures: ImageBatch) -> Probabilities:
        """Probabilities of the classes of one picture, (1, K)."""
        self._interpreter.set_tensor(self._input, pictures)
        self._interpreter.invoke()
        found: Probabilities = self._interpreter.get_tensor(self._output)
        return found


def _held(content: bytes) -> str:
    """The description in a model's file, or nothing."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    for number in range(model.MetadataLength()):
        entry = model.Metadata(number)
        if entry.Name() == KEY.encode():
            return bytes(model.Buffers(entry.Buffer()).DataAsNumpy()).decode(errors="replace")
    return ""
