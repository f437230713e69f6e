"""Batch normalisation folded into the convolution before it: the same output, fewer operators."""

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from src.core.errors import UserError

_MARK = "folded"
_BATCH_NORM = nn.modules.batchnorm._BatchNorm  # timm's norms with an activation inherit from it


def is_folded(module: nn.Module) -> bool:
    """Whether a network, or the network of a classifier, has been folded."""
    return bool(getattr(getattr(module, "net", module), _MARK, False))


def fold(module: nn.Module) -> int:
    """Fold the batch normalisation of a network, or of the network of a classifier, in place.

    A normalisation becomes part of the convolution that precedes it in the same module. The output
    in evaluation mode stays the same, by the running statistics. The convolutions can be trained.

    Returns:
        The number of folded layers; 0 for a network without batch normalisation.

    Raises:
        UserError: A normalisation does not follow a convolution; the message names three.
    """
    net: nn.Module = getattr(module, "net", module)
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
    rest = [name for name, layer in net.named_modules() if isinstance(layer, _BATCH_NORM)]
    if rest:
        problem = f"batch normalisation without a convolution before it: {', '.join(rest[:3])}"
        raise UserError(f"{type(net).__name__} cannot be folded: {problem}")
    setattr(net, _MARK, True)
    net.train(was_training)
    return number
