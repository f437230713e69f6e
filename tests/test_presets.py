"""The papers' systems: each composes to what its paper says, and trains some steps on real images."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from src.core.cli import ROOT
from src.core.config import check, resolve
from src.training import loop

FOLDER = ROOT / "conf" / "experiment"
PRESETS = sorted(
    str(file.relative_to(FOLDER).with_suffix(""))
    for file in FOLDER.glob("*/*.yaml")
    if not file.stem.startswith("_")
)
ROOTS = {"mamun2025": "ham10000", "sun2023": "siim2020", "better": "ham10000"}
SIZE = 32  # px; what is trained here is the path, not the net


def composed(preset: str, *overrides: str) -> DictConfig:
    taught = ["loss.teacher=[]"] if preset.endswith("_distilled") else []
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", [f"experiment={preset}", *taught, *overrides])


def test_every_system_of_both_papers_is_there() -> None:
    mamun = {"custom", "custom_flatten", "custom_gap", "resnet50_frozen", "resnet50_finetuned"}
    sun = {"mobilenetv3_small", "efficientnetv2_b0", "resnet50", "vgg16", "svm"}
    assert {f"mamun2025/{name}" for name in mamun} | {f"sun2023/{name}" for name in sun} <= set(
        PRESETS
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_names_itself_and_its_header_says_what_a_reader_needs(preset: str) -> None:
    config = composed(preset)
    check(resolve(config))
    assert config.preset == preset
    assert config.data.split == ("grouped" if preset.startswith("better/") else "image")
    assert list(config.data.fractions) == [0.6, 0.2, 0.2]
    header = [
        line
        for line in (FOLDER / f"{preset}.yaml").read_text().splitlines()
        if line.startswith("# ")
    ]
    for key in ("command:", "printed:", "hardware:", "time:", "expected:"):
        assert any(line.startswith(f"# {key}") for line in header), key


@pytest.mark.parametrize(
    "preset", [name for name in PRESETS if name.startswith("sun2023/") and name != "sun2023/svm"]
)
def test_protocol_of_sun_and_sun(preset: str) -> None:
    config = composed(preset)
    assert (config.optimizer.lr, config.optimizer.momentum) == (3e-4, 0.9)
    assert (config.data.batch_size, config.trainer.max_epochs, config.data.oversample) == (
        32,
        8,
        0.5,
    )
    assert config.callbacks.best.metric == "val/auroc"
    assert (config.loss.gamma, config.loss.weighted) == (2, True)
    assert config.model.net.frozen
    assert list(config.model.net.dense) == [128]


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_trains_some_steps_on_real_images(
    preset: str, shared_data: Path, tmp_path: Path
) -> None:
    config = composed(
        preset,
        f"data.root={shared_data / ROOTS[preset.split('/')[0]]}",
        f"data.cache_dir={tmp_path}",
        "data.source.limit=60",
        "data.batch_size=8",
        f"model.image_size={SIZE}",
        *(["model.net.weights=random"] if "weights" in composed(preset).model.net else []),
        "trainer=cpu",
        "trainer.max_epochs=1",
        "++trainer.limit_train_batches=2",
        "++trainer.limit_val_batches=1",
    )
    parts = loop.build(
        config, pretrained="teacher" not in config.loss
    )  # teachers: tests/test_teachers.py
    before = {
        name: value.clone()
        for name, value in parts.classifier.net.named_parameters()
        if value.requires_grad
    }
    checkpoint = loop.train(config, parts, None, tmp_path / "run")
    moved = [
        name
        for name, value in parts.classifier.net.named_parameters()
        if name in before and (value != before[name]).any()
    ]
    assert checkpoint.is_file()
    assert moved or not before
    if config.model.net.get("frozen"):
        assert all(name.startswith("head.") for name in moved)
    images = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    assert parts.classifier.eval()(images).shape == (2, parts.data.outputs)
