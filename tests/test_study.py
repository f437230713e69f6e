"""From a command line to a plan: names, settings, refusals before anything is opened; and how a study is reopened."""

from pathlib import Path

import optuna
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from src import study as launch
from src.core import config as shared_config
from src.core.cli import ROOT
from src.core.errors import ConfigError, UserError
from src.study import StudyPlan, make_plan
from src.sweep.storage import default_url, open_storage

Plugins.instance()


def multirun_config(*arguments: str) -> DictConfig:
    """As Hydra composes it for a sweeper."""
    loader = ConfigLoaderImpl(create_config_search_path(str(ROOT / "conf")))
    return loader.load_configuration("train", list(arguments), RunMode.MULTIRUN)


def planned(*arguments: str) -> StudyPlan:
    config = multirun_config(*arguments)
    own = [argument for argument in arguments if not argument.startswith("hydra")]
    return make_plan(config, config.hydra.sweeper, own)


def test_a_study_without_a_name_gets_one_that_tells_what_is_swept() -> None:
    plan = planned(
        "model.net.width=8,16",
        "optimizer.lr=tag(log,interval(1e-4,1e-2))",
        "hydra.sweeper.n_trials=3",
    )
    readable, _, digest = plan.name.rpartition("-")
    assert readable == "width-8,16-lr-tag_log,interval_1e-4,1e-2"
    assert len(digest) == 6
    assert plan.folder.name == plan.name
    assert not plan.is_grid


def test_made_names_differ_with_what_is_fixed_and_not_with_the_order() -> None:
    swept = "model.net.width=8,16"
    names = [
        planned(swept).name,
        planned(swept, "trainer.max_epochs=2").name,
        planned(swept, "trainer.max_epochs=3").name,
    ]
    assert len(set(names)) == 3
    assert {name.rpartition("-")[0] for name in names} == {"width-8,16"}
    assert planned("trainer.max_epochs=2", swept).name == names[1]


def test_a_name_of_the_users_wins_and_makes_a_folder_of_its_own() -> None:
    assert planned("model.net.width=8,16", "hydra.sweeper.study_name=mine").name == "mine"
    assert planned("model.net.width=8,16", "study=mine").name == "mine"
    assert planned("sweeps=smoke").name == "smoke"
    assert (
        planned("model.net.width=8,16", "hydra.sweeper.study_name='a/../b'").folder.name == "a_.._b"
    )


@pytest.mark.parametrize(
    ("arguments", "key", "said"),
    [
        (
            [
                "optimizer.lr=interval(0.1,0.2)",
                "hydra/sweeper/sampler=grid",
                "hydra.sweeper.n_trials=3",
            ],
            "sampler",
            "tpe",
        ),
        (
            ["optimizer.lr=interval(0.1,0.2)", "hydra/sweeper/sampler=grid"],
            "optimizer.lr",
            "n_trials",
        ),
        (["optimizer.lr=interval(0.1,0.2)"], "optimizer.lr", "hydra.sweeper.n_trials"),
        (["seed=1,2,3", "repeats=2"], "repeats", "seed"),
        (["seed=1,2", "repeats=0"], "repeats", "greater than or equal to 1"),
        (
            ["model.net.width=8,16", "hydra.sweeper.retried=[nonsense]"],
            "hydra.sweeper.retried",
            "nonsense",
        ),
        (["model.net.width=8,16", "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials", "greater"),
        (["model.net.width=8,16", "hydra.sweeper.n_trials=many"], "hydra.sweeper.n_trials", "many"),
        (["model.net.width=8,16", "hydra.sweeper.retries=-1"], "hydra.sweeper.retries", "greater"),
        (
            ["model.net.width=8,16", "hydra.sweeper.time_limit_s=0"],
            "hydra.sweeper.time_limit_s",
            "greater",
        ),
        (["model.net.width=8,16", "hydra.sweeper.drop_p=0.6"], "hydra.sweeper.drop_p", "less"),
        (
            ["model.net.width=8,16", "hydra.sweeper.retry_failed=maybe"],
            "hydra.sweeper.retry_failed",
            "maybe",
        ),
        (
            ["model.net.width=8,16", "+hydra.sweeper.n_trails=2"],
            "hydra.sweeper.n_trails",
            "n_trials",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(arguments: list[str], key: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        planned(*arguments)
    assert key in refused.value.key
    assert said in str(refused.value)


def test_a_refused_command_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = multirun_config("hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=3")
    loader = ConfigLoaderImpl(create_config_search_path(str(ROOT / "conf")))
    with pytest.raises(ConfigError, match="an interval has none"):
        launch.sweep(config, loader, config.hydra.sweeper, ["optimizer.lr=interval(0.1,0.2)"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["model.net.width=8,16"],
        ["model.net.width=8,16", "trainer.max_epochs=3", "seed=7"],
        ["sweeps=smoke"],
        ["experiment=smoke", "optimizer.lr=0.1,0.2"],
    ],
)
def test_owner_and_trial_see_the_same_shared_config(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every trial would be refused the moment any file in conf/ is touched."""
    plan = planned(*arguments)
    payload = {
        "fixed": plan.overrides,
        "overrides": plan.overrides,
        "conf_digest": "before",
        "shared_digest": shared_config.shared_config_digest(plan.config),
    }
    config = shared_config.compose_trial(payload)
    assert config.seed == plan.config.seed
    with pytest.raises(UserError, match="conf/ or sweeps/ has changed"):
        shared_config.compose_trial(payload | {"shared_digest": "another"})
    monkeypatch.setattr(shared_config, "conf_digest", lambda: "before")
    assert shared_config.compose_trial(payload | {"shared_digest": "not looked at"}) == config


def test_only_what_has_an_effect_tells_shared_configs_apart() -> None:
    config = multirun_config()
    digest = shared_config.shared_config_digest(config)
    for key, value in {"study": "x", "threads": 3, "repeats": 5, "dry_run": True}.items():
        other = config.copy()
        with open_dict(other):
            other[key] = value
        assert shared_config.shared_config_digest(other) == digest, key
    other = config.copy()
    other.optimizer.lr = 0.123
    assert shared_config.shared_config_digest(other) != digest


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsgaii"])
def test_a_study_reopened_after_all_its_trials_were_broken_off_draws_others(
    tmp_path: Path, sampler: str
) -> None:
    """Trials that were stopped do not count, yet what was drawn for them must not be drawn again as something new."""
    plan = planned(
        "optimizer.lr=tag(log,interval(1e-4,1e-2))",
        f"hydra/sweeper/sampler={sampler}",
        "hydra.sweeper.n_trials=3",
    )
    url = default_url(tmp_path)
    drawn = []
    for _ in range(2):
        study, _ = launch._open_study(plan, open_storage(url), url)
        for _ in range(3):
            trial = study.ask()
            drawn.append(plan.space.suggest(trial).params["optimizer.lr"])
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert len(set(drawn)) == 6
