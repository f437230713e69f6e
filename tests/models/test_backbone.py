import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from src.core.errors import ConfigError
from src.models.backbone import Backbone

TINY = "test_resnet"


def random_net(name: str = TINY, image_size: int = 32, outputs: int = 2, **options) -> Backbone:
    return Backbone(name, image_size, outputs, weights="random", **options)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "parameters", "table"),
    [
        ("resnet50", 23_508_032, 25_947_265 - 26_560),
        ("mobilenetv3_small_100", 927_008, 1_602_929),
        ("tf_efficientnetv2_b0", 5_858_704, 7_394_129),
        ("vgg16", 14_714_688, 15_304_769),
    ],
)
def test_backbone_ends_where_keras_without_top_ends(name: str, parameters: int, table: int) -> None:
    """Sun & Sun 2023, Table 2: backbone + Flatten of a 3x3 map + Dense 128 + Dense 1 in Keras.

    Keras also counts the running statistics of batch normalisation, and its ResNet50 has a bias in
    each of its convolutions.
    """
    with torch.device("meta"):  # shapes only
        net = random_net(name, 96, 1, pool="flatten", dense=128)
    running = [b.numel() for key, b in net.named_buffers() if key.endswith(("_mean", "_var"))]
    assert count(net.backbone) == parameters
    assert count(net) + sum(running) == table


@pytest.mark.parametrize(
    ("name", "size"), [(TINY, 33), ("test_vit", 160), ("mobilenetv3_small_050", 100)]
)
def test_pooled_features_are_timms_own(name: str, size: int) -> None:
    net = random_net(name, size).eval()
    image = torch.randn(1, 3, size, size)
    features = net.backbone.forward_features(image)
    expected = net.backbone.forward_head(features, pre_logits=True)
    torch.testing.assert_close(net(image), net.head(expected.flatten(1)))
    if name.startswith("mobilenet"):
        torch.testing.assert_close(net(image), net.head(features.mean((2, 3))))
    if name == TINY:
        flat = random_net(name, size, pool="flatten").eval()
        assert flat.head[-1].in_features == features.flatten(1).shape[1]
        assert flat(image).shape == (1, 2)


@pytest.mark.parametrize(("frozen", "changed"), [(True, {"head"}), (False, {"head", "backbone"})])
def test_frozen_backbone_does_not_change(frozen: bool, changed: set[str]) -> None:
    net = random_net(frozen=frozen, dense=[8])
    assert all(module.training for module in net.head.modules())
    before = copy.deepcopy(net.state_dict())
    nn.ModuleList([net]).train()  # a parent in training mode
    assert (net.backbone(torch.zeros(2, 3, 32, 32)).grad_fn is None) == frozen
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        logits = net(torch.randn(4, 3, 32, 32) * 9 + 3)
        nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 1])).backward()
        optimizer.step()
    after = net.state_dict()
    different = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in different} == changed
    assert any("running_mean" in name for name in different) != frozen
    assert all(module.training != frozen for module in net.backbone.modules())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet5O", ".*did you mean.*resnet50"),
        ("convnext_ato", ".*did you mean.*convnext_atto"),
        ("resnet50.a1_in2k", ".*did you mean.*resnet50.a1_in1k"),
        *(("hf-hub:timm/resnet50.a1_in1k", ""), ("local-dir:/tmp", ""), ("", ""), ("zzzzzz", "")),
    ],
)
def test_unknown_name_is_refused_with_the_closest(name: str, hint: str) -> None:
    expected = f"^name: must be a network that timm knows, but got {name}{hint}"
    with pytest.raises(ConfigError, match=expected):
        random_net(name, 64)


@pytest.mark.parametrize(
    ("name", "size", "problem"),
    [
        ("vgg11", 16, "takes is 32, but got 16$"),
        ("test_vit", 8, "but got 8"),
    ],
)
def test_too_small_image_is_refused(name: str, size: int, problem: str) -> None:
    expected = pytest.raises(ConfigError, match=rf"^image_size: .*{problem}")
    with torch.device("meta"), expected as raised:
        random_net(name, size)
    assert "\n" not in str(raised.value)


def test_files_of_the_complete_network_and_of_a_run_are_loaded(tmp_path: Path) -> None:
    complete = timm.create_model(TINY, num_classes=5).state_dict()
    torch.save(complete, tmp_path / "complete.pth")
    net = Backbone(TINY, image_size=32, outputs=2, weights=str(tmp_path / "complete.pth"))
    assert net.loaded_weights == "file:complete.pth"
    state = {f"net.{key}": value for key, value in net.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "best.ckpt")
    again = Backbone(TINY, image_size=48, outputs=1, weights=str(tmp_path / "best.ckpt"))
    for key, value in again.backbone.state_dict().items():
        assert torch.equal(value, complete[key])


def test_transformer_file_of_another_image_size_is_adapted(tmp_path: Path) -> None:
    complete = timm.create_model("test_vit", num_classes=5, img_size=160)
    torch.save(complete.state_dict(), tmp_path / "vit.pth")
    net = Backbone("test_vit", image_size=64, outputs=2, weights=str(tmp_path / "vit.pth"))
    assert torch.equal(net.backbone.blocks[0].attn.qkv.weight, complete.blocks[0].attn.qkv.weight)
    assert net.backbone.pos_embed.shape != complete.pos_embed.shape


@pytest.mark.parametrize(("name", "other"), [("resnet34", "resnet18"), ("resnet18", "resnet34")])
def test_file_of_another_network_is_refused(name: str, other: str, tmp_path: Path) -> None:
    """The names of ResNet-18 are a subset of those of ResNet-34."""
    torch.save(timm.create_model(other).state_dict(), tmp_path / "other.pth")
    expected = r"^weights: .*other\.pth is of another net: layer.* and \d+ more$"
    with pytest.raises(ConfigError, match=expected):
        Backbone(name, image_size=32, outputs=2, weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize(
    ("name", "kept", "stage", "last"),
    [("tf_efficientnet_lite0", 10, 4, 1), ("mobilenetv3_small_050", 4, 2, 0)],
)
def test_blocks_removes_everything_behind(name: str, kept: int, stage: int, last: int) -> None:
    torch.manual_seed(0)
    complete = random_net(name, 64, 7).eval()
    torch.manual_seed(0)
    cut = random_net(name, 64, 7, blocks=kept).eval()
    maps: list[torch.Tensor] = []
    block = complete.backbone.blocks[stage][last]
    block.register_forward_hook(lambda *call: maps.append(call[2]))
    images = torch.randn(2, 3, 64, 64)
    complete(images)
    torch.testing.assert_close(cut.backbone(images), maps[0].mean(dim=(2, 3)))
    assert cut.head[-1].in_features == maps[0].shape[1]
    assert set(cut.backbone.state_dict()) < set(complete.backbone.state_dict())


def test_cut_net_of_the_study_better_is_smaller_than_the_692k_network() -> None:
    # stem 32 * 27 + 2 * 32; then timm's published shapes: 1, 2, 2, 3 and 2 of 3 blocks
    blocks = [896, 5136, 8832, 13472, 26240, 32080, 83200, 83200, 106304, 170240]
    parameters = count(random_net("tf_efficientnet_lite0", 80, 7, blocks=10))
    assert parameters == 32 * 27 + 2 * 32 + sum(blocks) + 112 * 7 + 7 == 531_319


@pytest.mark.parametrize(
    ("name", "kept", "problem"),
    [
        ("resnet50", 3, "no EfficientNet or MobileNetV3"),
        ("mobilenetv3_small_050", 40, "must be at most 12"),
    ],
)
def test_invalid_number_of_blocks(name: str, kept: int, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        random_net(name, 64, 7, blocks=kept)
