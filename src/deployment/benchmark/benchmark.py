"""End to end: measure, write, publish, show."""

import datetime
import tempfile
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from src.core import cli
from src.core.config import check
from src.core.errors import UserError
from src.core.files import expanded
from src.deployment.benchmark import models
from src.deployment.benchmark.measure import measure, reference
from src.deployment.benchmark.models import BELOW, BenchmarkModel, BenchmarkSettings
from src.deployment.benchmark.result import BenchmarkResult, BenchmarkRow, read, this_device
from src.deployment.benchmark.worker import encoded

if TYPE_CHECKING:
    from src.tracking.store import Store


FOLDER = "benchmark"  # of a run's artifacts


def publish(
    result: BenchmarkResult, file: Path, store: "Store", only: Collection[str] | None = None
) -> list[str]:
    """Add rows to the record.

    Args:
        result: The benchmark.
        file: That holds it as JSON.
        store: Opened if it is not yet.
        only: Ids of runs; None: all that the rows name.

    Returns:
        Ids of the runs that were added to.

    Raises:
        UserError: A run is not in the store, or two rows of one run would have the same names;
            nothing is then written.
    """
    from src.tracking.run import Run

    rows = [row for row in result.rows if row.run_id and (only is None or row.run_id in only)]
    if not rows:
        raise UserError(f"{file}: names no run to which it could be added")
    _refuse_twins(rows, file)
    runs = {
        run_id: Run.attach(store, run_id) for run_id in dict.fromkeys(row.run_id for row in rows)
    }
    for run_id, run in runs.items():
        for row in rows:
            if row.run_id == run_id and not row.reason:
                run.log(result.metrics(row))
                run.tag(
                    **{f"{result.place(row)}/reference": result.reference}
                )  # or nobody knows whose ratio it is
        run.flush()
        run.artifact(file, FOLDER)
    return list(runs)


def _refuse_twins(rows: list[BenchmarkRow], file: Path) -> None:
    counted = Counter((row.run_id, row.runtime) for row in rows if not row.reason)
    for (run_id, runtime), number in counted.items():
        if number > 1:
            raise UserError(
                f"{file}: has {number} models of run {run_id} in {runtime}, whose figures would have the same names; "
                "measure them one by one"
            )


COLUMNS = ("p50 ms", "p90 ms", "p99 ms", "ratio", "JPEG ms", "cold s", "peak MB", "MB")


def table(result: BenchmarkResult) -> Table:
    """A row a model in a runtime; of one that was not measured, the notes say why."""
    title = f"{result.device.cpu}, {_count(result.threads, 'thread')}, batch {result.batch}"
    found = Table(
        title=Text(
            title + (f", EMULATION: {result.device.emulation}" if result.device.emulation else "")
        ),
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    found.add_column("model", overflow="fold", min_width=15)
    found.add_column("runtime", no_wrap=True)
    for name in COLUMNS:
        found.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        found.add_row(Text(row.label), row.runtime, *map(Text, _cells(row)))
    return found


def lines(result: BenchmarkResult) -> list[str]:
    """What the table cannot say, a line each."""
    measured = [row for row in result.rows if not row.reason]
    found = [
        f"{row.label} in {row.runtime}: not measured: {row.reason}"
        for row in result.rows
        if row.reason
    ]
    if measured:
        fewest = min(int(row.figures["queries"]) for row in measured)
        shortest = min(row.figures["seconds"] for row in measured)
        found.append(
            f"at least {fewest:,} calls and {shortest:.1f} s of each model, in turns with all the others"
        )
        told = f"p50 over that of {result.reference}, with its interval: 2 is twice as slow"
        found.append(
            f"ratio: {told if result.reference else 'absent, its reference was not measured'}"
        )
    found += sorted(
        {f"energy: absent, {row.energy_absent}" for row in measured if row.energy_absent}
    )
    return found + result.notes


def _cells(row: BenchmarkRow) -> Sequence[str]:
    if row.reason:
        return ["-"] * len(COLUMNS)
    figures = row.figures
    latency = [_shown(figures.get(f"p{each}_ms")) for each in (50, 90, 99)]
    ratio = f"{figures['ratio']:.3g}" if "ratio" in figures else ""
    if (
        "ratio_low" in figures and figures["ratio_low"] != figures["ratio_high"]
    ):  # of the reference itself they are 1
        ratio += f" [{figures['ratio_low']:.3g}, {figures['ratio_high']:.3g}]"
    rest = [_shown(figures.get(name)) for name in ("jpeg_p50_ms", "cold_start_s")]
    return [
        *latency,
        ratio,
        *rest,
        _shown(figures.get("peak_memory_mb"), 0),
        _shown(figures.get("size_mb"), 1),
    ]


def _shown(value: float | None, decimals: int = 2) -> str:
    return "" if value is None else f"{value:,.{decimals}f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


console = Console(width=100)
IMPORTS = {  # by runtimes: what their start and memory have to be read with
    (
        "eager",
        "compile",
    ): "eager, compile: loaded as the project does it; the imports are training's, Lightning too.",
    (
        "compile",
    ): "compile: compiled at its first start ever, later taken from a cache on disk, as in most of 3 starts.",
    (
        "executorch",
    ): "executorch: its Python package imports torch, which is its start and memory; in C++ it is small.",
}
MOST, LEAST = 1.1, 0.8  # cores that a model keeps busy, beyond which something is to be said


def make(config: DictConfig) -> BenchmarkResult:
    """Make the benchmark that a config asks for, or join one that was made elsewhere.

    Args:
        config: A composed `conf/command/benchmark.yaml`.

    Returns:
        The benchmark, after it was written and published. If nothing could be measured, that is
        noted in `src.core.cli.failures` too.

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
        found = [*models.of_runs(store, settings, Path(folder))] if store else []
        found += models.of_files(settings)
        _refuse_reference(found, settings)
        rows, measured_against = measure(found, settings, photograph)
    result = _result(rows, measured_against, settings, told)
    _show(result)  # before it is written: it took minutes
    file = _write(result, settings)
    _say(f"look: {file}")
    own = {each.run_id for each in found} - {
        ""
    }  # of files the run is not asked for: they join later, if they shall
    if store and settings.publish:
        publish(result, file, store, own)
    elif not own and any(row.run_id for row in rows):
        _say(f"to add it to the record of its runs: python -m src.benchmark join={file}")
    if all(row.reason for row in rows):
        cli.failures.append("no model could be measured")
    return result


def _settings(config: DictConfig) -> BenchmarkSettings:
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    values = {str(key): value for key, value in plain.items() if key != "tracking"}
    check({"_target_": "src.deployment.benchmark.models.BenchmarkSettings", **values})
    settings = BenchmarkSettings(**values)
    settings.refuse_nothing()
    return settings


def _store(config: DictConfig) -> "Store":
    """Opened; MLflow is imported here and not before: exported files are measured without it."""
    from src.tracking.store import existing

    return existing(config)


def _join(file: Path, config: DictConfig) -> BenchmarkResult:
    result = read(file)
    runs = publish(result, file, _store(config))
    _show(result)
    _say(f"look: {file}")
    _say(f"joined the record of {', '.join(runs)}")
    return result


def _refuse_reference(found: list[BenchmarkModel], settings: BenchmarkSettings) -> None:
    """Before anything is measured; what a file's run is shows only when it is loaded."""
    reference(
        [BenchmarkRow(each.label, each.runtime, each.run_id) for each in found], settings.reference
    )


def _result(
    rows: list[BenchmarkRow], measured_against: str, settings: BenchmarkSettings, photograph: str
) -> BenchmarkResult:
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
    return BenchmarkResult(
        device=this_device(settings.device, settings.emulation),
        written=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        threads=settings.threads,
        batch=settings.batch,
        reference=measured_against,
        conditions=conditions,
        notes=_notes(rows, settings, photograph),
        rows=rows,
    )


def _notes(rows: list[BenchmarkRow], settings: BenchmarkSettings, photograph: str) -> list[str]:
    notes = []
    if settings.short:
        notes.append(f"{BELOW}: not MLPerf's minimum.")
    if settings.jpeg_queries:
        notes.append(
            f"JPEG: from a file in memory ({photograph}) to the answer: decode, square, model; p50."
        )
    if settings.emulation:
        notes.append(
            f"EMULATION of a smaller device: {settings.emulation} of this one, its processor no slower for it. "
            "Memory is held down by RLIMIT_DATA and by what is resident, see src.deployment.benchmark.worker."
        )
    else:
        notes.append(
            "Not pinned to a core: the scheduler moves each process as it would on a device."
        )
    measured = {row.runtime for row in rows if not row.reason}
    notes += [told for runtimes, told in IMPORTS.items() if measured & set(runtimes)]
    for row in rows:
        busy = row.figures["cpu_ms"] / row.figures["mean_ms"] if "cpu_ms" in row.figures else 1.0
        what = f"{row.label} in {row.runtime}"
        if busy > MOST * settings.threads:
            notes.append(
                f"{what} kept {busy:.1f} cores busy, more than threads={settings.threads}."
            )
        elif busy < LEAST:
            notes.append(
                f"{what} ran {100 * busy:.0f}% of the time: others on this machine kept the cores from it."
            )
    return notes


def _write(result: BenchmarkResult, settings: BenchmarkSettings) -> Path:
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


def _refuse_unwritable(settings: BenchmarkSettings) -> None:
    """Before anything is measured."""
    folder = settings.json.parent if settings.json else Path(settings.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: the benchmark cannot be written there ({error})") from error


def _show(result: BenchmarkResult) -> None:
    console.print(table(result))
    for line in lines(result):
        _say(line)


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
