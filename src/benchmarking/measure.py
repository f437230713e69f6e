"""From models to rows: each in a process of its own, started afresh, then queried in turns."""

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from src.benchmarking.energy import Rapl
from src.benchmarking.processes import FromJpeg, Worker
from src.benchmarking.record import Row, known
from src.benchmarking.settings import Settings
from src.benchmarking.stream import Contender, Dropped, Stream, single_stream
from src.benchmarking.subjects import Subject
from src.benchmarking.times import latencies, ratio
from src.deployment.description import Description
from src.errors import ConfigError


def measure(subjects: Sequence[Subject], settings: Settings, photograph: bytes) -> tuple[list[Row], str]:
    """Measure models side by side.

    Args:
        subjects: At least one.
        settings: How long, on how many threads, under which limits.
        photograph: A JPEG file's content.

    Returns:
        A row a model, in order; and the reference, "" where no model could be measured.
    """
    rows = [Row(each.label, each.runtime, each.run_id, each.model, reason=each.reason) for each in subjects]
    energy = Rapl()
    with ExitStack() as stack:
        stack.enter_context(_alone())
        workers = _started(subjects, rows, settings, stack)
        going = list(workers)
        streams = _streams([workers[place] for place in going], settings, energy)
        for place, stream in zip(going, streams, strict=True):
            rows[place].reason = stream.dropped
        going, streams = _still(rows, going, streams)
        for place, stream in zip(going, streams, strict=True):
            rows[place].figures |= _figures(stream)
            rows[place].energy_absent = energy.absent
        _end_to_end({place: workers[place] for place in going}, rows, settings, photograph, stack)
    for row in rows:
        row.figures = {} if row.reason else row.figures  # of one that ended half way some would be left
    return rows, _ratios(rows, dict(zip(going, streams, strict=True)), settings)


def _alone() -> AbstractContextManager[None]:
    """No other measurement of this project runs meanwhile."""
    try:
        from src.efficiency.latency import alone, shared_lock
    except ImportError:  # without torch on this device nothing else of the project measures here
        return contextlib.nullcontext()
    return alone(shared_lock())


def _started(
    subjects: Sequence[Subject], rows: Sequence[Row], settings: Settings, stack: ExitStack
) -> dict[int, Worker]:
    """Start each model's process some times; the last ones stay, by the model's place."""
    common: dict[str, int | None] = {"threads": settings.threads, "batch": settings.batch}
    common |= {"cores": settings.cores, "memory_mb": settings.memory_mb}
    told: dict[int, list[dict[str, Any]]] = {place: [] for place, row in enumerate(rows) if not row.reason}
    kept: dict[int, Worker] = {}
    with _bar(settings.cold_starts * len(told), "cold starts", "process") as bar:
        for repeat in range(settings.cold_starts):
            for place in [place for place in told if not rows[place].reason]:
                try:
                    worker = Worker(subjects[place].spec | common)
                except Dropped as reason:
                    rows[place].reason = str(reason)
                else:
                    told[place].append(worker.hello | {"cold_start_s": worker.cold_start_s})
                    if repeat + 1 < settings.cold_starts:
                        worker.end()
                    else:
                        kept[place] = stack.enter_context(worker)
                bar.update()
    for place in kept:
        _tell_start(rows[place], told[place], subjects[place])
    return kept


def _tell_start(row: Row, told: Sequence[dict[str, Any]], subject: Subject) -> None:
    """Of several starts the medians."""
    description = Description.from_json(told[0]["description"], row.label)
    row.run_id, row.model, row.precision = description.run_id, description.model, description.precision
    row.version = told[0]["version"]

    def median(name: str) -> float | None:
        values = [each[name] for each in told]
        return None if None in values else statistics.median(values)

    peak, imported = median("peak_mb"), median("imported_mb")
    difference = None if peak is None or imported is None else peak - imported
    row.figures = known(
        {
            "cold_start_s": median("cold_start_s"),
            "load_s": median("load_s"),
            "peak_memory_mb": peak,
            "imported_memory_mb": imported,
            "model_memory_mb": difference,
            "size_mb": subject.size_mb,
        }
    )


def _streams(workers: Sequence[Contender], settings: Settings, energy: Rapl) -> list[Stream]:
    with _shares("queries") as progress:
        return single_stream(
            workers,
            settings.queries,
            settings.seconds,
            settings.warm_up_s,
            settings.turn_ms,
            None if energy.absent else energy.joules,
            progress,
        )


def _figures(stream: Stream) -> dict[str, float]:
    energy = None if stream.joules is None else 1e3 * stream.joules / stream.calls
    counted = {"queries": stream.queries, "seconds": stream.seconds, "cpu_ms": stream.cpu_ms / stream.queries}
    return known(latencies(stream.turns) | counted | {"energy_mj": energy})


def _end_to_end(
    workers: dict[int, Worker], rows: Sequence[Row], settings: Settings, photograph: bytes, stack: ExitStack
) -> None:
    """The same from a photograph: reading from memory, decoding, making it square, and the model."""
    if not settings.jpeg_queries:
        return
    file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "photograph.jpg"
    file.write_bytes(photograph)
    readers: dict[int, FromJpeg] = {}
    for place, worker in workers.items():
        try:
            readers[place] = worker.from_jpeg(str(file))
        except Dropped as reason:
            rows[place].reason = str(reason)
    with _shares("from a JPEG") as progress:
        streams = single_stream(
            list(readers.values()), settings.jpeg_queries, 0.0, 0.0, settings.turn_ms, progress=progress
        )
    for place, stream in zip(readers, streams, strict=True):
        rows[place].reason = stream.dropped
        if not stream.dropped:
            found = latencies(stream.turns)
            rows[place].figures |= {f"jpeg_{name}": found[name] for name in ("p50_ms", "p90_ms", "p99_ms")}


def _still(rows: Sequence[Row], going: list[int], streams: list[Stream]) -> tuple[list[int], list[Stream]]:
    left = [(place, stream) for place, stream in zip(going, streams, strict=True) if not rows[place].reason]
    return [place for place, _ in left], [stream for _, stream in left]


def _ratios(rows: Sequence[Row], streams: dict[int, Stream], settings: Settings) -> str:
    """Add the ratios; which row's time is 1."""
    wanted = reference(rows, settings.reference)
    streams = {place: stream for place, stream in streams.items() if not rows[place].reason}
    if wanted not in streams:
        if settings.reference or not streams:
            return ""
        wanted = next(iter(streams))
    for place, stream in streams.items():
        value, low, high = ratio(stream.turns, streams[wanted].turns, settings.samples, settings.level, settings.seed)
        rows[place].figures |= known({"ratio": value, "ratio_low": low, "ratio_high": high})
    return f"{rows[wanted].label} in {rows[wanted].runtime}"


def reference(rows: Sequence[Row], wanted: str | None) -> int:
    """Place of the row that is the reference.

    Args:
        rows: At least one.
        wanted: A runtime, the start of a run's id, or a label; or two of them, as in 3f2a9c:eager. The first row that
            fits. None: the first one.

    Raises:
        ConfigError: There is none such.
    """
    parts = wanted.split(":") if wanted else []
    for place, row in enumerate(rows):
        if all(part in (row.runtime, row.label) or (part and row.run_id.startswith(part)) for part in parts):
            return place
    raise ConfigError("reference", f"{wanted} is none of {', '.join(f'{row.label}:{row.runtime}' for row in rows)}")


def _bar(total: int, title: str, unit: str) -> "tqdm[Any]":
    """On a terminal only."""
    return tqdm(total=total, desc=title, unit=unit, file=sys.stderr, leave=False, disable=None)


@contextlib.contextmanager
def _shares(title: str) -> Iterator[Callable[[float], None]]:
    """A bar of per cents."""
    with _bar(100, title, "%") as bar:

        def show(share: float) -> None:
            bar.update(int(100 * share) - bar.n)

        yield show
