"""Augmentation of whole batches on the device that trains, by kornia's transforms, drawn anew for each image."""
from annotated_types import Ge
from annotated_types import Le
from src.core.errors import ConfigError
from torch import Tensor
from torch import nn
from typing import Annotated
import torch


class Augment(nn.Module):
    """Transforms one after the other; none at all gives the images back untouched.

    Random numbers come from torch's global generator: `torch.manual_seed` fixes them.

    Args:
        **transforms: Modules that take and give float images (N, 3, S, S), such as those of
            `kornia.augmentation`, applied in this order. The names are the reader's: keys for
            overrides.

    Raises:
        ConfigError: One of them is no module, or its probability is out of range.
    """

    def __init__(self, **transforms: nn.Module) -> None:
        super().__init__()
        for name, transform in transforms.items():
            if not isinstance(transform, nn.Module):
                raise ConfigError(name, f"must be a transform with a _target_, but got {transform!r}")
            # kornia takes any number
            if not 0 <= (probability := getattr(transform, "p", 1.0)) <= 1:
                raise ConfigError(f"{name}.p", f"must be a probability, 0 to 1, but got {probability}")
        self.transforms = nn.Sequential(*transforms.values())

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Augment a batch.

        Args:
            images: Float (N, 3, S, S) in [0, 1].

        Returns:
            The same shape, type, device and range; channels last in memory, which convolutions
            prefer.
        """
        if not len(self.transforms):
            return images
        augmented: Tensor = self.transforms(images)
        return augmented.clamp(0, 1).contiguous(memory_format=torch.channels_last)


class RandomTranspose(nn.Module):
    """Swap rows and columns of some images: with both flips, the eight symmetries of the square, pixels unchanged.

    kornia's quarter turns are resampled, and drawn less often for 0 and 3 turns than for 1 and 2.

    Args:
        p: Probability for each image.
    """

    def __init__(self, p: Annotated[float, Ge(0), Le(1)] = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, images: Tensor) -> Tensor:
        """Transpose a part of a batch of square images, (N, C, S, S)."""
        chosen = torch.rand(len(images), device=images.device) < self.p
        return torch.where(chosen[:, None, None, None], images.transpose(2, 3), images)
