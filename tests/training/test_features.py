"""Heads of frozen backbones are trained from cached features with the same result."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from src import api
from src.data.augment import symmetry
from src.losses.distillation import Distillation
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
    return api.compose([*STANDARD, f"data.cache_dir={cache}", *overrides])


def entries(cache: Path) -> set[Path]:
    return set(cache.glob("synthetic-*-features-*"))


def train(
    config: DictConfig, folder: Path, teachers: Sequence[nn.Module] = ()
) -> tuple[dict[str, torch.Tensor], dict[int, dict[str, float]]]:
    """Weights of the checkpoint and metrics of the epochs."""
    epochs: dict[int, dict[str, float]] = {}

    def on_epoch(number: int, metrics: dict[str, float]) -> None:
        epochs[number] = metrics

    folder.mkdir()
    parts = loop.build(config)
    if teachers:
        parts.classifier.loss = Distillation(parts.data.seen_counts, teachers, gamma=1.0)
    checkpoint = loop.train(config, parts, None, folder, on_epoch=on_epoch)
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


class Teacher(nn.Module):
    """A small net that takes images in [0, 1] and counts its batches."""

    def __init__(self, seed: int, size: int = 32) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.image_size = size
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(7))
        self.net(torch.zeros(1, 3, size, size))
        self.requires_grad_(False)
        self.batches = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.batches += 1
        logits: torch.Tensor = self.net(images) * 5
        return logits


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("augment", ["none", "flips"])
def test_a_student_of_cached_teachers_learns_the_same(
    cache: Path, tmp_path: Path, augment: str, frozen: bool
) -> None:
    overrides = [f"augment={augment}", f"model.net.frozen={frozen}", "optimizer.lr=0.001"]
    teachers, batches = [Teacher(1), Teacher(2)], []
    results = []
    for name, views in {"images": "0", "first": "auto", "second": "auto"}.items():
        config = compose_config(cache, *overrides, f"data.feature_views={views}")
        results.append(train(config, tmp_path / name, teachers))
        batches.append(teachers[0].batches)
    plain = train(compose_config(cache, *overrides), tmp_path / "plain")
    assert batches[2] == batches[1] + 1  # by which the width is known
    for weights, epochs in results[1:]:
        for number, metrics in results[0][1].items():
            assert epochs[number] == pytest.approx(metrics, rel=1e-3, abs=1e-4)
        torch.testing.assert_close(weights, results[0][0], rtol=1e-2, atol=1e-4)
    assert plain[1][2]["train/loss"] != pytest.approx(results[0][1][2]["train/loss"], rel=1e-3)


def test_a_teacher_of_larger_images_sees_them_at_its_own_size(cache: Path) -> None:
    config = compose_config(cache, "augment=flips", "model.net.frozen=false")
    larger = loop.build(compose_config(cache, "model.image_size=48"), pretrained=False).data
    assert larger.image_size == 48 != config.data.image_size
    parts, teacher = loop.build(config), Teacher(3, size=48)
    parts.classifier.loss = Distillation(parts.data.seen_counts, [teacher])
    served = features.serve(config, parts.classifier, parts.data, CPU)
    assert served == {"teachers": "8 exact views"}
    batch = next(iter(parts.data.loader("train", train=True)))
    images = [larger.cache.images[row] for row in parts.data.rows("train")]
    views = torch.tensor(np.stack(images)).permute(0, 3, 1, 2) / 255
    of_views = [teacher(symmetry(views, torch.full((len(views),), view))) for view in range(8)]
    possible = torch.stack(of_views, dim=1)  # (training images, views, classes)
    for logits, view in zip(batch["teacher_logits"][:, 0], batch["view"], strict=True):
        assert (possible[:, view] - logits).abs().amax(dim=1).min() < 1e-4


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.net.frozen=false",),
        ("data.feature_views=0",),
        ("augment=sun2023",),
        ("trainer.precision=bf16-mixed",),
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
    assert features.serve(config, parts.classifier, parts.data, CPU) == {}
    assert entries(cache) == before
    assert "image" in next(iter(parts.data.loader("train", train=True)))


def served(
    cache: Path, *overrides: str, device: torch.device | None = CPU
) -> tuple[dict[str, str], loop.RunParts]:
    config = compose_config(cache, *overrides)
    parts = loop.build(config)
    return features.serve(config, parts.classifier, parts.data, device), parts


def test_one_entry_for_all_heads_and_another_for_other_weights_or_pictures(tmp_path: Path) -> None:
    assert served(tmp_path, device=None)[0] == {}  # an evaluation computes none
    assert not entries(tmp_path)
    head = ("model.net.dense=[8,4]", "optimizer.lr=1", "loss=focal", "data.batch_size=7")
    for overrides, count in (
        ((), 1),
        (head, 1),
        (("seed=1",), 2),  # other random weights
        (("model.net.pool=flatten", "model.image_size=64"), 3),
        (("data.source.lesions=119",), 4),
        (("model.std=[1.0,1.0,1.0]",), 5),
        (("augment=none",), 6),
    ):
        assert served(tmp_path, *overrides)[0]
        assert len(entries(tmp_path)) == count


def test_random_views_are_asked_for_and_said_in_the_record(cache: Path) -> None:
    record, parts = served(cache, "augment=sun2023", "data.feature_views=2")
    assert record == {"features": "2 random views, an approximation"}
    assert parts.data.cached is not None
    batch = parts.data.cached(parts.data.rows("train")[:16], True)
    assert batch["features"].shape == (16, parts.classifier.net.head[0].in_features)  # type: ignore[index]
    record, _ = served(cache, "data.feature_views=2")
    assert record == {"features": "8 exact views"}


@pytest.mark.parametrize(
    ("overrides", "at_once"),
    [
        ((), features.AT_ONCE),
        (("callbacks=early_stopping",), features.AT_ONCE),
        (("callbacks=averaging",), 1),
        (("trainer.gradient_clip_val=1.0",), 1),
        (("+trainer.accumulate_grad_batches=2",), 1),
        (("data.feature_views=0",), 1),
    ],
    ids=str,
)
def test_several_steps_are_one_for_lightning_where_nothing_else_looks_at_a_step(
    cache: Path, tmp_path: Path, overrides: tuple[str, ...], at_once: int
) -> None:
    config = compose_config(cache, *overrides)
    parts = loop.build(config)
    features.serve(config, parts.classifier, parts.data, CPU)
    assert (parts.data.at_once, parts.classifier.automatic_optimization) == (at_once, at_once == 1)
    logged: dict[str, list[int]] = {}

    def log(values: dict[str, float], step: int) -> None:
        for name in values:
            logged.setdefault(name, []).append(step)

    run: Any = SimpleNamespace(id="", name="", log=log)
    trainer, progress, best = loop.prepare_fit(config, parts, run, tmp_path)
    trainer.fit(parts.classifier, datamodule=parts.data)
    rows, accumulated = len(parts.data.rows("train")), config.trainer.get("accumulate_grad_batches")
    steps = rows // 16
    assert best.steps == [math.ceil(steps / (accumulated or 1)) * epoch for epoch in (1, 2)]
    assert logged["train/loss"] == logged["val/loss"] == [step - 1 for step in best.steps]
    assert progress._images == steps * 16
