"""Trials on whatever machines have workers (`python -m src.worker`) at the study's database."""

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from sqlalchemy.exc import DBAPIError

from src.core.errors import ConfigError, UserError
from src.sweep.executors.base import Executor, plain_slots
from src.sweep.executors.tasks_table import TasksTable
from src.sweep.records import EndedTask, Task

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.2
_COUNT_SECONDS = 2.0  # between two looks at how many workers there are
_ALONE_SECONDS = 15.0  # without a worker until we say so


class Heart:
    """Tells the database every now and then, in a thread, that this process is alive.

    Args:
        table: Of the database.
        kind: What this process is.
        slots: How many trials it can run, or wants to run.
        lost_after: Seconds of silence after which others give a member up; it is heard of twelve
            times as often.
    """

    def __init__(
        self, table: TasksTable, kind: Literal["owner", "worker"], slots: int, lost_after: float
    ) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.heard = time.monotonic()  # when the database last took a heartbeat
        self._table, self._kind, self._slots, self._every = table, kind, slots, lost_after / 12
        self._stopped = threading.Event()
        self._table.beat(self.name, kind, slots)
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Fall silent, and leave the database's members."""
        self._stopped.set()
        self._thread.join(timeout=30)
        with contextlib.suppress(DBAPIError):
            self._table.leave(self.name)

    def _beat(self) -> None:
        while not self._stopped.wait(self._every):
            with contextlib.suppress(DBAPIError):
                self._table.beat(self.name, self._kind, self._slots)
                self.heard = time.monotonic()


class WorkersExecutor(Executor):
    """Hands each trial to the first worker that is free.

    Args:
        storage_url: The database through which the tasks travel: the study's own, SQLite (for
            workers on this machine) or PostgreSQL.
        n_jobs: How many trials may be handed out at once; None: as many as the living workers can
            run.
        lost_after_s: Seconds without a sign of life after which a worker and its trials are given
            up.

    Raises:
        ConfigError: An impossible number, or another kind of storage.
        UserError: The database cannot be used.
    """

    queues = True

    def __init__(
        self,
        storage_url: str,
        n_jobs: Annotated[int, Ge(1)] | None = None,
        lost_after_s: Annotated[float, Gt(0)] = 60.0,
    ) -> None:
        if lost_after_s <= 0:
            raise ConfigError("lost_after_s", f"must be above 0, but got {lost_after_s}")
        super().__init__(plain_slots(n_jobs) if n_jobs is not None else [])
        self._n_jobs = n_jobs
        self._lost_after = lost_after_s
        self._table = TasksTable(storage_url)
        self._heart: Heart | None = Heart(self._table, "owner", n_jobs or 0, lost_after_s)
        self._owner = self._heart.name
        self._rows: dict[int, int] = {}  # slot -> id of its row
        self._counted = self._looked = -float("inf")
        self._served = time.monotonic()  # when there last was a worker
        self._reached = time.monotonic()  # when the database last answered

    @property
    def slots(self) -> int:
        """How many trials can run at once; without `n_jobs` it follows the workers that come and go."""
        now = time.monotonic()
        if self._n_jobs is None and now - self._counted >= _COUNT_SECONDS:
            with self._patience():
                count = self._table.workers(self._lost_after)
                self._counted = now
                taken = max(self._running, default=-1) + 1
                self._places = plain_slots(max(1, count, taken))
                return max(1, count)
        return len(self._places)

    def _start(self, task: Task) -> None:
        try:
            self._rows[task.slot.number] = self._table.add(self._owner, task)
        except DBAPIError as error:
            raise OSError(
                f"the database did not answer: {' '.join(str(error.orig).split())[:200]}"
            ) from error

    def _gone(self) -> list[EndedTask]:
        ended: list[EndedTask] = []
        with self._patience():
            if self._look_is_due():
                ended += self._look_after_workers()
            slots = {row: number for number, row in self._rows.items()}
            for end in self._table.collect(self._owner):
                if end.id in slots:
                    ended.append(self._ended(slots[end.id], end.exitcode, end.note))
        return ended

    def _ended(self, number: int, exitcode: int | None, note: str) -> EndedTask:
        del self._rows[number]
        return EndedTask(self._running[number], exitcode, note)

    def _look_is_due(self) -> bool:
        due = time.monotonic() - self._looked >= min(_COUNT_SECONDS, self._lost_after / 4)
        if due:
            self._looked = time.monotonic()
        return due

    def _look_after_workers(self) -> list[EndedTask]:
        now = time.monotonic()
        self._table.bury_lost(self._lost_after)
        if self._table.workers(self._lost_after) or not self._rows:
            self._served = now
        elif now - self._served > _ALONE_SECONDS:
            self._served = now + 20 * _ALONE_SECONDS  # said again in five minutes
            log.warning(
                "no worker serves this study: start some, python -m src.worker storage=%s",
                self._table.shown_url,
            )
        known = self._table.known(self._owner)
        dropped = [number for number, row in self._rows.items() if row not in known]
        return [
            self._ended(number, None, "dropped: the owner had not been heard of for too long")
            for number in dropped
        ]

    def _pause(self, seconds: float) -> None:
        time.sleep(max(0.0, min(seconds, _POLL_SECONDS)))

    def _ask_to_end(self, task: Task, grace: float) -> None:
        if task.slot.number in self._rows:
            with self._patience():
                self._table.ask_to_end(self._rows[task.slot.number], grace)

    def _kill(self, task: Task) -> None:
        self._ask_to_end(task, 0.0)

    def _release(self) -> None:
        if self._heart is None:
            return
        with contextlib.suppress(DBAPIError):
            self._table.drop(self._owner)
        self._heart.stop()
        self._heart = None
        self._table.close()

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        """A database that is away for a while is waited for, as long as a worker would be.

        Raises:
            UserError: It stays away.
        """
        try:
            yield
            self._reached = time.monotonic()
        except DBAPIError as error:
            if time.monotonic() - self._reached > self._lost_after:
                reason = " ".join(str(error.orig).split())[:200]
                raise UserError(
                    f"{self._table.shown_url}: the database does not answer any more: {reason}"
                ) from error
