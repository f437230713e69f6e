"""Single-stream timing in turns, energy, percentiles."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from src.core.cli import ROOT
from src.core.errors import ConfigError
from src.deployment.benchmark.models import BenchmarkModel, BenchmarkSettings
from src.deployment.benchmark.result import BenchmarkRow, known
from src.deployment.description import Description

Times = npt.NDArray[np.float64]  # ms, of the queries of one turn
PERCENTILES = (50, 90, 99)
BLOCKS = 50  # of consecutive turns, which the bootstrap draws
FEWEST = 5  # blocks that an interval needs


class TimeRatio(NamedTuple):
    """A median relative to the reference's; 2.0 is twice as slow. NaN where there are too few turns for an interval."""

    value: float
    low: float
    high: float


def latencies(turns: Sequence[Times]) -> dict[str, float]:
    """Percentiles and mean over all queries, ms: `p50_ms`, `p90_ms`, `p99_ms`, `mean_ms`.

    Args:
        turns: At least one, each of at least one query.
    """
    every = np.concatenate(turns)
    found = {f"p{each}_ms": float(np.percentile(every, each)) for each in PERCENTILES}
    return found | {"mean_ms": float(every.mean())}


def ratio(
    turns: Sequence[Times], reference: Sequence[Times], samples: int, level: float, seed: int
) -> TimeRatio:
    """The ratio of two medians, with a percentile interval.

    What disturbs a machine lasts for longer than a query, so queries are not drawn one by one: the
    turns are cut into up to `BLOCKS` blocks of consecutive ones, and whole blocks are drawn with
    replacement (Künsch, The jackknife and the bootstrap for general stationary observations, Annals
    of Statistics 17, 1989), the same ones of both models, which were measured side by side.

    Args:
        turns: Of the model, in order.
        reference: As many, the n-th measured beside the n-th of the model.
        samples: Of the bootstrap.
        level: Coverage, in (0, 1).
        seed: Of the random numbers.
    """
    value = float(np.median(np.concatenate(turns)) / np.median(np.concatenate(reference)))
    blocks = min(BLOCKS, len(turns))
    if blocks < FEWEST:
        return TimeRatio(value, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    mine, other = _blocks(turns, blocks), _blocks(reference, blocks)
    drawn = [
        _median(mine, chosen) / _median(other, chosen)
        for chosen in rng.integers(blocks, size=(samples, blocks))
    ]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return TimeRatio(value, float(low), float(high))


def _blocks(turns: Sequence[Times], number: int) -> list[Times]:
    edges = np.linspace(0, len(turns), number + 1).round().astype(int)
    return [
        np.concatenate(turns[start:end]) for start, end in zip(edges[:-1], edges[1:], strict=True)
    ]


def _median(blocks: Sequence[Times], chosen: npt.NDArray[np.int64]) -> float:
    return float(np.median(np.concatenate([blocks[each] for each in chosen])))


UNTIMED = 8  # one query of so many of a turn, and one more, brings the caches back


class WorkerFailed(Exception):  # noqa: N818  it is no error of ours
    """A model that cannot be measured further; the others go on. The message is the reason, in one line."""


@dataclass(frozen=True)
class Turn:
    """What one turn took.

    Attributes:
        times: Of its timed queries, ms, in order.
        cpu_ms: CPU time of the model's process, all threads, over the timed queries.
    """

    times: Times
    cpu_ms: float


class TimedModel(Protocol):
    """A model that answers queries."""

    def warm_up(self, seconds: float) -> Times:
        """Query for so long, at least once: times in ms."""
        ...

    def turn(self, untimed: int, timed: int) -> Turn:
        """Query so often.

        Raises:
            Dropped: It cannot go on.
        """
        ...


@dataclass
class Stream:
    """What was measured of one model.

    Attributes:
        turns: In order.
        joules: Counted while it had its turns; None where nothing is counted.
        calls: Queries of its turns, untimed ones too: those that the joules are of.
        dropped: Why it did not come to an end; empty: it did.
    """

    turns: list[Times] = field(default_factory=list)
    cpu_ms: float = 0.0
    joules: float | None = None
    calls: int = 0
    dropped: str = ""

    @property
    def queries(self) -> int:
        """Timed ones."""
        return sum(len(turn) for turn in self.turns)

    @property
    def seconds(self) -> float:
        """Time of the timed queries together."""
        return float(sum(turn.sum() for turn in self.turns)) / 1e3


def single_stream(
    contenders: Sequence[TimedModel],
    queries: int,
    seconds: float,
    warm_up_s: float,
    turn_ms: float,
    joules: Callable[[], float] | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Stream]:
    """Measure models in turns until each has had its queries and its time.

    Args:
        contenders: One a model.
        queries: Timed queries of each model at the least.
        seconds: Timed time of each model at the least.
        warm_up_s: Of each model, before the first turn of any.
        turn_ms: About how long a turn's timed queries take.
        joules: A counter of energy, read before and after each turn.
        progress: Is told what share of the work is done, in [0, 1].

    Returns:
        One a contender; one that was dropped has its reason. All others have equally many turns.
    """
    found = [Stream(joules=0.0 if joules else None) for _ in contenders]
    sizes = [
        _size(each, stream, warm_up_s, turn_ms)
        for each, stream in zip(contenders, found, strict=True)
    ]
    while going := [place for place, each in enumerate(found) if not each.dropped]:
        done = min(_share(found[place], queries, seconds) for place in going)
        progress(done)
        if done >= 1:
            break
        for place in going:
            _take(contenders[place], found[place], sizes[place], joules)
    return found


def _size(contender: TimedModel, stream: Stream, warm_up_s: float, turn_ms: float) -> int:
    """Timed queries of a turn, by the later half of the warm-up: the first ones load and choose kernels."""
    try:
        times = contender.warm_up(warm_up_s)
    except WorkerFailed as reason:
        stream.dropped = str(reason)
        return 0
    return max(1, round(turn_ms / float(np.median(times[len(times) // 2 :]))))


def _share(stream: Stream, queries: int, seconds: float) -> float:
    return min(1.0, stream.queries / queries, stream.seconds / seconds if seconds else 1.0)


def _take(
    contender: TimedModel, stream: Stream, size: int, joules: Callable[[], float] | None
) -> None:
    untimed = 1 + size // UNTIMED
    before = joules() if joules else 0.0
    try:
        turn = contender.turn(untimed, size)
    except WorkerFailed as reason:
        stream.dropped = str(reason)
        return
    if joules:
        stream.joules = (stream.joules or 0.0) + joules() - before
    stream.turns.append(turn.times)
    stream.cpu_ms += turn.cpu_ms
    stream.calls += untimed + size


POWERCAP = Path("/sys/class/powercap")
GPU_NOTE = "NVML counts graphics cards, and these models run on the CPU"


class Rapl:
    """RAPL, as Linux's powercap shows it: Intel's and AMD's counters of whole packages, whoever uses them.

    Args:
        folder: Linux's powercap; another one for tests.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        self._packages = [
            each for each in sorted(folder.glob("intel-rapl:[0-9]*")) if each.name.count(":") == 1
        ]
        self._packages = [
            each for each in self._packages if _text(each / "name").startswith("package")
        ]
        self._ranges = [int(_text(each / "max_energy_range_uj") or 0) for each in self._packages]
        self._last = [0] * len(self._packages)
        self._joules = 0.0
        self.absent = self._why_absent()

    def joules(self) -> float:
        """Counted by all packages since the first call.

        Raises:
            OSError: The counter has gone.
        """
        now = [int((each / "energy_uj").read_text()) for each in self._packages]
        for after, before, whole in zip(now, self._last, self._ranges, strict=True):
            self._joules += (
                after - before if after >= before else after - before + whole
            ) / 1e6  # it starts anew
        self._last = now
        return self._joules

    def _why_absent(self) -> str:
        if not self._packages:
            return f"no RAPL counter on this machine; {GPU_NOTE}"
        try:
            self._last = [int((each / "energy_uj").read_text()) for each in self._packages]
        except PermissionError:
            return (
                f"RAPL counter not readable: permission ({self._packages[0]}/energy_uj); {GPU_NOTE}"
            )
        except (OSError, ValueError) as error:
            return f"RAPL counter not readable: {error}; {GPU_NOTE}"
        return ""


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


START_S, ANSWER_S = 600.0, 600.0  # patience; a large net is compiled at its start
POOLS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


class WorkerProcess:
    """A process with one model; a context manager that ends it.

    Args:
        spec: What it loads, see `src.deployment.benchmark.worker.Session`.

    Attributes:
        hello: What it told when its first query had been answered.
        cold_start_s: From starting the interpreter until then. Its files may be in the page cache.

    Raises:
        Dropped: It could not be loaded, ran out of memory or crashed.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._complaints = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed by `end`
        pools = dict.fromkeys(POOLS, str(spec["threads"]))
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "src.deployment.benchmark.worker", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env={**os.environ, **pools, "PYTHONPATH": path},
        )
        try:
            self.hello = self._answer(START_S)
        except BaseException:
            self.end()
            raise
        self.cold_start_s = time.perf_counter() - began

    def warm_up(self, seconds: float) -> Times:
        """Query for so long, at least once: times in ms."""
        return _ms(self._ask(do="warm_up", seconds=seconds)["ns"])

    def turn(self, untimed: int, timed: int, do: str = "turn") -> Turn:
        """Query so often.

        Args:
            untimed: First.
            timed: Then.
            do: "jpeg" begins each query with the photograph.

        Raises:
            Dropped: The process ended, or does not answer.
        """
        answer = self._ask(do=do, untimed=untimed, timed=timed)
        return Turn(_ms(answer["ns"]), answer["cpu_ns"] / 1e6)

    def from_jpeg(self, path: str) -> "JpegTimer":
        """The same model, each query from a photograph's bytes.

        Args:
            path: Of the photograph, which is read once.
        """
        self._ask(do="photograph", path=path)
        return JpegTimer(self)

    def end(self) -> None:
        """Let the process end; one that does not is killed."""
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._complaints.close()

    def _ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise WorkerFailed(self._why_ended("")) from error
        return self._answer(ANSWER_S)

    def _answer(self, patience: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        late = threading.Timer(patience, self._process.kill)
        late.start()
        try:
            line = self._process.stdout.readline()
            waited_in_vain = not late.is_alive()
        finally:
            late.cancel()  # after Ctrl+C too: else this process would wait for it
        if not line:
            raise WorkerFailed(
                self._why_ended(f"gave no answer within {patience:.0f} s" if waited_in_vain else "")
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(self._limited(answer["error"]))
        return answer

    def _why_ended(self, known: str) -> str:
        """In one line: by which signal, or the last line of what it wrote on standard error."""
        status = self._process.wait()
        self._complaints.seek(0)
        said = [line.strip() for line in self._complaints.read().splitlines() if line.strip()]
        how = (
            f"ended by {signal.Signals(-status).name}"
            if status < 0
            else f"ended with status {status}"
        )
        return self._limited(known or ": ".join([how, *said[-1:]]))

    def _limited(self, reason: str) -> str:
        limit = self._spec.get("memory_mb")
        return (
            f"{reason} (under memory_mb={limit}, emulation)"
            if limit and "emulation" not in reason
            else reason
        )

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class JpegTimer:
    """A worker's model whose queries begin with a photograph.

    Args:
        worker: That has the photograph.
    """

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker

    def warm_up(self, seconds: float) -> Times:
        """The model is warm: one query loads the decoder, another is timed."""
        return self.turn(1, 1).times

    def turn(self, untimed: int, timed: int) -> Turn:
        """Query so often."""
        return self._worker.turn(untimed, timed, "jpeg")


def _ms(nanoseconds: list[int]) -> Times:
    return np.array(nanoseconds, dtype=np.float64) / 1e6


def measure(
    subjects: Sequence[BenchmarkModel], settings: BenchmarkSettings, photograph: bytes
) -> tuple[list[BenchmarkRow], str]:
    """Measure models side by side.

    Args:
        subjects: At least one.
        settings: How long, on how many threads, under which limits.
        photograph: A JPEG file's content.

    Returns:
        A row a model, in order; and the reference, "" where no model could be measured.
    """
    rows = [
        BenchmarkRow(each.label, each.runtime, each.run_id, each.model, reason=each.reason)
        for each in subjects
    ]
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
        row.figures = (
            {} if row.reason else row.figures
        )  # of one that ended half way some would be left
    return rows, _ratios(rows, dict(zip(going, streams, strict=True)), settings)


def _alone() -> AbstractContextManager[None]:
    """No other measurement of this project runs meanwhile."""
    try:
        from src.efficiency.latency import alone, shared_lock
    except ImportError:  # without torch on this device nothing else of the project measures here
        return contextlib.nullcontext()
    return alone(shared_lock())


def _started(
    subjects: Sequence[BenchmarkModel],
    rows: Sequence[BenchmarkRow],
    settings: BenchmarkSettings,
    stack: ExitStack,
) -> dict[int, WorkerProcess]:
    """Start each model's process some times; the last ones stay, by the model's place."""
    common: dict[str, int | None] = {"threads": settings.threads, "batch": settings.batch}
    common |= {"cores": settings.cores, "memory_mb": settings.memory_mb}
    told: dict[int, list[dict[str, Any]]] = {
        place: [] for place, row in enumerate(rows) if not row.reason
    }
    kept: dict[int, WorkerProcess] = {}
    with _bar(settings.cold_starts * len(told), "cold starts", "process") as bar:
        for repeat in range(settings.cold_starts):
            for place in [place for place in told if not rows[place].reason]:
                try:
                    worker = WorkerProcess(subjects[place].spec | common)
                except WorkerFailed as reason:
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


def _tell_start(row: BenchmarkRow, told: Sequence[dict[str, Any]], subject: BenchmarkModel) -> None:
    """Of several starts the medians."""
    description = Description.from_json(told[0]["description"], row.label)
    row.run_id, row.model, row.precision = (
        description.run_id,
        description.model,
        description.precision,
    )
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


def _streams(
    workers: Sequence[TimedModel], settings: BenchmarkSettings, energy: Rapl
) -> list[Stream]:
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
    counted = {
        "queries": stream.queries,
        "seconds": stream.seconds,
        "cpu_ms": stream.cpu_ms / stream.queries,
    }
    return known(latencies(stream.turns) | counted | {"energy_mj": energy})


def _end_to_end(
    workers: dict[int, WorkerProcess],
    rows: Sequence[BenchmarkRow],
    settings: BenchmarkSettings,
    photograph: bytes,
    stack: ExitStack,
) -> None:
    """The same from a photograph: reading from memory, decoding, making it square, and the model."""
    if not settings.jpeg_queries:
        return
    file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "photograph.jpg"
    file.write_bytes(photograph)
    readers: dict[int, JpegTimer] = {}
    for place, worker in workers.items():
        try:
            readers[place] = worker.from_jpeg(str(file))
        except WorkerFailed as reason:
            rows[place].reason = str(reason)
    with _shares("from a JPEG") as progress:
        streams = single_stream(
            list(readers.values()),
            settings.jpeg_queries,
            0.0,
            0.0,
            settings.turn_ms,
            progress=progress,
        )
    for place, stream in zip(readers, streams, strict=True):
        rows[place].reason = stream.dropped
        if not stream.dropped:
            found = latencies(stream.turns)
            rows[place].figures |= {
                f"jpeg_{name}": found[name] for name in ("p50_ms", "p90_ms", "p99_ms")
            }


def _still(
    rows: Sequence[BenchmarkRow], going: list[int], streams: list[Stream]
) -> tuple[list[int], list[Stream]]:
    left = [
        (place, stream)
        for place, stream in zip(going, streams, strict=True)
        if not rows[place].reason
    ]
    return [place for place, _ in left], [stream for _, stream in left]


def _ratios(
    rows: Sequence[BenchmarkRow], streams: dict[int, Stream], settings: BenchmarkSettings
) -> str:
    """Add the ratios; which row's time is 1."""
    wanted = reference(rows, settings.reference)
    streams = {place: stream for place, stream in streams.items() if not rows[place].reason}
    if wanted not in streams:
        if settings.reference or not streams:
            return ""
        wanted = next(iter(streams))
    for place, stream in streams.items():
        value, low, high = ratio(
            stream.turns, streams[wanted].turns, settings.samples, settings.level, settings.seed
        )
        rows[place].figures |= known({"ratio": value, "ratio_low": low, "ratio_high": high})
    return f"{rows[wanted].label} in {rows[wanted].runtime}"


def reference(rows: Sequence[BenchmarkRow], wanted: str | None) -> int:
    """Place of the row that is the reference.

    Args:
        rows: At least one.
        wanted: A runtime, the start of a run's id, or a label; or two of them, as in 3f2a9c:eager.
            The first row that fits. None: the first one.

    Raises:
        ConfigError: There is none such.
    """
    parts = wanted.split(":") if wanted else []
    for place, row in enumerate(rows):
        if all(
            part in (row.runtime, row.label) or (part and row.run_id.startswith(part))
            for part in parts
        ):
            return place
    raise ConfigError(
        "reference",
        f"{wanted} is none of {', '.join(f'{row.label}:{row.runtime}' for row in rows)}",
    )


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
