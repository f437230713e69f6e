"""The contract of a network: every file of conf/model builds a network that keeps it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from torch import nn

from src.core.config import check, instantiate, resolve

CONF = Path(__file__).resolve().parents[2] / "conf"
CONFIGS = sorted(file.stem for file in (CONF / "model").glob("[!_]*.yaml"))
PRETRAINED = [name for name in CONFIGS if "_backbone" in (CONF / f"model/{name}.yaml").read_text()]
PARAMETERS = {  # with 7 outputs
    "custom": 691_911,
    "custom_flatten": 25_785_415,
    "custom_gap": 128_071,
    "resnet50": 23_508_032 + 7 * 2049,
    "mobilenetv3_small": 927_008 + 7 * 577,
    "efficientnetv2_b0": 5_858_704 + 7 * 1281,
    "vgg16": 14_714_688 + 7 * 513,
    "efficientnet_lite0": 3_371_008 + 7 * 1281,
    "svm": 2 * 532 + 7 + 1,  # before its fit: ranges of the features, intercepts and gamma
}


@pytest.fixture(autouse=True)
def conf() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(name: str, *overrides: str) -> DictConfig:
    random = ["model.net.weights=random"] if name in PRETRAINED else []
    size = "+data.image_size=${model.image_size}"
    return compose(f"model/{name}", overrides=[size, *random, *overrides]).model


def build(config: DictConfig, outputs: int) -> nn.Module:
    torch.manual_seed(7)
    return instantiate(config.net, "model.net", outputs=outputs)


@pytest.mark.parametrize("name", CONFIGS)
def test_network_keeps_the_contract(name: str) -> None:
    config = composed(name)
    check(resolve(config.net), "model.net")
    net = build(config, outputs=7)
    if name in PARAMETERS:
        assert config.name == name
        assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]
    images = torch.rand(1, 3, config.image_size, config.image_size)
    with torch.no_grad():
        logits = net.eval()(images)
    assert logits.shape == (1, 7)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


VARIANTS = {
    "custom": ["model.net.dropout=0.3", "model.net.norm=batch", "model.net.head=gap"],
    "frozen": ["model.net.name=test_resnet", "model.net.frozen=true"],
    "flatten": ["model.net.name=test_resnet", "model.net.pool=flatten", "model.net.dense=[8]"],
    "transformer": ["model.net.name=test_vit"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_small_network_is_deterministic_and_learns(variant: str) -> None:
    name = "custom" if variant == "custom" else "timm"
    config = composed(name, *VARIANTS[variant], "model.image_size=48")
    net, again, single = build(config, 3), build(config, 3), build(config, 1)
    images = torch.randn(4, 3, 48, 48)
    before = images.clone()
    with torch.no_grad():
        logits = net.eval()(images)
        assert torch.equal(logits, again.eval()(images))  # the seed decides the weights
        assert single.eval()(images).shape == (4, 1)
        again.to(memory_format=torch.channels_last)
        changed = again(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, changed, rtol=1e-3, atol=1e-4)
    loss = nn.functional.cross_entropy(net.train()(images), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert torch.equal(images, before)  # not overwritten
    trained = {key: p.grad for key, p in net.named_parameters() if p.requires_grad}
    assert trained
    for key, gradient in trained.items():
        assert gradient is not None, key
        assert torch.isfinite(gradient).all(), key


@pytest.mark.parametrize("name", PRETRAINED)
def test_images_are_normalised_as_the_weights_expect(name: str) -> None:
    config = composed(name)
    published = timm.models.get_pretrained_cfg(config.net.name)
    assert (list(config.mean), list(config.std)) == (list(published.mean), list(published.std))


def test_any_timm_network_is_named_on_the_command_line() -> None:
    assert composed("timm", "model.net.name=test_resnet").name == "test_resnet"
