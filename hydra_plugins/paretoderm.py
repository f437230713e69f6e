"""Hydra plugins: the sweeper, and sweeps/ on the search path. Hydra scans it at every start."""

from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parent.parent


class StudiesSearchPath(SearchPathPlugin):
    """Lets sweeps=<name> be found in the folder sweeps/, for this project's own commands only."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra calls this before it composes a config."""
        if any(element.path.endswith(str(ROOT / "conf")) for element in search_path.get_path()):
            search_path.append("paretoderm", f"file://{ROOT}")


class StudySweeper(Sweeper):
    """Hydra's way to `src.study`.

    Args:
        **settings: The config node `hydra.sweeper`; checked there.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Hydra calls this before `sweep`."""
        self._context = hydra_context
        self._config = config

    def sweep(self, arguments: list[str]) -> None:
        """Run the study that the command line asks for."""
        from src import study as launch
        from src.core import cli as entry

        if not launch.sweep(self._config, self._context.config_loader, self._settings, arguments):
            entry.failures.append("study")  # Hydra passes no result on
