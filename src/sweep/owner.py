"""The owner of a study: asks what to try, has it run, tells what came of it. Never waits for the slowest of a batch."""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from src.errors import UserError
from src.objectives import Limit, Objective
from src.sweep import study as studies
from src.sweep.backlog import Backlog
from src.sweep.draws import Draws, cell_of
from src.sweep.executors import left
from src.sweep.executors.base import Executor
from src.sweep.failures import FROM_OUTSIDE, AllFailAlikeError
from src.sweep.policy import Policy
from src.sweep.resumption import discard
from src.sweep.retries import earlier_tries, inherited
from src.sweep.rows import Rows, log_tail
from src.sweep.running import Running, fresh_folder
from src.sweep.space import Cell, Space
from src.sweep.standing import Standing
from src.sweep.task import Ended, Outcome, Task

log = logging.getLogger(__name__)
PROGRESS_SECONDS = 1.0  # between two looks at what the running trials say


class Owner:
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
        policy: Policy,
        rows: Rows,
        folder: Path,
        body: str,
        payload: Mapping[str, Any],
        show: Callable[[Standing], None],
        still_ours: Callable[[], bool] = lambda: True,
    ) -> None:
        self.study = study
        self.storage = storage
        self.space = space
        self.objectives = objectives
        self.limits = limits
        self.executor = executor
        self.policy = policy
        self.backlog = Backlog(rows)
        self.folder = folder
        self.body = body
        self.payload = dict(payload)
        self.show = show
        self.still_ours = still_ours
        self.seconds: list[float] = []  # of the owner's own work, a figure a trial
        self.draws = Draws(study, space, policy.is_grid)
        self._running: dict[int, Running] = {}
        self._ended: deque[Ended] = deque()
        self._followed: set[int] = set()  # trials whose parameters are back in the queue
        self._noted = 0.0
        total = policy.n_trials
        if space.n_cells is not None:
            total = space.n_cells if total is None else min(total, space.n_cells)
        assert total is not None  # a grid has cells
        self.total = total
        self.standing = Standing(objectives, limits, total, executor.slots)

    def run(self) -> Standing:
        """Bring the study to its total.

        Returns:
            What came of it.

        Raises:
            AllFailAlikeError: The first trials all failed in the same way.
            KeyboardInterrupt: The trials under way are stopped, marked, and put back into the queue.
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
            own = {cell_of(trial) for trial in trials if studies.counted([trial])}  # known, but counted already
            self.total = self.standing.total = min(self.total, self.space.n_cells - len(known - own))
        self.standing.counted = studies.counted(trials)
        followed = {trial.user_attrs["retry_of"] for trial in trials if "retry_of" in trial.user_attrs}
        for trial in trials:
            if trial.state is TrialState.RUNNING:
                self._settle_orphan(trial, trial.number in followed)
            else:
                self.draws.take(trial)
                if trial.state.is_finished() and not {"excluded", "warm_from"} & trial.user_attrs.keys():
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

    def _next(self) -> Running | None:
        """The next trial, handed to the executor; None if there is nothing left to start."""
        if self.standing.counted + len(self._running) >= self.total:
            return None
        drawn = self.draws.next({running.cell.overrides for running in self._running.values()})
        return self._start(*drawn) if drawn else None

    def _start(self, trial: optuna.Trial, cell: Cell) -> Running:
        folder = fresh_folder(self.folder / f"{trial.number:04d}")
        payload = self.payload | {"overrides": [*self.payload.get("overrides", []), *cell.overrides]}
        payload |= {"cell": list(cell.overrides), "continues": trial.user_attrs.get("continues", [])}
        task = Task(self.storage, self.study.study_name, trial._trial_id, trial.number, str(folder), self.body, payload)
        trial.set_user_attr("folder", str(folder))
        task = self.executor.submit(task)
        if job := self.executor.job(task):
            trial.set_user_attr("job", job)
        return Running(task, cell, time.monotonic(), waits=self.executor.queues)

    def _settle(self, end: Ended) -> None:
        running = self._running[end.task.number]
        frozen = self.study._storage.get_trial(end.task.trial_id)
        outcome = studies.outcome_of(frozen)
        in_order = outcome is not None and end.exitcode == 0
        if outcome is None:
            kind, reason = running.stopped or ("killed", end.note or f"ended with status {end.exitcode}")
            epoch = int(frozen.user_attrs.get("progress", {}).get("epoch", 0))
            outcome = Outcome("fail", kind, reason, run_id=frozen.user_attrs.get("run_id"), epoch=epoch)
        self._finish(frozen, outcome, in_order, time.monotonic() - running.began)

    def _settle_orphan(self, frozen: FrozenTrial, followed: bool) -> None:
        """A trial that an earlier owner left: finished if it committed an outcome, else to be started again."""
        outcome = studies.outcome_of(frozen)
        if outcome is not None:
            self._finish(frozen, outcome, False, None, followed)
            return
        if "job" in frozen.user_attrs and left.cancel(frozen.user_attrs["job"]):
            log.warning("trial %d: cancelled job %s of an earlier owner", frozen.number, frozen.user_attrs["job"]["id"])
        reason = "the sweep was ended before this trial: started again as another one"
        if "folder" not in frozen.user_attrs and "fixed_params" not in frozen.system_attrs:
            self.study._storage.set_trial_user_attr(frozen._trial_id, "excluded", "never started")
            self.study.tell(frozen.number, state=TrialState.FAIL)
            return
        stopped = Outcome("fail", "stopped", reason, run_id=frozen.user_attrs.get("run_id"))
        self._finish(frozen, stopped, False, None, followed)

    def _try_again(self, frozen: FrozenTrial, attempt: int) -> None:
        """Put a trial's parameters back into the queue, before it is told as failed: so they are never lost."""
        params = frozen.system_attrs.get("fixed_params") or frozen.params
        self.draws.enqueue(params, inherited(frozen, attempt))
        self._followed.add(frozen.number)

    def _finish(
        self, frozen: FrozenTrial, outcome: Outcome, in_order: bool, seconds: float | None, followed: bool = False
    ) -> None:
        """Make MLflow agree, tell Optuna, show it; `followed`: an earlier owner has put it back already."""
        frozen = self.study._storage.get_trial(frozen._trial_id)
        outcome = studies.outcome_of(frozen) or outcome  # it may have come to its end just before it was given up
        followed = followed or frozen.number in self._followed
        attempt = int(frozen.user_attrs.get("attempt", 0))
        again = outcome.state == "fail" and (followed or self.policy.allows_another_try(outcome, attempt))
        if again and not followed:
            self._try_again(frozen, attempt + (outcome.kind != "stopped"))
        tail = log_tail(Path(frozen.user_attrs["folder"])) if "folder" in frozen.user_attrs else ""
        if not in_order or outcome.state == "fail":
            self.backlog.settle(frozen, outcome, tail)
        if not again and outcome.kind not in FROM_OUTSIDE:
            self._discard_states(frozen)
        told = studies.tell(
            self.study, frozen.number, outcome, self.objectives, self.limits, self.policy.learns_from_pruned
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
                running.stopped = ("time_limit", f"took longer than hydra.sweeper.time_limit_s={limit:g}")
                self.executor.stop(running.task, self.policy.grace_s)

    def _stop_all(self) -> None:
        for running in self._running.values():
            running.stopped = running.stopped or ("stopped", "the sweep was stopped; the same command starts it again")
        self._ended += self.executor.close(self.policy.grace_s)
        reported = {end.task.number for end in self._ended}
        self._ended += [
            Ended(running.task, None, "its end was not noticed")
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
                raise UserError("the connection that holds the study's lock was lost; the same command goes on")
        self.standing.slots = self.executor.slots  # workers come and go
        self.standing.running = list(self._running.values())
