import shutil

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from src.tracking.run import Run
from src.tracking.store import Store
from src.training.logger import RunLogger


@pytest.fixture
def store(empty_database, tmp_path):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Store(uri=f"sqlite:///{tmp_path}/mlflow.db")


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.save_hyperparameters({"secret": 1})

    def training_step(self, batch, index):
        loss = self.layer(batch[0]).square().mean()
        self.log("train/steps", float(self.global_step), on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch, index):
        self.log("val/epoch_squared", float(self.current_epoch**2))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(run, folder):
    data = DataLoader(TensorDataset(torch.ones(8, 1)), batch_size=2)
    trainer = pl.Trainer(
        max_epochs=3,
        logger=RunLogger(run),
        log_every_n_steps=1,
        default_root_dir=folder,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Line(), data, data)


def test_a_fit_logs_its_metrics_and_leaves_the_run_to_its_owner(store, tmp_path):
    with Run.start(store, "fit", params={"own": 1}) as run:
        fit(run, tmp_path)
        assert store.client.get_run(run.id).info.status == "RUNNING"
    data = store.client.get_run(run.id).data
    assert set(data.metrics) == {"train/steps", "val/epoch_squared"}
    assert data.params == {"own": "1"}
    steps = store.client.get_metric_history(run.id, "train/steps")
    assert [(entry.step, entry.value) for entry in steps] == [
        (step, float(step)) for step in range(12)
    ]
    squares = store.client.get_metric_history(run.id, "val/epoch_squared")
    assert [(entry.step, entry.value) for entry in squares] == [(3, 0.0), (7, 1.0), (11, 4.0)]


def test_a_process_without_a_run_logs_nothing(tmp_path):
    fit(None, tmp_path)
    assert RunLogger(None).name is None


def test_name_and_version_are_the_runs(store):
    with Run.start(store, "named") as run:
        logger = RunLogger(run)
        assert (logger.name, logger.version) == ("named", run.id)
