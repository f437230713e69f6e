"""A trained run's net as others use it: images in, probabilities out, without the data it was trained on."""

from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from src.config import check_targets
from src.metrics.classification import probabilities
from src.trained import inference


class Served(nn.Module):
    """Normalisation, net and softmax in one.

    Args:
        net: Normalised images (N, 3, S, S) -> logits (N, K), or (N, 1) for two classes.
        mean: Channel means that are taken off, in [0, 1] units, red first.
        std: Channel deviations that are divided by.
    """

    def __init__(self, net: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.net = net
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S), float32 in [0, 1] -> probabilities (N, K)."""
        return probabilities(self.net((images - self.mean) / self.std))


def served(config_file: Path, checkpoint: Path, classes: Sequence[str]) -> tuple[Served, int]:
    """The net of a run and the side of its input in px.

    Args:
        config_file: The run's recorded config.
        checkpoint: Its weights, of a pruned net too; nothing in the file is executed.
        classes: In label order.

    Raises:
        UserError: The checkpoint is damaged, or of another net.
    """
    config = OmegaConf.load(config_file)
    assert isinstance(config, DictConfig)
    check_targets(config.model)
    classifier = inference.load(config, classes, checkpoint)
    return Served(classifier.net, list(config.model.mean), list(config.model.std)).eval(), classifier.image_size
