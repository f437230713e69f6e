"""What is seen while a run trains: one bar on a terminal, one line an epoch in a log, a call to whoever asked."""

import logging
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ProgressBar
from torch import Tensor
from tqdm import tqdm

from src.training.checkpoint import best_epoch

log = logging.getLogger(__name__)
SHOWN = ("train/loss", "val/loss", "val/balanced_accuracy", "val/accuracy")


class EpochProgress(ProgressBar):
    """Epochs, images a second and the latest validation figures.

    Args:
        title: What the bar is called, such as the model's name.

    Attributes:
        speeds: Training images a second of this process, one figure an epoch; validation is not
            counted in.
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title
        self._bar: tqdm | None = None
        self._began = 0.0
        self._images = 0
        self.speeds: list[float] = []

    @property
    def images_per_s(self) -> float:
        """Median over the epochs; 0 before the first has ended."""
        return statistics.median(self.speeds) if self.speeds else 0.0

    def disable(self) -> None:
        """Lightning calls this on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self._bar = tqdm(
            total=int(trainer.max_epochs or 0) * int(trainer.num_training_batches),
            initial=int(trainer.current_epoch)
            * int(trainer.num_training_batches),  # not 0 when resumed
            desc=self._title,
            unit="step",
            leave=False,
            dynamic_ncols=True,
            mininterval=0.5,
            disable=not sys.stderr.isatty() or trainer.global_rank != 0,
        )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock."""
        self._began = time.perf_counter()
        self._images = 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
    ) -> None:
        """Move the bar."""
        self._images += len(batch["label"])
        if self._bar is not None:
            self._bar.update(1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training ends here for the images-a-second figure."""
        self._stop_clock()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the epoch's figures."""
        self._stop_clock()
        metrics = trainer.callback_metrics
        figures = {name: float(metrics[name]) for name in SHOWN if name in metrics}
        text = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
        epoch = f"{self._title}: epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        line = f"{epoch}  {text}  {self.speeds[-1]:,.0f} images/s"
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix_str(f"epoch {trainer.current_epoch + 1}  {text}")
        elif trainer.global_rank == 0:
            log.info(line)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that the error stands on a line of its own."""
        if self._bar is not None:
            self._bar.close()

    def _stop_clock(self) -> None:
        if self._began:
            self.speeds.append(self._images / max(time.perf_counter() - self._began, 1e-9))
            self._began = 0.0


class AfterEpoch(Checkpoint):
    """Tell somebody outside the figures of each epoch, on the first rank; an exception of theirs ends the training.

    A `Checkpoint` only because Lightning calls those last, when the epoch's figures are whole and
    its choice is made.

    Must stand behind `BestEpoch`.

    Args:
        call: Given the epoch, from 1, and its metrics by their recorded names, undefined ones left
            out; or None.
    """

    def __init__(self, call: Callable[[int, dict[str, float]], None] | None) -> None:
        self._call = call
        self._raised: BaseException | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call; if that ends the training, complete the record first."""
        if self._call is None or not trainer.is_global_zero:
            return
        figures = best_epoch(trainer).history[-1]
        try:
            self._call(trainer.current_epoch + 1, dict(figures))
        except BaseException as error:
            self._raised = error
            for (
                logger
            ) in trainer.loggers:  # Lightning logs the training's figures only after this hook
                training = {
                    name: value for name, value in figures.items() if name.startswith("train/")
                }
                logger.log_metrics(training, trainer.global_step - 1)
            raise

    @contextmanager
    def exceptions_unchanged(self) -> Iterator[None]:
        """Around `fit`: Lightning makes a SystemExit of a KeyboardInterrupt, and has Ctrl+C ignored from then on."""
        handler = signal.getsignal(signal.SIGINT)
        try:
            yield
        except SystemExit:
            if not isinstance(self._raised, KeyboardInterrupt):
                raise
            signal.signal(signal.SIGINT, handler)
            raise self._raised from None


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's announcements of hardware and products, and four warnings that say nothing."""
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval")
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
            warnings.filterwarnings(
                "ignore", message="Checkpoint directory .* exists and is not empty"
            )  # resumed
            yield
    finally:
        logger.setLevel(level)
