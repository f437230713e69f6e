"""conf/model: each file builds the net that it names."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from src.core.config import check, instantiate, resolve

PARAMETERS = {  # with 7 outputs
    "custom": 691_911,
    "custom_flatten": 25_785_415,
    "custom_gap": 128_071,
    "resnet50": 23_508_032 + 7 * 2049,
    "mobilenetv3_small": 927_008 + 7 * 577,
    "efficientnetv2_b0": 5_858_704 + 7 * 1281,
    "vgg16": 14_714_688 + 7 * 513,
    "efficientnet_lite0": 3_371_008 + 7 * 1281,
    "timm": None,
    "svm": 2 * 532 + 7 + 1,  # before its fit: ranges of the features, intercepts and gamma
}
OWN = (
    "custom",
    "svm",
)  # nets of no library: without weights to load, or inputs that such weights expect


@pytest.fixture
def conf(root: Path) -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        yield


def composed(choice: str, *overrides: str) -> DictConfig:
    return compose(
        f"model/{choice}", overrides=["+data.image_size=${model.image_size}", *overrides]
    )


def test_every_file_is_listed(root: Path) -> None:
    files = {
        file.stem
        for file in (root / "conf" / "model").glob("*.yaml")
        if not file.stem.startswith("_")
    }
    assert files == PARAMETERS.keys()


@pytest.mark.parametrize("choice", PARAMETERS)
def test_file_builds_the_net_it_names(conf: None, choice: str) -> None:
    random = [] if choice.startswith(OWN) else ["model.net.weights=random"]
    config = composed(choice, *random)
    check(resolve(config.model.net), "model.net")
    net = instantiate(config.model.net, "model.net", outputs=7)
    if PARAMETERS[choice] is not None:
        assert config.model.name == choice
        assert sum(p.numel() for p in net.parameters()) == PARAMETERS[choice]
    size = config.model.image_size
    assert net.eval()(torch.zeros(1, 3, size, size)).shape == (1, 7)


@pytest.mark.parametrize("choice", [choice for choice in PARAMETERS if not choice.startswith(OWN)])
def test_images_are_normalised_as_the_weights_expect(conf: None, choice: str) -> None:
    config = composed(choice).model
    published = timm.models.get_pretrained_cfg(config.net.name)
    assert (list(config.mean), list(config.std)) == (list(published.mean), list(published.std))


def test_any_timm_network_is_named_on_the_command_line(conf: None) -> None:
    config = composed("timm", "model.net.name=test_resnet", "model.net.weights=random").model
    assert config.name == "test_resnet"
