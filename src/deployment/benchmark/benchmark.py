"""A benchmark from end to end: measure, write, publish, show."""

import datetime
import tempfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from src.core import cli
from src.core.cli import console, fitted, say
from src.core.config import load_settings
from src.core.errors import UserError
from src.core.files import atomic_file, expanded, refuse_unwritable
from src.deployment.benchmark import models
from src.deployment.benchmark.measure import measure, reference
from src.deployment.benchmark.models import QUERIES, SECONDS, BenchmarkSettings
from src.deployment.benchmark.result import BenchmarkResult, read, this_device
from src.deployment.benchmark.worker import encoded
from src.deployment.description import sentences

if TYPE_CHECKING:  # MLflow: exported files are measured without it
    from src.tracking.store import Store

FOLDER = "benchmark"  # of a run's artifacts
CONDITIONS = (
    *("queries", "seconds", "warm_up_s", "turn_ms", "cold_starts", "jpeg_queries"),
    *("cores", "memory_mb", "level", "samples", "seed"),
)
# Columns of the table: heading -> figure, decimals. "ratio" has an interval.
COLUMNS = {
    "p50 ms": ("p50_ms", 2),
    "p90 ms": ("p90_ms", 2),
    "p99 ms": ("p99_ms", 2),
    "ratio": ("ratio", 0),
    "JPEG ms": ("jpeg_p50_ms", 2),
    "cold s": ("cold_start_s", 2),
    "peak MB": ("peak_memory_mb", 0),
    "MB": ("size_mb", 1),
}


def make(config: DictConfig) -> None:
    """Make the benchmark that a config (conf/command/benchmark.yaml) asks for.

    With `join` the file of another machine is added to the record instead. If no model could be
    measured, `src.core.cli.failures` says so.

    Raises:
        UserError: Bad input.
    """
    settings = load_settings(config, BenchmarkSettings, without=("tracking",))
    settings.validate()
    if settings.join or settings.runs:
        from src.tracking.store import existing
    if settings.join:
        file = expanded(settings.join)
        result = read(file)
        runs = publish(result, file, existing(config))
        _show(result, file)
        say(f"added to the record of {', '.join(runs)}", wrap=False)
        return
    photograph, photograph_text = encoded(settings.image)
    file = settings.json_file or Path(settings.folder) / "benchmark"
    refuse_unwritable(file.with_name(f".{file.name}"), "the benchmark")
    store = existing(config) if settings.runs else None
    with tempfile.TemporaryDirectory() as folder:
        chosen = models.of_runs(store, settings, Path(folder)) if store else []
        chosen += models.of_files(settings)
        reference(chosen, settings.reference)  # an unknown name is an error at once
        rows, reference_row = measure(chosen, settings, photograph)
    conditions = {name: getattr(settings, name) for name in CONDITIONS}
    result = BenchmarkResult(
        device=this_device(settings.device, settings.emulation),
        written=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        threads=settings.threads,
        batch=settings.batch,
        reference=reference_row,
        conditions=conditions | {"photograph": photograph_text},
        notes=sentences(
            "notes",
            settings=settings,
            least=(QUERIES, SECONDS),
            photograph=photograph_text,
            rows=[row for row in rows if not row.reason],
        ),
        rows=rows,
    )
    file = settings.json_file or Path(settings.folder) / f"{result.name}.json"
    contents = {file: result.to_json(), file.with_suffix(".csv"): result.to_csv()}
    try:
        for path, content in contents.items():
            with atomic_file(path, "the benchmark") as draft:
                draft.write_text(content, encoding="utf-8")
    finally:
        _show(result, file)  # even if it cannot be written: it took minutes
    run_ids = {model.run_id for model in chosen} - {""}
    if store and settings.publish:
        publish(result, file, store, run_ids)
    elif not run_ids and any(row.run_id for row in rows):
        say(f"to add it to the record of its runs: python -m src.benchmark join={file}", wrap=False)
    if all(row.reason for row in rows):
        cli.failures.append("no model could be measured")


def publish(
    result: BenchmarkResult, file: Path, store: "Store", only: Collection[str] | None = None
) -> list[str]:
    """Add the rows of a benchmark, written to `file`, to the record of their runs.

    Only the runs in `only` are changed; None: all. Returns the ids of the changed runs.

    Raises:
        UserError: A run is not in the store, or two rows of a run would have the same metric names;
            nothing is written then.
    """
    from src.tracking.run import Run

    rows = [row for row in result.rows if row.run_id and (only is None or row.run_id in only)]
    if not rows:
        raise UserError(f"{file}: names no run to which it could be added")
    counts = Counter((row.run_id, row.runtime) for row in rows if not row.reason)
    for (run_id, runtime), number in counts.items():
        if number > 1:
            raise UserError(
                f"{file}: has {number} models of run {run_id} in {runtime}, whose figures would "
                "have the same names; measure them one by one"
            )
    ids = dict.fromkeys(row.run_id for row in rows)
    runs = {run_id: Run.attach(store, run_id) for run_id in ids}
    for row in rows:
        if not row.reason:
            prefix = result.prefix(row)
            runs[row.run_id].log({f"{prefix}/{name}": v for name, v in row.figures.items()})
            # a ratio means nothing without its reference
            runs[row.run_id].tag(**{f"{prefix}/reference": result.reference})
    for run in runs.values():
        run.flush()
        run.artifact(file, FOLDER)
    return list(runs)


def table(result: BenchmarkResult) -> Table:
    """One row per model and runtime; not `src.core.tables`, because a device may lack pandas."""
    cores = f"{result.threads} thread{'s' if result.threads != 1 else ''}"
    emulation = result.device.emulation and f", EMULATION: {result.device.emulation}"
    title = Text(f"{result.device.cpu}, {cores}, batch {result.batch}{emulation}")
    shown = Table(title=title, box=SIMPLE_HEAD, padding=0, pad_edge=False)
    shown.add_column("model", overflow="fold", min_width=15)
    shown.add_column("runtime", no_wrap=True)
    for heading in COLUMNS:
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in result.rows:
        cells = []
        for name, decimals in COLUMNS.values():
            value = row.figures.get(name)
            if value is None:
                cells.append("-" if row.reason else "")
            elif name == "ratio":
                low, high = row.figures.get("ratio_low"), row.figures.get("ratio_high")
                # the interval of the reference itself has no width
                interval = low is not None and low != high
                cells.append(f"{value:.3g}" + (f" [{low:.3g}, {high:.3g}]" if interval else ""))
            else:
                cells.append(f"{value:,.{decimals}f}")
        shown.add_row(Text(row.label), row.runtime, *map(Text, cells))
    return shown


def lines(result: BenchmarkResult) -> list[str]:
    """Notes below the table."""
    measured = [row for row in result.rows if not row.reason]
    return sentences("benchmark", result=result, measured=measured)


def _show(result: BenchmarkResult, file: Path) -> None:
    console.print(table(result))
    say(fitted("\n".join(lines(result))), wrap=False)
    say(f"look: {file}", wrap=False)
