"""A table of systems: what each reaches on test under each split, beside what its paper prints."""

from collections.abc import Sequence

from src.analysis.wording import joined
from src.headline import figures
from src.headline.cells import IMAGE_SIZE, Cell, cells
from src.headline.figures import Bootstrap, head
from src.headline.origin import origin
from src.headline.part import Grid, Lines, Missing, Part
from src.headline.settings import System, Systems
from src.tracking.store import Store

COSTS = ("parameters", "FLOPs", "x latency", "seeds")


def part(store: Store, section: Systems, needed: int, how: Bootstrap) -> Part:
    """The section.

    Args:
        store: To read from.
        section: What is asked for.
        needed: Seeds that make a headline figure.
        how: Of the intervals.
    """
    found = cells(store, section.studies, needed)
    ordered = sorted(found, key=lambda cell: _place(section, cell))
    shown = [cell for cell in ordered if not cell.problem]
    return Part(
        section.title,
        section.about,
        [grid(shown, section, how)] if shown else [],
        notes=[*_told(shown), *different_tests(shown)],
        missing=_missing(section, found, needed),
        origin=origin(store, shown),
    )


def grid(shown: Sequence[Cell], section: Systems, how: Bootstrap) -> Grid:
    """The table of cells that are headline figures."""
    columns = ("system", "split", "weights", *COSTS, *map(head, section.metrics))
    return Grid(columns, [row(cell, section, how) for cell in shown], stacks=(3, len(COSTS)))


def row(cell: Cell, section: Systems, how: Bootstrap) -> tuple[Lines, ...]:
    """A cell's line in the table."""
    printed = next((system.printed for system in section.systems if system.preset == cell.preset), {})
    beside = cell.split_mode == section.paper_split
    found = figures.measured(cell.frames, section.metrics, how)
    values = [figures.figure(value, printed.get(metric) if beside else None) for metric, value in found.items()]
    return (*describing(cell), *costs(cell, printed if beside else {}), *values)


def describing(cell: Cell) -> tuple[Lines, ...]:
    """Who a cell is: system, split, weights."""
    return (cell.name,), (cell.split or "not recorded",), (cell.weights or "not recorded",)


def costs(cell: Cell, printed: dict[str, float]) -> tuple[Lines, ...]:
    """What a cell costs: `COSTS`."""
    params, flops = "efficiency/params", "efficiency/flops"
    return (
        figures.size(cell.mean(params), printed.get(params)),
        figures.operations(cell.mean(flops), printed.get(flops)),
        figures.times(cell.mean("efficiency/latency_ratio")),
        (str(len(cell.seeds)),),
    )


def different_tests(shown: Sequence[Cell]) -> list[str]:
    """Says which rows were not measured on the same test images, if any."""
    sets: dict[frozenset[str], list[str]] = {}
    for cell in shown:
        sets.setdefault(frozenset(cell.frames[0]["image_id"]), []).append(f"{cell.name} ({cell.split})")
    if len(sets) < 2:
        return []
    listed = "; ".join(
        f"{len(images):,} images: {joined(list(dict.fromkeys(names)))}" for images, names in sets.items()
    )
    return [f"{len(sets)} different test sets, whose rows do not compare with each other: {listed}."]


def unsuited(found: Sequence[Cell], command: str) -> list[Missing]:
    """The cells that are no headline figures, with why."""
    return [
        Missing(f"{cell.name}, {cell.split or 'split not recorded'}", cell.problem, command)
        for cell in found
        if cell.problem
    ]


def _told(shown: Sequence[Cell]) -> list[str]:
    return [f"{cell.name} ({cell.split}): {note}." for cell in shown for note in cell.notes]


def _place(section: Systems, cell: Cell) -> tuple[int, int]:
    """By the order of the systems, then of the splits, as they stand in the section."""
    presets = [system.preset for system in section.systems]
    return (
        presets.index(cell.preset) if cell.preset in presets else len(presets),
        section.splits.index(cell.split_mode) if cell.split_mode in section.splits else len(section.splits),
    )


def _missing(section: Systems, found: Sequence[Cell], needed: int) -> list[Missing]:
    commands = {system.preset: system.command or section.command for system in section.systems}
    partial = [missing for cell in found for missing in unsuited([cell], commands.get(cell.preset, section.command))]
    absent = [
        Missing(_wanted(system, split), f"0 of {needed} seeds", commands[system.preset])
        for system in section.systems
        for split in section.splits
        if not any(_is(cell, system, split) for cell in found)
    ]
    nothing = [Missing(", ".join(section.studies), "no run of it", section.command)]
    return partial + absent if found or absent else nothing


def _is(cell: Cell, system: System, split: str) -> bool:
    own = cell.preset == system.preset and cell.split_mode == split
    return own and (system.px is None or cell.settings.get(IMAGE_SIZE) == str(system.px))


def _wanted(system: System, split: str) -> str:
    size = f", {system.px} px" if system.px else ""
    return f"{system.preset.rpartition('/')[2]}{size}, {split}"
