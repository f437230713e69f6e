"""Latency in single-stream turns with percentiles, cold start, memory and energy of models."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import Pipe
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from src.core.environment import Rapl
from src.core.errors import ConfigError
from src.core.files import ROOT
from src.deployment.benchmark.models import BenchmarkModel, BenchmarkSettings
from src.deployment.benchmark.result import BenchmarkRow, finite

Times = npt.NDArray[np.float64]  # ms, of the timed queries of one turn
BLOCKS = 50  # blocks of consecutive turns that the bootstrap resamples
MIN_BLOCKS = 5  # fewer blocks give no interval
UNTIMED_SHARE = 8  # a turn begins with 1 + size // 8 untimed queries, which warm the caches
TIMEOUT_S = 600.0  # for an answer of a worker; a large net is compiled at its start
RATIO = ("ratio", "ratio_low", "ratio_high")
THREAD_POOLS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS"),
)


def latencies(turns: Sequence[Times]) -> dict[str, float]:
    """Percentiles and mean of all queries, ms: `p50_ms`, `p90_ms`, `p99_ms`, `mean_ms`."""
    times = np.concatenate(turns)
    percentiles = {f"p{p}_ms": float(np.percentile(times, p)) for p in (50, 90, 99)}
    return percentiles | {"mean_ms": float(times.mean())}


def ratio(
    turns: Sequence[Times], reference: Sequence[Times], samples: int, level: float, seed: int
) -> tuple[float, float, float]:
    """The ratio of two medians, with a percentile interval by the block bootstrap.

    Disturbances of a machine last longer than one query. Therefore up to `BLOCKS` blocks of
    consecutive turns are resampled (Künsch, The jackknife and the bootstrap for general stationary
    observations, Annals of Statistics 17, 1989), the same blocks of both models: turn n of the
    reference was measured beside turn n of the model. `level` is the coverage, in (0, 1).

    Returns:
        Ratio, 2.0 is twice as slow; lower and upper end, NaN after too few turns.
    """
    value = float(np.median(np.concatenate(turns)) / np.median(np.concatenate(reference)))
    number = min(BLOCKS, len(turns))
    if number < MIN_BLOCKS:
        return value, np.nan, np.nan
    edges = pairwise(np.linspace(0, len(turns), number + 1).round().astype(int))
    spans = [slice(start, end) for start, end in edges]
    blocks = [[np.concatenate(series[span]) for span in spans] for series in (turns, reference)]
    ratios = []
    for sample in np.random.default_rng(seed).integers(number, size=(samples, number)):
        upper, lower = (np.median(np.concatenate([block[n] for n in sample])) for block in blocks)
        ratios.append(upper / lower)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return value, float(low), float(high)


class WorkerFailed(Exception):  # noqa: N818  not an error of ours: a row's reason
    """A model that cannot be measured further. The message is the reason, in one line."""


class WorkerProcess:
    """A process that holds one model.

    Attributes:
        hello: The worker's message after its first query, see `worker.Session.hello`.
        cold_start_s: From starting the interpreter to that message. Files may be in the page cache.
        jpeg: Content of a JPEG file with which queries begin from the next warm-up on; empty: none.

    Args:
        spec: What the worker loads, see `src.deployment.benchmark.worker.Session`.

    Raises:
        WorkerFailed: The model could not be loaded, ran out of memory or crashed.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.jpeg = b""
        self._memory_mb = spec.get("memory_mb")
        self._output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  see `close`
        self._pipe, worker_end = Pipe()
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "src.deployment.benchmark.worker", str(worker_end.fileno())],
            pass_fds=[worker_end.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env=os.environ
            | dict.fromkeys(THREAD_POOLS, str(spec["threads"]))
            | {"PYTHONPATH": paths},
        )
        worker_end.close()
        try:
            self.hello: dict[str, Any] = self._ask(spec)
        except BaseException:
            self.close()
            raise
        self.cold_start_s = time.perf_counter() - began

    def warm_up(self, seconds: float) -> Times:
        """Query for that long, at least once: times in ms.

        Raises:
            WorkerFailed: The process ended or does not answer.
        """
        if self.jpeg:
            self._ask(("photograph", self.jpeg))
        times: Times = self._ask(("warm_up", seconds))
        return times

    def turn(self, untimed: int, timed: int) -> tuple[Times, float]:
        """Query that often: times of the timed queries and their CPU time (all threads), ms.

        Raises:
            WorkerFailed: The process ended or does not answer.
        """
        answer: tuple[Times, float] = self._ask(("turn", untimed, timed))
        return answer

    def close(self) -> None:
        """Let the process end; kill it after ten seconds."""
        self._pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self._process.kill()
        self._process.wait()
        self._output.close()

    def _ask(self, message: object) -> Any:
        """Send a message to the worker and wait for the answer."""
        reason = f"gave no answer within {TIMEOUT_S:.0f} s"
        try:
            self._pipe.send(message)
            if self._pipe.poll(TIMEOUT_S):
                answer = self._pipe.recv()
                if not isinstance(answer, str):
                    return answer
                reason = answer
        except (EOFError, OSError):
            # the end of the process: its signal or status and its last line
            status = self._process.wait()
            self._output.seek(0)
            lines = [line.strip() for line in self._output.read().splitlines() if line.strip()]
            how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
            reason = ": ".join([f"ended {how}", *lines[-1:]])
        if self._memory_mb and "emulation" not in reason:
            reason = f"{reason} (under memory_mb={self._memory_mb}, emulation)"
        raise WorkerFailed(reason)


@dataclass
class Stream:
    """Measurements of one model."""

    turns: list[Times] = field(default_factory=list)  # in order
    cpu_ms: float = 0.0  # CPU time of the timed queries
    joules: float | None = None  # counted during its turns; None without a counter
    calls: int = 0  # timed and untimed queries of its turns, which the energy belongs to

    @property
    def queries(self) -> int:
        """Number of timed queries."""
        return sum(len(turn) for turn in self.turns)

    @property
    def seconds(self) -> float:
        """Total time of the timed queries."""
        return float(sum(turn.sum() for turn in self.turns)) / 1e3


def single_stream(
    models: Mapping[int, WorkerProcess],
    title: str,
    queries: int,
    seconds: float,
    warm_up_s: float,
    turn_ms: float,
    joules: Callable[[], float] | None = None,
) -> tuple[dict[int, Stream], dict[int, str]]:
    """Measure models in turns until each has enough queries and enough time.

    Each model is warmed up for `warm_up_s` before the first turn of any. The timed queries of a
    turn take about `turn_ms`. At the end each model has at least `queries` timed queries in at
    least `seconds` s. The energy counter `joules` is read before and after each turn. `title` is
    that of the progress bar.

    Returns:
        The streams, all of equally many turns; and why the other models ended early.
    """
    streams: dict[int, Stream] = {}
    failures: dict[int, str] = {}
    sizes: dict[int, int] = {}
    for n, model in models.items():
        try:
            times = model.warm_up(warm_up_s)
        except WorkerFailed as reason:
            failures[n] = str(reason)
            continue
        streams[n] = Stream(joules=0.0 if joules else None)
        # the first queries load the model and choose kernels
        sizes[n] = max(1, round(turn_ms / float(np.median(times[len(times) // 2 :]))))
    with _bar(100, title, "%") as bar:
        while streams:
            shares = [stream.queries / queries for stream in streams.values()]
            shares += [stream.seconds / seconds for stream in streams.values() if seconds]
            bar.update(int(100 * min(1, *shares)) - bar.n)
            if min(shares) >= 1:
                break
            for n, stream in list(streams.items()):
                untimed, before = 1 + sizes[n] // UNTIMED_SHARE, joules() if joules else 0.0
                try:
                    times, cpu_ms = models[n].turn(untimed, sizes[n])
                except WorkerFailed as reason:
                    failures[n] = str(reason)
                    del streams[n]
                    continue
                if joules:
                    stream.joules = (stream.joules or 0.0) + joules() - before
                stream.turns.append(times)
                stream.cpu_ms += cpu_ms
                stream.calls += untimed + sizes[n]
    return streams, failures


def measure(
    models: Sequence[BenchmarkModel], settings: BenchmarkSettings, jpeg: bytes
) -> tuple[list[BenchmarkRow], str]:
    """Measure models, at least one, side by side; `jpeg` is the content of a JPEG file.

    Returns:
        One row per model, in order; and the reference, "" if no model could be measured.
    """
    rows = [BenchmarkRow(m.label, m.runtime, m.run_id, m.model, reason=m.reason) for m in models]
    energy = Rapl()
    with ExitStack() as stack:
        with suppress(ImportError):  # a device without torch has nothing to wait for
            from src.efficiency.latency import alone, shared_lock

            stack.enter_context(alone(shared_lock()))
        workers = _start(models, rows, settings, stack)
        lengths = (settings.queries, settings.seconds, settings.warm_up_s, settings.turn_ms)
        counter = None if energy.absent else energy.joules
        streams, failures = single_stream(workers, "queries", *lengths, counter)
        for n, stream in streams.items():
            if energy.absent:
                note = "NVML counts graphics cards, and these models run on the CPU"
                rows[n].energy_absent = f"{energy.absent}; {note}"
            rows[n].figures |= latencies(stream.turns)
            rows[n].figures |= {"queries": float(stream.queries), "seconds": stream.seconds}
            rows[n].figures["cpu_ms"] = stream.cpu_ms / stream.queries
            if stream.joules is not None:
                rows[n].figures["energy_mj"] = 1e3 * stream.joules / stream.calls
        if settings.jpeg_queries:
            for n in streams:
                workers[n].jpeg = jpeg
            alive = {n: workers[n] for n in streams}
            lengths = (settings.jpeg_queries, 0.0, 0.0, settings.turn_ms)
            decoding, later = single_stream(alive, "from a JPEG", *lengths)
            failures |= later
            for n, stream in decoding.items():
                percentiles = latencies(stream.turns)
                del percentiles["mean_ms"]
                rows[n].figures |= {f"jpeg_{name}": ms for name, ms in percentiles.items()}
    for n, reason in failures.items():
        rows[n].reason, rows[n].figures = reason, {}
    turns = {n: stream.turns for n, stream in streams.items() if not rows[n].reason}
    return rows, _add_ratios(rows, turns, settings)


def _add_ratios(
    rows: Sequence[BenchmarkRow], turns: Mapping[int, list[Times]], settings: BenchmarkSettings
) -> str:
    """Add the ratios to the measured rows; return the reference."""
    base = reference(rows, settings.reference)
    if base not in turns:
        if settings.reference or not turns:
            return ""
        base = next(iter(turns))
    for n in turns:
        interval = ratio(turns[n], turns[base], settings.samples, settings.level, settings.seed)
        rows[n].figures |= finite(dict(zip(RATIO, interval, strict=True)))
    return f"{rows[base].label} in {rows[base].runtime}"


def _start(
    models: Sequence[BenchmarkModel],
    rows: Sequence[BenchmarkRow],
    settings: BenchmarkSettings,
    stack: ExitStack,
) -> dict[int, WorkerProcess]:
    """Start each model's process several times; the last one stays, by the model's position."""
    names = ("threads", "batch", "cores", "memory_mb")
    common = {name: getattr(settings, name) for name in names}
    hellos: dict[int, list[dict[str, Any]]]
    hellos = {n: [] for n, row in enumerate(rows) if not row.reason}
    workers: dict[int, WorkerProcess] = {}
    with _bar(settings.cold_starts * len(hellos), "cold starts", "process") as bar:
        for repeat in range(settings.cold_starts):
            for n in [n for n in hellos if not rows[n].reason]:
                bar.update()
                try:
                    worker = WorkerProcess(models[n].spec | common)
                except WorkerFailed as reason:
                    rows[n].reason = str(reason)
                    continue
                hellos[n].append(worker.hello | {"cold_start_s": worker.cold_start_s})
                if repeat + 1 == settings.cold_starts:
                    workers[n] = stack.enter_context(closing(worker))
                else:
                    worker.close()
    for n in workers:
        row, first = rows[n], hellos[n][0]
        description = first["description"]
        row.run_id, row.model = description.run_id, description.model
        row.precision, row.version = description.precision, first["version"]
        names = ("cold_start_s", "load_s", "peak_memory_mb", "imported_memory_mb")
        figures = {name: float(np.median([hello[name] for hello in hellos[n]])) for name in names}
        figures["model_memory_mb"] = figures["peak_memory_mb"] - figures["imported_memory_mb"]
        row.figures = finite(figures | {"size_mb": models[n].size_mb})
    return workers


def reference(rows: Sequence[BenchmarkModel | BenchmarkRow], name: str | None) -> int:
    """Position of the reference, the first row or model that matches; of None the first one.

    A name is a runtime, the start of a run id or a label; or two of them, as in 3f2a9c:eager.

    Raises:
        ConfigError: No row matches.
    """
    parts = name.split(":") if name else []
    for n, row in enumerate(rows):
        names = (row.runtime, row.label)
        if all(part in names or (part and row.run_id.startswith(part)) for part in parts):
            return n
    labels = ", ".join(f"{row.label}:{row.runtime}" for row in rows)
    raise ConfigError("reference", f"{name} is none of {labels}")


def _bar(total: int, title: str, unit: str) -> "tqdm[Any]":
    """A progress bar, on a terminal only."""
    return tqdm(total=total, desc=title, unit=unit, file=sys.stderr, leave=False, disable=None)
