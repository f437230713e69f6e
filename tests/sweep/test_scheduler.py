"""The scheduler: asking and telling, failed trials, proposals, runs in MLflow."""

import itertools
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from benchmarks.sweep import faults, stubs
from benchmarks.sweep.harness import Answer, ScriptedExecutor, Setup, open_study, opened
from src.core.errors import UserError
from src.sweep import study as studies
from src.sweep.records import (
    BEGUN,
    CELL,
    OUTCOME,
    AllFailAlikeError,
    EndedTask,
    Kind,
    StudyStatus,
    Task,
    TrialOutcome,
)
from src.sweep.scheduler import (
    MAX_DRAWS,
    Overrides,
    Scheduler,
    StudyRecorder,
    TrialProposals,
    cell_of,
    log_tail,
)
from src.tracking import store as tracking
from src.tracking.run import Run
from src.tracking.store import Store

GRID = ("a=1,2,3", "b=4,5")
CELLS = [(f"a={a}", f"b={b}") for a, b in itertools.product((1, 2, 3), (4, 5))]
COMPLETE, FAIL, PRUNED = TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED
Result = tuple[TrialOutcome | None, int] | None
pytestmark = pytest.mark.usefixtures("own_fork_server")


class FakeRecorder:
    """In place of MLflow: the last outcome with which each trial's run was settled."""

    def __init__(self) -> None:
        self.settled: dict[int, TrialOutcome] = {}

    def settle(self, trial: FrozenTrial, outcome: TrialOutcome, tail: str) -> None:
        self.settled[trial.number] = outcome

    def catch_up(self) -> None:
        pass


@dataclass(frozen=True)
class FastSetup(Setup):
    """A study in memory, without MLflow."""

    name: str = "stubs"
    memory: InMemoryStorage = field(default_factory=InMemoryStorage)
    recorder: Any = field(default_factory=FakeRecorder)
    executor: type[ScriptedExecutor] = ScriptedExecutor

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.memory.get_all_trials(self.memory.get_study_id_from_name(self.name))

    @property
    def states(self) -> Counter[TrialState]:
        return Counter(trial.state for trial in self.trials)

    @property
    def kinds(self) -> list[str]:
        return [trial.system_attrs[OUTCOME]["kind"] for trial in self.trials]

    @property
    def completed(self) -> Counter[Overrides]:
        """Cells of the complete trials that are no copies."""
        trials = [trial for trial in self.trials if "same_as" not in trial.user_attrs]
        return Counter(cell_of(trial) for trial in trials if trial.state is COMPLETE)


@pytest.fixture
def setup(tmp_path: Path) -> FastSetup:
    return FastSetup(tmp_path, GRID)


@contextmanager
def scripted(
    setup: FastSetup, answer: Answer | None = None, n_jobs: int = 1
) -> Iterator[tuple[Scheduler, ScriptedExecutor]]:
    """A session of the study; nothing is left open, so that sessions follow each other."""
    study, fixed = open_study(setup, setup.memory, setup.name)
    executor = setup.executor(setup.memory, answer or complete, n_jobs)
    scheduler = Scheduler(
        study=study,
        storage="memory",
        executor=executor,
        policy=setup,
        is_grid=setup.n_trials is None,
        recorder=setup.recorder,
        folder=setup.folder / "trials",
        body="",
        payload={"overrides": fixed},
        show=lambda status: None,
    )
    yield scheduler, executor


def run(
    setup: FastSetup, answer: Answer | None = None, n_jobs: int = 1
) -> tuple[StudyStatus, list[Overrides]]:
    """The status afterwards, and the cells that were started, in order."""
    with scripted(setup, answer, n_jobs) as (scheduler, executor):
        return scheduler.run(), [tuple(task.payload["cell"]) for task in executor.submitted]


def complete(task: Task) -> Result:
    return TrialOutcome("complete", metrics=stubs.expected(task.payload["cell"])), 0


def failing(kind: Kind, *reasons: str) -> Callable[[Task], Result]:
    """Every trial fails; the reasons alternate."""
    return lambda task: (TrialOutcome("fail", kind, reasons[task.number % len(reasons)]), 1)


# Which cells run


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_a_grid_runs_every_cell_once_in_order(setup: FastSetup, n_jobs: int) -> None:
    status, started = run(setup, n_jobs=n_jobs)
    assert started == CELLS
    assert (status.counted, status.total) == (6, 6)
    assert [trial.value for trial in setup.trials] == [0.014, 0.015, 0.024, 0.025, 0.034, 0.035]
    assert status.best == (5, [0.035])
    status, started = run(setup)  # again
    assert (started, status.counts["complete"]) == ([], 6)
    assert setup.states == {COMPLETE: 6}


def test_n_trials_is_the_total_over_sessions(setup: FastSetup) -> None:
    drawn = replace(setup, sweep=("a=interval(0.0,1.0)",), n_trials=4)
    assert len(run(drawn)[1]) == 4
    sampler = optuna.samplers.RandomSampler(seed=1)
    status, started = run(replace(drawn, n_trials=7, sampler=sampler))
    assert len(started) == 3
    assert status.counted == len(setup.trials) == 7
    assert run(replace(drawn, n_trials=5))[1] == []


def test_excluded_cells_are_not_run_and_belong_to_the_definition(setup: FastSetup) -> None:
    assert run(replace(setup, exclude=["a=2"]))[1] == [cell for cell in CELLS if cell[0] != "a=2"]
    with pytest.raises(UserError, match="newly excluded: b=5"):
        run(replace(setup, exclude=["a=2", "b=5"]))


def test_a_sampler_that_repeats_cells_runs_each_cell_once(setup: FastSetup) -> None:
    status, started = run(replace(setup, exclude=["a=2"], n_trials=100))
    assert Counter(started) == {cell: 1 for cell in CELLS if cell[0] != "a=2"}
    trials = setup.trials
    assert status.counted == studies.counted(trials) == 4
    for trial in trials:
        if "excluded" in trial.user_attrs:
            assert (trial.state, cell_of(trial)[0]) == (PRUNED, "a=2")
        elif "same_as" in trial.user_attrs:
            original = trials[trial.user_attrs["same_as"]]
            assert (trial.values, cell_of(trial)) == (original.values, cell_of(original))
    assert run(replace(setup, exclude=["a=2"], n_trials=100))[1] == []


def test_the_next_trial_is_asked_when_one_ends(setup: FastSetup) -> None:
    """The first trial runs until all others have ended: nobody waits for it."""
    ended: list[int] = []

    def answer(task: Task) -> Result:
        if task.number == 0 and len(ended) < 5:
            return None
        ended.append(task.number)
        return complete(task)

    run(setup, answer, n_jobs=2)
    assert ended == [1, 2, 3, 4, 5, 0]


# How outcomes are told


@pytest.mark.parametrize("learns_from_pruned", [True, False])
def test_a_trial_over_a_limit_is_told_with_its_violation(
    setup: FastSetup, learns_from_pruned: bool
) -> None:
    def answer(task: Task) -> Result:
        if task.payload["cell"][0] == "a=3":
            return TrialOutcome("over_limit", reason="too dear", metrics={stubs.FLOPS: 3e6}), 0
        return TrialOutcome("complete", metrics={stubs.ACCURACY: 0.5, stubs.FLOPS: 1e6}), 0

    limits = ["efficiency/flops <= 2e6"]
    limited = replace(setup, limits=limits, n_objectives=2, learns_from_pruned=learns_from_pruned)
    status, _ = run(limited, answer)
    assert status.counts == {"complete": 4, "pruned": 0, "over_limit": 2, "fail": 0}
    assert status.counted == 6
    for trial in setup.trials:
        over = cell_of(trial)[0] == "a=3"
        violation = trial.constraints["efficiency/flops <= 2e+06"]
        assert violation == pytest.approx(0.5 if over else -0.5)  # 3e6 is half of 2e6 too much
        if over:
            assert trial.state is (PRUNED if learns_from_pruned else COMPLETE)
            # The worst accuracy seen, and the real cost.
            assert trial.values == (None if learns_from_pruned else [0.5, 3e6])


def test_every_outcome_counts_and_an_impossible_one_is_a_failure(setup: FastSetup) -> None:
    outcomes = [
        (TrialOutcome("pruned", reason="behind", epoch=2), 0),
        (TrialOutcome("complete", metrics={}), 0),
        (TrialOutcome("complete", metrics={stubs.ACCURACY: float("nan")}), 0),
        (TrialOutcome("fail", "error", "ValueError: no"), 1),
    ]
    status, _ = run(setup, lambda task: [*outcomes, complete(task), complete(task)][task.number])
    assert setup.kinds == ["", "wrong_return", "diverged", "error", "", ""]
    assert status.counts == {"complete": 2, "pruned": 1, "over_limit": 0, "fail": 3}
    assert status.counted == 6
    assert setup.states == {PRUNED: 1, FAIL: 3, COMPLETE: 2}
    assert [event.outcome.kind for event in status.take_events()] == setup.kinds
    assert list(setup.recorder.settled) == [1, 2, 3]  # the others closed their runs themselves


# Retries


@pytest.mark.parametrize(("retries", "tries"), [(0, 1), (2, 3)])
def test_only_some_kinds_of_failures_are_retried(
    setup: FastSetup, retries: int, tries: int
) -> None:
    """One cell is always killed, one always fails by an error: only the first is retried."""

    def answer(task: Task) -> Result:
        if task.payload["cell"] == ["a=2", "b=4"]:
            return None, -9
        if task.payload["cell"] == ["a=3", "b=4"]:
            return TrialOutcome("fail", "error", "ValueError: no"), 1
        return complete(task)

    status, started = run(replace(setup, retries=retries), answer)
    assert Counter(started) == {**dict.fromkeys(CELLS, 1), ("a=2", "b=4"): tries}
    assert (status.counted, status.counts["fail"]) == (6, 2)
    killed = [trial for trial in setup.trials if cell_of(trial) == ("a=2", "b=4")]
    attributes = [trial.user_attrs for trial in killed]
    assert [each.get("attempt", 0) for each in attributes] == list(range(tries))
    numbers = [None, *(trial.number for trial in killed[:-1])]
    assert [each.get("retry_of") for each in attributes] == numbers
    reasons = {each["reason"] for each in attributes}
    assert reasons == {"killed by signal 9 (SIGKILL)"}
    assert studies.counted(setup.trials) == 6


def test_a_training_state_is_kept_as_long_as_a_retry_may_use_it(setup: FastSetup) -> None:
    """Two failures, then complete; killed for good; failed; pruned: each leaves a state."""
    present: dict[int, list[str]] = {}
    script: dict[Overrides, list[Result]] = {
        CELLS[0]: [(TrialOutcome("fail", "out_of_memory", "no memory"), 1), (None, -9)],
        CELLS[1]: [(None, -9)] * 3,
        CELLS[2]: [(TrialOutcome("fail", "error", "ValueError: no"), 1)],
        CELLS[3]: [(TrialOutcome("pruned", "", "behind"), 0)],
    }

    def folders() -> list[str]:
        return sorted(file.parent.parent.name for file in setup.folder.rglob("last.ckpt"))

    def answer(task: Task) -> Result:
        present[task.number] = folders()
        state = Path(task.folder) / "checkpoint" / "last.ckpt"
        state.parent.mkdir(parents=True)
        state.touch()
        rest = script.get(tuple(task.payload["cell"]))
        return rest.pop(0) if rest else complete(task)

    status, started = run(replace(setup, retries=2), answer)
    assert started[:3] == [CELLS[0]] * 3
    assert (status.counts["complete"], status.put_back) == (3, 4)
    assert [present[number] for number in (1, 2)] == [["0000"], ["0000", "0001"]]
    assert present[3] == []  # the third try of the first cell was complete
    assert status.counts["fail"] == 2
    # Killed for good: retry_failed=true may continue from there.
    assert folders() == ["0003", "0004", "0005"]
    run(replace(setup, retry_failed=True), answer)
    assert folders() == []


def test_equal_failures_end_the_sweep_and_failed_trials_run_again_only_on_demand(
    setup: FastSetup,
) -> None:
    status, _ = run(setup, failing("error", "a", "b"))  # different failures do not end the sweep
    assert status.counts["fail"] == 6
    assert run(setup)[1] == []
    equal = failing(
        "bad_config", *(f"model.net.width: must be at most 8, not {n}" for n in (9, 10))
    )
    alike = replace(setup, name="alike")
    with pytest.raises(AllFailAlikeError, match="first 3 trials .*model.net.width: must be at"):
        run(alike, equal)
    assert alike.states == {FAIL: 3}
    for study in (setup, alike):
        status, started = run(replace(study, retry_failed=True))
        assert sorted(started) == CELLS
        assert (status.counted, status.counts["fail"]) == (6, 0)


def test_a_failure_that_a_stopped_scheduler_did_not_record_is_run_again_on_demand(
    setup: FastSetup,
) -> None:
    study, _ = open_study(setup, setup.memory, setup.name)
    proposal = TrialProposals(study, True).next(())
    assert proposal is not None
    trial = proposal[0]
    trial.set_user_attr("folder", str(setup.folder / "trials" / "0000"))
    outcome = asdict(TrialOutcome("fail", "error", "the disk is full"))
    setup.memory.set_trial_system_attr(trial._trial_id, OUTCOME, outcome)
    status, started = run(replace(setup, retry_failed=True))
    assert sorted(started) == CELLS
    assert (status.counted, status.counts["complete"]) == (6, 6)


class AtOnceExecutor(ScriptedExecutor):
    """Reports all that have ended together."""

    def _gone(self) -> list[EndedTask]:
        ended: list[EndedTask] = []
        while one := super()._gone():
            ended += one
            self._running.pop(one[0].task.slot.number)
        return ended


def test_trials_that_end_together_are_all_settled_before_the_sweep_ends(setup: FastSetup) -> None:
    with pytest.raises(AllFailAlikeError, match="first 4 trials"):
        run(replace(setup, executor=AtOnceExecutor), failing("error", "ValueError: no"), n_jobs=4)
    assert setup.states == {FAIL: 4}
    settled = [outcome.kind for outcome in setup.recorder.settled.values()]
    assert setup.kinds == settled == ["error"] * 4


def test_a_full_disk_ends_the_study_and_its_trial_runs_again(setup: FastSetup) -> None:
    def answer(task: Task) -> Result:
        if task.number == 1:
            return TrialOutcome("fail", "full_disk", "the disk is full: make space"), 1
        return complete(task) if task.number < 1 else None

    with pytest.raises(UserError, match=r"after trial 1: the disk is full: make space$"):
        run(setup, answer, n_jobs=2)
    assert setup.states == {COMPLETE: 1, FAIL: 2, TrialState.WAITING: 2}
    status, started = run(setup)
    assert started[:2] == CELLS[1:3]
    assert (status.counted, status.counts["fail"]) == (6, 0)
    assert setup.completed == dict.fromkeys(CELLS, 1)


def test_a_clock_that_is_set_back_makes_no_duration_negative(
    setup: FastSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = itertools.count(2e9, -3600)  # an hour back at each look
    monkeypatch.setattr(time, "time", lambda: next(moments))
    status, started = run(setup)
    assert started == CELLS
    assert len(status.durations) == 6
    assert min(status.durations) >= 0


# Interrupted sessions


def test_after_ctrl_c_the_running_trials_are_recorded_and_run_later(setup: FastSetup) -> None:
    def answer(task: Task) -> Result:
        if task.number < 2:
            return complete(task)
        if task.number == 4:
            raise KeyboardInterrupt
        return None  # 2 and 3 go on

    with scripted(setup, answer, n_jobs=3) as (scheduler, executor):
        with pytest.raises(KeyboardInterrupt):
            scheduler.run()
        assert scheduler.status.running == []  # nor does the last drawing of the terminal
    stopped = [trial for trial in setup.trials if trial.state is FAIL]
    assert [cell_of(trial) for trial in stopped] == CELLS[2:5]
    assert {trial.system_attrs[OUTCOME]["kind"] for trial in stopped} == {"stopped"}
    assert [outcome.kind for outcome in setup.recorder.settled.values()] == ["stopped"] * 3
    assert studies.counted(setup.trials) == 2
    with scripted(setup, n_jobs=3) as (scheduler, executor):
        status = scheduler.run()
    payloads = [task.payload for task in executor.submitted]
    continued = {tuple(payload["cell"]): payload["continues"] for payload in payloads}
    folders = [[str(setup.folder / "trials" / f"{number:04d}")] for number in (2, 3, 4)]
    assert continued == {**dict(zip(CELLS[2:5], folders, strict=True)), CELLS[5]: []}
    assert (status.counted, status.counts["fail"]) == (6, 0)
    assert setup.completed == dict.fromkeys(CELLS, 1)


class InterruptedExecutor(ScriptedExecutor):
    """The user presses Ctrl+C while the third trial is started, which takes seconds at first."""

    def _start(self, task: Task) -> Task:
        if task.number == 2:
            signal.raise_signal(signal.SIGINT)
        return super()._start(task)


def test_ctrl_c_while_a_trial_is_started_does_not_lose_it(setup: FastSetup) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(replace(setup, executor=InterruptedExecutor), lambda task: None, n_jobs=3)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    stopped = [trial for trial in setup.trials if trial.state is FAIL]
    assert [cell_of(trial) for trial in stopped] == CELLS[:3]
    assert [outcome.kind for outcome in setup.recorder.settled.values()] == ["stopped"] * 3
    run(setup)
    assert setup.completed == dict.fromkeys(CELLS, 1)


@pytest.mark.parametrize("committed", [set(), {1}, {0, 1, 2, 3}])
def test_trials_of_a_killed_scheduler_count_if_committed_and_run_again_if_not(
    setup: FastSetup, committed: set[int]
) -> None:
    """Also if it was killed before any trial had ended: that is no common failure."""
    with scripted(setup, n_jobs=4) as (scheduler, executor):
        scheduler._resume()
        while scheduler._start_next() and len(executor.submitted) < 4:
            pass
        for task in executor.submitted:
            if task.number in committed:
                outcome = TrialOutcome("complete", metrics=stubs.expected(task.payload["cell"]))
                setup.memory.set_trial_system_attr(task.trial_id, OUTCOME, vars(outcome))
    status, started = run(setup, n_jobs=2)
    expected = {cell: 1 for number, cell in enumerate(CELLS) if number not in committed}
    assert Counter(started) == expected
    assert (status.counted, status.counts["fail"]) == (6, 0)
    assert setup.states[COMPLETE] == 6
    assert setup.states[TrialState.RUNNING] == setup.states[TrialState.WAITING] == 0


class SchedulerKilledError(BaseException):
    """Stands for kill -9 of the scheduler: nothing is closed."""


@pytest.mark.parametrize("late", ["complete", "fail", "none"])
def test_a_scheduler_killed_after_it_enqueued_a_retry_does_not_enqueue_it_twice(
    setup: FastSetup, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """The retry is enqueued; the trial still counts as running and its process may commit."""

    def die(*arguments: Any) -> None:
        raise SchedulerKilledError

    setup = replace(setup, retries=3)
    with scripted(setup, lambda task: (None, -9)) as (scheduler, executor):
        with monkeypatch.context() as patch:
            patch.setattr(studies, "tell", die)
            patch.setattr(scheduler, "_stop_all", lambda: None)
            with pytest.raises(SchedulerKilledError):
                scheduler.run()
        if late != "none":
            outcome = TrialOutcome(late, "killed", metrics=stubs.expected(CELLS[0]))  # type: ignore[arg-type]
            trial_id = executor.submitted[0].trial_id
            setup.memory.set_trial_system_attr(trial_id, OUTCOME, vars(outcome))
    assert setup.states == {TrialState.RUNNING: 1, TrialState.WAITING: 1}
    status, started = run(setup)
    assert Counter(started) == {cell: 1 for cell in CELLS if late != "complete" or cell != CELLS[0]}
    assert (status.counted, status.counts["fail"]) == (6, 0)
    assert studies.counted(setup.trials) == 6
    assert setup.completed == dict.fromkeys(CELLS, 1)


@pytest.mark.parametrize("late", [False, True])
def test_a_committed_trial_is_complete_though_its_process_was_killed(
    setup: FastSetup, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """`late`: the outcome arrives after the scheduler has looked for it."""
    finish = Scheduler._finish

    def commit_then_finish(self: Scheduler, trial: FrozenTrial, *rest: Any) -> None:
        outcome = TrialOutcome("complete", metrics=stubs.expected(trial.system_attrs[CELL]))
        self.study._storage.set_trial_system_attr(trial._trial_id, OUTCOME, vars(outcome))
        finish(self, trial, *rest)

    if late:
        monkeypatch.setattr(Scheduler, "_finish", commit_then_finish)
    killed = lambda task: (None if late else complete(task)[0], -9)  # noqa: E731
    status, started = run(replace(setup, retries=3), killed, n_jobs=2)
    assert started == CELLS
    assert status.counts == {"complete": 6, "pruned": 0, "over_limit": 0, "fail": 0}
    assert {outcome.state for outcome in setup.recorder.settled.values()} == {"complete"}


def test_a_lost_lock_ends_the_session(setup: FastSetup) -> None:
    with scripted(setup) as (scheduler, _):
        scheduler.is_owner = lambda: False
        with pytest.raises(UserError, match="lock was lost; the same command continues"):
            scheduler.run()


def test_the_folder_of_an_earlier_study_is_not_written_into(setup: FastSetup) -> None:
    old = setup.folder / "trials" / "0000"
    old.mkdir(parents=True)
    with scripted(setup) as (scheduler, executor):
        scheduler.run()
    folders = [Path(task.folder).name for task in executor.submitted]
    assert folders == ["0000-2", *(f"{number:04d}" for number in range(1, 6))]
    assert setup.trials[0].user_attrs["folder"] == str(old.with_name("0000-2"))


# Time limits


class QueueingExecutor(ScriptedExecutor):
    queues = True


@pytest.mark.parametrize("begins", [False, True])
def test_waiting_in_an_engines_queue_is_no_running_time(setup: FastSetup, begins: bool) -> None:
    """A trial waits for many times its limit; if it then begins and goes on, the limit holds."""
    looks = iter(range(20))  # 10 ms apart: 0.2 s in the queue

    def answer(task: Task) -> Result:
        if next(looks, None) is not None:
            return None
        if not begins:
            return complete(task)
        setup.memory.set_trial_system_attr(task.trial_id, BEGUN, 1.0)
        return None

    queued = replace(setup, sweep=("a=1",), time_limit_s=0.05, executor=QueueingExecutor)
    status, _ = run(queued, answer)
    assert setup.kinds == ["time_limit" if begins else ""]
    assert status.counts["fail"] == begins
    if begins:
        assert "time_limit_s=0.05" in setup.trials[0].system_attrs[OUTCOME]["reason"]
        assert setup.recorder.settled[0].kind == "time_limit"


# Warm start


def warm(setup: FastSetup) -> tuple[StudyStatus, list[Overrides]]:
    """A session of the study "again", which starts from "stubs"."""
    with scripted(replace(setup, name="again")) as (scheduler, executor):
        studies.warm_start(scheduler.study, "stubs")
        return scheduler.run(), [tuple(task.payload["cell"]) for task in executor.submitted]


@pytest.mark.parametrize("n_trials", [None, 6])
def test_cells_of_another_study_are_not_run_again(setup: FastSetup, n_trials: int | None) -> None:
    run(replace(setup, sweep=("a=1,2", "b=4,5")))
    status, started = warm(replace(setup, n_trials=n_trials))
    assert sorted(started) == CELLS[4:]
    assert (status.counted, status.total) == (2, 2)
    assert warm(replace(setup, n_trials=n_trials))[1] == []


def test_cells_that_both_studies_ran_count_once(setup: FastSetup) -> None:
    """A study that has run two cells itself starts from the same two: four are still to be run."""
    run(replace(setup, exclude=["a=2", "a=3"]))

    def answer(task: Task) -> Result:
        if task.number == 2:
            raise KeyboardInterrupt
        return complete(task)

    with pytest.raises(KeyboardInterrupt):
        run(replace(setup, name="again"), answer)
    status, started = warm(setup)
    assert sorted(started) == CELLS[2:]
    assert status.counted == status.total


# Proposals


def propose(
    seed: int = 0, exclude: tuple[str, ...] = (), sweep: tuple[str, ...] = GRID
) -> TrialProposals:
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=2)
    setup = Setup(Path(), sweep, exclude, sampler=sampler)
    return TrialProposals(open_study(setup, InMemoryStorage())[0], False)


def run_all(proposals: TrialProposals) -> list[Overrides]:
    """Run all proposals one by one."""
    cells = []
    while (proposal := proposals.next(())) is not None:
        cells.append(proposal[1].overrides)
        proposals.add(proposals.study.tell(proposal[0], 1.0))
    return cells


@pytest.mark.parametrize("seed", range(3))
def test_each_cell_is_proposed_once_while_all_others_run(seed: int) -> None:
    proposals, running = propose(seed), set[Overrides]()
    for _ in CELLS:
        proposal = proposals.next(running)
        assert proposal is not None
        assert proposal[1].overrides not in running
        running.add(proposal[1].overrides)
    assert running == set(CELLS)
    assert proposals.next(running) is None
    left_out = [trial for trial in proposals.study.trials if "excluded" in trial.user_attrs]
    assert {trial.state for trial in left_out} == {PRUNED}


@pytest.mark.parametrize("seed", range(3))
def test_a_failed_cell_is_proposed_again_only_as_its_enqueued_retry(seed: int) -> None:
    proposals = propose(seed)
    proposal = proposals.next(())
    assert proposal is not None
    failed, cell = proposal
    proposals.add(proposals.study.tell(failed, state=FAIL))
    assert sorted(run_all(proposals)) == sorted(set(CELLS) - {cell.overrides})
    proposals.enqueue(cell.params, {CELL: list(cell.overrides)}, retry_of=failed.number)
    assert run_all(proposals) == [cell.overrides]


def test_an_uncountable_space_of_excluded_draws_ends_with_a_way_out() -> None:
    proposals = propose(sweep=("a=1,2", "lr=interval(0.0,1.0)"), exclude=("a=1", "a=2"))
    with pytest.raises(UserError, match=f"hydra.sweeper.exclude: {MAX_DRAWS} draws in a row"):
        proposals.next(())


# Runs in a real MLflow store


@pytest.fixture
def real(empty_database: Path, tmp_path: Path) -> Setup:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Setup(tmp_path, GRID)


@pytest.fixture
def recorder(real: Setup) -> StudyRecorder:
    return StudyRecorder(real.store.open(), "s")


def runs_of(store: Store) -> dict[int, Any]:
    """The runs of the trials, by number; a trial with two of them fails the test."""
    runs = [run for run in store.search("attributes.status != ''") if "trial" in run.data.tags]
    by_number = {int(run.data.tags["trial"]): run for run in runs}
    assert len(by_number) == len(runs)
    return by_number


def close(
    recorder: StudyRecorder, number: int, run_id: str | None, outcome: TrialOutcome, tail: str = ""
) -> None:
    cell = {CELL: ["a=1", "b=2"]}
    trial = optuna.trial.create_trial(state=FAIL, system_attrs=cell, user_attrs={"run_id": run_id})
    trial.number = number
    recorder.close_run(trial, outcome, tail)


def test_a_trial_without_a_run_gets_exactly_one(recorder: StudyRecorder) -> None:
    outcome = TrialOutcome("fail", "killed", "killed by signal 9 (SIGKILL)")
    for _ in range(2):
        close(recorder, 3, None, outcome, "last words")
    (run,) = runs_of(recorder.store).values()
    assert run.info.status == "FAILED"
    expected = {
        "failure": outcome.reason,
        "failure_kind": "killed",
        "log_tail": "last words",
        "trial": "3",
        "overrides": "a=1 b=2",
        "trial_state": "fail",
    }
    assert {name: run.data.tags[name] for name in expected} == expected


@pytest.mark.parametrize("is_reaped", [False, True])
def test_a_run_that_a_server_creates_late_is_deleted(
    recorder: StudyRecorder, is_reaped: bool
) -> None:
    close(recorder, 3, None, TrialOutcome("fail", "killed", "killed by signal 9 (SIGKILL)"))
    for number in (3, 4):
        late = Run.start(recorder.store, "net", {"trial": number}, parent_id=recorder.parent.id)
        if is_reaped:  # by the next owner
            tracking.close(recorder.store, late.id, "fail", tracking.VANISHED)
    recorder.catch_up()
    runs = runs_of(recorder.store)
    assert sorted(runs) == [3, 4]  # the only run of a trial stays
    assert runs[3].data.tags["failure_kind"] == "killed"


@pytest.mark.parametrize(
    ("outcome", "status", "failure"),
    [
        # The trial knew nothing of the limit when it was terminated.
        (TrialOutcome("fail", "time_limit", "took too long"), "KILLED", "took too long"),
        (TrialOutcome("complete"), "FINISHED", None),
        (TrialOutcome("fail", "stopped", "the sweep was stopped"), "FINISHED", None),
    ],
)
def test_a_run_gets_the_schedulers_outcome_whatever_its_trial_left(
    recorder: StudyRecorder, outcome: TrialOutcome, status: str, failure: str | None
) -> None:
    tags = {"kind": "run", "study": "s", "trial": 0}
    run = Run.start(recorder.store, "net", tags, parent_id=recorder.parent.id)
    with pytest.raises(SystemExit), run:
        raise SystemExit(143)
    assert recorder.store.client.get_run(run.id).info.status == "KILLED"
    close(recorder, 0, run.id, outcome)
    closed = recorder.store.client.get_run(run.id)
    assert (closed.info.status, closed.data.tags.get("failure")) == (status, failure)
    state = "put_back" if outcome.kind == "stopped" else outcome.state
    assert closed.data.tags["trial_state"] == state
    if state == "put_back":
        assert closed.data.tags["ended_early"] == outcome.reason
        assert "failure_kind" not in closed.data.tags


@pytest.mark.parametrize(
    ("kind", "status", "state"), [("killed", "FAILED", "fail"), ("stopped", "FINISHED", "put_back")]
)
def test_a_seed_that_has_not_ended_ends_with_its_trial(
    recorder: StudyRecorder, kind: Kind, status: str, state: str
) -> None:
    """The run of a killed one still seems to run, that of a stopped one is KILLED."""
    trial = Run.start(recorder.store, "net", {"trial": 0}, parent_id=recorder.parent.id)
    done, seed = (Run.start(recorder.store, f"{n}", parent_id=trial.id) for n in range(2))
    with done:
        pass
    if kind == "stopped":
        with pytest.raises(SystemExit), trial, seed:
            raise SystemExit(143)
    close(recorder, 0, trial.id, TrialOutcome("fail", kind, "gone"))
    runs = [recorder.store.client.get_run(run.id) for run in (trial, done, seed)]
    assert [run.info.status for run in runs] == [status, "FINISHED", status]
    assert [run.data.tags["trial_state"] for run in runs] == [state, "complete", state]


def test_a_study_goes_on_while_mlflow_does_not_answer(
    setup: FastSetup, recorder: StudyRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = iter([True, True])
    close_run = recorder.close_run

    def unsteady(*arguments: Any) -> None:
        if next(away, False):
            raise ConnectionError("nobody answers")
        close_run(*arguments)

    monkeypatch.setattr(recorder, "close_run", unsteady)
    reasons = ("ValueError: a", "ValueError: b")
    status, started = run(replace(setup, recorder=recorder), failing("error", *reasons))
    assert (started, status.counts["fail"]) == (CELLS, 6)
    runs = runs_of(recorder.store)
    tags = [runs[number].data.tags for number in range(6)]
    assert [tag["failure"] for tag in tags] == [*reasons] * 3
    assert [tag["overrides"] for tag in tags] == list(map(" ".join, CELLS))


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    assert log_tail(tmp_path) == ""
    lines = b"\n".join(b"%d \n" % number for number in range(20))
    (tmp_path / "trial.log").write_bytes(b"x" * 50_000 + b"\n" + lines + b"\xff\n")
    assert log_tail(tmp_path, lines=3) == "18\n19\n\N{REPLACEMENT CHARACTER}"
    crash = """Fatal Python error: Bus error

Thread 0x00007f648d9fe6c0 (most recent call first):
  File "/a/threading.py", line 982 in run

Current thread 0x00007f6496095b80 (most recent call first):
  File "/a/net.py", line 519 in forward

Extension modules: numpy.linalg._umath_linalg, torch._C (total: 2)
"""
    (tmp_path / "trial.log").write_text(f"epoch 1\n{crash}")
    end = f"its stack is in {tmp_path / 'trial.log'}"
    assert log_tail(tmp_path) == f"epoch 1\nFatal Python error: Bus error\n{end}"


# Real processes


WAYS = {
    "error": ("error", "ValueError: trial"),
    "exit": ("error", "status 3"),
    "kill": ("killed", "SIGKILL"),
    "crash": ("killed", "SIGSEGV"),
    "hang": ("time_limit", "time_limit_s"),
    "memory": ("out_of_memory", "none left"),
    "nan": ("diverged", "best/val/balanced_accuracy is nan"),
    "missing": ("wrong_return", "no best/val/balanced_accuracy"),
    "text": ("wrong_return", "'done'"),
    "well": ("", ""),
}
LAST_LINES = {way: f"way={way}" for way in ("kill", "hang", "exit")}  # they could not say more
LAST_LINES["crash"] = "Fatal Python error: Segmentation fault\nits stack is in "


def test_every_way_to_fail_in_real_processes_is_recorded_in_both_stores(real: Setup) -> None:
    """Four processes at a time; one of them exceeds the time limit."""
    sweep = (f"way={','.join(WAYS)}", "a=7")
    events = []
    with opened(
        replace(real, sweep=sweep, n_jobs=4, time_limit_s=8, grace_s=2),
        show=lambda status: events.extend(status.take_events()),
    ) as scheduler:
        status = scheduler.run()
        trials = scheduler.study.trials
    assert status.counts == {"complete": 1, "pruned": 0, "over_limit": 0, "fail": len(WAYS) - 1}
    assert sorted(event.number for event in events) == list(range(len(WAYS)))
    runs = runs_of(real.store)
    for trial in trials:
        way, outcome = trial.params["way"], trial.system_attrs[OUTCOME]
        run, tags = runs[trial.number], runs[trial.number].data.tags
        kind, reason = WAYS[way]
        assert outcome["kind"] == kind, way
        assert reason in outcome["reason"], way
        assert run.info.run_id == trial.user_attrs["run_id"]
        if way == "well":
            assert (trial.value, run.data.metrics[stubs.ACCURACY]) == (0.007, 0.007)
            assert (run.info.status, tags["trial_state"]) == ("FINISHED", "complete")
            continue
        assert trial.state is FAIL
        assert run.info.status in ("FAILED", "KILLED"), way
        assert (tags["trial_state"], tags["failure_kind"]) == ("fail", kind), way
        assert LAST_LINES.get(way, reason) in tags["log_tail"], way


def test_a_study_whose_processes_are_killed_ends_with_every_cell_once(
    tmp_path: Path, empty_database: Path
) -> None:
    """The small version of `python -m benchmarks.sweep.faults`: trials and the owner are killed."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    sweep = ("a=range(3)", "b=range(3)")
    chaos = faults.Chaos(tmp_path, sweep, 3, share=0.3, owner_kills=1, seconds=0.15)
    killer = faults.torment(chaos)
    assert killer.owners == 1
    assert killer.killed > 0
    assert faults.problems(chaos) == []
