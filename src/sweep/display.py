"""Display of a running study: a live table on a terminal, lines in a log."""

import logging
import math
import re
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table as RichTable
from rich.text import Text

from src.core.errors import ConfigError
from src.metrics.formatting import engineering
from src.metrics.registry import Objective, describe
from src.sweep.records import RunningTrial
from src.sweep.status import Event, StudyStatus

WIDTH = 100  # columns at most
EVENTS = 4  # newest events below the table
GAP = 2  # between columns
DOTS = "..."
REFRESH_S = 0.5  # between two drawings on a terminal
STATUS_S = 30.0  # between two status lines elsewhere
STYLES = {" failed": "red", " pruned": "yellow", " over ": "yellow", " done": "green"}


class LiveView:
    """Shows a study while it runs; a context manager.

    On a terminal: a table that is redrawn at most twice a second; log lines and the logs of failed
    trials are printed above it. Elsewhere: a line for each event, and a status line every 30 s.

    Args:
        study: The study's name.
        objectives: Shown in the first line.
        console: Where to; None: standard output.
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
        self._shown_at = -math.inf
        self._events: deque[str] = deque(maxlen=EVENTS)
        self._status: StudyStatus | None = None
        self._live: Live | None = None
        self._handlers: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    def __enter__(self) -> "LiveView":
        if not self._console.is_terminal:
            self._shown_at = self._now()  # the first status line comes after a while
            return self
        for handler in logging.getLogger().handlers:
            stream = getattr(handler, "stream", None)
            if isinstance(handler, logging.StreamHandler) and stream in (sys.stdout, sys.stderr):
                # Log lines pass through the console, which prints them above the table.
                self._handlers.append((handler, stream))
                handler.setStream(FileProxy(self._console, stream))
        self._live = Live(console=self._console, auto_refresh=False)
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._draw(self._status)
        if self._live is not None:
            self._live.stop()
            self._live = None
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._handlers = []

    def show(self, status: StudyStatus) -> None:
        """Print new events, and redraw if it is time; cheap otherwise."""
        self._status = status
        for event in status.take_events():
            line = event_line(event, self._objectives)
            self._events.append(line)
            tail = event.tail.splitlines() if event.outcome.state == "fail" else []
            if self._live is None or tail:  # the table shows the others
                wrapped = line if self._live is not None else _wrapped(line)
                self._print(Text(wrapped, style=_style(line)))
                for text in tail:
                    self._print(Text(_wrapped(text.rstrip(), "    "), style="dim"))
        if self._now() - self._shown_at >= (STATUS_S if self._live is None else REFRESH_S):
            self._shown_at = self._now()
            self._draw(status)

    def say(self, line: str) -> None:
        """Print a line, above the table if there is one."""
        self._print(Text(line, style=_style(line)))

    def _draw(self, status: StudyStatus) -> None:
        if self._live is None:
            self._print(Text(_wrapped(status_line(self._study, status))))
            return
        rows, width = max(1, self._console.height - 16), self._console.width - 1
        elapsed = self._now() - self._began
        table = render(self._study, status, list(self._events), elapsed, width, rows)
        self._live.update(table, refresh=True)

    def _print(self, text: Text) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def event_line(event: Event, objectives: Sequence[Objective]) -> str:
    """An event in one line: "trial 12 done: balanced accuracy 0.612 (1:20)"."""
    words = {"complete": "done", "pruned": "pruned", "over_limit": "over a limit", "fail": "failed"}
    names = [objective.metric for objective in objectives]
    result = event.outcome.reason
    if event.values:
        result = figures(dict(zip(names, event.values, strict=True)))
    seconds = f" ({clock(event.seconds)})" if event.seconds is not None else ""
    word = "stopped" if event.outcome.kind == "stopped" else words[event.outcome.state]
    again = ", put back in the queue" if event.again else ""
    return f"trial {event.number} {word}: {' '.join(result.split())}{seconds}{again}"


def status_line(study: str, status: StudyStatus) -> str:
    """The status in one line, for a log."""
    counts = _counts(status).plain.strip()
    parts = [f"{study}: {status.counted}/{status.total} trials finished ({counts})"]
    parts.append(f"{len(status.running)} running")
    if status.best is not None:
        parts.append(f"best is trial {_best_text(status)}")
    return "; ".join([*parts, *filter(None, [_time_left(status)])])


def render(
    study: str,
    status: StudyStatus,
    events: Sequence[str] = (),
    elapsed: float = 0.0,
    width: int = WIDTH,
    rows: int = 16,
) -> Group:
    """Draw the status as a table.

    Args:
        study: The study's name.
        status: Of the study.
        events: Lines, the newest last.
        elapsed: Seconds since the start of the session.
        width: Available columns; at most 100 are used.
        rows: Running trials that are listed; of the others the number is shown.
    """
    width = min(width, WIDTH)
    aims = ", ".join(f"{each.direction} {_label(each.metric)}" for each in status.objectives)
    right = ", ".join(filter(None, [f"{clock(elapsed)} elapsed", _time_left(status)]))
    title = Text(study, style="bold")
    title.append(f"  {aims}", style="not bold dim")
    title.truncate(width - len(right) - GAP, overflow="ellipsis")
    label = f"{status.counted}/{status.total} trials, {status.slots} at once"
    room = width - len(label) - GAP
    bar = ProgressBar(max(status.total, 1), status.counted, complete_style="cyan", width=room)
    parts: list[RenderableType] = [_line(title, right, width), _line(bar, label, width)]
    parts.append(_counts(status))
    if status.running:
        parts += [Text(), _running_table(status, rows, width)]
        if (hidden := len(status.running) - rows) > 0:
            parts.append(Text(f"  and {hidden} more", style="dim"))
    if status.best is not None:
        parts.append(Text())
        if len(status.objectives) > 1:
            n_front = len(status.front)
            parts.append(Text(f"front  {n_front} trial{'s' if n_front != 1 else ''}"))
        line = f"best   trial {_best_text(status)}"
        parts.append(Text(middle(line, width), style="bold", no_wrap=True))
        cell = " ".join(status.cells[status.best[0]])  # the only one that is shown in full
        lines = textwrap.wrap(cell, width - 7, break_on_hyphens=False)
        parts += [Text(f"       {line}", no_wrap=True) for line in lines]
    if events:
        parts.append(Text())
    for line in events[-EVENTS:]:
        parts.append(Text(middle(f"  {line}", width), style=_style(line), no_wrap=True))
    return Group(*parts)


def figures(values: Mapping[str, float]) -> str:
    """Metrics with labels: "balanced accuracy 0.612, FLOPs 30.0M"."""
    return ", ".join(f"{_label(name)} {number(value)}" for name, value in values.items())


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


def shortened(cells: Sequence[str], width: int) -> list[str]:
    """Fit texts like "model.net.width=8 optimizer.lr=0.1" into a column, keeping differences.

    Each step is taken only if the texts do not fit without it: keys lose their path where the last
    word is unique; overrides that all texts share are dropped; keys lose their end and long values
    their middle; the whole text loses its middle.

    Args:
        cells: Overrides, separated by blanks.
        width: Columns; at least 5.
    """
    # A value may contain blanks: dense=[64, 32].
    parts = [re.split(r"\s+(?=[\w.@/+~]+=)", cell.strip()) for cell in cells]

    def fits() -> bool:
        return all(len(" ".join(part)) <= width for part in parts)

    if fits():
        return [cell.strip() for cell in cells]
    keys = {text.partition("=")[0] for part in parts for text in part}
    words = [re.split(r"[./]", key)[-1] for key in keys]
    short = {key: w for key, w in zip(keys, words, strict=True) if words.count(w) == 1}
    parts = [
        [re.sub(r"^[^=]*", lambda m: short.get(m[0], m[0]), t) for t in part] for part in parts
    ]
    if not fits() and len(parts) > 1:
        common = set.intersection(*map(set, parts))
        if common and any(set(part) - common for part in parts):
            parts = [[text for text in part if text not in common] + [DOTS] for part in parts]
    for key_size, value_size in ((5, 24), (3, 24), (3, 12), (3, 8)):
        if not fits():
            parts = [[_cut(text, key_size, value_size) for text in part] for part in parts]
    return [middle(" ".join(part), width) for part in parts]


def middle(text: str, width: int) -> str:
    """A text of at most `width` columns; the middle is cut out if it is longer."""
    if len(text) <= width:
        return text
    kept = max(width - len(DOTS), 0)
    return text[: kept - kept // 2] + DOTS[:width] + text[len(text) - kept // 2 :]


def _cut(text: str, key_size: int, value_size: int) -> str:
    key, sign, value = text.partition("=")
    return f"{key[:key_size]}={middle(value, value_size)}" if sign else text


def _line(left: RenderableType, right: str, width: int) -> RichTable:
    line = RichTable.grid(expand=False)
    line.add_column(width=width - len(right), no_wrap=True)
    line.add_column(width=len(right), no_wrap=True, justify="right")
    line.add_row(left, right)
    return line


def _counts(status: StudyStatus) -> Text:
    counts = [
        (status.counts["complete"], "done", "green"),
        (status.counts["pruned"], "pruned", "yellow"),
        (status.counts["over_limit"], "over a limit", "yellow"),
        (status.counts["fail"], "failed", "red"),
        (status.put_back, "put back in the queue", "dim"),
    ]
    line = Text()
    for count, name, style in counts:
        if count or name == "done":
            line.append(f"{', ' if line else ''}{count} {name}", style=style if count else "")
    return line


def _best_text(status: StudyStatus) -> str:
    assert status.best is not None
    names = [objective.metric for objective in status.objectives]
    return f"{status.best[0]}: {figures(dict(zip(names, status.best[1], strict=True)))}"


def _running_table(status: StudyStatus, rows: int, width: int) -> RichTable:
    """The running trials; column widths are set here, because cells are cut to them."""
    running = status.running[:rows]
    first = status.objectives[0].metric
    metrics = [_shown_metric(trial, first) for trial in running]
    is_one = len({name for name, _ in metrics}) == 1
    heads = ["trial", "epoch", _label(metrics[0][0]) if is_one else "metric", "time"]
    progress = [trial.progress for trial in running]
    now = time.monotonic()
    columns = [
        [str(trial.task.number) for trial in running],
        [f"{each.get('epoch', 0)}/{each.get('epochs') or '?'}" for each in progress],
        [number(v) if is_one else f"{_label(name)} {number(v)}" for name, v in metrics],
        [clock(now - trial.began) for trial in running],
    ]
    # A head may take several lines, a value may not.
    pairs = zip(heads, columns, strict=True)
    widths = [max(map(len, [*head.split(), *texts])) for head, texts in pairs]
    widths[2] = min(widths[2], width // 3)
    room = max(width - sum(widths) - GAP * len(heads), 5)
    table = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    table.add_column(heads[0], width=widths[0], justify="right", no_wrap=True)
    table.add_column("overrides", width=room, no_wrap=True)
    for head, size in zip(heads[1:], widths[1:], strict=True):
        table.add_column(head, width=size, justify="right")
    cells = shortened([" ".join(trial.cell.overrides) for trial in running], room)
    for trial, cell, epoch, value, seconds in zip(columns[0], cells, *columns[1:], strict=True):
        table.add_row(trial, Text(cell), epoch, middle(value, widths[2]), seconds)
    return table


def _shown_metric(trial: RunningTrial, first: str) -> tuple[str, float | None]:
    """The first objective's metric if it is reported during training, else the first reported."""
    metrics: Mapping[str, float] = trial.progress.get("metrics", {})
    name = first if first in metrics or not metrics else next(iter(metrics))
    return name, metrics.get(name)


def _time_left(status: StudyStatus) -> str:
    seconds = status.time_left
    if seconds is None or not (status.running or seconds):
        return ""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "under a minute left"
    if minutes < 60:
        return f"about {minutes} min left"
    return f"about {minutes // 60} h {minutes % 60} min left"


def _label(name: str) -> str:
    """A metric's label without its split: only validation metrics are shown here."""
    try:
        return re.sub(r" \(validation(, chosen epoch)?\)", "", describe(name).label)
    except ConfigError:
        return name


def _style(line: str) -> str:
    """The colour of an event's line."""
    head = line.split(":")[0]
    return next((style for word, style in STYLES.items() if word in head), "")


def _wrapped(line: str, indent: str = "") -> str:
    wrapper = textwrap.TextWrapper(WIDTH, indent, f"{indent}  ", break_on_hyphens=False, tabsize=4)
    return wrapper.fill(line)
