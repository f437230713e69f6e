"""Which models; settings."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Lt
from tqdm import tqdm

from src.core.errors import ConfigError, UserError
from src.core.files import expanded
from src.deployment.description import Description
from src.deployment.runtimes.files import FORMATS, RuntimeName

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from src.tracking.store import Store


QUERIES, SECONDS = 1024, 10.0  # of each model at the least; a run of fewer is labelled
BELOW = "Below the 1,024 queries and 10 s a model that this benchmark asks for (MLPerf Inference Mobile: 60 s)"


@dataclass
class BenchmarkSettings:
    """What is measured, how long, and where it goes."""

    run: str | list[str] | None = None
    file: str | list[str] | None = None
    join: str | None = None
    runtime: RuntimeName | list[RuntimeName] = "eager"
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
                "out",
                f"{self.out} would be the CSV, which goes beside the JSON: name that, {file.stem}.json",
            )
        if not file.name or any(
            each.exists() and not each.is_file() for each in (file, file.with_suffix(".csv"))
        ):
            raise ConfigError(
                "out",
                f"{self.out} is no file that can be written anew; name one such as result.json",
            )
        if any(each.exists() and file.exists() and file.samefile(each) for each in self.files):
            raise ConfigError(
                "out", f"{self.out} is a model, which would be lost; name another file"
            )
        return file

    @property
    def runtimes(self) -> list[RuntimeName]:
        """Each once, in the order typed."""
        return list(
            dict.fromkeys(self.runtime if isinstance(self.runtime, list) else [self.runtime])
        )

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
            ConfigError: Nothing to measure, a file to join beside something to measure, or cores
                that are not there.
        """
        if self.join and (self.runs or self.files):
            raise ConfigError(
                "join", "brings in a file and measures nothing: leave out run= and file="
            )
        if not (self.join or self.runs or self.files):
            raise ConfigError(
                "run",
                "name runs or a study, as in run=3f2a9c, or an exported model, as in file=m.onnx",
            )
        there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else self.cores
        if self.cores and there and self.cores > there:
            raise ConfigError(
                "cores",
                f"must be at most {there}, which are here to emulate with, but got {self.cores}",
            )


def _listed(value: str | list[str] | None) -> list[str]:
    """One value or a list as a list, without the empty ones."""
    values = value if isinstance(value, list) else [value]
    return [each.strip() for each in values if each is not None and each.strip()]


SUFFIXES: dict[str, RuntimeName] = {".onnx": "onnx", ".pte": "executorch", ".tflite": "litert"}


@dataclass(frozen=True)
class BenchmarkModel:
    """A model in a runtime.

    Attributes:
        label: For people.
        runtime: Of the model.
        run_id: Of the run; of a file empty, until it is loaded.
        model: Name of the architecture; likewise.
        spec: What a worker has to load, see `src.deployment.benchmark.worker.Session`.
        size_mb: Of its file, 10^6 bytes.
        reason: Why there is nothing to load; empty: there is.
    """

    label: str
    runtime: RuntimeName
    run_id: str = ""
    model: str = ""
    spec: dict[str, Any] = field(default_factory=dict)
    size_mb: float | None = None
    reason: str = ""


def of_files(settings: BenchmarkSettings) -> list[BenchmarkModel]:
    """The exported models that are asked for, each once, see `of_file`; those of one name are told by their paths."""
    paths = list(dict.fromkeys(settings.files))
    names = Counter(path.name for path in paths)
    return [of_file(path, path.name if names[path.name] == 1 else str(path)) for path in paths]


def of_runs(store: "Store", settings: BenchmarkSettings, folder: Path) -> list[BenchmarkModel]:
    """Runs in each runtime that is asked for; a run whose model is a file in that file's own.

    What has to be exported is exported here, some seconds each. A model that cannot be is a subject
    with its reason.

    Args:
        store: Opened if it is not yet.
        settings: Which runs, which runtimes.
        folder: For what is exported; must stay until the measurement's end.

    Raises:
        UserError: No such run or study, one without a trained net, or a study without a front.
    """
    runs = list(dict.fromkeys(run_id for wanted in settings.runs for run_id in _ids(store, wanted)))
    asked = [(run_id, runtime) for run_id in runs for runtime in settings.runtimes]
    found: dict[tuple[str, str], BenchmarkModel] = {}
    for run_id, runtime in tqdm(asked, desc="exports", unit="model", leave=False, disable=None):
        subject = _of_run(store, run_id, runtime, folder)
        found.setdefault(
            (subject.run_id, subject.runtime), subject
        )  # of a compressed run one for all runtimes
    return list(found.values())


def _ids(store: "Store", wanted: str) -> Iterator[str]:
    """Of a run itself, of a trial's first seed, of the members of a study's front."""
    from src.deployment import trained as runs
    from src.reporting import collect
    from src.tracking import read as cache

    every = cache.cached_runs(store)
    if wanted not in collect.known_studies(every):
        yield runs.find(store, wanted).nets[0].run_id
        return
    study = collect.study(every, wanted, store)
    trials = study.trials
    if "tags.front" not in trials or not (trials["tags.front"] == "true").any():
        raise UserError(
            f"run={wanted}: this study has no front yet; python -m src.report study={wanted} finds it"
        )
    for run_id in trials.loc[trials["tags.front"] == "true", "run_id"]:
        yield runs.find(store, study.runs_of(run_id)[0]).run_id


def _of_run(store: "Store", run_id: str, runtime: RuntimeName, folder: Path) -> BenchmarkModel:
    from src.deployment import trained as load
    from src.deployment import trained as restore
    from src.tracking import read

    run = load.single(store, run_id)
    label = f"{run.model} {run.run_id[:8]}"
    file = load.deployed_file(store, run.run_id)
    try:
        if file is None and runtime not in FORMATS:
            checkpoint = read.artifact(store, run.run_id, restore.CHECKPOINT)
            found = of_net(
                run.config, load.describe(store, run), checkpoint, folder / run.run_id, runtime
            )
        else:
            found = of_file(file or load.write_file(store, run, runtime, folder), label)
    except UserError as error:
        return BenchmarkModel(
            label, runtime, run.run_id, run.model, reason=" ".join(str(error).split())
        )
    return replace(found, run_id=run.run_id, model=run.model)


def of_net(
    config: "DictConfig",
    description: Description,
    checkpoint: Path,
    folder: Path,
    runtime: RuntimeName,
) -> BenchmarkModel:
    """A trained net of torch's, laid into a folder, so that a worker needs no run store.

    Args:
        config: Of its run.
        description: Of it.
        checkpoint: Its weights.
        folder: New, or laid out for another runtime already.
        runtime: eager or compile.

    Raises:
        UserError: The folder cannot be written.
    """
    from omegaconf import OmegaConf

    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            OmegaConf.save(config, folder / "config.yaml")
            (folder / "description.json").write_text(description.to_json())
            shutil.copy(checkpoint, folder / "best.ckpt")
    except OSError as error:
        raise UserError(f"{folder}: the model cannot be laid out there ({error})") from error
    spec = {"runtime": runtime, "net": str(folder)}
    size_mb = checkpoint.stat().st_size / 1e6
    return BenchmarkModel(
        f"{description.model} {description.run_id[:8]}", runtime, spec=spec, size_mb=size_mb
    )


def of_file(path: Path, label: str) -> BenchmarkModel:
    """An exported model, in the runtime of its kind.

    Raises:
        UserError: The file is not there, or is of no kind that is known.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"file={path}: no kind of model that is known; known are {', '.join(SUFFIXES)}"
        )
    if not path.is_file():
        raise UserError(f"file={path}: no such file")
    runtime = SUFFIXES[path.suffix]
    spec = {"runtime": runtime, "file": str(path.resolve())}
    return BenchmarkModel(label, runtime, spec=spec, size_mb=path.stat().st_size / 1e6)
