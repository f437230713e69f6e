"""What is counted of nets, by hand for small ones."""

import pytest
import torch
from torch import nn

from src.auditing.counts import Nets, convolution_biases, running_statistics
from src.core.errors import ConfigError

TINY = {
    "net": {
        "_target_": "src.models.custom.CustomCNN",
        "image_size": 10,
        "outputs": 2,
        "depth": 1,
        "dense": [],
    }
}


def test_what_keras_counts_and_torch_does_not() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 5, 1, bias=False), nn.BatchNorm2d(5), nn.Conv2d(5, 7, 1), nn.BatchNorm1d(4)
    )
    assert running_statistics(net) == 2 * 5 + 2 * 4
    assert convolution_biases(net) == 5
    assert running_statistics(nn.BatchNorm2d(3, track_running_stats=False)) == 0


def test_counts_of_a_net_add_up() -> None:
    nets = Nets({"tiny": TINY})
    parameters = 32 * 27 + 32 + 2 * 4 * 4 * 32 + 2  # 10 px, unpadded 3x3, pooled by 2: a 4x4 map
    assert nets.count("tiny", ["parameters"]) == parameters
    assert nets.count("tiny", ["flops"]) == 8 * 8 * 32 * 27 + 2 * 4 * 4 * 32
    assert nets.count("tiny", ["parameters", "running_statistics"]) == parameters
    assert nets.count("tiny", ["size_mb"]) == pytest.approx(4e-6 * parameters)


def test_counting_draws_nothing_from_the_generator() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    Nets({"tiny": TINY}).count("tiny", ["parameters", "flops"])
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 1}, "paper.nets.tiny.net.image_size: is too small"),
        ({"widht": 3}, "paper.nets.tiny.net.widht: unknown key; did you mean width"),
        ({"_target_": "src.models.nosuch"}, "paper.nets.tiny.net._target_: cannot import"),
        ({"dropout": 2.0}, "paper.nets.tiny.net.dropout: input should be less than 1"),
    ],
)
def test_an_impossible_net_names_its_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Nets({"tiny": {"net": TINY["net"] | change}}).count("tiny", ["parameters"])
