"""Progress of a training: a bar, a line per epoch, metrics for the run, a callback for sweeps."""

import logging
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ProgressBar
from pytorch_lightning.loggers import Logger
from tqdm import tqdm

from src.metrics.registry import default_quality_metrics
from src.tracking.run import Run
from src.training.checkpoint import best_epoch

log = logging.getLogger(__name__)
SHOWN = ("train/loss", "val/loss", *(f"val/{name}" for name in default_quality_metrics()))
SILENCED = (
    ".*LeafSpec.*is deprecated",
    ".*smaller than the logging interval",
    "Total length of `list` across ranks is zero",
    "You're resuming from a checkpoint that ended before the epoch",  # steps are counted otherwise
    "Checkpoint directory .* exists and is not empty",  # after a resumption
)


class EpochProgress(ProgressBar):
    """Epochs, images per second and the latest validation metrics, behind a title.

    Attributes:
        speeds: Training images per second of each epoch of this process, without validation.
        seconds: Of each epoch of this process, with its validation.
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title
        self._bar: tqdm | None = None
        self._began = self._epoch_began = 0.0
        self._images = 0
        self.speeds: list[float] = []
        self.seconds: list[float] = []

    @property
    def images_per_s(self) -> float:
        """Median over the epochs; 0 before the first has ended."""
        return statistics.median(self.speeds) if self.speeds else 0.0

    def disable(self) -> None:
        """Nothing: Lightning calls this on all ranks except the first, which show no bar anyway."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar; a resumed training starts in the middle of it."""
        batches = int(trainer.num_training_batches)
        self._bar = tqdm(
            total=int(trainer.max_epochs or 0) * batches,
            initial=int(trainer.current_epoch) * batches,
            desc=self._title,
            unit="step",
            leave=False,
            dynamic_ncols=True,
            mininterval=0.5,
            disable=not sys.stderr.isatty() or trainer.global_rank != 0,
        )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the epoch."""
        self._began = self._epoch_began = time.perf_counter()
        self._images = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        self._images += len(batch["label"])
        if self._bar is not None:
            self._bar.update(1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: validation does not count."""
        if self._began:
            self.speeds.append(self._images / max(time.perf_counter() - self._began, 1e-9))
            self._began = 0.0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the metrics of the epoch."""
        self.on_validation_start(trainer, pl_module)  # there may have been no validation
        self.seconds.append(time.perf_counter() - self._epoch_began)
        values = trainer.callback_metrics
        text = "  ".join(f"{name} {float(values[name]):.3f}" for name in SHOWN if name in values)
        epoch = trainer.current_epoch + 1
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix_str(f"epoch {epoch}  {text}")
        elif trainer.global_rank == 0:
            name, speed = self._title, self.speeds[-1]
            log.info(f"{name}: epoch {epoch}/{trainer.max_epochs}  {text}  {speed:,.0f} images/s")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that the error starts on a new line."""
        self.on_train_end(trainer, pl_module)


class AfterEpoch(Checkpoint):
    """Call a function with the metrics of each epoch, on the first rank; its exception ends `fit`.

    A `Checkpoint` because Lightning calls those last, when all metrics of the epoch are known. Must
    be listed after `BestEpoch`. The function gets the epoch, from 1, and its metrics by their
    recorded names, without undefined ones.
    """

    def __init__(self, call: Callable[[int, dict[str, float]], None] | None) -> None:
        self._call = call
        self._raised: BaseException | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call the function; if it raises, complete the record of the epoch first."""
        if self._call is None or not trainer.is_global_zero:
            return
        metrics = best_epoch(trainer).history[-1]
        try:
            self._call(trainer.current_epoch + 1, dict(metrics))
        except BaseException as error:
            self._raised = error
            # Lightning logs the training's metrics only after this hook
            training = {name: metrics[name] for name in metrics if name.startswith("train/")}
            for logger in trainer.loggers:
                logger.log_metrics(training, trainer.global_step - 1)
            raise

    @contextmanager
    def exceptions_unchanged(self) -> Iterator[None]:
        """Around `fit`: Lightning turns KeyboardInterrupt into SystemExit and disables Ctrl+C."""
        handler = signal.getsignal(signal.SIGINT)
        try:
            yield
        except SystemExit:
            if not isinstance(self._raised, KeyboardInterrupt):
                raise
            signal.signal(signal.SIGINT, handler)
            raise self._raised from None


class RunLogger(Logger):
    """Lightning logger that writes the metrics of `self.log` to a `Run`.

    The run's owner records its parameters and ends it; `log_hyperparams` does nothing.
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


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's announcements of hardware and products, and five warnings without use."""
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in SILENCED:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.setLevel(level)
