"""Which channels a pruning takes out, once they are scored."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Scope = Literal["global", "layer"]
_ROUNDING = 1e-9  # 10 * (1 - 0.9) is less than 1


@dataclass(frozen=True)
class Coupled:
    """Layers that must lose a channel together, and what each channel is worth.

    Attributes:
        root: Name of the layer that they are known by.
        scores: Of its channels, or of each channel and its counterparts in the other groups of a grouped convolution;
            (N,), higher is more important, comparable between layers.
        blocks: Groups of that convolution; else 1.
        whole: N before anything was taken out.
    """

    root: str
    scores: Tensor
    blocks: int
    whole: int


@dataclass(frozen=True)
class Rules:
    """What limits the choice.

    Attributes:
        scope: "layer" takes the same share of each layer, "global" the lowest scores wherever they are.
        layer_limit: Largest share of one layer's channels that goes, in (0, 1).
        round_to: The channels left in a layer that loses any are a multiple of this.
    """

    scope: Scope
    layer_limit: float
    round_to: int

    def fewest(self, layer: Coupled) -> int:
        """Channels that must stay, a multiple of `round_to` unless the layer has no more than that.

        A grouped convolution keeps two a group: with one it would be a depthwise one, which is another kind of layer.
        """
        stay = max(1 if layer.blocks == 1 else 2, math.ceil(layer.whole * (1 - self.layer_limit) - _ROUNDING))
        return min(len(layer.scores), self.round_to * math.ceil(stay / self.round_to))


def choose(layers: Sequence[Coupled], ratio: float, rules: Rules) -> dict[str, list[int]]:
    """Which channels go.

    Args:
        layers: Scored.
        ratio: Share that is to go, of all the channels that there were at first, in [0, 1).
        rules: That the choice keeps.

    Returns:
        Channel numbers by the root's name; layers that lose none are left out.
    """
    if rules.scope == "layer":
        left = [math.floor(each.whole * (1 - ratio) + _ROUNDING) for each in layers]
    else:
        left = _left_of_all(layers, [rules.fewest(each) for each in layers], ratio)
    chosen = {}
    for layer, count in zip(layers, left, strict=True):
        rounded = rules.round_to * math.floor(count / rules.round_to + 0.5)
        goes = len(layer.scores) - max(rules.fewest(layer), rounded)
        if goes > 0:
            weakest = torch.argsort(layer.scores, stable=True)[:goes].tolist()
            chosen[layer.root] = sorted(
                channel + block * len(layer.scores) for channel in weakest for block in range(layer.blocks)
            )
    return chosen


def _left_of_all(layers: Sequence[Coupled], fewest: Sequence[int], ratio: float) -> list[int]:
    """Channels left in each layer if the least important ones of all go, but none of the few that must stay."""
    wanted = math.floor(sum(each.whole for each in layers) * (1 - ratio) + _ROUNDING)
    goes = sum(len(each.scores) for each in layers) - wanted
    may_go = [each.scores.sort().values[: len(each.scores) - least] for each, least in zip(layers, fewest, strict=True)]
    weakest = torch.argsort(torch.cat(may_go), stable=True)[: max(0, goes)]
    owner = torch.cat([torch.full_like(scores, number) for number, scores in enumerate(may_go)])[weakest]
    return [len(each.scores) - int((owner == number).sum()) for number, each in enumerate(layers)]
