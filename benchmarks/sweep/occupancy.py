"""Occupancy: `python -m benchmarks.sweep.occupancy [n_trials=160] [n_jobs=4] [shortest=2]`.

Stub trials that sleep, the longest ten times as long as the shortest, in random order, with the
real owner, local executor and stores. The wall time, from the first start to the last end, is set
beside the best schedule of the bare sleeps that anybody could make who knows them all beforehand:
no schedule is shorter than the sum over the workers or than the longest trial, and longest-first
comes close to that. Beside it: the same order started greedily with nothing lost in between (all
that can be had without knowing the sleeps), and in batches that wait for their slowest. The fork
server is started, and one trial run, before.

Must hold: at most 1.05 times the best schedule.
"""

import heapq
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from optuna.storages import BaseStorage

from benchmarks.sweep.harness import Setup, StubExecutor, opened
from src.sweep.records import EndedTask, Task

WANTED = 1.05
DEFAULTS = {"n_trials": 160, "n_jobs": 4, "shortest": 2.0, "seed": 0}


class TimedExecutor(StubExecutor):
    """The local executor; it notes when each trial was submitted and when its end was seen."""

    def __init__(self, n_jobs: int) -> None:
        super().__init__(n_jobs)
        self.began: dict[int, float] = {}
        self.ended: dict[int, float] = {}

    def submit(self, task: Task) -> Task:  # noqa: D102
        self.began[task.number] = time.perf_counter()
        return super().submit(task)

    def wait(self, timeout: float) -> list[EndedTask]:  # noqa: D102
        ends = super().wait(timeout)
        self.ended |= dict.fromkeys((end.task.number for end in ends), time.perf_counter())
        return ends


def lengths(n_trials: int, shortest: float, seed: int) -> list[float]:
    """Durations from `shortest` to ten times that, evenly spread on a log scale, shuffled."""
    durations = [round(shortest * 10 ** (number / (n_trials - 1)), 4) for number in range(n_trials)]
    random.Random(seed).shuffle(durations)
    return durations


def greedy(seconds: Sequence[float], n_jobs: int) -> float:
    """Wall time if each trial, in this order, starts the moment a worker is free."""
    workers = [0.0] * n_jobs
    for duration in seconds:
        heapq.heappush(workers, heapq.heappop(workers) + duration)
    return max(workers)


def batched(seconds: Sequence[float], n_jobs: int) -> float:
    """Wall time if each batch of `n_jobs` waits for its slowest."""
    return sum(max(seconds[start : start + n_jobs]) for start in range(0, len(seconds), n_jobs))


def measured(sweep: Sequence[str], n_jobs: int) -> tuple[float, list[float]]:
    """Wall time of the study, and how long the process of each trial existed."""
    made: list[TimedExecutor] = []

    def executor(storage: BaseStorage) -> TimedExecutor:
        made.append(TimedExecutor(n_jobs))
        return made[-1]

    with (
        tempfile.TemporaryDirectory() as folder,
        opened(Setup(Path(folder), sweep), executor) as owner,
    ):
        owner.run()
        status = owner.status
        assert status.counts["complete"] == status.total, status.counts
    began, ended = made[-1].began, made[-1].ended
    return max(ended.values()) - min(began.values()), [
        ended[number] - began[number] for number in sorted(began)
    ]


def main(arguments: Sequence[str]) -> None:
    options = DEFAULTS | dict(argument.split("=", 1) for argument in arguments)
    n_trials, n_jobs, seed = (int(options[name]) for name in ("n_trials", "n_jobs", "seed"))
    seconds = lengths(n_trials, float(options["shortest"]), seed)
    measured(["seconds=0"], n_jobs)
    wall, lasted = measured([f"seconds={','.join(map(str, seconds))}"], n_jobs)
    bound = max(sum(seconds) / n_jobs, max(seconds))
    best = greedy(sorted(seconds, reverse=True), n_jobs)
    print(
        f"{n_trials} trials of {min(seconds):g} to {max(seconds):g} s, {n_jobs} workers, "
        f"{os.cpu_count()} cores"
    )
    for name, value in {
        "lower bound of any schedule": bound,
        "best schedule (longest first)": best,
        "this order, nothing lost": greedy(seconds, n_jobs),
        f"batches of {n_jobs}": batched(seconds, n_jobs),
        "measured": wall,
    }.items():
        print(f"{name:30s} {value:7.2f} s   {value / best:.3f} times the best")
    overhead = statistics.fmean(lasted) - statistics.fmean(seconds)
    print(f"of a trial {overhead:.2f} s are no sleep: its process starts, records, ends (mean)")
    print(
        f"workers had a process {sum(lasted) / n_jobs / wall:.1%} of the time; "
        "the rest is the owner and the tail"
    )
    print(f"wanted: at most {WANTED}: {'holds' if wall / best <= WANTED else 'does not hold'}")


if __name__ == "__main__":
    main(sys.argv[1:])
