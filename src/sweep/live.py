"""What is seen while a study runs: a table that stands still on a terminal, lines in a log."""

import logging
import math
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.text import Text

from src.objectives import Objective
from src.sweep.snapshot import Snapshot, snapshot
from src.sweep.table import EVENTS, clock, figures, render, status_line, style_of

if TYPE_CHECKING:
    from src.sweep.standing import Event, Standing

REFRESH_S = 0.5
WIDTH = 100  # columns of a line in a log
STATUS_S = 30.0  # between two status lines where there is no terminal


class LiveView:
    """Shows a study while it runs; use it as a context manager.

    On a terminal: a table that is redrawn in place, at most twice a second; log lines and the logs of failed trials
    are printed above it. Elsewhere: a line an event, and a status line every 30 s.

    Args:
        study: The study's name.
        objectives: Named in the first line.
        console: Where to; standard output, if None.
        now: The clock, s.
    """

    def __init__(
        self,
        study: str = "",
        objectives: Sequence[Objective] = (),
        console: Console | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study = study
        self._objectives = objectives
        self._console = console or Console()
        self._now = now
        self._began = now()
        self._shown = -math.inf
        self._events: deque[str] = deque(maxlen=EVENTS)
        self._newest: Snapshot | None = None
        self._live: Live | None = None
        self._handlers: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    def __enter__(self) -> "LiveView":
        if self._console.is_terminal:
            self._catch_logs()
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        else:
            self._shown = self._now()  # the first status line is due after a while
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._newest is not None:
            self._show(self._newest)
        if self._live is not None:
            self._live.stop()
            self._live = None
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._handlers = []

    def show(self, standing: "Standing") -> None:
        """Take the standing's events, and show it if it is time."""
        for event in standing.take_events():
            line = event_line(event, self._objectives)
            self._events.append(line)
            self.event(line, event.tail.splitlines() if event.outcome.state == "fail" else ())
        self.update(snapshot(self._study, standing, list(self._events), self._now() - self._began))

    def say(self, line: str) -> None:
        """Print a line, above the table if there is one."""
        self._print(Text(line, style=style_of(line)))

    def update(self, newest: Snapshot) -> None:
        """Show a newer state of the study, if it is time; cheap otherwise, so call it as often as anything changes."""
        self._newest = newest
        if self._now() - self._shown >= (STATUS_S if self._live is None else REFRESH_S):
            self._shown = self._now()
            self._show(newest)

    def event(self, line: str, log: Sequence[str] = ()) -> None:
        """Tell that something happened.

        On a terminal only what has a log is printed, above the table: the rest is seen in `Snapshot.events`.

        Args:
            line: Such as "trial 12 failed: out of memory".
            log: Last lines of the trial's log; printed indented.
        """
        if self._live is not None and not log:
            return
        self._print(Text(_wrapped(line) if self._live is None else line, style=style_of(line)))
        for text in log:
            self._print(Text(_wrapped(text.rstrip(), "    "), style="dim"))

    def _show(self, seen: Snapshot) -> None:
        if self._live is None:
            self._print(Text(_wrapped(status_line(seen))))
        else:
            rows = max(1, self._console.height - 16)
            self._live.update(render(seen, self._objectives, self._console.width - 1, rows), refresh=True)

    def _print(self, text: Text) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)

    def _catch_logs(self) -> None:
        """Let log lines that go to the terminal pass through the console, which keeps them above the table."""
        for handler in logging.getLogger().handlers:
            stream = getattr(handler, "stream", None)
            if isinstance(handler, logging.StreamHandler) and stream in (sys.stdout, sys.stderr):
                self._handlers.append((handler, stream))
                handler.setStream(FileProxy(self._console, stream))


def _wrapped(line: str, indent: str = "") -> str:
    return textwrap.fill(
        line, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False, tabsize=4
    )


def event_line(event: "Event", objectives: Sequence[Objective]) -> str:
    """What happened, in one line: "trial 12 done: balanced accuracy 0.612 (1:20)"."""
    words = {"complete": "done", "pruned": "pruned", "over_limit": "over a limit", "fail": "failed"}
    names = [objective.metric for objective in objectives]
    what = figures(dict(zip(names, event.values, strict=True))) if event.values else event.outcome.reason
    took = f" ({clock(event.seconds)})" if event.seconds is not None else ""
    word = "stopped" if event.outcome.kind == "stopped" else words[event.outcome.state]
    again = ", put back in the queue" if event.again else ""
    return f"trial {event.number} {word}: {' '.join(what.split())}{took}{again}"
