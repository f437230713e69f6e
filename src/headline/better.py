"""Candidates less references: who is better in quality, and at what share of the parameters and multiply-adds."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from src.core.errors import UserError
from src.headline import figures, pairs, systems
from src.headline.cells import ResultCell, cells
from src.headline.figures import Bootstrap, head
from src.headline.origin import origin
from src.headline.part import Grid, Lines, Missing, Part
from src.headline.settings import Better, Reference, Systems
from src.metrics.formatting import count, joined, short_bound
from src.metrics.paired import PairedDifference
from src.tracking.store import Store

COSTS = ("efficiency/params", "efficiency/flops")


class Baseline(NamedTuple):
    """Runs of a reference; `unlike` says in what they are only a stand-in for it."""

    reference: Reference
    cell: ResultCell
    unlike: list[str]

    @property
    def name(self) -> str:
        """As what it is: "ResNet50 from random weights, 64 px"."""
        began = " from" if self.unlike and self.unlike[0].endswith("weights") else ","
        return (
            f"{self.reference.name}{began} {', '.join(self.unlike)}"
            if self.unlike
            else self.reference.name
        )


class Comparison(NamedTuple):
    """A candidate beside a rival, by metric; `problem` says why they do not compare."""

    candidate: ResultCell
    rival: Baseline
    differences: Mapping[str, PairedDifference]
    problem: str


def part(store: Store, section: Better, needed: int, how: Bootstrap) -> Part:
    """The section.

    Args:
        store: To read from.
        section: What is asked for.
        needed: Seeds that make a headline figure.
        how: Of the intervals.
    """
    studies = dict.fromkeys(
        [*section.studies, *(name for each in section.references for name in each.studies)]
    )
    read = {name: _eligible(store, name, section, needed) for name in studies}
    presets = {reference.preset for reference in section.references}
    found = [cell for name in section.studies for cell in read[name] if cell.preset not in presets]
    complete = [cell for cell in found if not cell.problem]
    chosen = _chosen(complete, section)
    rivals, missing = _rivals(read, section, needed)
    duels = [_duel(cell, rival, section, how) for cell in chosen for rival in rivals]
    among = _among(chosen, section, how)
    missing += [
        Missing(
            f"{each.candidate.name} less {each.rival.name}",
            each.problem,
            section.studies[each.candidate.study],
        )
        for each in (*duels, *among)
        if each.problem
    ]
    for cell in found:
        if cell.study not in section.search:
            missing += systems.unsuited([cell], section.studies[cell.study])
    missing += systems.not_begun(
        [cell for name in section.studies for cell in read[name]], section.studies
    )
    if complete and not chosen:
        missing.append(_no_candidate(section, complete))
    rows = {id(cell): cell for cell in (*chosen, *(rival.cell for rival in rivals))}  # each once
    shown = list(rows.values())
    drawn = [each for each in duels if not each.problem]
    table = drawn + [each for each in among if not each.problem]
    own = Systems("systems", section.title, list(section.studies), "", section.metrics)
    return Part(
        section.title,
        section.about,
        [systems.grid(shown, own, how)] * bool(shown) + [_grid(table, section)] * bool(table),
        _findings(chosen, drawn, section),
        [
            *_notes(section, found, complete, chosen),
            *[pairs.multiplicity(len(table) * len(section.metrics))] * bool(table),
            *systems.told(shown),
            *systems.tested(shown),
            *systems.different_tests(shown),
        ],
        missing,
        origin(store, shown),
    )


def _eligible(store: Store, study: str, section: Better, needed: int) -> list[ResultCell]:
    return [
        cell
        for cell in cells(store, [study], needed)
        if cell.split_mode == section.split and not cell.arm
    ]


def _chosen(complete: Sequence[ResultCell], section: Better) -> list[ResultCell]:
    """The best on the validation split of those that keep the limits; test has no say in it."""
    limits = section.parsed_limits()
    kept = [
        cell for cell in complete if all(limit.holds(cell.mean(limit.metric)) for limit in limits)
    ]
    metric = f"best/val/{section.metric}"
    ranked = [cell for cell in kept if not np.isnan(cell.mean(metric))]
    return sorted(ranked, key=lambda cell: -cell.mean(metric))[: section.at_most]


def _rivals(
    read: Mapping[str, Sequence[ResultCell]], section: Better, needed: int
) -> tuple[list[Baseline], list[Missing]]:
    """Of each reference its runs or, where there are none, what stands in for it; and what is missing."""
    found, missing = [], []
    for reference in section.references:
        own = [
            Baseline(
                reference, cell, cell.unmet(reference.px, reference.weights) or list(cell.changed)
            )
            for study in dict.fromkeys(reference.studies)
            for cell in read[study]
            if cell.preset == reference.preset
        ]
        meant = [rival for rival in own if not rival.unlike]
        ready = [rival for rival in own if not rival.cell.problem]
        found += [rival for rival in ready if not rival.unlike] or ready
        missing += systems.unsuited([rival.cell for rival in meant], reference.command)
        if not meant:
            missing.append(
                Missing(
                    f"{_in_full(reference)}, {section.split}",
                    f"0 of {needed} seeds",
                    reference.command,
                )
            )
    return found, missing


def _in_full(reference: Reference) -> str:
    return ", ".join([reference.name, *systems.wanted(reference.px, reference.weights)])


def _duel(candidate: ResultCell, rival: Baseline, section: Better, how: Bootstrap) -> Comparison:
    names = (candidate.name, rival.name)
    try:
        found = {
            metric: figures.difference(candidate.frames, rival.cell.frames, metric, how, names)
            for metric in section.metrics
        }
    except UserError as error:
        return Comparison(candidate, rival, {}, f"they do not compare: {error}")
    return Comparison(candidate, rival, found, "")


def _among(chosen: Sequence[ResultCell], section: Better, how: Bootstrap) -> list[Comparison]:
    """The other candidates beside the one that the validation split puts first."""
    if not chosen:
        return []
    first = chosen[0]
    reference = Reference(
        "the best on the validation split",
        [first.study],
        first.preset,
        section.studies[first.study],
    )
    return [_duel(cell, Baseline(reference, first, []), section, how) for cell in chosen[1:]]


def _grid(duels: Sequence[Comparison], section: Better) -> Grid:
    differences = [f"{head(metric)}: difference" for metric in section.metrics]
    columns = ("candidate", "less", *differences, "parameters", "FLOPs", "seeds")
    return Grid(columns, [_row(duel) for duel in duels], stacks=(2,))


def _row(duel: Comparison) -> tuple[Lines, ...]:
    shares = [figures.times(_share(duel, cost)) for cost in COSTS]
    return (
        (duel.candidate.name,),
        (f"{duel.rival.name}: {duel.rival.cell.name}", pairs.weights(duel.rival.cell)),
        *((*figures.change(found), figures.verdict(found)) for found in duel.differences.values()),
        *((f"x {share[0]}",) for share in shares),
        (f"{len(duel.candidate.seeds)} and {len(duel.rival.cell.seeds)}",),
    )


def _share(duel: Comparison, cost: str) -> float:
    other = duel.rival.cell.mean(cost)
    return duel.candidate.mean(cost) / other if other > 0 else float("nan")


def _findings(
    chosen: Sequence[ResultCell], duels: Sequence[Comparison], section: Better
) -> list[str]:
    """The verdict on each candidate that was set beside every reference, or beside what stands in for it."""
    found = []
    judging = [duel for duel in duels if not duel.rival.reference.control]
    wanted = {reference.name for reference in section.references if not reference.control}
    for candidate in chosen:
        own = [duel for duel in judging if duel.candidate is candidate]
        if {duel.rival.reference.name for duel in own} >= wanted:
            found.append(_finding(candidate, own, section))
    if found:
        rivals = {duel.rival.name: duel.rival for duel in judging if duel.rival.unlike}
        found += [_stand_in(rival) for rival in rivals.values()]
    return found


def _finding(candidate: ResultCell, duels: Sequence[Comparison], section: Better) -> str:
    first = section.metric
    beaten = all(figures.verdict(duel.differences[first]) == "better" for duel in duels)
    gaps = [
        f"{_against(duel, first)} ({' '.join(figures.change(duel.differences[first]))})"
        for duel in duels
    ]
    limits = joined([short_bound(limit) for limit in section.parsed_limits()])
    everyone = (
        "all that it was compared with"
        if any(duel.rival.unlike for duel in duels)
        else "all of them"
    )
    said = f"{candidate.name} {'beats' if beaten else 'does not beat'} {everyone} in {head(first)}"
    said += f", within {limits}" if limits else ""
    others = [_elsewhere(duels, metric) for metric in section.metrics[1:]]
    return f"{said}: {joined(gaps)}." + (f" Besides: {'; '.join(others)}." if others else "")


def _elsewhere(duels: Sequence[Comparison], metric: str) -> str:
    """In how many of the comparisons another metric is better or worse: no verdict rests on it, but it may be lost."""
    verdicts = [figures.verdict(duel.differences[metric]) for duel in duels]
    kinds = ("better", "worse", "within chance", "not defined")
    told = [
        f"{kind} {verdicts.count(kind)} of {len(verdicts)} times"
        for kind in kinds
        if kind in verdicts
    ]
    return f"{head(metric)} {', '.join(told)}"


def _stand_in(rival: Baseline) -> str:
    reference = rival.reference
    asked = systems.wanted(reference.px, reference.weights)
    meant = (
        f"{reference.name} ({', '.join(asked)})"
        if asked
        else f"{reference.name} as its preset has it"
    )
    began = "pretrained " if reference.weights else ""
    return f"What was compared with is {rival.name}, not the {began}{meant}: of that one this says nothing."


def _against(duel: Comparison, metric: str) -> str:
    said = figures.verdict(duel.differences[metric])
    return f"{said} {'than' if said in ('better', 'worse') else 'beside'} {duel.rival.name}"


def _notes(
    section: Better,
    found: Sequence[ResultCell],
    complete: Sequence[ResultCell],
    chosen: Sequence[ResultCell],
) -> list[str]:
    searched = sum(cell.study in section.search and bool(cell.problem) for cell in found)
    notes = []
    if searched:
        notes.append(
            f"{count(searched, 'configuration')} more of the search have too few seeds or no test figures."
        )
    if len(complete) > len(chosen):
        limits = joined([short_bound(limit) for limit in section.parsed_limits()])
        keeping = f"of those that keep {limits}, " if limits else ""
        of_all = f"Of {count(len(complete), 'configuration')} with enough seeds"
        notes.append(f"{of_all}, {keeping}the best on the validation split are shown.")
    return notes


def _no_candidate(section: Better, complete: Sequence[ResultCell]) -> Missing:
    why = f"none of {count(len(complete), 'configuration')} with enough seeds keeps the limits"
    return Missing(
        f"a candidate of {', '.join(section.studies)}", why, section.studies[complete[0].study]
    )
