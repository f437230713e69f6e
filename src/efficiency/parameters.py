"""Numbers of parameters, and the size of the weights."""

import torch
from torch import nn


def count_parameters(net: nn.Module) -> int:
    """Number of parameters, also frozen; one that is used twice counts once, buffers (running statistics) do not."""
    return sum(parameter.numel() for parameter in net.parameters())


def count_trainable(net: nn.Module) -> int:
    """Number of parameters that require a gradient, which is what an optimizer changes."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


def size_mb(net: nn.Module) -> float:
    """Bytes of the tensors in the state dict (parameters and persistent buffers), in MB of 10^6 bytes.

    A tensor under two names counts once. A checkpoint file is larger by its names and its container.
    """
    state = net.state_dict(keep_vars=True).values()  # the tensors themselves, so that a shared one is recognised
    tensors = {id(tensor): tensor for tensor in state if isinstance(tensor, torch.Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e6
