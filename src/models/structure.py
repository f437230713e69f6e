"""Networks whose layers differ from those of their config: pruned, folded, in bfloat16."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from src.core.errors import UserError

_PRUNED, _FOLDED = "pruned", "folded"  # marks of a network
_BATCH_NORM = nn.modules.batchnorm._BatchNorm  # timm's norms with an activation inherit from it
RESIZABLE = (nn.Conv2d, nn.Linear, _BATCH_NORM)


def mark_pruned(net: nn.Module) -> None:
    """Mark a network as pruned."""
    setattr(net, _PRUNED, True)


def is_pruned(module: nn.Module) -> bool:
    """Whether a network, or the network of a classifier, is marked as pruned."""
    return bool(getattr(_net(module), _PRUNED, False))


def shrink(module: nn.Module, state: Mapping[str, Tensor]) -> None:
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
        if isinstance(layer, RESIZABLE):
            _resize(name, layer, state)
    if _ends(module) != ends:
        sizes = f"{ends} as in the complete net, but are {_ends(module)}"
        raise ValueError(f"inputs and outputs must be {sizes}")
    mark_pruned(_net(module))


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


def is_folded(module: nn.Module) -> bool:
    """Whether a network, or the network of a classifier, has been folded."""
    return bool(getattr(_net(module), _FOLDED, False))


def fold(module: nn.Module) -> int:
    """Fold the batch normalisation of a network, or of the network of a classifier, in place.

    A normalisation becomes part of the convolution that precedes it in the same module. The output
    in evaluation mode stays the same, by the running statistics. The convolutions can be trained.

    Returns:
        The number of folded layers; 0 for a network without batch normalisation.

    Raises:
        UserError: A normalisation does not follow a convolution; the message names three.
    """
    net = _net(module)
    was_training, number = net.training, 0
    net.eval()
    for parent in list(net.modules()):
        for (name, layer), (norm_name, norm) in pairwise(list(parent.named_children())):
            if not (isinstance(layer, nn.Conv2d) and isinstance(norm, _BATCH_NORM)):
                continue
            if layer.out_channels == norm.num_features:
                folded = fuse_conv_bn_eval(layer, norm)
                assert folded.bias is not None
                folded.bias.requires_grad_(folded.weight.requires_grad)
                setattr(parent, name, folded)
                setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))
                number += 1
    unfolded = [name for name, layer in net.named_modules() if isinstance(layer, _BATCH_NORM)]
    if unfolded:
        problem = f"batch normalisation without a convolution before it: {', '.join(unfolded[:3])}"
        raise UserError(f"{type(net).__name__} cannot be folded: {problem}")
    setattr(net, _FOLDED, True)
    net.train(was_training)
    return number


KIND = "bfloat16"  # in conf/compression


def cast(net: nn.Module) -> nn.Module:
    """Convert weights and arithmetic to bfloat16 in place; input and logits stay float32.

    A new network, cast, loads the checkpoint of a cast one.
    """
    net.to(torch.bfloat16)
    net.register_forward_pre_hook(lambda net, inputs: (inputs[0].to(torch.bfloat16), *inputs[1:]))
    net.register_forward_hook(lambda net, inputs, logits: logits.float())
    return net


def cast_as_recorded(net: nn.Module, config: DictConfig) -> nn.Module:
    """Cast a new network if the run of this config is a bfloat16 compression."""
    return cast(net) if str((config.get("compression") or {}).get("name")) == KIND else net
