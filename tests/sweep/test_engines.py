"""The same study on Ray, submitit, and a Ray cluster of two nodes with PostgreSQL."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from benchmarks.sweep.harness import STUDY, Setup, opened
from src.core.cli import ROOT
from src.sweep.executors.ray import RayExecutor
from src.sweep.storage import open_storage
from src.tracking import read
from src.tracking.store import Store

COMMAND = [
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice", [["ray"], ["slurm", "hydra.sweeper.executor.cluster=local"]], ids=["ray", "submitit"]
)
def test_real_trials_run_on_an_engine(tmp_path: Path, choice: list[str]) -> None:
    pytest.importorskip({"ray": "ray", "slurm": "submitit"}[choice[0]])
    environment = {**os.environ, "PARETODERM_CACHE": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = str(ROOT)
    for name in ("MLFLOW_TRACKING_URI", "HYDRA_FULL_ERROR"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "src.train", *COMMAND, f"hydra/sweeper/executor={choice[0]}"]
    done = subprocess.run(
        [*command, *choice[1:]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    storage = open_storage(f"sqlite:///{tmp_path}/mlruns/optuna.db")
    trials = optuna.load_study(study_name="shared", storage=storage).trials
    store = Store(folder=tmp_path / "mlruns")
    runs = read.runs(store, "tags.kind = 'run'").sort_values("tags.trial")
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE"]
    assert runs["status"].tolist() == ["FINISHED", "FINISHED"]
    for trial, (_, run) in zip(trials, runs.iterrows(), strict=True):
        assert trial.values == [
            run["metrics.best/val/balanced_accuracy"],
            run["metrics.efficiency/flops"],
        ]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two Ray nodes on this machine with a core each."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False)
        nodes.wait_for_nodes()
        yield nodes
    finally:
        nodes.shutdown()


@pytest.mark.slow
def test_a_study_on_two_nodes_with_postgresql_survives_the_loss_of_a_node(
    tmp_path: Path, fresh_postgres: str, cluster: Any
) -> None:
    """Both nodes run trials; the trial of the node that is lost is run again by the other one."""
    sweep, body = ("a=1,2", "b=4,5"), "stubs:train_on_two_nodes"
    setup = Setup(tmp_path, sweep, retries=1, body=body, storage=fresh_postgres)
    hangs = tmp_path / "trials" / "hangs"

    def remove_the_node_that_hangs(status: Any) -> None:
        node_id = hangs.read_text() if hangs.exists() else ""
        for node in cluster.list_all_nodes():
            if node.node_id == node_id:
                cluster.remove_node(node, allow_graceful=False)

    with opened(
        setup,
        lambda storage: RayExecutor(address=cluster.address, n_jobs=2),
        remove_the_node_that_hangs,
    ) as scheduler:
        status = scheduler.run()
    storage = open_storage(fresh_postgres)
    trials = storage.get_all_trials(storage.get_study_id_from_name(STUDY))
    assert len({trial.user_attrs["node"] for trial in trials}) == 2
    assert (status.counted, status.counts["complete"], status.put_back) == (4, 4, 1)
    (failed,) = (trial for trial in trials if trial.values is None)
    assert failed.number < 2
    assert failed.user_attrs["outcome"]["kind"] == "killed"
    assert sorted(trial.value for trial in trials if trial.values) == [0.014, 0.015, 0.024, 0.025]
