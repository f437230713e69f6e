"""FLOPs (fvcore), parameters, size."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

CONVENTION = "one fused multiply-add counts as one (fvcore)"


@dataclass(frozen=True)
class Flops:
    """What was counted, and what was not.

    Attributes:
        total: Multiply-adds of one image. Each operator counts by fvcore's table: convolutions,
            matrix products, normalisations, adaptive average pooling, upsampling.
        uncounted: Operators that ran but are not in that table (max-pooling, sums, sigmoid ...) ->
            times that they ran. Reshapes, ReLU, clamp and dropout are free by fvcore's definition
            and not listed.
    """

    total: int
    uncounted: dict[str, int]


def count_flops(net: nn.Module, image_size: int) -> Flops:
    """Count the multiply-adds of one forward pass in eval mode, batch 1.

    One fused multiply-add counts as one, which is what both papers call FLOPs; counting a
    multiplication and an addition apart gives about twice as many. Work that depends on the input's
    values is counted for one random input only.

    Args:
        net: Images (1, 3, S, S) -> anything. It is copied and left as it is.
        image_size: S, px.
    """
    # On the CPU and in the default layout: the count is the same anywhere, and tracing needs no
    # accelerator.
    traced = deepcopy(net).cpu().eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    image = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    analysis = FlopCountAnalysis(traced, image)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings(
        "none"
    )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        total = round(analysis.total())
    return Flops(
        total, {name: int(times) for name, times in sorted(analysis.unsupported_ops().items())}
    )


def count_parameters(net: nn.Module) -> int:
    """Number of parameters, also frozen; one that is used twice counts once, buffers (running statistics) do not."""
    return sum(parameter.numel() for parameter in net.parameters())


def count_trainable(net: nn.Module) -> int:
    """Number of parameters that require a gradient, which is what an optimizer changes."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


def size_mb(net: nn.Module) -> float:
    """Bytes of the tensors in the state dict (parameters and persistent buffers), in MB of 10^6 bytes.

    A tensor under two names counts once. A checkpoint file is larger by its names and its
    container.
    """
    state = net.state_dict(
        keep_vars=True
    ).values()  # the tensors themselves, so that a shared one is recognised
    tensors = {id(tensor): tensor for tensor in state if isinstance(tensor, torch.Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e6
