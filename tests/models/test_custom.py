import itertools

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from src.core.errors import ConfigError
from src.models.custom import CustomCNN, smallest_image

FLATTEN = {"image_size": 224, "padding": 1, "dense": [256], "dropout": 0.5}


@pytest.mark.parametrize(
    ("arguments", "parameters", "multiply_adds"),
    [
        pytest.param({"image_size": 64}, 691_911, 30_037_824, id="custom"),
        pytest.param(FLATTEN, 25_785_415, 531_465_984, id="custom_flatten"),
        pytest.param(FLATTEN | {"head": "gap"}, 128_071, 505_908_992, id="custom_gap"),
    ],
)
def test_figures_of_mamun_2025(
    arguments: dict[str, object], parameters: int, multiply_adds: int
) -> None:
    net = CustomCNN(outputs=7, **arguments).eval()
    assert sum(p.numel() for p in net.parameters()) == parameters
    size = arguments["image_size"]
    flops = FlopCountAnalysis(net, torch.zeros(1, 3, size, size)).unsupported_ops_warnings(False)
    assert flops.total() == multiply_adds


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_parameters_by_hand(norm: str) -> None:
    net = CustomCNN(image_size=20, outputs=3, width=4, depth=2, padding=1, dense=[5], norm=norm)
    convolutions = 4 * 3 * 9 + 8 * 4 * 9 + ((4 + 8) if norm == "none" else 2 * (4 + 8))
    dense = (8 * 5 * 5 + 1) * 5 + (5 + 1) * 3
    assert sum(p.numel() for p in net.parameters()) == convolutions + dense


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_pooling_before_relu_is_the_same_function_as_after(norm: str) -> None:
    torch.manual_seed(0)
    net = CustomCNN(image_size=32, outputs=3, width=4, depth=2, norm=norm)
    images = torch.randn(2, 3, 32, 32)
    expected = images
    for block in net.features:
        weighted = [layer for layer in block if not isinstance(layer, nn.ReLU | nn.MaxPool2d)]
        expected = nn.Sequential(*weighted, nn.ReLU(), nn.MaxPool2d(2))(expected)
    torch.testing.assert_close(net.features(images), expected)


@pytest.mark.parametrize(("depth", "padding"), list(itertools.product([1, 2, 3, 4], [0, 1, 2])))
def test_smallest_image_is_the_smallest(depth: int, padding: int) -> None:
    smallest = smallest_image(depth, padding)
    net = CustomCNN(image_size=smallest, outputs=2, width=2, depth=depth, padding=padding)
    assert net(torch.zeros(1, 3, smallest, smallest)).shape == (1, 2)
    if smallest > 1:
        with pytest.raises(RuntimeError):
            net.features(torch.zeros(1, 3, smallest - 1, smallest - 1))


def test_too_small_image_is_refused_with_the_smallest() -> None:
    expected = r"^image_size: .*the smallest that this net takes is 22, but got 8$"
    with pytest.raises(ConfigError, match=expected):
        CustomCNN(image_size=8, outputs=7)
