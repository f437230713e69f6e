"""The loop of a study: ask Optuna, submit to the executor, record what ended, tell, retry."""

import contextlib
import logging
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import optuna
from annotated_types import Ge, Gt
from optuna.trial import FrozenTrial, TrialState, create_trial

from src.core.errors import UserError, full_disk
from src.sweep import records
from src.sweep import study as studies
from src.sweep.executors import slurm
from src.sweep.executors.base import Executor
from src.sweep.records import EndedTask, RunningTrial, StudyStatus, TrialOutcome
from src.sweep.space import Cell
from src.tracking import store as tracking
from src.tracking.run import Run

MAX_DRAWS = 200  # to find a cell that is not excluded, finished or running
MAX_DRAWS_COUNTABLE = 20  # after that, where cells can be listed, one that nobody ran is taken
MAX_CONTINUED = 5  # folders of earlier tries in which a retry looks for a training state
PROGRESS_SECONDS = 1.0  # between two reads of the running trials' progress
TAIL_LINES = 8
# what Python's faulthandler writes after a crash: stacks of all threads, names of all modules
_STACK = re.compile(r'(Current t|T)hread 0x|  File ".*", line \d+ in |Extension modules: ')
Overrides = tuple[str, ...]
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunPolicy:
    """How the trials of a study are run; conf/hydra/sweeper/study.yaml explains each value."""

    n_trials: Annotated[int, Ge(1)] | None = None
    retries: Annotated[int, Ge(0)] = 1
    retried: Sequence[records.Kind] = ("killed", "out_of_memory")
    time_limit_s: Annotated[float, Gt(0)] | None = None
    stop_after: Annotated[int, Ge(0)] = 3
    retry_failed: bool = False
    grace_s: Annotated[float, Ge(0)] = 10


def cell_of(trial: FrozenTrial) -> Overrides:
    """The overrides of a trial's cell."""
    return tuple(trial.system_attrs.get(records.CELL, ()))


class TrialProposals:
    """Proposes the trials to run; draws that need not be run are told to the study at once.

    Of a grid the cells come in order instead of from the sampler.
    """

    def __init__(self, study: studies.OwnedStudy, is_grid: bool) -> None:
        self.study = study
        self.space = study.space
        self.is_grid = is_grid
        self._n_enqueued = 0
        self._finished: dict[Overrides, FrozenTrial] = {}  # need not be run again
        self._proposed: set[Overrides] = set()
        self._failed: set[Overrides] = set()  # run again only as a retry
        self._cells: Iterator[Cell] | None = None

    def add(self, trial: FrozenTrial) -> None:
        """Take a trial of the study into account, as it is stored."""
        cell = cell_of(trial)
        self._proposed.add(cell)
        self._n_enqueued += trial.state is TrialState.WAITING
        if trial.state is TrialState.FAIL and "excluded" not in trial.user_attrs:
            self._failed.add(cell)
        is_copy = bool({"same_as", "excluded"} & trial.user_attrs.keys())
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and not is_copy:
            self._finished[cell] = trial

    def enqueue(self, params: dict[str, Any], system: dict[str, Any], **user: Any) -> None:
        """Propose Optuna's parameters before any others, with attributes of the trial."""
        system = {"fixed_params": params, **system}  # as `Study.enqueue_trial`, which takes none
        trial = create_trial(state=TrialState.WAITING, system_attrs=system, user_attrs=user)
        self.study.add_trial(trial)
        self._n_enqueued += 1

    def next(self, running: Collection[Overrides]) -> tuple[optuna.Trial, Cell] | None:
        """The next trial to run; None at the end of a grid, or if all other cells are `running`.

        Raises:
            UserError: The sampler draws only excluded or finished cells of an uncountable space.
        """
        countable = self.space.n_cells is not None
        for _ in range(MAX_DRAWS_COUNTABLE if countable else MAX_DRAWS):
            if not self._n_enqueued and self.is_grid and not self._enqueue_new_cell():
                return None
            trial, cell = self._ask()
            overrides = cell.overrides
            if reason := self.space.is_excluded(cell):
                trial.set_constraint("excluded", 1.0)
                self._leave_out(trial, reason)
            elif overrides in self._finished:
                # The same configuration and seed give the same result.
                result = self._finished[overrides]
                trial.set_user_attr("same_as", result.number)
                for name, value in result.constraints.items():
                    trial.set_constraint(name, value)
                values = result.values if result.state is TrialState.COMPLETE else None
                self.study.tell(trial, values=values, state=result.state)
            elif overrides in running:
                # Without a constraint: the cell may be a good one.
                self._leave_out(trial, "running as another trial")
            elif overrides in self._failed and "retry_of" not in trial.user_attrs:
                self._leave_out(trial, "failed as another trial")
            else:
                self._proposed.add(overrides)
                return trial, cell
        if not countable:
            problem = f"{MAX_DRAWS} draws in a row were excluded or known already"
            raise UserError(f"hydra.sweeper.exclude: {problem}: widen the space")
        self._cells = None
        return self._ask() if self._enqueue_new_cell() else None

    def _enqueue_new_cell(self) -> bool:
        """Enqueue the next cell that was never proposed; False if there is none."""
        self._cells = self._cells or self.space.cells()
        new = (cell for cell in self._cells if cell.overrides not in self._proposed)
        if (cell := next(new, None)) is None:
            return False
        self._proposed.add(cell.overrides)
        self.enqueue(cell.params, {records.CELL: list(cell.overrides)})
        return True

    def _ask(self) -> tuple[optuna.Trial, Cell]:
        trial = self.study.ask()
        self._n_enqueued = max(0, self._n_enqueued - 1)
        cell = self.space.suggest(trial)
        overrides = list(cell.overrides)
        if trial._cached_frozen_trial.system_attrs.get(records.CELL) != overrides:
            self.study._storage.set_trial_system_attr(trial._trial_id, records.CELL, overrides)
        return trial, cell

    def _leave_out(self, trial: optuna.Trial, reason: str) -> None:
        trial.set_user_attr("excluded", reason)
        self.study.tell(trial, state=TrialState.PRUNED)


class StudyRecorder:
    """The study's run in MLflow; closes the runs of trials whose processes could not.

    Args:
        store: Opened if it is not yet.
        study: The study's name, the tag `study` of all its runs.
        run_id: The study's run of an earlier session, if there was one.
        tags: More tags of the study's run.
    """

    def __init__(
        self, store: tracking.Store, study: str, run_id: str | None = None, **tags: Any
    ) -> None:
        self.store = store
        self.study = study
        if run_id:
            self.parent = Run.reopen(store, run_id)
            self.parent.tag(**tags)
        else:
            self.parent = Run.start(store, study, {"study": study, "kind": "study", **tags})
        self._deferred: list[Callable[[], Any]] = []

    def settle(self, trial: FrozenTrial, outcome: TrialOutcome, tail: str) -> None:
        """Make a trial's run agree with its outcome, later if MLflow does not answer.

        Args:
            trial: As stored in the study.
            outcome: As told to the study.
            tail: Last lines of the trial's log; recorded of failures.
        """
        write = partial(self.close_run, trial, outcome, tail)
        try:
            write()
        except Exception as error:
            problem = full_disk(error) or " ".join(str(error).split())[:200]
            log.warning("trial %d is not closed in MLflow yet: %s", trial.number, problem)
            self._deferred.append(write)

    def catch_up(self) -> None:
        """Write what was deferred, with no trial running; raises if MLflow does not answer.

        A server may create the run of a killed trial after `close_run` looked for it and created
        another one. The late run has no result and is deleted.
        """
        while self._deferred:
            self._deferred[0]()
            del self._deferred[0]
        below = f"tags.`mlflow.parentRunId` = '{self.parent.id}'"
        for state in ("attributes.status = 'RUNNING'", f"tags.failure = '{tracking.VANISHED}'"):
            for late in list(self.store.search(f"{below} and {state}")):
                number = late.data.tags.get("trial")
                if len(list(self.store.search(f"{below} and tags.trial = '{number}'"))) > 1:
                    self.store.client.delete_run(late.info.run_id)

    def close_run(self, trial: FrozenTrial, outcome: TrialOutcome, tail: str) -> None:
        """Close a trial's run; it is created if the trial never did."""
        run_id, number = trial.user_attrs.get("run_id"), trial.number
        if run_id is None:
            query = f"tags.`mlflow.parentRunId` = '{self.parent.id}' and tags.trial = '{number}'"
            run_id = next((run.info.run_id for run in self.store.search(query)), None)
        if run_id is None:
            tags = {"study": self.study, "kind": "run", "trial": number, "repeat": 0}
            tags["overrides"] = " ".join(cell_of(trial))
            run_id = Run.start(self.store, f"#{number}", tags, parent_id=self.parent.id).id
        put_back = outcome.kind == "stopped"  # neither a failure nor a result
        state = "put_back" if put_back else outcome.state
        for child in self.store.search(f"tags.`mlflow.parentRunId` = '{run_id}'"):
            if child.info.status == "RUNNING" or (put_back and child.info.status != "FINISHED"):
                reason = outcome.reason or "its trial ended"
                tracking.close(self.store, child.info.run_id, state if put_back else "fail", reason)
        tracking.close(self.store, run_id, state, outcome.reason)
        if state == "fail":
            Run.attach(self.store, run_id).tag(failure_kind=outcome.kind, log_tail=tail)


@dataclass
class Scheduler:
    """Runs a study to its end: one process for each trial, the next one asked when one ends."""

    study: studies.OwnedStudy  # asked and told by nobody else
    storage: str  # URL by which the trials' processes find the study
    executor: Executor
    policy: RunPolicy
    is_grid: bool  # the cells come in order instead of from the sampler
    recorder: StudyRecorder
    folder: Path  # of the study; each trial gets a folder below
    body: str  # what runs in a trial's process, "package.module:function"
    payload: Mapping[str, Any]  # what every trial gets; its overrides are appended to `overrides`
    show: Callable[[StudyStatus], None]  # called whenever the status may have changed
    is_owner: Callable[[], bool] = lambda: True  # whether the study's lock is still held

    def __post_init__(self) -> None:
        self.proposals = TrialProposals(self.study, self.is_grid)
        self._running: dict[int, RunningTrial] = {}  # by trial number
        self._ended: deque[EndedTask] = deque()
        self._retried: set[int] = set()  # failed trials whose retry is enqueued
        self._progress_read_at = 0.0
        # A grid has cells: at least one of the two is a number.
        counts = (self.policy.n_trials, self.study.space.n_cells)
        total = min(count for count in counts if count is not None)
        study, slots = self.study, self.executor.slots
        self.status = StudyStatus(study.objectives, study.limits, total, slots)

    def run(self) -> StudyStatus:
        """Bring the study to its total.

        Returns:
            The status at the end.

        Raises:
            AllFailAlikeError: The first trials all failed in the same way.
            UserError: A disk is full; the trial that noticed it is enqueued again.
            KeyboardInterrupt: The running trials are stopped, recorded and enqueued again.
        """
        timeout = min(1.0, (self.policy.time_limit_s or 10) / 10)  # a limit is missed by this
        try:
            self._resume()
            while True:
                while self.executor.free() and self._start_next():
                    pass
                self._read_progress()
                self.show(self.status)
                if not self._running:
                    self.recorder.catch_up()
                    return self.status
                self._ended += self.executor.wait(timeout)
                self._settle_all()
                self._refuse_to_continue()
                limit = self.policy.time_limit_s
                for running in self._running.values():
                    seconds = 0.0 if running.waits else time.monotonic() - running.began
                    if limit is not None and seconds > limit and running.stopped is None:
                        reason = f"took longer than hydra.sweeper.time_limit_s={limit:g}"
                        running.stopped = ("time_limit", reason)
                        self.executor.stop(running.task, self.policy.grace_s)
        except BaseException:
            self._stop_all()
            raise
        finally:
            self.executor.close(self.policy.grace_s)

    def _resume(self) -> None:
        """Read the trials of earlier sessions, and settle those that a killed scheduler left."""
        trials = self.study.get_trials(deepcopy=False)
        if (n_cells := self.study.space.n_cells) is not None:
            # Cells that were copied from another study are not run, unless they count already.
            copied = {cell_of(trial) for trial in trials if "warm_from" in trial.user_attrs}
            counted = {cell_of(trial) for trial in trials if studies.counted([trial])}
            self.status.total = min(self.status.total, n_cells - len(copied - counted))
        self.status.counted = studies.counted(trials)
        self._retried |= {trial.user_attrs.get("retry_of", -1) for trial in trials}
        for trial in trials:
            if trial.state is TrialState.RUNNING:
                self._settle_orphan(trial)
                continue
            self.proposals.add(trial)
            uncounted = bool({"excluded", "warm_from"} & trial.user_attrs.keys())
            if not trial.state.is_finished() or uncounted:
                continue
            was_retried = trial.number in self._retried
            retry = self.policy.retry_failed and trial.state is TrialState.FAIL and not was_retried
            self.status.add(trial, again=retry or was_retried)
            outcome = records.outcome_of(trial)
            if retry and (outcome is None or outcome.kind != "stopped"):
                self._enqueue_retry(trial, 0)
                self.status.counted -= 1

    def _settle_orphan(self, trial: FrozenTrial) -> None:
        """Settle a trial of a killed scheduler: finished if it committed, else retried."""
        outcome = records.outcome_of(trial)
        if outcome is None:
            job = trial.system_attrs.get(records.JOB)
            if job and slurm.cancel(job):
                log.warning("trial %d: cancelled its job %s", trial.number, job["id"])
            if "folder" not in trial.user_attrs and "fixed_params" not in trial.system_attrs:
                self.study._storage.set_trial_user_attr(trial._trial_id, "excluded", "not started")
                self.study.tell(trial.number, state=TrialState.FAIL)
                return
            reason = "the sweep ended before this trial; it is started again as another one"
            outcome = TrialOutcome("fail", "stopped", reason, run_id=trial.user_attrs.get("run_id"))
        self._finish(trial, outcome, False, None)

    def _start_next(self) -> bool:
        """Submit the next trial; False if there is nothing to start."""
        if self.status.counted + len(self._running) >= self.status.total:
            return False
        proposal = self.proposals.next({trial.cell.overrides for trial in self._running.values()})
        if proposal is None:
            return False
        trial, cell = proposal
        number, folder = 2, self.folder / f"{trial.number:04d}"
        while folder.exists():  # of another study of that name; nothing is overwritten
            folder, number = self.folder / f"{trial.number:04d}-{number}", number + 1
        payload = {
            **self.payload,
            "overrides": [*self.payload.get("overrides", []), *cell.overrides],
            "cell": list(cell.overrides),
            "continues": trial._cached_frozen_trial.system_attrs.get(records.CONTINUES, []),
        }
        name, trial_id = self.study.study_name, trial._trial_id
        task = records.Task(
            self.storage, name, trial_id, trial.number, str(folder), self.body, payload
        )
        trial.set_user_attr("folder", str(folder))
        with deferred_signals():
            task = self.executor.submit(task)
            if job := self.executor.job(task):
                self.study._storage.set_trial_system_attr(trial_id, records.JOB, job)
            waits = self.executor.queues
            self._running[trial.number] = RunningTrial(task, cell, time.monotonic(), waits=waits)
        return True

    def _read_progress(self) -> None:
        """Read the progress of the running trials, at most once a second: each costs a query."""
        self.status.running = list(self._running.values())
        if time.monotonic() - self._progress_read_at <= PROGRESS_SECONDS:
            return
        for running in self._running.values():
            attributes = self.study._storage.get_trial_system_attrs(running.task.trial_id)
            running.progress = attributes.get(records.PROGRESS, {})
            if running.waits and records.BEGUN in attributes:
                running.waits, running.began = False, time.monotonic()
        self._progress_read_at = time.monotonic()
        if not self.is_owner():
            problem = "the connection that holds the study's lock was lost"
            raise UserError(f"{problem}; the same command continues the study")

    def _settle_all(self) -> None:
        """Settle all ended trials; each stays queued until then, in case of an interrupt."""
        while self._ended:
            end = self._ended[0]
            running = self._running[end.task.number]
            trial = self.study._storage.get_trial(end.task.trial_id)
            outcome = records.outcome_of(trial)
            in_order = outcome is not None and end.exitcode == 0
            if outcome is None:
                note = end.note or f"ended with status {end.exitcode}"
                kind, reason = running.stopped or ("killed", note)
                epoch = int(trial.system_attrs.get(records.PROGRESS, {}).get("epoch", 0))
                run_id = trial.user_attrs.get("run_id")
                outcome = TrialOutcome("fail", kind, reason, run_id=run_id, epoch=epoch)
            self._finish(trial, outcome, in_order, time.monotonic() - running.began)
            del self._running[self._ended.popleft().task.number]

    def _finish(
        self, trial: FrozenTrial, outcome: TrialOutcome, in_order: bool, seconds: float | None
    ) -> None:
        """Enqueue a retry if there is one, close the run in MLflow, tell Optuna, update the status.

        Args:
            trial: As stored some time ago.
            outcome: Replaced by the committed outcome if there is one by now.
            in_order: Whether the trial's process closed its run itself.
            seconds: Duration, if it was started in this session.
        """
        trial = self.study._storage.get_trial(trial._trial_id)
        outcome = records.outcome_of(trial) or outcome
        attempt = int(trial.user_attrs.get("attempt", 0))
        stopped = outcome.kind in ("stopped", "full_disk")  # and the study with it
        retried = trial.number in self._retried  # by a scheduler that was killed before it told
        curable = outcome.kind in self.policy.retried and attempt < self.policy.retries
        curable |= self.policy.retry_failed and seconds is None
        again = outcome.state == "fail" and (retried or stopped or curable)
        if again and not retried:
            # Before the trial is told as failed, so that its parameters are never lost.
            self._enqueue_retry(trial, attempt + (not stopped))
        tail = log_tail(Path(trial.user_attrs["folder"])) if "folder" in trial.user_attrs else ""
        if not in_order or outcome.state == "fail":
            self.recorder.settle(trial, outcome, tail)
        if not again and outcome.kind not in records.EXTERNAL_KINDS:
            by_number = partial(studies.trial_of, self.study)
            tries = [trial, *records.earlier_tries(trial, by_number)]
            folders = [attempted.user_attrs.get("folder") for attempted in tries]
            records.discard_states(Path(folder) for folder in folders if folder)
        trial = studies.tell(self.study, trial.number, outcome)
        final = records.outcome_of(trial) or outcome
        if final != outcome:
            self.recorder.settle(trial, final, tail)
        self.proposals.add(trial)
        self.status.add(trial, final, seconds, tail, again)
        if not again and final.kind != "stopped":
            self.status.counted += 1

    def _enqueue_retry(self, trial: FrozenTrial, attempt: int) -> None:
        """Enqueue a trial that replaces a failed one; `attempt` retries are used up by then."""
        carried = (records.CELL, records.REPEAT)  # the latter: seeds that have finished
        system = {key: v for key, v in trial.system_attrs.items() if key.startswith(carried)}
        origin = {key: v for key, v in trial.user_attrs.items() if key == "warm_from"}
        earlier = trial.system_attrs.get(records.CONTINUES, [])
        folders = [folder for folder in (trial.user_attrs.get("folder"), *earlier) if folder]
        system[records.CONTINUES] = folders[:MAX_CONTINUED]
        params = trial.system_attrs.get("fixed_params") or trial.params
        self.proposals.enqueue(params, system, retry_of=trial.number, attempt=attempt, **origin)
        self._retried.add(trial.number)

    def _refuse_to_continue(self) -> None:
        for event in self.status.events:  # not shown yet
            if event.outcome.kind == "full_disk":
                problem = f"the study is stopped after trial {event.number}"
                raise UserError(f"{problem}: {event.outcome.reason}")
        n_seen, reason = self.status.n_seen, self.status.all_failed_alike()
        enough = 0 < self.policy.stop_after <= n_seen
        if reason and enough and self.status.counted < self.status.total:
            raise records.AllFailAlikeError(
                f"the first {n_seen} trials all failed in the same way ({reason}): the sweep is "
                "stopped; correct the cause, then the same command with "
                "hydra.sweeper.retry_failed=true continues"
            )

    def _stop_all(self) -> None:
        reason = "the sweep was stopped; the same command starts the trial again"
        for running in self._running.values():
            running.stopped = running.stopped or ("stopped", reason)
        self._ended += self.executor.close(self.policy.grace_s)
        reported = {end.task.number for end in self._ended}
        for number, running in self._running.items():
            if number not in reported:
                self._ended.append(EndedTask(running.task, None, "its end was not noticed"))
        self._settle_all()
        self.status.running = []  # the last drawing shows what has ended
        self.recorder.catch_up()


@contextlib.contextmanager
def deferred_signals() -> Iterator[None]:
    """Defer Ctrl+C and SIGTERM to the end of the block: a trial started in it is not listed yet."""
    received, handlers = list[int](), dict[signal.Signals, Any]()
    if threading.current_thread() is threading.main_thread():  # no other one may set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, lambda number, _: received.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for arrived in received[:1]:
        signal.raise_signal(arrived)


def log_tail(folder: Path, lines: int = TAIL_LINES) -> str:
    """The last non-empty lines of a trial's log, after a crash without stacks; empty without."""
    path = folder / "trial.log"
    if not path.exists():
        return ""
    with path.open(errors="replace") as file:
        texts = (text for text in map(str.rstrip, file) if text and not _STACK.match(text))
        last = deque(texts, maxlen=lines)
    notes = {f"its stack is in {path}" for text in last if text.startswith("Fatal Python error: ")}
    return "\n".join([*last, *notes])
