"""A trained run's net as it is registered."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import nn

from src.core.cli import ROOT
from src.core.errors import UserError
from src.deployment import trained as inference
from src.models import structure
from src.models.weights import save_weights
from src.reporting.register import pyfunc_model

CLASSES = tuple("abc")


def config(width: int) -> DictConfig:
    net = ["model.image_size=16", f"model.net.width={width}"]
    net += ["model.net.depth=1", "model.net.dense=[8]"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", net)


@pytest.mark.parametrize("width", [4, 2])
def test_a_net_is_registered_as_it_was_saved_pruned_or_not(width: int, tmp_path: Path) -> None:
    OmegaConf.save(config(4), tmp_path / "config.yaml", resolve=True)
    trained = nn.ModuleDict({"net": inference.build_net(config(width), CLASSES)}).eval()
    if width < 4:
        structure.mark_pruned(trained.net)
    save_weights(trained, tmp_path / "best.ckpt")
    model, size = pyfunc_model(tmp_path / "config.yaml", tmp_path / "best.ckpt", CLASSES)
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = trained.net((images - mean.view(3, 1, 1)) / std.view(3, 1, 1)).softmax(dim=1)
        torch.testing.assert_close(model(images), expected)
    assert size == 16


def test_another_nets_checkpoint_is_refused(tmp_path: Path) -> None:
    OmegaConf.save(config(4), tmp_path / "config.yaml", resolve=True)
    save_weights(
        nn.ModuleDict({"net": inference.build_net(config(2), CLASSES)}), tmp_path / "best.ckpt"
    )
    with pytest.raises(UserError, match="not a checkpoint of this network"):
        pyfunc_model(tmp_path / "config.yaml", tmp_path / "best.ckpt", CLASSES)
