"""The owner of a study: what it asks, what it tells, and what becomes of trials that go wrong."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from benchmarks.sweep import harness, stubs
from benchmarks.sweep.harness import STUDY, Answer, ScriptedExecutor, Setup, opened
from src.core.errors import UserError
from src.sweep import study as studies
from src.sweep.records import AllFailAlikeError, EndedTask, Kind, Task, TrialOutcome
from src.sweep.scheduler import Scheduler, StudyRecorder
from src.sweep.status import StudyStatus
from src.sweep.storage import open_storage
from src.sweep.study import warm_start
from src.tracking.run import Run
from src.tracking.store import Store

GRID = ("a=1,2,3", "b=4,5")
CELLS = [(f"a={a}", f"b={b}") for a in (1, 2, 3) for b in (4, 5)]  # the last one fastest


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run store to copy: making one takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    Store(uri=f"sqlite:///{folder / 'mlflow.db'}", experiment="stubs", folder=folder).open()
    return folder / "mlflow.db"


@pytest.fixture
def setup(empty_store: Path, tmp_path: Path) -> Setup:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return Setup(tmp_path, GRID)


def complete(task: Task) -> tuple[TrialOutcome | None, int]:
    return TrialOutcome("complete", metrics=stubs.expected(task.payload["cell"])), 0


def failing(kind: Kind, reason: str) -> Callable[[Task], tuple[TrialOutcome | None, int]]:
    return lambda task: (TrialOutcome("fail", kind, reason), 1)


@contextmanager
def scripted(
    setup: Setup, answer: Answer = complete, n_jobs: int = 1
) -> Iterator[tuple[Scheduler, ScriptedExecutor]]:
    made: list[ScriptedExecutor] = []

    def executor(storage: optuna.storages.BaseStorage) -> ScriptedExecutor:
        made.append(ScriptedExecutor(storage, answer, n_jobs))
        return made[-1]

    with opened(setup, executor) as owner:
        yield owner, made[-1]


def run(
    setup: Setup, answer: Answer = complete, n_jobs: int = 1
) -> tuple[StudyStatus, list[tuple[str, ...]]]:
    """How the study stands afterwards, and the cells that were started, in order."""
    with scripted(setup, answer, n_jobs) as (owner, executor):
        return owner.run(), [tuple(task.payload["cell"]) for task in executor.submitted]


def trials_of(setup: Setup) -> list[FrozenTrial]:
    storage = open_storage(setup.url)
    return storage.get_all_trials(storage.get_study_id_from_name(STUDY))


def runs_of(setup: Setup) -> dict[int, Any]:
    """The runs of the trials, by number; a trial with two of them fails the test."""
    runs = [
        run for run in setup.store.search("attributes.status != ''") if "trial" in run.data.tags
    ]
    found = {int(run.data.tags["trial"]): run for run in runs}
    assert len(found) == len(runs)
    return found


def states(setup: Setup) -> Counter[TrialState]:
    return Counter(trial.state for trial in trials_of(setup))


def cell_of(trial: FrozenTrial) -> tuple[str, ...]:
    return tuple(trial.user_attrs["cell"])


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_a_grid_runs_every_cell_once_in_order(setup: Setup, n_jobs: int) -> None:
    standing, started = run(setup, n_jobs=n_jobs)
    assert started == CELLS
    assert (standing.counted, standing.total) == (6, 6)
    assert [trial.value for trial in trials_of(setup)] == [0.014, 0.015, 0.024, 0.025, 0.034, 0.035]
    assert standing.best == (5, [0.035])


def test_a_finished_grid_starts_nothing(setup: Setup) -> None:
    run(setup)
    standing, started = run(setup)
    assert started == []
    assert standing.counts["complete"] == 6
    assert states(setup) == {TrialState.COMPLETE: 6}


def test_n_trials_is_the_total_over_sittings(setup: Setup) -> None:
    drawn = replace(setup, sweep=("a=interval(0.0,1.0)",), n_trials=4)
    _, first = run(drawn)
    standing, second = run(
        replace(drawn, n_trials=7, sampler=optuna.samplers.RandomSampler(seed=1))
    )
    assert (len(first), len(second)) == (4, 3)
    assert standing.counted == len(trials_of(setup)) == 7
    assert run(replace(drawn, n_trials=5))[1] == []


def test_excluded_cells_are_not_run_by_a_grid_nor_by_a_sampler(setup: Setup) -> None:
    excluding = replace(setup, exclude=["a=2"])
    wanted = {cell for cell in CELLS if cell[0] != "a=2"}
    assert set(run(excluding)[1]) == wanted
    with pytest.raises(UserError, match="newly excluded"):
        run(replace(setup, exclude=["a=2", "b=5"]))


def test_a_sampler_that_draws_known_or_excluded_cells_still_runs_each_cell_once(
    setup: Setup,
) -> None:
    drawn = replace(setup, exclude=["a=2"], n_trials=100)
    standing, started = run(drawn)
    assert Counter(started) == {cell: 1 for cell in CELLS if cell[0] != "a=2"}
    assert standing.counted == 4
    trials = trials_of(setup)
    assert studies.counted(trials) == 4
    for trial in trials:
        if "excluded" in trial.user_attrs:
            assert trial.state is TrialState.PRUNED
            assert trial.params["a"] is not None
            assert cell_of(trial)[0] == "a=2"
        elif "same_as" in trial.user_attrs:
            original = trials[trial.user_attrs["same_as"]]
            assert (trial.values, cell_of(trial)) == (original.values, cell_of(original))


def test_the_next_is_asked_the_moment_one_ends(setup: Setup) -> None:
    """The first trial goes on until all others have ended: nobody waits for it."""
    ended: list[int] = []

    def answer(task: Task) -> tuple[TrialOutcome | None, int] | None:
        if task.number == 0 and len(ended) < 5:
            return None
        ended.append(task.number)
        return complete(task)

    run(setup, answer, n_jobs=2)
    assert ended == [1, 2, 3, 4, 5, 0]


@pytest.mark.parametrize("learns_from_pruned", [True, False])
def test_a_trial_over_a_limit_is_told_with_its_violation(
    setup: Setup, learns_from_pruned: bool
) -> None:
    def answer(task: Task) -> tuple[TrialOutcome | None, int]:
        if task.payload["cell"][0] == "a=3":
            return TrialOutcome("over_limit", reason="too dear", metrics={stubs.FLOPS: 3e6}), 0
        return TrialOutcome("complete", metrics={stubs.ACCURACY: 0.5, stubs.FLOPS: 1e6}), 0

    limited = replace(
        setup,
        limits=["efficiency/flops <= 2e6"],
        n_objectives=2,
        learns_from_pruned=learns_from_pruned,
    )
    standing, _ = run(limited, answer)
    assert standing.counts == {"complete": 4, "pruned": 0, "over_limit": 2, "fail": 0}
    assert standing.counted == 6
    for trial in trials_of(setup):
        violation = trial.constraints["efficiency/flops <= 2e+06"]
        if cell_of(trial)[0] == "a=3":
            assert violation == pytest.approx(0.5)  # 3e6 is half of 2e6 too much
            assert trial.state is (TrialState.PRUNED if learns_from_pruned else TrialState.COMPLETE)
            if not learns_from_pruned:
                assert trial.values == [
                    0.5,
                    3e6,
                ]  # the worst accuracy seen, and what it really costs
        else:
            assert violation == pytest.approx(-0.5)


def test_pruned_trials_count_and_are_told_as_pruned(setup: Setup) -> None:
    standing, _ = run(setup, lambda task: (TrialOutcome("pruned", reason="behind", epoch=2), 0))
    assert standing.counts["pruned"] == standing.counted == 6
    assert states(setup) == {TrialState.PRUNED: 6}


def test_an_outcome_that_cannot_be_true_is_a_failure(setup: Setup) -> None:
    def answer(task: Task) -> tuple[TrialOutcome | None, int]:
        value = {0: {}, 1: {stubs.ACCURACY: float("nan")}}.get(
            task.number, stubs.expected(task.payload["cell"])
        )
        return TrialOutcome("complete", metrics=value), 0

    standing, _ = run(setup, answer)
    kinds = [trial.user_attrs["outcome"]["kind"] for trial in trials_of(setup)]
    assert kinds == ["wrong_return", "diverged", "", "", "", ""]
    assert standing.counts == {"complete": 4, "pruned": 0, "over_limit": 0, "fail": 2}
    assert [event.outcome.kind for event in standing.take_events()] == kinds


def test_failures_are_rows_with_kind_and_reason_and_count(setup: Setup) -> None:
    def answer(task: Task) -> tuple[TrialOutcome | None, int]:
        return failing("error", "ValueError: no")(task) if task.number % 2 else complete(task)

    standing, _ = run(setup, answer)
    assert standing.counted == 6
    assert standing.counts["fail"] == 3
    assert states(setup) == {TrialState.COMPLETE: 3, TrialState.FAIL: 3}
    runs = runs_of(setup)
    assert sorted(runs) == [1, 3, 5]  # the scripted trials that are complete have no runs
    for number, recorded in runs.items():
        assert recorded.info.status == "FAILED"
        tags = recorded.data.tags
        assert (tags["trial_state"], tags["failure_kind"], tags["failure"]) == (
            "fail",
            "error",
            "ValueError: no",
        )
        assert tags["overrides"] == " ".join(CELLS[number])


@pytest.mark.parametrize(("retries", "tries"), [(0, 1), (2, 3)])
def test_retries_of_the_kinds_that_another_try_may_cure(
    setup: Setup, retries: int, tries: int
) -> None:
    """One cell is always killed, one always fails by an error of its own: only the first is tried again."""

    def answer(task: Task) -> tuple[TrialOutcome | None, int]:
        if task.payload["cell"] == ["a=2", "b=4"]:
            return None, -9
        if task.payload["cell"] == ["a=3", "b=4"]:
            return TrialOutcome("fail", "error", "ValueError: no"), 1
        return complete(task)

    standing, started = run(replace(setup, retries=retries), answer)
    assert Counter(started) == {**dict.fromkeys(CELLS, 1), ("a=2", "b=4"): tries}
    assert (standing.counted, standing.counts["fail"]) == (6, 2)
    killed = [trial for trial in trials_of(setup) if cell_of(trial) == ("a=2", "b=4")]
    assert [trial.user_attrs.get("attempt", 0) for trial in killed] == list(range(tries))
    assert [trial.user_attrs.get("retry_of") for trial in killed] == [
        None,
        *(each.number for each in killed[:-1]),
    ]
    assert {trial.user_attrs["outcome"]["reason"] for trial in killed} == {
        "killed by signal 9 (SIGKILL)"
    }
    assert studies.counted(trials_of(setup)) == 6


def test_a_cured_retry_makes_the_cell_complete(setup: Setup) -> None:
    def answer(task: Task) -> tuple[TrialOutcome | None, int]:
        return (
            complete(task)
            if task.number
            else (TrialOutcome("fail", "out_of_memory", "none left"), 1)
        )

    standing, started = run(replace(setup, retries=1), answer)
    assert started == [CELLS[0], *CELLS[:1], *CELLS[1:]]
    assert (standing.counted, standing.put_back) == (6, 1)
    assert standing.counts == {"complete": 6, "pruned": 0, "over_limit": 0, "fail": 0}


def test_a_state_is_kept_as_long_as_another_try_may_go_on_from_it(setup: Setup) -> None:
    """Killed twice, then complete; killed for good; failed by itself; pruned: each leaves a state, none is tidy."""
    found: dict[int, list[str]] = {}
    script: dict[tuple[str, ...], list[tuple[TrialOutcome | None, int]]] = {
        CELLS[0]: [(None, -9), (None, -9)],
        CELLS[1]: [(None, -9)] * 3,
        CELLS[2]: [(TrialOutcome("fail", "error", "ValueError: no"), 1)],
        CELLS[3]: [(TrialOutcome("pruned", "", "behind"), 0)],
    }

    def answer(task: Task) -> tuple[TrialOutcome | None, int]:
        found[task.number] = sorted(
            file.parent.parent.name for file in setup.folder.rglob("last.ckpt")
        )
        state = Path(task.folder) / "checkpoint" / "last.ckpt"
        state.parent.mkdir(parents=True)
        state.touch()
        rest = script.get(tuple(task.payload["cell"]))
        return rest.pop(0) if rest else complete(task)

    standing, _ = run(replace(setup, retries=2), answer)
    assert found[1] == ["0000"]
    assert found[2] == ["0000", "0001"]
    assert found[3] == []  # the third try of the first cell was complete
    assert standing.counts["fail"] == 2
    left = {file.parent.parent.name for file in setup.folder.rglob("last.ckpt")}
    assert left == {
        "0003",
        "0004",
        "0005",
    }  # killed for good: retry_failed=true may go on from there
    run(replace(setup, retry_failed=True), answer)
    assert not list(setup.folder.rglob("last.ckpt"))


def test_trials_that_all_fail_alike_end_the_sweep_and_say_why(setup: Setup) -> None:
    def answer(task: Task) -> tuple[TrialOutcome | None, int]:
        return TrialOutcome(
            "fail", "bad_config", f"model.net.width: must be at most 8, trial {task.number}"
        ), 1

    with pytest.raises(
        AllFailAlikeError, match="first 3 trials .*model.net.width: must be at most"
    ):
        run(setup, answer)
    assert states(setup) == {TrialState.FAIL: 3}
    standing, started = run(replace(setup, retry_failed=True))
    assert Counter(started) == dict.fromkeys(CELLS, 1)
    assert (standing.counted, standing.counts["fail"]) == (6, 0)


def test_trials_that_fail_in_different_ways_do_not_end_the_sweep(setup: Setup) -> None:
    standing, _ = run(setup, lambda task: (TrialOutcome("fail", "error", "ab"[task.number % 2]), 1))
    assert standing.counts["fail"] == 6


def test_failures_that_stay_are_not_tried_again_without_being_asked_to(setup: Setup) -> None:
    run(setup, lambda task: (TrialOutcome("fail", "error", "ab"[task.number % 2]), 1))
    assert run(setup)[1] == []
    assert run(replace(setup, retry_failed=True))[1] == CELLS
    assert states(setup) == {TrialState.FAIL: 6, TrialState.COMPLETE: 6}


def test_after_ctrl_c_the_running_trials_are_marked_and_run_later(setup: Setup) -> None:
    def answer(task: Task) -> tuple[TrialOutcome | None, int] | None:
        if task.number < 2:
            return complete(task)
        if task.number == 4:
            raise KeyboardInterrupt
        return None  # 2 and 3 go on

    with pytest.raises(KeyboardInterrupt):
        run(setup, answer, n_jobs=3)
    stopped = [trial for trial in trials_of(setup) if trial.state is TrialState.FAIL]
    assert [cell_of(trial) for trial in stopped] == CELLS[2:5]
    assert {trial.user_attrs["outcome"]["kind"] for trial in stopped} == {"stopped"}
    assert {recorded.info.status for recorded in runs_of(setup).values()} == {"FAILED"}
    assert studies.counted(trials_of(setup)) == 2
    with scripted(setup, complete, n_jobs=3) as (owner, executor):
        standing = owner.run()
        continued = {
            tuple(task.payload["cell"]): task.payload["continues"] for task in executor.submitted
        }
    assert continued == {
        **{
            cell: [str(setup.folder / "trials" / f"{number:04d}")]
            for number, cell in enumerate(CELLS[2:5], start=2)
        },
        CELLS[5]: [],
    }
    assert (standing.counted, standing.counts["fail"]) == (6, 0)
    complete_cells = [
        cell_of(trial) for trial in trials_of(setup) if trial.state is TrialState.COMPLETE
    ]
    assert Counter(complete_cells) == dict.fromkeys(CELLS, 1)


class OwnerKilledError(BaseException):
    """Stands for kill -9 of the owner: nothing is tidied."""


def abandoned(setup: Setup, n_jobs: int, with_outcome: set[int]) -> None:
    """Leave a study as an owner that was killed does: `n_jobs` trials RUNNING, some of them committed."""
    with scripted(setup, complete, n_jobs) as (owner, executor):
        owner._take_stock()
        for _ in range(n_jobs):
            running = owner._next()
            assert running is not None
            if running.task.number in with_outcome:
                outcome = TrialOutcome("complete", metrics=stubs.expected(running.cell.overrides))
                trial_id = running.task.trial_id
                executor.storage.set_trial_user_attr(trial_id, "outcome", vars(outcome))
        executor._running.clear()


@pytest.mark.parametrize("with_outcome", [set(), {1}, {0, 1, 2, 3}])
def test_orphans_with_an_outcome_count_and_the_others_run_again(
    setup: Setup, with_outcome: set[int]
) -> None:
    """Also where the owner was killed before any trial had ended: that is no common failure."""
    abandoned(setup, 4, with_outcome)
    standing, started = run(setup, n_jobs=2)
    assert Counter(started) == {
        cell: 1 for number, cell in enumerate(CELLS) if number not in with_outcome
    }
    assert (standing.counted, standing.counts["fail"]) == (6, 0)
    assert states(setup)[TrialState.COMPLETE] == 6
    assert states(setup)[TrialState.RUNNING] == states(setup)[TrialState.WAITING] == 0


@pytest.mark.parametrize("late", ["complete", "fail", "none"])
def test_an_owner_killed_while_it_puts_a_trial_back_does_not_put_it_back_twice(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """The retry is in the queue, the trial itself still counts as running; its process may even commit yet."""

    def die(*arguments: Any) -> None:
        raise OwnerKilledError

    setup = replace(setup, retries=3)
    with (
        scripted(setup, lambda task: (None, -9)) as (owner, executor),
        monkeypatch.context() as patch,
    ):
        patch.setattr(studies, "tell", die)
        patch.setattr(owner, "_stop_all", lambda: None)
        with pytest.raises(OwnerKilledError):
            owner.run()
        if late != "none":
            outcome = TrialOutcome(late, "killed", metrics=stubs.expected(CELLS[0]))  # type: ignore[arg-type]
            owner.study._storage.set_trial_user_attr(
                executor.submitted[0].trial_id, "outcome", vars(outcome)
            )
    assert states(setup) == {TrialState.RUNNING: 1, TrialState.WAITING: 1}
    standing, started = run(setup)
    assert Counter(started) == {cell: 1 for cell in CELLS if late != "complete" or cell != CELLS[0]}
    assert (standing.counted, standing.counts["fail"]) == (6, 0)
    trials = trials_of(setup)
    assert studies.counted(trials) == 6
    own = [
        trial
        for trial in trials
        if trial.state is TrialState.COMPLETE and "same_as" not in trial.user_attrs
    ]
    assert Counter(map(cell_of, own)) == dict.fromkeys(CELLS, 1)


def test_a_second_owner_is_refused(setup: Setup) -> None:
    with scripted(setup), pytest.raises(UserError, match="is being run by"), scripted(setup):
        pass


def test_a_trial_that_outlives_its_time_limit_is_stopped(setup: Setup) -> None:
    standing, _ = run(
        replace(setup, time_limit_s=0.05), lambda task: None if task.number == 2 else complete(task)
    )
    late = trials_of(setup)[2].user_attrs["outcome"]
    assert (late["kind"], late["state"]) == ("time_limit", "fail")
    assert "time_limit_s=0.05" in late["reason"]
    assert standing.counts == {"complete": 5, "pruned": 0, "over_limit": 0, "fail": 1}


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sampler_with_slots_to_spare_runs_each_cell_once(setup: Setup, seed: int) -> None:
    drawn = replace(setup, n_trials=6, sampler=optuna.samplers.TPESampler(seed=seed))
    standing, started = run(drawn, n_jobs=4)
    assert Counter(started) == dict.fromkeys(CELLS, 1)
    assert (standing.counted, standing.counts["complete"]) == (6, 6)


@pytest.mark.parametrize("late", [False, True])
def test_what_is_committed_is_complete_though_its_process_was_killed(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """`late`: the outcome comes when the owner has looked for it already."""
    finish = Scheduler._finish

    def commit_then_finish(self: Scheduler, frozen: FrozenTrial, *rest: Any) -> None:
        outcome = TrialOutcome("complete", metrics=stubs.expected(frozen.user_attrs["cell"]))
        self.study._storage.set_trial_user_attr(frozen._trial_id, "outcome", vars(outcome))
        finish(self, frozen, *rest)

    if late:
        monkeypatch.setattr(Scheduler, "_finish", commit_then_finish)
    standing, started = run(
        replace(setup, retries=3), lambda task: (None if late else complete(task)[0], -9), n_jobs=2
    )
    assert started == CELLS
    assert standing.counts == {"complete": 6, "pruned": 0, "over_limit": 0, "fail": 0}
    assert states(setup) == {TrialState.COMPLETE: 6}
    for recorded in runs_of(setup).values():
        assert (recorded.info.status, recorded.data.tags["trial_state"]) == ("FINISHED", "complete")


class AtOnceExecutor(ScriptedExecutor):
    """Reports all that have ended together."""

    def _gone(self) -> list[EndedTask]:
        found = []
        while one := super()._gone():
            found += one
            self._running.pop(one[0].task.slot.number)
        return found


def test_trials_that_end_at_once_are_all_settled_before_the_sweep_is_given_up(setup: Setup) -> None:
    def executor(storage: optuna.storages.BaseStorage) -> AtOnceExecutor:
        return AtOnceExecutor(storage, failing("error", "ValueError: no"), n_jobs=4)

    with opened(setup, executor) as owner, pytest.raises(AllFailAlikeError, match="first 4 trials"):
        owner.run()
    assert states(setup) == {TrialState.FAIL: 4}
    assert {trial.user_attrs["outcome"]["kind"] for trial in trials_of(setup)} == {"error"}
    assert {recorded.info.status for recorded in runs_of(setup).values()} == {"FAILED"}


def test_a_sweep_goes_on_while_mlflow_is_away_and_settles_the_rows_later(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(task: Task) -> tuple[TrialOutcome | None, int]:
        return failing("error", f"ValueError: {'ab'[task.number % 2]}")(task)

    away = iter([True, True])
    settle = StudyRecorder.settle

    def unsteady(self: StudyRecorder, *arguments: Any) -> str:
        if next(away, False):
            raise ConnectionError("nobody answers")
        return settle(self, *arguments)

    monkeypatch.setattr(StudyRecorder, "settle", unsteady)
    standing, started = run(setup, answer)
    assert (started, standing.counts["fail"]) == (CELLS, 6)
    runs = runs_of(setup)
    assert sorted(runs) == list(range(6))
    assert {runs[number].data.tags["failure"] for number in (0, 1)} == {
        "ValueError: a",
        "ValueError: b",
    }


def test_the_time_limit_is_what_the_row_says_whatever_the_ended_trial_left_there(
    setup: Setup,
) -> None:
    def answer(task: Task) -> tuple[TrialOutcome | None, int] | None:
        if task.number:
            return complete(task)
        if "run_id" not in owner.study.trials[0].user_attrs:
            left = Run.start(
                owner.backlog.rows.store,
                "stub",
                {"kind": "run", "trial": 0},
                parent_id=owner.backlog.rows.parent.id,
            )
            with pytest.raises(SystemExit), left:
                raise SystemExit(143)
            executor.storage.set_trial_user_attr(task.trial_id, "run_id", left.id)
        return None

    with scripted(replace(setup, time_limit_s=0.05), answer) as (owner, executor):
        owner.run()
    tags = runs_of(setup)[0].data.tags
    assert "hydra.sweeper.time_limit_s=0.05" in tags["failure"]
    assert tags["failure_kind"] == "time_limit"


class QueueingExecutor(ScriptedExecutor):
    queues = True


@pytest.mark.parametrize("begins", [False, True])
def test_waiting_in_an_engines_queue_is_no_running_time(setup: Setup, begins: bool) -> None:
    """A trial waits for many times its limit; if it then begins, and goes on, the limit holds."""
    looks = iter(range(20))  # 10 ms apart: 0.2 s in the queue

    def executor(storage: optuna.storages.BaseStorage) -> QueueingExecutor:
        def answer(task: Task) -> tuple[TrialOutcome | None, int] | None:
            if next(looks, None) is not None:
                return None
            if not begins:
                return complete(task)
            storage.set_trial_user_attr(task.trial_id, "begun", 1.0)
            return None

        return QueueingExecutor(storage, answer)

    with opened(replace(setup, sweep=("a=1",), time_limit_s=0.05), executor) as owner:
        standing = owner.run()
    (trial,) = trials_of(setup)
    assert trial.user_attrs["outcome"]["kind"] == ("time_limit" if begins else "")
    assert standing.counts["fail"] == begins


def test_the_folder_of_an_earlier_study_is_not_written_into(setup: Setup) -> None:
    old = setup.folder / "trials" / "0000"
    old.mkdir(parents=True)
    (old / "trial.log").write_text("precious")
    with scripted(setup) as (owner, executor):
        owner.run()
        folders = [Path(task.folder).name for task in executor.submitted]
    assert folders == ["0000-2", *(f"{number:04d}" for number in range(1, 6))]
    assert trials_of(setup)[0].user_attrs["folder"] == str(old.with_name("0000-2"))
    assert [file.name for file in old.iterdir()] == ["trial.log"]
    assert (old / "trial.log").read_text() == "precious"


def warmed(setup: Setup) -> tuple[StudyStatus, list[tuple[str, ...]]]:
    """A sitting of the study "again", which takes over what "stubs" knows."""
    with scripted(setup) as (owner, executor):
        storage = owner.study._storage
        space = owner.space
        warm_start(
            owner.study,
            storage,
            STUDY,
            owner.objectives,
            owner.limits,
            space.params_of,
            space.suggest,
        )
        return owner.run(), [tuple(task.payload["cell"]) for task in executor.submitted]


@pytest.mark.parametrize("n_trials", [None, 6])
def test_cells_known_from_another_study_are_not_run_again(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, n_trials: int | None
) -> None:
    run(replace(setup, sweep=("a=1,2", "b=4,5")))
    monkeypatch.setattr(harness, "STUDY", "again")
    wider = replace(setup, n_trials=n_trials)
    standing, started = warmed(wider)
    assert sorted(started) == CELLS[4:]
    assert (standing.counted, standing.total) == (2, 2)
    assert warmed(wider)[1] == []


def test_cells_that_both_studies_ran_do_not_keep_others_from_being_run(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study that has run two cells itself takes over the same two: four are still to be run."""
    run(replace(setup, exclude=["a=2", "a=3"]))
    monkeypatch.setattr(harness, "STUDY", "again")

    def answer(task: Task) -> tuple[TrialOutcome | None, int]:
        if task.number == 2:
            raise KeyboardInterrupt
        return complete(task)

    with pytest.raises(KeyboardInterrupt):
        run(setup, answer)
    standing, started = warmed(setup)
    assert sorted(started) == CELLS[2:]
    assert standing.counted == standing.total


def test_trials_under_other_settings_are_not_taken_over(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(replace(setup, sweep=(*GRID, "c=1")))
    monkeypatch.setattr(harness, "STUDY", "again")
    with pytest.raises(
        UserError,
        match=r"hydra.sweeper.warm_start: stubs was trained with other settings \(c=1, c=2\)",
    ):
        warmed(replace(setup, sweep=(*GRID, "c=2")))


WAYS = {
    "error": ("error", "ValueError: trial"),
    "exit": ("error", "status 3"),
    "kill": ("killed", "SIGKILL"),
    "hang": ("time_limit", "time_limit_s"),
    "memory": ("out_of_memory", "none left"),
    "nan": ("diverged", "best/val/balanced_accuracy is nan"),
    "missing": ("wrong_return", "no best/val/balanced_accuracy"),
    "text": ("wrong_return", "'done'"),
    "well": ("", ""),
}
LAST_LINES = {
    way: f"way={way}" for way in ("kill", "hang", "exit")
}  # they had no chance to say more


def test_every_way_to_fail_in_real_processes_is_a_row_in_both_stores(setup: Setup) -> None:
    """Four processes at a time; one of them outlives its limit, which the others keep."""
    real = replace(
        setup, sweep=(f"way={','.join(WAYS)}", "a=7"), n_jobs=4, time_limit_s=15, grace_s=2
    )
    events = []
    with opened(real, show=lambda standing: events.extend(standing.take_events())) as owner:
        standing = owner.run()
    assert standing.counts == {"complete": 1, "pruned": 0, "over_limit": 0, "fail": len(WAYS) - 1}
    assert sorted(event.number for event in events) == list(range(len(WAYS)))
    runs = runs_of(setup)
    for trial in trials_of(setup):
        way = trial.params["way"]
        outcome, recorded = trial.user_attrs["outcome"], runs[trial.number]
        kind, reason = WAYS[way]
        assert outcome["kind"] == kind, way
        assert reason in outcome["reason"], way
        assert recorded.info.run_id == trial.user_attrs["run_id"]
        if way == "well":
            assert (trial.value, recorded.data.metrics[stubs.ACCURACY]) == (0.007, 0.007)
            assert (recorded.info.status, recorded.data.tags["trial_state"]) == (
                "FINISHED",
                "complete",
            )
            continue
        assert trial.state is TrialState.FAIL
        assert recorded.info.status in ("FAILED", "KILLED"), way
        tags = recorded.data.tags
        assert (tags["trial_state"], tags["failure_kind"]) == ("fail", kind), way
        assert LAST_LINES.get(way, reason) in tags["log_tail"], way
