"""A study of stub trials with the real owner, database and run store, in this process or as one.

    python -m benchmarks.sweep.harness folder=<a folder> n_jobs=8 retries=50 'a=range(10)'
    'b=range(10)' seconds=0.1

What is no setting of the harness (`Setup`) is the sweep's: swept if it is a sweep by Hydra's
grammar, else shared by all trials. The same command again goes on with the study.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import optuna
import yaml

from benchmarks.sweep import stubs
from src.metrics.registry import parse_limits, parse_objectives
from src.sweep import space as spaces
from src.sweep import study as studies
from src.sweep.executors import base
from src.sweep.executors.base import Executor, plain_slots
from src.sweep.executors.local import LocalExecutor
from src.sweep.records import OUTCOME, EndedTask, StudyStatus, Task, TrialOutcome
from src.sweep.scheduler import RunPolicy, Scheduler, StudyRecorder
from src.sweep.storage import KEY, default_url, open_storage, ownership
from src.sweep.trial import TERMINATED
from src.tracking.retry import Retry
from src.tracking.store import Store, reap

STUDY = "stubs"
BODY = "benchmarks.sweep.stubs:run"
STUB_MODULES = (
    "src",
    "optuna",
    "optuna.storages._rdb.storage",
    "sqlalchemy.dialects.sqlite",
    "alembic",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.artifact.local_artifact_repo",
    "src.sweep.executors.base",
    "src.sweep.trial",
    "benchmarks.sweep.stubs",
)
Answer = Callable[[Task], tuple[TrialOutcome | None, int] | None]


@dataclass(frozen=True)
class Setup(RunPolicy):
    """A study of stub trials.

    Attributes:
        folder: Where all of it lies: the databases, the trials' folders.
        sweep: What is swept or fixed, as on a command line.
        exclude: Cells to leave out.
        n_objectives: 1 (balanced accuracy up), or 2 (and FLOPs down).
        limits: Such as "efficiency/flops <= 500e6".
        sampler: Proposes, unless it is a grid; None: random.
        n_jobs: Trials at once, where an executor is made.
        body: Of the trials.
        storage: URL of the study's database; None: a SQLite file in `folder`.
        tracking: URL of the run store; None: a SQLite file in `folder`.
        storage_wait_s: Longest outage of a server that is waited for.

    All else is as in `RunPolicy`.
    """

    folder: Path
    sweep: Sequence[str] = ()
    exclude: Sequence[str] = ()
    n_objectives: int = 1
    limits: Sequence[str] = ()
    sampler: optuna.samplers.BaseSampler | None = None
    n_jobs: int = 2
    learns_from_pruned: bool = True
    body: str = BODY
    storage: str | None = None
    tracking: str | None = None
    storage_wait_s: float = 300
    retries: int = field(default=0, kw_only=True)
    grace_s: float = field(default=5.0, kw_only=True)

    @property
    def url(self) -> str:
        """Of the study's database."""
        return self.storage or default_url(self.folder)

    @property
    def store(self) -> Store:
        """The runs of the study."""
        uri = self.tracking or f"sqlite:///{self.folder / 'mlflow.db'}"
        store = Store(uri=uri, experiment="stubs", folder=self.folder)
        store.retry.seconds = self.storage_wait_s
        return store


class ScriptedExecutor(Executor):
    """Runs nothing: says how each task ended, one at a look, in the order of their starts.

    Args:
        storage: Where the outcomes are written, as the trials' processes would.
        answer: What comes of a task, and its exit code; None while it goes on. Without an outcome
            none is written, as by a process that was killed. What it raises comes out of `wait`.
        n_jobs: Slots.
    """

    def __init__(
        self, storage: optuna.storages.BaseStorage, answer: Answer, n_jobs: int = 1
    ) -> None:
        super().__init__(plain_slots(n_jobs))
        self.storage = storage
        self.answer = answer
        self.submitted: list[Task] = []
        self.seconds = 0.0  # that writing the outcomes took
        self._asked_to_end: list[Task] = []

    def _start(self, task: Task) -> Task:
        self.submitted.append(task)
        return task

    def _gone(self) -> list[EndedTask]:
        for task in self.running():
            if task in self._asked_to_end:
                return [EndedTask(task, TERMINATED, "ended with exit code 143")]
            if found := self.answer(task):
                outcome, exitcode = found
                if outcome is not None:
                    began = time.perf_counter()
                    self.storage.set_trial_system_attr(task.trial_id, OUTCOME, asdict(outcome))
                    self.seconds += time.perf_counter() - began
                return [EndedTask(task, exitcode, base.ending(exitcode))]
        return []

    def _pause(self, seconds: float) -> None:
        time.sleep(min(seconds, 0.01))

    def _ask_to_end(self, handle: Task) -> None:
        self._asked_to_end.append(handle)

    _kill = _ask_to_end


class StubExecutor(LocalExecutor):
    """The local executor with a fork server that does not import torch."""

    def __init__(self, n_jobs: int) -> None:
        super().__init__(n_jobs, devices=None, threads=None)
        self._modules = list(STUB_MODULES)


def open_study(
    setup: Setup, storage: optuna.storages.BaseStorage, name: str = STUDY
) -> tuple[studies.OwnedStudy, list[str]]:
    """The study in a storage, and the overrides that its trials share."""
    space, fixed = spaces.parse(list(setup.sweep), {}, {}, [], list(setup.exclude))
    objectives = parse_objectives({"objectives": stubs.objectives(setup.n_objectives)})
    limits = parse_limits({"limits": list(setup.limits)})
    sampler = setup.sampler or optuna.samplers.RandomSampler(seed=0)
    study = studies.open_study(storage, name, objectives, limits, space, fixed, sampler)
    study.learns_from_pruned = setup.learns_from_pruned
    return study, fixed


@contextlib.contextmanager
def opened(
    setup: Setup,
    make_executor: Callable[[optuna.storages.BaseStorage], Executor] | None = None,
    show: Callable[[StudyStatus], None] = lambda status: None,
) -> Iterator[Scheduler]:
    """The owner of the study, opened as `src.study` opens it.

    Args:
        setup: The study.
        make_executor: Gives what runs the trials; None: processes on this machine.
        show: As for the owner.

    Raises:
        UserError: The study has an owner, or is another one.
    """
    store = setup.store.open()
    retry = Retry(KEY, setup.url, setup.storage_wait_s)
    with ownership(setup.url, STUDY, retry) as is_owner, contextlib.ExitStack() as stack:
        reap(store)
        storage = open_storage(setup.url, retry)
        executor = make_executor(storage) if make_executor else StubExecutor(setup.n_jobs)
        stack.callback(executor.close, setup.grace_s)
        executor.warm_up()
        study, fixed = open_study(setup, storage)
        recorder = StudyRecorder(store, STUDY, study.user_attrs.get("study_run"))
        study.set_user_attr("study_run", recorder.parent.id)
        payload = {
            "overrides": fixed,
            "objectives": stubs.objectives(setup.n_objectives),
            "limits": list(setup.limits),
            "tracking": {
                "uri": store.uri,
                "experiment": store.experiment,
                "folder": str(store.folder),
            },
            "study_run": recorder.parent.id,
            "repeats": 1,
            "git": ["unknown", None],
            "storage_wait_s": setup.storage_wait_s,
        }
        with recorder.parent:
            yield Scheduler(
                study,
                setup.url,
                executor,
                setup,
                setup.n_trials is None,
                recorder,
                setup.folder / "trials",
                setup.body,
                payload,
                show,
                is_owner,
            )


def read_setup(arguments: Sequence[str]) -> Setup:
    """The setup that a command line describes."""
    names = {item.name for item in fields(Setup)} - {"sweep", "sampler", "body"}
    options: dict[str, Any] = {"sweep": []}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in names:
            options[key] = yaml.safe_load(value)
        else:
            options["sweep"].append(argument)
    return Setup(**{**options, "folder": Path(options["folder"]).absolute()})


def main(arguments: Sequence[str]) -> None:
    """Bring a study to its total, and print how it stands as a line of JSON."""
    with opened(read_setup(arguments)) as owner:
        status = owner.run()
        print(json.dumps({"counted": status.counted, "total": status.total, **status.counts}))


if __name__ == "__main__":
    main(sys.argv[1:])
