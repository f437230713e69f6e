"""Hydra's plugins of this project: the sweeper, and sweeps/ as a config group.

Hydra imports this file at every start: light imports only.
"""

from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parent.parent


class StudiesSearchPath(SearchPathPlugin):
    """Makes sweeps=<name> a choice from the folder sweeps/, only for commands of this project."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra before it composes a config."""
        if any(element.path.endswith(str(ROOT / "conf")) for element in search_path.get_path()):
            search_path.append("paretoderm", f"file://{ROOT}")


class StudySweeper(Sweeper):
    """Runs `src.study.sweep` for -m.

    Args:
        **settings: The config node `hydra.sweeper`; checked by `src.study`.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra before `sweep`."""
        self._context = hydra_context
        self._config = config

    def sweep(self, arguments: list[str]) -> None:
        """Run the study; a failure is noted for the exit status."""
        from src import study
        from src.core import cli

        if not study.sweep(self._config, self._context.config_loader, self._settings, arguments):
            cli.failures.append("study")
