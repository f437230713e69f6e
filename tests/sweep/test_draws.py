"""What a study tries next: the queue first, then cells that nobody has run, each once."""

import itertools

import optuna
import pytest
from optuna.trial import TrialState

from src.core.errors import UserError
from src.sweep import space as spaces
from src.sweep.scheduler import TRIES, Overrides, TrialProposals, cell_of

SWEEP = ("a=1,2,3", "b=4,5")
CELLS = [(f"a={a}", f"b={b}") for a, b in itertools.product((1, 2, 3), (4, 5))]


def draws(
    seed: int = 0,
    exclude: tuple[str, ...] = (),
    sweep: tuple[str, ...] = SWEEP,
    is_grid: bool = False,
) -> TrialProposals:
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=2, constraints_func=None)
    space = spaces.parse(list(sweep), {}, {}, [], list(exclude)).space
    return TrialProposals(optuna.create_study(sampler=sampler), space, is_grid)


def tell(
    drawn: TrialProposals, trial: optuna.Trial, state: TrialState = TrialState.COMPLETE
) -> None:
    value = 1.0 if state is TrialState.COMPLETE else None
    drawn.take(drawn.study.tell(trial, value, state))


@pytest.mark.parametrize("seed", range(5))
def test_a_sampler_with_all_its_draws_under_way_gives_each_cell_once(seed: int) -> None:
    drawn, under_way = draws(seed), set[Overrides]()
    for _ in CELLS:
        found = drawn.next(under_way)
        assert found is not None
        assert found[1].overrides not in under_way
        under_way.add(found[1].overrides)
    assert under_way == set(CELLS)
    assert drawn.next(under_way) is None
    left_out = [trial for trial in drawn.study.trials if "excluded" in trial.user_attrs]
    assert {trial.state for trial in left_out} == {TrialState.PRUNED}


@pytest.mark.parametrize("seed", range(3))
def test_a_cell_that_failed_is_drawn_again_only_as_its_queued_retry(seed: int) -> None:
    drawn = draws(seed)
    found = drawn.next(())
    assert found is not None
    failed, cell = found
    tell(drawn, failed, TrialState.FAIL)
    started = []
    while (found := drawn.next(())) is not None:
        started.append(found[1].overrides)
        tell(drawn, found[0])
    assert sorted(started) == sorted(set(CELLS) - {cell.overrides})
    drawn.enqueue(cell.params, {"retry_of": failed.number, "cell": list(cell.overrides)})
    found = drawn.next(())
    assert found is not None
    assert found[1].overrides == cell.overrides
    tell(drawn, found[0])
    assert drawn.next(()) is None


def test_the_queue_comes_before_the_sampler_and_before_the_grid() -> None:
    for is_grid in (False, True):
        drawn = draws(is_grid=is_grid)
        params = drawn.space.params_of(CELLS[4])
        assert params is not None
        drawn.enqueue(params, {"cell": list(CELLS[4])})
        found = drawn.next(())
        assert found is not None
        assert found[1].overrides == CELLS[4]


@pytest.mark.parametrize("is_grid", [False, True])
def test_excluded_cells_are_never_given(is_grid: bool) -> None:
    drawn, started = draws(exclude=("a=2",), is_grid=is_grid), list[Overrides]()
    while (found := drawn.next(())) is not None:
        started.append(found[1].overrides)
        tell(drawn, found[0])
    wanted = [cell for cell in CELLS if cell[0] != "a=2"]
    assert sorted(started) == wanted
    if is_grid:
        assert started == wanted


def test_what_was_known_at_the_start_is_told_again_and_not_given() -> None:
    """As in a second sitting: another object reads what the first one left."""
    first = draws()
    found = first.next(())
    assert found is not None
    tell(first, found[0])
    second = TrialProposals(first.study, first.space, False)
    for trial in first.study.trials:
        second.take(trial)
    started = []
    while (next_ := second.next(())) is not None:
        started.append(next_[1].overrides)
        tell(second, next_[0])
    assert sorted(started) == sorted(set(CELLS) - {found[1].overrides})
    copies = [
        trial for trial in second.study.trials if trial.user_attrs.get("same_as") == found[0].number
    ]
    assert all((trial.value, cell_of(trial)) == (1.0, found[1].overrides) for trial in copies)


def test_an_uncountable_space_of_excluded_draws_ends_with_a_way_out() -> None:
    drawn = draws(sweep=("a=1,2", "lr=interval(0.0,1.0)"), exclude=("a=1", "a=2"))
    with pytest.raises(UserError, match=f"hydra.sweeper.exclude: {TRIES} draws in a row"):
        drawn.next(())
