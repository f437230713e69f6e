"""Lightning's logger over a run that somebody else owns."""

from argparse import Namespace
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import Logger

from src.tracking.run import Run


class RunLogger(Logger):
    """Hands what `self.log` collects to a `Run`.

    Parameters are recorded and the run is ended by its owner, so `log_hyperparams` and `finalize` do nothing.

    Args:
        run: The run to write to; None in the processes of a distributed training that are not the first.
    """

    def __init__(self, run: Run | None) -> None:
        super().__init__()
        self._run = run

    @property
    def name(self) -> str | None:
        """The run's name."""
        return self._run.name if self._run else None

    @property
    def version(self) -> str | None:
        """The run's id."""
        return self._run.id if self._run else None

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Buffer metrics at a step; the epoch, which Lightning adds to every call, is left out."""
        if self._run is not None:
            self._run.log({name: value for name, value in metrics.items() if name != "epoch"}, step or 0)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's owner has recorded the whole configuration."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Nothing: the run's owner ends it."""
