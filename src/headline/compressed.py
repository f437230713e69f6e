"""What compression costs in quality and saves in size and time: compressed nets beside those they were made from.

Each compressed net is compared with the very net that it was made from, seed by seed, on the same
test images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from src.core.errors import UserError
from src.headline import figures, systems
from src.headline.cells import SPLIT, ResultCell, cells, texts
from src.headline.figures import Bootstrap, head
from src.headline.origin import origin
from src.headline.pairs import multiplicity
from src.headline.part import Grid, Lines, Missing, Part
from src.headline.settings import Compressed
from src.metrics.formatting import joined
from src.metrics.paired import PairedDifference
from src.tracking import read
from src.tracking import read as history
from src.tracking.store import Store

POINT = 0.01
KEPT, UNSETTLED, LOST = (
    "a loss of more than a point is outside the interval",
    "not settled",
    "more than a point lost",
)
SIZE = "efficiency/size_mb"
COSTS = {SIZE: "size (MB)", "efficiency/flops": "FLOPs", "efficiency/latency_ratio": "x latency"}


class Pair(NamedTuple):
    """A compressed cell, the runs that it was made from in the same order, and what those predicted."""

    cell: ResultCell
    origins: pd.DataFrame
    frames: list[pd.DataFrame]

    @property
    def name(self) -> str:
        """Of the net that was compressed; of one that was a compressed one itself with how."""
        named = [texts(self.origins, f"tags.{tag}").iloc[0] for tag in ("preset", "model")]
        return f"{named[0] or named[1]}{f' after {self.before}' if self.before else ''}"

    @property
    def before(self) -> str:
        """The compression that the origin had been through; empty if none."""
        return str(texts(self.origins, "tags.compression").iloc[0])

    @property
    def source(self) -> tuple[str, ...]:
        """What tells the net that was compressed from others of its name: seeds of one trial have it in common."""
        tags = ("tags.study", "tags.trial", "parent_id", "metrics.efficiency/params")
        return (self.name, *(" ".join(sorted(set(texts(self.origins, tag)))) for tag in tags))

    def share(self, metric: str) -> float:
        """Of a cost, as a part of the origin's."""
        before = float(self.origins.get(f"metrics.{metric}", pd.Series(dtype=float)).mean())
        return self.cell.mean(metric) / before if before > 0 else float("nan")


def part(store: Store, section: Compressed, needed: int, how: Bootstrap) -> Part:
    """The section.

    Args:
        store: To read from.
        section: What is asked for.
        needed: Seeds that make a headline figure.
        how: Of the intervals.
    """
    found = cells(store, list(section.studies), needed)
    missing = [
        each for cell in found for each in systems.unsuited([cell], section.studies[cell.study])
    ]
    pairs = []
    for cell in found:
        if cell.problem:
            continue
        try:
            pairs.append(_pair(store, cell))
        except UserError as error:
            missing.append(
                Missing(
                    cell.name,
                    f"cannot be held against its origin: {error}",
                    section.studies[cell.study],
                )
            )
    missing += systems.not_begun(found, section.studies)
    grids, findings = [], []
    for source in dict.fromkeys(pair.source for pair in pairs):
        own = sorted(
            (pair for pair in pairs if pair.source == source), key=lambda pair: -pair.share(SIZE)
        )
        name = _told_apart(own[0], pairs)
        lost = [{metric: _less(pair, metric, how) for metric in section.metrics} for pair in own]
        grids.append(Grid(*_rows(name, own, lost, section, how), stacks=(2, len(COSTS) + 1)))
        findings += _findings(name, own, lost, section)
    intervals = len(pairs) * len(section.metrics)
    return Part(
        section.title,
        section.about,
        grids,
        findings,
        [
            *systems.told([pair.cell for pair in pairs]),
            *[multiplicity(intervals)] * (intervals > 1),
        ],
        missing,
        origin(store, [pair.cell for pair in pairs]),
    )


def _pair(store: Store, cell: ResultCell) -> Pair:
    """The cell with its origins.

    Raises:
        UserError: They are not recorded, were not tested, or on other images.
    """
    ids = list(texts(cell.runs, "tags.origin"))
    if not all(ids):
        raise UserError("it was not made from a recorded run")
    origins = pd.concat(
        [read.runs(store, f"attributes.run_id = '{each}'") for each in ids], ignore_index=True
    )
    if len(origins) < len(ids):
        raise UserError("its origin is not in the store")
    return Pair(cell, origins, [history.predictions(store, each, SPLIT) for each in ids])


def _told_apart(pair: Pair, pairs: Sequence[Pair]) -> str:
    """The compressed net's name, with a run of it where others are called so, too."""
    alone = len({other.source for other in pairs if other.name == pair.name}) == 1
    return pair.name if alone else f"{pair.name} ({pair.origins['run_id'].iloc[0][:8]})"


def _less(pair: Pair, metric: str, how: Bootstrap) -> PairedDifference:
    return figures.difference(
        pair.cell.frames, pair.frames, metric, how, (pair.cell.name, pair.name), made_from=True
    )


def _rows(
    name: str,
    pairs: Sequence[Pair],
    lost: Sequence[dict[str, PairedDifference]],
    section: Compressed,
    how: Bootstrap,
) -> tuple[tuple[str, ...], list[tuple[Lines, ...]]]:
    """Columns and rows: first the origin, then what was made of it, the largest first."""
    columns = (
        name,
        "precision",
        *COSTS.values(),
        "seeds",
        *(f"{head(each)}" for each in section.metrics),
    )
    first = pairs[0]
    own = figures.measured(first.frames, section.metrics, how)
    values = {metric: float(first.origins[f"metrics.{metric}"].mean()) for metric in COSTS}
    rows: list[tuple[Lines, ...]] = [
        (
            (f"as left by {first.before}" if first.before else "as trained",),
            ("float32",),
            *((_cost(metric, value),) for metric, value in values.items()),
            (str(len(first.origins)),),
            *(figures.figure(own[metric]) for metric in section.metrics),
        )
    ]
    for pair, differences in zip(pairs, lost, strict=True):
        precision = joined(sorted(set(texts(pair.cell.runs, "tags.precision")))) or "-"
        costs = [
            (_cost(metric, pair.cell.mean(metric)), f"x {figures.times(pair.share(metric))[0]}")
            for metric in COSTS
        ]
        changes = [figures.change(differences[metric]) for metric in section.metrics]
        rows.append(
            ((pair.cell.name,), (precision,), *costs, (str(len(pair.cell.seeds)),), *changes)
        )
    return columns, rows


def _cost(metric: str, value: float) -> str:
    if metric == "efficiency/flops":
        return figures.operations(value)[0]
    return f"{value:.3f}" if metric.endswith("size_mb") else figures.times(value)[0]


def _findings(
    name: str,
    pairs: Sequence[Pair],
    lost: Sequence[dict[str, PairedDifference]],
    section: Compressed,
) -> list[str]:
    """For the first metric: whose interval leaves out a loss of more than a point, or of less, or neither."""
    said: dict[str, list[str]] = {KEPT: [], UNSETTLED: [], LOST: []}
    for pair, differences in zip(pairs, lost, strict=True):
        found = differences[section.metrics[0]]
        if found.low >= -POINT:
            key = KEPT
        elif found.high < -POINT:
            key = LOST
        else:
            key = UNSETTLED
        said[key].append(f"{pair.cell.name} ({' '.join(figures.change(found))})")
    metric = head(section.metrics[0])
    told = [f"{name}, {metric}, {key}: {joined(names)}." for key, names in said.items() if names]
    return [*told, *_how_far(name, pairs, [each[section.metrics[0]] for each in lost], metric)]


def _how_far(
    name: str, pairs: Sequence[Pair], lost: Sequence[PairedDifference], metric: str
) -> list[str]:
    """The smallest, by each cost that is counted, of those that lose a point or less on average."""
    kept = [
        (pair, found) for pair, found in zip(pairs, lost, strict=True) if found.difference >= -POINT
    ]
    parts = []
    for cost in (SIZE, "efficiency/flops"):
        pair, found = min(kept, key=lambda each: each[0].share(cost), default=(None, None))
        if pair is not None and found is not None and pair.share(cost) < 1:
            change = " ".join(figures.change(found))
            parts.append(
                f"{COSTS[cost]} x {figures.times(pair.share(cost))[0]} ({pair.cell.name}: {change})"
            )
    if not parts:
        return []
    begun = f"{name}: the smallest that lose a point of {metric} or less on average"
    return [f"{begun}, picked by these test figures and so rather lucky: {joined(parts)}."]
