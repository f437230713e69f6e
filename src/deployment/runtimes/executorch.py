"""ExecuTorch: written by its exporter for XNNPACK's kernels, run by its Python runtime."""

import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.core.errors import UserError
from src.deployment.description import KEY, Description
from src.deployment.runtimes import base

if TYPE_CHECKING:
    from torch import Tensor

    from src.deployment.runtimes.eager import CameraNet


class ExecutorchRuntime(base.FileRuntime):
    """A model in ExecuTorch's runtime.

    ExecuTorch has one thread pool per process: models that are loaded at the same time must use
    the same number; else UserError is raised.
    """

    name, label, suffix = "executorch", "ExecuTorch", ".pte"
    packages = ("executorch", "torchao")
    library = "executorch.runtime"
    _loaded: "weakref.WeakSet[ExecutorchRuntime]" = weakref.WeakSet()

    def _open(self, path: Path, threads: int) -> str:
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        if portable_lib._threadpool_get_thread_count() != threads:
            if self._loaded:
                raise UserError(
                    f"threads={threads}: ExecuTorch models with another number of threads are "
                    "loaded in this process, and use the same pool; measure them in processes "
                    "of their own"
                )
            # Unsafe only for models that are loaded.
            portable_lib._unsafe_reset_threadpool(threads)
        self._program = Runtime.get().load_program(path)
        self._forward = self._program.load_method("forward")
        self._loaded.add(self)
        described = KEY in self._program.method_names
        return str(self._program.load_method(KEY).execute([])[0]) if described else ""

    def __call__(self, pictures: base.ImageBatch) -> base.Probabilities:
        """Probabilities of the classes of one picture, (1, K)."""
        import torch

        picture = torch.from_numpy(np.ascontiguousarray(pictures))
        probabilities: base.Probabilities = self._forward.execute([picture])[0].numpy()
        return probabilities

    @staticmethod
    def export(camera: "CameraNet", example: "Tensor", description: Description) -> bytes:
        """A model of batch 1, with the description as a constant method of the program.

        A batch of any size is possible and no slower, but memory is planned for the largest one.
        """
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = to_edge_transform_and_lower(
            torch.export.export(camera, (example[:1],)),
            partitioner=[XnnpackPartitioner()],
            constant_methods={KEY: description.to_json()},
        )
        content: bytes = program.to_executorch().buffer
        return content
