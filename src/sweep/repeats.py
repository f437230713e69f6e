"""Several seeds of one configuration: mean, spread, and whether to train the remaining seeds."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from src.metrics.registry import Direction, Limit, Objective
from src.sweep.records import total_violation

Metrics = Mapping[str, float]
_DIRECTIONS: dict[str, Direction] = {">=": "maximize", "<=": "minimize"}  # of a limited metric


@dataclass(frozen=True)
class Repeated:
    """A configuration that is trained with several seeds."""

    seeds: Mapping[int, Metrics]  # of the seeds that have ended
    cost: Metrics = field(default_factory=dict)  # that does not depend on the seed: FLOPs

    def values(self, name: str) -> list[float]:
        """A metric's values, NaN where it has none."""
        return [metrics.get(name, math.nan) for metrics in self.seeds.values()]

    def violation(self, limits: Sequence[Limit]) -> float:
        """Total violation of the limits by the mean metrics."""
        return total_violation(limits, aggregate(list(self.seeds.values()))[0])


def pooled_variance(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Variance over the seeds within configurations, and its degrees of freedom; NaN for none.

    Configurations with one seed, or with a value that is not finite, are left out.
    """
    groups = [group for group in groups if len(group) > 1 and all(map(math.isfinite, group))]
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(statistics.variance(group) * (len(group) - 1) for group in groups)
    return squares / freedom if freedom else math.nan, freedom


def is_significantly_worse(
    values: Sequence[float],
    rival: Sequence[float],
    pooled: tuple[float, int],
    direction: Direction,
    p: float = 0.1,
) -> bool:
    """Whether the mean of `values` is worse than that of `rival` by a one-sided t-test.

    One value of each is enough, because the variance over the seeds comes from all configurations.
    NaN is never significant.

    Source: Student's t with a variance that is pooled over configurations, as in analysis of
        variance; `scipy.stats.ttest_ind` for two of them.

    Args:
        values: Of the seeds of one configuration.
        rival: Of the seeds of another one, whose number may differ.
        pooled: `pooled_variance` of all configurations.
        direction: Of the metric.
        p: Level of the test, in (0, 1).
    """
    from scipy import stats  # takes a second to import

    variance, freedom = pooled
    lead = statistics.fmean(rival) - statistics.fmean(values)
    lead = lead if direction == "maximize" else -lead
    if not freedom or not lead > 0:
        return False
    error = math.sqrt(variance * (1 / len(values) + 1 / len(rival)))
    return bool(lead >= stats.t.isf(p, freedom) * error)


def is_dropped(
    candidate: Repeated,
    rivals: Sequence[Repeated],
    objectives: Sequence[Objective],
    p: float = 0.1,
    limits: Sequence[Limit] = (),
) -> bool:
    """Whether the remaining seeds of a configuration can be skipped.

    A rival has at least two seeds: one lucky seed drops no configuration. One objective: the rival
    is the configuration with the best mean, feasible ones first, then by violation. Several: one
    rival suffices that is no worse in every known cost and significantly better in every other
    objective. The level holds for each rival, so with many rivals somewhat more than p of equals
    are dropped.

    With limits, only a rival whose means keep all limits can drop another by its objectives. A
    configuration whose means break limits is also dropped if a limited metric is significantly
    worse than both the bound and the mean of a rival with a smaller total violation.

    Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, 2002, section
        VI-A, for the order; the race is that of Maron and Moore, Hoeffding Races, NIPS 1993.

    Args:
        candidate: The configuration, with the seeds that have ended.
        rivals: The other configurations.
        objectives: One in `candidate.cost` is a known cost; all others differ by seed.
        p: Level of the test, in (0, 1).
        limits: Checked against the means of the recorded metrics.
    """
    rivals = [item for item in rivals if len(item.seeds) > 1]
    everyone = [candidate, *rivals]
    pooled: dict[str, tuple[float, int]] = {}

    def is_behind(theirs: Sequence[float], name: str, way: Direction) -> bool:
        if name not in pooled:
            pooled[name] = pooled_variance(item.values(name) for item in everyone)
        return is_significantly_worse(candidate.values(name), theirs, pooled[name], way, p)

    def breaks(limit: Limit, rival: Repeated) -> bool:
        theirs, way = rival.values(limit.metric), _DIRECTIONS[limit.operator]
        # the bound counts as a seed, which is conservative
        return is_behind([limit.value], limit.metric, way) and (
            limit.holds(statistics.fmean(theirs)) or is_behind(theirs, limit.metric, way)
        )

    def beats(rival: Repeated, item: Objective) -> bool:
        if item.metric not in candidate.cost:
            return is_behind(rival.values(item.metric), item.metric, item.direction)
        theirs = rival.cost.get(item.metric, math.nan)  # NaN: unknown
        return _loss(item, theirs) <= _loss(item, candidate.cost[item.metric])

    def mean_loss(rival: Repeated) -> float:
        loss = _loss(objectives[0], statistics.fmean(rival.values(objectives[0].metric)))
        return math.inf if math.isnan(loss) else loss

    if len(objectives) == 1 and rivals:
        rivals = [min(rivals, key=lambda item: (item.violation(limits), mean_loss(item)))]
    if any(
        rival.violation(limits) < candidate.violation(limits) and breaks(limit, rival)
        for rival in rivals
        for limit in limits
    ):
        return True
    # costs first: they need no test
    ordered = sorted(objectives, key=lambda item: item.metric not in candidate.cost)
    return ordered[-1].metric not in candidate.cost and any(
        rival.violation(limits) == 0 and all(beats(rival, item) for item in ordered)
        for rival in rivals
    )


def _loss(objective: Objective, value: float) -> float:
    return -value if objective.direction == "maximize" else value


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
