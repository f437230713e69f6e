"""Counts, front, remaining time, and what all failures have in common."""

from collections.abc import Sequence

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from src.metrics.registry import PRIMARY, parse_limits, parse_objectives
from src.sweep import records
from src.sweep.records import CELL, OUTCOME, RunningTrial, StudyStatus, Task, TrialOutcome
from src.sweep.space import Cell

ACCURACY, FLOPS = f"best/val/{PRIMARY}", "efficiency/flops"
OBJECTIVES = parse_objectives({"objectives": [{"metric": f"val/{PRIMARY}"}, {"metric": FLOPS}]})


def make(limits: Sequence[str] = (), total: int = 10, slots: int = 2) -> StudyStatus:
    return StudyStatus(OBJECTIVES, parse_limits({"limits": list(limits)}), total, slots)


def ended(number: int) -> FrozenTrial:
    trial = optuna.trial.create_trial(state=TrialState.FAIL, system_attrs={CELL: [f"a={number}"]})
    trial.number = number
    return trial


def complete(accuracy: float, flops: float) -> TrialOutcome:
    return TrialOutcome("complete", metrics={ACCURACY: accuracy, FLOPS: flops})


def test_a_trial_that_dominates_a_member_of_the_front_replaces_it() -> None:
    study = make()
    for number, values in enumerate([(0.5, 4.0), (0.4, 2.0), (0.3, 3.0), (0.5, 4.0), (0.6, 2.0)]):
        study.add(ended(number), complete(*values))
        # Trial 1 dominates 2, 3 is equal to 0, and 4 dominates all of them.
        expected = [[0], [0, 1], [0, 1], [0, 1, 3], [4]][number]
        assert [member for member, _ in study.front] == expected
    assert study.front == [study.best] == [(4, [0.6, 2.0])]
    assert study.cells == {4: ["a=4"]}


def test_a_trial_that_breaks_a_limit_is_complete_but_not_on_the_front() -> None:
    study = make(["efficiency/flops <= 3"])
    study.add(ended(0), complete(0.9, 4.0))
    assert (study.front, study.best, study.counts["complete"]) == ([], None, 1)


def test_failures_are_alike_if_only_their_numbers_differ() -> None:
    study = make()
    for number in range(3):
        reason = f"RuntimeError: at 0x7f{number}a, trial {number}"
        study.add(ended(number), TrialOutcome("fail", "error", reason), seconds=1.0)
    assert study.all_failed_alike() == "error: RuntimeError: at #, trial #"
    assert (study.n_seen, study.counts["fail"], study.durations) == (3, 3, [])
    study.add(ended(3), complete(0.5, 1.0), seconds=2.0)
    assert (study.all_failed_alike(), study.durations) == ("", [2.0])


@pytest.mark.parametrize(("kind", "again"), [("stopped", False), ("killed", True)])
def test_trials_that_run_again_or_were_stopped_do_not_count_as_failed(
    kind: str, again: bool
) -> None:
    study = make()
    study.add(ended(0), TrialOutcome("fail", kind, "no"), again=again)  # type: ignore[arg-type]
    assert (study.n_seen, study.counts["fail"], study.all_failed_alike()) == (0, 0, "")
    assert study.put_back == 1


def test_a_success_of_an_earlier_session_shows_that_not_all_trials_fail() -> None:
    study = make()
    earlier = ended(0)
    earlier.system_attrs[OUTCOME] = vars(complete(0.5, 1.0))
    study.add(earlier)
    study.add(ended(1), TrialOutcome("fail", "error", "no"))
    assert study.all_failed_alike() == ""
    assert [event.number for event in study.take_events()] == [1]
    assert study.take_events() == []


@pytest.mark.parametrize(
    ("durations", "running", "counted", "total", "seconds"),
    [
        ([], [], 9, 100, None),
        # 100 - 9 finished - 3 running = 88 to start, of 60 s each; of the running trials 50, 30 and
        # 0 s are left; 3 slots.
        ([60.0] * 9, [10, 30, 99], 9, 100, (88 * 60 + 80) / 3),
        ([60.0] * 9, [], 9, 100, 91 * 60 / 3),
        ([60.0] * 9, [], 100, 100, 0),
        # The last 20 count: (10 x 40 + 10 x 80) / 20 = 60.
        ([1e6] * 5 + [40.0] * 10 + [80.0] * 10, [], 9, 100, 91 * 60 / 3),
        # The last one is slower than all before it.
        ([60.0] * 9, [99], 9, 10, None),
        ([60.0] * 9, [50, 99], 9, 11, None),
        ([60.0] * 9, [50, 20], 9, 11, 50 / 2),
    ],
)
def test_remaining_time_by_arithmetic(
    durations: list[float],
    running: list[float],
    counted: int,
    total: int,
    seconds: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records.time, "monotonic", lambda: 1000.0)
    study = make(total=total, slots=3)
    study.durations, study.counted = durations, counted
    task, cell = Task("", "", 0, 0, "", "", {}), Cell((), {})
    study.running = [RunningTrial(task, cell, 1000.0 - elapsed) for elapsed in running]
    assert study.time_left == (None if seconds is None else pytest.approx(seconds))
