"""What trainings gain from other photographs of the tested lesions: arm "in" less arm "out", image by image.

Two separate splits, one by image and one by lesion, have other test images and other training
images; the difference of their scores holds all that as well and says nothing of leakage. Here both
arms predict the same test images and had equally many training images of each class (see
`src.data.splits`), so that the differences are paired by image.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd

from src.core.errors import UserError
from src.headline import figures, systems
from src.headline.cells import ARM, ResultCell, cells
from src.headline.figures import Bootstrap, ResultEstimate, head
from src.headline.origin import origin
from src.headline.pairs import multiplicity
from src.headline.part import Grid, Lines, Missing, Part
from src.headline.settings import Leakage
from src.metrics.paired import PairedDifference
from src.tracking.store import Store

SIBLING = "has_sibling"  # the column that src.data.splits has recorded
SUBSETS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "all test images": lambda frame: pd.Series(True, index=frame.index),
    "those with siblings": lambda frame: frame[SIBLING],
    "those without": lambda frame: ~frame[SIBLING],
}
_TRAINED = "data/images/train"


class LeakageArms(NamedTuple):
    """The two trainings of one configuration."""

    out: ResultCell
    into: ResultCell


class LeakageComparison(NamedTuple):
    """Both arms in one metric on some of the test images, and in minus out; so many images and lesions."""

    subset: str
    metric: str
    images: int
    lesions: int
    out: ResultEstimate
    into: ResultEstimate
    difference: PairedDifference


def part(store: Store, section: Leakage, needed: int, how: Bootstrap) -> Part:
    """The section.

    Args:
        store: To read from.
        section: What is asked for.
        needed: Seeds that make a headline figure.
        how: Of the intervals.
    """
    found = [cell for cell in cells(store, list(section.studies), needed) if cell.arm]
    pairs, missing = _pairs(found, section, needed)
    grids, findings, used = [], [], []
    for pair in pairs:
        try:
            _check(pair)
            rows = compare(pair, section.metrics, how)
        except UserError as error:
            missing.append(
                Missing(_configuration(pair.out), str(error), section.studies[pair.out.study])
            )
            continue
        grids.append(_grid(pair, rows))
        findings.append(_finding(pair, rows))
        used += list(pair)
    notes = [
        f"{_configuration(pair.out)}: {systems.describing(pair.out)[2][0]} weights."
        for pair in pairs
    ]
    notes += systems.told(used)
    if grids:
        notes.append(
            "Siblings of a test image are the other photographs of its lesion, on which arm in trained. Images without "
            "are the control: neither training knew their lesions."
        )
        notes.append(multiplicity(sum(len(grid.rows) for grid in grids)))
    return Part(section.title, section.about, grids, findings, notes, missing, origin(store, used))


def compare(pair: LeakageArms, metrics: Sequence[str], how: Bootstrap) -> list[LeakageComparison]:
    """Both arms and their difference, by subset of the test images and metric.

    Args:
        pair: The arms.
        metrics: Names, see `src.headline.figures.recorded`.
        how: Of the intervals.

    Raises:
        UserError: The arms did not predict the same images.
    """
    found = []
    for name, chosen in SUBSETS.items():
        out, into = ([frame[chosen(frame)] for frame in cell.frames] for cell in pair)
        if out[0].empty:
            continue
        images, lesions = len(out[0]), out[0]["group"].nunique()
        own, other = (figures.measured(frames, metrics, how) for frames in (out, into))
        for metric in metrics:
            difference = figures.difference(into, out, metric, how, ("arm in", "arm out"))
            found.append(
                LeakageComparison(
                    name, metric, images, lesions, own[metric], other[metric], difference
                )
            )
    return found


def _check(pair: LeakageArms) -> None:
    """Refuse arms that differ in more than the siblings.

    Raises:
        UserError: The message says in what.
    """
    if any(SIBLING not in frame for cell in pair for frame in cell.frames):
        raise UserError(f"the predictions have no column {SIBLING}: train both arms again")
    trained = [cell.mean(_TRAINED) for cell in pair]
    if trained[0] != trained[1]:
        raise UserError(
            f"the arms were trained on {trained[0]:.0f} and {trained[1]:.0f} images: they do not compare"
        )


def _pairs(
    found: Sequence[ResultCell], section: Leakage, needed: int
) -> tuple[list[LeakageArms], list[Missing]]:
    missing = [
        each for cell in found for each in systems.unsuited([cell], section.studies[cell.study])
    ]
    configurations: dict[tuple[str, ...], dict[str, ResultCell]] = {}
    for cell in found:
        shared = [f"{key}={value}" for key, value in cell.settings.items() if key != ARM]
        configurations.setdefault((cell.study, cell.preset, *shared), {})[cell.arm] = cell
    pairs = []
    for arms in configurations.values():
        first = next(iter(arms.values()))
        missing += [
            Missing(
                f"{_configuration(first)}, arm {arm}",
                f"0 of {needed} seeds",
                section.studies[first.study],
            )
            for arm in ("out", "in")
            if arm not in arms
        ]
        if len(arms) == 2 and not any(cell.problem for cell in arms.values()):
            pairs.append(LeakageArms(arms["out"], arms["in"]))
    return pairs, [*missing, *systems.not_begun(found, section.studies)]


def _configuration(cell: ResultCell) -> str:
    """What both arms share."""
    return ", ".join(piece for piece in cell.name.split(", ") if not piece.startswith("siblings="))


def _grid(pair: LeakageArms, rows: Sequence[LeakageComparison]) -> Grid:
    columns = (
        _configuration(pair.out),
        "images (lesions)",
        "seeds",
        "metric",
        "out",
        "in",
        "in - out",
        "in is",
    )
    return Grid(columns, [_row(pair, each) for each in rows])


def _row(pair: LeakageArms, found: LeakageComparison) -> tuple[Lines, ...]:
    return (
        (found.subset,),
        (f"{found.images:,} ({found.lesions:,})",),
        (f"{len(pair.out.seeds)} and {len(pair.into.seeds)}",),
        (head(found.metric),),
        figures.figure(found.out),
        figures.figure(found.into),
        figures.change(found.difference),
        (figures.verdict(found.difference),),
    )


def _finding(pair: LeakageArms, rows: Sequence[LeakageComparison]) -> str:
    """The first metric, in words."""
    own = [row for row in rows if row.metric == rows[0].metric]
    told = [
        f"on {row.subset} ({row.images:,}) {' '.join(figures.change(row.difference))}, {_said(row.difference)}"
        for row in own
    ]
    metric = head(rows[0].metric)
    return (
        f"{_configuration(pair.out)}: what siblings in training add to {metric}: {'; '.join(told)}."
    )


def _said(found: PairedDifference) -> str:
    said = figures.verdict(found)
    return {"better": "a gain", "worse": "a loss"}.get(said, said)
