"""What MLflow could not be told at once is told later: a sweep goes on while it is away."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from optuna.trial import FrozenTrial

from src.sweep.draws import cell_of
from src.sweep.rows import Rows
from src.sweep.task import Outcome

log = logging.getLogger(__name__)


class Backlog:
    """Settles the trials' runs in MLflow, in the order in which they ended where that is possible.

    Args:
        rows: The study's record in MLflow.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._waiting: list[Callable[[], Any]] = []

    def settle(self, trial: FrozenTrial, outcome: Outcome, tail: str) -> None:
        """Make a trial's run agree with its outcome, or later if MLflow does not answer.

        Args:
            trial: As it stands in the study.
            outcome: What the study is told.
            tail: Last lines of the trial's log.
        """
        run_id = trial.user_attrs.get("run_id")
        settle = partial(self.rows.settle, trial.number, list(cell_of(trial)), run_id, outcome, tail)
        try:
            settle()
        except Exception as error:
            log.warning("trial %d is not settled in MLflow yet: %s", trial.number, " ".join(str(error).split())[:200])
            self._waiting.append(settle)

    def catch_up(self) -> None:
        """Settle what waits; what still cannot be raises, and goes on waiting."""
        while self._waiting:
            self._waiting[0]()
            del self._waiting[0]
