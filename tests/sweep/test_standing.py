"""How a study stands: counts, front, and what all failures have in common."""

from collections.abc import Sequence

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from src.metrics.registry import parse_limits, parse_objectives
from src.sweep.records import TrialOutcome
from src.sweep.status import StudyStatus

ACCURACY, FLOPS = "best/val/balanced_accuracy", "efficiency/flops"
OBJECTIVES = parse_objectives(
    {"objectives": [{"metric": "val/balanced_accuracy"}, {"metric": FLOPS}]}
)


def standing(limits: Sequence[str] = ()) -> StudyStatus:
    return StudyStatus(OBJECTIVES, parse_limits({"limits": list(limits)}), total=10, slots=2)


def ended(number: int) -> FrozenTrial:
    trial = optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={"cell": [f"a={number}"]})
    trial.number = number
    return trial


def complete(accuracy: float, flops: float) -> TrialOutcome:
    return TrialOutcome("complete", metrics={ACCURACY: accuracy, FLOPS: flops})


def test_who_beats_a_member_of_the_front_takes_its_place() -> None:
    stands = standing()
    for number, values in enumerate([(0.5, 4.0), (0.4, 2.0), (0.3, 3.0), (0.5, 4.0), (0.6, 2.0)]):
        stands.add(ended(number), complete(*values))
    # 2 is beaten by 1, 3 is as good as 0, and 4 beats all of them
    assert stands.front == [(4, [0.6, 2.0])]
    assert stands.cells == {4: ["a=4"]}
    assert stands.best == (4, [0.6, 2.0])


def test_equals_stay_beside_each_other() -> None:
    stands = standing()
    for number in range(2):
        stands.add(ended(number), complete(0.5, 4.0))
    assert [number for number, _ in stands.front] == [0, 1]


def test_who_breaks_a_limit_is_complete_but_not_on_the_front() -> None:
    stands = standing(["efficiency/flops <= 3"])
    stands.add(ended(0), complete(0.9, 4.0))
    assert (stands.front, stands.best, stands.counts["complete"]) == ([], None, 1)


def test_failures_are_alike_if_only_their_numbers_differ() -> None:
    stands = standing()
    for number in range(3):
        reason = f"RuntimeError: at 0x7f{number}a, trial {number}"
        stands.add(ended(number), TrialOutcome("fail", "error", reason), seconds=1.0)
    assert stands.all_failed_alike() == "error: RuntimeError: at #, trial #"
    assert (stands.n_seen, stands.counts["fail"], stands.durations) == (3, 3, [])
    stands.add(ended(3), complete(0.5, 1.0), seconds=2.0)
    assert stands.all_failed_alike() == ""
    assert stands.durations == [2.0]


@pytest.mark.parametrize(("kind", "again"), [("stopped", False), ("killed", True)])
def test_what_is_tried_again_or_was_stopped_says_nothing_yet(kind: str, again: bool) -> None:
    stands = standing()
    stands.add(ended(0), TrialOutcome("fail", kind, "no"), again=again)  # type: ignore[arg-type]
    assert (stands.n_seen, stands.counts["fail"], stands.all_failed_alike()) == (0, 0, "")
    assert stands.put_back == 1


def test_a_success_of_an_earlier_sitting_keeps_failures_from_being_a_common_one() -> None:
    stands = standing()
    earlier = ended(0)
    earlier.user_attrs["outcome"] = vars(complete(0.5, 1.0))
    stands.add(earlier)
    stands.add(ended(1), TrialOutcome("fail", "error", "no"))
    assert stands.all_failed_alike() == ""
    assert [event.number for event in stands.take_events()] == [1]
    assert stands.take_events() == []
