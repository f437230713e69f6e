"""Which epoch of a run is kept, and when to stop.

Both choices are made by the validation split, never by the one that is reported.
"""

import contextlib
import io
import math
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn

from src.averaging import averaged
from src.errors import ConfigError, DivergedError, UserError
from src.models import structure
from src.objectives import describe, recorded_in_training

PRUNED = "pruned"  # key of a checkpoint's file, beside its state_dict


class BestEpoch(ModelCheckpoint):
    """Keep the weights of the epoch that is best by one validation metric.

    Without a validation split nothing is chosen: the last epoch is kept, and `chosen_by` says so.

    Args:
        metric: Name from the run record, such as "val/balanced_accuracy"; which way is better comes from there.
        folder: Where `best.ckpt` is written; given by the training code.
        has_validation: Whether the run has a validation split; given by the training code.
    """

    def __init__(self, metric: str, folder: Path | str = ".", has_validation: bool = True) -> None:
        _check_chooses(metric)
        self.chosen_by = metric if has_validation else "last epoch"
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor=metric if has_validation else None,
            mode=_mode(metric),
            save_top_k=1,
            save_weights_only=True,
            enable_version_counter=False,
            save_on_train_epoch_end=not has_validation,
        )
        self.epoch = 0
        self.history: list[dict[str, float]] = []  # the figures of each epoch, of which one is chosen
        self.steps: list[int] = []  # optimizer steps done at the end of each epoch
        self._before: dict[str, Tensor] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what is known: a metric that is undefined in an epoch keeps an earlier one's value there."""
        self._before = dict(trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch's figures; stop where the loss is no number any more."""
        super().on_train_epoch_end(trainer, pl_module)
        known = trainer.callback_metrics.items()
        figures = {name: float(value) for name, value in known if value is not self._before.get(name)}
        self.history.append(figures)
        self.steps.append(trainer.global_step)
        if not math.isfinite(figures.get("train/loss", 0.0)):
            raise DivergedError(
                f"train/loss is {figures['train/loss']} in epoch {trainer.current_epoch + 1}: the training diverged; "
                "lower optimizer.lr or set trainer.gradient_clip_val=1"
            )

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        with averaged(trainer):
            super()._save_checkpoint(trainer, filepath)
        self.epoch = trainer.current_epoch

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs; without Lightning's paths, as it may go on in another folder."""
        score = None if self.best_model_score is None else self.best_model_score.cpu()
        return {"epoch": self.epoch, "score": score, "history": self.history, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on choosing where an earlier process broke off; `LastState` puts the kept weights in place."""
        self.epoch, self.history, self.steps = (state_dict[key] for key in ("epoch", "history", "steps"))
        self.best_model_path = self.format_checkpoint_name({})
        if state_dict["score"] is not None:
            self.best_model_score = self.kth_value = self.current_score = state_dict["score"]
            self.kth_best_model_path = self.best_model_path
            self.best_k_models = {self.best_model_path: state_dict["score"]}


def best_epoch(trainer: Trainer) -> BestEpoch:
    """The callback that chooses this training's epoch."""
    return next(callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestEpoch))


class StopEarly(EarlyStopping):
    """Stop when a validation metric has not improved for some epochs.

    Args:
        metric: Name from the run record, such as "val/balanced_accuracy"; which way is better comes from there.
        patience: Epochs without improvement.
        min_delta: Smaller changes are none.
    """

    def __init__(
        self, metric: str, patience: Annotated[int, Ge(1)] = 5, min_delta: Annotated[float, Ge(0)] = 0.0
    ) -> None:
        _check_chooses(metric)
        super().__init__(metric, patience=patience, min_delta=min_delta, mode=_mode(metric))


def _mode(metric: str) -> str:
    return "max" if describe(metric).direction == "maximize" else "min"


def _check_chooses(metric: str) -> None:
    if not recorded_in_training(metric).name.startswith("val/"):
        raise ConfigError("metric", f"must be of the validation split, val/..., but got {metric}")


def load_weights(module: LightningModule | nn.Module, path: Path | str) -> None:
    """Put the weights of a checkpoint into `module`. Nothing in the file is executed.

    If the checkpoint says that it is of a pruned net (see `save_weights`), the layers are first made as small as its
    tensors; of any other the tensors must fit as they are.

    Raises:
        UserError: The file is absent, damaged, or of another network.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content.get(PRUNED) is True:
            structure.fit(module, content["state_dict"])
        module.load_state_dict(content["state_dict"])
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such checkpoint") from error
    except Exception as error:
        raise UserError(f"{path}: not a checkpoint of this network: {str(error).splitlines()[0]}") from error


def save_weights(module: LightningModule | nn.Module, path: Path | str) -> None:
    """Write a checkpoint that `load_weights` can read, whole or not at all, in place of one that is there.

    Of a net that is pruned (`src.models.structure.is_pruned`) the checkpoint says so.

    Raises:
        UserError: It cannot be written: no such folder, no right to, a full disk.
    """
    content = {"state_dict": module.state_dict()} | ({PRUNED: True} if structure.is_pruned(module) else {})
    packed = io.BytesIO()  # torch's own writer has no plain error for a full disk
    torch.save(content, packed)
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(packed.getbuffer())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UserError(f"{path}: the checkpoint cannot be written there ({error})") from error
