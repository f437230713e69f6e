import copy
import logging
from pathlib import Path

import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from src.core.config import check
from src.core.errors import ConfigError
from src.models.backbone import Backbone

TINY = "test_resnet"


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def running_statistics(module: nn.Module) -> int:
    return sum(
        b.numel()
        for name, b in module.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet50", 23_508_032),
        ("mobilenetv3_small_100", 927_008),
        ("tf_efficientnetv2_b0", 5_858_704),
        ("vgg16", 14_714_688),
    ],
)
def test_backbone_ends_where_keras_without_top_ends(name: str, parameters: int) -> None:
    """Sun & Sun 2023, Table 2: Keras counts of backbone + Flatten of a 3x3 map + Dense 128 + Dense 1.

    Keras counts batch normalisation's running statistics too, and its ResNet50 has a bias in each
    of its convolutions.
    """
    table = {
        "mobilenetv3_small_100": 1_602_929,
        "tf_efficientnetv2_b0": 7_394_129,
        "resnet50": 25_947_265 - 26_560,
        "vgg16": 15_304_769,
    }
    net = Backbone(name, image_size=96, outputs=1, weights="random", pool="flatten", dense=128)
    assert count(net.backbone) == parameters
    assert count(net) + running_statistics(net) == table[name]


def test_multiply_adds_of_resnet50() -> None:
    net = Backbone("resnet50", image_size=224, outputs=7, weights="random").eval()
    flops = FlopCountAnalysis(net, torch.zeros(1, 3, 224, 224)).unsupported_ops_warnings(False)
    assert flops.total() == pytest.approx(4.109e9, rel=5e-3)


@pytest.mark.parametrize("name", [TINY, "test_vit", "vgg11"])
def test_pooled_features_are_timms_own(name: str) -> None:
    net = Backbone(name, image_size=160, outputs=2, weights="random").eval()
    image = torch.randn(1, 3, 160, 160)
    expected = net.backbone.forward_head(net.backbone.forward_features(image), pre_logits=True)
    torch.testing.assert_close(net(image), net.head(expected.flatten(1)))


def test_average_pooling_is_the_mean_of_the_last_map() -> None:
    net = Backbone("mobilenetv3_small_100", image_size=64, outputs=2, weights="random").eval()
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(
        net(image), net.head(net.backbone.forward_features(image).mean((2, 3)))
    )


@pytest.mark.parametrize("size", [33, 64, 100])
def test_flatten_fits_any_image_size(size: int) -> None:
    net = Backbone(TINY, image_size=size, outputs=2, weights="random", pool="flatten").eval()
    assert net(torch.zeros(1, 3, size, size)).shape == (1, 2)


def test_frozen_backbone_does_not_move_and_its_head_does() -> None:
    net = Backbone(TINY, image_size=32, outputs=2, weights="random", frozen=True, dense=[8])
    before = copy.deepcopy(net.state_dict())
    nn.ModuleList([net]).train()  # a parent that trains
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(
            net(torch.randn(4, 3, 32, 32) * 9 + 3), torch.tensor([0, 1, 0, 1])
        ).backward()
        optimizer.step()
    after = net.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head"}
    assert not any(module.training for module in net.backbone.modules())
    assert all(module.training for module in net.head.modules())


def test_frozen_backbone_keeps_nothing_for_a_backward_pass() -> None:
    net = Backbone(TINY, image_size=32, outputs=2, weights="random", frozen=True).train()
    assert net.backbone(torch.zeros(1, 3, 32, 32)).grad_fn is None


def test_thawed_backbone_trains_with_its_running_statistics() -> None:
    net = Backbone(TINY, image_size=32, outputs=2, weights="random").train()
    before = copy.deepcopy(net.backbone.state_dict())
    net(torch.randn(4, 3, 32, 32) * 9 + 3)
    assert all(p.requires_grad for p in net.parameters())
    assert any(
        not torch.equal(before[k], v)
        for k, v in net.backbone.state_dict().items()
        if "running_mean" in k
    )


def test_building_leaves_the_backbone_in_training_mode() -> None:
    net = Backbone(TINY, image_size=32, outputs=2, weights="random")
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet5O", "resnet50"),
        ("convnext_ato", "convnext_atto"),
        ("resnet50.a1_in2k", "resnet50.a1_in1k"),
    ],
)
def test_unknown_name_is_answered_with_the_closest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"^name: .*{name}.*did you mean.*{hint}"):
        Backbone(name, image_size=64, outputs=2, weights="random")


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet50.a1_in1k", "local-dir:/tmp", "", "zzzzzz"])
def test_only_timms_own_networks_are_taken(name: str) -> None:
    with pytest.raises(ConfigError, match="^name: must be a network that timm knows"):
        Backbone(name, image_size=64, outputs=2, weights="random")


@pytest.mark.parametrize(
    ("name", "size", "smallest"), [("vgg11", 16, 32), ("inception_v3", 64, 75)]
)
def test_too_small_an_image_is_refused_and_the_smallest_named(
    name: str, size: int, smallest: int
) -> None:
    with pytest.raises(ConfigError, match=rf"^image_size: .*takes is {smallest}, but got {size}$"):
        Backbone(name, image_size=size, outputs=2, weights="random")


def test_image_smaller_than_a_transformers_patch_is_refused() -> None:
    with pytest.raises(ConfigError, match="^image_size: .*but got 8") as raised:
        Backbone("test_vit", image_size=8, outputs=2, weights="random")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"), [("dropout", 1.3), ("dense", [0]), ("pool", "max"), ("image_size", 0)]
)
def test_impossible_value_is_refused_with_its_key(key: str, value: object) -> None:
    config = {
        "net": {
            "_target_": "src.models.backbone.Backbone",
            "name": TINY,
            "image_size": 64,
            key: value,
        }
    }
    with pytest.raises(ConfigError, match=rf"^net\.{key}: "):
        check(config)


def test_file_of_the_whole_network_is_loaded_without_its_classifier(tmp_path: Path) -> None:
    whole = timm.create_model(TINY, num_classes=5)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    net = Backbone(TINY, image_size=32, outputs=2, weights=str(tmp_path / "whole.pth"))
    assert net.loaded_weights == "file:whole.pth"
    assert all(
        torch.equal(value, whole.state_dict()[key])
        for key, value in net.backbone.state_dict().items()
    )


def test_checkpoint_of_a_run_of_ours_is_loaded(tmp_path: Path) -> None:
    first = Backbone(TINY, image_size=32, outputs=7, weights="random", dense=[8])
    state = {f"net.{key}": value for key, value in first.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "best.ckpt")
    second = Backbone(TINY, image_size=48, outputs=1, weights=str(tmp_path / "best.ckpt"))
    assert all(
        torch.equal(value, first.backbone.state_dict()[key])
        for key, value in second.backbone.state_dict().items()
    )


def test_transformer_file_of_another_image_size_is_adapted(tmp_path: Path) -> None:
    whole = timm.create_model("test_vit", num_classes=5, img_size=160)
    torch.save(whole.state_dict(), tmp_path / "vit.pth")
    net = Backbone("test_vit", image_size=64, outputs=2, weights=str(tmp_path / "vit.pth"))
    assert torch.equal(net.backbone.blocks[0].attn.qkv.weight, whole.blocks[0].attn.qkv.weight)
    assert net.backbone.pos_embed.shape != whole.pos_embed.shape


@pytest.mark.parametrize("other", ["resnet18", "resnet101"])
def test_file_of_another_network_is_refused(other: str, tmp_path: Path) -> None:
    """Not in silence either where one network's names are among the other's, as ResNet-50's are among ResNet-101's."""
    torch.save(timm.create_model(other).state_dict(), tmp_path / "other.pth")
    with pytest.raises(
        ConfigError, match=r"^weights: .*other\.pth is of another net: layer.* and \d+ more$"
    ):
        Backbone("resnet50", image_size=32, outputs=2, weights=str(tmp_path / "other.pth"))


def test_auto_says_loudly_that_there_were_no_weights(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        net = Backbone(TINY, image_size=32, outputs=2, weights="auto")
    assert net.loaded_weights == "random"
    assert "RANDOM WEIGHTS" in caplog.text


@pytest.mark.parametrize(
    ("name", "kept", "stage", "last"),
    [("tf_efficientnet_lite0", 10, 4, 1), ("mobilenetv3_small_050", 4, 2, 0)],
)
def test_blocks_cuts_off_all_that_comes_after(name: str, kept: int, stage: int, last: int) -> None:
    torch.manual_seed(0)
    whole = Backbone(name, 64, 7, weights="random").eval()
    torch.manual_seed(0)
    cut = Backbone(name, 64, 7, weights="random", blocks=kept).eval()
    at_the_cut: list[torch.Tensor] = []
    whole.backbone.blocks[stage][last].register_forward_hook(
        lambda *call: at_the_cut.append(call[2])
    )
    images = torch.randn(2, 3, 64, 64)
    whole(images)
    torch.testing.assert_close(cut.backbone(images), at_the_cut[0].mean(dim=(2, 3)))
    assert cut.head[-1].in_features == at_the_cut[0].shape[1]
    assert set(cut.backbone.state_dict()) < set(whole.backbone.state_dict())


def test_the_cut_net_of_the_study_better_keeps_the_limits_of_the_692k_network() -> None:
    # stem 32 * 27 + 2 * 32; then timm's published shapes, block by block: 1, 2, 2, 3 and 2 of 3
    # blocks
    blocks = [896, 5136, 8832, 13472, 26240, 32080, 83200, 83200, 106304, 170240]
    net = Backbone("tf_efficientnet_lite0", 80, 7, weights="random", blocks=10)
    assert (
        sum(p.numel() for p in net.parameters())
        == 32 * 27 + 2 * 32 + sum(blocks) + 112 * 7 + 7
        == 531_319
        <= 691_911
    )


@pytest.mark.parametrize(
    ("name", "kept", "said"),
    [
        ("resnet50", 3, "no EfficientNet or MobileNetV3"),
        ("mobilenetv3_small_050", 40, "must be at most 12"),
    ],
)
def test_blocks_that_are_not_there_are_refused(name: str, kept: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Backbone(name, 64, 7, weights="random", blocks=kept)
