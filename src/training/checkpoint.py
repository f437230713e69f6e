"""BestEpoch, StopEarly, LastState (resume)."""

import contextlib
import io
import logging
import math
import random
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from torch import Tensor, nn

from src.core.errors import ConfigError, DivergedError, UserError
from src.metrics.registry import describe, recorded_in_training
from src.models import pruned_layers
from src.training.averaging import averaged

PRUNED = "pruned"  # key of a checkpoint's file, beside its state_dict


class BestEpoch(ModelCheckpoint):
    """Keep the weights of the epoch that is best by one validation metric.

    Without a validation split nothing is chosen: the last epoch is kept, and `chosen_by` says so.

    Args:
        metric: Name from the run record, such as "val/balanced_accuracy"; which way is better comes
            from there.
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
        self.history: list[
            dict[str, float]
        ] = []  # the figures of each epoch, of which one is chosen
        self.steps: list[int] = []  # optimizer steps done at the end of each epoch
        self._before: dict[str, Tensor] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what is known: a metric that is undefined in an epoch keeps an earlier one's value there."""
        self._before = dict(trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch's figures; stop where the loss is no number any more."""
        super().on_train_epoch_end(trainer, pl_module)
        known = trainer.callback_metrics.items()
        figures = {
            name: float(value) for name, value in known if value is not self._before.get(name)
        }
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
        self.epoch, self.history, self.steps = (
            state_dict[key] for key in ("epoch", "history", "steps")
        )
        self.best_model_path = self.format_checkpoint_name({})
        if state_dict["score"] is not None:
            self.best_model_score = self.kth_value = self.current_score = state_dict["score"]
            self.kth_best_model_path = self.best_model_path
            self.best_k_models = {self.best_model_path: state_dict["score"]}


def best_epoch(trainer: Trainer) -> BestEpoch:
    """The callback that chooses this training's epoch."""
    return next(
        callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestEpoch)
    )


class StopEarly(EarlyStopping):
    """Stop when a validation metric has not improved for some epochs.

    Args:
        metric: Name from the run record, such as "val/balanced_accuracy"; which way is better comes
            from there.
        patience: Epochs without improvement.
        min_delta: Smaller changes are none.
    """

    def __init__(
        self,
        metric: str,
        patience: Annotated[int, Ge(1)] = 5,
        min_delta: Annotated[float, Ge(0)] = 0.0,
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

    If the checkpoint says that it is of a pruned net (see `save_weights`), the layers are first
    made as small as its tensors; of any other the tensors must fit as they are.

    Raises:
        UserError: The file is absent, damaged, or of another network.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content.get(PRUNED) is True:
            pruned_layers.fit(module, content["state_dict"])
        module.load_state_dict(content["state_dict"])
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such checkpoint") from error
    except Exception as error:
        raise UserError(
            f"{path}: not a checkpoint of this network: {str(error).splitlines()[0]}"
        ) from error


def save_weights(module: LightningModule | nn.Module, path: Path | str) -> None:
    """Write a checkpoint that `load_weights` can read, whole or not at all, in place of one that is there.

    Of a net that is pruned (`src.models.pruned_layers.is_pruned`) the checkpoint says so.

    Raises:
        UserError: It cannot be written: no such folder, no right to, a full disk.
    """
    content = {"state_dict": module.state_dict()} | (
        {PRUNED: True} if pruned_layers.is_pruned(module) else {}
    )
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


log = logging.getLogger(__name__)
SHARE = 0.05  # of the training time may go into writing its state


class LastState(Checkpoint):
    """Write the whole state of the training now and then, and bring it back: `<folder>/last.ckpt`.

    In it are weights, optimizer, schedule, counters, what `BestEpoch` knows and has kept, and all
    random states; the order of the data is drawn from seed and epoch, augmentation and dropout from
    torch's state. A training that goes on from the file gives the figures that it would have given
    without the break. Of a distributed training, the first rank's random state is kept for all.
    Only tensors and basic types are written: nothing is executed on loading.

    The state of the last epoch is always written, so that what follows the training can be broken
    off, too: a training that goes on from it has no epoch left, and only brings back which one is
    the best. The file stays until somebody takes it away (`src.sweep.records.discard_states`).

    Must stand behind `BestEpoch`, as its state is written after the choice of each epoch.

    Args:
        folder: Where the file is written. Under a temporary name first, so that it is whole
            whenever the process dies.
        identity: What must be equal for a state to fit: a digest of config and data.
        seconds: At most every so many seconds; 0: after every epoch; None: never. Writing large
            nets takes at most a twentieth of the time, but for the last epoch's, unless 0.
        on_resume: Given the figures of the epochs that earlier processes have done, before the
            training goes on.

    Attributes:
        path: The file; absent before it is first written.
        images_per_s: Training speed of the process that last wrote the state that was loaded; 0 if
            there was none.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        seconds: float | None = None,
        on_resume: Callable[[Sequence[Mapping[str, float]]], None] | None = None,
    ) -> None:
        self.path = folder / "last.ckpt"
        self._identity = identity
        self._every = seconds
        self._began = self._written = time.monotonic()
        self._seconds_before = 0.0
        self._cost = 0.0
        self._on_resume = on_resume
        self._stopped = False
        self.images_per_s = 0.0
        self._progress: Any = None
        self._best: BestEpoch
        self._loaded: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        """Training time until now, s, that of earlier processes included."""
        return self._seconds_before + time.monotonic() - self._began

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find whose choice is kept, and start the clock."""
        self._best = best_epoch(trainer)
        self._progress = trainer.progress_bar_callback
        self._began = self._written = time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resumption: tell the loggers and whoever asked what was before; the last hook if no epoch is left."""
        if self._loaded is None:
            return
        log.info("training goes on after epoch %d", len(self._best.history))
        trainer.should_stop = self._loaded.get(
            "stopped", False
        )  # Lightning keeps how far it was, but not this
        if self._on_resume is not None and trainer.is_global_zero:
            self._on_resume(self._best.history)
        for figures in self._best.history:
            trainer.callback_metrics.update(
                {name: torch.tensor(value) for name, value in figures.items()}
            )
        for figures, step in zip(self._best.history, self._best.steps, strict=True):
            for logger in trainer.loggers:
                logger.log_metrics(figures, step - 1)  # Lightning's count

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resumption: set random states, start a fresh epoch."""
        if self._loaded is None:
            return
        _set_random_state(self._loaded["random"], pl_module.device)
        trainer.fit_loop.restarting = (
            False  # the epoch is over: there is no rest of it to be run first
        )
        self._loaded = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the state, if it is time or no other epoch follows."""
        over = trainer.should_stop or trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
        if self._every is None or not (over or trainer.strategy.broadcast(self._due())):
            return
        self._stopped = trainer.should_stop
        began = time.monotonic()
        part = self.path.with_suffix(".part")
        trainer.save_checkpoint(part, weights_only=False)
        if trainer.is_global_zero:
            part.replace(self.path)
        self._written = time.monotonic()
        self._cost = self._written - began

    def _due(self) -> bool:
        return not self._every or time.monotonic() - self._written >= max(
            self._every, self._cost / SHARE
        )

    def state_dict(self) -> dict[str, Any]:
        """What Lightning does not keep. The kept weights travel in the same file, as two files could disagree."""
        best = Path(self._best.best_model_path).read_bytes()
        return {
            "identity": self._identity,
            "seconds": self.seconds,
            "stopped": self._stopped,
            "images_per_s": getattr(self._progress, "images_per_s", 0.0),
            "random": _random_state(),
            "best": torch.frombuffer(bytearray(best), dtype=torch.uint8),
        }

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count the epoch as complete: Lightning would do so only after this hook, and run its end again."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
        for count in (progress["total"], progress["current"]):
            count["completed"] = count["processed"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over an earlier process's state; what cannot be set yet waits for the hooks above."""
        self._loaded = state_dict
        self.images_per_s = state_dict.get("images_per_s", 0.0)
        self._seconds_before = state_dict["seconds"]
        kept = self.path.with_name("best.ckpt")
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part")
        part.write_bytes(state_dict["best"].numpy().tobytes())
        part.replace(kept)


def fits(path: Path, identity: str, module: nn.Module) -> bool:
    """Whether a training can go on from a file of `LastState`. If not, a warning says why.

    Args:
        path: The file.
        identity: As given to `LastState`.
        module: Whose weights are to be in it.
    """
    try:
        problem = _misfit(path, identity, module)
    except FileNotFoundError:
        problem = "there is no such file"
    except Exception as error:
        problem = f"the file is damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    if problem:
        log.warning("%s: NOT RESUMED, training starts from scratch: %s", path, problem)
    return not problem


def _misfit(path: Path, identity: str, module: nn.Module) -> str:
    """Why a state does not fit; empty if it does."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():  # torch writes check sums, but does not look at them
            return f"the file is damaged (in {damaged})"
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    own = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in content["state_dict"].items()}:
        return "it is of another network"
    if content["callbacks"][LastState.__qualname__]["identity"] != identity:
        return "it is of another configuration or other data"
    return ""


def _random_state() -> dict[str, Any]:
    numpy = np.random.get_state(legacy=False)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return {
        "python": random.getstate(),
        "numpy": numpy,
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
