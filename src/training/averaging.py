"""Averaging of weights along a training: what is validated, chosen and kept is the average."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from src.core.errors import ConfigError


class AveragedWeights(WeightAveraging):
    """An exponential moving average of weights, and of what normalisation layers have seen, over training steps.

    The average begins as the weights after the first step. After n further steps it moves by 1 - d
    towards the weights, d = min(decay, (1 + n) / (10 + n)): the warm-up of TensorFlow's
    ExponentialMovingAverage (`num_updates`), without which early epochs would be judged by what the
    training began with. Averages often do better at no cost (Polyak & Juditsky, Acceleration of
    stochastic approximation by averaging, SIAM J. Control Optim. 1992, section 3; Izmailov et al.,
    Averaging weights leads to wider optima and better generalization, UAI 2018).

    Args:
        decay: The limit of d: the average spans some 1 / (1 - decay) steps. 0 is no averaging.
    """

    def __init__(self, decay: Annotated[float, Ge(0), Lt(1)] = 0.995) -> None:
        def average(averages: Sequence[Tensor], current: Sequence[Tensor], _: Tensor | int) -> None:
            steps = (
                self._latest_update_step
            )  # torch's count is on the device: to read it is to wait for that
            _average(averages, current, min(decay, (1 + steps) / (10 + steps)))

        super().__init__(multi_avg_fn=average)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin the average.

        Raises:
            ConfigError: The weights are not float32; in fewer digits an average would stand still.
        """
        if trainer.precision.endswith("-true") and trainer.precision != "32-true":
            problem = (
                f"must keep weights in float32 with callbacks=averaging, but is {trainer.precision}"
            )
            raise ConfigError("trainer.precision", problem)
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the average to where the weights are by now; Lightning made it before it moved them."""
        if self._average_model is not None:
            self._average_model.to(pl_module.device)

    @contextmanager
    def in_place(self, trainer: Trainer) -> Iterator[None]:
        """Inside, the trained module has the average in place of its weights."""
        self._swap_models(trainer.lightning_module)
        try:
            yield
        finally:
            self._swap_models(trainer.lightning_module)


@torch.no_grad()
def _average(averages: Sequence[Tensor], current: Sequence[Tensor], decay: float) -> None:
    if averages[0].is_floating_point():
        torch._foreach_lerp_(list(averages), list(current), 1 - decay)
    else:
        for average, tensor in zip(averages, current, strict=True):
            average.copy_(tensor)  # counters


@contextmanager
def averaged(trainer: Trainer) -> Iterator[None]:
    """Inside, the trained module has the average of its weights, if the training keeps one: for what is written.

    Lightning does so for whole states alone, not where `save_weights_only` is asked for.
    """
    own = [callback for callback in trainer.callbacks if isinstance(callback, AveragedWeights)]  # type: ignore[attr-defined]
    if not own:
        yield
        return
    with own[0].in_place(trainer):
        yield
