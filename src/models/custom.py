"""The small convolutional network of Mamun et al. 2025 and its family."""

from itertools import pairwise
from typing import Annotated, Literal

from annotated_types import Ge, Le
from torch import Tensor, nn

from src.core.errors import ConfigError
from src.models.head import DenseWidths, Dropout, Width, dense_head

_KERNEL = 3
_POOL = 2


class CustomCNN(nn.Module):
    """Blocks of 3x3 convolution, 2x2 max-pooling and ReLU, then dense layers.

    With the defaults, 64 px and 7 outputs it has the paper's printed figures: 691,911 parameters
    and 30,037,824 multiply-adds. Each block pools before its ReLU: the function is the same (ReLU
    is monotone), but ReLU sees a quarter of the values, and a training step on a CPU takes about a
    fifth less time. The weights start with torch's defaults.

    Args:
        image_size: Side of the square input, px.
        width: Channels of the first convolution; every later one has twice as many.
        depth: Number of blocks.
        padding: Zeros around the input of each convolution, px; 0 shrinks the map by 2, 1 keeps
            its size.
        head: How the last map (N, C, h, w) becomes a vector: "flatten" keeps all C*h*w values,
            "gap" averages each channel.
        dense: See `dense_head`.
        dropout: See `dense_head`.
        norm: "batch" adds batch normalisation after each convolution, which then has no bias.

    Raises:
        ConfigError: The image is too small for this depth.
    """

    def __init__(
        self,
        image_size: Annotated[int, Ge(1), Le(16384)],
        outputs: Width,
        width: Width = 32,
        depth: Annotated[int, Ge(1), Le(1000)] = 3,
        padding: Annotated[int, Ge(0)] = 0,
        head: Literal["flatten", "gap"] = "flatten",
        dense: DenseWidths = [128, 64],  # noqa: B006 never changed; a list, as a config gives it
        dropout: Dropout = 0.0,
        norm: Literal["none", "batch"] = "none",
    ) -> None:
        super().__init__()
        smallest = smallest_image(depth, padding)
        if image_size < smallest:
            problem = f"is too small, the smallest that this net takes is {smallest}"
            raise ConfigError("image_size", f"{problem}, but got {image_size}")
        channels = [3] + [width * 2**block for block in range(depth)]
        side, blocks = image_size, []
        for inputs, maps in pairwise(channels):
            convolution = nn.Conv2d(inputs, maps, _KERNEL, padding=padding, bias=norm == "none")
            layers = [convolution, *([nn.BatchNorm2d(maps)] if norm == "batch" else [])]
            blocks.append(nn.Sequential(*layers, nn.MaxPool2d(_POOL), nn.ReLU(inplace=True)))
            side = (side - _KERNEL + 1 + 2 * padding) // _POOL
        self.features = nn.Sequential(*blocks)
        self.pool = nn.Identity() if head == "flatten" else nn.AdaptiveAvgPool2d(1)
        values = channels[-1] * (side**2 if head == "flatten" else 1)
        self.head = dense_head(values, dense, dropout, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, S, S) -> logits (N, outputs)."""
        return self.head(self.pool(self.features(images)).flatten(1))


def smallest_image(depth: int, padding: int) -> int:
    """The smallest image side, px, that leaves one pixel after `depth` blocks."""
    side = 1
    for _ in range(depth):
        side = max(1, _POOL * side + _KERNEL - 1 - 2 * padding)
    return side
