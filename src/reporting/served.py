"""A trained run's net as others use it: images in, probabilities out, without the data it was trained on."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from src.config import check_targets, instantiate
from src.errors import UserError
from src.metrics.classification import probabilities


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


def served(config_file: Path, checkpoint: Path, classes: int) -> tuple[Served, int]:
    """The net of a run and the side of its input in px.

    Args:
        config_file: The run's recorded config.
        checkpoint: Its weights; nothing in the file is executed.
        classes: K.

    Raises:
        UserError: The checkpoint is damaged, or of another net.
    """
    config = OmegaConf.load(config_file)
    assert isinstance(config, DictConfig)
    check_targets(config.model)
    if "weights" in config.model.net:
        config.model.net.weights = "random"  # the checkpoint's follow
    net: nn.Module = instantiate(config.model.net, "model.net", outputs=1 if classes == 2 else classes)
    try:
        content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        own = {name.removeprefix("net."): value for name, value in content.items() if name.startswith("net.")}
        net.load_state_dict(own)
    except Exception as error:
        raise UserError(f"{checkpoint}: not a checkpoint of this net: {str(error).splitlines()[0]}") from error
    return Served(net, list(config.model.mean), list(config.model.std)).eval(), int(config.model.image_size)
