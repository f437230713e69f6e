"""The same study, the same trial code, on every executor: real Ray, submitit, workers over a real PostgreSQL server."""

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from src.core.cli import ROOT
from src.sweep.storage import open_storage
from src.tracking import read
from src.tracking.store import Store

STUDY = [
    "-m",
    "model.net.width=4,8",
    "efficiency=fast",
    "data.source.lesions=120",
    "data.batch_size=16",
    "model.image_size=32",
    "trainer.max_epochs=2",
    "hydra.sweeper.study_name=shared",
    "hydra.sweeper.n_jobs=2",
]


def start(folder: Path, module: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PARETODERM_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    for name in ("MLFLOW_TRACKING_URI", "HYDRA_FULL_ERROR"):
        environment.pop(name, None)
    line = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(
        line,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def check(folder: Path, storage: str) -> None:
    """Two trials, complete, and MLflow agrees."""
    trials = optuna.load_study(study_name="shared", storage=open_storage(storage)).trials
    runs = read.runs(Store(folder=folder / "mlruns"), "tags.kind = 'run'").sort_values("tags.trial")
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE"]
    assert runs["status"].tolist() == ["FINISHED", "FINISHED"]
    for trial, (_, run) in zip(trials, runs.iterrows(), strict=True):
        assert trial.values == [
            run["metrics.best/val/balanced_accuracy"],
            run["metrics.efficiency/flops"],
        ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice", [["ray"], ["slurm", "hydra.sweeper.executor.cluster=local"]], ids=["ray", "submitit"]
)
def test_trials_run_on_an_engine_for_many_machines(tmp_path: Path, choice: list[str]) -> None:
    pytest.importorskip({"ray": "ray", "slurm": "submitit"}[choice[0]])
    process = start(
        tmp_path, "src.train", *STUDY, f"hydra/sweeper/executor={choice[0]}", *choice[1:]
    )
    said = process.communicate(timeout=280)[0]
    assert process.returncode == 0, said
    check(tmp_path, f"sqlite:///{tmp_path}/mlruns/optuna.db")


@pytest.mark.slow
def test_two_workers_serve_one_study_through_postgresql(
    tmp_path: Path, fresh_postgres: str
) -> None:
    storage = f"storage={fresh_postgres}"
    owner = start(
        tmp_path, "src.train", *STUDY, f"hydra.sweeper.{storage}", "hydra/sweeper/executor=workers"
    )
    workers = [
        start(tmp_path, "src.worker", storage, "n_jobs=1", "idle_exit_s=60") for _ in range(2)
    ]
    said = owner.communicate(timeout=280)[0]
    for worker in workers:
        worker.terminate()
    served = [worker.communicate(timeout=60)[0] for worker in workers]
    assert owner.returncode == 0, said
    check(tmp_path, fresh_postgres)
    assert sum(text.count("trial 0") > 0 for text in served) == 1, served
    assert sum(text.count("trial 1") > 0 for text in served) == 1, served
