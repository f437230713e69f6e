"""Augmentation of batches on the training device, drawn for each image separately."""

import functools
import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le, Len
from kornia.augmentation import RandomAffine
from torch import Tensor, nn

from src.core.errors import ConfigError

Alpha = Annotated[float, Ge(0)]
Range = Annotated[list[float], Len(2, 2)]
Probability = Annotated[float, Ge(0), Le(1)]
# Transforms that only move pixels -> symmetries of the square that they and those above reach.
_SYMMETRIES = {"RandomHorizontalFlip": 2, "RandomVerticalFlip": 4, "RandomTranspose": 8}
_MOVES = (lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.transpose(2, 3))


def symmetry(images: Tensor, numbers: Tensor) -> Tensor:
    """A symmetry of the square for each image, (N, C, S, S), exact; channels last in memory.

    The three bits of a number (N,), 0 to 7: flip horizontally, then vertically, then transpose.
    """
    for bit, move in enumerate(_MOVES):
        chosen = (numbers >> bit & 1).bool()[:, None, None, None]
        images = torch.where(chosen, move(images), images)
    return images.contiguous(memory_format=torch.channels_last)


@functools.cache
def _after_moves() -> Tensor:
    """The number of each symmetry after a further move, (3, 8); not computed for each batch."""
    marked = torch.arange(4.0).view(1, 1, 2, 2)  # looks different under each symmetry
    patterns = symmetry(marked.expand(8, 1, 2, 2), torch.arange(8))
    moved = torch.stack([move(patterns) for move in _MOVES])
    return (moved[:, :, None] == patterns).flatten(3).all(3).int().argmax(2)


class Augment(nn.Module):
    """Transforms in sequence; without transforms the images are returned unchanged.

    Random numbers come from torch's global generator: `torch.manual_seed` fixes them. A new
    augmentation is a file in `conf/augment/` that lists transforms by `_target_`.

    Args:
        mixup: Alpha of the Beta distribution of mixup's share, 0: off (Zhang et al., ICLR 2018).
        cutmix: The same of CutMix (Yun et al., ICCV 2019). With both, one of them is drawn for each
            batch, equally often.
        **transforms: Modules from float images (N, 3, S, S) to the same shape, such as those of
            `kornia.augmentation`, applied in this order. The names are keys for overrides.

    Raises:
        ConfigError: A transform is not a module, or its probability is out of range.
    """

    def __init__(self, mixup: Alpha = 0.0, cutmix: Alpha = 0.0, **transforms: nn.Module) -> None:
        super().__init__()
        for name, transform in transforms.items():
            if not isinstance(transform, nn.Module):
                problem = f"must be a transform with a _target_, but got {transform!r}"
                raise ConfigError(name, problem)
            probability = getattr(transform, "p", 1.0)  # kornia accepts any number
            if not 0 <= probability <= 1:
                problem = f"must be a probability, 0 to 1, but got {probability}"
                raise ConfigError(f"{name}.p", problem)
        self.transforms = nn.Sequential(*transforms.values())
        self.mixes = mixup > 0 or cutmix > 0
        if self.mixes:
            from torchvision.transforms import v2  # takes a second, which others do not need

            kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
            self._mix = v2.RandomChoice([kind(alpha=alpha) for kind, alpha in kinds if alpha > 0])

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Augment a batch, float (N, 3, S, S) in [0, 1].

        Shape, type, device and range stay; channels last in memory, which convolutions prefer.
        """
        if not len(self.transforms):
            return images
        augmented: Tensor = self.transforms(images)
        return augmented.clamp(0, 1).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix each image of a shuffled batch with the one before it, and shares of classes (N, K).

        One share is drawn for the batch, as in the papers. Only if the attribute `mixes` is true.
        """
        images, labels = self._mix(images, labels)
        return images.contiguous(memory_format=torch.channels_last), labels

    @property
    def symmetries(self) -> int | None:
        """1, 2, 4 or 8 if an image only becomes one of the first so many; else None."""
        reached = [_SYMMETRIES.get(type(transform).__name__, 0) for transform in self.transforms]
        return None if self.mixes or 0 in reached else max(reached, default=1)

    def draw(self, count: int) -> Tensor:
        """Numbers (N,) of the symmetries that `forward` would draw, by the same random numbers."""
        numbers = torch.zeros(count, dtype=torch.int64)
        for transform in self.transforms:
            move = list(_SYMMETRIES).index(type(transform).__name__)
            chosen = transform.forward_parameters((count, 3, 2, 2))["batch_prob"] > 0.5  # type: ignore[operator]
            numbers = torch.where(chosen, _after_moves()[move][numbers], numbers)
        return numbers


class RandomTranspose(nn.Module):
    """Swap rows and columns of some images; with both flips, the eight symmetries of the square.

    No pixel is resampled, and all eight are equally frequent; both differ from kornia's quarter
    turns.

    Args:
        p: Probability for each image.
    """

    def __init__(self, p: Probability = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward_parameters(
        self, batch_shape: Sequence[int], device: torch.device | None = None
    ) -> dict[str, Tensor]:
        """Kornia's hook: whether each image of a batch is transposed, bool (N,)."""
        return {"batch_prob": torch.rand(batch_shape[0], device=device) < self.p}

    def forward(self, images: Tensor) -> Tensor:
        """Transpose some of the square images of a batch, (N, C, S, S)."""
        chosen = self.forward_parameters(images.shape, images.device)["batch_prob"]
        return torch.where(chosen[:, None, None, None], images.transpose(2, 3), images)


class RandomWarp(RandomAffine):
    """kornia's affine warp with a random aspect ratio; uncovered pixels are filled by reflection.

    Args:
        degrees: Range of the angle.
        scale: Range of the picture's size relative to the input's.
        aspect: Range of width over height, relative to the picture's own, above 0; its logarithm is
            drawn uniformly, and the area stays.
        p: Probability for each image.
    """

    def __init__(self, degrees: Range, scale: Range, aspect: Range, p: Probability = 1.0) -> None:
        for name, (low, high) in {"degrees": degrees, "scale": scale, "aspect": aspect}.items():
            if low > high or (low <= 0 and name != "degrees"):
                problem = f"must be [smallest, largest], sizes above 0, but got [{low}, {high}]"
                raise ConfigError(name, problem)
        ranges: Any = {"degrees": tuple(degrees), "scale": tuple(scale)}
        super().__init__(**ranges, padding_mode="reflection", p=p)
        self.aspect = aspect

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Kornia's draw for a batch, with the aspect ratio in the two scales."""
        drawn = super().generate_parameters(batch_shape)
        low, high = (math.log(bound) / 2 for bound in self.aspect)
        root = torch.empty(batch_shape[0]).uniform_(low, high).exp().to(drawn["scale"])
        drawn["scale"] = drawn["scale"] * torch.stack([root, 1 / root], dim=1)
        return drawn
