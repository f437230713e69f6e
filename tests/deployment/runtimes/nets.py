"""Nets that behave as if trained, and what PyTorch computes with them."""

import numpy as np
import torch
from torch import nn

from src.deployment.description import Decision, Description
from src.deployment.runtimes.base import ImageBatch
from src.deployment.runtimes.eager import CameraNet
from src.models.backbone import Backbone

SEVEN = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
TWO = ("benign", "malignant")
TOLERANCE = 1e-4  # the default of src.export
SIDE = 32


class NetSum(nn.Module):
    """The sum of two nets in one file: a slow exporter is called once for both."""

    def __init__(self, *nets: nn.Module) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([net(images) for net in self.nets]).sum(dim=0)


def backbone(name: str, blocks: int | None = None) -> Backbone:
    return Backbone(name, SIDE, 7, weights="random", blocks=blocks)


def varied(net: nn.Module, pictures: ImageBatch) -> CameraNet:
    """Random statistics in batch normalisation, and logits that differ between pictures."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    camera = CameraNet(net, [0.7, 0.5, 0.5], [0.2, 0.2, 0.2])
    for part in net.nets if isinstance(net, NetSum) else [net]:
        last = [module for module in part.modules() if isinstance(module, nn.Linear)][-1]
        with torch.no_grad():
            images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
            logits = part((images - camera.mean) * camera.scale)
            deviation = logits.std(dim=0).clamp_min(1e-6)
            last.weight /= deviation[:, None]
            last.bias.copy_((last.bias - logits.mean(dim=0)) / deviation)
    return camera


def describe(classes: tuple[str, ...]) -> Description:
    decision = Decision(classes[1], 0.3, "sensitivity >= 0.8 on val", 1.5)
    origin = ("squash", "ham10000", "grouped", "a licence")
    return Description("3f2a", "tiny", classes, SIDE, *origin, decision=decision)  # type: ignore[arg-type]


def expected(camera: CameraNet, pictures: ImageBatch) -> np.ndarray:
    with torch.inference_mode():
        return camera(torch.from_numpy(pictures)).numpy()
