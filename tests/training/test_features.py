"""Heads of frozen backbones are trained from cached features with the same result."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from src.core.files import CONF
from src.training import features, loop
from src.training.classifier import Classifier

NAME = "mobilenetv3_small_050"
STANDARD = (
    *("experiment=smoke", "model=mobilenetv3_small", f"model.net.name={NAME}"),
    *("model.net.weights=random", "model.net.frozen=true", "model.net.dense=[16]"),
    *("model.net.dropout=0.5", "optimizer.lr=0.01", "trainer=cpu", "threads=1"),
    *("study=heads", "callbacks.best.metric=val/loss"),
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def compose_config(cache: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*STANDARD, f"data.cache_dir={cache}", *overrides])


def entries(cache: Path) -> set[Path]:
    return set(cache.glob("synthetic-*-features-*"))


def train(
    config: DictConfig, folder: Path
) -> tuple[dict[str, torch.Tensor], dict[int, dict[str, float]]]:
    """Weights of the checkpoint and metrics of the epochs."""
    epochs: dict[int, dict[str, float]] = {}

    def on_epoch(number: int, metrics: dict[str, float]) -> None:
        epochs[number] = metrics

    folder.mkdir()
    checkpoint = loop.train(config, loop.build(config), None, folder, on_epoch=on_epoch)
    return torch.load(checkpoint, weights_only=True)["state_dict"], epochs


@pytest.mark.parametrize("augment", ["none", "flips"])
def test_a_training_from_features_equals_one_from_images(
    cache: Path, tmp_path: Path, augment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = f"augment={augment}"
    expected = train(compose_config(cache, chosen, "data.feature_views=0"), tmp_path / "images")

    def forward(*_: Any) -> Any:
        raise AssertionError("the network is called with images")

    before = entries(cache)
    monkeypatch.setattr(Classifier, "forward", forward)
    results = [
        train(compose_config(cache, chosen), tmp_path / name) for name in ("first", "second")
    ]
    assert len(entries(cache) - before) == 1
    start = loop.build(compose_config(cache, chosen)).classifier.state_dict()
    assert not torch.equal(start["net.head.0.weight"], expected[0]["net.head.0.weight"])
    for weights, epochs in results:
        torch.testing.assert_close(weights, expected[0], rtol=1e-3, atol=1e-5)
        for number, metrics in expected[1].items():
            assert epochs[number] == pytest.approx(metrics, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.net.frozen=false",),
        ("data.feature_views=0",),
        ("augment=sun2023",),
        ("trainer.precision=bf16-mixed",),
        ("loss=distillation", "loss.teacher=none"),  # it compares answers to images
        ("study=null",),  # 2 epochs do not see 8 views
    ],
    ids=str,
)
def test_images_are_served_where_features_would_change_the_result_or_not_pay(
    cache: Path, overrides: tuple[str, ...]
) -> None:
    config = compose_config(cache, "seed=5", *overrides)
    parts = loop.build(config, pretrained=False)
    before = entries(cache)
    assert features.serve(config, parts.classifier, parts.data, CPU) is None
    assert entries(cache) == before
    assert "image" in next(iter(parts.data.loader("train", train=True)))


def test_one_entry_for_all_heads_and_another_for_other_weights_or_pictures(tmp_path: Path) -> None:
    def serve(*overrides: str, device: torch.device | None = CPU) -> int:
        config = compose_config(tmp_path, *overrides)
        parts = loop.build(config)
        served = features.serve(config, parts.classifier, parts.data, device)
        assert (served is None) == (device is None)
        return len(entries(tmp_path))

    assert serve(device=None) == 0  # an evaluation computes none
    assert serve() == 1
    assert serve("model.net.dense=[8,4]", "optimizer.lr=1", "loss=focal", "data.batch_size=7") == 1
    assert serve("seed=1") == 2  # other random weights
    assert serve("model.net.pool=flatten", "model.image_size=64") == 3
    assert serve("data.source.lesions=119") == 4
    assert serve("model.std=[1.0,1.0,1.0]") == 5
    assert serve("augment=none") == 6


def test_random_views_are_asked_for_and_said_in_the_record(cache: Path) -> None:
    config = compose_config(cache, "augment=sun2023", "data.feature_views=2")
    parts = loop.build(config)
    served = features.serve(config, parts.classifier, parts.data, CPU)
    assert served == "2 random views, an approximation"
    batch = next(iter(parts.data.loader("train", train=True)))
    assert batch["features"].shape == (16, parts.classifier.net.head[0].in_features)  # type: ignore[index]
    config = compose_config(cache, "data.feature_views=2")
    parts = loop.build(config)
    assert features.serve(config, parts.classifier, parts.data, CPU) == "8 exact views"
