"""An import saves half of the time of a small run, here and in the trials of this process.

The figures of a run are blank: tests/training/test_figures.py draws them, and tests/test_run.py
trains in a process that does not import this. Of MLflow's 70 migrations the newest is found once.
"""

import functools
from pathlib import Path
from typing import Any

from mlflow.store.db import utils
from PIL import Image

from src.sweep.executors import base
from src.training import figures


def save_blank(figure: None, path: Path) -> None:
    """In place of `figures.save`."""
    Image.new("RGB", (1, 1)).save(path)


def no_figure(*about: Any) -> None:
    """In place of the functions that build one."""


figures.save = save_blank  # type: ignore[assignment]
figures.confusion_matrix = figures.learning_curves = no_figure  # type: ignore[assignment]
utils._get_latest_schema_revision = functools.cache(utils._get_latest_schema_revision)
utils._get_latest_schema_revision()
base.MODULES = (*base.MODULES, __name__)
