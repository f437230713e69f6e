import pytest
import torch
from torch import nn

from src.efficiency.flops import count_parameters, count_trainable, size_mb


def test_counts_from_layer_shapes() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 5, bias=False)
    )
    expected = (3 * 9 + 1) * 8 + 2 * 8 + 32 * 5
    assert count_parameters(net) == expected
    # running mean and variance, and the 8-byte batch counter, are in the state dict but are no
    # parameters
    assert size_mb(net) == pytest.approx(((expected + 2 * 8) * 4 + 8) / 1e6)


def test_frozen_parameters_are_parameters_but_not_trainable() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    net[0].requires_grad_(False)
    assert count_parameters(net) == 5 * 3 + 4 * 2
    assert count_trainable(net) == 4 * 2


def test_shared_weights_count_once() -> None:
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    net[1].weight = net[0].weight
    assert count_parameters(net) == 36
    assert size_mb(net) == pytest.approx(36 * 4 / 1e6)


def test_size_follows_the_number_format() -> None:
    net = nn.Linear(10, 10, bias=False)
    assert size_mb(net.to(torch.float16)) == pytest.approx(200 / 1e6)
