"""Live table, progress lines."""

import logging
import math
import re
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, Group, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from src.core.errors import ConfigError
from src.metrics.formatting import engineering
from src.metrics.registry import Objective, describe

if TYPE_CHECKING:
    from src.sweep.records import RunningTrial
    from src.sweep.status import Event, StudyStatus


RECENT = 20  # finished trials by which the time that is left is estimated


@dataclass(frozen=True)
class RunningRow:
    """A trial under way.

    Attributes:
        number: Of the trial within its study.
        cell: What it was given, such as "model=custom optimizer.lr=0.001".
        epoch: Epochs that are done; 0 before the first has ended.
        epochs: How many it may come to.
        metric: Name of the metric that is shown, from the run record.
        value: Its newest value; None before there is one.
        seconds: Since it was started.
    """

    number: int
    cell: str
    epoch: int
    epochs: int
    metric: str
    value: float | None
    seconds: float


@dataclass(frozen=True)
class BestRow:
    """The trial that is best by the first objective."""

    number: int
    cell: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class DisplayState:
    """A study at one moment.

    Attributes:
        study: Its name.
        n_jobs: Trials that may run at once.
        done: Trials trained to their end.
        pruned: Trials stopped early, as they were behind.
        over_limit: Trials not trained, as their cost is over a limit.
        failed: Trials that failed for good, in this sitting or an earlier one.
        put_back: Trials in whose place another one is made: they were stopped, or failed and are
            tried again.
        counted: Trials that count towards the total; None: all that are over.
        total: Trials that the study shall come to; None if nobody knows.
        running: Trials under way.
        front: Size of the front; None for a single objective.
        best: The best trial; None before there is one.
        events: What happened, newest last; one line each.
        finished_seconds: How long finished trials took, newest last.
        elapsed: Seconds since the owner was started.
    """

    study: str
    n_jobs: int
    done: int = 0
    pruned: int = 0
    over_limit: int = 0
    failed: int = 0
    put_back: int = 0
    counted: int | None = None
    total: int | None = None
    running: Sequence[RunningRow] = ()
    front: int | None = None
    best: BestRow | None = None
    events: Sequence[str] = ()
    finished_seconds: Sequence[float] = field(default_factory=tuple)
    elapsed: float = 0.0

    @property
    def finished(self) -> int:
        """Trials that are over and count towards the total."""
        return (
            self.done + self.pruned + self.over_limit + self.failed
            if self.counted is None
            else self.counted
        )

    @property
    def time_left(self) -> float | None:
        """Seconds until the study is over, as far as recent trials tell.

        None before the first has ended, and where one of the last that run is longer at it than
        they were: nobody knows then.
        """
        recent = self.finished_seconds[-RECENT:]
        if self.total is None or not recent:
            return None
        mean = sum(recent) / len(recent)
        waiting = max(0, self.total - self.finished - len(self.running))
        if not waiting and any(row.seconds >= mean for row in self.running):
            return None
        work = waiting * mean + sum(max(0.0, mean - row.seconds) for row in self.running)
        return work / (len(self.running) or self.n_jobs)


def snapshot(
    study: str, standing: "StudyStatus", events: Sequence[str], elapsed: float
) -> DisplayState:
    """What is to be seen of a standing.

    Args:
        study: The study's name.
        standing: As the owner keeps it.
        events: Lines, newest last.
        elapsed: Seconds since the owner was started.
    """
    names = [objective.metric for objective in standing.objectives]
    best = standing.best
    return DisplayState(
        study,
        standing.slots,
        done=standing.counts["complete"],
        pruned=standing.counts["pruned"],
        over_limit=standing.counts["over_limit"],
        failed=standing.counts["fail"],
        put_back=standing.put_back,
        counted=standing.counted,
        total=standing.total,
        running=[_row(running, names[0]) for running in standing.running],
        front=len(standing.front) if len(names) > 1 else None,
        best=BestRow(
            best[0], " ".join(standing.cells[best[0]]), dict(zip(names, best[1], strict=True))
        )
        if best
        else None,
        events=events,
        finished_seconds=standing.durations[-RECENT:],
        elapsed=elapsed,
    )


def _row(running: "RunningTrial", wanted: str) -> RunningRow:
    """A running trial with the first objective's metric, if it is reported while training, else the first that is."""
    metrics: Mapping[str, float] = running.progress.get("metrics", {})
    metric = wanted if wanted in metrics or not metrics else next(iter(metrics))
    return RunningRow(
        running.task.number,
        " ".join(running.cell.overrides),
        int(running.progress.get("epoch", 0)),
        int(running.progress.get("epochs", 0)),
        metric,
        metrics.get(metric),
        time.monotonic() - running.began,
    )


DOTS = "..."


def shortened(cells: Sequence[str], width: int) -> list[str]:
    """Fit texts like "model.net.width=8 optimizer.lr=0.001" into a column, so that what differs stays to be read.

    Each step is taken only if the texts do not fit without it: keys lose their path where the last
    word is enough; what is equal in all texts goes; keys are cut to their beginning, long values in
    their middle; the whole text is.

    Args:
        cells: Overrides with blanks between.
        width: Columns; at least 5.
    """
    parts = [_overrides(cell) for cell in cells]
    if _fit(parts, width):
        return [cell.strip() for cell in cells]
    parts = _without_paths(parts)
    if not _fit(parts, width) and len(parts) > 1:
        common = set.intersection(*map(set, parts))
        if common and any(set(part) - common for part in parts):
            parts = [[text for text in part if text not in common] + [DOTS] for part in parts]
    for key, value in ((5, 24), (3, 24), (3, 12), (3, 8)):
        if not _fit(parts, width):
            parts = [[_cut(text, key, value) for text in part] for part in parts]
    return [middle(" ".join(part), width) for part in parts]


def middle(text: str, width: int) -> str:
    """A text with its middle cut out, so that it takes at most `width` columns."""
    if len(text) <= width:
        return text
    kept = max(width - len(DOTS), 0)
    return text[: kept - kept // 2] + DOTS[:width] + text[len(text) - kept // 2 :]


def _overrides(cell: str) -> list[str]:
    return re.split(r"\s+(?=[\w.@/+~]+=)", cell.strip())  # a value may have blanks: dense=[64, 32]


def _fit(parts: Sequence[Sequence[str]], width: int) -> bool:
    return all(len(" ".join(part)) <= width for part in parts)


def _without_paths(parts: Sequence[Sequence[str]]) -> list[list[str]]:
    keys = {text.partition("=")[0] for part in parts for text in part}
    last = [re.split(r"[./]", key)[-1] for key in keys]
    short = {key: word for key, word in zip(keys, last, strict=True) if last.count(word) == 1}
    split = [[text.partition("=") for text in part] for part in parts]
    return [[f"{short.get(key, key)}{sign}{value}" for key, sign, value in part] for part in split]


def _cut(text: str, key_size: int, value_size: int) -> str:
    """The beginning of the key, and both ends of the value."""
    key, sign, value = text.partition("=")
    return f"{key[:key_size]}={middle(value, value_size)}" if sign else text


WIDTH = 100  # columns at most
EVENTS = 4  # newest ones shown below the table
SPACE = 2  # between columns


def render(
    snapshot: DisplayState, objectives: Sequence[Objective] = (), width: int = WIDTH, rows: int = 16
) -> Group:
    """Draw a snapshot.

    Args:
        snapshot: What is to be seen.
        objectives: Named in the first line.
        width: Columns that may be used; at most 100 are.
        rows: Running trials that are listed; of the others the number is given.
    """
    width = min(width, WIDTH)
    parts: list[RenderableType] = [
        _head(snapshot, objectives, width),
        _bar(snapshot, width),
        _counts(snapshot),
    ]
    if snapshot.running:
        parts += [Text(), _running(snapshot.running[:rows], width)]
        if hidden := len(snapshot.running) - rows:
            parts += [Text(f"  and {hidden} more", style="dim")] if hidden > 0 else []
    parts += _best(snapshot, width)
    if snapshot.events:
        shown = [
            Text(middle(f"  {line}", width), style=style_of(line), no_wrap=True)
            for line in snapshot.events[-EVENTS:]
        ]
        parts += [Text(), *shown]
    return Group(*parts)


def status_line(snapshot: DisplayState) -> str:
    """A snapshot in one line, for a log."""
    total = "" if snapshot.total is None else f"/{snapshot.total}"
    parts = [
        f"{snapshot.study}: {snapshot.finished}{total} trials over ({_counts(snapshot).plain.strip()})"
    ]
    parts.append(f"{len(snapshot.running)} running")
    if snapshot.best is not None:
        parts.append(f"best is trial {snapshot.best.number}: {figures(snapshot.best.values)}")
    return "; ".join([*parts, *([left] if (left := _left(snapshot)) else [])])


def figures(values: Mapping[str, float]) -> str:
    """Metrics with their labels: "balanced accuracy (validation) 0.612, FLOPs 30.0M"."""
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


def _head(snapshot: DisplayState, objectives: Sequence[Objective], width: int) -> Table:
    wanted = ", ".join(
        f"{objective.direction} {_label(objective.metric)}" for objective in objectives
    )
    left = _left(snapshot)
    right = f"{clock(snapshot.elapsed)} gone{', ' + left if left else ''}"
    title = Text(snapshot.study, style="bold")
    title.append(f"  {wanted}" if wanted else "", style="not bold dim")
    title.truncate(width - len(right) - SPACE, overflow="ellipsis")
    line = Table.grid(expand=False)
    line.add_column(width=width - len(right), no_wrap=True)
    line.add_column(width=len(right), no_wrap=True, justify="right")
    line.add_row(title, right)
    return line


def _bar(snapshot: DisplayState, width: int) -> RenderableType:
    if snapshot.total is None:
        return Text(f"trials over: {snapshot.finished}, {snapshot.n_jobs} at once")
    label = f"{snapshot.finished}/{snapshot.total} trials, {snapshot.n_jobs} at once"
    line = Table.grid(expand=False)
    line.add_column(width=width - len(label) - SPACE)
    line.add_column(width=len(label) + SPACE, justify="right")
    line.add_row(
        ProgressBar(
            max(snapshot.total, 1),
            snapshot.finished,
            complete_style="cyan",
            width=width - len(label) - SPACE,
        ),
        label,
    )
    return line


def _counts(snapshot: DisplayState) -> Text:
    counts = [
        (snapshot.done, "done", "green"),
        (snapshot.pruned, "pruned", "yellow"),
        (snapshot.over_limit, "over a limit", "yellow"),
        (snapshot.failed, "failed", "red"),
        (snapshot.put_back, "put back in the queue", "dim"),
    ]
    line = Text()
    for count, name, style in counts:
        if count or name == "done":
            line.append(f"{', ' if line else ''}{count} {name}", style=style if count else "")
    return line


def _running(running: Sequence[RunningRow], width: int) -> Table:
    """The running trials. The columns' widths are set here, so that a cell's text knows what it may take."""
    names = {row.metric for row in running}
    is_one = len(names) == 1
    heads = ["trial", "epoch", _label(running[0].metric) if is_one else "metric", "time"]
    values = [
        number(row.value) if is_one else f"{_label(row.metric)} {number(row.value)}"
        for row in running
    ]
    epochs = [f"{row.epoch}/{row.epochs or '?'}" for row in running]
    columns = [
        [str(row.number) for row in running],
        epochs,
        values,
        [clock(row.seconds) for row in running],
    ]
    # a head may take several lines, a value may not
    widths = [
        max(map(len, [*head.split(), *texts])) for head, texts in zip(heads, columns, strict=True)
    ]
    widths[2] = min(widths[2], width // 3)
    room = width - sum(widths) - SPACE * len(heads)
    table = Table(box=None, pad_edge=False, padding=(0, SPACE, 0, 0), header_style="dim")
    table.add_column(heads[0], width=widths[0], justify="right", no_wrap=True)
    table.add_column("given", width=max(room, 5), no_wrap=True)
    for head, size in zip(heads[1:], widths[1:], strict=True):
        table.add_column(head, width=size, justify="right")
    cells = shortened([row.cell for row in running], max(room, 5))
    for trial, cell, epoch, value, span in zip(columns[0], cells, *columns[1:], strict=True):
        table.add_row(trial, Text(cell), epoch, middle(value, widths[2]), span)
    return table


def _best(snapshot: DisplayState, width: int) -> list[RenderableType]:
    found: list[RenderableType] = (
        [Text()] if snapshot.best is not None or snapshot.front is not None else []
    )
    if snapshot.front is not None:
        found.append(Text(f"front  {snapshot.front} trial{'s' if snapshot.front != 1 else ''}"))
    if snapshot.best is not None:
        line = f"best   trial {snapshot.best.number}: {figures(snapshot.best.values)}"
        found.append(Text(middle(line, width), style="bold", no_wrap=True))
        cell = textwrap.wrap(
            snapshot.best.cell, width - 7, break_on_hyphens=False
        )  # the one that is read in full
        found += [Text(f"       {line}", no_wrap=True) for line in cell]
    return found


def _left(snapshot: DisplayState) -> str:
    if snapshot.time_left is None or not (snapshot.running or snapshot.time_left):
        return ""
    minutes = round(snapshot.time_left / 60)
    if minutes < 1:
        return "under a minute left"
    return (
        f"about {minutes} min left"
        if minutes < 60
        else f"about {minutes // 60} h {minutes % 60} min left"
    )


def _label(name: str) -> str:
    """For people; that a figure is of the validation split goes without saying here: the others are not seen."""
    try:
        return (
            describe(name)
            .label.replace(" (validation)", "")
            .replace(" (validation, chosen epoch)", "")
        )
    except ConfigError:
        return name


def style_of(line: str) -> str:
    """The colour of an event's line."""
    words = {" failed": "red", " pruned": "yellow", " over ": "yellow", " done": "green"}
    return next((style for word, style in words.items() if word in line.split(":")[0]), "")


REFRESH_S = 0.5
LIVE_WIDTH = 100  # columns of a line in a log
STATUS_S = 30.0  # between two status lines where there is no terminal


class LiveView:
    """Shows a study while it runs; use it as a context manager.

    On a terminal: a table that is redrawn in place, at most twice a second; log lines and the logs
    of failed trials are printed above it. Elsewhere: a line an event, and a status line every 30 s.

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
        self._newest: DisplayState | None = None
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
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._newest is not None:
            self._show(self._newest)
        if self._live is not None:
            self._live.stop()
            self._live = None
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._handlers = []

    def show(self, standing: "StudyStatus") -> None:
        """Take the standing's events, and show it if it is time."""
        for event in standing.take_events():
            line = event_line(event, self._objectives)
            self._events.append(line)
            self.event(line, event.tail.splitlines() if event.outcome.state == "fail" else ())
        self.update(snapshot(self._study, standing, list(self._events), self._now() - self._began))

    def say(self, line: str) -> None:
        """Print a line, above the table if there is one."""
        self._print(Text(line, style=style_of(line)))

    def update(self, newest: DisplayState) -> None:
        """Show a newer state of the study, if it is time; cheap otherwise, so call it as often as anything changes."""
        self._newest = newest
        if self._now() - self._shown >= (STATUS_S if self._live is None else REFRESH_S):
            self._shown = self._now()
            self._show(newest)

    def event(self, line: str, log: Sequence[str] = ()) -> None:
        """Tell that something happened.

        On a terminal only what has a log is printed, above the table: the rest is seen in
        `Snapshot.events`.

        Args:
            line: Such as "trial 12 failed: out of memory".
            log: Last lines of the trial's log; printed indented.
        """
        if self._live is not None and not log:
            return
        self._print(Text(_wrapped(line) if self._live is None else line, style=style_of(line)))
        for text in log:
            self._print(Text(_wrapped(text.rstrip(), "    "), style="dim"))

    def _show(self, seen: DisplayState) -> None:
        if self._live is None:
            self._print(Text(_wrapped(status_line(seen))))
        else:
            rows = max(1, self._console.height - 16)
            self._live.update(
                render(seen, self._objectives, self._console.width - 1, rows), refresh=True
            )

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
        line,
        LIVE_WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_on_hyphens=False,
        tabsize=4,
    )


def event_line(event: "Event", objectives: Sequence[Objective]) -> str:
    """What happened, in one line: "trial 12 done: balanced accuracy 0.612 (1:20)"."""
    words = {"complete": "done", "pruned": "pruned", "over_limit": "over a limit", "fail": "failed"}
    names = [objective.metric for objective in objectives]
    what = (
        figures(dict(zip(names, event.values, strict=True)))
        if event.values
        else event.outcome.reason
    )
    took = f" ({clock(event.seconds)})" if event.seconds is not None else ""
    word = "stopped" if event.outcome.kind == "stopped" else words[event.outcome.state]
    again = ", put back in the queue" if event.again else ""
    return f"trial {event.number} {word}: {' '.join(what.split())}{took}{again}"
