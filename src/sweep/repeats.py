"""Several seeds of one configuration: mean, spread, and whether to train the remaining seeds."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from src.metrics.registry import Direction, Limit, Objective
from src.sweep.records import total_violation

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Repeated:
    """A configuration that is trained with several seeds."""

    seeds: Mapping[int, Metrics]  # of the seeds that have ended
    cost: Metrics = field(default_factory=dict)  # that does not depend on the seed: FLOPs


def clearly_behind(
    values: Sequence[float], rival: Sequence[float], direction: Direction, p: float = 0.1
) -> bool:
    """Whether `values` are worse than `rival` by a one-sided Wilcoxon signed-rank test over seeds.

    Both have the same seeds in the same order. Equal pairs are left out (Wilcoxon's treatment of
    zeros), as are pairs with NaN. n pairs reach at best 2 ** -n: fewer than log2(1 / p) pairs (4
    for 0.1) are never significant at the level p, in (0, 1).

    Source: Wilcoxon, Individual Comparisons by Ranking Methods, 1945; `scipy.stats.wilcoxon`.
    """
    from scipy import stats  # takes a second to import

    sign = 1.0 if direction == "maximize" else -1.0
    leads = [sign * (theirs - ours) for ours, theirs in zip(values, rival, strict=True)]
    leads = [lead for lead in leads if lead != 0 and not math.isnan(lead)]
    if len(leads) < math.ceil(math.log2(1 / p)):
        return False
    return bool(stats.wilcoxon(leads, alternative="greater", zero_method="wilcox").pvalue <= p)


def is_dropped(
    candidate: Repeated,
    rivals: Sequence[Repeated],
    objectives: Sequence[Objective],
    p: float = 0.1,
    limits: Sequence[Limit] = (),
) -> bool:
    """Whether the remaining seeds of a configuration can be skipped.

    One objective: the rival is the configuration with the best mean among those that share enough
    seeds, feasible ones first, then by violation. Several: one rival suffices that is no worse in
    every known cost and significantly better in every other objective over the shared seeds. The
    level holds for each rival, so with many rivals somewhat more than p of equals are dropped.

    With limits, only a rival whose means keep all limits can drop another by its objectives. A
    configuration whose means break limits is also dropped if, over the shared seeds, its total
    violation is significantly larger than a rival's.

    Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, 2002, section
        VI-A, for the order; the test is ours.

    Args:
        candidate: The configuration, with the seeds that have ended.
        rivals: The other configurations.
        objectives: One in `candidate.cost` is a known cost; all others differ by seed.
        p: Level of the test, in (0, 1).
        limits: Checked against the means of the recorded metrics.
    """

    def sign(item: Objective) -> int:
        return -1 if item.direction == "maximize" else 1

    def violation(item: Repeated) -> float:
        return total_violation(limits, aggregate(list(item.seeds.values()))[0])

    def mean_loss(item: Repeated) -> float:
        values = [metrics.get(objectives[0].metric, math.nan) for metrics in item.seeds.values()]
        mean = statistics.fmean(values)  # over all seeds; NaN if one has no value
        return math.inf if math.isnan(mean) else sign(objectives[0]) * mean

    def is_behind(rival: Repeated, value: Callable[[Metrics], float], way: Direction) -> bool:
        seeds = sorted(candidate.seeds.keys() & rival.seeds.keys())
        ours = [value(candidate.seeds[seed]) for seed in seeds]
        return clearly_behind(ours, [value(rival.seeds[seed]) for seed in seeds], way, p)

    def is_better(rival: Repeated, item: Objective) -> bool:
        if item.metric not in candidate.cost:
            return is_behind(rival, lambda m: m.get(item.metric, math.nan), item.direction)
        theirs = rival.cost.get(item.metric, math.nan)  # NaN: unknown
        return sign(item) * theirs <= sign(item) * candidate.cost[item.metric]

    least = math.ceil(math.log2(1 / p))
    rivals = [item for item in rivals if len(candidate.seeds.keys() & item.seeds.keys()) >= least]
    if len(objectives) == 1:
        rivals = sorted(rivals, key=lambda item: (violation(item), mean_loss(item)))[:1]
    if violation(candidate) > 0 and any(
        is_behind(rival, lambda metrics: total_violation(limits, metrics), "minimize")
        for rival in rivals
    ):
        return True
    return any(item.metric not in candidate.cost for item in objectives) and any(
        violation(rival) == 0 and all(is_better(rival, item) for item in objectives)
        for rival in rivals
    )


def aggregate(repeats: Sequence[Metrics]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and sample standard deviation (n - 1) of each metric over repeats.

    Args:
        repeats: Metrics by name, one mapping for each seed. A metric that some seed lacks is left
            out: a mean over other seeds would not compare.

    Returns:
        Means by name, and standard deviations by name; the latter are empty for fewer than two
        repeats, and NaN where a value is not finite.
    """
    names = [name for name in (repeats[0] if repeats else ()) if all(name in r for r in repeats)]
    columns = {name: [float(metrics[name]) for metrics in repeats] for name in names}
    means = {name: statistics.fmean(column) for name, column in columns.items()}
    if len(repeats) < 2:
        return means, {}
    deviations = {
        name: statistics.stdev(column) if all(map(math.isfinite, column)) else math.nan
        for name, column in columns.items()
    }
    return means, deviations
