"""A small store with trained runs, and `python -m src.evaluate` in this process."""

import contextlib
import io
import logging
import os
import shutil
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from mlflow.tracking._tracking_service import utils as mlflow_utils
from omegaconf import DictConfig

from src import evaluate, train
from src.core.cli import ROOT
from src.deployment import trained as runs
from src.metrics.settings import AuditSettings as Clinical
from src.reporting.clinical import plots
from src.reporting.clinical.evaluate import other_data
from src.reporting.clinical.results import EvaluateSettings, Evaluation
from src.tracking import read
from src.tracking.run import Run
from src.tracking.store import Store

from .small_world import OnIsic, Place, write_isic2019, write_own, write_siim2020


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Place:
    """Made once, by `src.train` in this process; tests that write take a copy."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "mlruns").mkdir()
    shutil.copy(empty_database, folder / "mlruns" / "mlflow.db")
    write_own(folder / "ham")
    write_isic2019(folder / "isic", folder / "ham")
    write_siim2020(folder / "siim")
    with pytest.MonkeyPatch.context() as patch, untouched_process():
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("PARETODERM_CACHE", str(folder / "cache"))
        common = [
            "model=custom",
            "model.image_size=32",
            "model.net.width=4",
            "efficiency=fast",
            "data=ham10000",
            "trainer=cpu",
            "threads=1",
        ]
        common += [f"data.root={folder / 'ham'}", "trainer.max_epochs=1"]
        for seed, test in ((0, "true"), (1, "false")):
            patch.setattr(sys, "argv", ["train", *common, f"seed={seed}", f"test={test}"])
            train.main()
    store = Store(folder=folder / "mlruns")
    ids = read.runs(store).set_index("tags.seed")["run_id"]
    with Run.start(
        store, "custom", {"kind": "trial", "study": "", "model": "custom", "data": "ham10000"}
    ) as trial:
        pass
    for seed in ("0", "1"):
        Run.attach(store, ids[seed]).move_below(trial)
    return Place(folder, ids["0"], ids["1"], trial.id)


@contextlib.contextmanager
def untouched_process() -> Iterator[None]:
    """Restore logging, signals, environment and threads, which commands change."""
    signalled, root, threads = (
        signal.getsignal(signal.SIGTERM),
        logging.getLogger(),
        torch.get_num_threads(),
    )
    handlers, level, environment = root.handlers[:], root.level, dict(os.environ)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signalled)
        root.handlers, root.level = handlers, level
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(environment)


def copy_of(trained: Place, folder: Path, patch: pytest.MonkeyPatch) -> Place:
    """A copy of the store that may be written to; the data stay where they are."""
    shutil.copytree(trained.folder / "mlruns", folder / "mlruns")
    # MLflow remembers where the artifacts of a run are, by its id alone
    patch.setattr(mlflow_utils, "_artifact_repos_cache", OrderedDict())
    return Place(folder, trained.single, trained.untested, trained.trial)


def command(
    place: Place, trained: Place, patch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """`python -m src.evaluate <arguments>` in this process: status and output."""
    patch.chdir(place.folder)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    patch.setenv("PARETODERM_CACHE", str(trained.folder / "cache"))

    def run(*arguments: str) -> tuple[int, str]:
        patch.setattr(sys, "argv", ["evaluate", "clinical.samples=100", *arguments])
        status, said = 0, io.StringIO()
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            untouched_process(),
        ):
            try:
                evaluate.main()
            except SystemExit as end:
                status = int(end.code or 0)
        return status, said.getvalue()

    return run


@pytest.fixture
def place(trained: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return copy_of(trained, tmp_path, monkeypatch)


@pytest.fixture
def evaluated(
    place: Place, trained: Place, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    return command(place, trained, monkeypatch)


@pytest.fixture
def composed(trained: Place) -> Callable[..., DictConfig]:
    """The `data` part of conf/command/evaluate.yaml with overrides."""

    def compose_one(*overrides: str) -> DictConfig:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            data: DictConfig = compose(
                "command/evaluate", [*overrides, f"data.cache_dir={trained.folder / 'cache'}"]
            ).data
        return data

    return compose_one


@pytest.fixture
def on_other_data(place: Place, composed: Callable[..., DictConfig]) -> Callable[..., Evaluation]:
    """The run `single` on the data that overrides name, without pages, pictures and a record."""

    def make_one(*overrides: str, **settings: Any) -> Evaluation:
        store = place.store.open()
        found = runs.find(store, place.single)
        return other_data(
            composed(*overrides), found, EvaluateSettings(**settings), Clinical(samples=100), store
        )

    return make_one


@pytest.fixture(scope="module")
def isic(trained: Place, tmp_path_factory: pytest.TempPathFactory) -> OnIsic:
    with pytest.MonkeyPatch.context() as patch:
        place = copy_of(trained, tmp_path_factory.mktemp("isic"), patch)
        patch.setattr(
            plots, "write", lambda found, folder: []
        )  # seconds; the own splits' are drawn
        status, said = command(place, trained, patch)(
            f"run={place.trial}", "data=isic2019", f"data.root={trained.folder / 'isic'}"
        )
    assert status == 0, said
    return OnIsic(said, place, place.folder / "reports" / f"evaluation_{place.trial[:8]}_isic2019")
