"""A trial in its own process: attaches to its Optuna trial, runs the body and commits the outcome.

The outcome is stored in the study before the process ends. From then on the trial is finished,
whatever happens to its process, the scheduler or the machine.
"""

import logging
import math
import pkgutil
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from src.core.errors import UserError, causes
from src.metrics.registry import parse_limits, parse_objectives
from src.sweep import records
from src.sweep.pruners import BestSoFar, check_trial, pruner_from_spec
from src.sweep.records import TrialOutcome, WrongReturnError
from src.sweep.repeats import Repeated, is_dropped
from src.tracking.retry import Retry

log = logging.getLogger(__name__)
TERMINATED = 143  # exit status after SIGTERM: the sender knows the reason
FAILED = 1
COMMIT_SECONDS = 60.0  # for which a storage that does not answer is asked to store an outcome
PROGRESS_SECONDS = 1.0  # between two progress notes
KNOWN_BEFORE = tuple(
    f"efficiency/{name}" for name in ("flops", "params", "trainable_params", "size_mb")
)


class TrialContext:
    """Interface between a trial's body and its study.

    Args:
        task: The task to run. Its payload, from the scheduler, holds `overrides`, `objectives`,
            `limits`, `tracking`, `study_run`, `repeats`, `is_race`, `pruner` ...

    Attributes:
        outcome: The committed outcome; None before.
        pruning: Whether `epoch` may prune the trial.
        shared: What one seed of the trial has prepared and measured for the others.
    """

    def __init__(self, task: records.Task) -> None:
        self.task = task
        self.folder = Path(task.folder)
        self.payload = task.payload
        self.objectives = parse_objectives(task.payload)
        self.limits = parse_limits(task.payload)
        self.outcome: TrialOutcome | None = None
        self.pruning = True
        self.shared: Any = None
        self._run_id: str | None = None
        self._cost: dict[str, float] = {}
        self._best = BestSoFar(self.objectives, self.limits)
        self._last_note = 0.0

    @cached_property
    def _pruner(self) -> Any:
        spec = self.payload.get("pruner")
        return pruner_from_spec(spec) if spec else None

    @cached_property
    def trial(self) -> optuna.Trial:
        """The Optuna trial; attached on first use."""
        from src.sweep.storage import attach

        task = self.task
        pruner = self._pruner if isinstance(self._pruner, BasePruner) else None
        wait_s = float(self.payload.get("storage_wait_s", 0))
        return attach(task.storage, task.study, task.trial_id, pruner, wait_s)

    @property
    def resume(self) -> list[Path]:
        """Folders of earlier tries, the newest first; they may hold a training state."""
        return [Path(folder) for folder in self.payload.get("continues", [])]

    @property
    def reached(self) -> dict[str, float]:
        """Trained epochs and best objective values so far, for the record of a stopped trial."""
        values = self._best.best.items()
        best = {f"reached/{name.removeprefix('best/')}": value for name, value in values}
        return {"reached/epochs": self._best.epoch, **best}

    def started(self, run_id: str) -> None:
        """Record the id of the trial's MLflow run, so that the scheduler can close it."""
        self._run_id = run_id
        self.trial.set_user_attr("run_id", run_id)

    def known_cost(self, metrics: Mapping[str, float]) -> None:
        """Check the limits of metrics, by their names in the run record, known before training.

        Raises:
            OverLimit: A limit is broken: the trial must not be trained.
        """
        self._cost = {name: float(value) for name, value in metrics.items() if name in KNOWN_BEFORE}
        broken = [
            f"{self._cost[limit.metric]:g} breaks {limit}"
            for limit in self.limits
            if limit.metric in self._cost and not limit.holds(self._cost[limit.metric])
        ]
        if broken:
            raise records.OverLimit("; ".join(broken))

    def epoch(self, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """Report an epoch.

        Args:
            epoch: The epoch that was trained and validated, from 1.
            epochs: Epochs to be trained.
            metrics: Of this epoch, `val/...`.

        Raises:
            Pruned: The trial is stopped here.
        """
        self._best.add(epoch, metrics)
        self._note(epoch, epochs, metrics)
        if self.pruning and epoch < epochs and self._pruner is not None:
            check_trial(self._pruner, self.trial, epochs, metrics, self._best, self._cost)

    def resumed(self, history: Sequence[Mapping[str, float]]) -> None:
        """Report the metrics of each epoch of an earlier try; nothing is pruned for them."""
        for epoch, metrics in enumerate(history, 1):
            self._best.add(epoch, metrics)

    def repeat_done(self, seed: int) -> tuple[str, dict[str, float]] | None:
        """Run id and metrics of a seed that an earlier try finished; None if it did not."""
        stored = self.trial.storage.get_trial_system_attrs(self.trial._trial_id)
        done = stored.get(f"{records.REPEAT}{seed}")
        return (done[0], done[1]) if done else None

    def repeat_ended(self, seed: int, run_id: str, metrics: Mapping[str, float]) -> bool:
        """Report the MLflow run and the final metrics of one of several seeds.

        Returns:
            Whether the remaining seeds, if there are any, are needed. With `repeats=auto` they are
            not if the configuration is significantly worse than another one.
        """
        if self.repeat_done(seed) is None:
            self._keep(f"{records.REPEAT}{seed}", [run_id, dict(metrics)])
        if not self.payload.get("is_race"):
            return True
        trials = self.trial.study.get_trials(deepcopy=False)
        candidate = _repeated(trials[self.task.number])
        n_seeds, n_repeats = len(candidate.seeds), int(self.payload["repeats"])
        states = (TrialState.RUNNING, TrialState.COMPLETE)  # without failed and earlier tries
        others = (trial for trial in trials if trial.number != self.task.number)
        rivals = [_repeated(trial) for trial in others if trial.state in states]
        against = (rivals, self.objectives, float(self.payload["drop_p"]), self.limits)
        if n_seeds >= n_repeats or not is_dropped(candidate, *against):
            return n_seeds < n_repeats
        log.info("%d of %d seeds: significantly worse than another trial", n_seeds, n_repeats)
        return False

    def commit(self, metrics: Mapping[str, float]) -> None:
        """Store that the trial is complete, with all its metrics: from here on it counts.

        Raises:
            WrongReturnError: An objective is missing, or a value is no number.
            DivergedError: An objective or a limited metric is NaN or infinite.
        """
        if self.outcome is None:
            self._store("complete", "", "", self._checked(metrics))

    def give_up(self, state: records.State, kind: records.Kind, reason: str) -> None:
        """Store that the trial ended without a result, unless it is committed."""
        if self.outcome is None:
            self._store(state, kind, reason, dict(self._cost))

    def _store(
        self, state: records.State, kind: records.Kind, reason: str, metrics: dict[str, float]
    ) -> None:
        outcome = TrialOutcome(state, kind, reason, metrics, self._run_id, self._best.epoch)
        retry = Retry("hydra.sweeper.storage", self.task.storage, COMMIT_SECONDS)
        retry.call(lambda is_repeated: self._keep(records.OUTCOME, asdict(outcome)))
        self.outcome = outcome

    def _keep(self, name: str, value: Any) -> None:
        """Store a system attribute of the trial."""
        self.trial.storage.set_trial_system_attr(self.trial._trial_id, name, value)

    def _checked(self, metrics: Any) -> dict[str, float]:
        if not isinstance(metrics, Mapping):
            problem = f"the trial must return its metrics by name, but returned {metrics!r}"[:300]
            raise WrongReturnError(problem)
        try:
            values = {str(name): float(value) for name, value in metrics.items()}
        except (TypeError, ValueError) as error:
            raise WrongReturnError(f"a metric is no number: {error}") from None
        records.check_complete(values, records.needed(self.objectives, self.limits))
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def _note(self, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """Store the progress for the display, at most once a second; the last epoch always."""
        if epoch < epochs and time.monotonic() - self._last_note < PROGRESS_SECONDS:
            return
        self._last_note = time.monotonic()
        names = [item.per_epoch for item in self.objectives if item.per_epoch in metrics]
        note = {"epoch": epoch, "epochs": epochs, "metrics": {n: metrics[n] for n in names}}
        try:
            self._keep(records.PROGRESS, note)
        except Exception as error:  # only the display lacks it
            log.warning("progress is not recorded: %s", " ".join(str(error).split())[:200])


def main(task: records.Task) -> None:
    """Run one trial in this process and commit its outcome.

    Raises:
        SystemExit: Status 1 after a failure, which is committed; another status passes through.
    """
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    context = TrialContext(task)
    kind: records.Kind
    try:
        if task.payload.get("tell_begun"):
            context._keep(records.BEGUN, True)
        context.commit(pkgutil.resolve_name(task.body)(context))
        return
    except records.EndedEarly as early:
        context.give_up(early.state, "", str(early))
        return
    except SystemExit as error:
        if error.code == TERMINATED or context.outcome is not None:
            raise
        kind, reason = "error", f"the trial's code left with status {error.code}"
    except Exception as error:
        # A query that SIGTERM interrupts may end with an error of its connection.
        if any(isinstance(part, SystemExit) and part.code == TERMINATED for part in causes(error)):
            raise SystemExit(TERMINATED) from error
        kind, reason = records.classify(error)
        if not isinstance(error, UserError) and kind not in ("full_disk", "out_of_memory"):
            log.error("%s", traceback.format_exc())  # the log shows no password
    log.error("trial %d failed: %s", task.number, reason)
    context.give_up("fail", kind, reason)
    raise SystemExit(FAILED)


def _repeated(trial: optuna.trial.FrozenTrial) -> Repeated:
    """The finished seeds of a trial."""
    seeds = {
        int(name.removeprefix(records.REPEAT)): done[1]
        for name, done in trial.system_attrs.items()
        if name.startswith(records.REPEAT)
    }
    first: Mapping[str, float] = next(iter(seeds.values()), {})
    return Repeated(seeds, {name: first[name] for name in KNOWN_BEFORE if name in first})
