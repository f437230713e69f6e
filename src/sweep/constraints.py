"""By how much a trial breaks the study's limits."""

import math
from collections.abc import Iterable, Mapping

from src.analysis.comparison import recorded_name
from src.objectives import Limit


def violations(limits: Iterable[Limit], metrics: Mapping[str, float]) -> dict[str, float]:
    """By how much each limit is broken, as a share of its value (of 1, if that is 0); negative where it is kept.

    Args:
        limits: The limits; their texts are the keys of what is returned.
        metrics: By recorded names. A limit whose metric is not there gets 0.
    """
    found = {}
    for limit in limits:
        measured = metrics.get(recorded_name(limit.metric))
        found[str(limit)] = 0.0 if measured is None else limit.violation(measured) / (abs(limit.value) or 1.0)
    return found


def total_violation(limits: Iterable[Limit], metrics: Mapping[str, float]) -> float:
    """The sum of all violations, each as a share of its limit: 0 where all limits are kept.

    Source: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, 2002, section VI-A.

    Args:
        limits: The limits.
        metrics: By recorded names. A limit whose metric is not there is neither kept nor broken.

    Returns:
        In [0, infinity]; infinite for a metric that is NaN.
    """
    total = sum(max(0.0, math.inf if math.isnan(each) else each) for each in violations(limits, metrics).values())
    return float(total)
