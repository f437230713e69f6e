"""How soon a trial trains: `python -m benchmarks.sweep.start [rounds=10]`.

From the moment a real trial (`src.run`: composed, built, recorded, its inputs described) is handed
to the local executor until its first batch is on the way into the net, and until that batch is
done; beside it the same config by itself in a fresh interpreter (`python -m src.train`), in turn.
Small synthetic pictures, decoded before; one trial at a time; the fork server runs, and one trial
of each kind is run before.

Must hold: at most 0.5 s to the first batch (median).
"""

import src  # noqa: F401, I001  first: it lets a CUDA torchvision be imported beside a CPU torch

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage
from pytorch_lightning import Callback

from benchmarks.sweep.harness import Setup, opened
from src.core.cli import ROOT
from src.sweep.executors.local import LocalExecutor
from src.sweep.records import Task

WANTED_S = 0.5
TINY = (
    "experiment=smoke",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "+callbacks.clock._target_=benchmarks.sweep.start.FirstBatch",
)


class FirstBatch(Callback):
    """Notes when the first batch goes into the net and when it is done: a line in a file.

    Args:
        file: Lines are appended to it.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.began = 0.0

    def on_train_batch_start(  # noqa: D102
        self, trainer: Any, module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.began = self.began or time.time()

    def on_train_batch_end(  # noqa: D102
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            with self.file.open("a") as file:
                file.write(f"{self.began} {time.time()}\n")


class NotingExecutor(LocalExecutor):
    """The local executor as a sweep has it, with a note of when each trial was handed over."""

    def __init__(self) -> None:
        super().__init__(1, devices=None, preload=["src.run:prepare_process", __spec__.name])
        self.asked: list[float] = []

    def submit(self, task: Task) -> Task:  # noqa: D102
        self.asked.append(time.time())
        return super().submit(task)


def forked(folder: Path, rounds: int) -> list[tuple[float, float]]:
    """Seconds from the request to the first batch and to its end, per trial; the first warms up."""
    executors: list[NotingExecutor] = []

    def executor(storage: BaseStorage) -> NotingExecutor:
        executors.append(NotingExecutor())
        return executors[-1]

    seeds = f"seed={','.join(map(str, range(rounds + 1)))}"
    sweep = (*TINY, f"+callbacks.clock.file={folder / 'forked'}", seeds)
    with opened(Setup(folder, sweep, body="src.run:run_trial"), executor) as owner:
        status = owner.run()
    assert status.counts["complete"] == rounds + 1, status.take_events()
    return since(executors[-1].asked, folder / "forked")[1:]


def fresh(folder: Path, rounds: int) -> list[tuple[float, float]]:
    """The same, each in an interpreter of its own."""
    request_times = []
    for seed in range(rounds + 1):
        outside = (f"tracking.folder={folder}", f"hydra.run.dir={folder / 'single' / str(seed)}")
        arguments = [*TINY, f"+callbacks.clock.file={folder / 'fresh'}", f"seed={seed}", *outside]
        request_times.append(time.time())
        subprocess.run(
            [sys.executable, "-m", "src.train", *arguments],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
    return since(request_times, folder / "fresh")[1:]


def since(request_times: Sequence[float], file: Path) -> list[tuple[float, float]]:
    """Seconds between asking and what `FirstBatch` noted."""
    noted = [tuple(map(float, line.split())) for line in file.read_text().splitlines()]
    return [
        (began - ask, ended - ask) for ask, (began, ended) in zip(request_times, noted, strict=True)
    ]


def main(arguments: Sequence[str]) -> None:
    options = dict(argument.split("=", 1) for argument in arguments)
    rounds = int(options.get("rounds", 10))
    with tempfile.TemporaryDirectory() as folder:
        times = {
            "a fresh interpreter": fresh(Path(folder), rounds),
            "the local executor": forked(Path(folder), rounds),
        }
    print(
        f"median of {rounds} trials on {os.cpu_count()} cores; asked to first batch, and to its end"
    )
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in times.items()
    }
    rival = medians["a fresh interpreter"][0]
    for name, (began, ended) in medians.items():
        print(f"{name:20s} {began:6.2f} s {ended:6.2f} s   {rival / began:5.1f} times as fast")
    ours = medians["the local executor"][0]
    print(f"wanted: at most {WANTED_S} s: {'holds' if ours <= WANTED_S else 'does not hold'}")


if __name__ == "__main__":
    main(sys.argv[1:])
