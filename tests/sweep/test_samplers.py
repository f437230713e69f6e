"""The contract of every sampler in conf/, and refusals of those that cannot serve."""

import inspect
import math
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra.utils
import optuna
import pytest
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from src.core.errors import ConfigError, DependencyError, UserError
from src.metrics.registry import Limit, Objective
from src.sweep.records import TrialOutcome
from src.sweep.samplers import SamplerChoice, make_sampler
from src.sweep.space import Space
from src.sweep.storage import default_url, open_storage
from src.sweep.study import OwnedStudy, open_study, tell

CONF = Path(__file__).resolve().parents[2] / "conf" / "hydra" / "sweeper" / "sampler"
NAMES = sorted(file.stem for file in CONF.glob("*.yaml"))
OBJECTIVES = [Objective("val/accuracy", "maximize"), Objective("efficiency/flops", "minimize")]
LIMIT = Limit("efficiency/params", "<=", 32)
SMALLER = {
    "nsgaii": {"population_size": 6},
    "nsgaiii": {"population_size": 6},
    "gp": {"n_startup_trials": 2},
}
ASKS = {"gp": 3}  # each after the second takes half a second
CASES = [(name, n) for name in NAMES for n in (1, 2) if (name, n) != ("cmaes", 2)]


def config(name: str) -> DictConfig:
    node = OmegaConf.load(CONF / f"{name}.yaml")
    node.update(SMALLER.get(name, {}))
    return node  # type: ignore[return-value]


def mixed(trial: Any) -> dict[str, Any]:
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    trial.suggest_int("width", 8, 64)
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    if kind == "b":
        trial.suggest_float("dropout", 0.0, 0.5)
    return dict(trial.params)


def countable(trial: Any) -> dict[str, Any]:
    """As `mixed`, of 8 x 2 x (1 + 2 + 1) = 64 cells."""
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    trial.suggest_int("width", 8, 64, step=8)
    trial.suggest_categorical("lr", [1e-3, 1e-2])
    if kind == "b":
        trial.suggest_categorical("dropout", [0.0, 0.5])
    return dict(trial.params)


def metrics_of(params: dict[str, Any]) -> dict[str, float]:
    accuracy = 0.9 - 0.1 * abs(math.log10(params["lr"]) + 2) - params.get("dropout", 0.1)
    width = float(params["width"])
    return {"best/val/accuracy": accuracy, "efficiency/flops": width**2, "efficiency/params": width}


class Bench:
    """A study with one worker."""

    def __init__(
        self, name: str, n: int, seed: int = 0, storage: BaseStorage | None = None, done: int = 0
    ) -> None:
        self.objectives = OBJECTIVES[:n]
        self.suggest = countable if name == "brute_force" else mixed
        self.choice: SamplerChoice = make_sampler(config(name), seed, n, done)
        definition = f"{name} {n}", self.objectives, [LIMIT], Space([], {}), []
        storage = storage or InMemoryStorage()
        self.study: OwnedStudy = open_study(storage, *definition, self.choice.sampler)
        self.study.learns_from_pruned = self.choice.learns_from_pruned

    def run(
        self, asks: int, outcome: Callable[[int, dict[str, float]], TrialOutcome] | None = None
    ) -> list[dict[str, Any]]:
        drawn = []
        for number in range(asks):
            trial = self.study.ask()
            drawn.append(self.suggest(trial))
            metrics = metrics_of(trial.params)
            cost = {name: value for name, value in metrics.items() if name.startswith("efficiency")}
            if outcome is not None:
                result = outcome(number, metrics)
            elif LIMIT.holds(metrics["efficiency/params"]):
                result = TrialOutcome("complete", metrics=metrics)
            else:
                result = TrialOutcome("over_limit", reason="too big", metrics=cost)
            tell(self.study, trial, result)
        return drawn


def fail(number: int, metrics: dict[str, float]) -> TrialOutcome:
    return TrialOutcome("fail", "error", "no luck")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return default_url(tmp_path_factory.mktemp("studies"))


@pytest.mark.parametrize(("name", "n"), CASES)
def test_every_sampler_draws_within_the_space_as_its_seed_decides(name: str, n: int) -> None:
    asks = ASKS.get(name, 20)
    bench = Bench(name, n, seed=1)
    drawn = bench.run(asks)
    for params, trial in zip(drawn, bench.study.trials, strict=True):
        assert params["kind"] in "abc"
        assert 8 <= params["width"] <= 64
        assert 1e-4 <= params["lr"] <= 1e-1
        assert ("dropout" in params) == (params["kind"] == "b")
        over = params["width"] > 32
        learns = bench.choice.learns_from_pruned
        assert trial.state is (TrialState.PRUNED if over and learns else TrialState.COMPLETE)
        violation = pytest.approx(params["width"] / 32 - 1)
        assert trial.constraints == {"efficiency/params <= 32": violation}
    assert name == "gp" or {params["kind"] for params in drawn} == set("abc")
    assert Bench(name, n, seed=1).run(asks) == drawn
    assert Bench(name, n, seed=2).run(asks) != drawn


@pytest.mark.parametrize(("name", "n"), CASES)
def test_every_sampler_survives_every_outcome(name: str, n: int) -> None:
    def outcome(number: int, metrics: dict[str, float]) -> TrialOutcome:
        cost = {"efficiency/flops": metrics["efficiency/flops"], "efficiency/params": 40.0}
        good = metrics | {"efficiency/params": 8.0}
        every = [
            TrialOutcome("over_limit", reason="first of all, with no other", metrics=cost),
            TrialOutcome("complete", metrics=good),
            TrialOutcome("pruned", reason="behind", metrics=cost),
            TrialOutcome("fail", "out_of_memory", "no memory"),
            TrialOutcome("complete", metrics=good | {"best/val/accuracy": math.nan}),
        ]
        return every[number % 5]

    bench = Bench(name, n)
    bench.run(6 if name == "gp" else 20, outcome)
    states = [trial.state.name for trial in bench.study.trials[:5]]
    over = "PRUNED" if bench.choice.learns_from_pruned else "COMPLETE"
    assert states == [over, "COMPLETE", "PRUNED", "FAIL", "FAIL"]


@pytest.mark.parametrize(("name", "n"), CASES)
def test_every_sampler_resumes_from_a_database(name: str, n: int, url: str) -> None:
    before = Bench(name, n, storage=open_storage(url)).run(2)
    resumed = Bench(name, n, storage=open_storage(url), done=2)
    # What is enqueued is taken first.
    params = {"kind": "b", "width": 24, "lr": 0.01, "dropout": 0.5}
    resumed.study.enqueue_trial(params)
    after = resumed.run(2)
    assert after[0] == params
    assert [trial.params for trial in resumed.study.trials] == before + after
    assert not [drawn for drawn in after if drawn in before]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("qmc", "brute_force")])
def test_failures_teach_nothing(name: str) -> None:
    fresh = Bench(name, 1, seed=5).run(1)
    bench = Bench(name, 1, seed=4)
    bench.run(15, fail)
    bench.study.sampler = make_sampler(config(name), 5, 1, 0).sampler
    assert bench.run(1) == fresh


@pytest.mark.parametrize(("name", "n"), [("tpe", 1), ("tpe", 2), ("nsgaii", 2)])
def test_learns_to_stay_within_the_limit(name: str, n: int) -> None:
    # 32 of 57 widths are over the limit: by chance 9 of 16 draws would be
    bench = Bench(name, n, seed=3)
    bench.run({"nsgaii": 60}.get(name, 40))
    over = sum(params["width"] > 32 for params in bench.run(16))
    assert over <= 4


def test_brute_force_runs_every_cell_and_records_that_none_remains() -> None:
    bench = Bench("brute_force", 1)
    assert not bench.study.exhausted
    drawn = bench.run(64)
    assert len({tuple(sorted(params.items())) for params in drawn}) == 64
    assert bench.study.exhausted
    assert OwnedStudy("brute_force 1", bench.study._storage).exhausted


def test_a_custom_sampler_needs_only_its_target() -> None:
    """Its config states the facts that the scheduler needs; they are not passed on."""
    node = {
        "_target_": "optuna.samplers.RandomSampler",
        "name": "custom",
        "learns_from_pruned": False,
        "max_objectives": 1,
        "package": "optuna",
    }
    choice = make_sampler(node, 0, 1, 0)
    assert (choice.name, choice.learns_from_pruned) == ("custom", False)
    with pytest.raises(ConfigError, match="custom works for one objective, this study has 2"):
        make_sampler(node, 0, 2, 0)
    with pytest.raises(DependencyError, match="custom needs absent: run `pip install absent`"):
        make_sampler({**node, "package": "absent"}, 0, 1, 0)
    assert [make_sampler(config(name), 0, 1, 0).name for name in NAMES] == NAMES


def test_every_argument_is_set_explicitly() -> None:
    plain = {"int", "float", "bool", "str", "None", "|"}
    deprecated = {"consider_prior", "prior_weight", "consider_magic_clip", "consider_endpoints"}
    deprecated |= {"inc_popsize", "restart_strategy", "seed"}
    for name in sorted(set(NAMES) - {"grid"}):
        node = OmegaConf.load(CONF / f"{name}.yaml")
        parameters = inspect.signature(hydra.utils.get_object(node._target_)).parameters
        simple = {
            key for key, value in parameters.items() if set(str(value.annotation).split()) <= plain
        }
        unset = {"warn_independent_sampling"} if name == "tpe" else set()
        assert simple - deprecated - unset <= set(node), name


STARTUP = "n_startup_trials"


@pytest.mark.parametrize(
    ("name", "change", "n_objectives", "message"),
    [
        ("tpe", {STARTUP: "many"}, 1, "_trials: input should be a valid integer, but got 'many'"),
        ("tpe", {STARTUP: None}, 1, "_trials: input should be a valid integer, but got None"),
        ("tpe", {STARTUP: True}, 1, "_trials: input should be a valid integer, but got True"),
        (
            "tpe",
            {"multivariate": "no"},
            1,
            "multivariate: input should be a valid boolean, but got 'no'",
        ),
        ("tpe", {"gama": 1}, 1, ".gama: unknown key; did you mean gamma"),
        ("tpe", {"seed": 1}, 1, ".seed: must be left out"),
        ("tpe", {"_target_": "optuna.samplers.TPE"}, 1, "._target_: cannot import optuna.samplers"),
        ("tpe", {"_target_": "pathlib.Path"}, 1, ""),
        ("nsgaii", {"population_size": 1}, 1, ": `population_size` must be greater than or equal"),
        ("random", {"_target_": "optuna.samplers.GridSampler"}, 1, "hydra/sweeper/sampler=grid"),
        ("cmaes", {}, 2, ": cmaes works for one objective, this study has 2"),
    ],
)
def test_impossible_config_names_its_key(
    name: str, change: dict[str, Any], n_objectives: int, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_sampler({**config(name), **change}, 0, n_objectives, 0)  # type: ignore[dict-item]
    assert str(caught.value).startswith("hydra.sweeper.sampler")
    assert message in str(caught.value)


def test_no_warning_that_says_nothing() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in NAMES:
            Bench(name, 1).run(3)
    assert [str(warning.message) for warning in caught] == []
    assert optuna.logging.get_verbosity() >= optuna.logging.WARNING


def test_the_state_of_cmaes_executes_nothing(tmp_path: Path) -> None:
    class Command:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    sampler = optuna.samplers.CmaEsSampler(n_startup_trials=1, seed=0)
    study = optuna.create_study(sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        return trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1)

    study.optimize(objective, n_trials=12)
    states = [trial for trial in study.trials if "cma:optimizer:0" in trial.system_attrs]
    assert states  # and they were read again without an error
    state = pickle.dumps(Command()).hex()
    for trial in states:
        attributes = study._storage.get_trial(trial._trial_id).system_attrs  # in memory no copy
        for key in [key for key in attributes if key.startswith("cma:optimizer:")]:
            del attributes[key]
        attributes["cma:optimizer:0"] = state
    with pytest.raises(UserError, match="the state of CMA-ES in the database names"):
        study.ask({"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)})
    assert not (tmp_path / "executed").exists()
