"""Config -> pruner; `Rungs`, asynchronous successive halving for several objectives (MO-ASHA)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import numpy as np
import optuna
from omegaconf import DictConfig
from optuna.pruners import BasePruner

from src.core.config import resolve
from src.core.errors import ConfigError
from src.metrics.pareto import as_losses, crowding, ranks
from src.metrics.registry import Limit, Objective, recorded_name
from src.sweep.records import Pruned, earlier_tries, total_violation
from src.sweep.samplers import FACTS, as_node, build, target_of

KEY = "hydra.sweeper.pruner"
_AUTO = "auto"  # replaced by the number of epochs, which Optuna would wait for a trial to learn
_GOLDEN = (math.sqrt(5) - 1) / 2


class BestSoFar:
    """Best values of the objectives so far, and the values that the limits are checked against.

    Args:
        objectives: Of the study.
        limits: Of the study.

    Attributes:
        epoch: The last that was trained and validated, from 1; 0 before the first.
        best: Objective's metric -> best value so far; only of metrics measured every epoch.
        limited: Recorded name of a limited metric -> its value at the best epoch so far by the
            first objective that is measured every epoch; without such an objective, at the last
            epoch. Its best value so far may belong to another epoch, whose weights are not kept.
    """

    def __init__(self, objectives: Sequence[Objective], limits: Sequence[Limit]) -> None:
        self.objectives = list(objectives)
        self.limits = list(limits)
        validated = (item.metric for item in objectives if item.metric.startswith("val/"))
        self._leading = next(validated, None)
        self.epoch = 0
        self.best: dict[str, float] = {}
        self.limited: dict[str, float] = {}

    def add(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Add an epoch.

        Args:
            epoch: From 1.
            metrics: `val/...`; a metric that is undefined in this epoch may be absent.
        """
        self.epoch = epoch
        before = dict(self.best)
        for objective in self.objectives:
            name = objective.metric
            if name in metrics:
                # fmax and fmin ignore NaN.
                better = np.fmax if objective.direction == "maximize" else np.fmin
                self.best[name] = float(better(before.get(name, math.nan), metrics[name]))
        leading = self._leading
        if leading not in before or self.best[leading] != before[leading]:
            recorded = {recorded_name(name): float(value) for name, value in metrics.items()}
            names = {recorded_name(limit.metric) for limit in self.limits} & recorded.keys()
            self.limited = {name: recorded[name] for name in names}


@runtime_checkable
class EpochPruner(Protocol):
    """A pruner that is none of Optuna's and works for any number of objectives.

    A parameter `max_epochs` of its constructor is filled in from trainer.max_epochs.
    """

    def check_trial(
        self, trial: optuna.Trial, epochs: int, best: BestSoFar, cost: Mapping[str, float]
    ) -> None:
        """Compare the trial with the others after an epoch that is not its last.

        Args:
            trial: The running trial.
            epochs: Epochs to be trained.
            best: Best values so far, this epoch included.
            cost: Metrics known before training, by the run record's names.

        Raises:
            Pruned: The trial is stopped here.
        """


@dataclass(frozen=True)
class RungDecision:
    """Decision at a rung.

    Attributes:
        goes_on: Whether the trial trains on.
        position: Its rank among the trials at the rung so far, from 1.
        of: Number of those trials, itself included.
    """

    goes_on: bool
    position: int
    of: int


@dataclass(frozen=True)
class Rungs:
    """The epochs at which trials are compared. Values at rungs are user attributes of the trials.

    Source: Schmucker et al., Multi-objective Asynchronous Successive Halving, arXiv 2106.12639.

    Attributes:
        max_epochs: Epochs of a trial that is not stopped.
        min_epochs: The first rung; every trial trains this long.
        reduction_factor: Ratio of consecutive rungs; one in this many trials goes on at a rung.

    Raises:
        ConfigError: An impossible value; the message names the key.
    """

    max_epochs: int
    min_epochs: int = 2
    reduction_factor: float = 3

    def __post_init__(self) -> None:
        if self.min_epochs < 1:
            raise ConfigError("min_epochs", f"must be at least 1, but got {self.min_epochs}")
        if not 1 < self.reduction_factor < math.inf:
            problem = f"must be above 1, but got {self.reduction_factor}"
            raise ConfigError("reduction_factor", problem)
        if self.max_epochs <= self.min_epochs:
            bound = f"must be below trainer.max_epochs ({self.max_epochs})"
            raise ConfigError("min_epochs", f"{bound}, but got {self.min_epochs}")

    @property
    def epochs(self) -> tuple[int, ...]:
        """The rungs, from 1, rising: min_epochs times powers of the factor, below max_epochs."""
        rungs: list[int] = []
        exact = float(self.min_epochs)
        while round(exact) < self.max_epochs:
            if not rungs or round(exact) > rungs[-1]:
                rungs.append(round(exact))
            exact *= self.reduction_factor
        return tuple(rungs)

    def check_trial(
        self, trial: optuna.Trial, epochs: int, best: BestSoFar, cost: Mapping[str, float]
    ) -> None:
        """See `EpochPruner`; a trial too short for a rung is not compared."""
        if epochs <= self.min_epochs:
            return
        rungs = replace(self, max_epochs=epochs)
        if best.epoch not in rungs.epochs:
            return
        values = {**best.best, **cost}
        objectives = [item for item in best.objectives if item.metric in values]
        point = [values[item.metric] for item in objectives]
        decision = rungs.record(trial, best.epoch, point, objectives, best.limits, best.limited)
        if not decision.goes_on:
            rank = f"rank {decision.position} of {decision.of} at this rung"
            raise Pruned(f"epoch {best.epoch} of {epochs}: {rank}")

    def record(
        self,
        trial: optuna.Trial,
        epoch: int,
        values: Sequence[float],
        objectives: Sequence[Objective],
        limits: Sequence[Limit] = (),
        limited: Mapping[str, float] | None = None,
    ) -> RungDecision:
        """Record a trial's values at a rung, then compare it with all trials that reached it.

        Trials of a warm start count too. A trial that was retried counts once, by its latest try at
        the rung.

        Args:
            trial: The running trial.
            epoch: One of `epochs`.
            values: One for each objective; of a metric that changes, the best so far.
            objectives: Validation metrics and known costs.
            limits: Limits of metrics that are not in `limited` are neither kept nor broken.
            limited: By recorded names, see `BestSoFar.limited`.

        Raises:
            ValueError: `epoch` is no rung, or the number of values is wrong.
        """
        if epoch not in self.epochs:
            raise ValueError(f"epoch {epoch} is no rung; those are {self.epochs}")
        if len(values) != len(objectives):
            number = f"a value for each of {len(objectives)} objectives"
            raise ValueError(f"expected {number}, but got {values}")
        # Limits before values: a process that reads the values reads the limits too. Values before
        # the comparison: of two trials that arrive together at least one sees the other.
        if limited:
            values_at = {name: _as_json(value) for name, value in limited.items()}
            trial.set_user_attr(limit_attribute(epoch), values_at)
        trial.set_user_attr(attribute(epoch), [_as_json(value) for value in values])
        trials = trial.study.get_trials(deepcopy=False)
        numbers = sorted(_trials_at_rung(trials, epoch, len(objectives)))
        points = [trials[number].user_attrs[attribute(epoch)] for number in numbers]
        broken = []
        for at_rung in (trials[number] for number in numbers):
            stored = at_rung.user_attrs.get(limit_attribute(epoch), {})
            metrics = {name: math.nan if v is None else v for name, v in stored.items()}
            broken.append(total_violation(limits, metrics))
        row = numbers.index(trial.number)
        factor = self.reduction_factor
        return goes_on(np.array(points, dtype=float), row, objectives, factor, broken)


def goes_on(
    points: np.ndarray,
    row: int,
    objectives: Sequence[Objective],
    reduction_factor: float = 3,
    broken: Sequence[float] | None = None,
) -> RungDecision:
    """Whether a trial is among the best 1 / `reduction_factor` of the trials at its rung.

    The order is by non-dominated rank, then by crowding among the distinct points of the rank. Of n
    trials the first n / `reduction_factor`, rounded down, go on. While that is fewer than there are
    objectives, as many of the front go on as there are objectives: the first at a rung, and with
    two objectives both ends of the front (chosen on recorded curves, see
    benchmarks/pruning_replay.py).

    Equal points (all untrained nets are at chance level) are one point for the crowding and the
    front: one of them keeps its rank's order, the others follow the rest of their rank. Which one
    is drawn from the row number: by order of arrival the newcomer would always lose or win.

    Trials that break limits come after all that keep them, whatever their objectives, in order of
    their violation. Where all break them, those with the least violation take the place of the
    front.

    Args:
        points: Shape (N, M): a row for each trial at this rung, in order of trial numbers; a column
            for each objective. A row with a value that is missing or not finite comes last and does
            not go on.
        row: The row in question.
        objectives: M objectives.
        reduction_factor: Above 1.
        broken: Shape (N,): total violation of the limits, 0 where they hold. None: no limits.
    """
    losses = as_losses(points, objectives)
    losses = np.where(np.isfinite(losses), losses, np.nan)
    violation = np.zeros(len(losses)) if broken is None else np.asarray(broken)
    rank = _constrained_ranks(losses, objectives, violation)
    # Multiples of the golden ratio spread evenly over [0, 1): a reproducible draw without a seed.
    draw = np.arange(len(losses)) * _GOLDEN % 1
    room = np.full(len(losses), -1.0)  # crowding distance; less than any for a repeated point
    for level in np.unique(rank):
        rows = np.flatnonzero(rank == level)
        rows = rows[np.argsort(draw[rows])]
        rows = rows[np.unique(losses[rows], axis=0, return_index=True)[1]]
        room[rows] = crowding(losses[rows])
    order = np.lexsort((draw, -room, rank))
    position = int(np.flatnonzero(order == row)[0])
    n_front = int(((rank == 0) & (room >= 0)).sum())
    n_kept = max(math.floor(len(losses) / reduction_factor), min(n_front, len(objectives)))
    stays = position < n_kept and not np.isnan(losses[row]).any()
    return RungDecision(bool(stays), position + 1, len(losses))


def attribute(epoch: int) -> str:
    """Name of the user attribute with a trial's values at a rung."""
    return f"rung:{epoch}"


def limit_attribute(epoch: int) -> str:
    """Name of the user attribute with a trial's limited metrics at a rung, if there are limits."""
    return f"rung_limits:{epoch}"


def _as_json(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _trials_at_rung(
    trials: Sequence[optuna.trial.FrozenTrial], epoch: int, n_objectives: int
) -> Iterator[int]:
    """Numbers of the trials with values at a rung, without those that a later try replaces."""
    # Another number of values: recorded under other objectives.
    at_rung = [
        trial for trial in trials if len(trial.user_attrs.get(attribute(epoch), ())) == n_objectives
    ]
    replaced = {
        earlier.number for trial in at_rung for earlier in earlier_tries(trial, trials.__getitem__)
    }
    return (trial.number for trial in at_rung if trial.number not in replaced)


def _constrained_ranks(
    losses: np.ndarray, objectives: Sequence[Objective], violation: np.ndarray
) -> np.ndarray:
    """Non-dominated ranks of the feasible rows, then a rank for each violation; NaN rows last."""
    known = ~np.isnan(losses).any(axis=1)
    feasible = known & (violation <= 0)
    minimized = [Objective(objective.metric, "minimize") for objective in objectives]
    rank = ranks(np.where(feasible[:, None], losses, np.nan), minimized)
    n_ranks = rank[feasible].max() + 1 if feasible.any() else 0
    rank[~feasible] = max(n_ranks, 1)
    infeasible = known & ~feasible
    if infeasible.any():
        degrees, order = np.unique(violation[infeasible], return_inverse=True)
        rank[infeasible] = n_ranks + order
        rank[~known] = n_ranks + len(degrees)
    return rank


def make_pruner(
    config: DictConfig | Mapping[str, Any], n_objectives: int, max_epochs: int
) -> BasePruner | EpochPruner:
    """Build the pruner that a config names, checked against the study.

    Args:
        config: `_target_` with its arguments, and `name`.
        n_objectives: Of the study.
        max_epochs: Epochs of a trial that is not stopped.

    Raises:
        ConfigError: A value that the pruner does not accept, or a study that it cannot serve.
    """
    pruner = pruner_from_spec(pruner_spec(config, max_epochs))
    single = isinstance(pruner, BasePruner) and not isinstance(pruner, optuna.pruners.NopPruner)
    if single and n_objectives > 1:
        name = as_node(config).get("name") or type(pruner).__name__
        problem = f"{name} works for one objective, this study has {n_objectives}"
        raise ConfigError(KEY, f"{problem}: take hydra/sweeper/pruner=rungs")
    return pruner


def pruner_spec(
    config: DictConfig | Mapping[str, Any], max_epochs: int | None = None
) -> dict[str, Any]:
    """The pruner as JSON values, from which each trial's process builds its own.

    Args:
        config: `_target_` with its arguments, and `name`.
        max_epochs: Epochs of a trial that is not stopped.

    Raises:
        ConfigError: There is no such pruner, or values that Optuna would refuse during the study.
    """
    node = as_node(config)
    target = target_of(node, KEY)
    spec = {key: value for key, value in resolve(node).items() if key not in FACTS}
    if max_epochs is not None:
        if "max_epochs" in signature(target).parameters:
            spec["max_epochs"] = max_epochs
        _fill_in(spec, max_epochs)
    bounds = (spec.get("lower"), spec.get("upper"))
    if target is optuna.pruners.ThresholdPruner and bounds == (None, None):
        problem = f"must be a number, or {KEY}.upper must, but both are null"
        raise ConfigError(f"{KEY}.lower", problem)
    if target is optuna.pruners.HyperbandPruner:
        first, last = spec.get("min_resource", 1), spec.get("max_resource", _AUTO)
        if isinstance(first, int) and first < 1:
            raise ConfigError(f"{KEY}.min_resource", f"must be at least 1, but got {first}")
        if isinstance(first, int) and isinstance(last, int) and last < first:
            problem = f"must be at least min_resource ({first}), but got {last}"
            raise ConfigError(f"{KEY}.max_resource", problem)
        factor = spec.get("reduction_factor", 3)
        if isinstance(factor, int) and factor < 2:
            raise ConfigError(f"{KEY}.reduction_factor", f"must be at least 2, but got {factor}")
    return spec


def pruner_from_spec(spec: Mapping[str, Any]) -> BasePruner | EpochPruner:
    """Build the pruner of a `pruner_spec`.

    Raises:
        ConfigError: A value that the pruner does not accept.
    """
    pruner = build(as_node(spec), KEY)
    if not isinstance(pruner, BasePruner | EpochPruner):
        kinds = "must be a pruner of Optuna or have a method check_trial"
        raise ConfigError(f"{KEY}._target_", f"{kinds}, but got {spec['_target_']}")
    return pruner


def _fill_in(spec: dict[str, Any], max_epochs: int) -> None:
    if spec.get("max_resource") == _AUTO:
        spec["max_resource"] = max_epochs
    for part in spec.values():
        if isinstance(part, dict):
            _fill_in(part, max_epochs)


class TrialPruner:
    """Prunes one trial; made from JSON values in the trial's own process.

    Args:
        spec: From `pruner_spec`; None: nothing is pruned.
        objectives: Of the study.
    """

    def __init__(self, spec: Mapping[str, Any] | None, objectives: Sequence[Objective]) -> None:
        self.spec = spec
        self.objectives = list(objectives)

    @cached_property
    def _pruner(self) -> BasePruner | EpochPruner | None:
        return pruner_from_spec(self.spec) if self.spec else None

    @property
    def optuna_pruner(self) -> BasePruner | None:
        """Optuna's pruner, if the study has one."""
        return self._pruner if isinstance(self._pruner, BasePruner) else None

    def check_trial(
        self,
        trial: optuna.Trial,
        epochs: int,
        metrics: Mapping[str, float],
        best: BestSoFar,
        cost: Mapping[str, float],
    ) -> None:
        """As `EpochPruner.check_trial`.

        Args:
            trial: Attached with `optuna_pruner`.
            epochs: Epochs to be trained.
            metrics: Of this epoch, `val/...`.
            best: Best values so far, this epoch included.
            cost: Metrics known before training.

        Raises:
            Pruned: The trial is stopped here.
        """
        if isinstance(self._pruner, EpochPruner):
            self._pruner.check_trial(trial, epochs, best, cost)
            return
        metric = self.objectives[0].metric
        if self._pruner is None or len(self.objectives) > 1 or metric not in metrics:
            return
        trial.report(metrics[metric], best.epoch)
        if trial.should_prune():
            value = f"{metric} {metrics[metric]:.4g}"
            raise Pruned(f"epoch {best.epoch} of {epochs}: {value} is behind the other trials")
