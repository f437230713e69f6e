"""Config -> pruner; `Rungs`, asynchronous successive halving for several objectives (MO-ASHA)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Annotated, Any

import numpy as np
import optuna
import pandas as pd
from annotated_types import Ge, Gt, Le
from omegaconf import DictConfig
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, ThresholdPruner

from src.core.config import check_arguments, resolve
from src.core.errors import ConfigError
from src.metrics.pareto import as_losses, crowding, ranks
from src.metrics.registry import Limit, Objective
from src.sweep.records import RUNG, Pruned, earlier_tries, outcome_of, total_violation
from src.sweep.samplers import FACTS, as_node, build, target_of

KEY = "hydra.sweeper.pruner"
MIN_FINISHED = 5  # trials of which a correlation is computed
_AUTO = "auto"  # replaced by the number of epochs, which Optuna would wait for a trial to learn
_GOLDEN = (math.sqrt(5) - 1) / 2


class BestSoFar:
    """Best values of the objectives so far, and the values that the limits are checked against.

    Attributes:
        epoch: The last that was trained and validated, from 1; 0 before the first.
        best: Objective's metric -> best value so far; only of metrics measured every epoch.
        limited: Limited metric -> its value at the best epoch so far by the first objective that
            is measured every epoch; without such an objective, at the last epoch. Its best value so
            far may belong to another epoch, whose weights are not kept.
    """

    def __init__(self, objectives: Sequence[Objective], limits: Sequence[Limit]) -> None:
        self.objectives = objectives
        self.limits = limits
        validated = (item.metric for item in objectives if item.per_epoch != item.metric)
        self._leading = next(validated, "")
        self.epoch = 0
        self.best: dict[str, float] = {}
        self.limited: dict[str, float] = {}

    def add(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Add an epoch, from 1; of its metrics `val/...` those that are undefined may be absent."""
        self.epoch = epoch
        before = self.best.get(self._leading)
        for item in self.objectives:
            if item.per_epoch in metrics:
                # fmax and fmin ignore NaN.
                better = np.fmax if item.direction == "maximize" else np.fmin
                earlier = self.best.get(item.metric, math.nan)
                self.best[item.metric] = float(better(earlier, metrics[item.per_epoch]))
        if before is None or self.best[self._leading] != before:
            limits = [limit for limit in self.limits if limit.per_epoch in metrics]
            self.limited = {limit.metric: float(metrics[limit.per_epoch]) for limit in limits}


@dataclass(frozen=True)
class Rungs:
    """The epochs at which trials are compared. Values there are system attributes of the trials.

    A rung that does not predict the final values stops no trial: the next one decides.

    Source: Schmucker et al., Multi-objective Asynchronous Successive Halving, arXiv 2106.12639; the
        correlation is ours.

    Attributes:
        max_epochs: Epochs of a trial that is not stopped.
        min_epochs: The first rung; every trial trains this long.
        reduction_factor: Ratio of consecutive rungs; one in this many trials goes on at a rung.
        min_correlation: Least `rung_correlation` of the first objective that is measured each epoch
            at which a rung stops trials, in [-1, 1]; -1: all rungs do.

    Raises:
        ConfigError: An impossible value; the message names the key.
    """

    max_epochs: int
    min_epochs: Annotated[int, Ge(1)] = 2
    reduction_factor: Annotated[float, Gt(1)] = 3
    min_correlation: Annotated[float, Ge(-1), Le(1)] = 0.7

    def __post_init__(self) -> None:
        check_arguments(Rungs, vars(self))
        if self.max_epochs <= self.min_epochs:
            problem = f"trainer.max_epochs ({self.max_epochs}), but got {self.min_epochs}"
            raise ConfigError("min_epochs", f"must be below {problem}")

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
        """Compare the trial with the others after an epoch that is not its last.

        Without an objective that is measured each epoch no trial is stopped: costs would decide.

        Any class with this method is a pruner, of one and of several objectives. A parameter
        `max_epochs` of its constructor is filled in from trainer.max_epochs.

        Args:
            trial: The running trial.
            epochs: Epochs to be trained; a trial too short for a rung is not compared.
            best: Best values so far, this epoch included.
            cost: Metrics that are known before training, by the run record's names.

        Raises:
            Pruned: The trial is stopped here.
        """
        at_rung = best.epoch in replace(self, max_epochs=epochs).epochs
        if epochs <= self.min_epochs or not at_rung or not best.best:
            return
        measured = {**best.best, **cost}
        objectives = [item for item in best.objectives if item.metric in measured]
        values = {item.metric: measured[item.metric] for item in objectives} | best.limited
        continues, rank, count = self.record(trial, best.epoch, values, objectives, best.limits)
        if not continues:
            raise Pruned(f"epoch {best.epoch} of {epochs}: rank {rank} of {count} at this rung")

    def record(
        self,
        trial: optuna.Trial,
        epoch: int,
        values: Mapping[str, float],
        objectives: Sequence[Objective],
        limits: Sequence[Limit] = (),
    ) -> tuple[bool, int, int]:
        """Record a trial's values at a rung, then compare it with all trials that reached it.

        Trials without a value of each objective are left out. A trial that was retried counts once,
        by its latest try at the rung. A limit whose metric has no value is not broken.

        Args:
            trial: The running trial.
            epoch: Of the rung.
            values: By metric: those of the objectives and of the limits.
            objectives: Those that change the best so far.
            limits: See `goes_on`.

        Returns:
            Whether the trial goes on, its rank from 1, and the number of trials at the rung so far.
            All go on if the rung does not predict the first objective.
        """
        name, metrics = f"{RUNG}{epoch}", [item.metric for item in objectives]
        stored = {key: value if math.isfinite(value) else None for key, value in values.items()}
        # Before the comparison: of two trials that arrive together at least one sees the other.
        trial.storage.set_trial_system_attr(trial._trial_id, name, stored)
        trials = trial.study.get_trials(deepcopy=False)
        at_rung = {
            item.number: item.system_attrs[name]
            for item in trials
            if set(metrics) <= item.system_attrs.get(name, {}).keys()
        }
        for number in list(at_rung):
            for earlier in earlier_tries(trials[number], trials.__getitem__):
                at_rung.pop(earlier.number, None)
        points = [[row[metric] for metric in metrics] for row in at_rung.values()]
        broken = [
            total_violation(limits, {key: math.nan if v is None else v for key, v in row.items()})
            for row in at_rung.values()
        ]
        row = list(at_rung).index(trial.number)
        table = np.array(points, dtype=float)  # None becomes NaN
        continues, rank = goes_on(table, row, objectives, self.reduction_factor, broken)
        if continues:
            return True, rank, len(at_rung)
        leading = next((i for i, item in enumerate(objectives) if item.per_epoch != item.metric), 0)
        early = dict(zip(at_rung, table[:, leading].tolist(), strict=True))
        outcomes = {number: outcome_of(trials[number]) for number in at_rung}
        final = {
            number: outcome.metrics.get(metrics[leading], math.nan)
            for number, outcome in outcomes.items()
            if outcome is not None and outcome.state == "complete"
        }
        return not self.predicts(early, final), rank, len(at_rung)

    def predicts(self, early: Mapping[int, float], final: Mapping[int, float]) -> bool:
        """Whether a rung stops trials, by the arguments of `rung_correlation`."""
        return not rung_correlation(early, final) < self.min_correlation  # NaN: not known yet


def rung_correlation(early: Mapping[int, float], final: Mapping[int, float]) -> float:
    """Rank correlation between the values at a rung and the final ones.

    Only trials that went on have a final value. Their values at the rung vary less than those of
    all trials, which lowers the correlation; this is corrected by the ratio of the deviations.

    Source: Thorndike, Personnel Selection, 1949, case 2 (direct restriction of range).

    Args:
        early: Trial -> its value at the rung.
        final: Trial -> its final value; a subset of the trials.

    Returns:
        In [-1, 1]; NaN with fewer than `MIN_FINISHED` finished trials, or if all are equal.
    """
    table = pd.DataFrame({"early": early, "final": final}, dtype=float)
    finished = table.dropna()
    if len(finished) < MIN_FINISHED or (finished.nunique() < 2).any():
        return math.nan
    ranks = finished.rank()
    correlation = ranks["early"].corr(ranks["final"])
    ratio = table["early"].std() / finished["early"].std()
    return correlation * ratio / math.sqrt(1 + correlation**2 * (ratio**2 - 1))


def goes_on(
    points: np.ndarray,
    row: int,
    objectives: Sequence[Objective],
    reduction_factor: float = 3,
    broken: Sequence[float] | None = None,
) -> tuple[bool, int]:
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

    Returns:
        Whether the trial goes on, and its rank among the N from 1.
    """
    losses = as_losses(points, objectives)
    n = len(losses)
    complete = np.isfinite(losses).all(axis=1)
    violation = np.where(complete, np.zeros(n) if broken is None else broken, np.inf)
    rank = np.where(complete, 0, 1)
    feasible = violation == 0
    rank[feasible] = ranks(points[feasible], objectives)
    levels = np.column_stack([violation, rank])
    level = np.unique(levels, axis=0, return_inverse=True)[1].reshape(-1)
    # Multiples of the golden ratio spread evenly over [0, 1): a reproducible draw without a seed.
    draw = np.arange(n) * _GOLDEN % 1
    room = np.full(n, -1.0)  # crowding distance; less than any for a repeated point
    for number in range(level.max() + 1):
        rows = np.flatnonzero((level == number) & complete)
        rows = rows[np.argsort(draw[rows])]
        rows = rows[np.unique(losses[rows], axis=0, return_index=True)[1]]
        room[rows] = crowding(losses[rows])
    order = np.lexsort((draw, -room, level))
    position = int(np.flatnonzero(order == row)[0])
    n_front = int(((level == 0) & (room >= 0)).sum())
    n_kept = max(math.floor(n / reduction_factor), min(n_front, len(objectives)))
    return bool(position < n_kept and complete[row]), position + 1


def make_pruner(config: DictConfig | Mapping[str, Any], n_objectives: int, max_epochs: int) -> Any:
    """Build the pruner that a config names: one of Optuna, or one with `Rungs.check_trial`.

    Args:
        config: `_target_` with its arguments, and `name`.
        n_objectives: Of the study.
        max_epochs: Epochs of a trial that is not stopped.

    Raises:
        ConfigError: A value that the pruner does not accept, or a study that it cannot serve.
    """
    pruner = pruner_from_spec(pruner_spec(config, max_epochs))
    if n_objectives > 1 and isinstance(pruner, BasePruner) and not isinstance(pruner, NopPruner):
        name = as_node(config).get("name") or type(pruner).__name__
        problem = f"{name} works for one objective, this study has {n_objectives}"
        raise ConfigError(KEY, f"{problem}: take hydra/sweeper/pruner=rungs")
    return pruner


def pruner_spec(config: DictConfig | Mapping[str, Any], max_epochs: int) -> dict[str, Any]:
    """The pruner of `make_pruner` as JSON values, from which each trial's process builds its own.

    Raises:
        ConfigError: There is no such pruner, or values that Optuna would refuse during the study.
    """
    node = as_node(config)
    target = target_of(node, KEY)
    spec = {key: value for key, value in resolve(node).items() if key not in FACTS}
    if "max_epochs" in signature(target).parameters:
        spec["max_epochs"] = max_epochs
    for part in (spec, *spec.values()):
        if isinstance(part, dict) and part.get("max_resource") == _AUTO:
            part["max_resource"] = max_epochs
    if target is ThresholdPruner and spec.get("lower") is None and spec.get("upper") is None:
        problem = f"must be a number, or {KEY}.upper must, but both are null"
        raise ConfigError(f"{KEY}.lower", problem)
    if target is HyperbandPruner:  # which refuses them in the first trial
        first = spec.get("min_resource", 1)
        for key, least in (("min_resource", 1), ("max_resource", first), ("reduction_factor", 2)):
            value = spec.get(key)
            if isinstance(value, int) and isinstance(least, int) and value < least:
                bound = f"min_resource ({least})" if key == "max_resource" else least
                raise ConfigError(f"{KEY}.{key}", f"must be at least {bound}, but got {value}")
    return spec


def pruner_from_spec(spec: Mapping[str, Any]) -> Any:
    """Build the pruner of a `pruner_spec`; ConfigError for a value that it does not accept."""
    pruner = build(as_node(spec), KEY)
    if not isinstance(pruner, BasePruner) and not hasattr(pruner, "check_trial"):
        kinds = "must be a pruner of Optuna or have a method check_trial"
        raise ConfigError(f"{KEY}._target_", f"{kinds}, but got {spec['_target_']}")
    return pruner


def check_trial(
    pruner: Any,
    trial: optuna.Trial,
    epochs: int,
    metrics: Mapping[str, float],
    best: BestSoFar,
    cost: Mapping[str, float],
) -> None:
    """As `Rungs.check_trial`, by any pruner, with the metrics `val/...` of this epoch.

    A trial is attached to its study with a pruner of Optuna.
    """
    if not isinstance(pruner, BasePruner):
        pruner.check_trial(trial, epochs, best, cost)
        return
    metric = best.objectives[0].per_epoch
    if len(best.objectives) > 1 or metric not in metrics:
        return
    trial.report(metrics[metric], best.epoch)
    if trial.should_prune():
        value = f"{metric} {metrics[metric]:.4g}"
        raise Pruned(f"epoch {best.epoch} of {epochs}: {value} is behind the other trials")
