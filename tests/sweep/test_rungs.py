import multiprocessing
from collections import Counter
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.core.errors import ConfigError
from src.metrics.registry import Limit, Objective
from src.sweep.pruners import RungBook, RungDecision, Rungs, attribute, goes_on, limit_attribute

UP = Objective("val/balanced_accuracy", "maximize")
DOWN = Objective("efficiency/flops", "minimize")
RUNGS = Rungs(max_epochs=18, min_epochs=2, reduction_factor=3)

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.mark.parametrize(
    ("max_epochs", "min_epochs", "factor", "epochs"),
    [
        (18, 2, 3, (2, 6)),  # not at 18: there is nothing left to stop
        (19, 2, 3, (2, 6, 18)),
        (100, 1, 4, (1, 4, 16, 64)),
        (
            10,
            1,
            1.3,
            (1, 2, 3, 4, 5, 6, 8),
        ),  # 1.3 rounds to 1 again: 1, 1.69, 2.2, 2.86, 3.71, 4.83, 6.27, 8.16
        (3, 2, 3, (2,)),
    ],
)
def test_rungs_are_powers_of_the_factor(
    max_epochs: int, min_epochs: int, factor: float, epochs: tuple[int, ...]
) -> None:
    assert Rungs(max_epochs, min_epochs, factor).epochs == epochs


@pytest.mark.parametrize(
    ("max_epochs", "min_epochs", "factor", "key"),
    [
        (18, 0, 3, "min_epochs"),
        (18, 18, 3, "min_epochs"),
        (18, 2, 1, "reduction_factor"),
        (18, 2, float("inf"), "reduction_factor"),
        (18, 2, float("nan"), "reduction_factor"),
    ],
)
def test_impossible_rungs_name_their_key(
    max_epochs: int, min_epochs: int, factor: float, key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Rungs(max_epochs, min_epochs, factor)
    assert caught.value.key == f"hydra.sweeper.pruner.{key}"


def test_the_first_at_a_rung_goes_on() -> None:
    assert goes_on(np.array([[0.2, 10]]), 0, [UP, DOWN]) == RungDecision(True, 1, 1)


def test_by_hand_with_two_objectives() -> None:
    points = np.array(
        [
            [0.9, 40],  # front, an end
            [0.5, 10],  # front, an end
            [0.8, 35],  # front, crowded: 0.15/0.4 + 10/30
            [0.75, 30],  # front, roomier: 0.3/0.4 + 25/30
            [0.4, 20],  # behind the second
            [0.3, 45],  # behind all
        ]
    )
    verdicts = [goes_on(points, row, [UP, DOWN], 2) for row in range(6)]
    assert {verdicts[0].position, verdicts[1].position} == {1, 2}
    assert [verdict.position for verdict in verdicts[2:]] == [4, 3, 5, 6]
    assert [verdict.goes_on for verdict in verdicts] == [
        True,
        True,
        False,
        True,
        False,
        False,
    ]  # 6 / 2


@pytest.mark.parametrize(
    ("count", "factor", "kept"), [(1, 3, 1), (2, 3, 2), (5, 3, 2), (9, 3, 3), (17, 3, 5)]
)
def test_of_a_large_front_only_the_roomiest_go_on(count: int, factor: int, kept: int) -> None:
    accuracy = np.arange(count) / 100
    points = np.stack([accuracy, accuracy**2], axis=1)  # all on the front, more room the further up
    survivors = [row for row in range(count) if goes_on(points, row, [UP, DOWN], factor).goes_on]
    assert survivors == [0, *range(count - kept + 1, count)]


def test_with_one_objective_it_is_the_order_of_values() -> None:
    accuracy = [0.3, 0.6, 0.1, 0.5, 0.4, 0.2, 0.15]
    verdicts = [goes_on(np.array(accuracy)[:, None], row, [UP]) for row in range(7)]
    assert [verdict.position for verdict in verdicts] == [4, 1, 7, 2, 3, 5, 6]
    assert [verdict.goes_on for verdict in verdicts] == [
        False,
        True,
        False,
        True,
        False,
        False,
        False,
    ]  # 7 / 3 is 2


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
def test_a_missing_value_stands_behind_all_and_does_not_go_on(missing: float) -> None:
    points = np.array([[missing, 1.0], [0.2, 10.0]])
    assert goes_on(points, 0, [UP, DOWN], 1.5) == RungDecision(False, 2, 2)
    assert goes_on(points, 1, [UP, DOWN]) == RungDecision(True, 1, 2)
    assert not goes_on(points[:1], 0, [UP, DOWN]).goes_on  # not even as the first


@pytest.mark.parametrize("objectives", [[UP], [UP, DOWN]])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_of_equal_trials_that_come_one_by_one_a_fraction_goes_on(
    objectives: list[Objective], factor: int
) -> None:
    # nets at chance level: each is asked when it comes, as the last of those so far
    at_chance = np.full((60, len(objectives)), 1 / 7)
    survivors = sum(
        goes_on(at_chance[: count + 1], count, objectives, factor).goes_on for count in range(60)
    )
    expected = sum(
        max(1, count // factor) / count for count in range(1, 61)
    )  # of each `count`, one is the newcomer
    assert survivors == pytest.approx(expected, abs=4)


def test_copies_of_an_end_of_the_front_do_not_crowd_out_the_rest() -> None:
    copies = [[1 / 7, 1.0]] * 20  # the cheapest net, twenty times at chance level
    others = [[0.2, 2.0], [0.3, 3.0], [0.4, 4.0], [0.5, 5.0]]
    points = np.array(copies + others)
    places = [goes_on(points, row, [UP, DOWN], 4).position for row in range(24)]
    assert sorted(places) == list(range(1, 25))
    assert max(places[20:]) == 5  # the four and one of the copies come first
    assert sum(place <= 6 for place in places[:20]) == 2  # 24 / 4 go on


POINTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20)


@given(POINTS, st.floats(1.1, 6))
def test_just_the_best_fraction_goes_on(points: list[tuple[int, int]], factor: float) -> None:
    table = np.array(points, dtype=float)
    verdicts = [goes_on(table, row, [UP, DOWN], factor) for row in range(len(points))]
    assert sorted(verdict.position for verdict in verdicts) == list(range(1, len(points) + 1))
    on_front = [
        a for a in set(points) if not any(a != b and b[0] >= a[0] and b[1] <= a[1] for b in points)
    ]
    kept = max(int(len(points) / factor), min(len(on_front), 2))
    assert sum(verdict.goes_on for verdict in verdicts) == kept
    for better, worse in ((a, b) for a in range(len(points)) for b in range(len(points))):
        dominates = points[better][0] >= points[worse][0] and points[better][1] <= points[worse][1]
        if dominates and points[better] != points[worse]:
            assert verdicts[better].position < verdicts[worse].position


@given(POINTS)
def test_units_do_not_matter(points: list[tuple[int, int]]) -> None:
    table = np.array(points, dtype=float)
    in_other_units = table * [1, 2.0**20]
    for row in range(len(points)):
        assert goes_on(table, row, [UP, DOWN]) == goes_on(in_other_units, row, [UP, DOWN])


def test_by_hand_with_limits() -> None:
    points = np.array([[0.9, 10], [0.5, 30], [0.6, 40], [0.8, 5], [np.nan, 1]])
    broken = [0.25, 0.0, 0.0, 0.125, 0.0]  # the two best by far break a limit
    verdicts = [goes_on(points, row, [UP, DOWN], 2, broken) for row in range(5)]
    assert {verdicts[1].position, verdicts[2].position} == {1, 2}
    assert [verdicts[row].position for row in (3, 0, 4)] == [3, 4, 5]
    assert [verdict.goes_on for verdict in verdicts] == [False, True, True, False, False]  # 5 / 2


def test_where_all_break_a_limit_the_least_violation_goes_on() -> None:
    points = np.array([[0.9, 10], [0.5, 30], [0.4, 40]])
    verdicts = [goes_on(points, row, [UP, DOWN], 3, [0.5, 0.25, float("inf")]) for row in range(3)]
    assert [verdict.position for verdict in verdicts] == [2, 1, 3]
    assert [verdict.goes_on for verdict in verdicts] == [False, True, False]


@given(POINTS, st.data())
def test_with_limits_the_order_is_constrained_domination(
    points: list[tuple[int, int]], data: st.DataObject
) -> None:
    broken = data.draw(
        st.lists(st.sampled_from([0.0, 0.1, 0.2]), min_size=len(points), max_size=len(points))
    )
    table = np.array(points, dtype=float)
    places = [goes_on(table, row, [UP, DOWN], 3, broken).position for row in range(len(points))]
    assert sorted(places) == list(range(1, len(points) + 1))
    for a, first in enumerate(points):
        for b, second in enumerate(points):
            dominates = first != second and first[0] >= second[0] and first[1] <= second[1]
            if broken[a] < broken[b] or (broken[a] == broken[b] == 0 and dominates):
                assert places[a] < places[b]
    unlimited = [goes_on(table, row, [UP, DOWN]) for row in range(len(points))]
    assert unlimited == [
        goes_on(table, row, [UP, DOWN], 3, [0.0] * len(points)) for row in range(len(points))
    ]


def make_study(folder: Path, directions: int = 2) -> tuple[optuna.Study, str]:
    url = f"sqlite:///{folder}/study.db"
    return optuna.create_study(
        storage=url, study_name="s", directions=["maximize", "minimize"][:directions]
    ), url


def test_the_book_decides_by_all_trials_in_the_storage(tmp_path: Path) -> None:
    study, url = make_study(tmp_path)
    book = RungBook(RUNGS, [UP, DOWN])
    first, second, third = (study.ask() for _ in range(3))
    assert book.record(first, 2, [0.3, 10.0]) == RungDecision(True, 1, 1)
    assert book.record(second, 2, [0.2, 20.0]) == RungDecision(False, 2, 2)
    study.tell(second, state=optuna.trial.TrialState.PRUNED)
    # another view of the same study sees those that run and those that have ended
    other = optuna.load_study(storage=url, study_name="s")
    assert book.record(optuna.Trial(other, third._trial_id), 2, [0.4, 5.0]) == RungDecision(
        True, 1, 3
    )
    assert book.record(first, 6, [0.5, 10.0]) == RungDecision(True, 1, 1)
    assert study.trials[0].user_attrs[attribute(2)] == [0.3, 10.0]


def test_a_trial_that_comes_again_is_there_once(tmp_path: Path) -> None:
    study, _ = make_study(tmp_path)
    book = RungBook(RUNGS, [UP, DOWN])
    killed, again, other = (study.ask() for _ in range(3))
    book.record(killed, 2, [0.3, 10.0])
    assert book.record(killed, 2, [0.3, 10.0]).of == 1  # resumed a little before the rung
    again.set_user_attr("retry_of", killed.number)
    assert book.record(other, 2, [0.1, 30.0]) == RungDecision(
        False, 2, 2
    )  # the retry has not come so far: the first counts
    assert book.record(again, 2, [0.3, 10.0]) == RungDecision(True, 1, 2)


@pytest.mark.parametrize("tries", [2, 3, 5])
def test_a_trial_that_is_made_again_and_again_is_there_once(tmp_path: Path, tries: int) -> None:
    study, _ = make_study(tmp_path)
    book = RungBook(RUNGS, [UP, DOWN])
    chain = [study.ask() for _ in range(tries)]
    for earlier, again in zip(chain, chain[1:], strict=False):
        again.set_user_attr("retry_of", earlier.number)
    book.record(chain[0], 2, [0.3, 10.0])  # those between were killed before the rung
    assert book.record(chain[-1], 2, [0.2, 10.0]) == RungDecision(True, 1, 1)


def test_a_trial_that_breaks_a_limit_does_not_push_out_one_that_keeps_it(tmp_path: Path) -> None:
    study, _ = make_study(tmp_path)
    limits = [
        Limit("val/recall/mel", ">=", 0.8),
        Limit("efficiency/latency_ms/b1/p50", "<=", 5),
    ]  # not known so early
    book = RungBook(RUNGS, [UP, DOWN], limits)
    blind, careful, worse = (study.ask() for _ in range(3))
    assert book.record(blind, 2, [0.9, 5.0], {"best/val/recall/mel": 0.4}) == RungDecision(
        True, 1, 1
    )
    assert book.record(careful, 2, [0.3, 10.0], {"best/val/recall/mel": 0.8}) == RungDecision(
        True, 1, 2
    )
    assert book.record(
        worse, 2, [0.95, 1.0], {"best/val/recall/mel": float("nan")}
    ) == RungDecision(False, 3, 3)
    assert book.record(blind, 2, [0.9, 5.0], {"best/val/recall/mel": 0.4}) == RungDecision(
        False, 2, 3
    )
    stored = study.trials[2].user_attrs
    assert stored == {attribute(2): [0.95, 1.0], limit_attribute(2): {"best/val/recall/mel": None}}


def test_trials_of_the_study_before_count(tmp_path: Path) -> None:
    study, _ = make_study(tmp_path)
    values = {"warm_from": "older"}
    study.add_trial(
        optuna.trial.create_trial(
            values=[0.9, 1.0], user_attrs={**values, attribute(2): [0.8, 1.0]}
        )
    )
    study.add_trial(
        optuna.trial.create_trial(values=[0.9, 1.0], user_attrs=values)
    )  # never met this rung
    study.add_trial(
        optuna.trial.create_trial(values=[0.9, 1.0], user_attrs={**values, attribute(2): [0.8]})
    )
    assert RungBook(RUNGS, [UP, DOWN]).record(study.ask(), 2, [0.3, 10.0]) == RungDecision(
        False, 2, 2
    )


def test_a_missing_value_can_be_stored(tmp_path: Path) -> None:
    study, _ = make_study(tmp_path, directions=1)
    book = RungBook(RUNGS, [UP])
    assert book.record(study.ask(), 2, [float("nan")]) == RungDecision(False, 1, 1)
    assert book.record(study.ask(), 2, [0.1]) == RungDecision(True, 1, 2)
    assert study.trials[0].user_attrs[attribute(2)] == [None]


def test_what_is_no_rung_is_refused(tmp_path: Path) -> None:
    study, _ = make_study(tmp_path)
    book = RungBook(RUNGS, [UP, DOWN])
    with pytest.raises(ValueError, match="epoch 3 is no rung"):
        book.record(study.ask(), 3, [0.1, 1.0])
    with pytest.raises(ValueError, match="expected a value for each of 2"):
        book.record(study.ask(), 2, [0.1])


def _climb(
    url: str,
    trial_ids: list[int],
    answers: "multiprocessing.queues.Queue[tuple[int, int, RungDecision]]",
) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(storage=url, study_name="s")
    book = RungBook(RUNGS, [UP, DOWN])
    for trial_id in trial_ids:
        trial = optuna.Trial(study, trial_id)
        for epoch in RUNGS.epochs:
            verdict = book.record(trial, epoch, [trial.number / 100, 100.0 - trial.number])
            answers.put((trial.number, epoch, verdict))
            if not verdict.goes_on:
                break


def test_several_processes_share_a_study(tmp_path: Path) -> None:
    study, url = make_study(tmp_path)
    trials = [study.ask() for _ in range(24)]  # the higher the number, the better in both
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    shares = [[trial._trial_id for trial in trials[start::3]] for start in range(3)]
    processes = [context.Process(target=_climb, args=(url, share, answers)) for share in shares]
    for process in processes:
        process.start()
    entered = sum(len(trials) for trials in shares)
    found: list[tuple[int, int, RungDecision]] = []
    while sum(epoch == 2 for _, epoch, _ in found) < entered or _unfinished(found):
        found.append(answers.get(timeout=60))
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    # each decision is among those seen at its time, all were seen in the end, and the best is never
    # stopped
    assert max(verdict.of for _, epoch, verdict in found if epoch == 2) == 24
    assert all(
        verdict.goes_on == (verdict.position <= max(1, verdict.of // 3)) for _, _, verdict in found
    )
    assert {epoch: verdict.position for number, epoch, verdict in found if number == 23} == {
        2: 1,
        6: 1,
    }
    counts = Counter(epoch for _, epoch, _ in found)
    stored = Counter(key for trial in study.trials for key in trial.user_attrs)
    assert stored == {attribute(epoch): count for epoch, count in counts.items()}


def _unfinished(found: list[tuple[int, int, RungDecision]]) -> bool:
    """Whether a trial has gone on from the first rung and not come to the second."""
    risen = {number for number, epoch, verdict in found if epoch == 2 and verdict.goes_on}
    return bool(risen - {number for number, epoch, _ in found if epoch == 6})
