"""The values of conf/benchmark.yaml, which says what each means."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from src.deployment.runtime import Name
from src.errors import ConfigError
from src.paths import expanded

QUERIES, SECONDS = 1024, 10.0  # of each model at the least; a run of fewer is labelled
BELOW = "Below the 1,024 queries and 10 s a model that this benchmark asks for (MLPerf Inference Mobile: 60 s)"


@dataclass
class Settings:
    """What is measured, how long, and where it goes."""

    run: str | list[str] | None = None
    file: str | list[str] | None = None
    join: str | None = None
    runtime: Name | list[Name] = "eager"
    threads: Annotated[int, Ge(1)] = 1
    batch: Annotated[int, Ge(1)] = 1
    reference: str | None = None
    queries: Annotated[int, Ge(1)] = QUERIES
    seconds: Annotated[float, Ge(0)] = SECONDS
    warm_up_s: Annotated[float, Ge(0)] = 2.0
    turn_ms: Annotated[float, Gt(0)] = 20.0
    cold_starts: Annotated[int, Ge(1)] = 3
    jpeg_queries: Annotated[int, Ge(0)] = 256
    image: str | None = None
    cores: Annotated[int, Ge(1)] | None = None
    memory_mb: Annotated[int, Ge(16)] | None = None
    samples: Annotated[int, Ge(100)] = 1000
    level: Annotated[float, Gt(0), Lt(1)] = 0.95
    seed: Annotated[int, Ge(0)] = 0
    device: str | None = None
    folder: str = "reports"
    out: str | None = None
    publish: bool = True

    @property
    def runs(self) -> list[str]:
        """Ids of runs, or names of studies."""
        return _listed(self.run)

    @property
    def files(self) -> list[Path]:
        """Exported models."""
        return [expanded(name) for name in _listed(self.file)]

    @property
    def json(self) -> Path | None:
        """The file that is asked for; None: a new one in the folder.

        Raises:
            ConfigError: It cannot be one of JSON, with a CSV beside it.
        """
        if not self.out:
            return None
        file = expanded(self.out)
        if file.suffix.lower() == ".csv":
            raise ConfigError(
                "out", f"{self.out} would be the CSV, which goes beside the JSON: name that, {file.stem}.json"
            )
        if not file.name or any(each.exists() and not each.is_file() for each in (file, file.with_suffix(".csv"))):
            raise ConfigError("out", f"{self.out} is no file that can be written anew; name one such as result.json")
        if any(each.exists() and file.exists() and file.samefile(each) for each in self.files):
            raise ConfigError("out", f"{self.out} is a model, which would be lost; name another file")
        return file

    @property
    def runtimes(self) -> list[Name]:
        """Each once, in the order typed."""
        return list(dict.fromkeys(self.runtime if isinstance(self.runtime, list) else [self.runtime]))

    @property
    def short(self) -> bool:
        """Whether fewer queries or less time is asked for than a full measurement has."""
        return self.queries < QUERIES or self.seconds < SECONDS

    @property
    def emulation(self) -> str:
        """What of a smaller device is put on; empty: nothing."""
        parts = [f"{self.cores} core{'s' if self.cores != 1 else ''}"] if self.cores else []
        parts += [f"{self.memory_mb} MB"] if self.memory_mb else []
        return ", ".join(parts)

    def refuse_nothing(self) -> None:
        """Raise where nothing, or too much at once, is asked for.

        Raises:
            ConfigError: Nothing to measure, a file to join beside something to measure, or cores that are not there.
        """
        if self.join and (self.runs or self.files):
            raise ConfigError("join", "brings in a file and measures nothing: leave out run= and file=")
        if not (self.join or self.runs or self.files):
            raise ConfigError("run", "name runs or a study, as in run=3f2a9c, or an exported model, as in file=m.onnx")
        there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else self.cores
        if self.cores and there and self.cores > there:
            raise ConfigError("cores", f"must be at most {there}, which are here to emulate with, but got {self.cores}")


def _listed(value: str | list[str] | None) -> list[str]:
    """One value or a list as a list, without the empty ones."""
    values = value if isinstance(value, list) else [value]
    return [each.strip() for each in values if each is not None and each.strip()]
