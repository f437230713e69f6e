"""Exponential moving average of the weights: the average is validated, chosen and kept."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from src.core.errors import ConfigError


class AveragedWeights(WeightAveraging):
    """An exponential moving average of weights and normalisation statistics over training steps.

    The average starts as the weights after the first step. After n further steps it moves by 1 - d
    towards the weights, d = min(decay, (1 + n) / (10 + n)): the warm-up of TensorFlow's
    ExponentialMovingAverage (`num_updates`), without which early epochs would be judged by the
    initial weights. It spans about 1 / (1 - decay) steps; a decay of 0 turns averaging off.
    Averages often do better at no cost (Polyak & Juditsky, Acceleration of stochastic approximation
    by averaging, SIAM J. Control Optim. 1992, section 3; Izmailov et al., Averaging weights leads
    to wider optima and better generalization, UAI 2018).
    """

    def __init__(self, decay: Annotated[float, Ge(0), Lt(1)] = 0.995) -> None:
        @torch.no_grad()
        def average(averages: Sequence[Tensor], current: Sequence[Tensor], _: Tensor | int) -> None:
            # torch's own step count is on the device, and reading it would wait for the device
            steps = self._latest_update_step
            if averages[0].is_floating_point():
                weight = min(decay, (1 + steps) / (10 + steps))
                torch._foreach_lerp_(list(averages), list(current), 1 - weight)
            else:
                for average, counter in zip(averages, current, strict=True):
                    average.copy_(counter)

        super().__init__(multi_avg_fn=average)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the average.

        Raises:
            ConfigError: The weights are not float32; in lower precision the small steps of the
                average would be rounded away.
        """
        if trainer.precision.endswith("-true") and trainer.precision != "32-true":
            problem = "must keep weights in float32 with callbacks=averaging, but is "
            raise ConfigError("trainer.precision", problem + trainer.precision)
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the average to the module's device; Lightning creates it on the CPU."""
        if self._average_model is not None:
            self._average_model.to(pl_module.device)


@contextmanager
def averaged(trainer: Trainer) -> Iterator[None]:
    """Inside, the trained module holds the average of its weights, if the training keeps one.

    Lightning does so itself only for full states, not where `save_weights_only` is asked for.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    averages = [callback for callback in callbacks if isinstance(callback, AveragedWeights)]
    for callback in averages:
        callback._swap_models(trainer.lightning_module)
    try:
        yield
    finally:
        for callback in averages:
            callback._swap_models(trainer.lightning_module)
