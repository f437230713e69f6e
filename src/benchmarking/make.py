"""A benchmark from end to end: find the models, measure, write, publish, and tell the terminal."""

import datetime
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from src import entry
from src.benchmarking import subjects, tables
from src.benchmarking.device import this_device
from src.benchmarking.measure import measure, reference
from src.benchmarking.photograph import encoded
from src.benchmarking.publish import publish
from src.benchmarking.record import Result, Row, read
from src.benchmarking.settings import BELOW, Settings
from src.benchmarking.subjects import Subject
from src.config import check
from src.errors import UserError
from src.paths import expanded

if TYPE_CHECKING:
    from src.tracking.store import Store

console = Console(width=100)
IMPORTS = {  # by runtimes: what their start and memory have to be read with
    ("eager", "compile"): "eager, compile: loaded as the project does it; the imports are training's, Lightning too.",
    (
        "compile",
    ): "compile: compiled at its first start ever, later taken from a cache on disk, as in most of 3 starts.",
    ("executorch",): "executorch: its Python package imports torch, which is its start and memory; in C++ it is small.",
}
MOST, LEAST = 1.1, 0.8  # cores that a model keeps busy, beyond which something is to be said


def make(config: DictConfig) -> Result:
    """Make the benchmark that a config asks for, or join one that was made elsewhere.

    Args:
        config: A composed `conf/benchmark.yaml`.

    Returns:
        The benchmark, after it was written and published. If nothing could be measured, that is noted in
        `src.entry.failures` too.

    Raises:
        UserError: Bad input; the message names the culprit.
    """
    settings = _settings(config)
    if settings.join:
        return _join(expanded(settings.join), config)
    photograph, told = encoded(settings.image)
    _refuse_unwritable(settings)
    store = _store(config) if settings.runs else None
    with tempfile.TemporaryDirectory() as folder:
        found = [*subjects.of_runs(store, settings, Path(folder))] if store else []
        found += subjects.of_files(settings)
        _refuse_reference(found, settings)
        rows, measured_against = measure(found, settings, photograph)
    result = _result(rows, measured_against, settings, told)
    _show(result)  # before it is written: it took minutes
    file = _write(result, settings)
    _say(f"look: {file}")
    own = {each.run_id for each in found} - {""}  # of files the run is not asked for: they join later, if they shall
    if store and settings.publish:
        publish(result, file, store, own)
    elif not own and any(row.run_id for row in rows):
        _say(f"to add it to the record of its runs: python -m src.benchmark join={file}")
    if all(row.reason for row in rows):
        entry.failures.append("no model could be measured")
    return result


def _settings(config: DictConfig) -> Settings:
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    values = {str(key): value for key, value in plain.items() if key != "tracking"}
    check({"_target_": "src.benchmarking.settings.Settings", **values})
    settings = Settings(**values)
    settings.refuse_nothing()
    return settings


def _store(config: DictConfig) -> "Store":
    """Opened; MLflow is imported here and not before: exported files are measured without it."""
    from src.tracking.existing import existing

    return existing(config)


def _join(file: Path, config: DictConfig) -> Result:
    result = read(file)
    runs = publish(result, file, _store(config))
    _show(result)
    _say(f"look: {file}")
    _say(f"joined the record of {', '.join(runs)}")
    return result


def _refuse_reference(found: list[Subject], settings: Settings) -> None:
    """Before anything is measured; what a file's run is shows only when it is loaded."""
    reference([Row(each.label, each.runtime, each.run_id) for each in found], settings.reference)


def _result(rows: list[Row], measured_against: str, settings: Settings, photograph: str) -> Result:
    conditions: dict[str, str | int | float | None] = {
        "queries": settings.queries,
        "seconds": settings.seconds,
        "warm_up_s": settings.warm_up_s,
        "turn_ms": settings.turn_ms,
        "cold_starts": settings.cold_starts,
        "jpeg_queries": settings.jpeg_queries,
        "photograph": photograph,
        "cores": settings.cores,
        "memory_mb": settings.memory_mb,
        "level": settings.level,
        "samples": settings.samples,
        "seed": settings.seed,
    }
    return Result(
        device=this_device(settings.device, settings.emulation),
        written=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        threads=settings.threads,
        batch=settings.batch,
        reference=measured_against,
        conditions=conditions,
        notes=_notes(rows, settings, photograph),
        rows=rows,
    )


def _notes(rows: list[Row], settings: Settings, photograph: str) -> list[str]:
    notes = []
    if settings.short:
        notes.append(f"{BELOW}: not MLPerf's minimum.")
    if settings.jpeg_queries:
        notes.append(f"JPEG: from a file in memory ({photograph}) to the answer: decode, square, model; p50.")
    if settings.emulation:
        notes.append(
            f"EMULATION of a smaller device: {settings.emulation} of this one, its processor no slower for it. "
            "Memory is held down by RLIMIT_DATA and by what is resident, see src.benchmarking.worker."
        )
    else:
        notes.append("Not pinned to a core: the scheduler moves each process as it would on a device.")
    measured = {row.runtime for row in rows if not row.reason}
    notes += [told for runtimes, told in IMPORTS.items() if measured & set(runtimes)]
    for row in rows:
        busy = row.figures["cpu_ms"] / row.figures["mean_ms"] if "cpu_ms" in row.figures else 1.0
        what = f"{row.label} in {row.runtime}"
        if busy > MOST * settings.threads:
            notes.append(f"{what} kept {busy:.1f} cores busy, more than threads={settings.threads}.")
        elif busy < LEAST:
            notes.append(f"{what} ran {100 * busy:.0f}% of the time: others on this machine kept the cores from it.")
    return notes


def _write(result: Result, settings: Settings) -> Path:
    """JSON, and CSV beside it; each whole or not at all."""
    file = settings.json or Path(settings.folder) / f"{result.name}.json"
    for path, content in ((file, result.to_json()), (file.with_suffix(".csv"), result.to_csv())):
        part = path.with_name(f"{path.name}.part")
        try:
            part.write_text(content, encoding="utf-8")
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise UserError(f"{path}: the benchmark cannot be written there ({error})") from error
    return file


def _refuse_unwritable(settings: Settings) -> None:
    """Before anything is measured."""
    folder = settings.json.parent if settings.json else Path(settings.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: the benchmark cannot be written there ({error})") from error


def _show(result: Result) -> None:
    console.print(tables.table(result))
    for line in tables.lines(result):
        _say(line)


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
