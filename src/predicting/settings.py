"""The values of conf/predict.yaml, which says what each means."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from src.data.listing import IMAGE_SUFFIXES
from src.errors import ConfigError
from src.paths import expanded, is_there


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
        path = expanded(given)
        if not is_there(path):
            raise ConfigError("input", f"{given} is not there; name a picture, a folder or a CSV")
        return path

    @property
    def table(self) -> Path | None:
        """Where the CSV goes, `~` expanded; None: nowhere.

        Raises:
            ConfigError: It is a folder or a device, a picture, the very input, or the model.
        """
        if self.out is None:
            return None
        path = expanded(_given(self.out, "out", "name a CSV to write, or null for none"))
        if path.suffix.lower() in IMAGE_SUFFIXES:
            raise ConfigError("out", f"{self.out} is a picture's name; name a CSV")
        if not is_there(path):
            return path
        if not path.is_file():
            what = "a folder; name a CSV in it" if path.is_dir() else "no file that can be written anew; name a CSV"
            raise ConfigError("out", f"{self.out} is {what}")
        for key, read in (("input", self.pictures), ("model", expanded(self.model))):
            if is_there(read) and path.samefile(read):
                raise ConfigError("out", f"{self.out} is the {key}, which would be lost; name another file")
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
