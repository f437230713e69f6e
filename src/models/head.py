"""The contract of a network, and the dense layers that end the networks here.

How to add a network: write a class in `src/models/<name>.py` and `conf/model/<name>.yaml` with
`defaults: [_classifier, _self_]`, `name`, and `net._target_`, which names the class.

The framework builds the network with the other keys of `net` and one more argument:
    outputs: number of logits, 1 for two classes, else one per class.
The side of the square input comes from the config: `image_size: ${data.image_size}`.
It calls `net(images)` with float32 images (N, 3, S, S), from which `model.mean` is subtracted and
which are divided by `model.std`, and expects logits (N, outputs).

Optional attributes (capabilities) of a network:
    backbone: a submodule; `model.backbone_lr_factor` scales its learning rate.
    loaded_weights: str, what the network starts from, for the run record ("random" by default).
    fit_once: a method that fits the network without epochs, see `src.models.fit_once`.
    outside_torch: True if torch's operators do not do the work: no FLOPs are counted, and the
        network is timed on the CPU, see `src.efficiency.profile`.
A key `weights` in the config is set to "random" where a checkpoint follows.
"""

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
