"""Pruners decide as arithmetic says, in a trial's own process and from plain JSON."""

import binascii
import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import DictConfig, OmegaConf
from optuna.storages import BaseStorage

from src.core.errors import ConfigError
from src.metrics.registry import Objective
from src.sweep.pruners import Rungs, make_pruner, pruner_from_spec, pruner_spec
from src.sweep.records import TrialOutcome
from src.sweep.storage import attach, default_url, open_storage
from src.sweep.study import Definition, OwnedStudy, open_study, tell

CONF = Path(__file__).resolve().parents[2] / "conf" / "hydra" / "sweeper" / "pruner"
NAMES = sorted(file.stem for file in CONF.glob("*.yaml"))
BOUND = {"threshold": {"lower": 0.3}}  # what a choice leaves to the user
ACCURACY = Objective("val/accuracy", "maximize")


def config(name: str, **changes: Any) -> DictConfig:
    node = OmegaConf.load(CONF / f"{name}.yaml")
    node.update(BOUND.get(name, {}) | changes)
    return node  # type: ignore[return-value]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return default_url(tmp_path_factory.mktemp("studies"))


class Curves:
    """Trials that report given values an epoch each, attached as in a process of their own."""

    def __init__(self, url: str, name: str, node: DictConfig, max_epochs: int) -> None:
        self.url = url
        self.storage: BaseStorage = open_storage(url)
        self.spec = json.loads(json.dumps(pruner_spec(node, max_epochs)))
        pruner = make_pruner(node, 1, max_epochs)
        assert isinstance(pruner, optuna.pruners.BasePruner)
        definition = Definition(name, [ACCURACY], [], {}, [])
        self.study: OwnedStudy = open_study(
            self.storage, definition, optuna.samplers.RandomSampler(0), pruner, lambda old, new: []
        )

    def train(self, *values: float) -> int | None:
        """The epoch at which the trial was stopped; None if it reached its end."""
        asked = self.study.ask()
        pruner = pruner_from_spec(self.spec)
        assert isinstance(pruner, optuna.pruners.BasePruner)
        trial = attach(self.url, self.study.study_name, asked._trial_id, pruner)
        stopped = None
        for epoch, value in enumerate(values, start=1):
            trial.report(value, epoch)
            if trial.should_prune():
                stopped = epoch
                break
        metrics = {"best/val/accuracy": max(values)}
        outcome = (
            TrialOutcome("pruned", reason="behind")
            if stopped
            else TrialOutcome("complete", metrics=metrics)
        )
        told = tell(self.study, asked.number, outcome, [ACCURACY], [], True)
        assert told.state.name == ("PRUNED" if stopped else "COMPLETE")
        return stopped


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
        said = f"hydra.sweeper.pruner: {name} works for one objective, this study has 2: take hydra/sweeper/pruner=rungs"
        with pytest.raises(ConfigError, match=said):
            make_pruner(config(name), 2, 18)


def test_number_of_epochs_is_filled_in() -> None:
    wrapped = config("patient", wrapped_pruner=OmegaConf.load(CONF / "hyperband.yaml"))
    del wrapped.wrapped_pruner["name"]
    assert pruner_spec(wrapped, 9)["wrapped_pruner"]["max_resource"] == 9
    assert pruner_spec(config("hyperband"), 9)["max_resource"] == 9
    assert pruner_spec(config("hyperband", max_resource=5), 9)["max_resource"] == 5
    assert pruner_spec(config("rungs"), 9)["max_epochs"] == 9


@pytest.mark.parametrize(
    ("name", "changes", "said"),
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
def test_impossible_config_names_its_key(name: str, changes: dict[str, Any], said: str) -> None:
    node = config(name)
    for key, value in changes.items():
        OmegaConf.update(node, key, value)
    with pytest.raises(ConfigError) as caught:
        make_pruner(node, 1, 18)
    assert said in str(caught.value)
    assert str(caught.value).count("hydra.sweeper.pruner") == 1 + ("upper must" in said)
