import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from src.efficiency.flops import count_flops


class SmallCNN(nn.Module):
    """Convolution - ReLU - pool, twice, then two dense layers; remembers nothing."""

    def __init__(self, size: int, width: int, dense: int) -> None:
        super().__init__()
        side = ((size - 2) // 2 - 2) // 2
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * side * side, dense),
            nn.Dropout(0.5),
            nn.Linear(dense, 7),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def by_hand(size: int, width: int, dense: int) -> int:
    first = size - 2
    second = first // 2 - 2
    side = second // 2
    convolutions = first**2 * width * 3 * 9 + second**2 * 2 * width * width * 9
    return convolutions + 2 * width * side**2 * dense + dense * 7


@settings(max_examples=8, deadline=None)
@given(size=st.integers(12, 40), width=st.integers(1, 8), dense=st.integers(1, 16))
def test_one_multiply_add_counts_as_one(size: int, width: int, dense: int) -> None:
    net = SmallCNN(size, width, dense)
    counted = count_flops(net, size)
    assert counted.total == by_hand(size, width, dense)
    assert counted.uncounted == {"aten::max_pool2d": 2}


def test_half_of_what_torch_counts() -> None:
    """Torch's own counter takes a multiplication and an addition as two."""
    net = SmallCNN(24, 4, 8).eval()
    with FlopCounterMode(display=False) as counter:
        net(torch.rand(1, 3, 24, 24))
    assert 2 * count_flops(net, 24).total == counter.get_total_flops()


def test_strides_groups_and_padding() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.Conv2d(12, 12, 5, padding=2, groups=12)
    )
    assert count_flops(net, 16).total == 8 * 8 * 12 * 3 * 9 + 8 * 8 * 12 * 25


def test_uncounted_operators_are_told() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Sigmoid(), nn.Sigmoid())
    assert count_flops(net, 8).uncounted == {"aten::sigmoid": 2, "aten::silu": 1}


def test_net_is_left_as_it_is() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).to(
        memory_format=torch.channels_last
    )
    net[0].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    count_flops(net, 10)
    assert net.training
    assert all(module.training for module in net)
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_printed(
    capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    count_flops(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU()), 10)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
