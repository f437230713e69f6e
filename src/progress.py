"""What is seen while a run trains: one bar on a terminal, one line an epoch in a log."""

import logging
import statistics
import sys
import time
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from torch import Tensor
from tqdm import tqdm

log = logging.getLogger(__name__)
SHOWN = ("train/loss", "val/loss", "val/balanced_accuracy", "val/accuracy")


class EpochProgress(ProgressBar):
    """Epochs, images a second and the latest validation figures.

    Args:
        title: What the bar is called, such as the model's name.

    Attributes:
        speeds: Training images a second of this process, one figure an epoch; validation is not counted in.
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
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Tensor], batch_idx: int
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

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the error stands on a line of its own."""
        if self._bar is not None:
            self._bar.close()

    def _stop_clock(self) -> None:
        if self._began:
            self.speeds.append(self._images / max(time.perf_counter() - self._began, 1e-9))
            self._began = 0.0
