"""Config -> pruner; rungs (multi-objective ASHA)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from omegaconf import DictConfig
from optuna.pruners import BasePruner

from src.core.config import check, resolve
from src.core.errors import ConfigError
from src.metrics.pareto import as_losses, crowding, ranks
from src.metrics.registry import Limit, Objective, recorded_name
from src.sweep.records import Pruned, earlier_tries, total_violation
from src.sweep.samplers import as_node, build, target_of

if TYPE_CHECKING:
    import optuna


KEY = "hydra.sweeper.pruner"
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Rungs:
    """The epochs at which trials are compared.

    Attributes:
        max_epochs: Epochs of a trial that is never stopped.
        min_epochs: The first rung; every trial trains this long.
        reduction_factor: Each rung lies this many times as far as the one before, and of the trials
            at a rung one in this many goes on.

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
            raise ConfigError(
                f"{KEY}.reduction_factor", f"must be above 1, but got {self.reduction_factor}"
            )
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
class RungDecision:
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
) -> RungDecision:
    """Whether a trial is among the best 1 / `reduction_factor` of those at its rung.

    The order is by non-dominated rank, then by crowding among the distinct points of the rank. Of n
    trials the first n / `reduction_factor`, rounded down, go on; while that is fewer than there are
    objectives, as many of the front as there are objectives: the first at a rung, and with two
    objectives always both ends of the front. What is lost among the first few is lost to the study
    (chosen on recorded curves, see benchmarks/pruning_replay.py).

    Points that are equal (nets that have learned nothing yet all stand at chance level) are one
    point to the crowding and to the front: one of them has its place, the others come behind the
    rest of their rank. Which one is drawn from the row number: by order of arrival the newcomer
    would always lose or always win, drawn like this about one in `reduction_factor` goes on.

    Trials that break limits stand behind all that keep them, whatever their objectives, in order of
    their violation; where all at the rung break them, those that do so least take the place of the
    front.

    Args:
        points: One row a trial at this rung, in order of their numbers; one column an objective,
            (N, M). A row with a value that is missing or not finite stands behind all others and
            does not go on.
        own: The row that is asked about.
        objectives: M objectives; their directions say which way is better.
        reduction_factor: Above 1.
        broken: By how much each row breaks the limits in all, (N,); 0: not at all. None: there are
            no limits.
    """
    losses = as_losses(points, objectives)
    losses = np.where(np.isfinite(losses), losses, np.nan)
    order, on_front = _order(
        losses, objectives, np.zeros(len(losses)) if broken is None else np.asarray(broken)
    )
    place = int(np.flatnonzero(order == own)[0])
    kept = max(math.floor(len(losses) / reduction_factor), min(on_front, len(objectives)))
    return RungDecision(place < kept and not np.isnan(losses[own]).any(), place + 1, len(losses))


class RungBook:
    """The rungs of a study, kept as user attributes of its Optuna trials: any process of the study sees them all.

    Args:
        rungs: The epochs at which trials are compared.
        objectives: What is compared, in the order of the recorded values: validation metrics and
            whatever cost is known by then.
        limits: Of the study; those of metrics that are not known at a rung are neither kept nor
            broken there.
    """

    def __init__(
        self, rungs: Rungs, objectives: Sequence[Objective], limits: Sequence[Limit] = ()
    ) -> None:
        self.rungs = rungs
        self.objectives = list(objectives)
        self.limits = list(limits)

    def record(
        self,
        trial: optuna.Trial,
        epoch: int,
        values: Sequence[float],
        limited: Mapping[str, float] | None = None,
    ) -> RungDecision:
        """Enter what a trial has reached at a rung, then hold it against all that have come to it.

        Trials of an earlier study that this one was started from count too, if they have met this
        rung. A trial that was made again (`retry_of`), however often, counts once, by its latest
        attempt at the rung.

        Args:
            trial: The trial, running.
            epoch: A rung: one of `rungs.epochs`.
            values: One for each objective; for a metric that moves, the best so far.
            limited: What the limits are held against, by recorded names; see
                `src.sweep.pruners.BestSoFar.limited`.

        Raises:
            ValueError: `epoch` is no rung, or there are more or fewer values than objectives.
        """
        if epoch not in self.rungs.epochs:
            raise ValueError(f"epoch {epoch} is no rung; those are {self.rungs.epochs}")
        if len(values) != len(self.objectives):
            raise ValueError(
                f"expected a value for each of {len(self.objectives)} objectives, but got {values}"
            )
        if limited:  # before the values: who sees those sees these
            trial.set_user_attr(
                limit_attribute(epoch), {name: _storable(value) for name, value in limited.items()}
            )
        # written before the others are read: of two trials that come at once at least one sees the
        # other
        trial.set_user_attr(attribute(epoch), [_storable(value) for value in values])
        entries = self._entries(trial.study, epoch)
        points = np.array([entries[number][0] for number in sorted(entries)], dtype=float)
        broken = [entries[number][1] for number in sorted(entries)]
        own = sorted(entries).index(trial.number)
        return goes_on(points, own, self.objectives, self.rungs.reduction_factor, broken)

    def _entries(
        self, study: optuna.Study, epoch: int
    ) -> dict[int, tuple[list[float | None], float]]:
        """Trial number -> values at the rung, and by how much the limits are broken there."""
        found: dict[int, tuple[list[float | None], float]] = {}
        replaced: set[int] = set()
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            values = trial.user_attrs.get(attribute(epoch))
            if values is None or len(values) != len(
                self.objectives
            ):  # the latter: begun under other objectives
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


def _order(
    losses: np.ndarray, objectives: Sequence[Objective], broken: np.ndarray
) -> tuple[np.ndarray, int]:
    """Row numbers, best first; and how many distinct points are on the front."""
    rank = _constrained_ranks(losses, objectives, broken)
    # multiples of the golden ratio spread evenly over [0, 1): a draw that needs no seed, and is the
    # same everywhere
    draw = np.arange(len(losses)) * _GOLDEN % 1
    room = np.full(len(losses), -1.0)  # of a row that repeats another: less than any distance
    for level in np.unique(rank):
        rows = np.flatnonzero(rank == level)
        rows = rows[np.argsort(draw[rows])]
        _, first = np.unique(losses[rows], axis=0, return_index=True)
        rows = rows[first]
        room[rows] = crowding(losses[rows])
    return np.lexsort((draw, -room, rank)), int(((rank == 0) & (room >= 0)).sum())


def _constrained_ranks(
    losses: np.ndarray, objectives: Sequence[Objective], broken: np.ndarray
) -> np.ndarray:
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


RUNGS = "src.sweep.pruners.Rungs"
_AUTO = "auto"  # where Optuna would wait for a complete trial to know how many epochs there are


def make_pruner(
    config: DictConfig | Mapping[str, Any], n_objectives: int, max_epochs: int
) -> "BasePruner | Rungs":
    """Build the pruner that a config names, checked against the study.

    Args:
        config: `_target_` with its arguments, and `name`.
        n_objectives: Of the study.
        max_epochs: Epochs of a trial that is never stopped; the step of a report is its epoch, from
            1.

    Raises:
        ConfigError: A value that the pruner does not take, or a study that it cannot serve.
    """
    pruner = pruner_from_spec(pruner_spec(config, max_epochs))
    if (
        n_objectives > 1
        and isinstance(pruner, BasePruner)
        and not isinstance(pruner, optuna.pruners.NopPruner)
    ):
        name = as_node(config).get("name") or type(pruner).__name__
        raise ConfigError(
            KEY,
            f"{name} works for one objective, this study has {n_objectives}: take hydra/sweeper/pruner=rungs",
        )
    return pruner


def pruner_spec(
    config: DictConfig | Mapping[str, Any], max_epochs: int | None = None
) -> dict[str, Any]:
    """The pruner as plain JSON values, from which every trial's process builds its own.

    Args:
        config: `_target_` with its arguments, and `name`.
        max_epochs: Epochs of a trial that is never stopped; rungs need it.

    Raises:
        ConfigError: There is no such pruner, or a threshold without a bound.
    """
    node = as_node(config)
    target = target_of(node, KEY)
    spec = {key: value for key, value in resolve(node).items() if key != "name"}
    if max_epochs is not None:
        if node._target_ == RUNGS:
            spec["max_epochs"] = max_epochs
        _fill_in(spec, max_epochs)
    _refuse(target, spec)
    return spec


def pruner_from_spec(spec: Mapping[str, Any]) -> "BasePruner | Rungs":
    """The pruner again.

    Args:
        spec: From `pruner_spec`.

    Raises:
        ConfigError: A value that the pruner does not take.
    """
    pass

    if spec.get("_target_") == RUNGS:
        check(spec, KEY)
        return Rungs(**{key: value for key, value in spec.items() if key != "_target_"})
    pruner = build(as_node(spec), KEY)
    if not isinstance(pruner, BasePruner):
        raise ConfigError(
            f"{KEY}._target_", f"must be a pruner of Optuna or {RUNGS}, but got {spec['_target_']}"
        )
    return pruner


def _refuse(target: Any, spec: Mapping[str, Any]) -> None:
    """What Optuna would only stumble over in the middle of a study."""
    if (
        target is optuna.pruners.ThresholdPruner
        and spec.get("lower") is None
        and spec.get("upper") is None
    ):
        raise ConfigError(
            f"{KEY}.lower", f"must be a number, or {KEY}.upper must, but both are null"
        )
    if target is optuna.pruners.HyperbandPruner:
        first, last = spec.get("min_resource", 1), spec.get("max_resource", _AUTO)
        if isinstance(first, int) and first < 1:
            raise ConfigError(f"{KEY}.min_resource", f"must be at least 1, but got {first}")
        if isinstance(first, int) and isinstance(last, int) and last < first:
            raise ConfigError(
                f"{KEY}.max_resource", f"must be at least min_resource ({first}), but got {last}"
            )
        factor = spec.get("reduction_factor", 3)
        if isinstance(factor, int) and factor < 2:
            raise ConfigError(f"{KEY}.reduction_factor", f"must be at least 2, but got {factor}")


def _fill_in(spec: dict[str, Any], max_epochs: int) -> None:
    if spec.get("max_resource") == _AUTO:
        spec["max_resource"] = max_epochs
    for part in spec.values():
        if isinstance(part, dict):
            _fill_in(part, max_epochs)


class BestSoFar:
    """The best values so far, and what the limits are held against.

    Args:
        objectives: Of the study.
        limits: Of the study.

    Attributes:
        epoch: The last that was trained and validated, from 1; 0 before.
        best: Objective's metric -> best value so far; of those that are measured every epoch.
        limited: Recorded name of a limited metric -> its value at the best epoch so far, that of
            the first objective that is measured every epoch; without such an objective, at the last
            epoch. Its own best so far would combine epochs that no kept weights have: all recall at
            one, all accuracy at another.
    """

    def __init__(self, objectives: Sequence[Objective], limits: Sequence[Limit]) -> None:
        self._objectives = list(objectives)
        self._limited = {recorded_name(limit.metric) for limit in limits}
        self._leading = next(
            (each.metric for each in objectives if each.metric.startswith("val/")), None
        )
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
        if (
            self._leading is None
            or self._leading not in before
            or self.best[self._leading] != before[self._leading]
        ):
            named = {recorded_name(name): float(value) for name, value in metrics.items()}
            self.limited = {name: named[name] for name in self._limited if name in named}


def _better(objective: Objective, value: float, best: float | None) -> float:
    if best is None or math.isnan(best):
        return value
    if math.isnan(value):
        return best
    return max(best, value) if objective.direction == "maximize" else min(best, value)


class PrunerSpec:
    """Stops a trial that is behind. Built from plain values, in the trial's own process.

    Args:
        spec: From `src.sweep.pruners.pruner_spec`; None: no trial is stopped.
        objectives: Of the study.
        limits: Of the study; a pruner of Optuna does not know them.
    """

    def __init__(
        self,
        spec: Mapping[str, Any] | None,
        objectives: Sequence[Objective],
        limits: Sequence[Limit],
    ) -> None:
        self.spec = spec
        self.objectives = list(objectives)
        self.limits = list(limits)

    @cached_property
    def _made(self) -> Any:
        pass

        return pruner_from_spec(self.spec) if self.spec else None

    @cached_property
    def rungs(self) -> "Rungs | None":
        """The rungs, if the study has some."""
        pass

        return self._made if isinstance(self._made, Rungs) else None

    @property
    def pruner(self) -> "optuna.pruners.BasePruner | None":
        """Optuna's pruner, if the study has one."""
        return None if self.rungs else self._made

    def look(
        self,
        trial: "optuna.Trial",
        epochs: int,
        metrics: Mapping[str, float],
        reached: BestSoFar,
        cost: dict[str, float],
    ) -> None:
        """Hold the trial against the others after an epoch that is not its last.

        Args:
            trial: Attached with this object's `pruner`.
            epochs: To be trained in all.
            metrics: Of this epoch, `val/...`.
            reached: This epoch included.
            cost: What is known before training, by the run record's names.

        Raises:
            Pruned: The trial is behind.
        """
        if self.rungs is not None:
            self._at_rung(self.rungs, trial, epochs, reached, cost)
            return
        metric = self.objectives[0].metric
        if len(self.objectives) > 1 or metric not in metrics:
            return
        trial.report(metrics[metric], reached.epoch)
        if trial.should_prune():
            raise Pruned(
                f"epoch {reached.epoch} of {epochs}: {metric} {metrics[metric]:.4g} is behind"
            )

    def _at_rung(
        self,
        rungs: "Rungs",
        trial: "optuna.Trial",
        epochs: int,
        reached: BestSoFar,
        cost: dict[str, float],
    ) -> None:
        pass

        epoch = reached.epoch
        if epochs <= rungs.min_epochs:  # a trial this short has no rung
            return
        rungs = replace(rungs, max_epochs=epochs)
        if epoch not in rungs.epochs:
            return
        known = reached.best | cost
        objectives = [objective for objective in self.objectives if objective.metric in known]
        values = [known[objective.metric] for objective in objectives]
        verdict = RungBook(rungs, objectives, self.limits).record(
            trial, epoch, values, reached.limited
        )
        if not verdict.goes_on:
            raise Pruned(
                f"epoch {epoch} of {epochs}: place {verdict.position} of {verdict.of} at this rung"
            )
