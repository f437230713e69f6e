"""A trained net as a device uses it: the camera's picture in, probabilities out."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from src.classifier import Classifier


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
        return cls(classifier.net, classifier.mean.flatten().tolist(), (1 / classifier.inverse_std).flatten().tolist())

    def portable(self) -> "CameraNet":
        """A copy for exporters, its weights in plain memory order; the net itself is shared, and stays as it is.

        Of weights in channels-last order litert-torch 0.10 mixes some up, and ExecuTorch's XNNPACK refuses them.
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
