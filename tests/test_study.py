"""Studies: their definition from a command line, and complete studies on synthetic data."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import optuna
import pandas as pd
import psutil
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from benchmarks.sweep.faults import is_alive
from src import study, train
from src.core import config as shared_config
from src.core.cli import ROOT
from src.core.config import check, resolve
from src.core.errors import ConfigError, UserError
from src.study import StudyPlan, make_plan
from src.sweep.storage import default_url, open_storage
from src.tracking import read
from src.tracking.store import Store

Plugins.instance()


def multirun_config(*arguments: str) -> DictConfig:
    """As Hydra composes it for a sweeper."""
    loader = ConfigLoaderImpl(create_config_search_path(str(ROOT / "conf")))
    return loader.load_configuration("train", list(arguments), RunMode.MULTIRUN)


def planned(*arguments: str) -> StudyPlan:
    config = multirun_config(*arguments)
    own = [argument for argument in arguments if not argument.startswith("hydra")]
    return make_plan(config, config.hydra.sweeper, own)


def test_the_default_name_tells_what_is_swept() -> None:
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


def test_default_names_depend_on_fixed_values_but_not_on_the_order() -> None:
    swept = "model.net.width=8,16"
    names = [
        planned(swept).name,
        planned(swept, "trainer.max_epochs=2").name,
        planned(swept, "trainer.max_epochs=3").name,
    ]
    assert len(set(names)) == 3
    assert {name.rpartition("-")[0] for name in names} == {"width-8,16"}
    assert planned("trainer.max_epochs=2", swept).name == names[1]


def test_a_given_name_is_used_also_for_the_folder() -> None:
    assert planned("model.net.width=8,16", "hydra.sweeper.study_name=mine").name == "mine"
    assert planned("model.net.width=8,16", "study=mine").name == "mine"
    assert planned("sweeps=smoke").name == "smoke"
    assert (
        planned("model.net.width=8,16", "hydra.sweeper.study_name='a/../b'").folder.name == "a_.._b"
    )


@pytest.mark.parametrize(
    ("arguments", "key", "message"),
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
def test_impossible_definitions_are_refused_by_their_key(
    arguments: list[str], key: str, message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        planned(*arguments)
    assert key in refused.value.key
    assert message in str(refused.value)


def test_a_refused_command_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = multirun_config("hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=3")
    loader = ConfigLoaderImpl(create_config_search_path(str(ROOT / "conf")))
    with pytest.raises(ConfigError, match="an interval has none"):
        study.sweep(config, loader, config.hydra.sweeper, ["optimizer.lr=interval(0.1,0.2)"])
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


def test_the_shared_digest_ignores_settings_without_effect() -> None:
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
def test_a_resumed_study_does_not_repeat_proposals_of_interrupted_trials(
    tmp_path: Path, sampler: str
) -> None:
    """Stopped trials do not count, yet their parameters must not be drawn again as new ones."""
    plan = planned(
        "optimizer.lr=tag(log,interval(1e-4,1e-2))",
        f"hydra/sweeper/sampler={sampler}",
        "hydra.sweeper.n_trials=3",
    )
    url = default_url(tmp_path)
    drawn = []
    for _ in range(2):
        opened, _ = study._open_study(plan, open_storage(url), url)
        for _ in range(3):
            trial = opened.ask()
            drawn.append(plan.space.suggest(trial).params["optimizer.lr"])
            opened.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert len(set(drawn)) == 6


# studies about a data set: what their cells hold is trained in tests/test_conf.py
ON_REAL_IMAGES = {
    **dict.fromkeys(
        ("better", "better_final", "leakage", "mamun2025", "mamun2025_64px"), "ham10000"
    ),
    "sun2023": "siim2020",
    **dict.fromkeys(
        ("compression", "pruning"), "synthetic"
    ),  # they start from a run, see tests/compression
}
SWEEPS = sorted({file.stem for file in (ROOT / "sweeps").glob("*.yaml")} - ON_REAL_IMAGES.keys())
TINY = ["efficiency=fast", "data.source.lesions=120", "data.batch_size=16", "model.image_size=32"]


class WorkingFolder(NamedTuple):
    folder: Path
    store: Store

    def trials(self, name: str) -> list[optuna.trial.FrozenTrial]:
        return optuna.load_study(
            study_name=name, storage=f"sqlite:///{self.folder}/mlruns/optuna.db"
        ).trials

    def runs(self, name: str, kind: str = "run") -> pd.DataFrame:
        """The study's runs of a kind, in the order of their trials."""
        found = read.runs(self.store, f"tags.study = '{name}' and tags.kind = '{kind}'")
        return found.sort_values(["tags.trial", "tags.repeat"]) if kind == "run" else found


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> WorkingFolder:
    folder = tmp_path_factory.mktemp("studies")
    return WorkingFolder(folder, Store(folder=folder / "mlruns"))


@pytest.fixture
def typed(work: WorkingFolder, monkeypatch: pytest.MonkeyPatch, run_entry):
    """`python -m src.train <arguments>` in this process: status and output."""
    monkeypatch.chdir(work.folder)
    monkeypatch.setenv("PARETODERM_CACHE", str(work.folder / "cache"))
    return functools.partial(run_entry, train.main)


@pytest.fixture
def owners() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that a test starts: one that fails leaves none behind."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for owner in started:
        for each in (
            (*psutil.Process(owner.pid).children(recursive=True), owner)
            if owner.poll() is None
            else ()
        ):
            each.kill()
        owner.communicate()


def process(work: WorkingFolder, *arguments: str) -> subprocess.Popen[str]:
    """The same in a process of its own, to be killed."""
    environment = {
        **os.environ,
        "PARETODERM_CACHE": str(work.folder / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    for name in ("MLFLOW_TRACKING_URI", "HYDRA_FULL_ERROR"):
        environment.pop(name, None)
    return subprocess.Popen(
        [sys.executable, "-m", "src.train", *arguments],
        cwd=work.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(condition, seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "timeout"
        time.sleep(0.1)


def header(name: str) -> str:
    text = (ROOT / "sweeps" / f"{name}.yaml").read_text()
    assert text.startswith(f"# @package _global_\n# {name}: ")
    for word in ("command:", "hardware:", "time:", "expected:"):
        assert f"\n# {word} " in text, f"{name} has no {word}"
    return text


@pytest.mark.parametrize("name", ON_REAL_IMAGES)
def test_sweeps_of_a_data_set_have_a_header_and_compose(name: str) -> None:
    presets = re.findall(
        r"\b(?:mamun2025|sun2023|better)/\w+", header(name).rpartition("hydra:")[2]
    )
    for cell in [f"experiment={preset}" for preset in sorted(set(presets))] or ["seed=0"]:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("train", [f"sweeps={name}", cell])
        check(resolve(config))
        assert config.data.name == ON_REAL_IMAGES[name]
        assert config.preset == (cell.partition("=")[2] if presets else None)


@pytest.mark.parametrize("name", SWEEPS)
def test_other_sweeps_have_a_header_and_run(work: WorkingFolder, typed, name: str) -> None:
    header(name)
    small = [
        "trainer.max_epochs=3",
        "repeats=1",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.n_jobs=2",
    ]
    status, output = typed("-m", f"sweeps={name}", *TINY, *small)
    assert status == 0, output
    first, second = (trial.state.name for trial in work.trials(name))
    assert "COMPLETE" in (first, second), output
    assert {first, second} <= {"COMPLETE", "PRUNED"}
    runs = work.runs(name)
    assert runs["status"].tolist() == ["FINISHED", "FINISHED"]
    assert runs["tags.trial"].tolist() == ["0", "1"]
    (parent,) = work.runs(name, "study")["run_id"]
    assert set(runs["parent_id"]) == {parent}


def test_a_grid_is_named_after_its_command_and_is_complete(work: WorkingFolder, typed) -> None:
    arguments = [
        "-m",
        "model.net.width=4,8",
        "loss=focal,cross_entropy",
        *TINY,
        "trainer.max_epochs=1",
    ]
    status, output = typed(*arguments)
    assert status == 0, output
    (name,) = {
        tag
        for tag in read.runs(work.store)["tags.study"].dropna()
        if tag.startswith("width-4,8-loss-focal,cross_entropy-")
    }
    overrides = work.runs(name)["tags.overrides"].tolist()
    assert overrides == [
        f"model.net.width={w} loss={x}" for w in (4, 8) for x in ("focal", "cross_entropy")
    ]
    status, output = typed(*arguments)  # again: everything is there
    assert status == 0
    assert "4 trials already" in output
    assert len(work.runs(name)) == 4


@pytest.fixture(scope="module")
def several_objectives(work: WorkingFolder) -> str:
    """Name of a finished study with rungs, as sweeps/smoke.yaml has it."""
    name = "several_objectives"
    small = ["trainer.max_epochs=3", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2"]
    owner = process(work, "-m", "sweeps=smoke", *TINY, *small, f"hydra.sweeper.study_name={name}")
    output = owner.communicate(timeout=200)[0]
    assert owner.returncode == 0, output
    return name


def test_optuna_and_mlflow_agree_and_only_the_front_is_tested(
    work: WorkingFolder, several_objectives: str
) -> None:
    (runs, trials) = work.runs(several_objectives), work.trials(several_objectives)
    (parent,) = (row for _, row in work.runs(several_objectives, "study").iterrows())
    values = runs.loc[runs["tags.front"] == "true", "metrics.best/val/balanced_accuracy"]
    assert parent["metrics.study_best/best/val/balanced_accuracy"] == values.max()
    assert parent["metrics.runs/all"] == len(runs)
    assert parent["metrics.runs/front"] == len(values)
    for trial, (_, run) in zip(trials, runs.iterrows(), strict=True):
        if trial.state.name == "PRUNED":
            assert run["tags.trial_state"] == "pruned"
            assert pd.isna(run["metrics.best/val/balanced_accuracy"])
            continue
        assert trial.values == [
            run["metrics.best/val/balanced_accuracy"],
            run["metrics.efficiency/flops"],
        ]
        assert trial.user_attrs["run_id"] == run["run_id"]
        assert (run["tags.front"] == "true") == (not pd.isna(run["metrics.test/accuracy"]))


def test_repeats_are_runs_of_several_seeds_with_mean_and_spread(work: WorkingFolder, typed) -> None:
    status, output = typed(
        "-m", *TINY, "trainer.max_epochs=2", "repeats=2", "hydra.sweeper.study_name=seeds"
    )
    assert status == 0, output
    (trial,) = work.trials("seeds")
    (above,) = (row for _, row in work.runs("seeds", "trial").iterrows())
    below = work.runs("seeds")
    assert below["parent_id"].unique().tolist() == [above["run_id"]]
    assert below["tags.seed"].tolist() == ["0", "1"]
    values = below["metrics.best/val/balanced_accuracy"]
    assert trial.values[0] == pytest.approx(values.mean())
    assert above["metrics.best/val/balanced_accuracy"] == pytest.approx(values.mean())
    assert above["metrics.spread/best/val/balanced_accuracy"] == pytest.approx(values.std(ddof=1))
    assert above["metrics.test/accuracy"] == pytest.approx(below["metrics.test/accuracy"].mean())


def test_a_trial_that_exceeds_a_limit_is_not_trained(work: WorkingFolder, typed) -> None:
    limit = "objective.limits=['efficiency/params <= 20e3']"
    status, output = typed(
        "-m", "model.net.width=4,16", *TINY, limit, "hydra.sweeper.study_name=small"
    )
    assert status == 0, output
    trained, over = (row for _, row in work.runs("small").iterrows())
    assert trained["tags.trial_state"] == "complete"
    assert over["tags.trial_state"] == "over_limit"
    assert over["status"] == "FINISHED"
    assert over["tags.ended_early"] == "65191 breaks efficiency/params <= 20000"
    assert pd.isna(over["metrics.train/loss"])
    assert [trial.state.name for trial in work.trials("small")] == ["COMPLETE", "PRUNED"]
    assert "over limit" in output


def test_a_larger_total_resumes_and_a_changed_space_is_refused(work: WorkingFolder, typed) -> None:
    study = ["-m", *TINY, "trainer.max_epochs=1", "hydra.sweeper.study_name=grown"]
    space = ["optimizer.lr=tag(log,interval(1e-4,1e-2))"]
    assert typed(*study, *space, "hydra.sweeper.n_trials=1")[0] == 0
    assert typed(*study, *space, "hydra.sweeper.n_trials=3")[0] == 0
    drawn = [trial.params["optimizer.lr"] for trial in work.trials("grown")]
    assert len(set(drawn)) == 3
    assert sorted(file.name for file in (work.folder / "logs" / "studies" / "grown").iterdir()) == [
        "0000",
        "0001",
        "0002",
    ]
    status, output = typed(
        *study, "optimizer.lr=tag(log,interval(1e-4,1e-1))", "hydra.sweeper.n_trials=4"
    )
    assert status == 2
    assert "optimizer.lr" in output
    assert "hydra.sweeper.warm_start=grown" in output
    warm = [
        "hydra.sweeper.study_name=warm",
        "hydra.sweeper.warm_start=grown",
        "hydra.sweeper.n_trials=1",
    ]
    status, output = typed(*study[:-1], "optimizer.lr=tag(log,interval(1e-4,1e-1))", *warm)
    assert status == 0, output
    taken = [
        trial.params["optimizer.lr"]
        for trial in work.trials("warm")
        if "warm_from" in trial.user_attrs
    ]
    assert taken == drawn
    assert len(work.trials("warm")) == 4


def test_a_dry_run_estimates_and_trains_nothing(work: WorkingFolder, typed) -> None:
    status, output = typed(
        "-m", "model.net.width=4,8", *TINY, "dry_run=true", "hydra.sweeper.study_name=dry"
    )
    assert status == 0, output
    assert (
        "18.6" in output
    )  # thousand parameters, from 4-8-16 channels, 2x2 pixels, 128 and 64 units: 18,607
    assert re.search(r"training: about \S+ h for 2 trials", output)
    assert "memory: at most" in output
    assert read.runs(work.store, "tags.study = 'dry'").empty
    assert "dry" not in {
        summary.study_name
        for summary in optuna.get_all_study_summaries(f"sqlite:///{work.folder}/mlruns/optuna.db")
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweeps=nosuch"], "sweeps=nosuch: no such choice"),
        (["model.net.width=chioce(4,8)"], "chioce"),
        (["model.net.widht=4,8"], "model.net.widht"),
        (["model.net.dropout=interval(0.0,0.5)"], "hydra.sweeper.n_trials"),
        (["model.net.width=interval(4,8)", "hydra.sweeper.n_trials=2"], "int(interval(4,8))"),
        (["model.net.dense=[choice(8,16)]"], "model.net.dense"),
        (["tracking.experiment=a,b"], "tracking.experiment"),
        (["model.net.width=4,8", "hydra.sweeper.n_trails=2"], "hydra.sweeper.n_trails"),
        (["model.net.width=4,8", "hydra/sweeper/pruner=median"], "hydra/sweeper/pruner=rungs"),
        (
            ["model.net.width=4,8", "hydra/sweeper/sampler=cmaes", "hydra.sweeper.n_trials=2"],
            "cmaes",
        ),
        (["model.net.width=4,8", "hydra/sweeper/sampler=nosuch"], "hydra/sweeper/sampler=nosuch"),
        (
            ["model.net.width=4,8", "hydra.sweeper.executor.threads=0"],
            "hydra.sweeper.executor.threads",
        ),
        (["model.net.width=4,8", "hydra.sweeper.storage=mysql://x"], "hydra.sweeper.storage"),
        (["model.net.width=4,8", "hydra.sweeper.warm_start=nobody"], "nobody"),
        (["repeats=0"], "repeats"),
    ],
)
def test_bad_input_of_a_study_ends_with_one_line_before_training(
    work: WorkingFolder, typed, arguments: list[str], message: str
) -> None:
    before = len(read.runs(work.store, "tags.kind = 'run'"))
    status, output = typed("-m", *TINY, "hydra.sweeper.study_name=bad", *arguments)
    assert status == 2
    assert message in output
    assert "Traceback" not in output
    assert len(read.runs(work.store, "tags.kind = 'run'")) == before


EPOCHS = 12
LONG = [
    "-m",
    *TINY,
    "data.source.lesions=240",
    f"trainer.max_epochs={EPOCHS}",
    "hydra.sweeper.keep_state_s=0",
]


def test_a_killed_study_resumes_from_the_last_epoch(
    work: WorkingFolder, typed, owners: list[subprocess.Popen[str]]
) -> None:
    arguments = [*LONG, "hydra.sweeper.study_name=killed"]
    owner = process(work, *arguments)
    owners.append(owner)
    state = work.folder / "logs" / "studies" / "killed" / "0000" / "checkpoint" / "last.ckpt"
    wait_for(state.exists)
    family = psutil.Process(owner.pid).children(recursive=True)
    owner.kill()
    owner.wait()
    wait_for(lambda: not any(is_alive(child.pid) for child in family), 30)
    log = (state.parent.parent / "trial.log").read_text()
    status, output = typed(*arguments)
    assert status == 0, output
    assert (state.parent.parent / "trial.log").read_text() == log, "a folder was written twice"
    old, new = (row for _, row in work.runs("killed").iterrows())
    assert old["status"] in ("FAILED", "KILLED")
    assert new["status"] == "FINISHED"
    assert [trial.state.name for trial in work.trials("killed")] == ["FAIL", "COMPLETE"]
    resumed = (work.folder / "logs" / "studies" / "killed" / "0001" / "trial.log").read_text()
    assert "training resumes after epoch" in resumed
    history = work.store.client.get_metric_history(new["run_id"], "val/loss")
    assert len(history) == EPOCHS, "the curve has a gap, or an epoch twice"


def test_a_second_owner_is_refused_and_ctrl_c_marks_the_trials(
    work: WorkingFolder, typed, owners: list[subprocess.Popen[str]]
) -> None:
    arguments = [*LONG, "trainer.max_epochs=100000", "hydra.sweeper.study_name=interrupted"]
    owner = process(work, *arguments)
    owners.append(owner)
    wait_for(
        (
            work.folder / "logs" / "studies" / "interrupted" / "0000" / "checkpoint" / "last.ckpt"
        ).exists
    )
    status, output = typed(*arguments)
    assert "is being run by" in output
    assert status == 2
    owner.send_signal(signal.SIGINT)
    output = owner.communicate(timeout=90)[0]
    assert owner.returncode != 0
    assert "the same command resumes the study" in output
    assert "Traceback" not in output
    (run,) = (row for _, row in work.runs("interrupted").iterrows())
    assert run["status"] == "KILLED"
    assert [trial.state.name for trial in work.trials("interrupted")] == ["FAIL", "WAITING"]
    assert work.runs("interrupted", "study")["status"].tolist() == ["KILLED"]
