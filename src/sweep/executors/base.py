"""What every executor does: it runs trials, each in a process of its own, in a fixed number of slots."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from src.errors import ConfigError
from src.sweep.task import Ended, Slot, Task

ENTRY = "src.sweep.trial:main"
_KILLED_SECONDS = 30.0  # a process that was killed is gone within this, or nobody knows what holds it


class Executor(ABC):
    """Runs trials and tells when their processes are gone; never waits for the slowest.

    A subclass says how a task is started, asked to end and killed, which tasks are gone, and how to wait.

    Args:
        places: The slots, each for one trial at a time.
    """

    queues = False  # whether a trial that was submitted may have to wait elsewhere before it runs

    def __init__(self, places: Sequence[Slot]) -> None:
        self._places = list(places)
        self._running: dict[int, Task] = {}  # by slot
        self._deadlines: dict[int, float] = {}  # slot -> when a trial that was asked to end is killed
        self._not_started: list[Ended] = []

    @property
    def slots(self) -> int:
        """How many trials can run at once."""
        return len(self._places)

    def free(self) -> int:
        """How many more trials can be submitted now."""
        return max(0, self.slots - len(self._running))

    def running(self) -> list[Task]:
        """The tasks that were submitted and whose end was not reported yet."""
        return list(self._running.values())

    def warm_up(self) -> None:  # noqa: B027  most have nothing to prepare
        """Start what takes time before the first trial can run; returns at once."""

    def submit(self, task: Task) -> Task:
        """Start a trial in a free slot.

        Args:
            task: What to run; its slot is not looked at.

        Returns:
            The task with its slot. A trial that could not be started is reported by the next `wait`.

        Raises:
            RuntimeError: There is no free slot.
        """
        if not self.free():
            raise RuntimeError(f"all {self.slots} slots are taken: wait for a trial to end")
        place = next(place for place in self._places if place.number not in self._running)
        task = replace(task, slot=place)
        self._running[place.number] = task
        try:
            self._start(task)
        except (OSError, EOFError) as error:
            self._not_started.append(Ended(task, None, f"could not be started: {error or type(error).__name__}"))
        return task

    def job(self, task: Task) -> dict[str, Any] | None:
        """How a trial that was submitted can be cancelled after its owner was killed, see `executors.left`.

        Args:
            task: As `submit` returned it.

        Returns:
            None where the trial ends with its owner, or could not be started.
        """
        return None

    def wait(self, timeout: float) -> list[Ended]:
        """Wait until a trial's process is gone.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            All that are gone and were not reported before, as soon as there is one; empty after the timeout.
        """
        until = time.monotonic() + timeout
        while True:
            ended = [*self._not_started, *self._gone()]
            self._not_started = []
            for end in ended:
                self._running.pop(end.task.slot.number, None)
                self._deadlines.pop(end.task.slot.number, None)
            now = time.monotonic()
            if ended or now >= until:
                return ended
            self._kill_overdue(now)
            self._pause(min([until, *self._deadlines.values()]) - now)

    def stop(self, task: Task, grace: float) -> None:
        """Ask a trial to end, and kill it later if it does not. Returns at once; `wait` reports the end.

        Args:
            task: As `submit` returned it; one that does not run any more is left alone.
            grace: Seconds between asking and killing.
        """
        number = task.slot.number
        if self._running.get(number) != task:
            return
        if number not in self._deadlines:
            self._ask_to_end(task, grace)
        self._deadlines[number] = min(self._deadlines.get(number, float("inf")), time.monotonic() + grace)

    def close(self, grace: float) -> list[Ended]:
        """Stop all trials and wait for them.

        Args:
            grace: Seconds between asking and killing.

        Returns:
            Those that ended meanwhile; one that cannot be ended is among them, with a note.
        """
        for task in list(self._running.values()):
            self.stop(task, grace)
        ended: list[Ended] = []
        until = time.monotonic() + grace + _KILLED_SECONDS
        while self._running and time.monotonic() < until:
            ended += self.wait(1.0)
        ended += [
            Ended(task, None, "could not be ended: its process is still there") for task in self._running.values()
        ]
        self._running.clear()
        self._release()
        return ended

    def _kill_overdue(self, now: float) -> None:
        for number, deadline in self._deadlines.items():
            if now >= deadline:
                self._kill(self._running[number])
                self._deadlines[number] = now + 1.0  # once more, should it be needed

    @abstractmethod
    def _start(self, task: Task) -> None:
        """Start the task; an OSError becomes the trial's end."""

    @abstractmethod
    def _gone(self) -> list[Ended]:
        """Running tasks whose processes are gone; must not block."""

    @abstractmethod
    def _pause(self, seconds: float) -> None:
        """Sleep until something may have ended, for `seconds` at most."""

    @abstractmethod
    def _ask_to_end(self, task: Task, grace: float) -> None:
        """Ask politely; must not block. After `grace` seconds comes `_kill`."""

    @abstractmethod
    def _kill(self, task: Task) -> None:
        """End it by force; must not block."""

    def _release(self) -> None:  # noqa: B027  most hold nothing
        """Let go of what the executor holds, when nothing runs any more."""


def plain_slots(n_jobs: int, threads: int | None = None) -> list[Slot]:
    """Slots of an executor that finds the devices itself.

    Raises:
        ConfigError: Less than one.
    """
    if n_jobs < 1:
        raise ConfigError("n_jobs", f"must be at least 1, but got {n_jobs}")
    return [Slot(number, None, threads) for number in range(n_jobs)]
