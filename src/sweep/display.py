"""Display of a running study: a live table on a terminal, lines in a log."""

import contextlib
import logging
import math
import re
import sys
import textwrap
import time
from collections import deque
from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table as RichTable
from rich.text import Text

from src.core.cli import PlainConsole
from src.metrics.formatting import count, engineering, label
from src.metrics.registry import Objective
from src.sweep.records import Event, State, StudyStatus

WIDTH = 160  # columns at most
EVENTS = 4  # newest events below the table
GAP = 2  # between columns
OTHERS = 45  # columns of the running trials beside their overrides
REFRESH_S = 0.5  # between two drawings on a terminal
STATUS_S = 30.0  # between two status lines elsewhere
WORDS: dict[State, str] = {
    "complete": "done",
    "pruned": "pruned",
    "over_limit": "over a limit",
    "fail": "failed",
}
STYLES = {"failed": "red", "pruned": "yellow", "over a limit": "yellow", "done": "green"}


class LiveView:
    """Shows a study while it runs; a context manager.

    On a terminal: a table that is redrawn at most twice a second; log lines and the logs of failed
    trials are printed above it. Elsewhere: a line for each event, and every 30 s a status line if
    it says something new.

    Args:
        study: The study's name.
        console: Where to print; None: standard output.
    """

    def __init__(self, study: str = "", console: Console | None = None) -> None:
        self._study = study
        self._console = console or PlainConsole()
        self._began = time.monotonic()
        self._shown_at = -math.inf
        self._shown: list[str] = []
        self._events: deque[str] = deque(maxlen=EVENTS)
        self._status: StudyStatus | None = None
        self._live: Live | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "LiveView":
        if not self._console.is_terminal:
            self._shown_at = time.monotonic()  # the first status line comes after a while
            return self
        for handler in logging.getLogger().handlers:
            stream = getattr(handler, "stream", None)
            if isinstance(handler, logging.StreamHandler) and stream in (sys.stdout, sys.stderr):
                # Log lines pass through the console, which prints them above the table.
                self._stack.callback(handler.setStream, stream)
                handler.setStream(FileProxy(self._console, stream))
        self._live = self._stack.enter_context(Live(console=self._console, auto_refresh=False))
        return self

    def __exit__(self, *error: object) -> None:
        if self._status is not None:
            self._draw(self._status)
        self._stack.close()
        self._live = None

    def show(self, status: StudyStatus) -> None:
        """Print new events, and redraw if it is time; cheap otherwise."""
        self._status = status
        for event in status.take_events():
            line = event_line(event, status.objectives)
            self._events.append(line)
            tail = event.tail.splitlines() if event.outcome.state == "fail" else []
            if self._live is None or tail:  # the table shows the others
                self.say(line)
                for text in tail:
                    self._print(text.rstrip(), "dim", "    ")
        if time.monotonic() - self._shown_at >= (STATUS_S if self._live is None else REFRESH_S):
            self._shown_at = time.monotonic()
            self._draw(status)

    def say(self, line: str) -> None:
        """Print a line, above the table if there is one."""
        self._print(line, _style(line))

    def _draw(self, status: StudyStatus) -> None:
        if self._live is None:
            # without the remaining time, which changes when nothing happens
            counts = f"{status.counted}/{status.total} trials finished ({_counts(status)})"
            parts = [f"{self._study}: {counts}", f"{len(status.running)} running"]
            parts += [f"best is {_best_text(status)}"] if status.best is not None else []
            if parts != self._shown:
                self._shown = parts
                self.say("; ".join([*parts, *filter(None, [_time_left(status)])]))
            return
        rows, width = max(1, self._console.height - 16), self._console.width - 1
        elapsed = time.monotonic() - self._began
        table = render(self._study, status, list(self._events), elapsed, width, rows)
        self._live.update(table, refresh=True)

    def _print(self, line: str, style: str = "", indent: str = "") -> None:
        width = min(self._console.width, WIDTH)
        wrap = textwrap.TextWrapper(width, indent, f"{indent}  ", break_on_hyphens=False, tabsize=4)
        self._console.print(Text(wrap.fill(line), style), highlight=False, soft_wrap=True)


def event_line(event: Event, objectives: Sequence[Objective]) -> str:
    """An event in one line: "trial 12 done: balanced accuracy 0.612 (1:20)"."""
    result = _values_text(event.values, objectives) if event.values else event.outcome.reason
    seconds = f" ({clock(event.seconds)})" if event.seconds is not None else ""
    word = "stopped" if event.outcome.kind == "stopped" else WORDS[event.outcome.state]
    again = ", put back in the queue" if event.again else ""
    return f"trial {event.number} {word}: {' '.join(result.split())}{seconds}{again}"


def render(
    study: str,
    status: StudyStatus,
    events: Sequence[str],
    elapsed: float,
    width: int,
    rows: int = 16,
) -> Constrain:
    """Draw the status as a table.

    Args:
        study: The study's name.
        status: Of the study.
        events: Lines, the newest last.
        elapsed: Seconds since the start of the session.
        width: Available columns; at most 160 are used.
        rows: Running trials that are listed; of the others the count is shown.
    """
    width = min(width, WIDTH)
    aims = ", ".join(f"{item.direction} {label(item.metric)}" for item in status.objectives)
    times = ", ".join(filter(None, [f"{clock(elapsed)} elapsed", _time_left(status)]))
    head = RichTable.grid(padding=(0, GAP, 0, 0), pad_edge=False, expand=True)
    head.add_column(ratio=1, no_wrap=True)
    head.add_column(no_wrap=True, justify="right")
    head.add_row(Text.assemble((study, "bold"), (f"  {aims}", "dim")), times)
    counts = f"{status.counted}/{status.total} trials, {status.slots} at once"
    head.add_row(ProgressBar(max(status.total, 1), status.counted, complete_style="cyan"), counts)
    parts: list[RenderableType] = [head, _counts(status)]
    if status.running:
        parts += [Text(), _running_table(status, rows, width)]
        if (hidden := len(status.running) - rows) > 0:
            parts.append(Text(f"  and {hidden} more", style="dim"))
    if status.best is not None:
        parts.append(Text())
        if len(status.objectives) > 1:
            parts.append(Text(f"front  {count(len(status.front), 'trial')}"))
        parts.append(_line(f"best   {_best_text(status)}", "bold"))
        # The only cell that is shown in full.
        parts.append(Padding(Text(" ".join(status.cells[status.best[0]])), (0, 0, 0, 7)))
    parts += [Text()] if events else []
    parts += [_line(f"  {line}", _style(line)) for line in events[-EVENTS:]]
    return Constrain(Group(*parts), width)


def _line(text: str, style: str) -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _running_table(status: StudyStatus, rows: int, width: int) -> RichTable:
    """The running trials; of a metric other than the first objective the name is shown too."""
    running, now = status.running[:rows], time.monotonic()
    first = status.objectives[0].per_epoch
    table = RichTable(
        box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim", expand=True
    )
    table.add_column("trial", justify="right")
    table.add_column("overrides", ratio=1, no_wrap=True, overflow="ellipsis")
    for head in ("epoch", label(first), "time"):
        table.add_column(head, justify="right")
    cells = shortened([trial.cell.overrides for trial in running], width - OTHERS)
    for cell, trial in zip(cells, running, strict=True):
        metrics: Mapping[str, float] = trial.progress.get("metrics", {})
        # Some objectives are known only at the end.
        name = first if first in metrics or not metrics else next(iter(metrics))
        head = "" if name == first else f"{label(name)} "
        epoch, total = trial.progress.get("epoch", 0), trial.progress.get("epochs", "?")
        value, seconds = f"{head}{number(metrics.get(name))}", clock(now - trial.began)
        table.add_row(str(trial.task.number), Text(cell), f"{epoch}/{total}", value, seconds)
    return table


def number(value: float | None) -> str:
    """A metric's value, short: 0.612, 12.3, 30.0M; "-" where there is none."""
    if value is None or math.isnan(value):
        return "-"
    if abs(value) >= 1000 and math.isfinite(value):
        return engineering(value)
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def clock(seconds: float) -> str:
    """A time span as 0:07, 12:30 or 2:05:09."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def shortened(cells: Sequence[Sequence[str]], width: int) -> list[str]:
    """Shorten cells like ("model.net.width=8", "optimizer.lr=0.1") to texts, keeping differences.

    Each step is taken only if the texts do not fit without it: keys lose their path where the last
    word is unique; overrides that all texts share are dropped. They may still be longer then.

    Args:
        cells: The overrides of each.
        width: Columns.
    """
    parts = list(map(list, cells))

    def fits() -> bool:
        return all(len(" ".join(part)) <= width for part in parts)

    if not fits():
        keys = {text.partition("=")[0] for part in parts for text in part}
        words = {key: re.split(r"[./]", key)[-1] for key in keys}
        last = list(words.values())
        short = {key: word for key, word in words.items() if last.count(word) == 1}
        for part in parts:
            part[:] = [re.sub(r"^[^=]*", lambda m: short.get(m[0], m[0]), text) for text in part]
    if not fits() and len(parts) > 1:
        common = set.intersection(*map(set, parts))
        if common and any(set(part) - common for part in parts):
            parts = [[text for text in part if text not in common] + ["..."] for part in parts]
    return list(map(" ".join, parts))


def _counts(status: StudyStatus) -> Text:
    counts = [(status.counts[state], word, STYLES[word]) for state, word in WORDS.items()]
    counts.append((status.put_back, "put back in the queue", "dim"))
    entries = [entry for entry in counts if entry[0] or entry[1] == "done"]
    return Text(", ").join(Text(f"{n} {word}", style if n else "") for n, word, style in entries)


def _best_text(status: StudyStatus) -> str:
    assert status.best is not None
    return f"trial {status.best[0]}: {_values_text(status.best[1], status.objectives)}"


def _values_text(values: Sequence[float], objectives: Sequence[Objective]) -> str:
    """Metrics with labels: "balanced accuracy 0.612, FLOPs 30.0M"."""
    pairs = zip(objectives, values, strict=True)
    return ", ".join(f"{label(item.metric)} {number(value)}" for item, value in pairs)


def _time_left(status: StudyStatus) -> str:
    seconds = status.time_left
    if seconds is None or not (status.running or seconds):
        return ""
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"about {hours} h {minutes} min left"
    return f"about {minutes} min left" if minutes else "under a minute left"


def _style(line: str) -> str:
    """The colour of an event's line."""
    head = line.split(":")[0]
    return next((style for word, style in STYLES.items() if f" {word}" in head), "")
