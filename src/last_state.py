"""From where a training that was broken off goes on: its whole state, kept on disk until its outcome is recorded."""

import logging
import random
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from torch import nn

from src.checkpoint import BestEpoch, best_epoch

log = logging.getLogger(__name__)
SHARE = 0.05  # of the training time may go into writing its state


class LastState(Checkpoint):
    """Write the whole state of the training now and then, and bring it back: `<folder>/last.ckpt`.

    In it are weights, optimizer, schedule, counters, what `BestEpoch` knows and has kept, and all random states; the
    order of the data is drawn from seed and epoch, augmentation and dropout from torch's state. A training that goes
    on from the file gives the figures that it would have given without the break. Of a distributed training, the first
    rank's random state is kept for all. Only tensors and basic types are written: nothing is executed on loading.

    The state of the last epoch is always written, so that what follows the training can be broken off, too: a training
    that goes on from it has no epoch left, and only brings back which one is the best. The file stays until somebody
    takes it away (`src.sweep.resumption.discard`).

    Must stand behind `BestEpoch`, as its state is written after the choice of each epoch.

    Args:
        folder: Where the file is written. Under a temporary name first, so that it is whole whenever the process dies.
        identity: What must be equal for a state to fit: a digest of config and data.
        seconds: At most every so many seconds; 0: after every epoch; None: never. Writing large nets takes at most a
            twentieth of the time, but for the last epoch's, unless 0.
        on_resume: Given the figures of the epochs that earlier processes have done, before the training goes on.

    Attributes:
        path: The file; absent before it is first written.
        images_per_s: Training speed of the process that last wrote the state that was loaded; 0 if there was none.
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
        trainer.should_stop = self._loaded.get("stopped", False)  # Lightning keeps how far it was, but not this
        if self._on_resume is not None and trainer.is_global_zero:
            self._on_resume(self._best.history)
        for figures in self._best.history:
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in figures.items()})
        for figures, step in zip(self._best.history, self._best.steps, strict=True):
            for logger in trainer.loggers:
                logger.log_metrics(figures, step - 1)  # Lightning's count

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resumption: set random states, start a fresh epoch."""
        if self._loaded is None:
            return
        _set_random_state(self._loaded["random"], pl_module.device)
        trainer.fit_loop.restarting = False  # the epoch is over: there is no rest of it to be run first
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
        return not self._every or time.monotonic() - self._written >= max(self._every, self._cost / SHARE)

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

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
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
    return {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
