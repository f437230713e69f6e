"""Pruners: the contract of all, Optuna's by arithmetic, rungs for several objectives."""

import binascii
import json
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from optuna.storages import InMemoryStorage

from src.core.errors import ConfigError
from src.metrics.registry import PRIMARY, Limit, Objective
from src.sweep.pruners import (
    BestSoFar,
    Rungs,
    check_trial,
    goes_on,
    make_pruner,
    pruner_from_spec,
    pruner_spec,
    rung_correlation,
)
from src.sweep.records import OUTCOME, RUNG, Pruned, TrialOutcome
from src.sweep.space import Space
from src.sweep.storage import default_url, open_storage
from src.sweep.study import open_study, tell

CONF = Path(__file__).resolve().parents[2] / "conf" / "hydra" / "sweeper" / "pruner"
NAMES = sorted(file.stem for file in CONF.glob("*.yaml"))
REQUIRED = {"threshold": {"lower": 0.3}}  # what a config leaves to the user
ACCURACY = Objective("val/accuracy", "maximize")
UP = Objective(f"val/{PRIMARY}", "maximize")
DOWN = Objective("efficiency/flops", "minimize")
LOSS = Objective("val/loss", "minimize")
RECALL = Limit("val/recall/mel", ">=", 0.8)
RESULT = {"best/val/accuracy": 0.5}
RUNGS = Rungs(max_epochs=18, min_epochs=2, reduction_factor=3)


def config(name: str, **changes: Any) -> DictConfig:
    node = OmegaConf.load(CONF / f"{name}.yaml")
    node.update(REQUIRED.get(name, {}) | changes)
    return node  # type: ignore[return-value]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return default_url(tmp_path_factory.mktemp("studies"))


class Curves:
    """Trials that report one value for each epoch."""

    def __init__(self, name: str, node: DictConfig, max_epochs: int) -> None:
        self.spec = json.loads(json.dumps(pruner_spec(node, max_epochs)))
        pruner, sampler = make_pruner(node, 1, max_epochs), optuna.samplers.RandomSampler(0)
        definition = name, [ACCURACY], [], Space([], {}), []
        self.study = open_study(InMemoryStorage(), *definition, sampler, pruner)

    def train(self, *values: float) -> int | None:
        """The epoch at which the trial was stopped; None if it reached its end."""
        trial, pruner = self.study.ask(), pruner_from_spec(self.spec)
        assert type(pruner) is type(self.study.pruner)
        best, outcome = BestSoFar([ACCURACY], []), TrialOutcome("complete", metrics=RESULT)
        for epoch, value in enumerate(values, start=1):
            best.add(epoch, metrics := {"val/accuracy": value})
            try:
                check_trial(pruner, trial, 1000, metrics, best, {})
            except Pruned:
                outcome = TrialOutcome("pruned", reason="behind")
                break
        ended = tell(self.study, trial, outcome)
        assert ended.state.name == outcome.state.upper()
        return epoch if outcome.state == "pruned" else None


@pytest.mark.parametrize(
    ("name", "changes", "trials"),
    [
        ("none", {}, [((0.9, 0.9, 0.9), None), ((0.1, 0.0, 0.0), None)]),
        (
            "median",
            {},
            [
                # The first five are not stopped. At epoch 3 they have 0.1 to 0.5: median 0.3.
                *[((0.0, 0.0, level, level + 0.1), None) for level in (0.1, 0.2, 0.3, 0.4, 0.5)],
                ((0.05, 0.05, 0.29, 0.9), 3),
                # Equal to the median of epoch 3, below that of epoch 4: 0.4.
                ((0.05, 0.05, 0.3, 0.39), 4),
                ((0.6, 0.0, 0.0, 0.0), None),  # its best so far counts, not its last
                ((math.nan, math.nan, math.nan), 3),
            ],
        ),
        (
            "threshold",
            {"lower": 0.3, "upper": 0.95},
            [
                ((0.0, 0.1, 0.3, 0.4), None),  # not at epochs 1 and 2
                ((0.5, 0.5, 0.29), 3),
                ((0.5, 0.5, 0.5, 0.96), 4),
            ],
        ),
        (
            "patient",
            {"wrapped_pruner": None, "patience": 2},
            [
                ((0.1, 0.2, 0.3, 0.4, 0.5), None),
                # Three epochs (patience and one) in a row are below the best before them.
                ((0.5, 0.4, 0.4, 0.4), 4),
                ((0.5, 0.4, 0.4, 0.6, 0.5, 0.5, 0.5), 7),
            ],
        ),
        (
            "patient",  # and the median
            {"patience": 1},
            [
                *[((0.5, 0.5, 0.5, 0.5), None)] * 5,
                ((0.1, 0.2, 0.3, 0.4), None),  # below the median, but increasing
                ((0.4, 0.3, 0.3, 0.3), 3),  # below, and no better than before for two epochs
                ((0.9, 0.8, 0.8, 0.8), None),  # not better than before, but above
            ],
        ),
        (
            "successive_halving",  # rungs at epochs 2 and 6
            {},
            [
                ((0.0, 0.5, 0.0), None),  # the first at a rung is the best there
                ((0.9, 0.4, 0.9), 2),  # of two, the best one goes on
                ((0.0, 0.6, 0.6), None),
                ((0.0, 0.55), 2),
                ((0.0, 0.3), 2),
                ((0.0, 0.58), None),  # of six, the two best: 0.6 and 0.58
                ((0.0, 0.57), 2),
            ],
        ),
    ],
)
def test_pruners_of_optuna_stop_by_their_rules(
    name: str,
    changes: dict[str, Any],
    trials: list[tuple[tuple[float, ...], int | None]],
) -> None:
    curves = Curves(name, config(name, **changes), 6)
    assert [curves.train(*values) for values, _ in trials] == [stopped for _, stopped in trials]


def test_hyperband_is_successive_halving_by_brackets() -> None:
    trials = Curves("hyperband", config("hyperband"), 18)
    # 18 / 2 = 9 = 3^2: brackets 0, 1, 2 begin at epochs 2, 6, 18, with 9, 5 and 3 of 17 trials:
    # ceil(3 * 3^s / (s + 1)).
    occupied = set()
    for number in range(8):
        position = binascii.crc32(f"hyperband_{number}".encode()) % 17
        first_rung = 2 if position < 9 else 6 if position < 14 else 18
        # Each is worse than all before: only the first of a bracket goes on.
        stopped = trials.train(*[1.0 - number / 100] * 18)
        assert stopped in (None, first_rung), number
        if first_rung == 2:
            assert stopped == (2 if 2 in occupied else None)
        occupied.add(first_rung)


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_is_rebuilt_from_json_and_serves_its_studies(name: str) -> None:
    rebuilt = pruner_from_spec(json.loads(json.dumps(pruner_spec(config(name), 18))))
    made = make_pruner(config(name), 1, 18)
    assert type(rebuilt) is type(made)
    settings = {
        key: value
        for key, value in vars(made).items()
        if not isinstance(value, optuna.pruners.BasePruner)
    }
    assert {key: vars(rebuilt)[key] for key in settings} == settings
    if name in ("none", "rungs"):
        make_pruner(config(name), 2, 18)
    else:
        problem = f"{name} works for one objective, this study has 2"
        with pytest.raises(ConfigError, match=f"{problem}: take hydra/sweeper/pruner=rungs"):
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
        ("median", {"n_startup_trials": -1}, ": Number of startup trials cannot be negative, but"),
        ("median", {"n_startup": 3}, ".n_startup: unknown key; did you mean n_startup_trials"),
        ("median", {"n_startup_trials": "x"}, ".n_startup_trials: "),
        ("successive_halving", {"reduction_factor": 1}, "must be `reduction_factor >= 2`"),
        ("successive_halving", {"min_resource": "x"}, "must be either `min_resource` >= 1 or"),
        ("hyperband", {"reduction_factor": 2.5}, ".reduction_factor: "),
        ("hyperband", {"reduction_factor": 1}, ".reduction_factor: must be at least 2, but got 1"),
        ("hyperband", {"min_resource": 0}, ".min_resource: must be at least 1, but got 0"),
        (
            "hyperband",
            {"min_resource": 20},
            ".max_resource: must be at least min_resource (20), but got 18",
        ),
        ("threshold", {"lower": None}, ".lower: must be a number, or hydra.sweeper.pruner.upper"),
        ("threshold", {"lower": "x"}, ".lower: "),
        ("patient", {"patience": -1}, ": patience cannot be negative"),
        ("patient", {"wrapped_pruner.n_startup_trials": -1}, ".wrapped_pruner: Number of startup"),
        (
            "rungs",
            {"reduction_factor": 1},
            ".reduction_factor: input should be greater than 1, but got 1",
        ),
        ("rungs", {"min_epochs": "x"}, ".min_epochs: "),
        (
            "rungs",
            {"min_correlation": 2},
            ".min_correlation: input should be less than or equal to 1",
        ),
        ("none", {"_target_": "pathlib.Path"}, "._target_: must be a pruner"),
        ("none", {"_target_": "optuna.pruners.Nop"}, "._target_: cannot import optuna.pruners.Nop"),
    ],
)
def test_impossible_config_names_its_key(name: str, changes: dict[str, Any], message: str) -> None:
    node = config(name)
    for key, value in changes.items():
        OmegaConf.update(node, key, value)
    with pytest.raises(ConfigError) as caught:
        make_pruner(node, 1, 18)
    assert str(caught.value).startswith("hydra.sweeper.pruner")
    assert message in str(caught.value)


# Rungs


@pytest.mark.parametrize(
    ("max_epochs", "min_epochs", "factor", "epochs"),
    [
        (18, 2, 3, (2, 6)),  # not at 18, after which nothing could be stopped
        (19, 2, 3, (2, 6, 18)),
        (100, 1, 4, (1, 4, 16, 64)),
        # 1, 1.3, 1.69, 2.2, 2.86, 3.71, 4.83, 6.27, 8.16
        (10, 1, 1.3, (1, 2, 3, 4, 5, 6, 8)),
        (3, 2, 3, (2,)),
        (18, 0, 3, "min_epochs"),
        (18, 18, 3, "min_epochs"),
        (18, 2, 1, "reduction_factor"),
        (18, 2, math.inf, "reduction_factor"),
        (18, 2, math.nan, "reduction_factor"),
    ],
)
def test_rungs_are_powers_of_the_factor(
    max_epochs: int, min_epochs: int, factor: float, epochs: tuple[int, ...] | str
) -> None:
    if isinstance(epochs, str):
        with pytest.raises(ConfigError) as caught:
            Rungs(max_epochs, min_epochs, factor)
        assert caught.value.key == epochs
    else:
        assert Rungs(max_epochs, min_epochs, factor).epochs == epochs


def verdicts(
    points: Sequence[Sequence[float]],
    objectives: list[Objective],
    factor: float = 3,
    broken: Sequence[float] | None = None,
) -> tuple[list[bool], list[int]]:
    """Of each trial: whether it goes on, and its rank."""
    table = np.array(points, dtype=float)
    rows = [goes_on(table, row, objectives, factor, broken) for row in range(len(points))]
    return [continues for continues, _ in rows], [rank for _, rank in rows]


def test_by_hand_with_two_objectives() -> None:
    points = [
        [0.9, 40],  # front, an end
        [0.5, 10],  # front, an end
        [0.8, 35],  # front, crowded: 0.15/0.4 + 10/30
        [0.75, 30],  # front, roomier: 0.3/0.4 + 25/30
        [0.4, 20],  # behind the second
        [0.3, 45],  # behind all
    ]
    continues, ranks = verdicts(points, [UP, DOWN], 2)
    assert set(ranks[:2]) == {1, 2}
    assert ranks[2:] == [4, 3, 5, 6]
    assert continues == [True, True, False, True, False, False]  # 6 / 2
    assert goes_on(np.array([[0.2, 10]]), 0, [UP, DOWN]) == (True, 1)  # the first at a rung


@pytest.mark.parametrize(
    ("count", "factor", "n_kept"), [(1, 3, 1), (2, 3, 2), (5, 3, 2), (9, 3, 3), (17, 3, 5)]
)
def test_of_a_large_front_only_the_roomiest_go_on(count: int, factor: int, n_kept: int) -> None:
    accuracy = np.arange(count) / 100
    points = np.stack([accuracy, accuracy**2], axis=1)  # all on the front, more room the further up
    survivors = np.flatnonzero(verdicts(points.tolist(), [UP, DOWN], factor)[0])
    assert survivors.tolist() == [0, *range(count - n_kept + 1, count)]


def test_with_one_objective_it_is_the_order_of_values() -> None:
    continues, ranks = verdicts([[x] for x in (0.3, 0.6, 0.1, 0.5, 0.4, 0.2, 0.15)], [UP])
    assert ranks == [4, 1, 7, 2, 3, 5, 6]
    assert np.flatnonzero(continues).tolist() == [1, 3]  # 7 / 3 is 2


def test_a_trial_with_a_missing_value_is_last_and_does_not_go_on() -> None:
    for missing in (math.nan, math.inf, -math.inf):
        assert verdicts([[missing, 1.0], [0.2, 10.0]], [UP, DOWN], 1.5) == ([False, True], [2, 1])
        assert verdicts([[missing, 1.0]], [UP, DOWN])[0] == [False]  # not even as the first


@pytest.mark.parametrize("objectives", [[UP], [UP, DOWN]])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_of_equal_trials_that_come_one_by_one_a_fraction_goes_on(
    objectives: list[Objective], factor: int
) -> None:
    # nets at chance level: each is asked when it comes, as the last of those so far
    at_chance = np.full((60, len(objectives)), 1 / 7)
    survivors = sum(
        goes_on(at_chance[: count + 1], count, objectives, factor)[0] for count in range(60)
    )
    # of each `count`, one is the newcomer
    expected = sum(max(1, count // factor) / count for count in range(1, 61))
    assert survivors == pytest.approx(expected, abs=4)


def test_copies_of_an_end_of_the_front_do_not_crowd_out_the_rest() -> None:
    copies = [[1 / 7, 1.0]] * 20  # the cheapest net, twenty times at chance level
    others = [[0.2, 2.0], [0.3, 3.0], [0.4, 4.0], [0.5, 5.0]]
    ranks = verdicts(copies + others, [UP, DOWN], 4)[1]
    assert sorted(ranks) == list(range(1, 25))
    assert max(ranks[20:]) == 5  # the four and one of the copies come first
    assert sum(rank <= 6 for rank in ranks[:20]) == 2  # 24 / 4 go on


POINTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20)


@settings(max_examples=40)
@given(POINTS, st.floats(1.1, 6), st.data())
def test_the_best_fraction_goes_on_by_constrained_domination(
    points: list[tuple[int, int]], factor: float, data: st.DataObject
) -> None:
    violation = st.sampled_from([0.0, 0.1, 0.2])
    broken = data.draw(st.lists(violation, min_size=len(points), max_size=len(points)))
    for violations in ([0.0] * len(points), broken):
        continues, ranks = verdicts(points, [UP, DOWN], factor, violations)
        assert sorted(ranks) == list(range(1, len(points) + 1))
        least = {p for p, v in zip(points, violations, strict=True) if v == min(violations)}
        on_front = [
            a for a in least if not any(a != b and b[0] >= a[0] and b[1] <= a[1] for b in least)
        ]
        n_front = len(on_front if min(violations) == 0 else least)
        assert sum(continues) == max(int(len(points) / factor), min(n_front, 2))
        for a, first in enumerate(points):
            for b, second in enumerate(points):
                dominates = first != second and first[0] >= second[0] and first[1] <= second[1]
                feasible = violations[a] == violations[b] == 0
                if violations[a] < violations[b] or (feasible and dominates):
                    assert ranks[a] < ranks[b]
    unlimited = verdicts(points, [UP, DOWN], factor)
    assert unlimited == verdicts(points, [UP, DOWN], factor, [0.0] * len(points))
    other_units = [(accuracy, flops * 2.0**20) for accuracy, flops in points]
    assert unlimited == verdicts(other_units, [UP, DOWN], factor)


def test_by_hand_with_limits() -> None:
    points = [[0.9, 10], [0.5, 30], [0.6, 40], [0.8, 5], [np.nan, 1]]
    broken = [0.25, 0.0, 0.0, 0.125, 0.0]  # the two best by far break a limit
    continues, ranks = verdicts(points, [UP, DOWN], 2, broken)
    assert {ranks[1], ranks[2]} == {1, 2}
    assert [ranks[row] for row in (3, 0, 4)] == [3, 4, 5]
    assert continues == [False, True, True, False, False]  # 5 / 2
    # Where all break a limit, the least violation goes on.
    points, broken = [[0.9, 10], [0.5, 30], [0.4, 40]], [0.5, 0.25, math.inf]
    assert verdicts(points, [UP, DOWN], 3, broken) == ([False, True, False], [2, 1, 3])


def reach(
    trial: optuna.Trial,
    values: list[float],
    limited: dict[str, float] | None = None,
    limits: tuple[Limit, ...] = (),
    epoch: int = 2,
) -> tuple[bool, int, int]:
    objectives = [UP, DOWN][: len(values)]
    return RUNGS.record(trial, epoch, at_rung(*values) | (limited or {}), objectives, limits)


def at_rung(*values: float | None) -> dict[str, Any]:
    """As stored."""
    return dict(zip((UP.metric, DOWN.metric), values, strict=False))


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(directions=["maximize", "minimize"])


def test_a_rung_compares_all_trials_in_the_storage(database: str) -> None:
    storage, directions = open_storage(database), ["maximize", "minimize"]
    study = optuna.create_study(storage=storage, study_name="rung", directions=directions)
    first, second, third = (study.ask() for _ in range(3))
    assert reach(first, [0.3, 10.0]) == (True, 1, 1)
    assert reach(second, [0.2, 20.0]) == (False, 2, 2)
    study.tell(second, state=optuna.trial.TrialState.PRUNED)
    # Another process sees running and ended trials.
    other = optuna.load_study(storage=open_storage(database), study_name="rung")
    assert reach(optuna.Trial(other, third._trial_id), [0.4, 5.0]) == (True, 1, 3)
    assert reach(first, [0.5, 10.0], epoch=6) == (True, 1, 1)
    assert study.trials[0].system_attrs[f"{RUNG}2"] == at_rung(0.3, 10.0)


@pytest.mark.parametrize("tries", [2, 3, 5])
def test_a_retried_trial_counts_once(study: optuna.Study, tries: int) -> None:
    chain, other = [study.ask() for _ in range(tries)], study.ask()
    for earlier, retry in zip(chain, chain[1:], strict=False):
        retry.set_user_attr("retry_of", earlier.number)
    reach(chain[0], [0.3, 10.0])  # those between were killed before the rung
    assert reach(chain[0], [0.3, 10.0])[2] == 1  # resumed shortly before the rung
    # The last try has not reached the rung yet: the first one counts.
    assert reach(other, [0.1, 30.0]) == (False, 2, 2)
    assert reach(chain[-1], [0.3, 10.0]) == (True, 1, 2)


def test_a_trial_that_breaks_a_limit_comes_after_one_that_keeps_it(study: optuna.Study) -> None:
    limits = (RECALL, Limit("efficiency/latency_ms/b1/p50", "<=", 5))  # the latter is not measured
    blind, careful, worse = (study.ask() for _ in range(3))

    def reach_with(trial: optuna.Trial, values: list[float], recall: float) -> Any:
        return reach(trial, values, {"best/val/recall/mel": recall}, limits)

    assert reach_with(blind, [0.9, 5.0], 0.4) == (True, 1, 1)
    assert reach_with(careful, [0.3, 10.0], 0.8) == (True, 1, 2)
    assert reach_with(worse, [0.95, 1.0], math.nan) == (False, 3, 3)
    assert reach_with(blind, [0.9, 5.0], 0.4) == (False, 2, 3)
    stored = at_rung(0.95, 1.0) | {"best/val/recall/mel": None}
    assert study.trials[2].system_attrs == {f"{RUNG}2": stored}


def test_trials_with_values_at_the_rung_count(study: optuna.Study) -> None:
    # of a warm start: one that reached the rung, one that did not, one with another objective
    for attributes in ({f"{RUNG}2": at_rung(0.8, 1.0)}, {}, {f"{RUNG}2": at_rung(0.8)}):
        copied = optuna.trial.create_trial(
            values=[0.9, 1.0], system_attrs=attributes, user_attrs={"warm_from": "older"}
        )
        study.add_trial(copied)
    assert reach(trial := study.ask(), [math.nan, 10.0]) == (False, 2, 2)
    assert study.trials[trial.number].system_attrs[f"{RUNG}2"] == at_rung(None, 10.0)


def finished(early: float, final: float) -> optuna.trial.FrozenTrial:
    """A trial that was trained to the end."""
    metrics = at_rung(final, 10.0)
    attributes = {
        f"{RUNG}2": at_rung(early, 10.0),
        OUTCOME: vars(TrialOutcome("complete", metrics=metrics)),
    }
    return optuna.trial.create_trial(values=[final, 10.0], system_attrs=attributes)


@pytest.mark.parametrize(
    ("final", "least", "stops"),
    [
        ([0.5, 0.6, 0.7, 0.8, 0.9], 0.5, True),
        ([0.9, 0.8, 0.7, 0.6, 0.5], 0.5, False),  # what is ahead at the rung is behind at the end
        ([0.9, 0.8, 0.7, 0.6], 0.5, True),  # too few to tell
        ([0.9, 0.8, 0.7, 0.6, 0.5], -1.0, True),
        ([0.5, 0.5, 0.5, 0.5, 0.5], 0.5, True),  # all equal
    ],
)
def test_a_rung_that_does_not_predict_stops_no_trial(
    study: optuna.Study, final: list[float], least: float, stops: bool
) -> None:
    for number, value in enumerate(final):
        study.add_trial(finished(0.1 * (number + 1), value))
    rungs, trial = Rungs(18, min_correlation=least), study.ask()
    # Costs come first in this study: the correlation is of what each epoch measures.
    continues, rank, count = rungs.record(trial, 2, at_rung(0.01, 90.0), [DOWN, UP])
    assert (not continues, rank, count) == (stops, len(final) + 1, len(final) + 1)


def test_rung_correlation_by_hand_and_as_of_all_trials() -> None:
    ranks = dict(enumerate([0.1, 0.2, 0.3, 0.4, 0.5]))
    # Spearman of 1..5 and 2 1 4 3 5 is 1 - 6 * 4 / 120; nobody was stopped.
    assert rung_correlation(ranks, dict(enumerate([2, 1, 4, 3, 5]))) == pytest.approx(0.8)
    # Of a normal pair with correlation 0.7 the best third at the rung is trained to the end.
    chance = np.random.default_rng(0)
    x = chance.standard_normal(6000)
    y = 0.7 * x + math.sqrt(1 - 0.49) * chance.standard_normal(6000)
    best = np.argsort(-x)[:2000]
    known = rung_correlation(dict(enumerate(x)), {int(row): float(y[row]) for row in best})
    plain = np.corrcoef(x[best], y[best])[0, 1]
    assert plain < 0.5
    assert known == pytest.approx(0.7, abs=0.06)


def test_trials_that_arrive_at_once_see_each_other(tmp_path: Path) -> None:
    """Three connections to one database; a higher trial number is better in both objectives."""
    url = default_url(tmp_path)
    study = optuna.create_study(
        storage=open_storage(url), study_name="s", directions=["maximize", "minimize"]
    )
    trial_ids = [study.ask()._trial_id for _ in range(24)]

    def climb(share: list[int]) -> list[tuple[int, int, bool, int, int]]:
        storage, decisions = open_storage(url), []
        for trial_id in share:
            trial = optuna.Trial(optuna.load_study(storage=storage, study_name="s"), trial_id)
            for epoch in RUNGS.epochs:
                decision = reach(trial, [trial.number / 100, 100.0 - trial.number], epoch=epoch)
                decisions.append((trial.number, epoch, *decision))
                if not decision[0]:
                    break
        return decisions

    with ThreadPoolExecutor(3) as pool:
        shares = pool.map(climb, [trial_ids[start::3] for start in range(3)])
    decisions = [decision for share in shares for decision in share]
    assert max(count for _, epoch, _, _, count in decisions if epoch == 2) == 24
    for _, _, continues, rank, count in decisions:
        assert continues == (rank <= max(1, count // 3))
    assert {epoch: rank for number, epoch, _, rank, _ in decisions if number == 23} == {2: 1, 6: 1}
    counts = Counter(epoch for _, epoch, *_ in decisions)
    keys = (key for trial in study.trials for key in trial.system_attrs)
    stored = Counter(key for key in keys if key.startswith(RUNG))
    assert stored == {f"{RUNG}{epoch}": count for epoch, count in counts.items()}


# Best values so far


def test_best_values_by_hand() -> None:
    best = BestSoFar([ACCURACY, LOSS, DOWN], [])
    best.add(1, {"val/accuracy": math.nan, "val/loss": 2.0})
    best.add(2, {"val/accuracy": 0.5, "val/loss": 1.0, "val/f1/mel": 0.3})
    best.add(3, {"val/accuracy": 0.4, "val/loss": math.nan})
    best.add(4, {"val/loss": 1.5})
    assert best.epoch == 4
    # FLOPs are not measured per epoch.
    assert best.best == {"best/val/accuracy": 0.5, "best/val/loss": 1.0}
    assert best.limited == {}
    # A limited metric that is undefined at the best epoch is unknown.
    best = BestSoFar([ACCURACY], [RECALL])
    best.add(1, {"val/accuracy": 0.5, "val/recall/mel": 0.9})
    best.add(2, {"val/accuracy": 0.6})
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


# A custom pruner, named by `_target_` alone


class StopsAt:
    """Stops every trial at one epoch."""

    def __init__(self, epoch: int, max_epochs: int) -> None:
        self.epoch = min(epoch, max_epochs)

    def check_trial(self, trial: Any, epochs: int, best: BestSoFar, cost: Any) -> None:
        if best.epoch == self.epoch:
            raise Pruned(f"epoch {best.epoch} of {epochs}")


def test_a_custom_pruner_needs_only_its_target(study: optuna.Study) -> None:
    node = {"_target_": f"{__name__}.StopsAt", "epoch": 4, "name": "custom"}
    assert isinstance(make_pruner(node, 2, 3), StopsAt)  # several objectives
    pruner, trial = pruner_from_spec(json.loads(json.dumps(pruner_spec(node, 3)))), study.ask()
    best = BestSoFar([UP, DOWN], [])
    best.add(2, {})
    check_trial(pruner, trial, 5, {}, best, {})
    best.add(3, {})
    with pytest.raises(Pruned, match="epoch 3 of 5"):
        check_trial(pruner, trial, 5, {}, best, {})
