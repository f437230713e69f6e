"""A clinical audit for people: on a terminal of 100 columns, and as a folder with a page, pictures and tables."""

import re
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from src.clinical import pictures, sheets, words
from src.clinical.record import ClinicalAudit
from src.clinical.sheets import Sheet
from src.spreadsheets import harmless
from src.whole import whole_folder

PAGE = "clinical.md"
_STYLES = {"PASS": "bold green", "FAIL": "bold red", "UNDECIDED": "bold yellow", "Beware": "bold red"}


def render(found: ClinicalAudit) -> list[RenderableType]:
    """What to print, one after the other: the summary (warnings first), the tables, then how they are to be read."""
    summary = Group(*(_outcome(sentence) for sentence in words.summary(found)), Text())
    tables = [Group(as_table(sheet), Text(sheet.caption), Text()) for sheet in sheets.sheets(found)]
    return [summary, *tables, Group(*(Text(f"! {note}") for note in _notes(found)))]


def markdown(found: ClinicalAudit, linked: bool = True) -> str:
    """The audit as a page of Markdown.

    Args:
        found: What is told.
        linked: Whether the pictures lie beside the page.
    """
    parts = [
        f"# Clinical audit: {plain(found.split)}",
        "\n".join(f"- {plain(sentence)}" for sentence in words.summary(found)),
        "\n".join(f"> {plain(note)}  " for note in _notes(found)),
    ]
    for sheet in sheets.sheets(found):
        parts += [f"## {plain(sheet.title)}", as_markdown(sheet), plain(sheet.caption)]
    if linked:
        parts += [f"![{title}]({name}.png)" for name, title in pictures.titles(found).items()]
    return "\n\n".join(parts) + "\n"


def write(found: ClinicalAudit, folder: Path) -> list[Path]:
    """Write the page, the pictures (PNG and SVG) and the tables (CSV): all of the folder, or nothing.

    Args:
        found: What is written.
        folder: What was in it goes.

    Returns:
        The files.

    Raises:
        UserError: The folder cannot be written.
    """
    with whole_folder(folder, "the clinical audit") as draft:
        (draft / PAGE).write_text(markdown(found), encoding="utf-8")
        for name, table in found.tables.items():
            spreadsheet(table).to_csv(draft / f"{name}.csv", index=False)
        pictures.write(found, draft)
    return sorted(folder.iterdir())


def _notes(found: ClinicalAudit) -> tuple[str, ...]:
    """Those that do not stand in the summary already."""
    return found.notes[len(found.warnings) :]


def _outcome(sentence: str) -> Text:
    word = sentence.partition(":")[0]
    text = Text(sentence)
    text.stylize(_STYLES.get(word, ""), 0, len(word))
    return text


def as_table(sheet: Sheet) -> Table:
    """A sheet for the terminal: the first column to the left, figures to the right."""
    drawn = Table(
        title=Text(sheet.title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for number, name in enumerate(sheet.head):
        figures = all(row[number][:1] in "0123456789-" for row in sheet.rows)  # names give way, figures are not torn
        drawn.add_column(Text(name), justify="right" if number else "left", overflow="fold", no_wrap=figures)
    for row in sheet.rows:
        drawn.add_row(*map(Text, row))
    return drawn


def as_markdown(sheet: Sheet) -> str:
    """A sheet as a table of Markdown, without its title and caption."""
    head, *rows = ([plain(cell) for cell in line] for line in (sheet.head, *sheet.rows))
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text from outside as words of one line: no tags, no table cells, no emphasis, no links."""
    text = re.sub(r"([\\`*_\[\]|#])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def spreadsheet(table: pd.DataFrame) -> pd.DataFrame:
    """Text that a spreadsheet would run as a formula is put behind an apostrophe."""
    return table.map(harmless)
