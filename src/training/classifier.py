"""The one LightningModule: it is given net, loss, optimizer and schedule, and logs the run record's metrics."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Gt
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from src.core.errors import ConfigError
from src.metrics.classification import ClassificationMetrics, probabilities


def as_float(images: Tensor) -> Tensor:
    """Images (B, 3, S, S) as float32 in [0, 1], memory format kept; floats are returned as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


class Classifier(LightningModule):
    """Image classifier.

    Metrics are logged once an epoch under the run record's names: `train/loss`, `val/loss`,
    `val/accuracy` ...

    Args:
        name: Name of the architecture, for the record.
        net: Normalised images (B, 3, S, S) -> logits (B, K), or (B, 1) for two classes. A net with
            an attribute `backbone` may be given a learning-rate factor for it.
        loss: Logits and targets (B,) -> scalar.
        classes: Class names in label order.
        optimizer: Parameter groups -> optimizer.
        scheduler: Optimizer and number of steps -> schedule, stepped every training step.
        image_size: Side of the input, px; for the record.
        mean: Channel means that are taken off, in [0, 1] units, red first.
        std: Channel deviations that are divided by.
        backbone_lr_factor: The backbone's learning rate as a multiple of the optimizer's.
    """

    config_only = ("net",)

    def __init__(
        self,
        name: str,
        net: nn.Module,
        loss: nn.Module,
        classes: Sequence[str],
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler],
        image_size: int,
        mean: list[float],
        std: list[Annotated[float, Gt(0)]],
        backbone_lr_factor: Annotated[float, Gt(0)] = 1.0,
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3:
            raise ConfigError(
                "mean", f"mean and std must have three numbers each, but got {mean} and {std}"
            )
        self.name = name
        self.image_size = image_size
        self.net: nn.Module = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
        self.loss = loss
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._backbone_lr_factor = backbone_lr_factor
        self.mean: Tensor
        self.inverse_std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer(
            "inverse_std", 1 / torch.tensor(std).view(1, 3, 1, 1), persistent=False
        )
        self.metrics = ClassificationMetrics(tuple(classes))
        self._loss_sum: Tensor | float = 0.0
        self._loss_count = 0
        self._seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S), uint8 or float in [0, 1] -> logits."""
        return self.net((as_float(images).to(self.mean.dtype) - self.mean) * self.inverse_std)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        logits = self(batch["image"])
        needs_images = getattr(self.loss, "needs_images", False)
        images = {"images": batch["image"]} if needs_images else {}
        loss = self.loss(logits, batch["label"], **images)
        self._count_loss(loss, len(batch["label"]))
        if self.trainer.is_last_batch:
            # once an epoch: logging every step costs several per cent of a small net's training
            # time
            self.log("train/loss", self._mean_loss(), on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def on_train_epoch_start(self) -> None:
        """Forget what an earlier evaluation counted."""
        self._loss_sum, self._loss_count = 0.0, 0

    def on_validation_epoch_start(self) -> None:
        """Forget what was counted before."""
        self._start_evaluation()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Count one batch."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log val/loss and the metrics."""
        self._log_evaluation("val")

    def on_test_epoch_start(self) -> None:
        """Forget what an earlier evaluation counted."""
        self._start_evaluation()

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Count one batch."""
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        """Log test/loss and the metrics."""
        self._log_evaluation("test")

    def predictions(self) -> tuple[Tensor, Tensor]:
        """Rows (N,) and probabilities (N, K) of the last evaluation, on the CPU."""
        rows, probability = zip(*self._seen, strict=True)
        return torch.cat(rows).cpu(), torch.cat(probability).float().cpu()

    def train_with(
        self, optimizer: Callable[..., Optimizer], scheduler: Callable[..., LRScheduler]
    ) -> None:
        """Take another optimizer and schedule for the next training."""
        self._optimizer, self._scheduler = optimizer, scheduler

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over what is trained, its backbone apart, and the schedule stepped every step."""
        optimizer = self._optimizer(self._parameter_groups())
        total = int(self.trainer.estimated_stepping_batches)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._scheduler(optimizer, total), "interval": "step"},
        }

    def _parameter_groups(self) -> list[dict[str, Any]]:
        backbone = getattr(self.net, "backbone", None)
        if backbone is None or self._backbone_lr_factor == 1.0:
            return [{"params": [p for p in self.net.parameters() if p.requires_grad]}]
        inside = {id(p) for p in backbone.parameters()}
        trained = [p for p in self.net.parameters() if p.requires_grad]
        groups = [{"params": [p for p in trained if id(p) not in inside]}]
        slow = [p for p in trained if id(p) in inside]
        lr = self._optimizer_lr() * self._backbone_lr_factor
        return groups + ([{"params": slow, "lr": lr}] if slow else [])

    def _optimizer_lr(self) -> float:
        keywords: dict[str, Any] = getattr(self._optimizer, "keywords", {})
        if "lr" not in keywords:
            raise ConfigError("backbone_lr_factor", "needs an optimizer with an `lr` in its config")
        return float(keywords["lr"])

    def _count_loss(self, loss: Tensor, size: int) -> None:
        self._loss_sum = self._loss_sum + loss.detach() * size
        self._loss_count += size

    def _mean_loss(self) -> Tensor | float:
        mean = self._loss_sum / max(self._loss_count, 1)
        self._loss_sum, self._loss_count = 0.0, 0
        return mean

    def _start_evaluation(self) -> None:
        self._loss_sum, self._loss_count = 0.0, 0
        self._seen = []
        self.metrics.reset()

    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        logits = self(batch["image"]).float()
        self._count_loss(self.loss(logits, batch["label"]), len(batch["label"]))
        probability = probabilities(logits)
        self.metrics.update(probability, batch["label"])
        self._seen.append((batch["row"], probability))

    def _log_evaluation(self, split: str) -> None:
        values = {"loss": self._mean_loss(), **self.metrics.compute()}
        # every rank evaluates the whole split, so the values are equal and their mean changes
        # nothing
        self.log_dict({f"{split}/{key}": value for key, value in values.items()}, sync_dist=True)
