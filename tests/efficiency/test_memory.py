import pytest
import torch
from torch import Tensor, nn

from src.efficiency.memory import peak_memory_mb

CPU = torch.device("cpu")
FLOAT = 4  # bytes


def measured_floats(net: nn.Module, size: int, batch: int) -> float:
    return peak_memory_mb(net.eval(), size, batch, CPU) * 1e6 / FLOAT


@pytest.mark.parametrize("batch", [1, 5])
def test_chain_of_dense_layers(batch: int) -> None:
    """At the widest point of a chain, one layer's input and output and the images are alive."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 100), nn.Linear(100, 70), nn.Linear(70, 2))
    weights = 49 * 100 + 101 * 70 + 71 * 2
    assert measured_floats(net, 4, batch) == pytest.approx(weights + batch * (48 + 100 + 70))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolution_and_relu(layout: torch.memory_format) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2)).to(memory_format=layout)
    weights = (27 + 1) * 8
    assert measured_floats(net, 12, 2) == pytest.approx(
        weights + 2 * (3 * 12 * 12 + 2 * 8 * 10 * 10)
    )


def test_in_place_saves_a_copy() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True))
    assert measured_floats(net, 10, 1) == pytest.approx(4 * 8 + 300 + 800)


def test_what_is_kept_for_a_skip_connection_counts() -> None:
    class Residual(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images + (images * 2).neg()

    # images, their double, its negative; the double is gone when the sum is made
    assert measured_floats(Residual(), 10, 1) == pytest.approx(3 * 300)


def test_same_every_time_and_buffers_count() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    first = measured_floats(net, 8, 1)
    assert first == measured_floats(net, 8, 1)
    counter = 2  # the batch counter's 8 bytes
    assert first == pytest.approx(3 * 9 * 4 + 4 * 4 + counter + 3 * 64 + 2 * 4 * 36)
