"""A table of systems: what each reaches on test under each split, beside what its paper prints."""

from collections.abc import Mapping, Sequence

from src.headline import figures, pairs
from src.headline.cells import ResultCell, cells
from src.headline.figures import Bootstrap, head
from src.headline.origin import origin
from src.headline.part import Grid, Lines, Missing, Part
from src.headline.settings import SystemRows, Systems
from src.metrics.formatting import joined
from src.metrics.registry import MELANOMA
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
    found = [cell for cell in cells(store, section.studies, needed) if not cell.arm]
    ordered = sorted(found, key=lambda cell: _place(section, cell))
    shown = [cell for cell in ordered if not cell.problem]
    differences, said = pairs.told(shown, section.differences, section.metrics, how)
    return Part(
        section.title,
        section.about,
        [*([grid(shown, section, how)] if shown else []), *differences],
        notes=[
            *told(shown),
            *_not_beside(section, shown),
            *different_tests(shown),
            *tested(shown),
            *said,
        ],
        missing=_missing(section, found, needed),
        origin=origin(store, shown),
    )


def grid(shown: Sequence[ResultCell], section: Systems, how: Bootstrap) -> Grid:
    """The table of cells that are headline figures."""
    columns = ("system", "split", "weights", *COSTS, *map(head, section.metrics))
    return Grid(columns, [row(cell, section, how) for cell in shown], stacks=(3, len(COSTS)))


def row(cell: ResultCell, section: Systems, how: Bootstrap) -> tuple[Lines, ...]:
    """A cell's line in the table."""
    system = _system(section, cell)
    beside = (
        system is not None
        and cell.split_mode == section.paper_split
        and not _departures(cell, system)
    )
    printed, corrected = (system.printed, system.corrected) if system and beside else ({}, {})
    found = figures.measured(cell.frames, section.metrics, how)
    values = [
        figures.figure(value, printed.get(name), corrected.get(name))
        for name, value in found.items()
    ]
    return (*describing(cell), *costs(cell, printed), *values)


def describing(cell: ResultCell) -> tuple[Lines, ...]:
    """Who a cell is: system, split, weights."""
    return (
        (cell.name, *["other settings"] * bool(cell.changed)),
        (cell.split or "not recorded",),
        (cell.weights or "not recorded",),
    )


def costs(cell: ResultCell, printed: dict[str, float]) -> tuple[Lines, ...]:
    """What a cell costs: `COSTS`."""
    params, flops = "efficiency/params", "efficiency/flops"
    return (
        figures.size(cell.mean(params), printed.get(params)),
        figures.operations(cell.mean(flops), printed.get(flops)),
        figures.times(cell.mean("efficiency/latency_ratio")),
        (str(len(cell.seeds)),),
    )


def different_tests(shown: Sequence[ResultCell]) -> list[str]:
    """Says which rows were not measured on the same test images, if any."""
    sets: dict[frozenset[str], list[str]] = {}
    for cell in shown:
        sets.setdefault(frozenset(cell.frames[0]["image_id"]), []).append(
            f"{cell.name} ({cell.split})"
        )
    if len(sets) < 2:
        return []
    listed = "; ".join(
        f"{len(images):,} images: {joined(list(dict.fromkeys(names)))}"
        for images, names in sets.items()
    )
    return [
        f"{len(sets)} different test sets, whose rows do not compare with each other: {listed}."
    ]


def tested(shown: Sequence[ResultCell]) -> list[str]:
    """How many images each split's test set has, and how many of them are melanomas: precision depends on that."""
    sets: dict[str, str] = {}
    for cell in shown:
        label = cell.frames[0]["label"].astype(str)
        melanomas = int(label.str.lower().isin(MELANOMA).sum())
        sets.setdefault(
            cell.split,
            f"{len(label):,} images, of which {melanomas:,} ({melanomas / len(label):.1%}) melanomas",
        )
    return [f"Tested on ({split or 'split not recorded'}): {text}." for split, text in sets.items()]


def wanted(px: int | None, weights: str | None) -> list[str]:
    """What is asked for, in words."""
    return ([f"{px} px"] if px else []) + (["ImageNet weights"] if weights else [])


def unsuited(found: Sequence[ResultCell], command: str) -> list[Missing]:
    """The cells that are no headline figures, with why."""
    return [
        Missing(f"{cell.name}, {cell.split or 'split not recorded'}", cell.problem, command)
        for cell in found
        if cell.problem
    ]


def not_begun(found: Sequence[ResultCell], studies: Mapping[str, str]) -> list[Missing]:
    """The studies without a run, by the command that records each."""
    begun = {cell.study for cell in found}
    return [
        Missing(study, "no run of it", command)
        for study, command in studies.items()
        if study not in begun
    ]


def told(shown: Sequence[ResultCell]) -> list[str]:
    """What is to be said of each of them."""
    return [f"{cell.name} ({cell.split}): {note}." for cell in shown for note in cell.notes]


def _system(section: Systems, cell: ResultCell) -> SystemRows | None:
    return next((system for system in section.systems if system.preset == cell.preset), None)


def _departures(cell: ResultCell, system: SystemRows) -> list[str]:
    """What makes a cell with a system's preset another system."""
    return [*cell.unmet(system.px, system.weights), *cell.changed]


def _not_beside(section: Systems, shown: Sequence[ResultCell]) -> list[str]:
    """Says where the paper's values are left out though the split is the paper's."""
    found = []
    for cell in shown:
        system = _system(section, cell)
        departures = _departures(cell, system) if system and system.printed else []
        if departures and cell.split_mode == section.paper_split:
            found.append(
                f"{cell.name} ({cell.split}): not the printed system ({', '.join(departures)}); the printed values are "
                "not beside it."
            )
    return found


def _place(section: Systems, cell: ResultCell) -> tuple[int, int]:
    """By the order of the systems, then of the splits, as they stand in the section."""
    presets = [system.preset for system in section.systems]
    return (
        presets.index(cell.preset) if cell.preset in presets else len(presets),
        section.splits.index(cell.split_mode)
        if cell.split_mode in section.splits
        else len(section.splits),
    )


def _missing(section: Systems, found: Sequence[ResultCell], needed: int) -> list[Missing]:
    commands = {system.preset: system.command or section.command for system in section.systems}
    partial = [
        missing
        for cell in found
        for missing in unsuited([cell], _recording(cell, section, commands))
    ]
    absent = [
        Missing(_wanted(system, split), f"0 of {needed} seeds", commands[system.preset])
        for system in section.systems
        for split in section.splits
        if not any(_is(cell, system, split) for cell in found)
    ]
    nothing = [Missing(", ".join(section.studies), "no run of it", section.command)]
    return partial + absent if found or absent else nothing


def _recording(cell: ResultCell, section: Systems, commands: dict[str, str]) -> str:
    """What records a cell's missing seeds: the command of its own study rather than that of its preset."""
    every = [section.command, *commands.values()]
    own = [command for command in every if f"sweeps={cell.study}" in command.split()]
    return own[0] if own else commands.get(cell.preset, section.command)


def _is(cell: ResultCell, system: SystemRows, split: str) -> bool:
    return (
        cell.preset == system.preset and cell.split_mode == split and not _departures(cell, system)
    )


def _wanted(system: SystemRows, split: str) -> str:
    return ", ".join([system.preset.rpartition("/")[2], *wanted(system.px, system.weights), split])
