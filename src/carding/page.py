"""A card as Markdown: laid out by card.md.j2, its lines short enough to be read as they are."""

import re
import textwrap
from pathlib import Path

import jinja2
import yaml

from src.carding.record import Card
from src.core.files import atomic_folder
from src.reporting.clinical.page import AuditTable

NAME = "card.md"
WIDTH = 120  # characters a line, but for tables and commands
_TEMPLATE = Path(__file__).with_name("card.md.j2")


def render(card: Card) -> str:
    """The card as a page of Markdown with its head in YAML."""
    environment = jinja2.Environment(  # noqa: S701  Markdown, whose own signs `plain` takes care of
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"item": item, "paragraph": paragraph, "table": table, "code": code}
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    head = yaml.safe_dump(card.front, sort_keys=False, allow_unicode=True, width=WIDTH)
    return re.sub(r"\n{3,}", "\n\n", template.render(card=card, front=head.rstrip("\n")))


def write(card: Card, folder: Path) -> Path:
    """Write the card into a folder, whole or not at all; what was in the folder goes.

    Returns:
        The file.

    Raises:
        UserError: The folder cannot be written.
    """
    with atomic_folder(folder, "the model card") as draft:
        (draft / NAME).write_text(render(card), encoding="utf-8")
    return folder / NAME


def plain(text: str) -> str:
    """Text from outside as words of one line: no tags, code, emphasis, links or cells, and else as it was.

    Unlike that of `src.reporting.clinical.page` it leaves brackets and the underscores of names
    alone, so that the file can be read as it is.
    """
    text = re.sub(r"([\\`*|<])", r"\\\1", " ".join(text.split()))
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\_", text)
    return re.sub(r"\](?=[(\[:])", r"\]", text)


def paragraph(text: str) -> str:
    """Text from outside as a paragraph."""
    return _wrapped(plain(text))


def item(text: str, name: str = "") -> str:
    """Text from outside as an entry of a list, with its name in front."""
    head = f"**{plain(name)}**: " if name else ""
    return _wrapped(f"- {head}{plain(text)}", "  ")


def table(sheet: AuditTable) -> str:
    """A table whose columns stand below each other in the text, too: the first to the left, the others to the right."""
    lines = [[plain(cell) for cell in line] for line in (sheet.head, *sheet.rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(sheet.head))]
    drawn = [
        [
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    rule = [
        "-" * width if number == 0 else "-" * (width - 1) + ":"
        for number, width in enumerate(widths)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (drawn[0], rule, *drawn[1:]))


def code(command: str) -> str:
    """A command as a block of code."""
    return f"    {command}"


def _wrapped(text: str, indent: str = "") -> str:
    lines = textwrap.wrap(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join([*lines[:1], *map(_mid_sentence, lines[1:])])


def _mid_sentence(line: str) -> str:
    """A line whose first sign would begin a quotation, a list or a heading, without that meaning."""
    return re.sub(r"^(\s*)([>#+=-])", r"\1\\\2", re.sub(r"^(\s*\d+)([.)])(?=\s)", r"\1\\\2", line))
