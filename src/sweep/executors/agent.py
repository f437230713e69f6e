"""A worker: takes tasks from a study's database and runs them on its own machine."""

import contextlib
import logging
import threading
import time

from sqlalchemy.exc import DBAPIError

from src.sweep.executors.base import Executor
from src.sweep.executors.tasks_table import TaskEnd, TasksTable
from src.sweep.executors.workers import Heart
from src.sweep.records import EndedTask

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 15.0  # for a trial that nobody wants any more


class WorkerAgent:
    """Claims tasks, runs them through an executor, and tells how they ended.

    A trial is stopped when its owner asks for it, when its owner is gone, and when this worker
    could not reach the database for so long that it has been given up.

    Args:
        table: Of the database.
        executor: What runs the trials here.
        study: Only tasks of this study; None: of any.
        lost_after_s: Seconds without a sign of life after which a member is given up.
        idle_exit_s: Ends after so many seconds without a task; None: never.
    """

    def __init__(
        self,
        table: TasksTable,
        executor: Executor,
        study: str | None = None,
        lost_after_s: float = 60.0,
        idle_exit_s: float | None = None,
    ) -> None:
        self._table, self._executor, self._study = table, executor, study
        self._lost_after, self._idle_exit = lost_after_s, idle_exit_s
        self._rows: dict[int, int] = {}  # slot -> id of its row
        self._unreported: list[TaskEnd] = []
        self._buried = -float("inf")
        self.done = 0

    def run(self, stop: threading.Event | None = None) -> None:
        """Work until told to stop, or until idle for too long; then end what still runs and report it.

        Args:
            stop: Set from elsewhere.
        """
        self._executor.warm_up()
        heart = Heart(self._table, "worker", self._executor.slots, self._lost_after)
        busy = time.monotonic()
        try:
            while stop is None or not stop.is_set():
                self._note(self._executor.wait(_POLL_SECONDS))
                try:
                    self._report(heart)
                    self._bury_lost()
                    self._stop_unwanted(heart)
                    self._claim(heart)
                except DBAPIError as error:
                    self._endure(heart, error)
                if self._rows:
                    busy = time.monotonic()
                elif self._idle_exit is not None and time.monotonic() - busy > self._idle_exit:
                    return
        finally:
            self._note(self._executor.close(_GRACE_SECONDS), "the worker was ended; ")
            with contextlib.suppress(DBAPIError):
                self._report(heart)
            heart.stop()

    def _bury_lost(self) -> None:
        if time.monotonic() - self._buried > self._lost_after / 12:
            self._table.bury_lost(self._lost_after)
            self._buried = time.monotonic()

    def _claim(self, heart: Heart) -> None:
        while self._executor.free():
            claimed = self._table.claim(heart.name, self._study)
            if claimed is None:
                return
            row, task = claimed
            log.info("study %s, trial %d: %s", task.study, task.number, task.folder)
            self._rows[self._executor.submit(task).slot.number] = row

    def _note(self, ended: list[EndedTask], why: str = "") -> None:
        for end in ended:
            row = self._rows.pop(end.task.slot.number)
            note = f"{why}{end.note}" if end.note else ""
            log.info(
                "study %s, trial %d: %s", end.task.study, end.task.number, note or "ended in order"
            )
            self._unreported.append(TaskEnd(row, end.exitcode, note))

    def _report(self, heart: Heart) -> None:
        while self._unreported:
            self._table.report(heart.name, self._unreported[0])
            self._unreported.pop(0)
            self.done += 1

    def _stop_unwanted(self, heart: Heart) -> None:
        if not self._rows:
            return
        wanted = self._table.wanted(heart.name)
        for task in self._executor.running():
            row = self._rows[task.slot.number]
            grace = wanted.get(row, _GRACE_SECONDS)
            if grace is not None:
                self._executor.stop(task, grace)

    def _endure(self, heart: Heart, error: DBAPIError) -> None:
        """The database does not answer: go on, but not longer than others wait for us."""
        silence = time.monotonic() - heart.heard
        if silence > self._lost_after:
            log.error("no database for %.0f s: the trials are stopped", silence)
            for task in self._executor.running():
                self._executor.stop(task, _GRACE_SECONDS)
        else:
            log.warning("the database does not answer: %s", " ".join(str(error.orig).split())[:200])
        time.sleep(1.0)
