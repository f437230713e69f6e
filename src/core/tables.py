"""One table for every output: terminal, Markdown, LaTeX and CSV show the same rows."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from src.core.files import atomic_file, spreadsheet

MISSING = "-"
_MARKDOWN_SPECIAL = "\\`*[]|#"
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


@dataclass(frozen=True)
class Table:
    """A DataFrame with a title, a caption, column labels, units and formats.

    Attributes:
        frame: One row per table row, raw values; the index is not shown.
        title: Shown above the table, one line.
        caption: Shown below the table: units, directions, warnings.
        labels: Column -> heading without the unit. A column without a label shows its name.
        units: Column -> unit, shown in the heading in parentheses.
        formats: Column -> format specification such as ".3f", or a function of one value.
            Missing values (None, NaN) are shown as "-" and are not passed to the function.
        bold: Positions of rows that are emphasised in the terminal.
    """

    frame: pd.DataFrame
    title: str = ""
    caption: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    formats: Mapping[str, str | Callable[[Any], str]] = field(default_factory=dict)
    bold: frozenset[int] = frozenset()

    @property
    def _names(self) -> list[str]:
        return [str(name) for name in self.frame]

    def heading(self, column: str) -> str:
        """The label of a column with its unit, such as "latency (ms)"."""
        label = self.labels.get(column, column)
        return f"{label} ({self.units[column]})" if self.units.get(column) else label

    def texts(self) -> pd.DataFrame:
        """The formatted cells under their headings, all of them text."""
        columns = {name: [self._cell(name, v) for v in self.frame[name]] for name in self._names}
        texts = pd.DataFrame(columns, dtype=object)
        texts.columns = pd.Index([self.heading(name) for name in self._names], dtype=object)
        return texts

    def to_rich(self) -> RichTable:
        """The table for a terminal; numbers are aligned to the right, long texts are folded."""
        table = _Fitted(
            title=Text(self.title, "bold") if self.title else None,
            caption=Text(self.caption) if self.caption else None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for name, side in zip(self._names, self._sides(), strict=True):
            table.add_column(Text(self.heading(name)), justify=side, overflow="fold")
        for position, row in enumerate(self.texts().itertuples(index=False)):
            table.add_row(*map(Text, row), style="bold" if position in self.bold else None)
        return table

    def to_markdown(self) -> str:
        """A GitHub table with the title above and the caption below; special characters escaped."""
        texts = self.texts().map(escape_markdown).rename(columns=escape_markdown)
        body = texts.to_markdown(index=False, disable_numparse=True, colalign=self._sides())
        title = f"**{escape_markdown(self.title)}**" if self.title else ""
        return "\n\n".join(filter(None, (title, body, escape_markdown(self.caption))))

    def to_latex(self, label: str = "") -> str:
        """A table environment; the preamble needs booktabs."""
        styler = self.texts().style.hide(axis="index").format(escape="latex")
        styler = styler.format_index(escape="latex", axis=1)
        caption = " ".join(part for part in (self.title, self.caption) if part)
        return styler.to_latex(
            hrules=True,
            column_format="".join(side[0] for side in self._sides()),
            caption="".join(LATEX.get(letter, letter) for letter in caption) or None,
            label=f"tab:{label}" if label else None,
        )

    def to_csv(self, path: Path) -> None:
        """Write the raw values; text that a spreadsheet would run as a formula is quoted."""
        with atomic_file(path) as draft:
            spreadsheet(self.frame).to_csv(draft, index=False)

    def _cell(self, column: str, value: Any) -> str:
        if value is None or (isinstance(value, float) and value != value):
            return MISSING
        how = self.formats.get(column)
        if callable(how):
            return how(value)
        return format(value, how) if how else str(value)

    def _sides(self) -> list[Literal["left", "right"]]:
        """The alignment of each column."""
        numeric = pd.api.types.is_numeric_dtype
        return [
            "right" if name in self.formats or numeric(self.frame[name]) else "left"
            for name in self._names
        ]


class _Fitted(RichTable):
    """A table that breaks no word, as far as the terminal's width allows."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = [[str(column.header), *map(str, column.cells)] for column in self.columns]
        for column, width in zip(self.columns, _widths(cells, options.max_width), strict=True):
            column.width = width
        yield from super().__rich_console__(console, options)


def _widths(cells: list[list[str]], width: int) -> list[int]:
    """The widths of columns by their headings and cells."""
    full = [max(map(cell_len, "\n".join(column).splitlines())) for column in cells]
    words = [
        max((cell_len(word) for text in column for word in text.split()), default=1)
        for column in cells
    ]
    room = max(width - 2 * len(cells), len(cells))
    if sum(full) <= room:
        return full
    while sum(words) > room:
        words[words.index(max(words))] -= 1
    while sum(words) < room:  # the column that needs most lines gets more
        lines = [length / size for length, size in zip(full, words, strict=True)]
        words[lines.index(max(lines))] += 1
    return words


def escape_markdown(text: object, longest: int = 10_000) -> str:
    """Text from outside as one line of plain Markdown: no tags, no emphasis, no table cells.

    Texts of more than `longest` letters are cut and end in "…".
    """
    line = " ".join(str(text).split())
    line = line if len(line) <= longest else f"{line[: longest - 1]}…"
    for letter in _MARKDOWN_SPECIAL:
        line = line.replace(letter, f"\\{letter}")
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def fill_markdown(template: Path, **values: Any) -> str:
    """A Markdown page from a Jinja template, in which the filter `plain` escapes a text."""
    import jinja2

    environment = jinja2.Environment(trim_blocks=True)  # noqa: S701  the output is Markdown
    environment.filters["plain"] = escape_markdown
    environment.tests["search"] = lambda text, pattern: re.search(pattern, text)
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def shorten_markdown(text: str, most: int, ending: str) -> str:
    """As many paragraphs and table rows as fit into `most` letters; `ending` if some are left."""
    shortened = ""
    for part in re.split(r"(?=\n\n)|(?<!\n)(?=\n\| )", text.strip()):
        if len(shortened) + len(part) + len(ending) >= most:
            return shortened + ending
        shortened += part
    return shortened
