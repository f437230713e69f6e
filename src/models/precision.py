"""Nets in bfloat16: torch's own numbers of half the size, with float32's range."""

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

KIND = "bfloat16"  # in conf/compression


def cast(net: nn.Module) -> nn.Module:
    """Turn a net's weights and arithmetic to bfloat16 in place; images in and logits out stay float32.

    A freshly built net, cast, takes the checkpoint of one that was cast.

    Args:
        net: Normalised images (N, 3, S, S) -> logits.
    """
    net.to(torch.bfloat16)
    net.register_forward_pre_hook(_into)
    net.register_forward_hook(_out)
    return net


def cast_as_recorded(net: nn.Module, config: DictConfig) -> nn.Module:
    """A net that was freshly built from a run's config, cast if the run's is.

    Args:
        net: As for `cast`.
        config: Of the run.
    """
    return cast(net) if str((config.get("compression") or {}).get("name")) == KIND else net


def _into(net: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].to(torch.bfloat16), *inputs[1:])


def _out(net: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> Tensor:
    return logits.float()
