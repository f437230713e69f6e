"""Multiply-adds (fvcore), number of parameters and size of a network."""

import functools
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import nn

CONVENTION = "one fused multiply-add counts as one (fvcore)"
# Operators without multiply-adds that torch tags neither as pointwise nor as a reduction.
_MOVE_OR_COMPARE = (
    "adaptive_max_pool2d alias argsort avg_pool2d channel_shuffle clone col2im cumsum dropout "
    "empty_like expand_as flip hardswish im2col index_select lift_fresh log_softmax max_pool2d "
    "max_pool2d_with_indices meshgrid new_ones one_hot pad pixel_shuffle pixel_unshuffle prelu "
    "real reflection_pad2d repeat repeat_interleave replication_pad2d reshape_as rsub "
    "scalar_tensor scatter softmax sort tensor_split threshold tile topk unflatten unfold view_as"
)


@dataclass(frozen=True)
class Flops:
    """The count of a forward pass of one image.

    The total has convolutions, matrix products and attention, fused or not, and by fvcore's table
    normalisations, adaptive average pooling and upsampling. `uncounted` maps all other operators
    (max-pooling, sums, sigmoid ...) to the number of calls. Reshapes, ReLU, clamp and dropout are
    free in fvcore and not listed. `missing` are those of `uncounted` that may have multiply-adds,
    such as an LSTM or a Fourier transform: with any of them the total is too small.
    """

    total: int
    uncounted: dict[str, int]
    by_module: dict[str, int]  # of each module with all that it contains

    @property
    def missing(self) -> dict[str, int]:
        """Uncounted operators that are not known to be without multiply-adds."""
        return {name: calls for name, calls in self.uncounted.items() if not _is_cheap(name)}


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
    analysis.set_op_handle(**_HANDLES)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it hides a whole layer in one operator
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            total = round(analysis.total())
            by_module = {name: round(flops) for name, flops in analysis.by_module().items()}
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    uncounted = sorted(analysis.unsupported_ops().items())
    return Flops(total, {name: int(calls) for name, calls in uncounted}, by_module)


def layers(net: nn.Module, counted: Flops) -> list[dict[str, Any]]:
    """Name, type, FLOPs and parameters of each module, without those of modules inside it.

    The sums are the total and `count_parameters`. Modules with neither are left out.
    """
    params = Counter[str]()
    for name, parameter in net.named_parameters():
        params[name.rpartition(".")[0]] += parameter.numel()
    rows = []
    for name, module in net.named_modules():
        inside = (f"{name}.{child}".lstrip(".") for child, _ in module.named_children())
        flops = counted.by_module[name] - sum(counted.by_module.get(child, 0) for child in inside)
        if flops or params[name]:
            kind = type(module).__name__
            rows.append({"layer": name, "type": kind, "flops": flops, "params": params[name]})
    return rows


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


@functools.cache
def _flops(net: nn.Module, image_size: int) -> int:
    """Multiply-adds; they do not depend on the weights, which are all zero here."""
    filled = deepcopy(net).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*filled.parameters(), *filled.buffers()):
            tensor.zero_()
    return count_flops(filled, image_size).total


QUANTITIES: dict[str, Callable[[nn.Module, int], float]] = {
    "parameters": lambda net, _: count_parameters(net),
    # of batch normalisation, buffers in torch, parameters in Keras: means and variances
    "running_statistics": lambda net, _: sum(
        2 * mean.numel()
        for mean in (getattr(module, "running_mean", None) for module in net.modules())
        if mean is not None
    ),
    # that the convolutions here lack; those of Keras' ResNet50 have them
    "convolution_biases": lambda net, _: sum(
        m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d) and m.bias is None
    ),
    "flops": _flops,
    "size_mb": lambda net, _: size_mb(net),
}


def _product(inputs: list[Any], outputs: list[Any]) -> int:
    """A batched matrix product, broadcast too: each output sums over the last side of the left."""
    return prod(get_shape(outputs[0])) * get_shape(inputs[0])[-1]


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Q K^T and A V of queries (..., L, E), keys (..., S, E) and values (..., S, V).

    A causal mask saves nothing here, as in attention that is written out.
    """
    rows = prod(get_shape(outputs[0])[:-1])
    keys, values = get_shape(inputs[1]), get_shape(inputs[2])
    return rows * keys[-2] * (keys[-1] + values[-1])


_HANDLES: dict[str, Callable[[list[Any], list[Any]], int]] = {
    "aten::scaled_dot_product_attention": _attention,
    # padding="same" or "valid"; weights (O, I / groups, kernel sides)
    "aten::_convolution_mode": lambda i, o: prod(get_shape(o[0])) * prod(get_shape(i[1])[1:]),
    **{f"aten::{name}": _product for name in ("matmul", "bmm", "mm", "mv", "dot")},
    # added to the first input
    **{f"aten::{n}": lambda i, o: _product(i[1:], o) for n in ("addmm", "baddbmm", "addmv")},
}


def _is_cheap(operator: str) -> bool:
    """Whether an operator, such as "aten::add_", only moves, compares, sums or maps elements."""
    namespace, _, name = operator.partition("::")
    if namespace != "aten":
        return False
    packet = getattr(torch.ops.aten, name, None)
    tags = getattr(packet, packet.overloads()[0]).tags if packet is not None else ()
    elementwise = torch.Tag.pointwise in tags or torch.Tag.reduction in tags
    return elementwise or name.rstrip("_") in _MOVE_OR_COMPARE.split()
