"""Checkpoints: the best epoch, early stopping, and the state from which a training resumes."""

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

from src.core.errors import ConfigError, DivergedError
from src.core.files import atomic_file
from src.metrics.registry import recorded_in_training
from src.training.averaging import averaged

log = logging.getLogger(__name__)
WRITING_SHARE = 0.05  # of the training time may be spent on writing the state
_KEPT = ("epoch", "history", "steps")  # of `BestEpoch`, in a state


class BestEpoch(ModelCheckpoint):
    """Keep the weights of the epoch with the best value of a validation metric in `best.ckpt`.

    Without a validation split the last epoch is kept, and `chosen_by` says so. `folder` and
    `has_validation` are passed by the training code. `epoch` is the kept one, from 0. `history`
    has the metrics of each epoch, without those that are undefined in it, and `steps` the number
    of optimizer steps at its end.
    """

    def __init__(self, metric: str, folder: Path | str = ".", has_validation: bool = True) -> None:
        super().__init__(
            dirpath=folder,
            filename="best",
            mode=_validation_mode(metric),
            monitor=metric if has_validation else None,
            save_weights_only=True,
            enable_version_counter=False,
            save_on_train_epoch_end=not has_validation,
        )
        self.chosen_by = metric if has_validation else "last epoch"
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.steps: list[int] = []
        self._before: dict[str, Tensor] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the current metrics: Lightning keeps the old value of one that is undefined."""
        self._before = dict(trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch's metrics; a DivergedError if a loss or metric is not finite."""
        super().on_train_epoch_end(trainer, pl_module)
        fresh = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if value is not self._before.get(name)
        }
        self.history.append(fresh)
        self.steps.append(trainer.global_step)
        for name, value in fresh.items():
            if name.startswith(("train/", "val/")) and not math.isfinite(value):
                raise diverged(f"{name} is {value} in epoch {trainer.current_epoch + 1}")

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        with averaged(trainer):
            super()._save_checkpoint(trainer, filepath)
        self.epoch = trainer.current_epoch

    def state_dict(self) -> dict[str, Any]:
        """The choice so far, without paths: a resumed training may use another folder."""
        score = None if self.best_model_score is None else self.best_model_score.cpu()
        return {"score": score} | {name: getattr(self, name) for name in _KEPT}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue an earlier choice; `LastState` restores the kept weights."""
        for name in _KEPT:
            setattr(self, name, state_dict[name])
        self.best_model_path = self.format_checkpoint_name({})
        if (score := state_dict["score"]) is not None:
            self.best_model_score = self.kth_value = self.current_score = score
            self.kth_best_model_path = self.best_model_path
            self.best_k_models = {self.best_model_path: score}


def diverged(problem: str) -> DivergedError:
    """The error of a training whose loss, metrics or outputs are not finite."""
    way = "lower optimizer.lr or set trainer.gradient_clip_val=1"
    return DivergedError(f"{problem}: the training diverged; {way}")


def best_epoch(trainer: Trainer) -> BestEpoch:
    """The callback that chooses the epoch of this training."""
    callbacks = trainer.checkpoint_callbacks
    return next(callback for callback in callbacks if isinstance(callback, BestEpoch))


class StopEarly(EarlyStopping):
    """Stop when a validation metric has not improved by `min_delta` for some epochs."""

    def __init__(
        self,
        metric: str,
        patience: Annotated[int, Ge(1)] = 5,
        min_delta: Annotated[float, Ge(0)] = 0.0,
    ) -> None:
        super().__init__(metric, min_delta, patience, mode=_validation_mode(metric))


def _validation_mode(metric: str) -> str:
    """The direction of a metric of the validation split; other metrics are refused."""
    entry = recorded_in_training(metric)
    if entry.fitted or not entry.name.startswith("val/"):
        problem = f"must be of the validation split of each epoch, val/..., but got {metric}"
        raise ConfigError("metric", problem)
    return "max" if entry.direction == "maximize" else "min"


class LastState(Checkpoint):
    """Write the state of the training at intervals to `<folder>/last.ckpt`, and restore it.

    The state holds weights, optimizer, schedule, counters, the state and weights of `BestEpoch`,
    and all random states; the order of the data follows from seed and epoch, augmentation and
    dropout from torch's random state. A resumed training gives the results of one that was never
    interrupted. Of a distributed training, the random state of the first rank is kept for all.
    The file holds only tensors and basic types: nothing is executed on loading.

    The state of the last epoch is always written, so that the evaluation after the training can be
    interrupted, too: a training that resumes from it has no epoch left and only restores the best
    one. The file stays until `src.sweep.records.discard_states` removes it.

    Must be listed after `BestEpoch`: its state is written after the choice of each epoch.

    Args:
        folder: Where the file is written, under a temporary name first.
        identity: Must be equal for a state to fit: a digest of config and data.
        seconds: Write at most every so many seconds; 0: after every epoch; None: never. Writing
            takes at most a twentieth of the training time, apart from the last epoch, unless 0.
        on_resume: Called with the metrics of the earlier epochs before the training continues.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        seconds: float | None = None,
        on_resume: Callable[[Sequence[Mapping[str, float]]], None] | None = None,
    ) -> None:
        self.path = folder / "last.ckpt"
        self.images_per_s = 0.0
        self._identity = identity
        self._interval = seconds
        self._on_resume = on_resume
        self._began = self._written = time.monotonic()
        self._seconds_before = 0.0
        self._cost = 0.0
        self._stopped = False
        self._progress: Any = None
        self._best: BestEpoch
        self._loaded: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        """Training time until now, in seconds, including earlier processes."""
        return self._seconds_before + time.monotonic() - self._began

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock."""
        self._best = best_epoch(trainer)
        self._progress = trainer.progress_bar_callback
        self._began = self._written = time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resumption: log the earlier epochs again; the last hook if no epoch is left."""
        if self._loaded is None:
            return
        history = self._best.history
        log.info("training resumes after epoch %d", len(history))
        # Lightning restores the progress, but not this
        trainer.should_stop = self._loaded["stopped"]
        if self._on_resume is not None and trainer.is_global_zero:
            self._on_resume(history)
        for metrics, step in zip(history, self._best.steps, strict=True):
            tensors = {name: torch.tensor(value) for name, value in metrics.items()}
            trainer.callback_metrics.update(tensors)
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step - 1)  # as Lightning counts

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resumption: set the random states and start a new epoch."""
        if self._loaded is None:
            return
        state, device = self._loaded["random"], pl_module.device
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if device.type == "cuda" and state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], device)
        trainer.fit_loop.restarting = False  # there is no unfinished epoch to complete
        self._loaded = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the state if it is due, or if no other epoch follows."""
        if self._interval is None:
            return
        is_last = trainer.should_stop or trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
        pause = max(self._interval, self._cost / WRITING_SHARE) if self._interval else 0.0
        is_due = time.monotonic() - self._written >= pause
        if not (is_last or trainer.strategy.broadcast(is_due)):
            return
        self._stopped = trainer.should_stop
        began = time.monotonic()
        draft = self.path.with_suffix(".part")
        trainer.save_checkpoint(draft, weights_only=False)
        if trainer.is_global_zero:
            draft.replace(self.path)
        self._written = time.monotonic()
        self._cost = self._written - began

    def state_dict(self) -> dict[str, Any]:
        """What Lightning does not keep. The best weights are included: two files could disagree."""
        numpy = np.random.get_state(legacy=False)
        numpy["state"]["key"] = numpy["state"]["key"].tolist()
        best = Path(self._best.best_model_path).read_bytes()
        return {
            "identity": self._identity,
            "seconds": self.seconds,
            "stopped": self._stopped,
            "images_per_s": getattr(self._progress, "images_per_s", 0.0),
            "random": {
                "python": random.getstate(),
                "numpy": numpy,
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
            },
            "best": torch.frombuffer(bytearray(best), dtype=torch.uint8),
        }

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count the epoch as complete, which Lightning does only after this hook."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
        for count in (progress["total"], progress["current"]):
            count["completed"] = count["processed"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best weights; the hooks above restore the rest."""
        self._loaded = state_dict
        self.images_per_s = state_dict["images_per_s"]
        self._seconds_before = state_dict["seconds"]
        with atomic_file(self.path.with_name("best.ckpt"), make_folder=True) as draft:
            draft.write_bytes(state_dict["best"].numpy().tobytes())


def fits(path: Path, identity: str, module: nn.Module) -> bool:
    """Whether a training of `module` can resume from a file of `LastState`.

    If not, a warning gives the reason.
    """
    problem = ""
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch writes checksums, but does not check them
                raise ValueError(f"in {damaged}")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
        if shapes != {name: tensor.shape for name, tensor in content["state_dict"].items()}:
            problem = "it is of another network"
        elif content["callbacks"][LastState.__qualname__]["identity"] != identity:
            problem = "it is of another configuration or other data"
    except FileNotFoundError:
        problem = "there is no such file"
    except Exception as error:
        reason = [*str(error).splitlines(), type(error).__name__][0]
        problem = f"the file is damaged ({reason})"
    if problem:
        log.warning("%s: NOT RESUMED, training starts from scratch: %s", path, problem)
    return not problem
