"""Ask, submit, settle, retry: the loop."""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from src.core.errors import UserError
from src.metrics.registry import Limit, Objective
from src.sweep import study as studies
from src.sweep.executors import base
from src.sweep.executors.base import Executor
from src.sweep.records import (
    FROM_OUTSIDE,
    AllFailAlikeError,
    EndedTask,
    Kind,
    RunningTrial,
    Task,
    TrialOutcome,
    discard,
    earlier_tries,
    fresh_folder,
    inherited,
)
from src.sweep.space import Cell, Space
from src.sweep.status import StudyStatus
from src.tracking import store as orphans
from src.tracking.run import Run
from src.tracking.store import Store

TRIES = 200  # to draw a cell that is neither excluded, nor known already, nor under way
FEW_TRIES = 20  # where the cells can be counted: then one that nobody ran is taken
Overrides = tuple[str, ...]


class TrialProposals:
    """Draws cells; those that need not or must not be run are told to the study at once.

    Args:
        study: To be asked.
        space: What to draw from.
        is_grid: Whether the cells come in order instead of from the sampler.
    """

    def __init__(self, study: optuna.Study, space: Space, is_grid: bool) -> None:
        self.study = study
        self.space = space
        self.is_grid = is_grid
        self._waiting = 0
        self._finished: dict[Overrides, FrozenTrial] = {}  # what need not be run again
        self._taken: set[Overrides] = set()  # cells that some trial stands for
        self._failed: set[Overrides] = (
            set()
        )  # cells that failed: tried again only where that is asked for
        self._cells: Iterator[Cell] | None = None

    def take(self, trial: FrozenTrial) -> None:
        """Take note of a trial, as it stands in the study."""
        cell = cell_of(trial)
        self._taken.add(cell)
        if trial.state is TrialState.WAITING:
            self._waiting += 1
        if trial.state is TrialState.FAIL and "excluded" not in trial.user_attrs:
            self._failed.add(cell)
        known = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        if known and not {"same_as", "excluded"} & trial.user_attrs.keys():
            self._finished[cell] = trial

    def enqueue(self, params: dict[str, Any], attributes: dict[str, Any]) -> None:
        """Have these parameters drawn before anything else.

        Args:
            params: Optuna's, by name.
            attributes: User attributes of the trial that it becomes.
        """
        self.study.enqueue_trial(params, user_attrs=attributes)
        self._waiting += 1

    def next(self, under_way: Collection[Overrides]) -> tuple[optuna.Trial, Cell] | None:
        """The next trial to be run; None if a grid is at its end, or all that is left is under way.

        Args:
            under_way: Cells that run now: none of them is run a second time.

        Raises:
            UserError: The sampler draws excluded or known cells only, and the others cannot be
                counted.
        """
        for _ in range(TRIES if self.space.n_cells is None else FEW_TRIES):
            if not self._waiting and self.is_grid and not self._enqueue_cell():
                return None
            trial, cell = self._ask()
            if reason := self.space.is_excluded(cell):
                self._leave_out(trial, reason, forbidden=True)
            elif cell.overrides in self._finished:
                self._tell_same(trial, self._finished[cell.overrides])
            elif cell.overrides in under_way:
                self._leave_out(trial, "under way as another trial")
            elif cell.overrides in self._failed and "retry_of" not in trial.user_attrs:
                self._leave_out(trial, "failed as another trial")
            else:
                self._taken.add(cell.overrides)
                return trial, cell
        return self._unseen()

    def _enqueue_cell(self) -> bool:
        if self._cells is None:
            self._cells = (cell for cell in self.space.cells() if cell.overrides not in self._taken)
        cell = next(self._cells, None)
        if cell is None:
            return False
        self.enqueue(cell.params, {"cell": list(cell.overrides)})
        return True

    def _ask(self) -> tuple[optuna.Trial, Cell]:
        trial = self.study.ask()
        self._waiting = max(0, self._waiting - 1)
        cell = self.space.suggest(trial)
        if trial.user_attrs.get("cell") != list(cell.overrides):
            trial.set_user_attr("cell", list(cell.overrides))
        return trial, cell

    def _unseen(self) -> tuple[optuna.Trial, Cell] | None:
        """The sampler draws known or excluded cells only: take one that nobody ran, where they can be counted."""
        if self.space.n_cells is None:
            raise UserError(
                f"hydra.sweeper.exclude: {TRIES} draws in a row were excluded or known already: widen the space"
            )
        for cell in self.space.cells():
            if cell.overrides not in self._taken:
                self._taken.add(cell.overrides)
                self.enqueue(cell.params, {"cell": list(cell.overrides)})
                return self._ask()
        return None

    def _leave_out(self, trial: optuna.Trial, reason: str, forbidden: bool = False) -> None:
        trial.set_user_attr("excluded", reason)
        if (
            forbidden
        ):  # else the sampler would take a cell that runs, and may be a good one, for infeasible
            trial.set_constraint("excluded", 1.0)
        self.study.tell(trial, state=TrialState.PRUNED)

    def _tell_same(self, trial: optuna.Trial, known: FrozenTrial) -> None:
        """The same configuration and seed give the same result: it is told again, not run again."""
        trial.set_user_attr("same_as", known.number)
        for name, value in known.constraints.items():
            trial.set_constraint(name, value)
        values = known.values if known.state is TrialState.COMPLETE else None
        self.study.tell(trial, values=values, state=known.state)


def cell_of(trial: FrozenTrial) -> Overrides:
    """The overrides that a trial stands for."""
    return tuple(trial.user_attrs.get("cell", ()))


@dataclass(frozen=True)
class RunPolicy:
    """How a study is run.

    Attributes:
        n_trials: Trials that the study shall reach, those of earlier sittings included; None: every
            cell of a grid.
        is_grid: Whether the cells come in order instead of from the sampler.
        retries: How often a trial is tried again after a failure of one of the kinds in `retried`.
        retried: Kinds of failures that another try may cure.
        time_limit_s: Seconds that a trial may take; None for no limit.
        stop_after: The sweep stops when its first so many trials all fail in the same way; 0 never.
        retry_failed: Whether trials that failed for good in earlier sittings are tried again.
        grace_s: Seconds that a trial has to close its record when it is stopped.
        learns_from_pruned: Whether the sampler learns from pruned trials that break a limit.
    """

    n_trials: int | None
    is_grid: bool
    retries: int = 1
    retried: tuple[Kind, ...] = ("killed", "out_of_memory")
    time_limit_s: float | None = None
    stop_after: int = 3
    retry_failed: bool = False
    grace_s: float = 10.0
    learns_from_pruned: bool = True

    def allows_another_try(self, outcome: TrialOutcome, attempt: int) -> bool:
        """Whether a failed trial is tried again.

        Args:
            outcome: Of the trial; one that was stopped with its sweep always is.
            attempt: How many tries went before it.
        """
        return outcome.kind == "stopped" or (
            outcome.kind in self.retried and attempt < self.retries
        )


TAIL_LINES = 8


class StudyRecorder:
    """Where the owner of a study records in MLflow.

    The trials' processes write their own runs; the owner closes what they could not.

    Args:
        store: Opened if it is not yet.
        study: The study's name, the tag `study` of all its runs.
        known: The parent's run id from an earlier sitting, if there was one.
        tags: More tags of the parent.
    """

    def __init__(
        self,
        store: Store,
        study: str,
        known: str | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        self.store = store
        self.study = study
        every = {"study": study, "kind": "study", **(tags or {})}
        self.parent = Run.reopen(store, known) if known else Run.start(store, study, every)
        if known and tags:
            self.parent.tag(**tags)

    def settle(
        self, number: int, cell: list[str], run_id: str | None, outcome: TrialOutcome, tail: str
    ) -> str:
        """Make a trial's run agree with its outcome; it is made if the trial never got as far as having one.

        Args:
            number: The trial's.
            cell: Its overrides.
            run_id: As the trial noted it; None if it did not.
            outcome: What the study is told.
            tail: Last lines of the trial's log; of failures they are kept.

        Returns:
            The run's id.
        """
        run_id = run_id or self._find(number)
        if run_id is None:
            tags = {
                "study": self.study,
                "kind": "run",
                "trial": number,
                "repeat": 0,
                "overrides": " ".join(cell),
            }
            run_id = Run.start(self.store, f"trial {number}", tags, parent_id=self.parent.id).id
        for child in self.store.search(f"tags.`mlflow.parentRunId` = '{run_id}'"):
            if child.info.status == "RUNNING":
                orphans.close(
                    self.store, child.info.run_id, "fail", outcome.reason or "its trial ended"
                )
        orphans.close(self.store, run_id, outcome.state, outcome.reason)
        if outcome.state == "fail":
            Run.attach(self.store, run_id).tag(failure_kind=outcome.kind, log_tail=tail)
        return run_id

    def _find(self, number: int) -> str | None:
        query = f"tags.`mlflow.parentRunId` = '{self.parent.id}' and tags.trial = '{number}'"
        return next((run.info.run_id for run in self.store.search(query)), None)


def log_tail(folder: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a trial's log that say anything; empty if it never wrote one."""
    path = folder / "trial.log"
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        text = file.read().decode(errors="replace")
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-lines:])


log = logging.getLogger(__name__)


class DeferredWrites:
    """Settles the trials' runs in MLflow, in the order in which they ended where that is possible.

    Args:
        rows: The study's record in MLflow.
    """

    def __init__(self, rows: StudyRecorder) -> None:
        self.rows = rows
        self._waiting: list[Callable[[], Any]] = []

    def settle(self, trial: FrozenTrial, outcome: TrialOutcome, tail: str) -> None:
        """Make a trial's run agree with its outcome, or later if MLflow does not answer.

        Args:
            trial: As it stands in the study.
            outcome: What the study is told.
            tail: Last lines of the trial's log.
        """
        run_id = trial.user_attrs.get("run_id")
        settle = partial(
            self.rows.settle, trial.number, list(cell_of(trial)), run_id, outcome, tail
        )
        try:
            settle()
        except Exception as error:
            log.warning(
                "trial %d is not settled in MLflow yet: %s",
                trial.number,
                " ".join(str(error).split())[:200],
            )
            self._waiting.append(settle)

    def catch_up(self) -> None:
        """Settle what waits; what still cannot be raises, and goes on waiting."""
        while self._waiting:
            self._waiting[0]()
            del self._waiting[0]


PROGRESS_SECONDS = 1.0  # between two looks at what the running trials say


class Scheduler:
    """Runs a study to its end, one trial a process, the next one asked the moment one ends.

    Args:
        study: To be asked and told; nobody else does.
        storage: The URL by which the trials' processes find it.
        space: What to draw from.
        objectives: Of the study.
        limits: Of the study.
        executor: What runs the trials.
        policy: How many, how often, how long.
        rows: The study's record in MLflow.
        folder: Of the study; each trial gets its own below.
        body: What runs in a trial's process, "package.module:function".
        payload: What every trial is given; its own overrides are added as `overrides`.
        show: Called with the standing whenever it may have changed.
        still_ours: Whether the study's lock is still held.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: str,
        space: Space,
        objectives: list[Objective],
        limits: list[Limit],
        executor: Executor,
        policy: RunPolicy,
        rows: StudyRecorder,
        folder: Path,
        body: str,
        payload: Mapping[str, Any],
        show: Callable[[StudyStatus], None],
        still_ours: Callable[[], bool] = lambda: True,
    ) -> None:
        self.study = study
        self.storage = storage
        self.space = space
        self.objectives = objectives
        self.limits = limits
        self.executor = executor
        self.policy = policy
        self.backlog = DeferredWrites(rows)
        self.folder = folder
        self.body = body
        self.payload = dict(payload)
        self.show = show
        self.still_ours = still_ours
        self.seconds: list[float] = []  # of the owner's own work, a figure a trial
        self.draws = TrialProposals(study, space, policy.is_grid)
        self._running: dict[int, RunningTrial] = {}
        self._ended: deque[EndedTask] = deque()
        self._followed: set[int] = set()  # trials whose parameters are back in the queue
        self._noted = 0.0
        total = policy.n_trials
        if space.n_cells is not None:
            total = space.n_cells if total is None else min(total, space.n_cells)
        assert total is not None  # a grid has cells
        self.total = total
        self.standing = StudyStatus(objectives, limits, total, executor.slots)

    def run(self) -> StudyStatus:
        """Bring the study to its total.

        Returns:
            What came of it.

        Raises:
            AllFailAlikeError: The first trials all failed in the same way.
            KeyboardInterrupt: The trials under way are stopped, marked, and put back into the
                queue.
        """
        try:
            self._take_stock()
            self._loop()
        except BaseException:
            self._stop_all()
            raise
        finally:
            self.executor.close(self.policy.grace_s)
        return self.standing

    def _take_stock(self) -> None:
        """Read what earlier sittings left, and settle the trials whose owner ended before they did."""
        trials = self.study.get_trials(deepcopy=False)
        if self.space.n_cells is not None:  # what is known from another study need not be run
            known = {cell_of(trial) for trial in trials if "warm_from" in trial.user_attrs}
            own = {
                cell_of(trial) for trial in trials if studies.counted([trial])
            }  # known, but counted already
            self.total = self.standing.total = min(
                self.total, self.space.n_cells - len(known - own)
            )
        self.standing.counted = studies.counted(trials)
        followed = {
            trial.user_attrs["retry_of"] for trial in trials if "retry_of" in trial.user_attrs
        }
        for trial in trials:
            if trial.state is TrialState.RUNNING:
                self._settle_orphan(trial, trial.number in followed)
            else:
                self.draws.take(trial)
                if (
                    trial.state.is_finished()
                    and not {"excluded", "warm_from"} & trial.user_attrs.keys()
                ):
                    self._take_finished(trial, trial.number in followed)

    def _take_finished(self, trial: FrozenTrial, followed: bool) -> None:
        again = self.policy.retry_failed and trial.state is TrialState.FAIL and not followed
        self.standing.add(trial, again=again or followed)
        outcome = studies.outcome_of(trial)
        if again and (outcome is None or outcome.kind != "stopped"):
            self._try_again(trial, 0)
            self.standing.counted -= 1

    def _loop(self) -> None:
        while True:
            began = time.perf_counter()
            while self.executor.free() and (running := self._next()):
                self._running[running.task.number] = running
            self._note_progress()
            self.show(self.standing)
            self.seconds.append(time.perf_counter() - began)
            if not self._running:
                self.backlog.catch_up()
                return
            self._ended += self.executor.wait(self._patience())
            began = time.perf_counter()
            self._settle_all()
            self._stop_if_all_fail_alike()
            self._enforce_time_limit()
            self.seconds[-1] += time.perf_counter() - began

    def _settle_all(self) -> None:
        """Settle all that have ended; one stays in the queue until it is, so that an interruption loses none."""
        while self._ended:
            self._settle(self._ended[0])
            del self._running[self._ended.popleft().task.number]

    def _patience(self) -> float:
        """Seconds until something has to be looked at even if no trial ends."""
        if self.policy.time_limit_s is None:
            return 1.0
        oldest = min(running.began for running in self._running.values())
        return min(1.0, max(0.05, oldest + self.policy.time_limit_s - time.monotonic()))

    def _next(self) -> RunningTrial | None:
        """The next trial, handed to the executor; None if there is nothing left to start."""
        if self.standing.counted + len(self._running) >= self.total:
            return None
        drawn = self.draws.next({running.cell.overrides for running in self._running.values()})
        return self._start(*drawn) if drawn else None

    def _start(self, trial: optuna.Trial, cell: Cell) -> RunningTrial:
        folder = fresh_folder(self.folder / f"{trial.number:04d}")
        payload = self.payload | {
            "overrides": [*self.payload.get("overrides", []), *cell.overrides]
        }
        payload |= {
            "cell": list(cell.overrides),
            "continues": trial.user_attrs.get("continues", []),
        }
        task = Task(
            self.storage,
            self.study.study_name,
            trial._trial_id,
            trial.number,
            str(folder),
            self.body,
            payload,
        )
        trial.set_user_attr("folder", str(folder))
        task = self.executor.submit(task)
        if job := self.executor.job(task):
            trial.set_user_attr("job", job)
        return RunningTrial(task, cell, time.monotonic(), waits=self.executor.queues)

    def _settle(self, end: EndedTask) -> None:
        running = self._running[end.task.number]
        frozen = self.study._storage.get_trial(end.task.trial_id)
        outcome = studies.outcome_of(frozen)
        in_order = outcome is not None and end.exitcode == 0
        if outcome is None:
            kind, reason = running.stopped or (
                "killed",
                end.note or f"ended with status {end.exitcode}",
            )
            epoch = int(frozen.user_attrs.get("progress", {}).get("epoch", 0))
            outcome = TrialOutcome(
                "fail", kind, reason, run_id=frozen.user_attrs.get("run_id"), epoch=epoch
            )
        self._finish(frozen, outcome, in_order, time.monotonic() - running.began)

    def _settle_orphan(self, frozen: FrozenTrial, followed: bool) -> None:
        """A trial that an earlier owner left: finished if it committed an outcome, else to be started again."""
        outcome = studies.outcome_of(frozen)
        if outcome is not None:
            self._finish(frozen, outcome, False, None, followed)
            return
        if "job" in frozen.user_attrs and base.cancel(frozen.user_attrs["job"]):
            log.warning(
                "trial %d: cancelled job %s of an earlier owner",
                frozen.number,
                frozen.user_attrs["job"]["id"],
            )
        reason = "the sweep was ended before this trial: started again as another one"
        if "folder" not in frozen.user_attrs and "fixed_params" not in frozen.system_attrs:
            self.study._storage.set_trial_user_attr(frozen._trial_id, "excluded", "never started")
            self.study.tell(frozen.number, state=TrialState.FAIL)
            return
        stopped = TrialOutcome("fail", "stopped", reason, run_id=frozen.user_attrs.get("run_id"))
        self._finish(frozen, stopped, False, None, followed)

    def _try_again(self, frozen: FrozenTrial, attempt: int) -> None:
        """Put a trial's parameters back into the queue, before it is told as failed: so they are never lost."""
        params = frozen.system_attrs.get("fixed_params") or frozen.params
        self.draws.enqueue(params, inherited(frozen, attempt))
        self._followed.add(frozen.number)

    def _finish(
        self,
        frozen: FrozenTrial,
        outcome: TrialOutcome,
        in_order: bool,
        seconds: float | None,
        followed: bool = False,
    ) -> None:
        """Make MLflow agree, tell Optuna, show it; `followed`: an earlier owner has put it back already."""
        frozen = self.study._storage.get_trial(frozen._trial_id)
        outcome = (
            studies.outcome_of(frozen) or outcome
        )  # it may have come to its end just before it was given up
        followed = followed or frozen.number in self._followed
        attempt = int(frozen.user_attrs.get("attempt", 0))
        again = outcome.state == "fail" and (
            followed or self.policy.allows_another_try(outcome, attempt)
        )
        if again and not followed:
            self._try_again(frozen, attempt + (outcome.kind != "stopped"))
        tail = log_tail(Path(frozen.user_attrs["folder"])) if "folder" in frozen.user_attrs else ""
        if not in_order or outcome.state == "fail":
            self.backlog.settle(frozen, outcome, tail)
        if not again and outcome.kind not in FROM_OUTSIDE:
            self._discard_states(frozen)
        told = studies.tell(
            self.study,
            frozen.number,
            outcome,
            self.objectives,
            self.limits,
            self.policy.learns_from_pruned,
        )
        final = studies.outcome_of(told) or outcome
        if final != outcome:
            self.backlog.settle(told, final, tail)
        self.draws.take(told)
        self.standing.add(told, final, seconds, tail, again)
        if not again and final.kind != "stopped":
            self.standing.counted += 1

    def _discard_states(self, frozen: FrozenTrial) -> None:
        """Take away what a trial left for a retry that will not come, if its process was ended before it could."""
        tries = [frozen, *earlier_tries(frozen, partial(studies.trial_of, self.study))]
        discard(Path(each.user_attrs["folder"]) for each in tries if "folder" in each.user_attrs)

    def _stop_if_all_fail_alike(self) -> None:
        n = self.policy.stop_after
        alike = self.standing.all_failed_alike()
        if n and alike and self.standing.n_seen >= n and self.standing.counted < self.total:
            raise AllFailAlikeError(
                f"the first {self.standing.n_seen} trials all failed in the same way ({alike}): the sweep is stopped; "
                "mend that, then the same command with hydra.sweeper.retry_failed=true goes on"
            )

    def _enforce_time_limit(self) -> None:
        limit = self.policy.time_limit_s
        if limit is None:
            return
        for running in self._running.values():
            late = not running.waits and time.monotonic() - running.began > limit
            if late and running.stopped is None:
                running.stopped = (
                    "time_limit",
                    f"took longer than hydra.sweeper.time_limit_s={limit:g}",
                )
                self.executor.stop(running.task, self.policy.grace_s)

    def _stop_all(self) -> None:
        for running in self._running.values():
            running.stopped = running.stopped or (
                "stopped",
                "the sweep was stopped; the same command starts it again",
            )
        self._ended += self.executor.close(self.policy.grace_s)
        reported = {end.task.number for end in self._ended}
        self._ended += [
            EndedTask(running.task, None, "its end was not noticed")
            for number, running in self._running.items()
            if number not in reported
        ]
        self._settle_all()
        self.backlog.catch_up()

    def _note_progress(self) -> None:
        """Read what the running trials last said; not at every event, for each costs a query."""
        if time.monotonic() - self._noted > PROGRESS_SECONDS:
            for running in self._running.values():
                attributes = self.study._storage.get_trial_user_attrs(running.task.trial_id)
                running.progress = attributes.get("progress", {})
                if running.waits and "begun" in attributes:
                    running.waits, running.began = False, time.monotonic()
            self._noted = time.monotonic()
            if not self.still_ours():
                raise UserError(
                    "the connection that holds the study's lock was lost; the same command goes on"
                )
        self.standing.slots = self.executor.slots  # workers come and go
        self.standing.running = list(self._running.values())
