"""Lightning logger that writes to a run of the store."""

from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import Logger

from src.tracking.run import Run


class RunLogger(Logger):
    """Lightning logger that writes the metrics of `self.log` to a `Run`.

    The run's owner records its parameters and ends it; `log_hyperparams` and `finalize` do nothing.
    `run` is None in the processes of a distributed training that are not the first.
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
        """Log metrics at a step, without the epoch, which Lightning adds to every call."""
        if self._run is not None:
            values = {name: value for name, value in metrics.items() if name != "epoch"}
            self._run.log(values, step or 0)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's owner has recorded the configuration."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Nothing: the run's owner ends it."""
