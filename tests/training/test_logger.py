"""Lightning's metrics reach the run; its parameters and its end stay with the run's owner."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from quiet_trainer import quiet_trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from src.tracking.run import Run
from src.tracking.store import Store
from src.training.progress import RunLogger


class Line(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.save_hyperparameters({"secret": 1})

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        self.log("train/steps", float(self.global_step), on_step=True, on_epoch=False)
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("val/epoch_squared", float(self.current_epoch**2))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(run: Run | None, folder: Path) -> None:
    data = DataLoader(TensorDataset(torch.ones(8, 1)), batch_size=2)
    logger = RunLogger(run)
    trainer = quiet_trainer(3, logger=logger, log_every_n_steps=1, default_root_dir=folder)
    trainer.fit(Line(), data, data)


def test_a_fit_logs_its_metrics_and_leaves_the_run_to_its_owner(
    store: Store, tmp_path: Path
) -> None:
    with Run.start(store, "fit", params={"width": 1}) as run:
        fit(run, tmp_path)
        assert store.client.get_run(run.id).info.status == "RUNNING"
        logger = RunLogger(run)
        assert (logger.name, logger.version) == ("fit", run.id)
    data = store.client.get_run(run.id).data
    assert data.params == {"width": "1"}
    points = {
        name: [(point.step, point.value) for point in store.client.get_metric_history(run.id, name)]
        for name in data.metrics
    }
    assert points == {
        "train/steps": [(step, float(step)) for step in range(12)],
        "val/epoch_squared": [(3, 0.0), (7, 1.0), (11, 4.0)],
    }
    fit(None, tmp_path)  # a process without a run logs nothing
    assert RunLogger(None).name is None
