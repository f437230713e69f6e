"""Pruning removes channels; expected values are counted by hand or by another library."""

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

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
from src.models.weights import load_weights, save_weights
from src.training.classifier import Classifier

SIZE = 32
GROUPED = (
    *(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 12, 3, groups=2), nn.ReLU()),
    nn.AdaptiveAvgPool2d(1),
)
NETS: dict[str, Callable[[], nn.Module]] = {
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
SCOPES = [(name, ("global", "layer")[number % 2]) for number, name in enumerate(NETS)]
HALF = "features.0.0 4/8, features.1.0 8/16, head.0 8/16, head.3 4/8"  # of "flatten"


class FixedChannels(nn.Sequential):
    """A net that depends on its number of channels in a buffer."""

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


def built(name: str, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return classifier(NETS[name]())


def prune(model: Classifier, data: DataModule, **settings: object) -> CompressedModel:
    method = Prune(**{"epochs": 0, "images": 32, **settings})  # type: ignore[arg-type]
    return method.compress(context(model, data, Path("unused")))


def output(model: Classifier) -> Tensor:
    with torch.no_grad():
        return model(torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(("name", "scope"), [*SCOPES, ("flatten", "layer")])
def test_a_net_gets_smaller_and_its_checkpoint_can_be_loaded(
    name: str, scope: str, data: DataModule, tmp_path: Path
) -> None:
    before = built(name)
    trainable = {name: weight.requires_grad for name, weight in before.named_parameters()}
    after = deepcopy(before)
    model = prune(after, data, ratio=0.4, scope=scope)
    assert model.classifier is after
    flops = [count_flops(item.net, SIZE).total for item in (after, before)]
    parameters = [count_parameters(item.net) for item in (after, before)]
    for fact, (small, large) in {"flops_share": flops, "params_share": parameters}.items():
        assert model.facts[fact] == small / large
        assert 0.1 < small / large < 0.8
    assert output(after).shape == (2, 7)
    assert {name: weight.requires_grad for name, weight in after.named_parameters()} == trainable
    save_weights(after, tmp_path / "best.ckpt")
    loaded = built(name, seed=1)
    load_weights(loaded, tmp_path / "best.ckpt")
    torch.testing.assert_close(output(loaded.eval()), output(after))


def test_channels_parameters_and_multiply_adds_follow_from_arithmetic(data: DataModule) -> None:
    model = built("flatten")
    assert prune(model, data, ratio=0.5, scope="layer").facts["channels"] == HALF
    side = ((32 - 2) // 2 - 2) // 2  # 3x3 without padding, then pooled, twice
    layers = [  # positions, inputs, outputs
        *((30 * 30, 3 * 9, 4), (13 * 13, 4 * 9, 8)),
        *((1, 8 * side * side, 8), (1, 8, 4), (1, 4, 7)),
    ]
    assert count_parameters(model.net) == sum((inputs + 1) * out for _, inputs, out in layers)
    assert count_flops(model.net, SIZE).total == sum(math.prod(layer) for layer in layers)


@pytest.mark.parametrize("importance", ["l1", "l2", "taylor"])
def test_filters_without_effect_are_removed_first(importance: str, data: DataModule) -> None:
    model = built("flatten")
    generator = torch.Generator().manual_seed(2)
    kinds = nn.Conv2d | nn.Linear
    layers = [layer for layer in model.net.modules() if isinstance(layer, kinds)][:-1]
    for layer in layers:
        dead = torch.randperm(len(layer.weight), generator=generator)[: len(layer.weight) // 2]
        with torch.no_grad():
            for tensor in layer.parameters():
                tensor[dead] = 0
    images = torch.from_numpy(data.cache.images[data.rows("train")]).permute(0, 3, 1, 2)
    before = model(images)
    prune(model, data, ratio=0.5, scope="layer", importance=importance, images=len(images))
    assert [len(layer.weight) for layer in layers] == [4, 8, 8, 4]
    torch.testing.assert_close(model(images), before)
    assert all(weight.grad is None for weight in model.parameters())


def test_bn_scale_removes_the_smallest_factors(data: DataModule) -> None:
    model = built("gap, batch")
    norms = [layer for layer in model.net.modules() if isinstance(layer, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_(torch.arange(1, len(norm.weight) + 1))
    prune(model, data, ratio=0.5, scope="layer", importance="bn_scale")
    assert [norm.weight.tolist() for norm in norms] == [[5, 6, 7, 8], list(range(9, 17))]


@pytest.mark.parametrize(("scope", "share"), [("global", 0.3), ("global", 0.6), ("layer", 0.6)])
def test_multiply_adds_reach_the_share(scope: str, share: float, data: DataModule) -> None:
    net = CustomCNN(SIZE, 7, width=16, depth=2, dense=32)
    model = prune(classifier(net), data, flops_share=share, scope=scope)
    # One channel of each layer shrinks the second convolution, most of the work, by this much.
    step = 1 - (15 / 16) * (31 / 32)
    assert share - step < float(model.facts["flops_share"]) <= share
    original = 900 * 27 * 16 + 169 * 144 * 32 + 1152 * 32 + 224
    assert model.facts["flops_share"] == count_flops(net, SIZE).total / original


def test_each_step_is_fine_tuned_and_the_last_reaches_the_goal(data: DataModule) -> None:
    calls: list[tuple[int, int, float]] = []

    def tune(model: Classifier, epochs: int, lr: float) -> None:
        calls.append((len(model.net.features[1][0].weight), epochs, lr))  # type: ignore[index,union-attr]

    method = Prune(ratio=0.5, scope="layer", steps=3, epochs=2, lr=0.01)
    model = method.compress(context(built("flatten"), data, Path("unused"), tune))
    # Of 16: floor(5/6), floor(2/3), 1/2.
    assert calls == [(13, 2, 0.01), (10, 2, 0.01), (8, 2, 0.01)]
    assert model.facts["channels"] == HALF


def test_random_importance_depends_on_the_seed_only(data: DataModule) -> None:
    outputs = []
    for seed in (0, 0, 1):
        model, data.seed = built("flatten"), seed
        state = torch.get_rng_state()
        prune(model, data, ratio=0.5, importance="random")
        assert torch.equal(torch.get_rng_state(), state)
        outputs.append(output(model))
    data.seed = 0
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])


LOW, HIGH = [0.1, 0.8, 0.2, 0.7, 0.3, 0.6, 0.4, 0.5], [2.0, 1.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]


@pytest.mark.parametrize(
    ("scores", "rules", "expected"),  # rules: ratio, scope, layer_limit, round_to
    [
        # The weakest quarter of each.
        ((LOW, HIGH), (0.25, "layer", 0.9, 1), {"0": [0, 2], "1": [0, 1]}),
        # A quarter of both is half of the weaker one, which may lose a quarter only.
        ((LOW, HIGH), (0.25, "global", 0.9, 1), {"0": [0, 2, 4, 6]}),
        ((LOW, HIGH), (0.25, "global", 0.25, 1), {"0": [0, 2], "1": [0, 1]}),
        # 4 are closer to 3 than to 6.
        ((LOW, HIGH), (0.25, "global", 0.9, 3), {"0": [0, 2, 4, 6, 7]}),
        ((LOW, HIGH), (0.25, "layer", 0.9, 8), {}),
        # No layer loses all channels: half of 16 is 7 of the first and one of the second.
        (([0.0] * 8, HIGH), (0.5, "global", 0.9, 1), {"0": [0, 1, 2, 3, 4, 5, 6], "1": [1]}),
        # Both groups of a grouped convolution lose the same channel; two stay.
        (([3.0, 1.0, 2.0],), (0.6, "layer", 0.9, 1), {"0": [1, 4]}),
    ],
)
def test_choice(scores: tuple[list[float], ...], rules: Any, expected: object) -> None:
    blocks = 2 if len(scores) == 1 else 1
    groups = [
        ChannelGroup(str(number), torch.tensor(values), blocks, len(values))
        for number, values in enumerate(scores)
    ]
    assert choose(groups, *rules) == expected


@pytest.mark.parametrize("settings", [{}, {"ratio": 0.5, "flops_share": 0.5}, {"ratio": 0.95}])
def test_contradictory_settings_are_refused(settings: dict[str, float]) -> None:
    message = "layer_limit" if settings == {"ratio": 0.95} else "set one of ratio and flops_share"
    with pytest.raises(ConfigError, match=f"ratio: .*{message}"):
        Prune(**settings)  # type: ignore[arg-type]


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 7))


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 7, SIZE), nn.Flatten())


def transformer() -> nn.Module:
    return Backbone("test_vit", 160, 7, "random")


@pytest.mark.parametrize(
    ("build", "settings", "message"),
    [
        (NETS["flatten"], {"flops_share": 0.001}, "cannot be reached with layer_limit=0.9 .*0 8"),
        (NETS["flatten"], {"ratio": 0.5, "round_to": 16}, r"removes no channel .*features\.0\.0 8"),
        (NETS["flatten"], {"ratio": 0.5, "importance": "bn_scale"}, "has no batch normalisation"),
        (dense, {"ratio": 0.5}, "no convolution or dense"),
        (convolution, {"ratio": 0.5}, "its output is no dense layer"),
        (transformer, {"ratio": 0.5}, r"it has backbone \(VisionTransformer\), .* more"),
        (FixedChannels, {"ratio": 0.5}, "do not fit together"),
    ],
)
def test_nets_that_cannot_be_pruned_end_in_one_line(
    build: Callable[[], nn.Module], settings: dict[str, Any], message: str, data: DataModule
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prune(classifier(build()), data, **settings)
    assert "\n" not in str(caught.value)
