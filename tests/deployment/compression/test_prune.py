"""Pruning takes whole channels out; what is expected is counted by hand, or by another library."""

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import small_store
import torch
from torch import Tensor, nn

from compression.nets import context, prepared_data
from src.core.errors import ConfigError, UserError
from src.data.module import DataModule
from src.deployment.compression.base import CompressedModel
from src.deployment.compression.prune import ChannelGroup, Prune, choose
from src.efficiency.flops import count_flops, count_parameters
from src.models.backbone import Backbone
from src.models.custom import CustomCNN
from src.training.checkpoint import load_weights, save_weights
from src.training.classifier import Classifier

SIZE = 32
GROUPED = (
    nn.Conv2d(3, 16, 3, stride=2),
    nn.ReLU(),
    nn.Conv2d(16, 12, 3, groups=2),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
)
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "flatten": lambda: CustomCNN(SIZE, 7, width=8, depth=2, dense=[16, 8]),
    "gap, batch": lambda: CustomCNN(SIZE, 7, width=8, depth=2, head="gap", dense=[], norm="batch"),
    "grouped": lambda: nn.Sequential(*deepcopy(GROUPED), nn.Flatten(), nn.Linear(12, 7)),
    "resnet": lambda: Backbone("test_resnet", SIZE, 7, "random"),
    "efficientnet, cut": lambda: Backbone("test_efficientnet", SIZE, 7, "random", blocks=3),
    "efficientnet, frozen": lambda: Backbone(
        "test_efficientnet", SIZE, 7, "random", frozen=True, dense=32
    ),
    "mobilenetv3, cut": lambda: Backbone("mobilenetv3_small_050", SIZE, 7, "random", blocks=4),
}
ALTERNATELY = [(family, ("global", "layer")[number % 2]) for number, family in enumerate(FAMILIES)]


class Fixed(nn.Sequential):
    """A net that counts on its channels without saying so."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7))
        self.register_buffer("scale", torch.ones(8))

    def forward(self, images: Tensor) -> Tensor:
        return self[3](self[2](self[1](self[0](images))) * self.scale)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataModule:
    return prepared_data(tmp_path_factory.mktemp("cache"), SIZE, 48)


def classifier(net: nn.Module) -> Classifier:
    return small_store.classifier(net, SIZE, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])


def built(family: str, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return classifier(FAMILIES[family]())


def pruned(model: Classifier, data: DataModule, **settings: object) -> CompressedModel:
    method = Prune(**{"epochs": 0, "images": 32, **settings})  # type: ignore[arg-type]
    return method.compress(context(model, data, Path("unused")))


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def answers(given: Classifier) -> Tensor:
    with torch.no_grad():
        return given(images())


@pytest.mark.parametrize(("family", "scope"), [*ALTERNATELY, ("flatten", "layer")])
def test_every_family_gets_smaller_and_its_checkpoint_opens(
    family: str, scope: str, data: DataModule, tmp_path: Path
) -> None:
    before = built(family)
    trained = {name: parameter.requires_grad for name, parameter in before.named_parameters()}
    after = deepcopy(before)
    found = pruned(after, data, ratio=0.4, scope=scope)
    assert found.classifier is after
    for cost, share in (
        (lambda net: count_flops(net, SIZE).total, "flops_share"),
        (count_parameters, "params_share"),
    ):
        assert found.facts[share] == cost(after.net) / cost(before.net)
        assert 0.1 < float(found.facts[share]) < 0.8
    assert answers(after).shape == (2, 7)
    assert {
        name: parameter.requires_grad for name, parameter in after.named_parameters()
    } == trained
    save_weights(after, tmp_path / "best.ckpt")
    again = built(family, seed=1)
    load_weights(again, tmp_path / "best.ckpt")
    torch.testing.assert_close(answers(again.eval()), answers(after))


def test_channels_parameters_and_multiply_adds_are_those_of_the_arithmetic(
    data: DataModule,
) -> None:
    given = built("flatten")
    found = pruned(given, data, ratio=0.5, scope="layer")
    assert found.facts["channels"] == "features.0.0 4/8, features.1.0 8/16, head.0 8/16, head.3 4/8"
    side = ((32 - 2) // 2 - 2) // 2  # 3x3 without padding, then pooled, twice
    layers = [
        (30 * 30, 3 * 9, 4),
        (13 * 13, 4 * 9, 8),
        (1, 8 * side * side, 8),
        (1, 8, 4),
        (1, 4, 7),
    ]
    assert count_parameters(given.net) == sum(
        (inputs + 1) * outputs for _, inputs, outputs in layers
    )
    assert count_flops(given.net, SIZE).total == sum(math.prod(layer) for layer in layers)


@pytest.mark.parametrize("importance", ["l1", "l2", "taylor"])
def test_filters_that_do_nothing_go_first_and_nothing_changes(
    importance: str, data: DataModule
) -> None:
    given = built("flatten")
    generator = torch.Generator().manual_seed(2)
    layers = [layer for layer in given.net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)][
        :-1
    ]
    for layer in layers:
        dead = torch.randperm(len(layer.weight), generator=generator)[: len(layer.weight) // 2]
        with torch.no_grad():
            for tensor in layer.parameters():
                tensor[dead] = 0
    seen = torch.from_numpy(data.cache.images[data.rows("train")]).permute(0, 3, 1, 2)
    before = given(seen)
    pruned(given, data, ratio=0.5, scope="layer", importance=importance, images=len(seen))
    assert [len(layer.weight) for layer in layers] == [4, 8, 8, 4]  # type: ignore[arg-type]
    torch.testing.assert_close(given(seen), before)
    assert all(parameter.grad is None for parameter in given.parameters())


def test_factors_of_batch_normalisation_say_what_goes(data: DataModule) -> None:
    given = built("gap, batch")
    norms = [layer for layer in given.net.modules() if isinstance(layer, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_(torch.arange(1, len(norm.weight) + 1))
    pruned(given, data, ratio=0.5, scope="layer", importance="bn_scale")
    assert [norm.weight.tolist() for norm in norms] == [[5, 6, 7, 8], list(range(9, 17))]


@pytest.mark.parametrize(("scope", "share"), [("global", 0.3), ("global", 0.6), ("layer", 0.6)])
def test_multiply_adds_are_brought_down_to_the_share(
    scope: str, share: float, data: DataModule
) -> None:
    net = CustomCNN(SIZE, 7, width=16, depth=2, dense=32)
    found = pruned(classifier(net), data, flops_share=share, scope=scope)
    a_channel_of_each_layer = 1 - (15 / 16) * (
        31 / 32
    )  # by which the second convolution, most of the work, shrinks
    assert share - a_channel_of_each_layer < float(found.facts["flops_share"]) <= share
    assert found.facts["flops_share"] == count_flops(net, SIZE).total / (
        900 * 27 * 16 + 169 * 144 * 32 + 1152 * 32 + 224
    )


def test_steps_end_where_one_does_and_each_is_fine_tuned(data: DataModule) -> None:
    seen: list[tuple[int, int, float]] = []

    def tune(tuned: Classifier, epochs: int, lr: float) -> None:
        seen.append((len(tuned.net.features[1][0].weight), epochs, lr))  # type: ignore[index,union-attr]

    method = Prune(ratio=0.5, scope="layer", steps=3, epochs=2, lr=0.01)
    found = method.compress(context(built("flatten"), data, Path("unused"), tune))
    assert seen == [
        (13, 2, 0.01),
        (10, 2, 0.01),
        (8, 2, 0.01),
    ]  # of 16: floor(5/6), floor(2/3), 1/2
    assert found.facts["channels"] == "features.0.0 4/8, features.1.0 8/16, head.0 8/16, head.3 4/8"


def test_chance_is_the_seeds(data: DataModule) -> None:
    left = []
    for seed in (0, 0, 1):
        given, data.seed = built("flatten"), seed
        state = torch.get_rng_state()
        pruned(given, data, ratio=0.5, importance="random")
        assert torch.equal(torch.get_rng_state(), state)
        left.append(answers(given))
    data.seed = 0
    assert torch.equal(left[0], left[1])
    assert not torch.allclose(left[0], left[2])


def coupled(*scores: list[float], whole: int = 8, blocks: int = 1) -> list[ChannelGroup]:
    return [
        ChannelGroup(str(number), torch.tensor(each), blocks, whole)
        for number, each in enumerate(scores)
    ]


LOW, HIGH = [0.1, 0.8, 0.2, 0.7, 0.3, 0.6, 0.4, 0.5], [2.0, 1.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]


@pytest.mark.parametrize(
    ("scope", "limit", "round_to", "expected"),
    [
        ("layer", 0.9, 1, {"0": [0, 2], "1": [0, 1]}),  # the weakest quarter of each
        ("global", 0.9, 1, {"0": [0, 2, 4, 6]}),  # a quarter of both is half of the weaker one
        ("global", 0.25, 1, {"0": [0, 2], "1": [0, 1]}),  # which may lose a quarter only
        ("global", 0.9, 3, {"0": [0, 2, 4, 6, 7]}),  # 4 are nearer to 3 than to 6
        ("layer", 0.9, 8, {}),
    ],
)
def test_choice(scope: str, limit: float, round_to: int, expected: dict[str, list[int]]) -> None:
    assert choose(coupled(LOW, HIGH), 0.25, scope, limit, round_to) == expected  # type: ignore[arg-type]


def test_no_layer_loses_everything() -> None:
    chosen = choose(coupled([0.0] * 8, HIGH), 0.5, "global", 0.9, 1)
    assert len(chosen["0"]) == 7
    assert chosen["1"] == [1]  # of 16 half: 7 and the next


def test_groups_of_a_convolution_lose_the_same_channel() -> None:
    assert choose(coupled([3.0, 1.0, 2.0], whole=3, blocks=2), 0.6, "layer", 0.9, 1) == {
        "0": [1, 4]
    }  # two stay


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({}, "ratio"),
        ({"ratio": 0.5, "flops_share": 0.5}, "ratio"),
        ({"ratio": 0.95}, "layer_limit"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        Prune(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("net", "settings", "message"),
    [
        (
            FAMILIES["flatten"],
            {"flops_share": 0.001},
            r"flops_share=0.001 cannot be reached with layer_limit=0.9 .*0 8",
        ),
        (
            FAMILIES["flatten"],
            {"ratio": 0.5, "round_to": 16},
            r"round_to=16 takes no channel .*features\.0\.0 8",
        ),
        (
            FAMILIES["flatten"],
            {"ratio": 0.5, "importance": "bn_scale"},
            "it has no batch normalisation",
        ),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 7)),
            {"ratio": 0.5},
            "no convolution or dense",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 7, SIZE), nn.Flatten()),
            {"ratio": 0.5},
            "its output is no dense layer",
        ),
        (
            lambda: Backbone("test_vit", 160, 7, "random"),
            {"ratio": 0.5},
            r"it has backbone \(VisionTransformer\), .* more",
        ),
        (Fixed, {"ratio": 0.5}, "do not fit together"),
    ],
)
def test_nets_that_cannot_be_pruned_so_end_in_one_line(
    net: Callable[[], nn.Module], settings: dict[str, float], message: str, data: DataModule
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        pruned(classifier(net()), data, **settings)
    assert "\n" not in str(caught.value)
