import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from src.checkpoint import BestEpoch, StopEarly, load_weights
from src.errors import ConfigError, UserError
from src.last_state import LastState


class Counter(LightningModule):
    """Its one weight counts the epochs; its validation metric is told beforehand."""

    def __init__(self, values: list[float], losses: list[float] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.values = values
        self.losses = losses or [1.0] * len(values)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.log("train/loss", self.losses[self.current_epoch], on_step=False, on_epoch=True)
        return -self.weight.sum()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log_dict({"val/auroc": self.values[self.current_epoch], "val/loss": -self.values[self.current_epoch]})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(
    folder: Path,
    values: list[float],
    metric: str,
    has_validation: bool = True,
    losses: object = None,
    more: Sequence[Callback] = (),
    kind: type[Counter] = Counter,
) -> BestEpoch:
    best = BestEpoch(metric, folder, has_validation)
    loader = DataLoader(TensorDataset(torch.zeros(1, 1)))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=len(values),
        callbacks=[best, *more],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(kind(values, losses), loader, loader if has_validation else None)  # type: ignore[arg-type]
    return best


@pytest.mark.parametrize("metric", ["val/auroc", "val/loss"])
def test_best_epoch_is_kept_whichever_way_is_better(tmp_path: Path, metric: str) -> None:
    best = fit(tmp_path, [0.5, 0.9, 0.7], metric)
    assert best.epoch == 1
    assert best.chosen_by == metric
    assert [file.name for file in tmp_path.iterdir()] == ["best.ckpt"]
    module = Counter([0.0])
    load_weights(module, best.best_model_path)
    assert module.weight.item() == 2  # after two epochs
    assert [figures["val/auroc"] for figures in best.history] == pytest.approx([0.5, 0.9, 0.7])


def test_without_validation_the_last_epoch_is_kept_and_said(tmp_path: Path) -> None:
    best = fit(tmp_path, [0.9, 0.5, 0.1], "val/auroc", has_validation=False)
    assert best.chosen_by == "last epoch"
    module = Counter([0.0])
    load_weights(module, best.best_model_path)
    assert module.weight.item() == 3


def test_divergence_ends_training_with_its_epoch_and_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train/loss is nan in epoch 2: .*lower optimizer\.lr"):
        fit(tmp_path, [0.5, 0.5, 0.5], "val/auroc", losses=[1.0, float("nan"), 1.0])


def test_metric_that_nobody_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="val/balanced_acuracy"):
        BestEpoch("val/balanced_acuracy", tmp_path)


@pytest.mark.parametrize("kind", [BestEpoch, StopEarly])
@pytest.mark.parametrize("metric", ["test/auroc", "train/loss"])
def test_nothing_is_chosen_but_by_validation(kind: type, metric: str) -> None:
    with pytest.raises(ConfigError, match="must be of the validation split"):
        kind(metric)


def test_early_stopping_knows_which_way_is_better() -> None:
    assert StopEarly("val/loss").mode == "min"
    assert StopEarly("val/auroc").mode == "max"


def test_checkpoints_that_cannot_be_are_named_and_never_executed(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "executed",))  # type: ignore[return-value]

    module = Counter([0.0])
    with pytest.raises(UserError, match=r"nowhere\.ckpt: no such checkpoint"):
        load_weights(module, tmp_path / "nowhere.ckpt")
    (tmp_path / "bad.ckpt").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match=r"bad\.ckpt: not a checkpoint"):
        load_weights(module, tmp_path / "bad.ckpt")
    assert not (tmp_path / "executed").exists()
    torch.save({"state_dict": {"other": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"other\.ckpt: not a checkpoint of this network"):
        load_weights(module, tmp_path / "other.ckpt")


@pytest.mark.parametrize(("seconds", "written"), [(0, [1, 2, 3, 4]), (1e9, [4]), (None, [])])
def test_state_is_written_as_often_as_asked_and_after_the_last_epoch(
    tmp_path: Path, seconds: float | None, written: list[int]
) -> None:
    last = LastState(tmp_path, "any", seconds)
    seen = []

    class Watch(Checkpoint):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if last.path.exists():
                content = torch.load(last.path, weights_only=True)
                seen.append(content["state_dict"]["weight"].item())
                last.path.unlink()

    fit(tmp_path, [0.5] * 4, "val/auroc", more=[last, Watch()])
    assert seen == written
    assert [file.name for file in tmp_path.iterdir()] == ["best.ckpt"]


def test_state_that_early_stopping_makes_the_last_one_is_written(tmp_path: Path) -> None:
    last = LastState(tmp_path, "any", 1e9)
    best = fit(tmp_path, [0.9, 0.5, 0.4, 0.3], "val/auroc", more=[last, StopEarly("val/auroc", patience=1)])
    assert len(best.history) == 2
    assert torch.load(last.path, weights_only=True)["state_dict"]["weight"].item() == 2


def test_metric_that_is_undefined_in_an_epoch_has_no_figure_there(tmp_path: Path) -> None:
    class Sometimes(Counter):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if self.current_epoch == 0:
                self.log("val/precision/mel", 0.5)

    best = fit(tmp_path, [0.5, 0.6], "val/auroc", kind=Sometimes)
    assert ["val/precision/mel" in figures for figures in best.history] == [True, False]
