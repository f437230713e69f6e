"""ExecuTorch: written by its exporter for XNNPACK's kernels, run by its Python runtime."""

import weakref
from pathlib import Path

import numpy as np
import torch

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
from src.deployment.runtimes.eager import CameraNet

FORMAT = "ExecuTorch"


def write(camera: CameraNet, description: Description, path: Path) -> None:
    """Write a model of batch 1, its description as a constant method of the program.

    A batch of any size is possible too, and no slower, but its memory is planned for the largest
    one.

    Args:
        camera: On the CPU.
        description: Of the model.
        path: Ends in .pte.

    Raises:
        UserError: The extra is not installed, or the format has no such operator.
        OSError: The file cannot be written.
    """
    with quiet(), needs("executorch"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    size = description.image_size
    example = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    with naming_operators(FORMAT), quiet():
        program = to_edge_transform_and_lower(
            torch.export.export(camera.portable(), (example,)),
            partitioner=[XnnpackPartitioner()],
            constant_methods={KEY: description.to_json()},
        ).to_executorch()
    path.write_bytes(program.buffer)


class ExecutorchRuntime:
    """A model in ExecuTorch's runtime, on the CPU.

    Args:
        path: Written by `write`, or quantised for XNNPACK.
        threads: Of one call. ExecuTorch has one pool of threads a process: models that are loaded
            at the same time have to agree on their number.

    Raises:
        UserError: The extra is not installed, the file is no such model, or other models here have
            other threads.
    """

    name: Name = "executorch"
    batch: int | None = 1
    _alive: "weakref.WeakSet[ExecutorchRuntime]" = weakref.WeakSet()

    def __init__(self, path: Path, threads: int = 1) -> None:
        with quiet(), needs("executorch"):
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime
        with quiet():
            if portable_lib._threadpool_get_thread_count() != threads:
                if self._alive:
                    raise UserError(
                        f"threads={threads}: ExecuTorch models with another number of threads are loaded in this "
                        "process, and use the same pool; measure them in processes of their own"
                    )
                portable_lib._unsafe_reset_threadpool(
                    threads
                )  # unsafe only for models that are loaded
            try:
                self._program = Runtime.get().load_program(path)
                self._forward = self._program.load_method("forward")
            except (
                Exception
            ) as error:  # RuntimeError mostly; the classes differ from version to version
                raise UserError(
                    f"{path}: ExecuTorch cannot load it: {(str(error) or repr(error)).splitlines()[0]}"
                ) from error
            described = KEY in self._program.method_names
            content = self._program.load_method(KEY).execute([])[0] if described else ""
        self.description = Description.from_json(str(content), str(path))
        self._alive.add(self)

    def __call__(self, pictures: ImageBatch) -> Probabilities:
        """Probabilities of the classes of one picture, (1, K)."""
        found: Probabilities = self._forward.execute(
            [torch.from_numpy(np.ascontiguousarray(pictures))]
        )[0].numpy()
        return found
