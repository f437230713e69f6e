"""The values of conf/predict.yaml, which says what each means."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from src.errors import ConfigError


@dataclass
class Settings:
    """Which model looks at which pictures, and what is written."""

    named: str | None = None
    input: str | None = None
    out: str | None = "predictions.csv"
    unsure_below: Annotated[float, Ge(0), Le(1)] | None = None
    gradcam: bool | str = False
    threads: Annotated[int, Ge(1)] | None = None
    batch_size: Annotated[int, Ge(1)] = 64

    @property
    def model(self) -> str:
        """What names the model.

        Raises:
            ConfigError: Nothing does.
        """
        return _given(self.named, "model", "name a run, a registered model or an exported file, as in model=3f2a9c")

    @property
    def pictures(self) -> Path:
        """Picture, folder or CSV, `~` expanded.

        Raises:
            ConfigError: None is named, or it is not there.
        """
        given = _given(self.input, "input", "name a picture, a folder or a CSV, as in input=pictures/")
        path = Path(given).expanduser()
        if not path.exists():
            raise ConfigError("input", f"{given} is not there; name a picture, a folder or a CSV")
        return path

    @property
    def table(self) -> Path | None:
        """Where the CSV goes, `~` expanded; None: nowhere.

        Raises:
            ConfigError: It is a folder, or the very input.
        """
        if self.out is None:
            return None
        path = Path(_given(self.out, "out", "name a CSV to write, or null for none")).expanduser()
        if path.is_dir():
            raise ConfigError("out", f"{self.out} is a folder; name a CSV in it")
        if path.exists() and path.samefile(self.pictures):
            raise ConfigError("out", f"{self.out} is the input, which would be lost; name another file")
        return path

    @property
    def processors(self) -> int:
        """Threads that decode, and that the model's runtime takes."""
        return self.threads or (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )


def _given(value: str | None, key: str, wanted: str) -> str:
    if value is None or not value.strip():
        raise ConfigError(key, wanted)
    return value.strip()
