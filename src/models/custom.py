"""The small convolutional network of Mamun et al. 2025, and the family around it."""

from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor, nn

from src.core.errors import ConfigError
from src.models.head import DenseWidths, Dropout, Width, dense_head

_KERNEL = 3
_POOL = 2


class CustomCNN(nn.Module):
    """Blocks of 3x3 convolution, ReLU and 2x2 max-pooling, then dense layers.

    With the defaults, 64 px and 7 outputs it is the network behind the paper's printed figures:
    691,911 parameters and 30,037,824 multiply-adds.

    Each block pools before its ReLU. Both orders compute the same function (ReLU is monotone); this
    one applies ReLU to a quarter of the values: a training step on CPU takes about a fifth less.
    Weights start as torch draws them by
    default: a net this shallow trains from there without special care.

    Args:
        image_size: Side of the square input, px.
        outputs: Number of logits.
        width: Channels of the first convolution; each later one has twice as many as the one
            before.
        depth: Number of blocks.
        padding: Zeros around each convolution's input, px; 0 shrinks the map by 2, 1 keeps its
            size.
        head: How the last map (N, C, h, w) becomes a vector: "flatten" keeps all C*h*w values,
            "gap" averages each channel.
        dense: Widths of the dense layers, first to last; a number is one layer, an empty list none.
        dropout: Probability after each dense layer (before the output if there is none), in [0, 1).
        norm: "batch" puts batch normalisation behind each convolution, which then has no bias;
            "none" does without.

    Raises:
        ConfigError: The image is too small for this depth.
    """

    def __init__(
        self,
        image_size: Annotated[int, Ge(1)],
        outputs: Width,
        width: Width = 32,
        depth: Annotated[int, Ge(1)] = 3,
        padding: Annotated[int, Ge(0)] = 0,
        head: Literal["flatten", "gap"] = "flatten",
        dense: DenseWidths = [128, 64],  # noqa: B006 never changed; a list, as a config gives it
        dropout: Dropout = 0.0,
        norm: Literal["none", "batch"] = "none",
    ) -> None:
        super().__init__()
        smallest = smallest_image(depth, padding)
        if image_size < smallest:
            raise ConfigError(
                "image_size",
                f"is too small, the smallest that this net takes is {smallest}, but got {image_size}",
            )
        channels = [3] + [width * 2**block for block in range(depth)]
        self.features = nn.Sequential(
            *(_block(*pair, padding, norm) for pair in zip(channels, channels[1:], strict=False))
        )
        side = _map_side(image_size, depth, padding) if head == "flatten" else 1
        self.pool = nn.Identity() if head == "flatten" else nn.AdaptiveAvgPool2d(1)
        self.head = dense_head(channels[-1] * side * side, dense, dropout, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, S, S) -> logits (N, outputs)."""
        return self.head(self.pool(self.features(images)).flatten(1))


def smallest_image(depth: int, padding: int) -> int:
    """The least image side, px, that leaves one pixel after `depth` blocks."""
    side = 1
    for _ in range(depth):
        side = max(1, _POOL * side + _KERNEL - 1 - 2 * padding)
    return side


def _map_side(side: int, depth: int, padding: int) -> int:
    for _ in range(depth):
        side = (side - _KERNEL + 1 + 2 * padding) // _POOL
    return side


def _block(inputs: int, outputs: int, padding: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, _KERNEL, padding=padding, bias=norm == "none")
    ]
    if norm == "batch":
        layers.append(nn.BatchNorm2d(outputs))
    return nn.Sequential(*layers, nn.MaxPool2d(_POOL), nn.ReLU(inplace=True))
