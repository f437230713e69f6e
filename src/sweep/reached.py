"""How far a trial has come, epoch by epoch: what it is held against the others by while it trains."""

import math
from collections.abc import Mapping, Sequence

from src.analysis.comparison import recorded_name
from src.objectives import Limit, Objective


class Reached:
    """The best values so far, and what the limits are held against.

    Args:
        objectives: Of the study.
        limits: Of the study.

    Attributes:
        epoch: The last that was trained and validated, from 1; 0 before.
        best: Objective's metric -> best value so far; of those that are measured every epoch.
        limited: Recorded name of a limited metric -> its value at the best epoch so far, that of the first objective
            that is measured every epoch; without such an objective, at the last epoch. Its own best so far would
            combine epochs that no kept weights have: all recall at one, all accuracy at another.
    """

    def __init__(self, objectives: Sequence[Objective], limits: Sequence[Limit]) -> None:
        self._objectives = list(objectives)
        self._limited = {recorded_name(limit.metric) for limit in limits}
        self._leading = next((each.metric for each in objectives if each.metric.startswith("val/")), None)
        self.epoch = 0
        self.best: dict[str, float] = {}
        self.limited: dict[str, float] = {}

    def add(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Take in an epoch.

        Args:
            epoch: Its number, from 1.
            metrics: Its own, `val/...`; one that is undefined in it may be absent.
        """
        self.epoch = epoch
        before = dict(self.best)
        for objective in self._objectives:
            name = objective.metric
            if name in metrics:
                self.best[name] = _better(objective, float(metrics[name]), before.get(name))
        if self._leading is None or self._leading not in before or self.best[self._leading] != before[self._leading]:
            named = {recorded_name(name): float(value) for name, value in metrics.items()}
            self.limited = {name: named[name] for name in self._limited if name in named}


def _better(objective: Objective, value: float, best: float | None) -> float:
    if best is None or math.isnan(best):
        return value
    if math.isnan(value):
        return best
    return max(best, value) if objective.direction == "maximize" else min(best, value)
