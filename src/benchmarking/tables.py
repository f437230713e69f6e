"""A benchmark for the terminal: a table of 100 columns, and what to know about it."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from src.benchmarking.record import Result, Row

COLUMNS = ("p50 ms", "p90 ms", "p99 ms", "ratio", "JPEG ms", "cold s", "peak MB", "MB")


def table(result: Result) -> Table:
    """A row a model in a runtime; of one that was not measured, the notes say why."""
    title = f"{result.device.cpu}, {_count(result.threads, 'thread')}, batch {result.batch}"
    found = Table(
        title=Text(title + (f", EMULATION: {result.device.emulation}" if result.device.emulation else "")),
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    found.add_column("model", overflow="fold", min_width=15)
    found.add_column("runtime", no_wrap=True)
    for name in COLUMNS:
        found.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        found.add_row(Text(row.label), row.runtime, *map(Text, _cells(row)))
    return found


def lines(result: Result) -> list[str]:
    """What the table cannot say, a line each."""
    measured = [row for row in result.rows if not row.reason]
    found = [f"{row.label} in {row.runtime}: not measured: {row.reason}" for row in result.rows if row.reason]
    if measured:
        fewest = min(int(row.figures["queries"]) for row in measured)
        shortest = min(row.figures["seconds"] for row in measured)
        found.append(f"at least {fewest:,} calls and {shortest:.1f} s of each model, in turns with all the others")
        told = f"p50 over that of {result.reference}, with its interval: 2 is twice as slow"
        found.append(f"ratio: {told if result.reference else 'absent, its reference was not measured'}")
    found += sorted({f"energy: absent, {row.energy_absent}" for row in measured if row.energy_absent})
    return found + result.notes


def _cells(row: Row) -> Sequence[str]:
    if row.reason:
        return ["-"] * len(COLUMNS)
    figures = row.figures
    latency = [_shown(figures.get(f"p{each}_ms")) for each in (50, 90, 99)]
    ratio = f"{figures['ratio']:.3g}" if "ratio" in figures else ""
    if "ratio_low" in figures and figures["ratio_low"] != figures["ratio_high"]:  # of the reference itself they are 1
        ratio += f" [{figures['ratio_low']:.3g}, {figures['ratio_high']:.3g}]"
    rest = [_shown(figures.get(name)) for name in ("jpeg_p50_ms", "cold_start_s")]
    return [*latency, ratio, *rest, _shown(figures.get("peak_memory_mb"), 0), _shown(figures.get("size_mb"), 1)]


def _shown(value: float | None, decimals: int = 2) -> str:
    return "" if value is None else f"{value:,.{decimals}f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"
