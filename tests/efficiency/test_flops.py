import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from src.efficiency.flops import count_flops, count_parameters, count_trainable, layers, size_mb


def small_cnn(size: int, width: int, dense: int) -> nn.Sequential:
    """Convolution, ReLU and pooling, twice, then two dense layers."""
    side = ((size - 2) // 2 - 2) // 2
    return nn.Sequential(
        *(nn.Conv2d(3, width, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(2 * width * side * side, dense)),
        *(nn.Dropout(0.5), nn.Linear(dense, 7)),
    )


@settings(max_examples=8, deadline=None)
@given(size=st.integers(12, 40), width=st.integers(1, 8), dense=st.integers(1, 16))
def test_one_multiply_add_counts_as_one(size: int, width: int, dense: int) -> None:
    first = size - 2
    second = first // 2 - 2
    convolutions = first**2 * width * 3 * 9 + second**2 * 2 * width * width * 9
    by_hand = convolutions + 2 * width * (second // 2) ** 2 * dense + dense * 7
    counted = count_flops(small_cnn(size, width, dense), size)
    assert counted.total == by_hand
    assert counted.uncounted == {"aten::max_pool2d": 2}


class Scaled(nn.Module):
    """A parameter and a product of its own around a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
        self.matrix = nn.Parameter(torch.zeros(5, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner(images) @ self.matrix


def test_layers_have_their_own_flops_and_parameters() -> None:
    """The first paper's formulas: k^2 C_in C_out H W and n m."""
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), Scaled())
    counted = count_flops(net, 4)
    assert [tuple(row.values()) for row in layers(net, counted)] == [
        ("0", "Conv2d", 9 * 3 * 3 * 2 * 2, 9 * 3 * 3 + 3),
        ("2", "Scaled", 5 * 3, 5 * 3),
        ("2.inner.1", "Linear", 12 * 5, 12 * 5 + 5),
    ]
    net = timm.create_model("mobilenetv3_small_050", num_classes=7)
    rows = layers(net, counted := count_flops(net, 64))
    assert sum(row["flops"] for row in rows) == counted.total
    assert sum(row["params"] for row in rows) == count_parameters(net)


def test_half_of_the_count_of_torch() -> None:
    """Torch's own counter takes a multiplication and an addition as two."""
    net = small_cnn(24, 4, 8).eval()
    with FlopCounterMode(display=False) as counter:
        net(torch.rand(1, 3, 24, 24))
    assert 2 * count_flops(net, 24).total == counter.get_total_flops()


def test_strides_groups_and_padding() -> None:
    depthwise = nn.Conv2d(12, 12, 5, padding="same", groups=12)
    net = nn.Sequential(nn.Conv2d(3, 12, 3, stride=2, padding=1), depthwise)
    assert count_flops(net, 16).total == 8 * 8 * 12 * 3 * 9 + 8 * 8 * 12 * 25


def test_uncounted_operators_are_listed_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Sigmoid(), nn.Sigmoid())
    assert count_flops(net, 8).uncounted == {"aten::sigmoid": 2, "aten::silu": 1}
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_network_and_random_state_are_unchanged() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    net.to(memory_format=torch.channels_last)
    net[0].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    count_flops(net, 10)
    assert all(module.training for module in net.modules())
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_parameters_from_layer_shapes() -> None:
    dense = nn.Linear(32, 5, bias=False)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), dense)
    expected = (3 * 9 + 1) * 8 + 2 * 8 + 32 * 5
    assert count_parameters(net) == expected
    # running mean and variance, and the 8-byte batch counter, are in the state dict only
    assert size_mb(net) == pytest.approx(((expected + 2 * 8) * 4 + 8) / 1e6)
    net[0].requires_grad_(False)
    assert count_parameters(net) == expected
    assert count_trainable(net) == expected - (3 * 9 + 1) * 8


def test_shared_weights_count_once() -> None:
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    net[1].weight = net[0].weight
    assert count_parameters(net) == 36
    assert size_mb(net) == pytest.approx(36 * 4 / 1e6)
    assert size_mb(net.to(torch.float16)) == pytest.approx(36 * 2 / 1e6)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "pvt_v2_b0", "mobilevit_xxs", "swin_tiny_patch4_window7_224"]
)
def test_fused_attention_counts_as_much_as_explicit_attention(name: str) -> None:
    def counted(fused: bool) -> int:
        timm.layers.set_fused_attn(fused)
        try:
            return count_flops(timm.create_model(name, num_classes=7), 224).total
        finally:
            timm.layers.set_fused_attn(True)

    assert counted(fused=True) == counted(fused=False)


def test_attention_of_a_vision_transformer_by_hand() -> None:
    tokens, dim, depth, size = 14 * 14 + 1, 192, 12, 224
    projections = tokens * (dim * 3 * dim + dim * dim + 2 * dim * 4 * dim)
    attention = 2 * tokens * tokens * dim  # QK^T and AV
    norms = (2 * depth + 1) * 5 * tokens * dim
    patches, head = 14 * 14 * 16 * 16 * 3 * dim, dim * 7
    by_hand = patches + depth * (projections + attention) + norms + head
    counted = count_flops(timm.create_model("vit_tiny_patch16_224", num_classes=7), size)
    assert counted.total == by_hand == 1_258_220_544
    assert counted.missing == {}


class Attends(nn.Module):
    """torch's own attention, whose fast path would be one operator, of 16 tokens of 8 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = images[:, :2].reshape(1, 16, 8)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


def test_attention_of_torch() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    assert count_flops(Attends(), 8).total == 16 * 8 * 4 * 8 + 2 * 16 * 16 * 8
    assert torch.backends.mha.get_fastpath_enabled() == before


class Broadcasts(nn.Module):
    """Products whose left side is broadcast, is a vector, or is added to something."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stack = images.expand(5, -1, -1, -1)  # (5, 3, 8, 8)
        product = images[0, 0] @ stack  # 5 * 3 products of 8 x 8
        vector = images[0, 0] @ images[0, 1, 0]
        return torch.baddbmm(product[0], stack[0], stack[1]) + vector


def test_products_that_are_broadcast_or_added() -> None:
    assert count_flops(Broadcasts(), 8).total == 5 * 3 * 8**3 + 8 * 8 + 3 * 8**3


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.lstm(torch.fft.fft(images[0]).real.softmax(dim=-1))[0]


def test_operators_that_may_have_multiply_adds_are_missing() -> None:
    counted = count_flops(Sequence(), 8)
    assert counted.missing == {"aten::fft_fft": 1, "aten::lstm": 1}
    assert counted.uncounted == {**counted.missing, "aten::real": 1, "aten::softmax": 1}
