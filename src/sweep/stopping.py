"""Whether a trial trains on after an epoch: what the study's pruner or its rungs say of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from src.objectives import Limit, Objective
from src.sweep.failures import Pruned
from src.sweep.reached import Reached

if TYPE_CHECKING:
    import optuna

    from src.sweep.rungs import Rungs


class Stopping:
    """Stops a trial that is behind. Built from plain values, in the trial's own process.

    Args:
        spec: From `src.sweep.pruners.pruner_spec`; None: no trial is stopped.
        objectives: Of the study.
        limits: Of the study; a pruner of Optuna does not know them.
    """

    def __init__(
        self, spec: Mapping[str, Any] | None, objectives: Sequence[Objective], limits: Sequence[Limit]
    ) -> None:
        self.spec = spec
        self.objectives = list(objectives)
        self.limits = list(limits)

    @cached_property
    def _made(self) -> Any:
        from src.sweep.pruners import pruner_from_spec

        return pruner_from_spec(self.spec) if self.spec else None

    @cached_property
    def rungs(self) -> "Rungs | None":
        """The rungs, if the study has some."""
        from src.sweep.rungs import Rungs

        return self._made if isinstance(self._made, Rungs) else None

    @property
    def pruner(self) -> "optuna.pruners.BasePruner | None":
        """Optuna's pruner, if the study has one."""
        return None if self.rungs else self._made

    def look(
        self, trial: "optuna.Trial", epochs: int, metrics: Mapping[str, float], reached: Reached, cost: dict[str, float]
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
            raise Pruned(f"epoch {reached.epoch} of {epochs}: {metric} {metrics[metric]:.4g} is behind")

    def _at_rung(
        self, rungs: "Rungs", trial: "optuna.Trial", epochs: int, reached: Reached, cost: dict[str, float]
    ) -> None:
        from src.sweep.rungs import RungBook

        epoch = reached.epoch
        if epochs <= rungs.min_epochs:  # a trial this short has no rung
            return
        rungs = replace(rungs, max_epochs=epochs)
        if epoch not in rungs.epochs:
            return
        known = reached.best | cost
        objectives = [objective for objective in self.objectives if objective.metric in known]
        values = [known[objective.metric] for objective in objectives]
        verdict = RungBook(rungs, objectives, self.limits).record(trial, epoch, values, reached.limited)
        if not verdict.goes_on:
            raise Pruned(f"epoch {epoch} of {epochs}: place {verdict.position} of {verdict.of} at this rung")
