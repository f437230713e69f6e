"""Systems less each other, pair by pair: the same test images, one interval of the difference."""

from collections.abc import Sequence
from typing import NamedTuple

from src.core.errors import UserError
from src.headline import figures
from src.headline.cells import ResultCell
from src.headline.figures import Bootstrap, head
from src.headline.part import Grid, Lines
from src.headline.settings import Against
from src.metrics.formatting import count


class Two(NamedTuple):
    """Cells of one split of which the one is held against the other."""

    one: ResultCell
    other: ResultCell


def told(
    shown: Sequence[ResultCell], wanted: Sequence[Against], metrics: Sequence[str], how: Bootstrap
) -> tuple[list[Grid], list[str]]:
    """The table of the differences that are asked for, and what a reader must know of it.

    Args:
        shown: Headline figures.
        wanted: Which of them are held against which.
        metrics: In which, as `figures.measured` takes them; in all of them more is better.
        how: Of the intervals.

    Returns:
        The table, or none where no two of the cells are asked for; notes, also on those that do not
        compare.
    """
    rows, notes = [], []
    for two in _found(shown, wanted):
        try:
            rows.append(_row(two, metrics, how))
        except UserError as error:
            notes.append(
                f"{two.one.name} less {two.other.name} ({two.one.split}): they do not compare: {error}."
            )
    if not rows:
        return [], notes
    columns = (
        "system",
        "less",
        "split",
        *(f"{head(metric)}: difference" for metric in metrics),
        "seeds",
    )
    return [Grid(columns, rows, stacks=(3,))], [*notes, multiplicity(len(rows) * len(metrics))]


def multiplicity(comparisons: int) -> str:
    """Says that many intervals are wrong more often than one."""
    made = f"{count(comparisons, 'comparison')} {'was' if comparisons == 1 else 'were'} made"
    return f"{made} and no interval is corrected for that: the more there are, the sooner one leaves out zero by chance."


def _found(shown: Sequence[ResultCell], wanted: Sequence[Against]) -> list[Two]:
    return [
        Two(one, other)
        for against in wanted
        for one in shown
        for other in shown
        if (one.preset, other.preset) == (against.system, against.less) and one.split == other.split
    ]


def _row(two: Two, metrics: Sequence[str], how: Bootstrap) -> tuple[Lines, ...]:
    return (
        (two.one.name, weights(two.one)),
        (two.other.name, weights(two.other)),
        (two.one.split or "not recorded",),
        *(_difference(two, metric, how) for metric in metrics),
        (f"{len(two.one.seeds)} and {len(two.other.seeds)}",),
    )


def _difference(two: Two, metric: str, how: Bootstrap) -> Lines:
    found = figures.difference(
        two.one.frames, two.other.frames, metric, how, (two.one.name, two.other.name)
    )
    return (*figures.change(found), figures.verdict(found))


def weights(cell: ResultCell) -> str:
    """What a cell's weights were at first."""
    return f"weights: {cell.weights or 'not recorded'}"
