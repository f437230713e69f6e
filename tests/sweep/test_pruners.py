"""Pruners: the contract of all, Optuna's by arithmetic, rungs for several objectives."""

import binascii
import json
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from src.core.errors import ConfigError
from src.metrics.registry import Limit, Objective
from src.sweep.pruners import (
    BestSoFar,
    RungDecision,
    Rungs,
    TrialPruner,
    attribute,
    goes_on,
    limit_attribute,
    make_pruner,
    pruner_from_spec,
    pruner_spec,
)
from src.sweep.records import Pruned, TrialOutcome
from src.sweep.storage import attach, default_url, open_storage
from src.sweep.study import Definition, open_study, tell

CONF = Path(__file__).resolve().parents[2] / "conf" / "hydra" / "sweeper" / "pruner"
NAMES = sorted(file.stem for file in CONF.glob("*.yaml"))
REQUIRED = {"threshold": {"lower": 0.3}}  # what a config leaves to the user
ACCURACY = Objective("val/accuracy", "maximize")
UP = Objective("val/balanced_accuracy", "maximize")
DOWN = Objective("efficiency/flops", "minimize")
LOSS = Objective("val/loss", "minimize")
RECALL = Limit("val/recall/mel", ">=", 0.8)
RUNGS = Rungs(max_epochs=18, min_epochs=2, reduction_factor=3)


def config(name: str, **changes: Any) -> DictConfig:
    node = OmegaConf.load(CONF / f"{name}.yaml")
    node.update(REQUIRED.get(name, {}) | changes)
    return node  # type: ignore[return-value]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return default_url(tmp_path_factory.mktemp("studies"))


class Curves:
    """Trials that report one value for each epoch, attached as in a process of their own."""

    def __init__(self, url: str, name: str, node: DictConfig, max_epochs: int) -> None:
        self.url = url
        self.spec = json.loads(json.dumps(pruner_spec(node, max_epochs)))
        pruner = make_pruner(node, 1, max_epochs)
        assert isinstance(pruner, optuna.pruners.BasePruner)
        sampler, definition = (
            optuna.samplers.RandomSampler(0),
            Definition(name, [ACCURACY], [], {}, []),
        )
        self.study = open_study(open_storage(url), definition, sampler, pruner)

    def train(self, *values: float) -> int | None:
        """The epoch at which the trial was stopped; None if it reached its end."""
        number = (asked := self.study.ask()).number
        pruner, best = TrialPruner(self.spec, [ACCURACY]), BestSoFar([ACCURACY], [])
        trial = attach(self.url, self.study.study_name, asked._trial_id, pruner.optuna_pruner)
        outcome = TrialOutcome("complete", metrics={"best/val/accuracy": max(values)})
        for epoch, value in enumerate(values, start=1):
            metrics = {"val/accuracy": value}
            best.add(epoch, metrics)
            try:
                pruner.check_trial(trial, 1000, metrics, best, {})
            except Pruned:
                outcome = TrialOutcome("pruned", reason="behind")
                break
        trial = tell(self.study, number, outcome, [ACCURACY], [], True)
        assert trial.state.name == outcome.state.upper()
        return epoch if outcome.state == "pruned" else None


@pytest.fixture
def curves(database: str, request: pytest.FixtureRequest) -> Any:
    return lambda name, max_epochs=6, **changes: Curves(
        database, request.node.name, config(name, **changes), max_epochs
    )


def test_none_stops_nothing(curves: Any) -> None:
    trials = curves("none")
    assert [trials.train(0.9, 0.9, 0.9, 0.9), trials.train(0.1, 0.0, 0.0, 0.0)] == [None, None]


def test_median_stops_below_the_middle_of_complete_trials(curves: Any) -> None:
    trials = curves("median")
    # the first five are safe, however bad; at epoch 3 they have 0.1 0.2 0.3 0.4 0.5: median 0.3
    for level in (0.1, 0.2, 0.3, 0.4, 0.5):
        assert trials.train(0.0, 0.0, level, level + 0.1) is None
    assert trials.train(0.05, 0.05, 0.29, 0.9) == 3
    assert (
        trials.train(0.05, 0.05, 0.3, 0.39) == 4
    )  # equal to the median of epoch 3, below that of epoch 4: 0.4
    assert trials.train(0.6, 0.0, 0.0, 0.0) is None  # its best so far counts, not its last
    assert trials.train(math.nan, math.nan, math.nan) == 3


def test_threshold_stops_outside_its_bounds(curves: Any) -> None:
    trials = curves("threshold", lower=0.3, upper=0.95)
    assert trials.train(0.0, 0.1, 0.3, 0.4) is None  # epochs 1 and 2 are safe
    assert trials.train(0.5, 0.5, 0.29) == 3
    assert trials.train(0.5, 0.5, 0.5, 0.96) == 4


def test_patient_waits_for_an_improvement(curves: Any) -> None:
    trials = curves("patient", wrapped_pruner=None, patience=2)
    assert trials.train(0.1, 0.2, 0.3, 0.4, 0.5) is None
    # three epochs (patience and one) in a row are below the best before them
    assert trials.train(0.5, 0.4, 0.4, 0.4) == 4
    assert trials.train(0.5, 0.4, 0.4, 0.6, 0.5, 0.5, 0.5) == 7


def test_patient_asks_the_pruner_it_wraps(curves: Any) -> None:
    trials = curves("patient", patience=1)
    for _ in range(5):
        assert trials.train(0.5, 0.5, 0.5, 0.5) is None
    assert trials.train(0.1, 0.2, 0.3, 0.4) is None  # below the median, but getting better
    assert trials.train(0.4, 0.3, 0.3, 0.3) == 3  # below, and no better than before for two epochs
    assert trials.train(0.9, 0.8, 0.8, 0.8) is None  # not better than before, but above


def test_successive_halving_lets_the_best_third_go_on(curves: Any) -> None:
    trials = curves("successive_halving")  # rungs at epochs 2 and 6
    assert (
        trials.train(0.0, 0.5, 0.0) is None
    )  # the first at a rung is the best there; epoch 1 and 3 are none
    assert trials.train(0.9, 0.4, 0.9) == 2  # of two, the best one goes on
    assert trials.train(0.0, 0.6, 0.6) is None
    assert trials.train(0.0, 0.55) == 2
    assert trials.train(0.0, 0.3) == 2
    assert trials.train(0.0, 0.58) is None  # of six, the two best: 0.6 and 0.58
    assert trials.train(0.0, 0.57) == 2


def test_hyperband_is_successive_halving_by_brackets(curves: Any) -> None:
    trials = curves("hyperband", max_epochs=18)
    # 18 / 2 = 9 = 3^2: brackets 0, 1, 2 begin at epochs 2, 6, 18; of 9 + 5 + 3 trials (ceil(3 * 3^s
    # / (s + 1)))
    for number in range(8):
        place = binascii.crc32(f"{trials.study.study_name}_{number}".encode()) % 17
        first_rung = 2 if place < 9 else 6 if place < 14 else 18
        value = (
            1.0 - number / 100
        )  # each is worse than all before: only the first of a bracket goes on
        stopped = trials.train(*[value] * 18)
        assert stopped in (None, first_rung), number
        is_first = not any(
            (binascii.crc32(f"{trials.study.study_name}_{other}".encode()) % 17 < 9) == (place < 9)
            for other in range(number)
        )
        if place < 9:
            assert stopped == (None if is_first else 2)


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_is_rebuilt_from_json(name: str) -> None:
    spec = pruner_spec(config(name), 18)
    again = pruner_from_spec(json.loads(json.dumps(spec)))
    made = make_pruner(config(name), 1, 18)
    assert type(again) is type(made)
    if isinstance(made, Rungs):
        assert again == made == Rungs(max_epochs=18, min_epochs=2, reduction_factor=3)
    else:
        plain = {
            key: value
            for key, value in vars(made).items()
            if not isinstance(value, optuna.pruners.BasePruner)
        }
        assert {key: vars(again)[key] for key in plain} == plain


@pytest.mark.parametrize("name", NAMES)
def test_several_objectives_take_rungs_or_none(name: str) -> None:
    if name in ("none", "rungs"):
        make_pruner(config(name), 2, 18)
    else:
        message = (
            f"hydra.sweeper.pruner: {name} works for one objective, this study has 2: "
            "take hydra/sweeper/pruner=rungs"
        )
        with pytest.raises(ConfigError, match=message):
            make_pruner(config(name), 2, 18)


def test_number_of_epochs_is_filled_in() -> None:
    wrapped = config("patient", wrapped_pruner=OmegaConf.load(CONF / "hyperband.yaml"))
    del wrapped.wrapped_pruner["name"]
    assert pruner_spec(wrapped, 9)["wrapped_pruner"]["max_resource"] == 9
    assert pruner_spec(config("hyperband"), 9)["max_resource"] == 9
    assert pruner_spec(config("hyperband", max_resource=5), 9)["max_resource"] == 5
    assert pruner_spec(config("rungs"), 9)["max_epochs"] == 9


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "median",
            {"n_startup_trials": -1},
            "pruner: Number of startup trials cannot be negative, but got",
        ),
        (
            "median",
            {"n_startup": 3},
            "pruner.n_startup: unknown key; did you mean n_startup_trials",
        ),
        ("median", {"n_startup_trials": "x"}, "pruner.n_startup_trials: "),
        ("successive_halving", {"reduction_factor": 1}, "but must be `reduction_factor >= 2`"),
        (
            "successive_halving",
            {"min_resource": "x"},
            "but must be either `min_resource` >= 1 or 'auto'",
        ),
        ("hyperband", {"reduction_factor": 2.5}, "pruner.reduction_factor: "),
        (
            "hyperband",
            {"reduction_factor": 1},
            "pruner.reduction_factor: must be at least 2, but got 1",
        ),
        ("hyperband", {"min_resource": 0}, "pruner.min_resource: must be at least 1, but got 0"),
        (
            "hyperband",
            {"min_resource": 20},
            "pruner.max_resource: must be at least min_resource (20), but got 18",
        ),
        (
            "threshold",
            {"lower": None},
            "pruner.lower: must be a number, or hydra.sweeper.pruner.upper must",
        ),
        ("threshold", {"lower": "x"}, "pruner.lower: "),
        ("patient", {"patience": -1}, "pruner: patience cannot be negative"),
        (
            "patient",
            {"wrapped_pruner.n_startup_trials": -1},
            "pruner.wrapped_pruner: Number of startup trials",
        ),
        (
            "rungs",
            {"reduction_factor": 1},
            "hydra.sweeper.pruner.reduction_factor: must be above 1, but got 1",
        ),
        ("rungs", {"min_epochs": "x"}, "pruner.min_epochs: "),
        ("none", {"_target_": "pathlib.Path"}, "pruner._target_: must be a pruner"),
        (
            "none",
            {"_target_": "optuna.pruners.Nop"},
            "pruner._target_: cannot import optuna.pruners.Nop",
        ),
    ],
)
def test_impossible_config_names_its_key(name: str, changes: dict[str, Any], message: str) -> None:
    node = config(name)
    for key, value in changes.items():
        OmegaConf.update(node, key, value)
    with pytest.raises(ConfigError) as caught:
        make_pruner(node, 1, 18)
    assert message in str(caught.value)
    assert str(caught.value).count("hydra.sweeper.pruner") == 1 + ("upper must" in message)


# Rungs


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
    assert caught.value.key == key


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


def reach(
    trial: optuna.Trial,
    epoch: int,
    values: list[float],
    limited: dict[str, float] | None = None,
    limits: tuple[Limit, ...] = (),
) -> tuple[bool, int, int]:
    decision = RUNGS.record(trial, epoch, values, [UP, DOWN][: len(values)], limits, limited)
    return decision.goes_on, decision.position, decision.of


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(directions=["maximize", "minimize"])


def test_a_rung_compares_all_trials_in_the_storage(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=url, study_name="s", directions=["maximize", "minimize"])
    first, second, third = (study.ask() for _ in range(3))
    assert reach(first, 2, [0.3, 10.0]) == (True, 1, 1)
    assert reach(second, 2, [0.2, 20.0]) == (False, 2, 2)
    study.tell(second, state=optuna.trial.TrialState.PRUNED)
    # Another process sees running and ended trials.
    other = optuna.load_study(storage=url, study_name="s")
    assert reach(optuna.Trial(other, third._trial_id), 2, [0.4, 5.0]) == (True, 1, 3)
    assert reach(first, 6, [0.5, 10.0]) == (True, 1, 1)
    assert study.trials[0].user_attrs[attribute(2)] == [0.3, 10.0]


def test_a_retried_trial_counts_once(study: optuna.Study) -> None:
    killed, again, other = (study.ask() for _ in range(3))
    reach(killed, 2, [0.3, 10.0])
    assert reach(killed, 2, [0.3, 10.0])[2] == 1  # resumed shortly before the rung
    again.set_user_attr("retry_of", killed.number)
    # The retry has not reached the rung yet: the first try counts.
    assert reach(other, 2, [0.1, 30.0]) == (False, 2, 2)
    assert reach(again, 2, [0.3, 10.0]) == (True, 1, 2)


@pytest.mark.parametrize("tries", [2, 3, 5])
def test_a_trial_that_is_retried_several_times_counts_once(study: optuna.Study, tries: int) -> None:
    chain = [study.ask() for _ in range(tries)]
    for earlier, again in zip(chain, chain[1:], strict=False):
        again.set_user_attr("retry_of", earlier.number)
    reach(chain[0], 2, [0.3, 10.0])  # those between were killed before the rung
    assert reach(chain[-1], 2, [0.2, 10.0]) == (True, 1, 1)


def test_a_trial_that_breaks_a_limit_comes_after_one_that_keeps_it(study: optuna.Study) -> None:
    limits = (RECALL, Limit("efficiency/latency_ms/b1/p50", "<=", 5))  # the latter is not known yet
    blind, careful, worse = (study.ask() for _ in range(3))

    def reach_with(trial: optuna.Trial, values: list[float], recall: float) -> Any:
        return reach(trial, 2, values, {"best/val/recall/mel": recall}, limits)

    assert reach_with(blind, [0.9, 5.0], 0.4) == (True, 1, 1)
    assert reach_with(careful, [0.3, 10.0], 0.8) == (True, 1, 2)
    assert reach_with(worse, [0.95, 1.0], math.nan) == (False, 3, 3)
    assert reach_with(blind, [0.9, 5.0], 0.4) == (False, 2, 3)
    stored = study.trials[2].user_attrs
    assert stored == {attribute(2): [0.95, 1.0], limit_attribute(2): {"best/val/recall/mel": None}}


def test_trials_of_a_warm_start_count_if_they_have_values_at_the_rung(study: optuna.Study) -> None:
    for attributes in ({attribute(2): [0.8, 1.0]}, {}, {attribute(2): [0.8]}):
        attributes = {"warm_from": "older", **attributes}
        study.add_trial(optuna.trial.create_trial(values=[0.9, 1.0], user_attrs=attributes))
    assert reach(study.ask(), 2, [0.3, 10.0]) == (False, 2, 2)


def test_a_missing_value_can_be_stored() -> None:
    study = optuna.create_study()
    assert reach(study.ask(), 2, [math.nan]) == (False, 1, 1)
    assert reach(study.ask(), 2, [0.1]) == (True, 1, 2)
    assert study.trials[0].user_attrs[attribute(2)] == [None]


def test_what_is_no_rung_is_refused(study: optuna.Study) -> None:
    with pytest.raises(ValueError, match="epoch 3 is no rung"):
        reach(study.ask(), 3, [0.1, 1.0])
    with pytest.raises(ValueError, match="expected a value for each of 2"):
        RUNGS.record(study.ask(), 2, [0.1], [UP, DOWN])


def test_trials_that_arrive_at_once_see_each_other(tmp_path: Path) -> None:
    """Three connections to one database; a higher trial number is better in both objectives."""
    url = default_url(tmp_path)
    study = optuna.create_study(
        storage=open_storage(url), study_name="s", directions=["maximize", "minimize"]
    )
    trial_ids = [study.ask()._trial_id for _ in range(24)]

    def climb(share: list[int]) -> list[tuple[int, int, RungDecision]]:
        storage, decisions = open_storage(url), []
        for trial_id in share:
            trial = optuna.Trial(optuna.load_study(storage=storage, study_name="s"), trial_id)
            for epoch in RUNGS.epochs:
                values = [trial.number / 100, 100.0 - trial.number]
                decision = RUNGS.record(trial, epoch, values, [UP, DOWN])
                decisions.append((trial.number, epoch, decision))
                if not decision.goes_on:
                    break
        return decisions

    with ThreadPoolExecutor(3) as pool:
        shares = pool.map(climb, [trial_ids[start::3] for start in range(3)])
    decisions = [decision for share in shares for decision in share]
    assert max(decision.of for _, epoch, decision in decisions if epoch == 2) == 24
    for _, _, decision in decisions:
        assert decision.goes_on == (decision.position <= max(1, decision.of // 3))
    best = {epoch: decision.position for number, epoch, decision in decisions if number == 23}
    assert best == {2: 1, 6: 1}
    counts = Counter(epoch for _, epoch, _ in decisions)
    stored = Counter(key for trial in study.trials for key in trial.user_attrs)
    assert stored == {attribute(epoch): count for epoch, count in counts.items()}


# Best values so far


def test_best_values_by_hand() -> None:
    best = BestSoFar([ACCURACY, LOSS, DOWN], [])
    best.add(1, {"val/accuracy": math.nan, "val/loss": 2.0})
    best.add(2, {"val/accuracy": 0.5, "val/loss": 1.0, "val/f1/mel": 0.3})
    best.add(3, {"val/accuracy": 0.4, "val/loss": math.nan})
    best.add(4, {"val/loss": 1.5})
    assert best.epoch == 4
    assert best.best == {"val/accuracy": 0.5, "val/loss": 1.0}  # FLOPs are not measured per epoch
    assert best.limited == {}


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        ([ACCURACY], 0.2),
        ([DOWN, ACCURACY, LOSS], 0.2),  # the first that is measured every epoch
        ([LOSS, ACCURACY], 0.3),
        ([DOWN], 0.4),  # none: the last epoch
    ],
)
def test_a_limit_is_checked_at_the_best_epoch_so_far(
    objectives: list[Objective], expected: float
) -> None:
    best = BestSoFar(objectives, [RECALL, Limit("efficiency/params", "<=", 5)])
    rows = [(0.5, 1.0, 0.9), (0.7, 0.9, 0.2), (0.6, 0.8, 0.3), (0.7, 0.9, 0.4)]
    for epoch, (accuracy, loss, recall) in enumerate(rows, 1):
        best.add(epoch, {"val/accuracy": accuracy, "val/loss": loss, "val/recall/mel": recall})
    assert best.limited == {"best/val/recall/mel": expected}


def test_a_limit_that_is_undefined_at_the_best_epoch_is_unknown() -> None:
    best = BestSoFar([ACCURACY], [RECALL])
    best.add(1, {"val/accuracy": 0.5, "val/recall/mel": 0.9})
    best.add(2, {"val/accuracy": 0.6})
    assert best.limited == {}


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_the_best_epoch_is_the_first_of_the_highest(rows: list[tuple[float, float]]) -> None:
    best = BestSoFar([ACCURACY], [RECALL])
    for epoch, (accuracy, recall) in enumerate(rows, 1):
        best.add(epoch, {"val/accuracy": accuracy, "val/recall/mel": recall})
    values = [accuracy for accuracy, _ in rows]
    assert best.best == {"val/accuracy": max(values)}
    assert best.limited == {"best/val/recall/mel": rows[values.index(max(values))][1]}


# A pruner of somebody else, named by `_target_` alone


class StopsAt:
    """Stops every trial at one epoch."""

    def __init__(self, epoch: int, max_epochs: int) -> None:
        self.epoch = min(epoch, max_epochs)

    def check_trial(self, trial: Any, epochs: int, best: BestSoFar, cost: Any) -> None:
        if best.epoch == self.epoch:
            raise Pruned(f"epoch {best.epoch} of {epochs}")


def test_a_pruner_of_ones_own_needs_only_its_target(study: optuna.Study) -> None:
    node = {"_target_": f"{__name__}.StopsAt", "epoch": 4, "name": "mine"}
    assert isinstance(make_pruner(node, 2, 3), StopsAt)  # several objectives
    pruner = TrialPruner(json.loads(json.dumps(pruner_spec(node, 3))), [UP, DOWN])
    best = BestSoFar([UP, DOWN], [])
    best.add(2, {})
    pruner.check_trial(study.ask(), 5, {}, best, {})
    best.add(3, {})
    with pytest.raises(Pruned, match="epoch 3 of 5"):
        pruner.check_trial(study.ask(), 5, {}, best, {})
