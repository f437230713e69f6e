"""Every file of conf/ composes, passes the checks and builds; the papers' systems train."""

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from optuna.pruners import BasePruner
from pytorch_lightning import Callback

from src.core.cli import CONF
from src.core.config import check, instantiate, resolve
from src.data.module import DataModule
from src.metrics.registry import parse_limits, parse_objectives
from src.sweep.executors.base import Executor
from src.sweep.pruners import Rungs, make_pruner
from src.sweep.samplers import make_sampler
from src.training import loop

FILES = sorted(CONF.rglob("*.yaml"))
OTHER_COMMANDS = ("command", "paper", "labels")
CHOICES = [
    (group, str(file.relative_to(CONF / group).with_suffix("")))
    for file in FILES
    if file.parent != CONF and file.parent.name != "hydra" and not file.stem.startswith("_")
    for folder in [file.parent.relative_to(CONF)]
    # the folders of experiment are papers
    for group in ["experiment" if folder.parts[0] == "experiment" else str(folder)]
    if group not in OTHER_COMMANDS
]
FILLED = {  # mandatory values
    "distillation": ["loss.teacher=0123abcd"],
    "better/lite0_blocks10_distilled": ["loss.teacher=[]"],
    "timm": ["model.net.name=mobilenetv3_small_050"],
    "threshold": ["hydra.sweeper.pruner.lower=0.1"],
}
EXPERIMENTS = CONF / "experiment"
PRESETS = [choice for group, choice in CHOICES if group == "experiment" and "/" in choice]
REAL_DATA = {"mamun2025": "ham10000", "sun2023": "siim2020", "better": "ham10000"}
SIZE = 32  # px


@pytest.fixture(scope="module", autouse=True)
def composer() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def compose_choice(group: str, choice: str, *overrides: str) -> DictConfig:
    return compose(
        "train",
        overrides=[f"{group}={choice}", *FILLED.get(choice, []), *overrides],
        return_hydra_config=group.startswith("hydra"),
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_files_begin_with_a_header(file: Path) -> None:
    lines = file.read_text().splitlines()
    first = next(line for line in lines if not line.startswith("# @package"))
    assert re.match(r"# \S.{10,}", first), f"{file} has no header line"


@functools.cache
def output_shape(net: str, size: int) -> tuple[int, ...]:
    """Of seven outputs; many files have the same net."""
    config = OmegaConf.create(net)
    # without memory and arithmetic, where the model allows it
    device = "cpu" if "RadiomicsSVM" in config._target_ else "meta"
    with torch.device(device), torch.no_grad():
        built = instantiate(config, "model.net", outputs=7).eval()
        return tuple(built(torch.zeros(1, 3, size, size)).shape)


def build_model(config: DictConfig) -> None:
    if "weights" in config.model.net:
        config.model.net.weights = "random"
    net = OmegaConf.to_yaml(config.model.net, resolve=True)
    assert output_shape(net, config.data.image_size) == (1, 7)


def build_loss(config: DictConfig) -> None:
    loss = instantiate(config.loss, "loss", ("teacher",), class_counts=[5, 4, 3])
    assert loss(torch.zeros(2, 3), torch.tensor([0, 2])).isfinite()


def build_optimizer(config: DictConfig) -> None:
    optimizer = instantiate(config.optimizer, "optimizer")([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] == config.optimizer.lr
    assert instantiate(config.scheduler, "scheduler")(optimizer, 10).get_last_lr()[0] >= 0


def build_augment(config: DictConfig) -> None:
    images = torch.rand(4, 3, 32, 32)
    assert instantiate(config.augment, "augment")(images).shape == images.shape


def build_trainer(config: DictConfig) -> None:
    config.trainer.accelerator = "cpu"  # this machine may have no GPU
    config.trainer.devices = 1
    trainer = instantiate(config.trainer, "trainer", ("compile",), logger=False)
    assert trainer.max_epochs == config.trainer.max_epochs


def build_data(config: DictConfig) -> None:
    assert isinstance(instantiate(config.data, "data", ("root",)), DataModule)


def build_callbacks(config: DictConfig) -> None:
    for name, node in config.callbacks.items():
        assert isinstance(instantiate(node, str(name)), Callback)


def build_sampler(config: DictConfig) -> None:
    node = config.hydra.sweeper.sampler
    assert make_sampler(node, 0, 1, 0).name == node.name


def build_pruner(config: DictConfig) -> None:
    pruner = make_pruner(config.hydra.sweeper.pruner, 1, max_epochs=10)
    assert isinstance(pruner, Rungs | BasePruner)


def build_executor(config: DictConfig) -> None:
    node = config.hydra.sweeper.executor
    check(OmegaConf.to_container(node, resolve=True), "hydra.sweeper.executor")
    assert issubclass(get_object(node._target_), Executor)


def build_compression(config: DictConfig) -> None:
    if config.compression.name is not None:
        assert callable(instantiate(config.compression, "compression", ("name",)).compress)


def build_sweeper(config: DictConfig) -> None:
    assert config.hydra.sweeper._target_ == "hydra_plugins.paretoderm.StudySweeper"


def build_objective(config: DictConfig) -> None:
    assert parse_objectives(config.objective)
    parse_limits(config.objective)


BUILDERS: dict[str, Callable[[DictConfig], object]] = {
    "model": build_model,
    "loss": build_loss,
    "optimizer": build_optimizer,
    "scheduler": build_optimizer,
    "augment": build_augment,
    "trainer": build_trainer,
    "data": build_data,
    "callbacks": build_callbacks,
    "tracking": lambda config: instantiate(config.tracking, "tracking"),
    "compression": build_compression,
    "efficiency": lambda config: instantiate(config.efficiency, "efficiency"),
    "objective": build_objective,
    "hydra/sweeper": build_sweeper,
    "hydra/sweeper/sampler": build_sampler,
    "hydra/sweeper/pruner": build_pruner,
    "hydra/sweeper/executor": build_executor,
}


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_choice_composes_passes_the_checks_and_builds(group: str, choice: str) -> None:
    config = compose_choice(group, choice)
    # the parts of hydra are checked where they are built
    check(resolve(config, without=("hydra",)))
    if group == "compression":
        assert config.compression.name == (None if choice == "none" else choice)
    if group == "experiment":
        for part, build in BUILDERS.items():
            if not part.startswith("hydra"):
                build(config)
    else:
        BUILDERS[group](config)


def test_every_system_of_both_papers_has_a_preset() -> None:
    mamun = {"custom", "custom_flatten", "custom_gap", "resnet50_frozen", "resnet50_finetuned"}
    sun = {"mobilenetv3_small", "efficientnetv2_b0", "resnet50", "vgg16", "svm"}
    systems = {f"mamun2025/{name}" for name in mamun} | {f"sun2023/{name}" for name in sun}
    assert systems <= set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_follows_its_paper_and_has_a_complete_header(preset: str) -> None:
    config = compose_choice("experiment", preset)
    assert config.preset == preset
    assert config.data.split == ("grouped" if preset.startswith("better/") else "image")
    assert list(config.data.fractions) == [0.6, 0.2, 0.2]
    header = (EXPERIMENTS / f"{preset}.yaml").read_text()
    for key in ("command:", "printed:", "hardware:", "time:", "expected:"):
        assert f"\n# {key}" in header
    if preset.startswith("sun2023/") and preset != "sun2023/svm":  # sections 3.3 to 3.5
        assert (config.optimizer.lr, config.optimizer.momentum) == (3e-4, 0.9)
        assert (config.data.batch_size, config.trainer.max_epochs) == (32, 8)
        assert config.data.oversample == 0.5
        assert config.callbacks.best.metric == "val/auroc"
        assert (config.loss.gamma, config.loss.weighted) == (2, True)
        assert config.model.net.frozen
        assert list(config.model.net.dense) == [128]


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_trains_some_steps_on_real_images(
    preset: str, shared_data: Path, tmp_path: Path
) -> None:
    overrides = [
        f"data.root={shared_data / REAL_DATA[preset.split('/')[0]]}",
        "data.source.limit=60",
        "data.batch_size=8",
        f"model.image_size={SIZE}",
        "trainer=cpu",
        "trainer.max_epochs=1",
        "++trainer.limit_train_batches=2",
        "++trainer.limit_val_batches=1",
    ]
    config = compose_choice("experiment", preset, *overrides)
    if "weights" in config.model.net:
        config.model.net.weights = "random"
    # the teachers of distillation: tests/training/test_teachers.py
    parts = loop.build(config, pretrained="teacher" not in config.loss)
    net = parts.classifier.net
    before = {name: value.clone() for name, value in net.named_parameters() if value.requires_grad}
    checkpoint = loop.train(config, parts, None, tmp_path / "run")
    after = dict(net.named_parameters())
    moved = [name for name in before if (after[name] != before[name]).any()]
    assert checkpoint.is_file()
    assert moved or not before
    if config.model.net.get("frozen"):
        assert all(name.startswith("head.") for name in moved)
    images = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    assert parts.classifier.eval()(images).shape == (2, parts.data.outputs)
