"""What every net keeps: one list of nets, one set of tests."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from src.models.backbone import Backbone
from src.models.custom import CustomCNN

SIZE = 48
NETS: dict[str, Callable[..., nn.Module]] = {
    "custom": partial(CustomCNN, width=4),
    "custom_batchnorm_gap": partial(CustomCNN, width=4, norm="batch", head="gap", dropout=0.3),
    "backbone": partial(Backbone, name="test_resnet", weights="random"),
    "backbone_flatten": partial(
        Backbone, name="test_resnet", weights="random", pool="flatten", dense=[8], dropout=0.2
    ),
    "backbone_frozen": partial(Backbone, name="test_resnet", weights="random", frozen=True),
    "backbone_transformer": partial(Backbone, name="test_vit", weights="random"),
    "mobilenetv3_small": partial(
        Backbone, name="mobilenetv3_small_100", weights="random", pool="flatten"
    ),
}


def build(net: str, outputs: int = 3) -> nn.Module:
    torch.manual_seed(7)
    return NETS[net](image_size=SIZE, outputs=outputs)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("outputs", [1, 7])
@pytest.mark.parametrize("name", NETS)
def test_one_row_an_image_and_one_column_an_output(
    name: str, outputs: int, images: torch.Tensor
) -> None:
    logits = build(name, outputs)(images)
    assert logits.shape == (4, outputs)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", NETS)
def test_memory_format_does_not_matter(name: str, images: torch.Tensor) -> None:
    net = build(name).eval()
    expected = net(images)
    net = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        net(images.to(memory_format=torch.channels_last)), expected, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("name", NETS)
def test_a_seed_decides_the_weights(name: str) -> None:
    first, second = build(name).state_dict(), build(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", NETS)
def test_every_trained_parameter_learns(name: str, images: torch.Tensor) -> None:
    net = build(name).train()
    nn.functional.cross_entropy(net(images), torch.tensor([0, 1, 2, 0])).backward()
    trained = {
        key: parameter.grad for key, parameter in net.named_parameters() if parameter.requires_grad
    }
    assert trained
    for key, gradient in trained.items():
        assert gradient is not None, key
        assert torch.isfinite(gradient).all(), key


@pytest.mark.parametrize("name", NETS)
def test_image_is_not_written_over(name: str, images: torch.Tensor) -> None:
    before = images.clone()
    build(name).eval()(images)
    assert torch.equal(images, before)
