"""Which models a benchmark measures, and its settings."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Le, Lt
from tqdm import tqdm

from src.core.environment import available_cores
from src.core.errors import ConfigError, UserError
from src.core.files import expanded, output_file
from src.deployment.description import Description
from src.deployment.runtimes.formats import FORMATS, RuntimeName, format_of

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from src.tracking.store import Store

QUERIES, SECONDS = 1024, 10.0  # minimum for each model; a benchmark with less is labelled


@dataclass
class BenchmarkSettings:
    """The values of conf/command/benchmark.yaml, which explains them."""

    run: str | list[str] | None = None
    file: str | list[str] | None = None
    join: str | None = None
    runtime: RuntimeName | list[RuntimeName] = "eager"
    threads: Annotated[int, Ge(1), Le(1024)] = 1
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
        """Run ids or study names."""
        return _as_list(self.run)

    @property
    def files(self) -> list[Path]:
        """Exported models, without duplicates."""
        return list(dict.fromkeys(expanded(name) for name in _as_list(self.file)))

    @property
    def runtimes(self) -> list[RuntimeName]:
        """Runtimes without duplicates, in the order of the command line."""
        return list(dict.fromkeys(_as_list(self.runtime)))

    @property
    def emulation(self) -> str:
        """Limits of the emulated device, such as "1 core, 512 MB"; empty: no emulation."""
        parts = [f"{self.cores} core{'s' if self.cores != 1 else ''}"] if self.cores else []
        parts += [f"{self.memory_mb} MB"] if self.memory_mb else []
        return ", ".join(parts)

    @property
    def json_file(self) -> Path | None:
        """The requested output file; None: a new file in the folder.

        Raises:
            ConfigError: It cannot be a JSON file with a CSV file beside it.
        """
        if not self.out:
            return None
        file = output_file("out", self.out, [("a model", path) for path in self.files])
        if file.suffix.lower() == ".csv":
            problem = f"{self.out} would be the CSV, which is written beside the JSON"
            raise ConfigError("out", f"{problem}: name the JSON, {file.stem}.json")
        output_file("out", str(file.with_suffix(".csv")), [])
        return file

    def validate(self) -> None:
        """Check the settings that depend on each other or on this machine.

        Raises:
            ConfigError: Nothing to measure, a file to join beside models to measure, or more cores
                than this process may use.
        """
        if self.join and (self.runs or self.files):
            raise ConfigError("join", "adds a file and measures nothing: leave out run= and file=")
        if not (self.join or self.runs or self.files):
            raise ConfigError(
                "run",
                "name runs or a study, as in run=3f2a9c, or an exported model, as in file=m.onnx",
            )
        if self.cores and self.cores > available_cores():
            problem = f"must be at most {available_cores()}, the cores of this process"
            raise ConfigError("cores", f"{problem}, but got {self.cores}")
        _ = self.json_file


def _as_list(value: str | list[str] | None) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if text is not None and text.strip()]


@dataclass(frozen=True)
class BenchmarkModel:
    """A model in a runtime."""

    label: str  # shown to people
    runtime: RuntimeName
    run_id: str = ""  # empty for a file until it is loaded
    model: str = ""  # name of the architecture; empty for a file until it is loaded
    # What a worker loads, see `src.deployment.benchmark.worker.Session`.
    spec: dict[str, Any] = field(default_factory=dict)
    size_mb: float | None = None  # of the file, 10^6 bytes
    reason: str = ""  # why it cannot be loaded; empty if it can


def of_files(settings: BenchmarkSettings) -> list[BenchmarkModel]:
    """The requested exported models; files with equal names are labelled by their paths."""
    paths = settings.files
    names = Counter(path.name for path in paths)
    return [of_file(path, path.name if names[path.name] == 1 else str(path)) for path in paths]


def of_runs(store: "Store", settings: BenchmarkSettings, folder: Path) -> list[BenchmarkModel]:
    """The requested runs in each requested runtime, exported to `folder` where necessary.

    The folder must exist until the measurement ends. A run whose model is a file has only the
    runtime of that file. A model that cannot be exported has a `reason`.

    Raises:
        UserError: No such run or study, a run without a trained net, or a study without a front.
    """
    from src.deployment import trained
    from src.tracking import read

    runs, ids = read.cached_runs(store), dict[str, None]()
    for name in settings.runs:
        of_study = runs[read.texts(runs, "tags.study") == name]
        # a run, the first seed of a trial, or those of the members of a study's front
        members = list(of_study.loc[read.texts(of_study, "tags.front") == "true", "run_id"])
        if len(of_study) and not members:
            command = store.report_command(name)
            raise UserError(f"run={name}: this study has no front yet; compute it with {command}")
        for run_id in members or [name]:
            ids[trained.find(store, run_id).nets[0].run_id] = None
    pairs = [(run_id, runtime) for run_id in ids for runtime in settings.runtimes]
    models: dict[tuple[str, str], BenchmarkModel] = {}
    for run_id, runtime in tqdm(pairs, desc="exports", unit="model", leave=False, disable=None):
        model = _of_run(store, run_id, runtime, folder)
        models.setdefault((model.run_id, model.runtime), model)
    return list(models.values())


def _of_run(store: "Store", run_id: str, runtime: RuntimeName, folder: Path) -> BenchmarkModel:
    from src.deployment import trained
    from src.tracking import read

    run = trained.single(store, run_id)
    label = f"{run.model} {run.run_id[:8]}"
    file = trained.deployed_file(store, run.run_id)
    try:
        if file is None and runtime not in FORMATS:
            checkpoint = read.artifact(store, run.run_id, trained.CHECKPOINT)
            model = of_net(run.config, trained.describe(store, run), checkpoint, runtime)
        else:
            model = of_file(file or trained.write_file(store, run, runtime, folder), label)
    except UserError as error:
        model = BenchmarkModel(label, runtime, reason=" ".join(str(error).split()))
    return replace(model, run_id=run.run_id, model=run.model)


def of_net(
    config: "DictConfig", description: Description, checkpoint: Path, runtime: RuntimeName
) -> BenchmarkModel:
    """A trained torch net, by the recorded config of its run and its checkpoint."""
    label = f"{description.model} {description.run_id[:8]}"
    spec = {"runtime": runtime, "config": config, "description": description}
    spec["checkpoint"] = str(checkpoint.resolve())
    return BenchmarkModel(label, runtime, spec=spec, size_mb=checkpoint.stat().st_size / 1e6)


def of_file(path: Path, label: str) -> BenchmarkModel:
    """An exported model in the runtime of its format.

    Raises:
        UserError: No such file, or an unknown format.
    """
    try:
        form = format_of(path)
    except UserError as error:
        raise UserError(f"file={error}") from None
    if not path.is_file():
        raise UserError(f"file={path}: no such file")
    spec = {"runtime": form.name, "file": str(path.resolve())}
    return BenchmarkModel(label, form.name, spec=spec, size_mb=path.stat().st_size / 1e6)
