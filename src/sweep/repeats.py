"""Several seeds of one configuration: their mean and spread, and whether the remaining seeds are worth training."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scipy import stats

from src.metrics.registry import Direction, Limit, Objective
from src.sweep.records import total_violation


@dataclass(frozen=True)
class Repeated:
    """What is known of a configuration that is trained under several seeds.

    Attributes:
        seeds: Seed -> metrics by name, of the seeds that have ended.
        cost: What does not depend on the seed, by name: FLOPs, parameters.
    """

    seeds: Mapping[int, Mapping[str, float]]
    cost: Mapping[str, float] = field(default_factory=dict)


def clearly_behind(
    own: Sequence[float], rival: Sequence[float], direction: Direction, p: float = 0.1
) -> bool:
    """Whether `own` is worse than `rival` by a one-sided Wilcoxon signed-rank test over paired seeds.

    Pairs that are equal tell nothing and are left out (Wilcoxon's own treatment of zeros), as are
    pairs with NaN. n pairs can at best give 2 ** -n, so with fewer than log2(1 / p) pairs (4 for
    0.1) nothing is ever clear.

    Source: Wilcoxon, Individual Comparisons by Ranking Methods, 1945; `scipy.stats.wilcoxon`, exact
        for the few seeds
    of a sweep.

    Args:
        own: One value a seed.
        rival: The same seeds, in the same order.
        direction: Which way is better.
        p: Level of the test, in (0, 1).

    Raises:
        ValueError: Different numbers of seeds.
    """
    sign = 1.0 if direction == "maximize" else -1.0
    leads = [sign * (theirs - ours) for ours, theirs in zip(own, rival, strict=True)]
    leads = [lead for lead in leads if lead != 0 and not math.isnan(lead)]
    if len(leads) < _pairs_needed(p):
        return False
    return bool(stats.wilcoxon(leads, alternative="greater", zero_method="wilcox").pvalue <= p)


def is_dropped(
    own: Repeated,
    rivals: Sequence[Repeated],
    objectives: Sequence[Objective],
    p: float = 0.1,
    limits: Sequence[Limit] = (),
) -> bool:
    """Whether the remaining seeds of a configuration can be spared.

    With one objective the rival is the configuration with the best mean among those that share
    enough seeds; those whose means keep the limits come first, then those that break them least.
    With several, one rival suffices that is no worse in every known cost and clearly better in
    every other objective, over the seeds both have: then the configuration will not stand on the
    front. The level holds for each rival alone, so with many rivals somewhat more than p of the
    equals are dropped.

    Limits make the comparison one of constrained domination. Only a rival whose means keep all
    limits can push another one out by its objectives. One whose own means break them is also
    dropped when, over the seeds both have, it clearly breaks them by more than a rival does, in
    all, whatever the objectives say; "not at all" is less than anything.

    Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, 2002, section
        VI-A, for the order;
    the test is ours.

    Args:
        own: The configuration, with the seeds that have ended.
        rivals: The other configurations.
        objectives: What is compared; one that stands in `own.cost` is a known cost, all others
            differ by seed.
        p: Level of the test, in (0, 1).
        limits: What a configuration has to keep, by the means of its recorded metrics.
    """
    measured = [objective for objective in objectives if objective.metric not in own.cost]
    rivals = [
        rival for rival in rivals if len(own.seeds.keys() & rival.seeds.keys()) >= _pairs_needed(p)
    ]
    if len(objectives) == 1:
        best_first = sorted(
            rivals, key=lambda rival: (_broken(rival, limits), _mean_loss(rival, objectives[0]))
        )
        rivals = best_first[:1]
    if _broken(own, limits) > 0 and any(_breaks_more(own, rival, limits, p) for rival in rivals):
        return True
    return bool(measured) and any(
        _broken(rival, limits) == 0
        and _costs_no_more(rival, own, objectives)
        and all(_is_behind(own, rival, objective, p) for objective in measured)
        for rival in rivals
    )


def aggregate(repeats: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and spread of each metric over the repeats of a configuration.

    Args:
        repeats: Metrics by name, one mapping a seed. A metric that not all have is left out: a mean
            over some of the seeds would not compare with the others.

    Returns:
        Means by name, and sample standard deviations (n - 1) by name; the latter are empty for a
        single repeat, which has no spread.
    """
    names = (
        [name for name in repeats[0] if all(name in metrics for metrics in repeats)]
        if repeats
        else []
    )
    columns = {name: [float(metrics[name]) for metrics in repeats] for name in names}
    means = {name: statistics.fmean(column) for name, column in columns.items()}
    if len(repeats) < 2:
        return means, {}
    return means, {name: _deviation(column) for name, column in columns.items()}


def _pairs_needed(p: float) -> int:
    return math.ceil(math.log2(1 / p))


def _broken(repeated: Repeated, limits: Sequence[Limit]) -> float:
    """Total violation by the means over the seeds that have ended; 0 where all limits are kept."""
    return total_violation(limits, aggregate(list(repeated.seeds.values()))[0])


def _breaks_more(own: Repeated, rival: Repeated, limits: Sequence[Limit], p: float) -> bool:
    shared = sorted(own.seeds.keys() & rival.seeds.keys())
    ours, theirs = (
        [total_violation(limits, each.seeds[seed]) for seed in shared] for each in (own, rival)
    )
    return clearly_behind(ours, theirs, "minimize", p)


def _mean_loss(repeated: Repeated, objective: Objective) -> float:
    """Mean over all its seeds, less is better; infinite if a seed lacks a number."""
    values = [metrics.get(objective.metric, math.nan) for metrics in repeated.seeds.values()]
    mean = statistics.fmean(values)
    if math.isnan(mean):
        return math.inf
    return -mean if objective.direction == "maximize" else mean


def _costs_no_more(rival: Repeated, own: Repeated, objectives: Sequence[Objective]) -> bool:
    for objective in objectives:
        if objective.metric not in own.cost:
            continue
        theirs, ours = rival.cost.get(objective.metric, math.nan), own.cost[objective.metric]
        if not (theirs >= ours if objective.direction == "maximize" else theirs <= ours):
            return False
    return True


def _is_behind(own: Repeated, rival: Repeated, objective: Objective, p: float) -> bool:
    shared = sorted(own.seeds.keys() & rival.seeds.keys())
    ours, theirs = (
        [repeated.seeds[seed].get(objective.metric, math.nan) for seed in shared]
        for repeated in (own, rival)
    )
    return clearly_behind(ours, theirs, objective.direction, p)


def _deviation(column: Sequence[float]) -> float:
    if not all(math.isfinite(value) for value in column):
        return math.nan
    return statistics.stdev(column)
