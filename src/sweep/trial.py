"""What happens in a trial's own process: it attaches to its trial, runs the body, and commits what came out.

The outcome is written into the study before the process ends. From then on the trial is finished,
whatever becomes of its process, of the owner, or of the machine.
"""

import importlib
import logging
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.core.errors import DivergedError, UserError
from src.metrics.registry import Limit, Objective, parse_limits, parse_objectives, recorded_name
from src.sweep.pruners import BestSoFar, PrunerSpec
from src.sweep.records import (
    EndedEarly,
    Kind,
    OverLimit,
    Pruned,
    State,
    Task,
    TrialOutcome,
    WrongReturnError,
    classify,
)
from src.sweep.repeats import Repeated, is_dropped

if TYPE_CHECKING:
    import optuna


log = logging.getLogger(__name__)
TERMINATED = 143  # exit status of a process that SIGTERM unwound: whoever sent it knows why
FAILED = 1
COMMIT_PAUSES = (1, 2, 4, 8, 15, 30)  # s, between tries to commit an outcome
PROGRESS_SECONDS = 1.0  # between two notes of how far the trial is
KNOWN_BEFORE = (
    "efficiency/flops",
    "efficiency/params",
    "efficiency/trainable_params",
    "efficiency/size_mb",
)


class TrialContext:
    """What a trial's body is given.

    Args:
        task: What to run.

    Attributes:
        folder: The trial's own folder.
        payload: From the owner: `overrides`, `objectives`, `limits`, `tracking`, `study_run`,
            `repeats`, `pruner` ...
        objectives: Of the study.
        limits: Of the study.
        outcome: What was committed; None before.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.folder = Path(task.folder)
        self.payload = task.payload
        self.objectives: list[Objective] = parse_objectives(task.payload)
        self.limits: list[Limit] = parse_limits(task.payload)
        self.outcome: TrialOutcome | None = None
        self.pruning = True
        self._run_id: str | None = None
        self._cost: dict[str, float] = {}
        self._reached = BestSoFar(self.objectives, self.limits)
        self._stopping = PrunerSpec(self.payload.get("pruner"), self.objectives, self.limits)
        self._noted = 0.0

    @cached_property
    def trial(self) -> "optuna.Trial":
        """The Optuna trial, attached to on first use."""
        from src.sweep.storage import attach

        return attach(self.task.storage, self.task.study, self.task.trial_id, self._stopping.pruner)

    @property
    def resume(self) -> list[Path]:
        """Folders of earlier tries of this trial, the newest first: one may hold a state to go on from."""
        return [Path(folder) for folder in self.payload.get("continues", [])]

    def started(self, run_id: str) -> None:
        """Note the trial's MLflow run, so that the owner can close it if this process cannot.

        Args:
            run_id: Of the run that stands for the trial.
        """
        self._run_id = run_id
        self.trial.set_user_attr("run_id", run_id)

    def known_cost(self, metrics: Mapping[str, float]) -> None:
        """Hold what is known before training against the limits.

        Args:
            metrics: By their names in the run record.

        Raises:
            OverLimit: A limit is broken: the trial must not be trained.
        """
        self._cost = {name: float(value) for name, value in metrics.items() if name in KNOWN_BEFORE}
        broken = [
            limit for limit in self.limits if limit.metric in self._cost and not self._keeps(limit)
        ]
        if broken:
            raise OverLimit(
                "; ".join(f"{self._cost[limit.metric]:g} breaks {limit}" for limit in broken)
            )

    def _keeps(self, limit: Limit) -> bool:
        return limit.holds(self._cost[limit.metric])

    def epoch(self, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """Tell how far the trial is; it may end here.

        Args:
            epoch: That was trained and validated, from 1.
            epochs: To be trained in all.
            metrics: Of this epoch, `val/...`.

        Raises:
            Pruned: The trial is behind.
        """
        self._reached.add(epoch, metrics)
        self._note(epoch, epochs, metrics)
        if self.pruning and epoch < epochs and self._stopping.spec:
            self._stopping.look(self.trial, epochs, metrics, self._reached, self._cost)

    def resumed(self, history: Sequence[Mapping[str, float]]) -> None:
        """The training goes on where an earlier try of this trial was broken off; nothing is decided for the past.

        Args:
            history: Metrics of each epoch that was done.
        """
        for epoch, metrics in enumerate(history, 1):
            self._reached.add(epoch, metrics)

    def repeat_done(self, seed: int) -> tuple[str, dict[str, float]] | None:
        """Run id and metrics of a seed that an interrupted try of this trial had finished; None if it had not."""
        found = self.trial.user_attrs.get(f"repeat:{seed}")
        return (str(self.trial.user_attrs[f"repeat_run:{seed}"]), dict(found)) if found else None

    def repeat_ended(self, seed: int, run_id: str, metrics: Mapping[str, float]) -> None:
        """One of several seeds is done; the configuration may be dropped here.

        Args:
            seed: Of the repeat.
            run_id: Its MLflow run.
            metrics: Its final ones.

        Raises:
            Pruned: The configuration is clearly behind another one after the seeds that both have.
        """
        if self.repeat_done(seed) is None:
            self.trial.set_user_attr(f"repeat_run:{seed}", run_id)
            self.trial.set_user_attr(f"repeat:{seed}", dict(metrics))
        trials = self.trial.study.get_trials(deepcopy=False)
        own = _repeated(trials[self.task.number])
        if len(own.seeds) >= int(self.payload["repeats"]):
            return
        rivals = [_repeated(trial) for trial in trials if trial.number != self.task.number]
        objectives = [
            Objective(recorded_name(each.metric), each.direction) for each in self.objectives
        ]
        rivals = [rival for rival in rivals if rival.seeds]
        if is_dropped(own, rivals, objectives, float(self.payload["drop_p"]), self.limits):
            raise Pruned(
                f"after {len(own.seeds)} of {self.payload['repeats']} seeds: clearly behind another trial"
            )

    def commit(self, metrics: Mapping[str, float]) -> None:
        """Write that the trial is complete: from here on it counts, whatever happens.

        Args:
            metrics: All that was recorded, under the run record's names.

        Raises:
            WrongReturnError: An objective is missing, or a value is no number.
            DivergedError: An objective or a limited metric is NaN or infinite.
        """
        if self.outcome is None:
            self._write(
                TrialOutcome(
                    "complete",
                    metrics=self._checked(metrics),
                    run_id=self._run_id,
                    epoch=self._reached.epoch,
                )
            )

    def give_up(self, state: State, kind: Kind, reason: str) -> None:
        """Write that the trial ended without a result, if it was not committed before."""
        if self.outcome is None:
            metrics = dict(self._cost)
            self._write(
                TrialOutcome(state, kind, reason, metrics, self._run_id, self._reached.epoch)
            )

    def _write(self, outcome: TrialOutcome) -> None:
        """Commit; a storage that is away for a moment is waited for, since hours of training hang on it."""
        for pause in (*COMMIT_PAUSES, None):
            try:
                self.trial.set_user_attr("outcome", asdict(outcome))
                break
            except Exception as error:
                if pause is None or type(error).__name__ == "UpdateFinishedTrialError":
                    raise
                log.warning(
                    "the outcome is not committed yet: %s", " ".join(str(error).split())[:200]
                )
                time.sleep(pause)
        self.outcome = outcome

    def _checked(self, metrics: Any) -> dict[str, float]:
        from src.sweep.study import needed

        if not isinstance(metrics, Mapping):
            raise WrongReturnError(
                f"the trial must return its metrics by name, but returned {metrics!r}"[:300]
            )
        try:
            found = {str(name): float(value) for name, value in metrics.items()}
        except (TypeError, ValueError) as error:
            raise WrongReturnError(f"a metric is no number: {error}") from None
        necessary = needed(self.objectives, self.limits)
        missing = [name for name in necessary if name not in found]
        if missing:
            raise WrongReturnError(f"the trial returned no {', '.join(missing)}")
        broken = [name for name in necessary if not math.isfinite(found[name])]
        if broken:
            raise DivergedError(f"{broken[0]} is {found[broken[0]]}")
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _note(self, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        if epoch < epochs and time.monotonic() - self._noted < PROGRESS_SECONDS:
            return
        self._noted = time.monotonic()
        shown = {
            item.metric: metrics[item.metric] for item in self.objectives if item.metric in metrics
        }
        note = {"epoch": epoch, "epochs": epochs, "metrics": shown, "time": time.time()}
        try:
            self.trial.set_user_attr("progress", note)
        except Exception as error:  # only the view misses it
            log.warning("progress is not noted: %s", " ".join(str(error).split())[:200])


def main(task: Task) -> None:
    """Run one trial in this process and commit what comes out; the exit status says whether it ended in order.

    Args:
        task: What to run.

    Raises:
        SystemExit: Status 1 after a failure, which is committed; another status passes through.
    """
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    context = TrialContext(task)
    try:
        if task.payload.get("tell_begun"):
            context.trial.set_user_attr("begun", time.time())
        metrics = body_of(task.body)(context)
        context.commit(metrics)
    except EndedEarly as early:
        context.give_up(early.state, "", str(early))
    except SystemExit as error:
        if error.code == TERMINATED or context.outcome is not None:
            raise
        log.error("trial %d failed: its code left with status %s", task.number, error.code)
        context.give_up("fail", "error", f"the trial's code left with status {error.code}")
        raise SystemExit(FAILED) from error
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        kind, reason = classify(error)
        log.error("trial %d failed: %s", task.number, reason)
        context.give_up("fail", kind, reason)
        raise SystemExit(FAILED) from error


def body_of(name: str) -> Callable[[TrialContext], Mapping[str, float]]:
    """The function called "package.module:function"."""
    module, _, function = name.partition(":")
    found: Callable[[TrialContext], Mapping[str, float]] = getattr(
        importlib.import_module(module), function
    )
    return found


def _repeated(trial: "optuna.trial.FrozenTrial") -> Repeated:
    """The seeds of a trial that have ended."""
    seeds = {
        int(name.removeprefix("repeat:")): metrics
        for name, metrics in trial.user_attrs.items()
        if name.startswith("repeat:")
    }
    first: Mapping[str, float] = next(iter(seeds.values()), {})
    return Repeated(seeds, {name: first[name] for name in KNOWN_BEFORE if name in first})
