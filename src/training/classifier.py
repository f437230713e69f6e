"""The LightningModule: combines net, loss, optimizer and schedule, and logs the metrics."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from omegaconf import OmegaConf
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from src.core.config import check_recorded, instantiate
from src.core.errors import ConfigError, DependencyError, UserError
from src.metrics.classification import ClassificationMetrics, probabilities
from src.models import structure
from src.models.weights import load_weights, read_checkpoint

log = logging.getLogger(__name__)
RECIPE = "classifier"  # key of a checkpoint, beside its state_dict
TIMED = 5  # training steps that are timed before and after compiling
# What compiling is expected to save of a step, and the seconds that it takes on two CPU cores.
GAIN, COMPILE_S = 0.2, 40.0


def as_float(images: Tensor) -> Tensor:
    """Images (B, 3, S, S) as float32 in [0, 1], memory format kept; floats are unchanged."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


@torch.no_grad()
def teacher_logits(teachers: Sequence[nn.Module], images: Tensor) -> Tensor:
    """Logits of each net for images (B, 3, S, S), on their device: (B, T, K)."""
    return torch.stack([teacher.to(images.device)(images) for teacher in teachers], dim=1)


class Classifier(LightningModule):
    """Image classifier; once an epoch it logs `train/loss`, `train/accuracy`, `val/loss` ...

    Args:
        name: Name of the architecture, for the record.
        net: Normalised images (B, 3, S, S) -> logits (B, K), or (B, 1) for two classes. The
            learning-rate factor applies to its attribute `backbone`, if it has one.
        loss: Logits and targets (B,) -> scalar. One with a true attribute `soft_labels` also takes
            shares of the classes, (B, K): the labels of mixed images. One with `teachers`, nets
            from images to logits, is called with `teacher_logits=` (B, T, K) too while training:
            their logits of the augmented images. One with a true `per_source` gets `source=`, the
            number of each image's source.
        classes: Class names in label order.
        optimizer: Parameter groups -> optimizer.
        scheduler: Optimizer and number of steps -> schedule, stepped after every training step.
        image_size: Side of the input, px; for the record.
        mean: Channel means that are subtracted, in [0, 1] units, red first.
        std: Channel deviations that are divided by.
        backbone_lr_factor: The backbone's learning rate as a multiple of the optimizer's.

    Attributes:
        recipe: From `make_recipe`; None for a classifier that was not built from a config.
        compiling: Whether training steps run the net as torch.compile makes it; "auto": where that
            saves more time of the training than it takes. Evaluation is never compiled.
        compile_cost: Seconds of compiling and speed-up of a step, for the run record.
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
            problem = f"mean and std must have three numbers each, but got {mean} and {std}"
            raise ConfigError("mean", problem)
        self.name = name
        self.image_size = image_size
        self.net: nn.Module = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
        self.loss = loss
        self.recipe: dict[str, Any] | None = None
        self.compiling: bool | Literal["auto"] = False
        self.compile_cost: dict[str, float] = {}
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._step_starts: list[float] = []
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._backbone_lr_factor = backbone_lr_factor
        self.mean: Tensor
        self.inverse_std: Tensor
        shaped_mean, shaped_std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
        self.register_buffer("mean", shaped_mean, persistent=False)
        self.register_buffer("inverse_std", 1 / shaped_std, persistent=False)
        self.metrics = ClassificationMetrics(tuple(classes))
        self._loss_sum: Tensor | float = 0.0
        self._loss_count = 0
        self._hits: Tensor | int = 0  # of training steps, as the net is while it trains
        self._evaluated: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S), uint8 or float in [0, 1] -> logits."""
        return self.net(self.normalise(images))

    def normalise(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S), uint8 or float in [0, 1] -> input of the net."""
        return (as_float(images).to(self.mean.dtype) - self.mean) * self.inverse_std

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits of a batch of images, or of the cached features of a frozen net."""
        if "features" in batch:
            return self.net.get_submodule("head")(batch["features"])
        if self._compiled is None or not self.training:
            return self(batch["image"])
        try:
            return self._compiled(batch["image"])
        except Exception as error:
            if len(self._step_starts) != TIMED + 2:  # a later step is compiled already
                raise
            reason = "torch.compile needs a C++ compiler, such as g++"
            if "InvalidCxxCompiler" not in repr(error):
                reason = [*str(error).splitlines(), type(error).__name__][0]
            if self.compiling is True:
                raise DependencyError(f"trainer.compile=true: {reason}") from error
            log.warning("trainer.compile=auto: the training is not compiled: %s", reason)
            self.compiling, self._compiled = False, None
            return self(batch["image"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch; of the rows of several, the mean loss of their steps.

        Steps of a head take less time than Lightning needs between two of them. It therefore gets
        some of them as one (`automatic_optimization` is false then); the arithmetic is the same.
        """
        if self.automatic_optimization:
            loss, logits = self._loss_and_logits(batch)
        else:
            loss, logits = self._several_steps(batch)
        with torch.no_grad():
            labels = batch["label"] if batch["label"].ndim == 1 else batch["label"].argmax(dim=1)
            top = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(dim=1)
            self._hits = self._hits + (top == labels).sum()
        self._add_loss(loss, len(batch["label"]))
        if self.trainer.is_last_batch:
            # once an epoch: logging every step costs several per cent of a small net's time
            values: dict[str, Tensor | float] = {"train/accuracy": self._hits / self._loss_count}
            values["train/loss"] = self._mean_loss()
            self.log_dict(values, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def _loss_inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"source": batch["source"]} if getattr(self.loss, "per_source", False) else {}

    def _loss_and_logits(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = self.logits(batch)
        more: dict[str, Tensor | None] = {**self._loss_inputs(batch)}
        if teachers := getattr(self.loss, "teachers", ()):
            more["teacher_logits"] = batch.get("teacher_logits")
            if more["teacher_logits"] is None:
                more["teacher_logits"] = teacher_logits(teachers, batch["image"])
        return self.loss(logits, batch["label"], **more), logits

    def _several_steps(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Optimizer steps for the rows of several batches: their mean loss, and all logits."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        optimizer: Any = self.optimizers()
        schedule: Any = self.lr_schedulers()
        losses, outputs = [], []
        rows, size = batch["row"].cpu().numpy(), data.batch_size
        for start in range(0, len(rows), size):
            entries = data.cached(rows[start : start + size], True)
            step = {name: values.to(self.device) for name, values in entries.items()}
            step |= {name: values[start : start + size] for name, values in batch.items()}
            loss, logits = self._loss_and_logits(step)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            outputs.append(logits.detach())
        # Lightning numbers its logs by this counter, and adds one for the batch itself
        self.trainer.fit_loop.epoch_loop._batches_that_stepped += len(losses) - 1
        return torch.stack(losses).mean(), torch.cat(outputs)

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Time the first steps, compile the net if it is asked for, and time the next ones.

        "auto" compiles if the steps that follow are expected to save more than compiling takes,
        and takes it back where the compiled step is the slower one.
        """
        if self.compiling is False or "image" not in batch:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._step_starts.append(time.perf_counter())
        seconds = [after - before for before, after in pairwise(self._step_starts)]
        eager = min(seconds[1 : TIMED + 1], default=0.0)  # the first step loads libraries
        if len(seconds) == TIMED + 1:
            steps = self.trainer.estimated_stepping_batches - self.trainer.global_step
            if self.compiling is True or steps * eager * GAIN > COMPILE_S:
                torch._dynamo.reset()  # it compiles a function only for so many nets
                self._compiled = torch.compile(self.forward, dynamic=False)
            else:
                self.compiling = False
        elif len(seconds) == 2 * (TIMED + 1):
            compiled = min(seconds[-TIMED:])
            self.compile_cost = {"time/compile_s": seconds[TIMED + 1] - compiled}
            self.compile_cost["time/compile_speedup"] = eager / compiled
            if self.compiling == "auto" and compiled > eager:
                self._compiled = None
            self.compiling = False

    def on_train_end(self) -> None:
        """Drop the compiled net, which cannot be copied."""
        self.compiling, self._compiled, self._step_starts = False, None, []

    def on_train_epoch_start(self) -> None:
        """Reset the mean of the loss."""
        self._loss_sum, self._loss_count, self._hits = 0.0, 0, 0

    def on_validation_epoch_start(self) -> None:
        """Reset the mean of the loss and the metrics."""
        self.on_train_epoch_start()
        self._evaluated = []
        self.metrics.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Evaluate one batch."""
        logits = self.logits(batch).float()
        loss = self.loss(logits, batch["label"], **self._loss_inputs(batch))
        self._add_loss(loss, len(batch["label"]))
        probability = probabilities(logits)
        self.metrics.update(probability, batch["label"])
        self._evaluated.append((batch["row"], probability))

    def on_validation_epoch_end(self) -> None:
        """Log val/loss and the metrics."""
        self._log_evaluation("val")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """Log test/loss and the metrics."""
        self._log_evaluation("test")

    def _log_evaluation(self, split: str) -> None:
        values = {"loss": self._mean_loss(), **self.metrics.compute()}
        # every rank evaluates the whole split: the mean over ranks changes nothing
        self.log_dict({f"{split}/{key}": value for key, value in values.items()}, sync_dist=True)

    def predictions(self) -> tuple[Tensor, Tensor]:
        """Rows (N,) and probabilities (N, K) of the last evaluation, on the CPU."""
        rows, probability = zip(*self._evaluated, strict=True)
        return torch.cat(rows).cpu(), torch.cat(probability).float().cpu()

    def train_with(
        self, optimizer: Callable[..., Optimizer], scheduler: Callable[..., LRScheduler]
    ) -> None:
        """Use another optimizer and schedule in the next training."""
        self._optimizer, self._scheduler = optimizer, scheduler

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with a parameter group for the backbone, and the schedule."""
        optimizer = self._optimizer(self._parameter_groups())
        total = int(self.trainer.estimated_stepping_batches)
        if not self.automatic_optimization:
            loader: Any = self.trainer.train_dataloader
            total = int(self.trainer.max_epochs or 0) * loader.sampler.steps
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._scheduler(optimizer, total), "interval": "step"},
        }

    def _parameter_groups(self) -> list[dict[str, Any]]:
        trained = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        backbone = getattr(self.net, "backbone", None)
        if backbone is None or self._backbone_lr_factor == 1.0:
            return [{"params": trained}]
        keywords: dict[str, Any] = getattr(self._optimizer, "keywords", {})
        if "lr" not in keywords:
            raise ConfigError("backbone_lr_factor", "needs an optimizer with an `lr` in its config")
        ids = {id(parameter) for parameter in backbone.parameters()}
        fast = [parameter for parameter in trained if id(parameter) not in ids]
        slow = [parameter for parameter in trained if id(parameter) in ids]
        slow_lr = float(keywords["lr"]) * self._backbone_lr_factor
        return [{"params": fast}, *([{"params": slow, "lr": slow_lr}] if slow else [])]

    def _add_loss(self, loss: Tensor, size: int) -> None:
        self._loss_sum = self._loss_sum + loss.detach() * size
        self._loss_count += size

    def _mean_loss(self) -> Tensor | float:
        mean = self._loss_sum / max(self._loss_count, 1)
        self.on_train_epoch_start()
        return mean

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the recipe, so that `load_from_checkpoint` needs no arguments."""
        if self.recipe is not None:
            checkpoint[RECIPE] = self.recipe

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Path | str, map_location: Any = "cpu", **arguments: Any
    ) -> "Classifier":
        """Rebuild a trained classifier from a checkpoint of this project alone, in evaluation mode.

        Only tensors and basic types are read: nothing in the file is executed, and the recipe may
        name only parts of this project and its libraries. `arguments` of the constructor replace
        recorded ones, such as `loss` or `optimizer`, which are None otherwise.

        Raises:
            UserError: The file is no checkpoint, or it has no recipe.
        """
        content = read_checkpoint(checkpoint_path)
        recipe = content.get(RECIPE)
        if not isinstance(recipe, dict) or not isinstance(recipe.get("model"), dict):
            problem = "does not say how its classifier is built; load it into one with load_weights"
            raise UserError(f"{checkpoint_path}: {problem}")
        check_recorded(recipe)
        classifier = from_recipe(recipe, **arguments)
        tensors = content["state_dict"].values()
        if any(tensor.dtype == torch.bfloat16 for tensor in tensors):
            structure.cast(classifier.net)
        load_weights(classifier, checkpoint_path)
        return classifier.to(map_location).eval()


def make_recipe(
    model: Mapping[str, Any], classes: Sequence[str], image_size: int
) -> dict[str, Any]:
    """The plain values that a checkpoint records to rebuild its classifier.

    `model` is the resolved config group; the input's side is in px.
    """
    net = dict(model["net"])
    if "weights" in net:
        net["weights"] = "random"  # the checkpoint's follow
    settings = {key: value for key, value in model.items() if key != "image_size"}
    return {"model": {**settings, "net": net}, "classes": list(classes), "image_size": image_size}


def from_recipe(recipe: Mapping[str, Any], **arguments: Any) -> Classifier:
    """Build a classifier without trained weights; `arguments` are those of `Classifier`."""
    model = OmegaConf.create(dict(recipe["model"]))
    classes = tuple(recipe["classes"])
    if "net" not in arguments:
        outputs = 1 if len(classes) == 2 else len(classes)
        arguments["net"] = instantiate(model.net, "model.net", (), nn.Module, outputs=outputs)
    defaults: dict[str, Any] = {"classes": classes, "image_size": recipe["image_size"]}
    defaults |= {"loss": nn.Identity(), "optimizer": None, "scheduler": None}
    arguments = defaults | arguments
    classifier: Classifier = instantiate(model, "model", ("net",), Classifier, **arguments)
    classifier.recipe = dict(recipe)
    return classifier
