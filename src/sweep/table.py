"""A snapshot of a study, drawn for a terminal of 100 columns or told in one line."""

import math
import textwrap
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from src.analysis.comparison import engineering
from src.errors import ConfigError
from src.objectives import Objective, describe
from src.sweep.shorten import middle, shortened
from src.sweep.snapshot import RunningRow, Snapshot

WIDTH = 100  # columns at most
EVENTS = 4  # newest ones shown below the table
SPACE = 2  # between columns


def render(snapshot: Snapshot, objectives: Sequence[Objective] = (), width: int = WIDTH, rows: int = 16) -> Group:
    """Draw a snapshot.

    Args:
        snapshot: What is to be seen.
        objectives: Named in the first line.
        width: Columns that may be used; at most 100 are.
        rows: Running trials that are listed; of the others the number is given.
    """
    width = min(width, WIDTH)
    parts: list[RenderableType] = [_head(snapshot, objectives, width), _bar(snapshot, width), _counts(snapshot)]
    if snapshot.running:
        parts += [Text(), _running(snapshot.running[:rows], width)]
        if hidden := len(snapshot.running) - rows:
            parts += [Text(f"  and {hidden} more", style="dim")] if hidden > 0 else []
    parts += _best(snapshot, width)
    if snapshot.events:
        shown = [
            Text(middle(f"  {line}", width), style=style_of(line), no_wrap=True) for line in snapshot.events[-EVENTS:]
        ]
        parts += [Text(), *shown]
    return Group(*parts)


def status_line(snapshot: Snapshot) -> str:
    """A snapshot in one line, for a log."""
    total = "" if snapshot.total is None else f"/{snapshot.total}"
    parts = [f"{snapshot.study}: {snapshot.finished}{total} trials over ({_counts(snapshot).plain.strip()})"]
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


def _head(snapshot: Snapshot, objectives: Sequence[Objective], width: int) -> Table:
    wanted = ", ".join(f"{objective.direction} {_label(objective.metric)}" for objective in objectives)
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


def _bar(snapshot: Snapshot, width: int) -> RenderableType:
    if snapshot.total is None:
        return Text(f"trials over: {snapshot.finished}, {snapshot.n_jobs} at once")
    label = f"{snapshot.finished}/{snapshot.total} trials, {snapshot.n_jobs} at once"
    line = Table.grid(expand=False)
    line.add_column(width=width - len(label) - SPACE)
    line.add_column(width=len(label) + SPACE, justify="right")
    line.add_row(
        ProgressBar(max(snapshot.total, 1), snapshot.finished, complete_style="cyan", width=width - len(label) - SPACE),
        label,
    )
    return line


def _counts(snapshot: Snapshot) -> Text:
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
    values = [number(row.value) if is_one else f"{_label(row.metric)} {number(row.value)}" for row in running]
    epochs = [f"{row.epoch}/{row.epochs or '?'}" for row in running]
    columns = [[str(row.number) for row in running], epochs, values, [clock(row.seconds) for row in running]]
    # a head may take several lines, a value may not
    widths = [max(map(len, [*head.split(), *texts])) for head, texts in zip(heads, columns, strict=True)]
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


def _best(snapshot: Snapshot, width: int) -> list[RenderableType]:
    found: list[RenderableType] = [Text()] if snapshot.best is not None or snapshot.front is not None else []
    if snapshot.front is not None:
        found.append(Text(f"front  {snapshot.front} trial{'s' if snapshot.front != 1 else ''}"))
    if snapshot.best is not None:
        line = f"best   trial {snapshot.best.number}: {figures(snapshot.best.values)}"
        found.append(Text(middle(line, width), style="bold", no_wrap=True))
        cell = textwrap.wrap(snapshot.best.cell, width - 7, break_on_hyphens=False)  # the one that is read in full
        found += [Text(f"       {line}", no_wrap=True) for line in cell]
    return found


def _left(snapshot: Snapshot) -> str:
    if snapshot.time_left is None or not (snapshot.running or snapshot.time_left):
        return ""
    minutes = round(snapshot.time_left / 60)
    if minutes < 1:
        return "under a minute left"
    return f"about {minutes} min left" if minutes < 60 else f"about {minutes // 60} h {minutes % 60} min left"


def _label(name: str) -> str:
    """For people; that a figure is of the validation split goes without saying here: the others are not seen."""
    try:
        return describe(name).label.replace(" (validation)", "").replace(" (validation, chosen epoch)", "")
    except ConfigError:
        return name


def style_of(line: str) -> str:
    """The colour of an event's line."""
    words = {" failed": "red", " pruned": "yellow", " over ": "yellow", " done": "green"}
    return next((style for word, style in words.items() if word in line.split(":")[0]), "")
