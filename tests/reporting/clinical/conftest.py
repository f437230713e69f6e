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
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from clinical_cases import made_up, people
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from mlflow.tracking._tracking_service import utils as mlflow_utils
from omegaconf import DictConfig

from src import evaluate, train
from src.core.files import CONF
from src.deployment import trained as runs
from src.metrics.settings import AuditSettings
from src.reporting.clinical import plots
from src.reporting.clinical.audit import audit
from src.reporting.clinical.evaluate import other_data
from src.reporting.clinical.results import ClinicalAudit, EvaluateSettings, Evaluation
from src.tracking import read
from src.tracking.run import Run
from src.tracking.store import Store

from .small_world import OnIsic, SmallStore, write_ham10000, write_isic2019, write_siim2020

LEAK = "The split leaks: lesions are on both sides."
TRAINING = "model=custom model.image_size=32 model.net.width=4 efficiency=fast data=ham10000"
TRAINING += " trainer=cpu threads=1 trainer.max_epochs=1"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> SmallStore:
    """Made once, by `src.train` in this process; tests that write take a copy."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "mlruns").mkdir()
    shutil.copy(empty_database, folder / "mlruns" / "mlflow.db")
    write_ham10000(folder / "ham")
    write_isic2019(folder / "isic", folder / "ham")
    write_siim2020(folder / "siim")
    with pytest.MonkeyPatch.context() as patch, untouched_process():
        enter(folder, folder / "cache", patch)
        for seed, test in ((0, "true"), (1, "false")):
            arguments = [*TRAINING.split(), f"data.root={folder / 'ham'}"]
            patch.setattr(sys, "argv", ["train", *arguments, f"seed={seed}", f"test={test}"])
            train.main()
    store = Store(folder=folder / "mlruns")
    ids = read.runs(store).set_index("tags.seed")["run_id"]
    tags = {"kind": "trial", "study": "", "model": "custom", "data": "ham10000"}
    with Run.start(store, "custom", tags) as trial:
        pass
    for seed in ("0", "1"):
        Run.attach(store, ids[seed]).move_below(trial)
    return SmallStore(folder, folder, ids["0"], ids["1"], trial.id)


@pytest.fixture(scope="session")
def audited() -> ClinicalAudit:
    """240 made-up images, two nets, validation, metadata and a warning."""
    test = made_up(11)
    settings = AuditSettings(samples=100)
    return audit(test, made_up(12), people(test[0]), settings, warnings=[LEAK])


@contextlib.contextmanager
def untouched_process() -> Iterator[None]:
    """Restore logging, signals, environment and threads, which commands change."""
    terminate, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    root, environment = logging.getLogger(), dict(os.environ)
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, terminate)
        root.handlers, root.level = handlers, level
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(environment)


def enter(folder: Path, cache: Path, patch: pytest.MonkeyPatch) -> None:
    patch.chdir(folder)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    patch.setenv("PARETODERM_CACHE", str(cache))


def copy_of(trained: SmallStore, folder: Path, patch: pytest.MonkeyPatch) -> SmallStore:
    """A copy of the store that may be written to; the data stay where they are."""
    shutil.copytree(trained.folder / "mlruns", folder / "mlruns")
    # MLflow remembers where the artifacts of a run are, by its id alone
    patch.setattr(mlflow_utils, "_artifact_repos_cache", OrderedDict())
    return replace(trained, folder=folder)


def command(small: SmallStore, patch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """`python -m src.evaluate <arguments>` in this process: status and output."""
    enter(small.folder, small.data / "cache", patch)

    def run(*arguments: str) -> tuple[int, str]:
        patch.setattr(sys, "argv", ["evaluate", "clinical.samples=100", *arguments])
        status, output = 0, io.StringIO()
        redirected = contextlib.redirect_stdout(output), contextlib.redirect_stderr(output)
        with redirected[0], redirected[1], untouched_process():
            try:
                evaluate.main()
            except SystemExit as end:
                status = int(end.code or 0)
        return status, output.getvalue()

    return run


@pytest.fixture
def small(trained: SmallStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallStore:
    return copy_of(trained, tmp_path, monkeypatch)


@pytest.fixture
def evaluated(small: SmallStore, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    return command(small, monkeypatch)


@pytest.fixture
def composed(trained: SmallStore) -> Callable[..., DictConfig]:
    """The `data` part of conf/command/evaluate.yaml with overrides."""

    def compose_one(*overrides: str) -> DictConfig:
        GlobalHydra.instance().clear()
        cache = f"data.cache_dir={trained.folder / 'cache'}"
        with initialize_config_dir(str(CONF), version_base="1.3"):
            data: DictConfig = compose("command/evaluate", [*overrides, cache]).data
        return data

    return compose_one


@pytest.fixture
def on_other_data(
    small: SmallStore, composed: Callable[..., DictConfig]
) -> Callable[..., Evaluation]:
    """The run `single` on the data that overrides name, without pages, pictures and a record."""

    def evaluate_one(*overrides: str, **values: Any) -> Evaluation:
        store, settings = small.store.open(), EvaluateSettings(**values)
        run, clinical = runs.find(store, small.single), AuditSettings(samples=100)
        return other_data(composed(*overrides), run, settings, clinical, store)

    return evaluate_one


@pytest.fixture(scope="module")
def isic(trained: SmallStore, tmp_path_factory: pytest.TempPathFactory) -> OnIsic:
    with pytest.MonkeyPatch.context() as patch:
        small = copy_of(trained, tmp_path_factory.mktemp("isic"), patch)
        # seconds; those of the run's splits are drawn
        patch.setattr(plots, "write", lambda result, folder: None)
        data = ("data=isic2019", f"data.root={trained.folder / 'isic'}")
        status, output = command(small, patch)(f"run={small.trial}", *data, "verbose=true")
    assert status == 0, output
    folder = small.folder / "reports" / f"evaluation_{small.trial[:8]}_isic2019"
    return OnIsic(output, small, folder)
