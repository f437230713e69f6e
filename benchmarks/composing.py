"""The project's config, composed for a benchmark."""

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from src.core.cli import ROOT


def composed(overrides: list[str]) -> DictConfig:
    """`conf/train.yaml` with overrides, as the command line would make it."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", overrides=overrides)
