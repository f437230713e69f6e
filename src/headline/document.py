"""The sections as one Markdown page, and as tables for a terminal."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from src.core.errors import UserError
from src.headline.part import Grid, Lines, Origin, Part

WIDTH = 100  # columns of a terminal
_FIRST = 16  # of them, at least, for what a row of a table is
COMMAND = "python -m src.results"
_ESCAPED = str.maketrans({"|": "\\|", "<": "&lt;", ">": "&gt;", "\n": " ", "\r": " "})


def markdown(parts: Sequence[Part], how: Sequence[str], when: str) -> str:
    """The page.

    Args:
        parts: Its sections.
        how: What a reader must know of all figures, a sentence each.
        when: Date and time at which it was made.
    """
    lines = [
        "# Results",
        "",
        f"Written by `{COMMAND}` on {when} from the run record; not by hand.",
        "",
    ]
    lines += [f"- {sentence}" for sentence in how]
    for part in parts:
        lines += ["", f"## {part.title}", *_paragraph(part.about)]
        for grid in part.grids:
            lines += ["", *_table(grid)]
        lines += _bullets([*part.findings, *part.notes])
        if part.missing:
            lines += [
                "",
                "Missing, with the command that records it:",
                *_bullets(_missing(part), plain=False),
            ]
        lines += _origin(part.origin)
    return "\n".join(lines) + "\n"


def write(text: str, file: Path) -> None:
    """Write the page whole or, if that fails, leave what was there.

    Raises:
        UserError: It cannot be written there.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_text(text, encoding="utf-8")
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"file={file}: the page cannot be written there ({error})") from error


def show(parts: Sequence[Part], console: Console) -> None:
    """The same tables on a terminal of `WIDTH` columns."""
    for part in parts:
        console.rule(part.title, align="left")
        for grid in part.grids:
            console.print(_drawn(grid))
        for told in (*part.findings, *(f"! {note}" for note in part.notes)):
            console.print(told, markup=False, highlight=False)
        for each in part.missing:
            console.print(f"missing: {each.what}: {each.why}", markup=False, highlight=False)
        for command in dict.fromkeys(each.command for each in part.missing):
            console.print(f"record it: {command}", markup=False, highlight=False)


def _table(grid: Grid) -> list[str]:
    rows = [[_cell(lines) for lines in row] for row in grid.rows]
    ruler = ["---" if number < grid.stacks[0] else "---:" for number in range(len(grid.columns))]
    return [
        f"| {' | '.join(cells)} |"
        for cells in ([_plain(name) for name in grid.columns], ruler, *rows)
    ]


def _cell(lines: Lines) -> str:
    return "<br>".join(map(_plain, lines))


def _plain(text: str) -> str:
    """Text from a record, so that it is no markup on the page."""
    return text.translate(_ESCAPED)


def _paragraph(text: str) -> list[str]:
    return ["", " ".join(text.split())] if text else []


def _bullets(texts: Sequence[str], plain: bool = True) -> list[str]:
    return ["", *(f"- {_plain(text) if plain else text}" for text in texts)] if texts else []


def _missing(part: Part) -> list[str]:
    """A line a command."""
    told = []
    for command in dict.fromkeys(each.command for each in part.missing):
        whats = [f"{each.what}: {each.why}" for each in part.missing if each.command == command]
        told.append(f"`{command}`<br>{_plain('; '.join(whats))}")
    return told


def _origin(origin: Origin) -> list[str]:
    if not origin.runs:
        return []
    told = [
        f"Command, less hydra.* options, which are not recorded: `{command}`"
        for command in origin.commands
    ]
    told += [f"Hardware: {_plain(machine)}" for machine in origin.hardware]
    told += [f"Chosen by: {_plain('; '.join(origin.chosen_by))}"]
    if origin.minutes:
        told += [
            f"Minutes a training, beside whatever else ran, median (least to most): {_plain('; '.join(origin.minutes))}"
        ]
    told += [
        f"Commit: {', '.join(origin.commits)}",
        f"Recorded: {origin.dates}, {origin.runs} trained runs",
    ]
    return _bullets(told, plain=False)


def _drawn(grid: Grid) -> Table:
    """Stacks below each other; each as wide as its longest word, the first takes what is left."""
    heads = _stacked(grid, tuple((name,) for name in grid.columns))
    rows = [_stacked(grid, row) for row in grid.rows]
    words = [
        [word for row in (heads, *rows) for line in row[at] for word in line.split()]
        for at in range(len(heads))
    ]
    widths = [max(map(len, own)) for own in words[1:]]
    drawn = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), show_lines=True)
    frame = (
        2 * len(heads) + 1
    )  # a blank behind each column, the edges, and what stands between columns
    first = max(_FIRST, WIDTH - frame - sum(widths))
    drawn.add_column(escape("\n".join(heads[0])), overflow="fold", width=first)
    for lines, width in zip(heads[1:], widths, strict=True):
        drawn.add_column(escape("\n".join(lines)), justify="right", overflow="fold", width=width)
    for row in rows:
        drawn.add_row(*(escape("\n".join(lines)) for lines in row))
    return drawn


def _stacked(grid: Grid, row: tuple[Lines, ...]) -> list[Lines]:
    found, at = [], 0
    for size in (*grid.stacks, *[1] * (len(row) - sum(grid.stacks))):
        found.append(tuple(line for lines in row[at : at + size] for line in lines))
        at += size
    return found
