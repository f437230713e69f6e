"""A store that tests read, and one that they may write to."""

import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
from card_records import Runs, record_all
from mlflow.tracking._tracking_service import utils as mlflow_utils

from src.carding import find
from src.carding.build import build
from src.carding.record import Card
from src.metrics.settings import AuditSettings as Clinical
from src.tracking.store import Store

QUICK = Clinical(samples=100, fixed=())


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Runs:
    """Made once; tests that write take `place`."""
    folder = tmp_path_factory.mktemp("cards")
    shutil.copy(empty_database, folder / "mlflow.db")
    store = Store(f"sqlite:///{folder}/mlflow.db", folder=folder).open()
    return record_all(store, folder / "ham")


@pytest.fixture(scope="session")
def card_of(runs: Runs) -> Callable[[str], Card]:
    """The card of a run, each made once."""
    made: dict[str, Card] = {}

    def of(run_id: str) -> Card:
        if run_id not in made:
            made[run_id] = build(runs.store, find.of_run(runs.store, run_id), QUICK)
        return made[run_id]

    return of


@pytest.fixture
def place(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """A copy of the store that may be written to."""
    shutil.copytree(runs.store.folder, tmp_path / "store", ignore=shutil.ignore_patterns("*.lock"))
    # MLflow remembers where the artifacts of a run are, by its id alone
    monkeypatch.setattr(mlflow_utils, "_artifact_repos_cache", OrderedDict())
    folder = tmp_path / "store"
    store = Store(f"sqlite:///{folder}/mlflow.db", folder=folder).open(create=False)
    return Runs(store, runs.trial, runs.seeds, runs.leaking, runs.compressed, runs.bare)
