"""PyTorch as a runtime, eager or compiled, and the module that every exporter takes."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from src.core.errors import DependencyError
from src.deployment.description import Description
from src.deployment.runtimes.base import ImageBatch, Probabilities, Runtime, in_batches

if TYPE_CHECKING:  # Lightning: a recorded net is used without it
    from src.training.classifier import Classifier

SMALLEST = 1e-12  # probabilities below have the logarithm of this one


class RuntimeNet(nn.Module):
    """The output of a runtime as logits.

    Args:
        runtime: A loaded model.
    """

    outside_torch = True  # it runs on the CPU, and torch sees none of its operators

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime

    def __deepcopy__(self, memo: dict[int, object]) -> "RuntimeNet":
        """Sessions cannot be copied, and a call does not change them."""
        return RuntimeNet(self.runtime)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S), multiples of 1/255 in [0, 1] -> logits (N, K); (N, 1) if K = 2."""
        pictures = images.detach().mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
        probabilities = in_batches(self.runtime, pictures.contiguous().cpu().numpy())
        logits = torch.from_numpy(probabilities).clamp_min(SMALLEST).log()
        if logits.shape[1] == 2:
            logits = logits[:, 1:] - logits[:, :1]
        return logits.to(images.device)


def as_classifier(runtime: Runtime, like: "Classifier") -> "Classifier":
    """A classifier around a deployed model, which contains the normalisation.

    Args:
        runtime: A loaded model.
        like: A classifier of the same classes, which gives name and loss.
    """
    return type(like)(
        name=like.name,
        net=RuntimeNet(runtime),
        loss=like.loss,
        classes=runtime.description.classes,
        optimizer=like._optimizer,
        scheduler=like._scheduler,
        image_size=like.image_size,
        mean=[0.0, 0.0, 0.0],
        std=[1.0, 1.0, 1.0],
    ).eval()


class CameraNet(nn.Module):
    """Normalisation, net and softmax in one module, in evaluation mode. It does not resize.

    Args:
        net: Normalised images (N, 3, S, S) -> logits (N, K), or (N, 1) for two classes. It is
            shared, not copied.
        mean: Channel means, in [0, 1] units, red first.
        std: Channel standard deviations.
    """

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.mean: Tensor
        self.scale: Tensor
        # In the camera's units, 0 to 255, so that the picture is not divided first.
        self.register_buffer("mean", 255 * torch.tensor(list(mean)).view(1, 3, 1, 1))
        self.register_buffer("scale", 1 / (255 * torch.tensor(list(std)).view(1, 3, 1, 1)))
        # requires_grad is unchanged: the net may be trained further.
        self.eval()

    @classmethod
    def of(cls, classifier: "Classifier") -> "CameraNet":
        """The net of a classifier with its normalisation."""
        std = (1 / classifier.inverse_std).flatten().tolist()
        return cls(classifier.net, classifier.mean.flatten().tolist(), std)

    def portable(self) -> "CameraNet":
        """A copy for exporters, with weights in contiguous memory.

        litert-torch 0.10 mixes up some weights in channels-last order, and ExecuTorch's XNNPACK
        refuses them.
        """
        copied: CameraNet = copy.deepcopy(self)
        return copied.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # stub

    def logits(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) from 0 to 255 -> logits (N, K), or (N, 1) for two classes."""
        logits: Tensor = self.net((images.float() - self.mean) * self.scale)
        return logits.float()

    def forward(self, pictures: Tensor) -> Tensor:
        """RGB pictures, uint8 (N, S, S, 3) -> probabilities (N, K), K = 2 for nets of one logit."""
        logits = self.logits(pictures.permute(0, 3, 1, 2))
        if logits.shape[1] == 1:
            positive = torch.sigmoid(logits)
            return torch.cat([1 - positive, positive], dim=1)
        return torch.softmax(logits, dim=1)

    def probabilities(self, pictures: ImageBatch) -> Probabilities:
        """`forward` for arrays, on the device of the net."""
        batch = torch.from_numpy(np.ascontiguousarray(pictures)).to(self.mean.device)
        with torch.inference_mode():
            probabilities: Probabilities = self(batch).cpu().numpy()
        return probabilities


class EagerRuntime:
    """A trained net as PyTorch runs it, in channels-last memory.

    Args:
        camera: The net with its normalisation.
        description: Of the net.
        threads: Per call on the CPU. PyTorch's setting is one for the process.
        device: Such as "cpu" or "cuda".
    """

    name = "eager"
    batch: int | None = None

    def __init__(
        self, camera: CameraNet, description: Description, threads: int = 1, device: str = "cpu"
    ) -> None:
        self.description = description
        self.camera = camera.to(device)
        self.camera.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub
        self._threads = threads

    def __call__(self, pictures: ImageBatch) -> Probabilities:
        """Probabilities of the classes, (N, K)."""
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        return self.camera.probabilities(pictures)


class CompiledRuntime(EagerRuntime):
    """The same, compiled by torch.compile for one picture at loading.

    Other batch sizes are compiled at their first call.

    Raises:
        DependencyError: There is no C++ compiler.
    """

    name = "compile"

    def __init__(self, camera: CameraNet, description: Description, threads: int = 1) -> None:
        super().__init__(camera, description, threads)
        self.camera.compile()
        size = description.image_size
        try:
            self(np.zeros((1, size, size, 3), np.uint8))
        except Exception as error:
            if "InvalidCxxCompiler" not in repr(error):
                raise
            problem = "torch.compile needs a C++ compiler, such as g++"
            raise DependencyError(f"runtime=compile: {problem}") from error
