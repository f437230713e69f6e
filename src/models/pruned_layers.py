"""Networks with pruned channels: the layers of a new network are resized to a pruned checkpoint."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_MARK = "pruned"
_BATCH_NORM = nn.modules.batchnorm._BatchNorm  # timm's norms with an activation inherit from it
_RESIZABLE = (nn.Conv2d, nn.Linear, _BATCH_NORM)


def mark(net: nn.Module) -> None:
    """Mark a network as pruned."""
    setattr(net, _MARK, True)


def is_pruned(module: nn.Module) -> bool:
    """Whether a network, or the network of a classifier, is marked as pruned."""
    return bool(getattr(_net(module), _MARK, False))


def unfit(net: nn.Module) -> list[str]:
    """Layers with weights that `fit` cannot resize: all but Conv2d, Linear and BatchNorm.

    Returns:
        Names with kinds, such as "norm (LayerNorm)".
    """
    return [
        f"{name or 'the net'} ({type(layer).__name__})"
        for name, layer in net.named_modules()
        if next(layer.parameters(recurse=False), None) is not None
        and not isinstance(layer, _RESIZABLE)
    ]


def fit(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Resize the layers of a new network to the tensors of a pruned one, and mark it as pruned.

    Depthwise convolutions stay depthwise, grouped ones keep their number of groups. Input and
    output of the network keep their sizes. The weights are undefined afterwards: load them.

    Args:
        module: The complete network as its config builds it, or a module with it as `net`.
        state: Tensors by their names in `module`.

    Raises:
        ValueError: A tensor has another number of dimensions, is larger than in the complete
            network, or does not match the others of its layer; the message names it.
    """
    ends = _ends(module)
    for name, layer in module.named_modules():
        if isinstance(layer, _RESIZABLE):
            _resize(name, layer, state)
    if _ends(module) != ends:
        sizes = f"{ends} as in the complete net, but are {_ends(module)}"
        raise ValueError(f"inputs and outputs must be {sizes}")
    mark(_net(module))


def _resize(name: str, layer: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Resize the tensors of a layer that are in the state, and update its attributes."""
    tensors = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    for key, old in tensors:
        new = state.get(f"{name}.{key}")
        if new is None:
            continue  # load_state_dict reports it
        # The height and width of a kernel stay; channels may be fewer, but not none.
        channels = zip(new.shape[:2], old.shape[:2], strict=False)
        fewer = all(1 <= count <= most for count, most in channels)
        if new.dim() != old.dim() or not fewer or new.shape[2:] != old.shape[2:]:
            shapes = f"{tuple(new.shape)}, which is no part of {tuple(old.shape)}"
            raise ValueError(f"{name}.{key} is {shapes}")
        empty = torch.empty(new.shape, dtype=old.dtype, device=old.device)
        trained = isinstance(old, nn.Parameter)
        setattr(layer, key, nn.Parameter(empty, old.requires_grad) if trained else empty)
    lengths = {len(getattr(layer, key)) for key, old in tensors if old.dim()}
    if len(lengths) > 1:
        numbers = f"different numbers of channels, {sorted(lengths)}"
        raise ValueError(f"{name}: its tensors have {numbers}")
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Conv2d):
        outputs, inputs = layer.weight.shape[:2]
        if layer.groups == layer.in_channels == layer.out_channels:
            layer.groups = outputs
        if outputs % layer.groups:
            raise ValueError(f"{name}: {outputs} channels cannot be in {layer.groups} groups")
        layer.out_channels, layer.in_channels = outputs, inputs * layer.groups
    elif isinstance(layer, _BATCH_NORM) and lengths:
        layer.num_features = lengths.pop()


def _ends(module: nn.Module) -> tuple[int, int]:
    """Input channels of the first layer and output channels of the last one."""
    layers = [layer for layer in _net(module).modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    if not layers:
        return 0, 0
    first, last = layers[0], layers[-1]
    return (
        first.in_channels if isinstance(first, nn.Conv2d) else first.in_features,
        last.out_channels if isinstance(last, nn.Conv2d) else last.out_features,
    )


def _net(module: nn.Module) -> nn.Module:
    """The network itself: a classifier has other parts, such as its loss."""
    net = getattr(module, "net", module)
    return net if isinstance(net, nn.Module) else module
