"""FLOPs of one image's inference, counted by fvcore."""

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
        total: Multiply-adds of one image. Each operator counts by fvcore's table: convolutions, matrix products,
            normalisations, adaptive average pooling, upsampling.
        uncounted: Operators that ran but are not in that table (max-pooling, sums, sigmoid ...) -> times that they ran.
            Reshapes, ReLU, clamp and dropout are free by fvcore's definition and not listed.
    """

    total: int
    uncounted: dict[str, int]


def count_flops(net: nn.Module, image_size: int) -> Flops:
    """Count the multiply-adds of one forward pass in eval mode, batch 1.

    One fused multiply-add counts as one, which is what both papers call FLOPs; counting a multiplication and an
    addition apart gives about twice as many. Work that depends on the input's values is counted for one random input
    only.

    Args:
        net: Images (1, 3, S, S) -> anything. It is copied and left as it is.
        image_size: S, px.
    """
    # On the CPU and in the default layout: the count is the same anywhere, and tracing needs no accelerator.
    traced = deepcopy(net).cpu().eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    image = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    analysis = FlopCountAnalysis(traced, image)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        total = round(analysis.total())
    return Flops(total, {name: int(times) for name, times in sorted(analysis.unsupported_ops().items())})
