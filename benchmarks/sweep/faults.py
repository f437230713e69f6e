"""Kills processes and servers at random and checks the stores: `python -m benchmarks.sweep.faults`.

A grid of 1,000 stub trials on 8 workers. 5% of the trials' processes are killed (signal 9) at
random moments, and so is the owner, three times; the same command starts it again each time. In
mode `postgresql` the study's database is a PostgreSQL server that is restarted once, in mode
`mlflow` the runs are on a tracking server that is away for `away_s` once.

    python -m benchmarks.sweep.faults [modes=sqlite,postgresql,mlflow] [n_jobs=8] [share=0.05]
    [owner_kills=3] [seconds=0.2] [away_s=60] [seed=0] [a=range(10) ...]

Must hold: one complete trial for each cell, none lost, none double, all counted; nothing runs or
waits any more; Optuna and MLflow agree on each trial's state and value, and arithmetic on each
value; no process is left.
"""

import contextlib
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import psutil
import yaml
from optuna.trial import FrozenTrial, TrialState

from benchmarks.sweep import servers, stubs
from benchmarks.sweep.harness import STUDY, Setup
from src.sweep import space as spaces
from src.sweep import study as studies
from src.sweep.records import CELL, outcome_of
from src.sweep.storage import open_storage

if TYPE_CHECKING:
    from mlflow.entities import Run

MARK = "PARETODERM_FAULTS"  # in the environment of every process of a study
LOOK_S = 0.02  # between two looks at the processes
LEFT_S = 20.0  # a trial whose owner is gone has so long to end


@dataclass(frozen=True)
class Chaos:
    """What is done to a study.

    Attributes:
        folder: Of the study.
        sweep: The grid.
        n_jobs: Workers.
        share: Of the trials' processes that are killed.
        owner_kills: How often the owner is killed.
        seconds: That a trial sleeps.
        seed: Of the random moments.
        storage: URL of the study's database; None: a SQLite file in `folder`.
        tracking: URL of the run store; None: a SQLite file in `folder`.
        outage: Called once, in the middle of the study: takes a server away for a while.
    """

    folder: Path
    sweep: Sequence[str] = ("a=range(10)", "b=range(10)", "c=range(10)")
    n_jobs: int = 8
    share: float = 0.05
    owner_kills: int = 3
    seconds: float = 0.2
    seed: int = 0
    storage: str | None = None
    tracking: str | None = None
    outage: Callable[[], None] | None = None

    @property
    def n_cells(self) -> int:
        """Of the grid."""
        return spaces.parse(list(self.sweep), {}, {}, [], [])[0].n_cells or 0

    @property
    def command(self) -> list[str]:
        """That starts the study, and goes on with it."""
        settings = {"folder": self.folder, "n_jobs": self.n_jobs, "retries": 50, "stop_after": 0}
        settings |= {"seconds": self.seconds, "epochs": 2}
        places = {"storage": self.storage, "tracking": self.tracking}
        settings |= {name: url for name, url in places.items() if url}
        options = [f"{name}={value}" for name, value in settings.items()]
        return [sys.executable, "-m", "benchmarks.sweep.harness", *options, *self.sweep]


class Killer:
    """Kills trials' processes, and the owner.

    Args:
        chaos: How many.

    Attributes:
        seen: Trials' processes so far.
        killed: How many of them were killed.
        owners: How often the owner was.
    """

    def __init__(self, chaos: Chaos) -> None:
        self.chaos = chaos
        self.random = random.Random(chaos.seed)
        self.seen: dict[psutil.Process, float] = {}  # process -> when it was seen first
        self.killed = self.owners = 0
        self._doomed: dict[psutil.Process, float] = {}  # process -> when it is to be killed
        n, rounds = chaos.n_cells, chaos.owner_kills
        # one moment in each part of the study, not in its last bit: there has to be something left
        # to do
        self._moments = [
            int(n * (part + self.random.uniform(0.2, 0.9)) / (rounds + 0.5))
            for part in range(rounds)
        ]
        # where the owner is not killed, which could not start without its servers
        self._outage_at = int(n * (rounds // 2 + 0.05) / (rounds + 0.5))
        self.outage: threading.Thread | None = None

    def watch(self, owner: "subprocess.Popen[bytes]") -> None:
        """Kill what is to be killed, until the owner has ended or was killed."""
        process = psutil.Process(owner.pid)
        while owner.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._look([trial for server in process.children() for trial in server.children()])
            begun = sum(1 for _ in (self.chaos.folder / "trials").glob("*"))
            if self.chaos.outage and not self.outage and begun >= self._outage_at:
                self.outage = threading.Thread(target=self.chaos.outage)
                self.outage.start()
            if self.owners < len(self._moments) and begun >= self._moments[self.owners]:
                time.sleep(self.random.uniform(0, 0.3))
                owner.kill()
                owner.wait()
                self.owners += 1
                return
            time.sleep(LOOK_S)

    def _look(self, trials: list[psutil.Process]) -> None:
        now = time.monotonic()
        for trial in trials:
            if trial not in self.seen:
                self.seen[trial] = now
                if self.killed + len(self._doomed) < self.chaos.share * len(self.seen):
                    self._doomed[trial] = now + self.random.uniform(0, 2 * self.chaos.seconds)
        for trial, moment in list(self._doomed.items()):
            if trial not in trials:  # it was quicker: another one will be killed instead
                del self._doomed[trial]
            elif now >= moment:
                with contextlib.suppress(psutil.NoSuchProcess):
                    trial.kill()
                    self.killed += 1
                del self._doomed[trial]


def torment(chaos: Chaos) -> Killer:
    """Run the study to its end, whatever is killed meanwhile.

    Raises:
        RuntimeError: The owner ended otherwise than by our hand; its output is in `owner.log`.
    """
    killer = Killer(chaos)
    environment = {**os.environ, MARK: str(chaos.folder)}
    chaos.folder.mkdir(parents=True, exist_ok=True)
    while True:
        before = killer.owners
        with (chaos.folder / "owner.log").open("ab") as log:
            owner = subprocess.Popen(chaos.command, stdout=log, stderr=log, env=environment)
            try:
                killer.watch(owner)
            finally:
                if owner.poll() is None:
                    owner.kill()
            status = owner.wait()
        if status == 0:
            if killer.outage:
                killer.outage.join()
            return killer
        if killer.owners == before:
            raise RuntimeError(
                f"the owner ended with status {status}:\n{(chaos.folder / 'owner.log').read_text()}"
            )


def problems(chaos: Chaos) -> list[str]:
    """What is wrong with the study, a line each."""
    setup = Setup(chaos.folder, storage=chaos.storage, tracking=chaos.tracking)
    storage = open_storage(setup.url)
    trials = storage.get_all_trials(storage.get_study_id_from_name(STUDY))
    recorded: dict[str, list[Run]] = defaultdict(list)
    parents: list[Run] = []
    for run in setup.store.search("attributes.status != ''"):
        (recorded[run.data.tags["trial"]] if "trial" in run.data.tags else parents).append(run)
    faulty = [
        f"MLflow: the study's own run is {run.info.status}"
        for run in parents
        if run.info.status != "FINISHED"
    ]
    faulty += [f"MLflow: {len(parents)} runs of the study itself"] * (len(parents) != 1)
    faulty += _cells_problems(chaos, trials)
    for trial in trials:
        faulty += [
            f"trial {trial.number}: {text}"
            for text in _disagreement(trial, recorded.pop(str(trial.number), []))
        ]
    faulty += [f"MLflow: runs of trial {number}, which Optuna does not know" for number in recorded]
    return faulty + [f"process {process.pid} is left" for process in left_over(chaos.folder)]


def _cells_problems(chaos: Chaos, trials: list[FrozenTrial]) -> list[str]:
    cells = [cell.overrides for cell in spaces.parse(list(chaos.sweep), {}, {}, [], [])[0].cells()]
    complete = Counter(
        tuple(trial.system_attrs[CELL]) for trial in trials if trial.state is TrialState.COMPLETE
    )
    counted = studies.counted(trials)
    faulty = [f"{counted} trials count, not {len(cells)}"] * (counted != len(cells))
    # of a cell that is lost: why its last trial failed
    outcomes = {tuple(one.system_attrs.get(CELL, ())): outcome_of(one) for one in trials}
    faulty += [
        f"{' '.join(cell)}: complete {complete[cell]} times, last outcome: {outcomes.get(cell)}"
        for cell in cells
        if complete[cell] != 1
    ]
    return faulty + [
        f"{' '.join(cell)}: no cell of the grid" for cell in complete if cell not in set(cells)
    ]


def _disagreement(trial: FrozenTrial, runs: "list[Run]") -> list[str]:
    if not trial.state.is_finished():
        return [f"is {trial.state.name} in Optuna"]
    if len(runs) != 1:
        return [f"has {len(runs)} runs in MLflow"]
    run = runs[0]
    state = run.data.tags.get("trial_state")
    complete = trial.state is TrialState.COMPLETE
    outcome = outcome_of(trial)
    put_back = outcome is not None and outcome.kind == "stopped"
    expected = "complete" if complete else "put_back" if put_back else "fail"
    statuses = ("FAILED", "KILLED") if expected == "fail" else ("FINISHED",)
    faulty = []
    if run.info.status not in statuses or state != expected:
        faulty.append(f"is {trial.state.name} in Optuna, {run.info.status} ({state}) in MLflow")
    if complete:
        arithmetic = stubs.expected(trial.system_attrs[CELL])[stubs.ACCURACY]
        values = [trial.value, run.data.metrics.get(stubs.ACCURACY), arithmetic]
        if len(set(values)) != 1:
            faulty.append("is {} in Optuna, {} in MLflow, {} by arithmetic".format(*values))
        if trial.user_attrs.get("run_id") != run.info.run_id:
            faulty.append("names another run than the one that MLflow has")
    return faulty


def is_alive(number: int) -> bool:
    """Whether a process runs: it is there, and not merely waits to be collected by its parent."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(number).status() != psutil.STATUS_ZOMBIE)
    return False


def left_over(folder: Path) -> list[psutil.Process]:
    """Processes of the study that are still there after a while."""
    until = time.monotonic() + LEFT_S
    while (processes := _marked(folder)) and time.monotonic() < until:
        time.sleep(0.2)
    return processes


def _marked(folder: Path) -> list[psutil.Process]:
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (
                process.environ().get(MARK) == str(folder)
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                processes.append(process)
    return processes


@contextlib.contextmanager
def chaos_in(mode: str, folder: Path, away_s: float, **options: Any) -> Iterator[Chaos]:
    """What is done to a study in a mode, with its server."""
    if mode == "sqlite":
        yield Chaos(folder / "study", **options)
        return
    if mode == "postgresql":
        option, away_s, start = "storage", 2.0, servers.postgresql()
    else:
        option, start = "tracking", servers.mlflow(folder / "mlflow.db", folder / "server.log")
    with start as server:

        def outage() -> None:
            server.stop()
            time.sleep(away_s)
            server.start()

        yield Chaos(folder / "study", outage=outage, **{**options, option: server.url})


def main(arguments: Sequence[str]) -> None:
    names = ("n_jobs", "share", "owner_kills", "seconds", "seed")
    pairs = dict(argument.split("=", 1) for argument in arguments)
    modes = pairs.pop("modes", "sqlite,postgresql,mlflow").split(",")
    away_s = float(pairs.pop("away_s", 60))
    options: dict[str, Any] = {
        name: yaml.safe_load(pairs.pop(name)) for name in names if name in pairs
    }
    if pairs:
        options["sweep"] = [f"{name}={value}" for name, value in pairs.items()]
    rows: list[dict[str, Any]] = []
    every: list[str] = []
    for mode in modes:
        with (
            tempfile.TemporaryDirectory() as folder,
            chaos_in(mode, Path(folder), away_s, **options) as chaos,
        ):
            began = time.perf_counter()
            killer = torment(chaos)
            seconds = time.perf_counter() - began
            faulty = problems(chaos)
        every += [f"{mode}: {text}" for text in faulty]
        outages = {"sqlite": "-", "postgresql": "restarted", "mlflow": f"away for {away_s:g} s"}
        row: dict[str, Any] = {"mode": mode, "trials": chaos.n_cells, "jobs": chaos.n_jobs}
        row |= {"trials killed": f"{killer.killed} of {len(killer.seen)}"}
        row |= {"owners killed": killer.owners, "server": outages[mode], "seconds": round(seconds)}
        row["lost"] = sum("complete 0 times" in text for text in faulty)
        is_double = re.compile(r"complete \d+ times|has ([2-9]|\d\d+) runs").search
        row["double"] = sum(bool(is_double(text)) for text in faulty) - row["lost"]
        rows.append({**row, "other problems": len(faulty) - row["lost"] - row["double"]})
        print(pd.DataFrame(rows).to_markdown(index=False), flush=True)
    print("\n".join(every[:50]))
    sys.exit(bool(every))


if __name__ == "__main__":
    main(sys.argv[1:])
