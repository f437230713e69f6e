"""The dense layers that end the networks here; docs/extending.md has the contract of a network."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Interval
from torch import nn

Width = Annotated[int, Ge(1)]
DenseWidths = Width | list[Width]
Dropout = Annotated[float, Interval(ge=0, lt=1)]


def dense_head(
    features: int, dense: int | Sequence[int], dropout: float, outputs: int
) -> nn.Sequential:
    """Dense layers with ReLU, dropout after each, then the linear output.

    Without dense layers the dropout is before the output.

    Args:
        features: Width of the input (N, features).
        dense: Widths of the hidden layers, first to last; a number is one layer, an empty list
            none.
        dropout: Probability that a value is zeroed in training, in [0, 1).
        outputs: Number of logits: (N, outputs).
    """
    widths = [dense] if isinstance(dense, int) else list(dense)
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(features, width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        features = width
    if not widths:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(features, outputs))
