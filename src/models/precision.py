"""Networks in bfloat16: half the size of float32 with its range."""

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

KIND = "bfloat16"  # in conf/compression


def cast(net: nn.Module) -> nn.Module:
    """Convert weights and arithmetic to bfloat16 in place; input and logits stay float32.

    A new network, cast, loads the checkpoint of a cast one.
    """
    net.to(torch.bfloat16)
    net.register_forward_pre_hook(_input_to_bfloat16)
    net.register_forward_hook(_logits_to_float32)
    return net


def cast_as_recorded(net: nn.Module, config: DictConfig) -> nn.Module:
    """Cast a new network if the run of this config is a bfloat16 compression."""
    return cast(net) if str((config.get("compression") or {}).get("name")) == KIND else net


def _input_to_bfloat16(net: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].to(torch.bfloat16), *inputs[1:])


def _logits_to_float32(net: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> Tensor:
    return logits.float()
