"""The average of the weights is validated and kept; training continues from the weights."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule
from quiet_trainer import quiet_trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from src.core.errors import ConfigError
from src.models.weights import load_weights
from src.training.averaging import AveragedWeights
from src.training.checkpoint import BestEpoch

STEPS = 4


class Climber(LightningModule):
    """Its one weight is the number of the step; a buffer is twice, a counter is as much."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.twice: Tensor
        self.counter: Tensor
        self.register_buffer("twice", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("counter", torch.zeros(1, dtype=torch.int64))
        self.trained: list[float] = []
        self.validated: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.trained.append(self.weight.item())
        self.twice += 2
        self.counter += 1
        self.log("train/loss", 1.0, on_step=False, on_epoch=True)
        return -self.weight.sum()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.validated.append(self.weight.item())
        self.log("val/auroc", self.current_epoch / STEPS)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fitted(folder: Path, decay: float, has_validation: bool, precision: str = "32-true") -> Climber:
    module = Climber()
    loader = DataLoader(TensorDataset(torch.zeros(1, 1)))
    best = BestEpoch("val/auroc", folder, has_validation)
    callbacks = [best, AveragedWeights(decay)]
    trainer = quiet_trainer(STEPS, precision=precision, callbacks=callbacks)
    trainer.fit(module, loader, loader if has_validation else None)
    load_weights(module, best.best_model_path)
    return module


def expected(decay: Fraction) -> list[Fraction]:
    """The average after each step of a weight 1, 2, 3 ..., by the formula of the class."""
    averages = [Fraction(1)]
    for step in range(1, STEPS):
        kept = min(decay, Fraction(1 + step, 10 + step))
        averages.append(kept * averages[-1] + (1 - kept) * (step + 1))
    return averages


@pytest.mark.parametrize("decay", [Fraction(0), Fraction(1, 5), Fraction(9, 10)])
@pytest.mark.parametrize("has_validation", [True, False])
def test_average_is_validated_and_kept_and_training_continues_from_the_weights(
    tmp_path: Path, decay: Fraction, has_validation: bool
) -> None:
    module = fitted(tmp_path, float(decay), has_validation)
    averages = [float(average) for average in expected(decay)]
    assert module.trained == [0, 1, 2, 3]
    assert module.validated == pytest.approx(averages if has_validation else [])
    assert module.weight.item() == pytest.approx(averages[-1])
    assert module.twice.item() == pytest.approx(2 * averages[-1])
    assert module.counter.item() == STEPS


def test_weights_are_float32_as_in_mixed_precision(tmp_path: Path) -> None:
    for precision in ("bf16-true", "64-true"):
        with pytest.raises(ConfigError, match="trainer.precision: must keep weights in float32"):
            fitted(tmp_path, 0.9, has_validation=True, precision=precision)
    module = fitted(tmp_path, 0.2, has_validation=True, precision="bf16-mixed")
    assert module.weight.item() == pytest.approx(float(expected(Fraction(1, 5))[-1]))
    # by hand: the warm-up is below the decay at first
    assert expected(Fraction(9, 10))[1] == Fraction(2, 11) + 2 * Fraction(9, 11)
