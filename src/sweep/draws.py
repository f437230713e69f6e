"""What a study tries next: what is queued first, then the next cell of a grid or a draw of the sampler."""

from collections.abc import Collection, Iterator
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from src.errors import UserError
from src.sweep.space import Cell, Space

TRIES = 200  # to draw a cell that is neither excluded, nor known already, nor under way
FEW_TRIES = 20  # where the cells can be counted: then one that nobody ran is taken

Overrides = tuple[str, ...]


class Draws:
    """Draws cells; those that need not or must not be run are told to the study at once.

    Args:
        study: To be asked.
        space: What to draw from.
        is_grid: Whether the cells come in order instead of from the sampler.
    """

    def __init__(self, study: optuna.Study, space: Space, is_grid: bool) -> None:
        self.study = study
        self.space = space
        self.is_grid = is_grid
        self._waiting = 0
        self._finished: dict[Overrides, FrozenTrial] = {}  # what need not be run again
        self._taken: set[Overrides] = set()  # cells that some trial stands for
        self._failed: set[Overrides] = set()  # cells that failed: tried again only where that is asked for
        self._cells: Iterator[Cell] | None = None

    def take(self, trial: FrozenTrial) -> None:
        """Take note of a trial, as it stands in the study."""
        cell = cell_of(trial)
        self._taken.add(cell)
        if trial.state is TrialState.WAITING:
            self._waiting += 1
        if trial.state is TrialState.FAIL and "excluded" not in trial.user_attrs:
            self._failed.add(cell)
        known = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        if known and not {"same_as", "excluded"} & trial.user_attrs.keys():
            self._finished[cell] = trial

    def enqueue(self, params: dict[str, Any], attributes: dict[str, Any]) -> None:
        """Have these parameters drawn before anything else.

        Args:
            params: Optuna's, by name.
            attributes: User attributes of the trial that it becomes.
        """
        self.study.enqueue_trial(params, user_attrs=attributes)
        self._waiting += 1

    def next(self, under_way: Collection[Overrides]) -> tuple[optuna.Trial, Cell] | None:
        """The next trial to be run; None if a grid is at its end, or all that is left is under way.

        Args:
            under_way: Cells that run now: none of them is run a second time.

        Raises:
            UserError: The sampler draws excluded or known cells only, and the others cannot be counted.
        """
        for _ in range(TRIES if self.space.n_cells is None else FEW_TRIES):
            if not self._waiting and self.is_grid and not self._enqueue_cell():
                return None
            trial, cell = self._ask()
            if reason := self.space.is_excluded(cell):
                self._leave_out(trial, reason, forbidden=True)
            elif cell.overrides in self._finished:
                self._tell_same(trial, self._finished[cell.overrides])
            elif cell.overrides in under_way:
                self._leave_out(trial, "under way as another trial")
            elif cell.overrides in self._failed and "retry_of" not in trial.user_attrs:
                self._leave_out(trial, "failed as another trial")
            else:
                self._taken.add(cell.overrides)
                return trial, cell
        return self._unseen()

    def _enqueue_cell(self) -> bool:
        if self._cells is None:
            self._cells = (cell for cell in self.space.cells() if cell.overrides not in self._taken)
        cell = next(self._cells, None)
        if cell is None:
            return False
        self.enqueue(cell.params, {"cell": list(cell.overrides)})
        return True

    def _ask(self) -> tuple[optuna.Trial, Cell]:
        trial = self.study.ask()
        self._waiting = max(0, self._waiting - 1)
        cell = self.space.suggest(trial)
        if trial.user_attrs.get("cell") != list(cell.overrides):
            trial.set_user_attr("cell", list(cell.overrides))
        return trial, cell

    def _unseen(self) -> tuple[optuna.Trial, Cell] | None:
        """The sampler draws known or excluded cells only: take one that nobody ran, where they can be counted."""
        if self.space.n_cells is None:
            raise UserError(
                f"hydra.sweeper.exclude: {TRIES} draws in a row were excluded or known already: widen the space"
            )
        for cell in self.space.cells():
            if cell.overrides not in self._taken:
                self._taken.add(cell.overrides)
                self.enqueue(cell.params, {"cell": list(cell.overrides)})
                return self._ask()
        return None

    def _leave_out(self, trial: optuna.Trial, reason: str, forbidden: bool = False) -> None:
        trial.set_user_attr("excluded", reason)
        if forbidden:  # else the sampler would take a cell that runs, and may be a good one, for infeasible
            trial.set_constraint("excluded", 1.0)
        self.study.tell(trial, state=TrialState.PRUNED)

    def _tell_same(self, trial: optuna.Trial, known: FrozenTrial) -> None:
        """The same configuration and seed give the same result: it is told again, not run again."""
        trial.set_user_attr("same_as", known.number)
        for name, value in known.constraints.items():
            trial.set_constraint(name, value)
        values = known.values if known.state is TrialState.COMPLETE else None
        self.study.tell(trial, values=values, state=known.state)


def cell_of(trial: FrozenTrial) -> Overrides:
    """The overrides that a trial stands for."""
    return tuple(trial.user_attrs.get("cell", ()))
