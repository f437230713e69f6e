"""Which models a benchmark is about: those of runs, of a study's front, or of exported files."""

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from src.benchmarking.settings import Settings
from src.deployment.description import Description
from src.deployment.runtime import Name
from src.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from src.tracking.store import Store

SUFFIXES: dict[str, Name] = {".onnx": "onnx", ".pte": "executorch", ".tflite": "litert"}


@dataclass(frozen=True)
class Subject:
    """A model in a runtime.

    Attributes:
        label: For people.
        runtime: Of the model.
        run_id: Of the run; of a file empty, until it is loaded.
        model: Name of the architecture; likewise.
        spec: What a worker has to load, see `src.benchmarking.session.Session`.
        size_mb: Of its file, 10^6 bytes.
        reason: Why there is nothing to load; empty: there is.
    """

    label: str
    runtime: Name
    run_id: str = ""
    model: str = ""
    spec: dict[str, Any] = field(default_factory=dict)
    size_mb: float | None = None
    reason: str = ""


def of_files(settings: Settings) -> list[Subject]:
    """The exported models that are asked for, each once, see `of_file`; those of one name are told by their paths."""
    paths = list(dict.fromkeys(settings.files))
    names = Counter(path.name for path in paths)
    return [of_file(path, path.name if names[path.name] == 1 else str(path)) for path in paths]


def of_runs(store: "Store", settings: Settings, folder: Path) -> list[Subject]:
    """Runs in each runtime that is asked for; a run whose model is a file in that file's own.

    What has to be exported is exported here, some seconds each. A model that cannot be is a subject with its reason.

    Args:
        store: Opened if it is not yet.
        settings: Which runs, which runtimes.
        folder: For what is exported; must stay until the measurement's end.

    Raises:
        UserError: No such run or study, one without a trained net, or a study without a front.
    """
    runs = list(dict.fromkeys(run_id for wanted in settings.runs for run_id in _ids(store, wanted)))
    asked = [(run_id, runtime) for run_id in runs for runtime in settings.runtimes]
    found: dict[tuple[str, str], Subject] = {}
    for run_id, runtime in tqdm(asked, desc="exports", unit="model", leave=False, disable=None):
        subject = _of_run(store, run_id, runtime, folder)
        found.setdefault((subject.run_id, subject.runtime), subject)  # of a compressed run one for all runtimes
    return list(found.values())


def _ids(store: "Store", wanted: str) -> Iterator[str]:
    """Of a run itself, of a trial's first seed, of the members of a study's front."""
    from src.reporting import collect
    from src.tracking import cache
    from src.trained import runs

    every = cache.cached_runs(store)
    if wanted not in collect.known_studies(every):
        yield runs.find(store, wanted).nets[0].run_id
        return
    study = collect.study(every, wanted, store)
    trials = study.trials
    if "tags.front" not in trials or not (trials["tags.front"] == "true").any():
        raise UserError(f"run={wanted}: this study has no front yet; python -m src.report study={wanted} finds it")
    for run_id in trials.loc[trials["tags.front"] == "true", "run_id"]:
        yield runs.find(store, study.runs_of(run_id)[0]).run_id


def _of_run(store: "Store", run_id: str, runtime: Name, folder: Path) -> Subject:
    from src.tracking import read
    from src.trained import load, restore

    run = load.single(store, run_id)
    label = f"{run.model} {run.run_id[:8]}"
    file = load.deployed(store, run)
    try:
        if file is None and runtime in load.TORCH:
            checkpoint = read.artifact(store, run.run_id, restore.CHECKPOINT)
            found = of_net(run.config, load.describe(store, run), checkpoint, folder / run.run_id, runtime)
        else:
            found = of_file(file or load.write(store, run, runtime, folder), label)
    except UserError as error:
        return Subject(label, runtime, run.run_id, run.model, reason=" ".join(str(error).split()))
    return replace(found, run_id=run.run_id, model=run.model)


def of_net(config: "DictConfig", description: Description, checkpoint: Path, folder: Path, runtime: Name) -> Subject:
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
    return Subject(f"{description.model} {description.run_id[:8]}", runtime, spec=spec, size_mb=size_mb)


def of_file(path: Path, label: str) -> Subject:
    """An exported model, in the runtime of its kind.

    Raises:
        UserError: The file is not there, or is of no kind that is known.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"file={path}: no kind of model that is known; known are {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"file={path}: no such file")
    runtime = SUFFIXES[path.suffix]
    spec = {"runtime": runtime, "file": str(path.resolve())}
    return Subject(label, runtime, spec=spec, size_mb=path.stat().st_size / 1e6)
