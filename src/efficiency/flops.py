"""Multiply-adds (fvcore), number of parameters and size of a network."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

CONVENTION = "one fused multiply-add counts as one (fvcore)"


@dataclass(frozen=True)
class Flops:
    """The count of a forward pass of one image.

    The total is by fvcore's table: convolutions, matrix products, normalisations, adaptive average
    pooling, upsampling. `uncounted` maps operators that are not in that table (max-pooling, sums,
    sigmoid ...) to the number of calls. Reshapes, ReLU, clamp and dropout are free in fvcore and
    not listed.
    """

    total: int
    uncounted: dict[str, int]


def count_flops(net: nn.Module, image_size: int) -> Flops:
    """Count the multiply-adds of one forward pass of images (1, 3, S, S) in evaluation mode.

    One fused multiply-add counts as one, which both papers call FLOPs; counting multiplications
    and additions separately gives about twice as many. If the work depends on the values of the
    input, it is counted for one random input. A copy of the net is traced.
    """
    # On the CPU in the default layout: the count is the same everywhere.
    traced = deepcopy(net).cpu().eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    image = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    analysis = FlopCountAnalysis(traced, image).unsupported_ops_warnings(False)
    analysis.uncalled_modules_warnings(False).tracer_warnings("none")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        total = round(analysis.total())
    uncounted = sorted(analysis.unsupported_ops().items())
    return Flops(total, {name: int(calls) for name, calls in uncounted})


def count_parameters(net: nn.Module) -> int:
    """Number of parameters, frozen ones too; shared ones count once; buffers do not count."""
    return sum(parameter.numel() for parameter in net.parameters())


def count_trainable(net: nn.Module) -> int:
    """Number of parameters that require a gradient."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


def size_mb(net: nn.Module) -> float:
    """Bytes of the state dict (parameters and persistent buffers), in MB of 10^6 bytes.

    A shared tensor counts once. A checkpoint file is larger by names and container.
    """
    state = net.state_dict(keep_vars=True)  # the tensors themselves, to recognise shared ones
    tensors = {id(tensor): tensor for tensor in state.values() if isinstance(tensor, torch.Tensor)}
    return sum(tensor.nbytes for tensor in tensors.values()) / 1e6
