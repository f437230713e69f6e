"""PyTorch itself as a runtime: eager, and compiled."""

import numpy as np
import torch

from src.classifier import Classifier
from src.deployment.camera import CameraNet
from src.deployment.description import Description
from src.deployment.runtime import Name, Pictures, Probabilities
from src.errors import DependencyError


class EagerRuntime:
    """A trained net as PyTorch runs it, on the CPU, in channels-last memory.

    Args:
        classifier: Trained.
        description: Of it.
        threads: Of one call.
    """

    name: Name = "eager"
    batch: int | None = None

    def __init__(self, classifier: Classifier, description: Description, threads: int = 1) -> None:
        self.description = description
        self._model = CameraNet.of(classifier.cpu())
        self._model.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
        self._threads = threads

    def __call__(self, pictures: Pictures) -> Probabilities:
        """Probabilities of the classes, (N, K)."""
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)  # of the whole process
        with torch.inference_mode():
            found: Probabilities = self._model(torch.from_numpy(np.ascontiguousarray(pictures))).numpy()
        return found


class CompiledRuntime(EagerRuntime):
    """The same, compiled by torch.compile for one picture at loading; other batch sizes are compiled when they come.

    Raises:
        DependencyError: There is no C++ compiler.
    """

    name: Name = "compile"

    def __init__(self, classifier: Classifier, description: Description, threads: int = 1) -> None:
        super().__init__(classifier, description, threads)
        self._model.compile()
        size = description.image_size
        try:
            self(np.zeros((1, size, size, 3), np.uint8))
        except Exception as error:
            if "InvalidCxxCompiler" not in repr(error):
                raise
            raise DependencyError("runtime=compile: torch.compile needs a C++ compiler, such as g++") from error
