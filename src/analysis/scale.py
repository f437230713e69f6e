"""One yardstick for all objectives: each value as a loss between 0, the best seen, and 1, the worst."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src.analysis.dominance import as_losses
from src.analysis.wording import is_cost, quantity
from src.objectives import Objective, describe

LOG_SPAN = 10.0  # costs that span at least this factor are compared by their logarithm


@dataclass(frozen=True)
class Scale:
    """How objective values become losses in [0, 1], the same way for every study that is measured with it.

    Attributes:
        objectives: M objectives; their directions say which way is better.
        best: The best value seen of each; NaN where no value was seen.
        worst: The worst value seen of each; NaN where no value was seen.
        logarithmic: Whether the objective is measured by its log10: costs above zero that span a factor of ten.
    """

    objectives: tuple[Objective, ...]
    best: tuple[float, ...]
    worst: tuple[float, ...]
    logarithmic: tuple[bool, ...]

    @classmethod
    def fit(cls, values: np.ndarray, objectives: Sequence[Objective]) -> "Scale":
        """The scale that spans `values`; fit it on several studies together for figures that compare.

        Args:
            values: One row a run, one column an objective, (N, M); NaN and infinity are not seen.
            objectives: M objectives.
        """
        losses = as_losses(values, objectives)
        best, worst, logarithmic = [], [], []
        for objective, column in zip(objectives, losses.T, strict=True):
            seen = column[np.isfinite(column)]
            ends = np.array([[seen.min()], [seen.max()]]) if len(seen) else np.full((2, 1), np.nan)
            first, last = as_losses(ends, [objective]).ravel()  # the sign turned back: values again
            low, high = min(first, last), max(first, last)
            best.append(float(first))
            worst.append(float(last))
            logarithmic.append(bool(is_cost(objective.metric) and low > 0 and high >= LOG_SPAN * low))
        return cls(tuple(objectives), tuple(best), tuple(worst), tuple(logarithmic))

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Losses of `values`, float (N, M).

        0 is the best value that was fitted, 1 the worst; a value that was not fitted may lie outside. NaN stays NaN. An
        objective whose fitted values are all equal tells nothing: 0.

        Args:
            values: One row a run, one column an objective, (N, M).
        """
        table = np.asarray(values, dtype=float).reshape(-1, len(self.objectives))
        losses = np.empty_like(table)
        for at, (best, worst, logarithmic) in enumerate(zip(self.best, self.worst, self.logarithmic, strict=True)):
            column = table[:, at]
            if best == worst or np.isnan(best):
                losses[:, at] = np.where(np.isnan(column), np.nan, 0.0)
                continue
            with np.errstate(divide="ignore", invalid="ignore"):  # what has no logarithm is no measurement: NaN, -inf
                column, ends = (np.log10(part) if logarithmic else part for part in (column, np.array([best, worst])))
            losses[:, at] = (column - ends[0]) / (ends[1] - ends[0])
        return losses

    def describe(self) -> list[str]:
        """One sentence an objective: its range with unit, which end is 0, and whether it is measured by its log10."""
        return [
            _sentence(*parts) for parts in zip(self.objectives, self.best, self.worst, self.logarithmic, strict=True)
        ]


def _sentence(objective: Objective, best: float, worst: float, logarithmic: bool) -> str:
    metric = describe(objective.metric)
    better = "more" if objective.direction == "maximize" else "less"
    head = f"{metric.axis}, {better} is better:"
    if np.isnan(best):
        return f"{head} no run has a value."
    if best == worst:
        return f"{head} {quantity(metric.name, best)} in all runs, which counts as 0."
    low, high = quantity(metric.name, best, worst), quantity(metric.name, worst, best)
    measure = "log10" if logarithmic else "the value itself"
    return f"{head} 0 is {low}, the best seen, 1 is {high}, the worst; between them by {measure}."
