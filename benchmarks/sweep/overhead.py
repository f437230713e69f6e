"""Time of the sweeper per trial as a study grows: `python -m benchmarks.sweep.overhead`.

Two objectives, nine parameters, TPE, SQLite. The study is filled with finished trials up to each
size, then some more are run through the real owner by an executor that runs nothing: what is left
is asking, telling, noting and showing. The sampler's own time is taken apart by a clock around its
calls.

Must hold: at most 0.1 s a trial at 1,000 trials; without the sampler at most twice what it is at
100.
"""

import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import TrialState, create_trial
from rich.console import Console

from benchmarks.sweep import stubs
from benchmarks.sweep.harness import ScriptedExecutor, Setup, opened
from src.core.cli import ROOT
from src.sweep import records
from src.sweep.display import LiveView
from src.sweep.records import EndedTask, Task, TrialOutcome
from src.sweep.samplers import make_sampler
from src.sweep.scheduler import Scheduler
from src.sweep.study import readable

SIZES = (100, 300, 1000)
RUN = 50  # trials a size, half before it and half behind
WANTED_S, WANTED_GROWTH = 0.1, 2.0
TPE = yaml.safe_load((ROOT / "conf/hydra/sweeper/sampler/tpe.yaml").read_text())
SPACE = (
    "width=choice(4,8,16,32,64)",
    "depth=range(1,7)",
    "dense=choice(64,128,256,512)",
    "size=choice(32,64,96,128)",
    "loss=choice(cross_entropy,focal,weighted)",
    "dropout=interval(0.0,0.6)",
    "lr=tag(log,interval(1e-4,1e-1))",
    "decay=tag(log,interval(1e-6,1e-2))",
    "smoothing=interval(0.0,0.2)",
)


class TimedSampler(BaseSampler):
    """A sampler with a clock around all its calls.

    Args:
        sampler: The one that draws.

    Attributes:
        seconds: That its calls took.
    """

    def __init__(self, sampler: BaseSampler) -> None:
        self.sampler = sampler
        self.seconds = 0.0

    def _timed(self, call: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*arguments)
        finally:
            self.seconds += time.perf_counter() - began

    def reseed_rng(self) -> None:  # noqa: D102
        self.sampler.reseed_rng()

    def infer_relative_search_space(self, *arguments: Any) -> Any:  # noqa: D102
        return self._timed(self.sampler.infer_relative_search_space, *arguments)

    def sample_relative(self, *arguments: Any) -> Any:  # noqa: D102
        return self._timed(self.sampler.sample_relative, *arguments)

    def sample_independent(self, *arguments: Any) -> Any:  # noqa: D102
        return self._timed(self.sampler.sample_independent, *arguments)

    def before_trial(self, *arguments: Any) -> None:  # noqa: D102
        self._timed(self.sampler.before_trial, *arguments)

    def after_trial(self, *arguments: Any) -> None:  # noqa: D102
        self._timed(self.sampler.after_trial, *arguments)


class ClockedExecutor(ScriptedExecutor):
    """Runs nothing, and measures the time between its waits: the scheduler's work.

    Attributes:
        work: Seconds of the scheduler's work.
    """

    work = 0.0
    _since: float | None = None

    def free(self) -> int:  # noqa: D102
        self._since = self._since or time.perf_counter()
        return super().free()

    def wait(self, timeout: float) -> list[EndedTask]:  # noqa: D102
        self.work += time.perf_counter() - (self._since or time.perf_counter())
        try:
            return super().wait(timeout)
        finally:
            self._since = time.perf_counter()


def answer(task: Task) -> tuple[TrialOutcome, int]:
    """A trial that is complete at once, with as many metrics as a real one has."""
    metrics = stubs.expected(task.payload["cell"]) | {
        f"best/val/other_{number}": number / 7 for number in range(30)
    }
    return TrialOutcome("complete", metrics=metrics, run_id="0" * 32, epoch=40), 0


def fill(owner: Scheduler, sampler: BaseSampler, n_trials: int) -> None:
    """Add finished trials as the owner leaves them, of parameters drawn at random."""
    drawn = optuna.create_study(sampler=sampler, directions=["maximize", "minimize"])
    for _ in range(n_trials):
        trial = drawn.ask()
        cell = owner.study.space.suggest(trial)
        metrics = stubs.expected(cell.overrides)
        outcome = TrialOutcome("complete", metrics=metrics, run_id="0" * 32, epoch=40)
        system_attrs = {
            records.CELL: list(cell.overrides),
            records.PROGRESS: {"epoch": 40, "epochs": 40, "metrics": {}, "time": 0.0},
            records.OUTCOME: asdict(outcome),
        }
        run_attributes = {"folder": str(owner.folder / "filled"), "run_id": "0" * 32}
        attributes = {**run_attributes, **readable(owner.study, outcome)}
        values = [metrics[stubs.ACCURACY], metrics[stubs.FLOPS]]
        frozen = drawn.tell(trial, values)
        owner.study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                params=frozen.params,
                distributions=frozen.distributions,
                values=values,
                user_attrs=attributes,
                system_attrs=system_attrs,
            )
        )


def measure(setup: Setup, size: int) -> tuple[float, float]:
    """Milliseconds a trial around a size of the study: in all, and of the sampler."""
    sampler = TimedSampler(make_sampler(TPE, size, setup.n_objectives, 0).sampler)
    setup = replace(setup, n_trials=size + RUN // 2, sampler=sampler)

    executors: list[ClockedExecutor] = []

    def executor(storage: BaseStorage) -> ScriptedExecutor:
        executors.append(ClockedExecutor(storage, answer, setup.n_jobs))
        return executors[-1]

    with opened(setup, executor) as owner:
        there = len(owner.study.get_trials(deepcopy=False))
        fill(owner, optuna.samplers.RandomSampler(seed=size), size - RUN // 2 - there)
    with (
        LiveView("stubs", Console(file=io.StringIO())) as view,
        opened(setup, executor, view.show) as owner,
    ):
        sampler.seconds = 0.0
        owner.run()
        assert owner.status.n_seen == RUN, owner.status.counts
        return 1000 * executors[-1].work / RUN, 1000 * sampler.seconds / RUN


def main(arguments: Sequence[str]) -> None:
    options = dict(argument.split("=", 1) for argument in arguments)
    without_sampler = {}
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(Path(folder), SPACE, n_objectives=2, n_jobs=int(options.get("n_jobs", 4)))
        print(
            f"{len(SPACE)} parameters, 2 objectives, TPE, {setup.n_jobs} workers, "
            f"{os.cpu_count()} cores; ms per trial"
        )
        for size in SIZES:
            total, sampler = measure(setup, size)
            without_sampler[size] = total - sampler
            print(
                f"{size:5d} trials: {total:6.1f} in all, {sampler:6.1f} the sampler, "
                f"{without_sampler[size]:6.1f} the rest"
            )
    growth = without_sampler[SIZES[-1]] / without_sampler[SIZES[0]]
    holds = total <= 1000 * WANTED_S and growth <= WANTED_GROWTH
    print(
        f"without the sampler {growth:.2f} times from {SIZES[0]} to {SIZES[-1]} trials "
        f"(required: at most {WANTED_GROWTH:g}"
    )
    print(
        f", and {1000 * WANTED_S:.0f} ms in all at {SIZES[-1]}): {'held' if holds else 'NOT HELD'}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
