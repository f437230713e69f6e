"""Which trials of a study go on at a rung: asynchronous successive halving for one objective and for several.

At each rung (an epoch) a trial is held against all that have come to it so far, and goes on only among the best
fraction by non-dominated rank; crowding breaks ties. Nobody waits for anybody: early trials meet few others. Where
the study has limits, the order is that of constrained domination.

Source: Schmucker et al., Multi-objective Asynchronous Successive Halving, arXiv 2106.12639, 2021, the variant that
stops trials rather than promoting paused ones; limits as in Deb et al., A fast and elitist multiobjective genetic
algorithm: NSGA-II, 2002, section VI-A.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna

from src.analysis.dominance import as_losses, crowding, ranks
from src.errors import ConfigError
from src.objectives import Limit, Objective
from src.sweep.constraints import total_violation
from src.sweep.retries import earlier_tries

KEY = "hydra.sweeper.pruner"
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Rungs:
    """The epochs at which trials are compared.

    Attributes:
        max_epochs: Epochs of a trial that is never stopped.
        min_epochs: The first rung; every trial trains this long.
        reduction_factor: Each rung lies this many times as far as the one before, and of the trials at a rung one in
            this many goes on.

    Raises:
        ConfigError: A value that cannot be; the message names the key.
    """

    max_epochs: int
    min_epochs: int = 2
    reduction_factor: float = 3

    def __post_init__(self) -> None:
        if self.min_epochs < 1:
            raise ConfigError(f"{KEY}.min_epochs", f"must be at least 1, but got {self.min_epochs}")
        if not 1 < self.reduction_factor < math.inf:
            raise ConfigError(f"{KEY}.reduction_factor", f"must be above 1, but got {self.reduction_factor}")
        if self.max_epochs <= self.min_epochs:
            raise ConfigError(
                f"{KEY}.min_epochs",
                f"must be below trainer.max_epochs ({self.max_epochs}), but got {self.min_epochs}",
            )

    @property
    def epochs(self) -> tuple[int, ...]:
        """The rungs, counted from 1 and rising: min_epochs times powers of the factor, rounded, below max_epochs."""
        found: list[int] = []
        at = float(self.min_epochs)
        while round(at) < self.max_epochs:
            if not found or round(at) > found[-1]:
                found.append(round(at))
            at *= self.reduction_factor
        return tuple(found)


@dataclass(frozen=True)
class Verdict:
    """What a rung says of a trial.

    Attributes:
        goes_on: Whether it trains on.
        position: Its place among those at the rung so far, from 1.
        of: How many those are, itself included.
    """

    goes_on: bool
    position: int
    of: int


def goes_on(
    points: np.ndarray,
    own: int,
    objectives: Sequence[Objective],
    reduction_factor: float = 3,
    broken: Sequence[float] | None = None,
) -> Verdict:
    """Whether a trial is among the best 1 / `reduction_factor` of those at its rung.

    The order is by non-dominated rank, then by crowding among the distinct points of the rank. Of n trials the first
    n / `reduction_factor`, rounded down, go on; while that is fewer than there are objectives, as many of the front as
    there are objectives: the first at a rung, and with two objectives always both ends of the front. What is lost among
    the first few is lost to the study (chosen on recorded curves, see benchmarks/pruning_replay.py).

    Points that are equal (nets that have learned nothing yet all stand at chance level) are one point to the crowding
    and to the front: one of them has its place, the others come behind the rest of their rank. Which one is drawn from
    the row number: by order of arrival the newcomer would always lose or always win, drawn like this about one in
    `reduction_factor` goes on.

    Trials that break limits stand behind all that keep them, whatever their objectives, in order of their violation;
    where all at the rung break them, those that do so least take the place of the front.

    Args:
        points: One row a trial at this rung, in order of their numbers; one column an objective, (N, M). A row with a
            value that is missing or not finite stands behind all others and does not go on.
        own: The row that is asked about.
        objectives: M objectives; their directions say which way is better.
        reduction_factor: Above 1.
        broken: By how much each row breaks the limits in all, (N,); 0: not at all. None: there are no limits.
    """
    losses = as_losses(points, objectives)
    losses = np.where(np.isfinite(losses), losses, np.nan)
    order, on_front = _order(losses, objectives, np.zeros(len(losses)) if broken is None else np.asarray(broken))
    place = int(np.flatnonzero(order == own)[0])
    kept = max(math.floor(len(losses) / reduction_factor), min(on_front, len(objectives)))
    return Verdict(place < kept and not np.isnan(losses[own]).any(), place + 1, len(losses))


class RungBook:
    """The rungs of a study, kept as user attributes of its Optuna trials: any process of the study sees them all.

    Args:
        rungs: The epochs at which trials are compared.
        objectives: What is compared, in the order of the recorded values: validation metrics and whatever cost is known
            by then.
        limits: Of the study; those of metrics that are not known at a rung are neither kept nor broken there.
    """

    def __init__(self, rungs: Rungs, objectives: Sequence[Objective], limits: Sequence[Limit] = ()) -> None:
        self.rungs = rungs
        self.objectives = list(objectives)
        self.limits = list(limits)

    def record(
        self, trial: optuna.Trial, epoch: int, values: Sequence[float], limited: Mapping[str, float] | None = None
    ) -> Verdict:
        """Enter what a trial has reached at a rung, then hold it against all that have come to it.

        Trials of an earlier study that this one was started from count too, if they have met this rung. A trial that
        was made again (`retry_of`), however often, counts once, by its latest attempt at the rung.

        Args:
            trial: The trial, running.
            epoch: A rung: one of `rungs.epochs`.
            values: One for each objective; for a metric that moves, the best so far.
            limited: What the limits are held against, by recorded names; see `src.sweep.reached.Reached.limited`.

        Raises:
            ValueError: `epoch` is no rung, or there are more or fewer values than objectives.
        """
        if epoch not in self.rungs.epochs:
            raise ValueError(f"epoch {epoch} is no rung; those are {self.rungs.epochs}")
        if len(values) != len(self.objectives):
            raise ValueError(f"expected a value for each of {len(self.objectives)} objectives, but got {values}")
        if limited:  # before the values: who sees those sees these
            trial.set_user_attr(limit_attribute(epoch), {name: _storable(value) for name, value in limited.items()})
        # written before the others are read: of two trials that come at once at least one sees the other
        trial.set_user_attr(attribute(epoch), [_storable(value) for value in values])
        entries = self._entries(trial.study, epoch)
        points = np.array([entries[number][0] for number in sorted(entries)], dtype=float)
        broken = [entries[number][1] for number in sorted(entries)]
        own = sorted(entries).index(trial.number)
        return goes_on(points, own, self.objectives, self.rungs.reduction_factor, broken)

    def _entries(self, study: optuna.Study, epoch: int) -> dict[int, tuple[list[float | None], float]]:
        """Trial number -> values at the rung, and by how much the limits are broken there."""
        found: dict[int, tuple[list[float | None], float]] = {}
        replaced: set[int] = set()
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            values = trial.user_attrs.get(attribute(epoch))
            if values is None or len(values) != len(self.objectives):  # the latter: begun under other objectives
                continue
            limited = trial.user_attrs.get(limit_attribute(epoch), {})
            known = {name: math.nan if value is None else value for name, value in limited.items()}
            found[trial.number] = values, total_violation(self.limits, known)
            replaced |= {each.number for each in earlier_tries(trial, trials.__getitem__)}
        return {number: entry for number, entry in found.items() if number not in replaced}


def attribute(epoch: int) -> str:
    """Name of the user attribute that holds a trial's values at a rung."""
    return f"rung:{epoch}"


def limit_attribute(epoch: int) -> str:
    """Name of the user attribute that holds what the limits are held against at a rung; absent without limits."""
    return f"rung_limits:{epoch}"


def _storable(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _order(losses: np.ndarray, objectives: Sequence[Objective], broken: np.ndarray) -> tuple[np.ndarray, int]:
    """Row numbers, best first; and how many distinct points are on the front."""
    rank = _constrained_ranks(losses, objectives, broken)
    # multiples of the golden ratio spread evenly over [0, 1): a draw that needs no seed, and is the same everywhere
    draw = np.arange(len(losses)) * _GOLDEN % 1
    room = np.full(len(losses), -1.0)  # of a row that repeats another: less than any distance
    for level in np.unique(rank):
        rows = np.flatnonzero(rank == level)
        rows = rows[np.argsort(draw[rows])]
        _, first = np.unique(losses[rows], axis=0, return_index=True)
        rows = rows[first]
        room[rows] = crowding(losses[rows])
    return np.lexsort((draw, -room, rank)), int(((rank == 0) & (room >= 0)).sum())


def _constrained_ranks(losses: np.ndarray, objectives: Sequence[Objective], broken: np.ndarray) -> np.ndarray:
    """Non-dominated ranks of the rows that keep the limits, then a rank for each violation; unknown rows last."""
    known = ~np.isnan(losses).any(axis=1)
    kept = known & (broken <= 0)
    # as losses all objectives go down
    down = [Objective(objective.metric, "minimize") for objective in objectives]
    rank = ranks(np.where(kept[:, None], losses, np.nan), down)
    levels = rank[kept].max() + 1 if kept.any() else 0
    rank[~kept] = max(levels, 1)
    others = known & ~kept
    if others.any():
        degrees, order = np.unique(broken[others], return_inverse=True)
        rank[others] = levels + order
        rank[~known] = levels + len(degrees)
    return rank
