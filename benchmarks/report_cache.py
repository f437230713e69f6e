"""What the local cache of runs saves: `python -m benchmarks.report_cache [runs=10000] [new=10]`.

A SQLite store is filled through its tables with runs of 60 parameters, 60 metrics and 15 tags that
ended long ago. All are read from it (cold), then from the cache with nothing new (warm, median of
the rounds), then after a few runs were added. The histories of one metric, 20 steps of 500 runs,
are read from the store and from the cache.

Must hold: with 10,000 runs a warm read takes less than 3 s, as does one after 10 new runs. Takes a
few minutes, nearly all for the cold read.
"""

import contextlib
import random
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from src.tracking.read import cached_runs, history
from src.tracking.run import Run
from src.tracking.store import Store

T = TypeVar("T")
PARAMS, METRICS, TAGS = 60, 60, 15
STEPS, CURVES = 20, 500
ROUNDS = 5
LONG_AGO = 1_600_000_000_000  # ms
WANTED_S = 3.0
# tables of MLflow 3 with their columns
RUNS = (
    "runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, "
    "start_time, end_time,"
    " source_version, lifecycle_stage, artifact_uri, experiment_id)"
)
PARAMETERS = "params (run_uuid, key, value)"
TAGGED = "tags (run_uuid, key, value)"
LATEST = "latest_metrics (run_uuid, key, value, timestamp, step, is_nan)"
HISTORY = "metrics (run_uuid, key, value, timestamp, step, is_nan)"


def main() -> None:
    options = {
        name: int(value) for name, value in (argument.split("=", 1) for argument in sys.argv[1:])
    }
    count, new = options.get("runs", 10_000), options.get("new", 10)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{folder}/mlflow.db", folder=folder).open()
        ids, filling = timed(lambda: fill(store, count))
        print(
            f"{count} runs, {PARAMS} parameters, {METRICS} metrics, {TAGS} tags; "
            f"filled in {filling:.1f} s",
            flush=True,
        )
        frame, cold = timed(lambda: cached_runs(store))
        assert len(frame) == count
        show("cold", cold, cold)
        warm = statistics.median(timed(lambda: cached_runs(store))[1] for _ in range(ROUNDS))
        show("warm", warm, cold)
        for number in range(new):
            with Run.start(
                store, f"new {number}", params=dict.fromkeys(map(str, range(PARAMS)), number)
            ) as run:
                run.log({name(metric): 0.5 for metric in range(METRICS)})
        frame, after = timed(lambda: cached_runs(store))
        assert len(frame) == count + new
        show(f"{new} new", after, cold)
        size = sum(path.stat().st_size for path in Path(folder, "cache").iterdir())
        print(
            f"on disk {size / 1e6:.1f} MB, "
            f"in memory {frame.memory_usage(deep=True).sum() / 1e6:.0f} MB"
        )
        curves, first = timed(lambda: history(store, ids[:CURVES], name(0)))
        assert len(curves) == STEPS * min(CURVES, count)
        _, again = timed(lambda: history(store, ids[:CURVES], name(0)))
        print(
            f"histories of {min(CURVES, count)} runs: {first:.2f} s from the store, "
            f"{again:.2f} s from the cache"
        )
        print(
            f"required: warm and {new} new under {WANTED_S} s: "
            f"{'held' if max(warm, after) < WANTED_S else 'NOT HELD'}"
        )


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What a call gives and the seconds it takes."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def show(label: str, seconds: float, cold: float) -> None:
    print(f"{label:8s} {seconds:8.2f} s   {cold / seconds:7.1f} times as fast as cold", flush=True)


def name(metric: int) -> str:
    return f"best/val/metric_{metric}"


def fill(store: Store, count: int) -> list[str]:
    """Write runs into MLflow's tables directly (the client takes an hour); returns their ids."""
    draw = random.Random(0)
    runs = [
        (uuid.UUID(int=draw.getrandbits(128)).hex, LONG_AGO + 60_000 * number)
        for number in range(count)
    ]
    experiment = store.experiment_id
    rows: dict[str, Iterable[tuple[object, ...]]] = {
        RUNS: (run_row(run, at, at + 50_000, f"/none/{run}", experiment) for run, at in runs),
        PARAMETERS: (
            (run, f"model.net.parameter_{number}", str(draw.choice((16, 32, 64, 0.1, "relu"))))
            for run, _ in runs
            for number in range(PARAMS)
        ),
        TAGGED: (
            (run, f"tag_{number}", f"value {draw.randrange(20)}")
            for run, _ in runs
            for number in range(TAGS)
        ),
        LATEST: (
            (run, name(number), draw.random(), at, STEPS, 0)
            for run, at in runs
            for number in range(METRICS)
        ),
        HISTORY: (
            (run, name(0), draw.random(), at + step, step, 0)
            for run, at in runs[:CURVES]
            for step in range(STEPS)
        ),
    }
    insert(store, rows)
    return [run for run, _ in runs]


def run_row(run: str, start: int, end: int, artifacts: str, experiment: str) -> tuple[object, ...]:
    """A finished run as a row of `RUNS`; times in ms."""
    return (
        run,
        "custom",
        "LOCAL",
        "",
        "",
        "user",
        "FINISHED",
        start,
        end,
        "",
        "active",
        artifacts,
        experiment,
    )


def insert(store: Store, rows: dict[str, Iterable[tuple[object, ...]]]) -> None:
    """Write rows into the tables of a SQLite store.

    Args:
        store: Opened.
        rows: By table with its columns, such as "tags (run_uuid, key, value)".
    """
    assert store.database is not None
    with contextlib.closing(sqlite3.connect(store.database, timeout=60)) as connection, connection:
        for table, values in rows.items():
            marks = ", ".join("?" * (table.count(",") + 1))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", values)


if __name__ == "__main__":
    main()
