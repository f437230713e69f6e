"""Eager and compiled; camera picture in."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from src.core.errors import DependencyError
from src.deployment.description import Description
from src.deployment.runtimes.base import ImageBatch, Name, Probabilities, Runtime, in_batches
from src.training.classifier import Classifier

SMALLEST = 1e-12  # probability whose logarithm is taken for that of 0


class RuntimeNet(nn.Module):
    """What a runtime answers, as logits.

    Args:
        runtime: A loaded model.
    """

    outside_torch = True  # it works on the CPU, and torch sees none of its operators

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime

    def __deepcopy__(self, memo: dict[int, object]) -> "RuntimeNet":
        """The runtimes' sessions cannot be copied, and have no state that a call changes."""
        return RuntimeNet(self.runtime)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in [0, 1], as whole 255ths -> logits (N, K), or (N, 1) for two classes."""
        pictures = (
            images.detach()
            .mul(255)
            .round()
            .clamp(0, 255)
            .byte()
            .permute(0, 2, 3, 1)
            .contiguous()
            .cpu()
            .numpy()
        )
        log_probability = (
            torch.from_numpy(in_batches(self.runtime, pictures)).clamp_min(SMALLEST).log()
        )
        if log_probability.shape[1] == 2:
            log_probability = log_probability[:, 1:] - log_probability[:, :1]
        return log_probability.to(images.device)


def as_classifier(runtime: Runtime, like: Classifier) -> Classifier:
    """A classifier around a deployed model, whose normalisation is inside the model.

    Args:
        runtime: A loaded model.
        like: Of the same classes; its loss and name are taken over.
    """
    found = Classifier(
        name=like.name,
        net=RuntimeNet(runtime),
        loss=like.loss,
        classes=runtime.description.classes,
        optimizer=like._optimizer,
        scheduler=like._scheduler,
        image_size=like.image_size,
        mean=[0.0, 0.0, 0.0],
        std=[1.0, 1.0, 1.0],
    )
    return found.eval()


class CameraNet(nn.Module):
    """Normalisation, net and softmax in one module, in evaluation mode; resizing stays outside.

    Args:
        net: Normalised images (N, 3, S, S) -> logits (N, K), or (N, 1) for two classes.
        mean: Channel means that are taken off, in [0, 1] units, red first.
        std: Channel deviations that are divided by.
    """

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.mean: Tensor
        self.scale: Tensor
        # in units of the camera's 0 to 255, so that the picture is not divided first
        self.register_buffer("mean", 255 * torch.tensor(list(mean)).view(1, 3, 1, 1))
        self.register_buffer("scale", 1 / (255 * torch.tensor(list(std)).view(1, 3, 1, 1)))
        self.eval()  # gradients stay as they are: the net is shared, and may be trained on

    @classmethod
    def of(cls, classifier: Classifier) -> "CameraNet":
        """The classifier's net with its normalisation; the net itself is shared, not copied."""
        return cls(
            classifier.net,
            classifier.mean.flatten().tolist(),
            (1 / classifier.inverse_std).flatten().tolist(),
        )

    def portable(self) -> "CameraNet":
        """A copy for exporters, its weights in plain memory order; the net itself is shared, and stays as it is.

        Of weights in channels-last order litert-torch 0.10 mixes some up, and ExecuTorch's XNNPACK
        refuses them.
        """
        copied: CameraNet = copy.deepcopy(self)
        return copied.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # stub

    def forward(self, pictures: Tensor) -> Tensor:
        """RGB pictures, uint8 (N, S, S, 3) -> probabilities (N, K), K = 2 for nets of one logit."""
        logits = self.net((pictures.permute(0, 3, 1, 2).float() - self.mean) * self.scale).float()
        if logits.shape[1] == 1:
            positive = torch.sigmoid(logits)
            return torch.cat([1 - positive, positive], dim=1)
        return torch.softmax(logits, dim=1)


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

    def __call__(self, pictures: ImageBatch) -> Probabilities:
        """Probabilities of the classes, (N, K)."""
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)  # of the whole process
        with torch.inference_mode():
            found: Probabilities = self._model(
                torch.from_numpy(np.ascontiguousarray(pictures))
            ).numpy()
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
            raise DependencyError(
                "runtime=compile: torch.compile needs a C++ compiler, such as g++"
            ) from error
