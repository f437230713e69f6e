"""What is counted of nets that no training is needed for."""

import functools
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from src.core.config import check, instantiate
from src.efficiency.flops import count_flops, count_parameters, size_mb


def running_statistics(net: nn.Module, image_size: int = 0) -> int:
    """Running means and variances of batch normalisation: buffers in torch, (untrainable) parameters in Keras."""
    means = [
        module.running_mean
        for module in net.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    return sum(2 * mean.numel() for mean in means if mean is not None)


def convolution_biases(net: nn.Module, image_size: int = 0) -> int:
    """Biases that convolutions here do without, a value an output channel; Keras's ResNet50 has them."""
    return sum(
        module.out_channels
        for module in net.modules()
        if isinstance(module, nn.Conv2d) and module.bias is None
    )


COUNTS = {
    "parameters": lambda net, image_size: count_parameters(net),
    "running_statistics": running_statistics,
    "convolution_biases": convolution_biases,
    "flops": lambda net, image_size: _flops(net, image_size),
    "size_mb": lambda net, image_size: size_mb(net),
}


class Nets:
    """The nets of a paper, each built when it is first asked for and once.

    Args:
        configs: Composed model configs by name; of each only its `net` is built.
        key: Where they stand, for errors.
    """

    def __init__(self, configs: Mapping[str, Mapping[str, Any]], key: str = "paper.nets") -> None:
        self._configs = configs
        self._key = key
        self._count = functools.cache(self._counted)

    def count(self, name: str, what: Sequence[str]) -> float:
        """One of `COUNTS` of a net, or the sum of several.

        Raises:
            ConfigError: A net that cannot be; the message names the key.
        """
        return sum(self._count(name, each) for each in what)

    def _counted(self, name: str, what: str) -> float:
        net, image_size = self._built(name)
        return float(COUNTS[what](net, image_size))

    @functools.cache  # noqa: B019  an audit's nets live as long as the audit
    def _built(self, name: str) -> tuple[nn.Module, int]:
        where = f"{self._key}.{name}.net"
        config = dict(self._configs[name].get("net", {}))
        if "weights" in config:
            config["weights"] = (
                "random"  # what is counted does not depend on them: nothing is downloaded
            )
        check(config, where)
        with torch.device("meta"):  # nor is anything drawn, which takes longer than all counting
            net = instantiate(OmegaConf.create(config), where)
        return net.eval(), int(config["image_size"])


def _flops(net: nn.Module, image_size: int) -> int:
    """Multiply-adds; they do not depend on the weights, so all are zero."""
    filled = deepcopy(net).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*filled.parameters(), *filled.buffers()):
            tensor.zero_()
    return count_flops(filled, image_size).total
