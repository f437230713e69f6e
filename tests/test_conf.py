"""Every file of conf/ has a header, composes, passes the checks and builds what it names."""

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

from src.core.config import check, instantiate, resolve
from src.data.module import DataModule
from src.metrics.registry import parse_limits, parse_objectives
from src.sweep.executors.base import Executor
from src.sweep.pruners import Rungs, make_pruner
from src.sweep.samplers import make_sampler

CONF = Path(__file__).resolve().parent.parent / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
ELSEWHERE = ("paper", "labels")  # parts of other entries' configs, tested with those
CHOICES = [
    (group, str(file.relative_to(CONF / group).with_suffix("")))
    for file in FILES
    if file.parent != CONF and file.parent.name != "hydra" and not file.stem.startswith("_")
    for folder in [file.parent.relative_to(CONF)]
    for group in [
        "experiment" if folder.parts[0] == "experiment" else str(folder)
    ]  # its folders are papers
    if group not in ELSEWHERE
]
FILLED = {  # what a choice leaves to the user
    "distillation": ["loss.teacher=0123abcd"],
    "better/lite0_blocks10_distilled": ["loss.teacher=0123abcd"],
    "timm": ["model.net.name=mobilenetv3_small_050"],
    "threshold": ["hydra.sweeper.pruner.lower=0.1"],
}


@pytest.fixture
def composer() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def compose_choice(group: str, choice: str) -> DictConfig:
    return compose(
        "train",
        overrides=[f"{group}={choice}", *FILLED.get(choice, [])],
        return_hydra_config=group.startswith("hydra"),
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_header_says_what_it_is(file: Path) -> None:
    first = next(
        line for line in file.read_text().splitlines() if not line.startswith("# @package")
    )
    assert re.match(r"# \S.{10,}", first), f"{file} has no header line"


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_choice_composes_and_passes_the_checks(composer: None, group: str, choice: str) -> None:
    config = compose_choice(group, choice)
    if "hydra" in config:  # its parts are checked where they are built
        config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    check(resolve(config))


def build_model(config: DictConfig) -> None:
    if "weights" in config.model.net:
        config.model.net.weights = "random"
    net = instantiate(config.model.net, "model.net", outputs=7).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 3, config.data.image_size, config.data.image_size)).shape == (
            1,
            7,
        )


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
    assert (
        instantiate(config.trainer, "trainer", logger=False).max_epochs == config.trainer.max_epochs
    )


def build_data(config: DictConfig) -> None:
    assert isinstance(instantiate(config.data, "data", ("root",)), DataModule)


def build_callbacks(config: DictConfig) -> None:
    for name, node in config.callbacks.items():
        assert isinstance(instantiate(node, str(name)), Callback)


def build_sampler(config: DictConfig) -> None:
    assert (
        make_sampler(config.hydra.sweeper.sampler, 0, 1, 0).name
        == config.hydra.sweeper.sampler.name
    )


def build_pruner(config: DictConfig) -> None:
    pruner = make_pruner(config.hydra.sweeper.pruner, 1, max_epochs=10)
    assert isinstance(pruner, Rungs | BasePruner)


def build_executor(config: DictConfig) -> None:
    check(
        OmegaConf.to_container(config.hydra.sweeper.executor, resolve=True),
        "hydra.sweeper.executor",
    )
    assert issubclass(get_object(config.hydra.sweeper.executor._target_), Executor)


def build_compression(config: DictConfig) -> None:
    if config.compression.name is not None:
        assert callable(instantiate(config.compression, "compression", ("name",)).compress)


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
    "hydra/sweeper": lambda config: (
        config.hydra.sweeper._target_ == "hydra_plugins.paretoderm.StudySweeper"
    ),
    "hydra/sweeper/sampler": build_sampler,
    "hydra/sweeper/pruner": build_pruner,
    "hydra/sweeper/executor": build_executor,
    "objective": lambda config: [
        *parse_objectives(config.objective),
        *parse_limits(config.objective),
    ],
}


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_choice_builds(composer: None, group: str, choice: str) -> None:
    config = compose_choice(group, choice)
    if group == "compression":
        assert config.compression.name == (None if choice == "none" else choice)
    if group == "experiment":  # a whole run's config: every part of it
        for part, build in BUILDERS.items():
            if not part.startswith("hydra"):
                build(config)
    else:
        assert BUILDERS[group](config) is not False
