"""Candidates less references: who is better in quality, and at what share of the parameters and multiply-adds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from src.analysis.paired import Difference
from src.analysis.wording import count, joined, short_bound
from src.errors import UserError
from src.headline import figures, systems
from src.headline.cells import RANDOM, Cell, cells
from src.headline.figures import Bootstrap, head
from src.headline.origin import origin
from src.headline.part import Grid, Lines, Missing, Part
from src.headline.settings import Better, Systems
from src.tracking.store import Store

COSTS = ("efficiency/params", "efficiency/flops")


class Duel(NamedTuple):
    """A candidate beside a reference; `problem` says why they do not compare."""

    candidate: Cell
    name: str
    reference: Cell
    difference: Difference
    problem: str


def part(store: Store, section: Better, needed: int, how: Bootstrap) -> Part:
    """The section.

    Args:
        store: To read from.
        section: What is asked for.
        needed: Seeds that make a headline figure.
        how: Of the intervals.
    """
    found = [cell for cell in cells(store, section.studies, needed) if cell.split_mode == section.split]
    complete = [cell for cell in found if not cell.problem]
    chosen = _chosen(complete, section)
    references, missing = _references(store, section, needed)
    duels = [_duel(cell, name, other, section.metric, how) for cell in chosen for name, other in references]
    missing += [
        Missing(f"{each.candidate.name} less {each.name}", each.problem, section.command)
        for each in duels
        if each.problem
    ]
    if not chosen:
        missing.append(_no_candidate(section, found, complete, needed))
    shown = [*chosen, *(cell for _, cell in references)]
    drawn = [each for each in duels if not each.problem]
    own = Systems("systems", section.title, section.studies, section.command, section.metrics)
    return Part(
        section.title,
        section.about,
        [systems.grid(shown, own, how)] * bool(shown) + [_grid(drawn, section)] * bool(drawn),
        _findings(chosen, drawn, section),
        [*_notes(section, found, complete, chosen), *systems.different_tests(shown)],
        missing,
        origin(store, shown),
    )


def _chosen(complete: Sequence[Cell], section: Better) -> list[Cell]:
    """The best on the validation split of those that keep the limits; test has no say in it."""
    limits = section.parsed_limits()
    kept = [cell for cell in complete if all(limit.holds(cell.mean(limit.metric)) for limit in limits)]
    metric = f"best/val/{section.metric}"
    ranked = [cell for cell in kept if not np.isnan(cell.mean(metric))]
    return sorted(ranked, key=lambda cell: -cell.mean(metric))[: section.at_most]


def _references(store: Store, section: Better, needed: int) -> tuple[list[tuple[str, Cell]], list[Missing]]:
    found, missing = [], []
    for reference in section.references:
        own = [
            cell
            for cell in cells(store, reference.studies, needed)
            if cell.preset == reference.preset and cell.split_mode == section.split
        ]
        found += [(reference.name, cell) for cell in own if not cell.problem]
        missing += systems.unsuited(own, reference.command)
        if not own:
            missing.append(Missing(f"{reference.name}, {section.split}", f"0 of {needed} seeds", reference.command))
    return found, missing


def _duel(candidate: Cell, name: str, reference: Cell, metric: str, how: Bootstrap) -> Duel:
    try:
        found = figures.difference(candidate.frames, reference.frames, metric, how, (candidate.name, name))
    except UserError as error:
        return Duel(candidate, name, reference, Difference(*[np.nan] * 4), f"they do not compare: {error}")
    return Duel(candidate, name, reference, found, "")


def _grid(duels: Sequence[Duel], section: Better) -> Grid:
    columns = ("candidate", "less", f"{head(section.metric)}: difference", "it is", "parameters", "FLOPs", "seeds")
    return Grid(columns, [_row(duel) for duel in duels], stacks=(2,))


def _row(duel: Duel) -> tuple[Lines, ...]:
    shares = [figures.times(_share(duel, cost)) for cost in COSTS]
    return (
        (duel.candidate.name,),
        (f"{duel.name}: {duel.reference.name}", f"weights: {duel.reference.weights}"),
        figures.change(duel.difference),
        (figures.verdict(duel.difference),),
        *((f"x {share[0]}",) for share in shares),
        (f"{len(duel.candidate.seeds)} and {len(duel.reference.seeds)}",),
    )


def _share(duel: Duel, cost: str) -> float:
    other = duel.reference.mean(cost)
    return duel.candidate.mean(cost) / other if other > 0 else float("nan")


def _findings(chosen: Sequence[Cell], duels: Sequence[Duel], section: Better) -> list[str]:
    """The verdict on each candidate that was set beside every reference."""
    found = []
    for candidate in chosen:
        own = [duel for duel in duels if duel.candidate is candidate]
        if {duel.name for duel in own} >= {reference.name for reference in section.references}:
            found.append(_finding(candidate, own, section))
    return found


def _finding(candidate: Cell, duels: Sequence[Duel], section: Better) -> str:
    verdicts = [figures.verdict(duel.difference) for duel in duels]
    gaps = [f"{_against(duel)} ({' '.join(figures.change(duel.difference))})" for duel in duels]
    limits = joined([short_bound(limit) for limit in section.parsed_limits()])
    first = f"{candidate.name} {'beats' if set(verdicts) == {'better'} else 'does not beat'} all of them"
    return f"{first} in {head(section.metric)}" + (f", within {limits}" if limits else "") + f": {joined(gaps)}."


def _against(duel: Duel) -> str:
    said = figures.verdict(duel.difference)
    began = f", weights {duel.reference.weights}" if RANDOM in duel.reference.weights else ""
    return f"{said} {'than' if said in ('better', 'worse') else 'beside'} {duel.name}{began}"


def _notes(section: Better, found: Sequence[Cell], complete: Sequence[Cell], chosen: Sequence[Cell]) -> list[str]:
    searched = len(found) - len(complete)
    notes = []
    if searched:
        notes.append(f"{count(searched, 'configuration')} more of the search have too few seeds or no test figures.")
    if len(complete) > len(chosen):
        limits = joined([short_bound(limit) for limit in section.parsed_limits()])
        keeping = f"of those that keep {limits}, " if limits else ""
        of_all = f"Of {count(len(complete), 'configuration')} with enough seeds"
        notes.append(f"{of_all}, {keeping}the best on the validation split are shown.")
    return notes


def _no_candidate(section: Better, found: Sequence[Cell], complete: Sequence[Cell], needed: int) -> Missing:
    if complete:
        why = f"none of {count(len(complete), 'configuration')} with enough seeds keeps the limits"
    elif found:
        why = f"none of {count(len(found), 'configuration')} has {needed} seeds and test figures"
    else:
        why = "no run of it"
    return Missing(f"a candidate of {', '.join(section.studies)}", why, section.command)
