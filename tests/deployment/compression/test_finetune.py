"""Folded batch normalisation, and averaged weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from small_store import CLASSES, classifier
from torch import Tensor, nn

from compression.nets import SIZE, Sample, context
from src.core.errors import ConfigError, UserError
from src.deployment.compression.base import CompressionContext
from src.deployment.compression.finetune import Average, Fold, recalibrate
from src.deployment.compression.prune import Prune
from src.efficiency.flops import count_parameters
from src.models.backbone import Backbone
from src.models.custom import CustomCNN
from src.models.structure import fold, is_folded
from src.models.weights import load_weights, save_weights
from src.training.classifier import Classifier

Net = TypeVar("Net", bound=nn.Module)


def custom(seed: int = 0) -> CustomCNN:
    torch.manual_seed(seed)
    return with_statistics(
        CustomCNN(SIZE, len(CLASSES), width=8, depth=2, dense=[16], norm="batch")
    )


def backbone(name: str, **options: object) -> Backbone:
    torch.manual_seed(0)
    return with_statistics(Backbone(name, 32, len(CLASSES), weights="random", **options))


def with_statistics(net: Net) -> Net:
    """Running statistics and factors as after a training: none is 0 or 1."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.running_mean, layer.bias.data):
                tensor.normal_(0, 0.3)
            for tensor in (layer.running_var, layer.weight.data):
                tensor.uniform_(0.5, 1.5)
    return net


def wrapped(net: nn.Module) -> Classifier:
    return classifier(net, SIZE, [0.5] * 3, [0.2] * 3).eval()


def output(net: nn.Module, side: int = 32) -> Tensor:
    torch.manual_seed(7)
    with torch.inference_mode():
        return net.eval()(torch.randn(2, 3, side, side))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tf_efficientnet_lite0", {"blocks": 5}),
        ("mobilenetv3_small_050", {}),
        ("resnet18", {"dense": [8]}),
        ("convnext_atto", {}),  # no batch normalisation
    ],
)
def test_a_folded_net_has_the_same_output(name: str, options: dict[str, object]) -> None:
    net = backbone(name, **options)
    expected = output(net)
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())
    assert fold(net) == norms
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())
    torch.testing.assert_close(output(net), expected, rtol=1e-4, atol=1e-5)
    assert all(tensor.requires_grad for tensor in net.parameters())


def test_parameters_follow_from_arithmetic() -> None:
    net = custom()
    before, channels = count_parameters(net), [8, 16]
    assert fold(net) == len(channels)
    # a factor and a bias per channel become a bias of the convolution
    assert count_parameters(net) == before - sum(channels)


def test_a_norm_before_its_convolution_is_refused() -> None:
    with pytest.raises(UserError, match="Sequential cannot be folded: .* before it: 0$"):
        fold(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)))


def test_a_frozen_backbone_stays_frozen() -> None:
    net = backbone("tf_efficientnet_lite0", blocks=3, frozen=True)
    fold(net)
    assert not any(tensor.requires_grad for tensor in net.backbone.parameters())
    assert net.training


@pytest.mark.parametrize("is_pruned", [False, True])
def test_a_checkpoint_is_loaded_into_a_new_net(
    is_pruned: bool, sample: Sample, tmp_path: Path
) -> None:
    folded = Fold(epochs=0).compress(context(custom(), sample.data, tmp_path)).classifier
    if is_pruned:
        folded = Prune(ratio=0.5, epochs=0).compress(context(folded, sample.data, tmp_path))
        folded = folded.classifier
    save_weights(folded, tmp_path / "folded.ckpt")
    restored = wrapped(custom(seed=1))
    load_weights(restored, tmp_path / "folded.ckpt")
    assert is_folded(restored)
    assert torch.equal(output(restored, SIZE), output(folded, SIZE))


def test_running_statistics_are_those_of_training_images(sample: Sample, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
    source = context(net, sample.data, tmp_path)
    recalibrate(source, 64)  # two batches of 32
    pictures = source.calibration_images(64, sample.data.seed) / 255
    pixels = torch.from_numpy((pictures - 0.5) / 0.2).float().flatten(0, 2)  # of `context`
    values = pixels @ net[0].weight[:, :, 0, 0].T.detach()
    torch.testing.assert_close(net[1].running_mean, values.mean(0), rtol=1e-3, atol=1e-4)
    variance = values.view(2, -1, 4).var(1).mean(0)  # of each batch
    torch.testing.assert_close(net[1].running_var, variance, rtol=1e-3, atol=1e-4)


def test_tuning_follows_folding(sample: Sample, tmp_path: Path) -> None:
    seen = []

    def tune(model: Classifier, epochs: int, lr: float) -> None:
        seen.append((is_folded(model), epochs, lr))

    model = Fold(epochs=3, lr=0.01).compress(context(custom(), sample.data, tmp_path, tune))
    assert seen == [(True, 3, 0.01)]
    assert model.facts["layers"] == 2
    assert model.file is None


def averaging(sample: Sample, folder: Path, *others: nn.Module) -> CompressionContext:
    def load(run_ids: Sequence[str]) -> list[Classifier]:
        assert list(run_ids) == [f"run{n}" for n in range(len(others))]
        return [wrapped(net) for net in others]

    return replace(context(custom(), sample.data, folder), load=load)


def test_weights_are_averaged(sample: Sample, tmp_path: Path) -> None:
    nets = [custom(), custom(1), custom(2)]
    model = Average(["run0", "run1"], images=0).compress(averaging(sample, tmp_path, *nets[1:]))
    for name, tensor in model.classifier.net.state_dict().items():
        parts = [net.state_dict()[name] for net in nets]
        expected = sum(part.double() for part in parts) / 3
        torch.testing.assert_close(tensor.double(), expected.to(tensor.dtype).double())
    assert model.facts == {"nets": 3, "runs": "run0, run1"}


def test_the_mean_of_equal_nets_is_the_net(sample: Sample, tmp_path: Path) -> None:
    net = custom()
    fold(net)
    source = averaging(sample, tmp_path, net)
    fold(source.classifier)
    expected = output(source.classifier, SIZE)
    averaged = Average(["run0"]).compress(source).classifier
    torch.testing.assert_close(output(averaged, SIZE), expected)


def test_other_nets_are_refused(sample: Sample, tmp_path: Path) -> None:
    other = CustomCNN(SIZE, len(CLASSES), width=4, depth=2, dense=[16], norm="batch")
    with pytest.raises(ConfigError, match=r"compression.runs: run0 is of another network"):
        Average(["run0"]).compress(averaging(sample, tmp_path, other))
