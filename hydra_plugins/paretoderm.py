"""Hydra's plugins of this project: the sweeper, and sweeps/ as a config group.

Hydra imports this file at every start: light imports only.
"""

from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parent.parent


class StudiesSource(FileConfigSource):
    """The folder sweeps/ as a config group; Hydra sees nothing else of the checkout.

    As a source of files the checkout would be walked with all its folders, .venv included, by
    --hydra-help and by shell completion.
    """

    @staticmethod
    def scheme() -> str:
        """Of `studies://<checkout>` in the search path."""
        return "studies"

    def is_group(self, config_path: str) -> bool:
        """Called by Hydra for a config group, and for every name in the folder of one."""
        is_own = config_path.partition("/")[0] in ("", "sweeps")
        return is_own and super().is_group(config_path)

    def is_config(self, config_path: str) -> bool:
        """Called by Hydra for a choice of a config group."""
        return config_path.startswith("sweeps/") and super().is_config(config_path)


class StudiesSearchPath(SearchPathPlugin):
    """Makes sweeps=<name> a choice from the folder sweeps/, only for commands of this project."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra before it composes a config."""
        if any(element.path.endswith(str(ROOT / "conf")) for element in search_path.get_path()):
            search_path.append("paretoderm", f"studies://{ROOT}")


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
