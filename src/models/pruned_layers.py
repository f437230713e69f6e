"""Nets of which channels have been taken out: their layers, made for the whole net, are fitted to what is left.

A checkpoint of such a net says so; a fresh net is then given the layers' sizes by the checkpoint's
tensors.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_MARK = "pruned"
_BATCH_NORM = nn.modules.batchnorm._BatchNorm  # timm's norms with an activation within are such


def mark(net: nn.Module) -> None:
    """Remember that channels were taken out of a net."""
    setattr(net, _MARK, True)


def is_pruned(module: nn.Module) -> bool:
    """Whether `mark` has seen a net, or the net that a classifier is made around."""
    return bool(getattr(_net(module), _MARK, False))


def unfit(net: nn.Module) -> list[str]:
    """The layers with weights of their own that `fit` does not know: all but convolution, dense, batch normalisation.

    Returns:
        Names with kinds, such as "norm (LayerNorm)".
    """
    return [
        f"{name or 'the net'} ({type(layer).__name__})"
        for name, layer in net.named_modules()
        if next(layer.parameters(recurse=False), None) is not None
        and not isinstance(layer, nn.Conv2d | nn.Linear | _BATCH_NORM)
    ]


def fit(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the layers of a fresh net the sizes that the tensors of a pruned one have, and mark it as pruned.

    Depthwise convolutions stay depthwise, grouped ones keep their number of groups. What comes into
    the net and what goes out of it keeps its size. The weights are not loaded; they are undefined
    afterwards.

    Args:
        module: The whole net as its config builds it, or a module with an attribute `net` that is
            such a one.
        state: Tensors by their names in `module`.

    Raises:
        ValueError: A tensor has another number of dimensions, is larger than the whole net's, or
            does not go with the others of its layer; the message names it.
    """
    ends = _ends(module)
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | _BATCH_NORM):
            given = {
                key: state[f"{name}.{key}"] for key, _ in _own(layer) if f"{name}.{key}" in state
            }
            _fit_layer(name, layer, given)
    if _ends(module) != ends:
        raise ValueError(
            f"inputs and outputs must be {ends} as in the whole net, but are {_ends(module)}"
        )
    mark(_net(module))


def _fit_layer(name: str, layer: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Take over the tensors' sizes, and what the layer says of itself; missing tensors are for load_state_dict."""
    for key, whole in _own(layer):
        if key in given:
            _check_smaller(f"{name}.{key}", given[key], whole)
            empty = torch.empty(given[key].shape, dtype=whole.dtype, device=whole.device)
            setattr(
                layer,
                key,
                nn.Parameter(empty, whole.requires_grad)
                if isinstance(whole, nn.Parameter)
                else empty,
            )
    lengths = {len(tensor) for key, tensor in _own(layer) if tensor.dim()}
    if len(lengths) > 1:
        raise ValueError(
            f"{name}: its tensors have different numbers of channels, {sorted(lengths)}"
        )
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Conv2d):
        _fit_convolution(name, layer)
    elif isinstance(layer, _BATCH_NORM) and lengths:
        layer.num_features = lengths.pop()


def _fit_convolution(name: str, layer: nn.Conv2d) -> None:
    outputs, inputs = layer.weight.shape[:2]
    if layer.groups == layer.in_channels == layer.out_channels:
        layer.groups = outputs
    if outputs % layer.groups:
        raise ValueError(f"{name}: {outputs} channels cannot be in {layer.groups} groups")
    layer.out_channels, layer.in_channels = outputs, inputs * layer.groups


def _check_smaller(name: str, given: Tensor, whole: Tensor) -> None:
    """A kernel's height and width stay; channels may be fewer, but not none."""
    pairs = list(zip(given.shape, whole.shape, strict=False))
    fewer = all(1 <= left <= all_of_them for left, all_of_them in pairs[:2])
    if given.dim() != whole.dim() or not fewer or given.shape[2:] != whole.shape[2:]:
        raise ValueError(
            f"{name} is {tuple(given.shape)}, which is no part of {tuple(whole.shape)}"
        )


def _own(layer: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers of the layer itself."""
    return [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]


def _ends(module: nn.Module) -> tuple[int, int]:
    """Channels that the first layer takes and that the last one gives."""
    layers = [layer for layer in _net(module).modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    if not layers:
        return 0, 0
    first, last = layers[0], layers[-1]
    return (
        first.in_channels if isinstance(first, nn.Conv2d) else first.in_features,
        last.out_channels if isinstance(last, nn.Conv2d) else last.out_features,
    )


def _net(module: nn.Module) -> nn.Module:
    """The net itself: a classifier has others beside it, such as its loss."""
    net = getattr(module, "net", module)
    return net if isinstance(net, nn.Module) else module
