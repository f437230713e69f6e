"""The main job around a training: what it refuses, what it inherits, and what it must not record."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from src import run as jobs
from src.core.cli import ROOT
from src.core.config import WITHOUT_EFFECT
from src.core.environment import config_hash
from src.core.errors import ConfigError
from src.tracking.run import Run
from src.tracking.store import Store
from src.training import loop

URI = "postgresql://me:s3cret@db.example.org:5432/runs"


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(overrides))


def refused(config: DictConfig) -> bool:
    """Whether such a trial is refused, for its devices and nothing else."""
    try:
        jobs._refuse_several_devices(config)
    except ConfigError as error:
        return error.key == "trainer.devices"
    return False


@pytest.mark.parametrize(
    "override",
    [
        "devices=2",
        "devices=[0,1]",
        "devices='2'",
        "strategy=ddp",
        "strategy=ddp_spawn",
        "num_nodes=2",
    ],
)
def test_a_trial_on_several_devices_is_refused(override: str) -> None:
    with pytest.raises(
        ConfigError, match="trainer.devices: a trial of a study trains on one device"
    ):
        jobs._refuse_several_devices(composed(f"++trainer.{override}"))


@pytest.mark.parametrize(
    "override", ["devices=1", "devices=[0]", "devices=[1]", "devices=auto", "devices=-1"]
)
def test_one_device_is_accepted(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    accelerator = "cpu" if override in ("devices=auto", "devices=-1") else "gpu"
    assert not refused(composed(f"++trainer.{override}", f"++trainer.accelerator={accelerator}"))


@pytest.mark.parametrize("devices", ["auto", "-1"])
@pytest.mark.parametrize(("count", "several"), [(0, False), (1, False), (2, True)])
def test_all_gpus_are_several_where_there_are_several(
    monkeypatch: pytest.MonkeyPatch, devices: str, count: int, several: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    config = composed(f"++trainer.devices={devices}", "++trainer.accelerator=auto")
    assert refused(config) == several


@pytest.mark.parametrize("name", ["auto", "cpu", "gpu"])
def test_every_trainer_for_one_device_may_be_a_trials(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert not refused(composed(f"trainer={name}"))


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (URI, "postgresql://me:***@db.example.org:5432/runs"),
        ("postgresql+psycopg://me:p:w/d@h/runs", "postgresql+psycopg://me:***@h/runs"),
        ("https://me:s3cret@mlflow.example.org", "https://me:***@mlflow.example.org"),
        ("https://mlflow.example.org:5000", "https://mlflow.example.org:5000"),
        ("sqlite:////data/mlruns/mlflow.db", "sqlite:////data/mlruns/mlflow.db"),
        (None, None),
    ],
)
def test_a_password_is_masked_and_all_else_stays(uri: str | None, shown: str | None) -> None:
    plain = {"tracking": {"uri": uri, "experiment": "e"}, "seed": 3}
    assert jobs.public(plain) == {"tracking": {"uri": shown, "experiment": "e"}, "seed": 3}
    assert plain["tracking"] == {"uri": uri, "experiment": "e"}


def test_a_config_that_could_not_be_resolved_has_nothing_to_record() -> None:
    assert jobs.public({}) == {}


def test_neither_parameters_nor_config_yaml_hold_the_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = composed(f"tracking.uri={URI}")
    store = Store(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="e", folder=tmp_path)
    net = SimpleNamespace(net=None, image_size=32)
    monkeypatch.setattr(loop, "build", lambda config: SimpleNamespace(classifier=net, data=None))
    monkeypatch.setattr(jobs, "static_cost", lambda net, size: {})
    written: dict[str, Any] = {}

    class EnoughError(Exception):
        pass

    def note(run: Run, content: str, name: str) -> None:
        written[name] = content
        raise EnoughError

    monkeypatch.setattr(Run, "text", note)
    _, plain, problem = jobs._checked(config, [], store)
    assert problem is None
    with (
        pytest.raises(EnoughError),
        jobs._start(store, config, plain, ["seed=0"], jobs.RunContext()) as run,
    ):
        jobs.record(config, tmp_path, ["seed=0"], run)
    assert "postgresql://me:***@db.example.org" in written["config.yaml"]
    assert "s3cret" not in written["config.yaml"]
    assert config.tracking.uri == URI  # the job itself still needs it
    recorded = store.client.get_run(run.id).data
    assert recorded.params["tracking.uri"] == "postgresql://me:***@db.example.org:5432/runs"
    assert "s3cret" not in str(recorded.params) + str(recorded.tags)
    assert recorded.tags["config_hash"] == config_hash(plain, WITHOUT_EFFECT)


def test_a_password_that_was_typed_is_not_recorded_with_the_command(tmp_path: Path) -> None:
    store = Store(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="e", folder=tmp_path)
    config = composed(f"tracking.uri={URI}")
    _, plain, _ = jobs._checked(config, [], store)
    with jobs._start(
        store, config, plain, [f"tracking.uri={URI}", "seed=0"], jobs.RunContext()
    ) as run:
        pass
    tags = store.client.get_run(run.id).data.tags
    assert "s3cret" not in str(tags)
    assert tags["overrides"].endswith(" seed=0")
