"""Studies: their definition from a command line, and complete studies on synthetic data."""

import functools
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import optuna
import pandas as pd
import psutil
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from optuna_dashboard import get_note
from tiny import TINY

from benchmarks.sweep.faults import is_alive
from src import dry_run, report, study, train
from src.core import config as shared_config
from src.core.cli import INTERRUPTED, ROOT
from src.core.config import check, resolve
from src.core.errors import ConfigError, UserError
from src.metrics.registry import PRIMARY
from src.study import StudyPlan, make_plan
from src.sweep.pruners import make_pruner
from src.sweep.storage import default_url
from src.tracking import read
from src.tracking.store import Store

Plugins.instance()


@functools.cache
def config_loader() -> ConfigLoaderImpl:
    return ConfigLoaderImpl(create_config_search_path(str(ROOT / "conf")))


def multirun_config(*arguments: str) -> DictConfig:
    """As Hydra composes it for a sweeper."""
    return config_loader().load_configuration("train", list(arguments), RunMode.MULTIRUN)


def planned(*arguments: str) -> StudyPlan:
    config = multirun_config(*arguments)
    typed = [argument for argument in arguments if not argument.startswith("hydra")]
    return make_plan(config, config.hydra.sweeper, typed)


SWEPT = "model.net.width=8,16"
LR = "optimizer.lr=interval(0.1,0.2)"
GRID = "hydra/sweeper/sampler=grid"


def test_the_default_name_has_what_is_swept_and_a_digest_of_all_arguments() -> None:
    lr = "optimizer.lr=tag(log,interval(1e-4,1e-2))"
    plan = planned(SWEPT, lr, "hydra.sweeper.n_trials=3")
    readable, _, digest = plan.name.rpartition("-")
    assert readable == "width-8_16-lr-tag_log_interval_1e-4_1e-2"
    # neither a shell nor Hydra needs quotes around it
    assert shlex.quote(plan.name) == plan.name
    assert OverridesParser.create().parse_override(f"study={plan.name}").value() == plan.name
    assert len(digest) == 6
    assert plan.folder.name == plan.name
    assert not plan.is_grid
    epochs = "trainer.max_epochs=2"
    names = [planned(SWEPT).name, planned(SWEPT, epochs).name]
    assert len({*names, planned(SWEPT, "trainer.max_epochs=3").name}) == 3
    assert {name.rpartition("-")[0] for name in names} == {"width-8_16"}
    assert planned(epochs, SWEPT).name == names[1]


@pytest.mark.parametrize(
    ("arguments", "name", "folder"),
    [
        ([SWEPT, "hydra.sweeper.study_name=first"], "first", "first"),
        ([SWEPT, "study=first"], "first", "first"),
        (["sweeps=smoke"], "smoke", "smoke"),
        ([SWEPT, "hydra.sweeper.study_name='a/../b'"], "a/../b", "a_.._b"),
        ([SWEPT, "hydra.sweeper.study_name=.."], "..", "_"),
    ],
)
def test_a_chosen_name_is_used_also_for_the_folder(
    arguments: list[str], name: str, folder: str
) -> None:
    plan = planned(*arguments)
    assert (plan.name, plan.folder.name) == (name, folder)


@pytest.mark.parametrize(
    ("arguments", "local", "expected"),
    [
        ([SWEPT], True, False),  # a comparison
        ([LR, "hydra.sweeper.n_trials=20"], True, False),
        ([LR, "hydra.sweeper.n_trials=21"], True, True),
        ([LR, "hydra.sweeper.n_trials=21"], False, False),  # on other machines
        ([LR, "hydra.sweeper.n_trials=21", "efficiency.trials=all"], True, False),
        ([SWEPT, "efficiency.trials=front", "efficiency=fast"], True, True),
    ],
)
def test_a_search_times_only_its_front(arguments: list[str], local: bool, expected: bool) -> None:
    assert planned(*arguments).times_front_only(local) is expected


def test_a_refused_command_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = multirun_config(GRID, "hydra.sweeper.n_trials=3")
    with pytest.raises(ConfigError, match="an interval has none"):
        study.sweep(config, config_loader(), config.hydra.sweeper, [LR])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [SWEPT, "trainer.max_epochs=3", "seed=7"],
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


def test_a_trial_composes_what_a_run_composes(tmp_path: Path) -> None:
    """With another primary config and a folder of one's own, on every executor."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text("# @package _global_\nseed: 7\n")
    primary = "defaults:\n  - train\n  - _self_\nmodel:\n  net:\n    width: 5\n"
    (tmp_path / "mytrain.yaml").write_text(primary)
    path = create_config_search_path(str(ROOT / "conf"))
    path.prepend("command-line", f"file://{tmp_path}", "schema")
    loader = ConfigLoaderImpl(path)
    typed = ["experiment=own", "optimizer.lr=0.1,0.2"]
    config = loader.load_configuration("mytrain", typed, RunMode.MULTIRUN)
    plan = make_plan(config, config.hydra.sweeper, typed)
    store = Store(folder=tmp_path)
    payload = study._payload(plan, store, "id", git=(None, None))
    assert payload["search_path"][1] == "file://<root>/conf"  # another machine has another root
    cell = [*plan.overrides, "optimizer.lr=0.2"]
    trial = shared_config.compose_trial(payload | {"overrides": cell})
    run = loader.load_configuration("mytrain", cell, RunMode.RUN)
    assert trial == {key: run[key] for key in run if key != "hydra"}
    assert (trial.seed, trial.model.net.width, trial.optimizer.lr) == (7, 5, 0.2)
    assert shared_config.is_own(payload["config_name"], payload["search_path"])
    assert not shared_config.is_own("train", shared_config.search_path(multirun_config().hydra))
    (tmp_path / "experiment" / "own.yaml").write_text("# @package _global_\nseed: 8\n")
    with pytest.raises(UserError, match="has changed since"):
        shared_config.compose_trial(payload | {"overrides": cell})


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
        opened = study._open_study(plan, None, url)
        for _ in range(3):
            trial = opened.ask()
            drawn.append(plan.space.suggest(trial).params["optimizer.lr"])
            opened.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert len(set(drawn)) == 6


# studies about a data set: what their cells hold is trained in tests/test_conf.py
HAM = ("better", "better_final", "distil", "leakage", "mamun2025", "mamun2025_64px")
# Those on synthetic data start from a run, see tests/deployment/compression.
OTHERS = {"sun2023": "siim2020", "compression": "synthetic", "pruning": "synthetic"}
OTHERS["leave_one_source_out"] = "joined"
ON_REAL_IMAGES = dict.fromkeys(HAM, "ham10000") | OTHERS
SWEEPS = sorted(
    {file.stem for file in (ROOT / "sweeps").glob("*.yaml")} - {*ON_REAL_IMAGES, "smoke"}
)
QUALITY, FLOPS = f"metrics.best/val/{PRIMARY}", "metrics.efficiency/flops"


class WorkingFolder(NamedTuple):
    folder: Path
    store: Store

    def trials(self, name: str) -> list[optuna.trial.FrozenTrial]:
        storage = f"sqlite:///{self.folder}/mlruns/optuna.db"
        return optuna.load_study(study_name=name, storage=storage).trials

    def runs(self, name: str, kind: str = "run") -> pd.DataFrame:
        """The study's runs of a kind, in the order of their trials."""
        table = read.runs(self.store, f"tags.study = '{name}' and tags.kind = '{kind}'")
        return table.sort_values(["tags.trial", "tags.repeat"]) if kind == "run" else table

    def states(self, name: str) -> list[str]:
        return [trial.state.name for trial in self.trials(name)]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> WorkingFolder:
    folder = tmp_path_factory.mktemp("studies")
    (folder / "mlruns").mkdir()
    shutil.copy(empty_database, folder / "mlruns" / "mlflow.db")
    return WorkingFolder(folder, Store(folder=folder / "mlruns"))


@pytest.fixture
def typed(work: WorkingFolder, monkeypatch: pytest.MonkeyPatch, run_entry):
    """`python -m src.train <arguments>` in this process: status and output."""
    monkeypatch.chdir(work.folder)
    return functools.partial(run_entry, train.main)


def run_owner(folder: Path, arguments: list[str]) -> None:
    """`python -m src.train <arguments>` in a process of its own, to be killed."""
    os.chdir(folder)
    sys.argv = ["src.train", *arguments]
    train.main()


@pytest.fixture
def start_owner(work: WorkingFolder) -> Iterator[Callable[..., psutil.Process]]:
    """Starts `run_owner`, forked with its imports done; if the test fails, it is killed."""
    started: list[psutil.Process] = []

    def start(*arguments: str) -> psutil.Process:
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=run_owner, args=(work.folder, list(arguments)))
        process.start()
        started.append(psutil.Process(process.pid))
        return started[-1]

    yield start
    for owner in filter(psutil.Process.is_running, started):
        for process in (*owner.children(recursive=True), owner):
            process.kill()


def wait_for(condition, seconds: float = 240.0) -> None:
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
            teacher = ["loss.teacher=a"] * cell.endswith("_distilled")
            config = compose("train", [f"sweeps={name}", cell, *teacher])
        check(resolve(config))
        assert config.data.name == ON_REAL_IMAGES[name]
        assert config.preset == (cell.partition("=")[2] if presets else None)


@pytest.mark.parametrize("name", SWEEPS)
def test_other_sweeps_have_a_header_and_can_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cell is composed, built and trained for a batch."""
    header(name)
    monkeypatch.setattr(dry_run, "TIMED", 1)
    plan = planned(f"sweeps={name}", *TINY)
    pruner = make_pruner(plan.settings.pruner, len(plan.objectives), plan.config.trainer.max_epochs)
    opened = study._open_study(plan, pruner, default_url(tmp_path))
    cell = plan.space.suggest(opened.ask()).overrides
    compose = dry_run.composer(config_loader(), plan.config, plan.overrides)
    row = dry_run.estimate(cell, compose, [], {})
    assert row["problem"] == ""
    assert row["seconds"] > 0


def test_optuna_and_mlflow_agree_and_only_the_front_is_tested(work: WorkingFolder, typed) -> None:
    header("smoke")
    small = ["trainer.max_epochs=3", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2"]
    small += ["data.fractions=[0.3,0.5,0.2]"]  # at least two lesions of each class on validation
    status, output = typed("-m", "sweeps=smoke", *TINY, *small)
    assert status == 0, output
    runs, trials = work.runs("smoke"), work.trials("smoke")
    (parent,) = (row for _, row in work.runs("smoke", "study").iterrows())
    values = runs.loc[runs["tags.front"] == "true", QUALITY]
    assert parent[QUALITY.replace("metrics.", "metrics.study_best/")] == values.max()
    assert parent["metrics.runs/all"] == len(runs) == 3
    assert parent["metrics.runs/front"] == len(values)
    for trial, (_, run) in zip(trials, runs.iterrows(), strict=True):
        if trial.state.name == "PRUNED":
            assert run["tags.trial_state"] == "pruned"
            assert pd.isna(run[QUALITY])
            metric = QUALITY.removeprefix("metrics.best/")
            curve = read.history(work.store, [run["run_id"]], metric)["value"]
            assert run["metrics.reached/epochs"] == len(curve)
            assert run[f"metrics.reached/{metric}"] == curve.max()
            continue
        assert trial.values == [run[QUALITY], run[FLOPS]]
        assert trial.user_attrs["run_id"] == run["run_id"]
        low, high = run[QUALITY.replace(".", ".low/")], run[QUALITY.replace(".", ".high/")]
        assert (low < run[QUALITY] < high) == (run["tags.front"] == "true")
        for name in ("test/accuracy", "time/test_s"):
            assert (run["tags.front"] == "true") == (not pd.isna(run[f"metrics.{name}"]))


WIDTHS = ["-m", "model.net.width=2,4,8,16", *TINY, "trainer.max_epochs=4", "optimizer.lr=0.02"]
WIDTHS += ["test=false", "objective.limits=['efficiency/params <= 40e3']"]


@pytest.fixture
def widths(work: WorkingFolder, typed) -> tuple[str, str]:
    """Name and output of a study that is named after its command; it is trained only once."""
    status, output = typed(*WIDTHS)
    assert status == 0, output
    names = {str(tag) for tag in read.runs(work.store)["tags.study"].dropna()}
    (name,) = (name for name in names if name.startswith("width-2_4_8_16-"))
    return name, output


def test_an_objective_has_one_name_and_one_value_everywhere(
    work: WorkingFolder, widths: tuple[str, str], run_entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_name, output = widths
    storage = f"sqlite:///{work.folder}/mlruns/optuna.db"
    optuna_study = optuna.load_study(study_name=study_name, storage=storage)
    name, cost = optuna_study.metric_names or []
    assert (name, cost) == (f"best/val/{PRIMARY}", "efficiency/flops")
    (parent,) = work.runs(study_name, "study")["run_id"]
    chosen = {trial.number for trial in optuna_study.best_trials}
    trials = [optuna.Trial(optuna_study, trial._trial_id) for trial in optuna_study.trials]
    notes = {trial.number: note for trial in trials if (note := get_note(trial))}
    assert chosen <= set(notes)
    assert all(("On the Pareto front" in note) == (n in chosen) for n, note in notes.items())
    assert sum("Which model has the best balanced accuracy" in note for note in notes.values()) == 1
    recorded = work.store.client.get_run(parent).data.tags["objectives"]
    assert recorded == f"maximize {name}; minimize {cost}"
    monkeypatch.setattr("src.reporting.plots_static.write", lambda charts, folder: [])
    status, text = run_entry(report.main, f"study={study_name}", "samples=200", "test=false")
    assert status == 0, text
    ranked = work.store.client.search_runs(
        [work.store.experiment_id],
        f"tags.study = '{study_name}' and tags.kind = 'run' and tags.trial_state = 'complete'",
        order_by=[f"metrics.`{name}` DESC"],
    )
    values = [run.data.metrics[name] for run in ranked]
    tables = [
        pd.read_csv(work.folder / "reports" / study_name / "table.csv"),
        pd.read_csv(read.artifact(work.store, parent, "comparison.csv")),
    ]
    for table in (table.dropna(subset=[name]) for table in tables):
        assert table["run_id"].tolist() == [run.info.run_id for run in ranked]
        assert table[name].tolist() == values
    trials = {trial.user_attrs["run_id"]: trial for trial in optuna_study.trials}
    assert [trials[run.info.run_id].values[0] for run in ranked] == values
    frame = optuna_study.trials_dataframe()
    assert sorted(frame[f"values_{name}"].dropna()) == sorted(values)
    assert len(values) == 3
    for run, value in zip(ranked, values, strict=True):
        assert re.search(rf"#{run.data.tags['trial']} +{value:.3f} ", output)


def test_a_trial_that_diverges_has_failed_and_the_study_goes_on(work: WorkingFolder, typed) -> None:
    """One step an epoch: the training loss is finite, the weights afterwards are not."""
    sweep = ["optimizer.lr=1e30,1e-3", "data.batch_size=512", "trainer.max_epochs=1"]
    name = "hydra.sweeper.study_name=diverged"
    status, output = typed("-m", *[item for item in TINY if "batch" not in item], *sweep, name)
    assert status == 1, output
    assert "Traceback" not in output
    assert work.states("diverged") == ["FAIL", "COMPLETE"]
    failed, complete = work.runs("diverged").to_dict("records")
    assert (failed["status"], failed["tags.failure_kind"]) == ("FAILED", "diverged")
    assert pd.isna(failed["tags.front"])
    assert complete["tags.front"] == "true"
    tested = [row["metrics.test/accuracy"] for row in (failed, complete)]
    assert [pd.isna(value) for value in tested] == [True, False]
    assert re.search(r"trial 0 failed: .*diverged", output)


def test_a_grid_is_named_after_its_command_and_trains_what_keeps_the_limits(
    work: WorkingFolder, widths: tuple[str, str], typed
) -> None:
    name, output = widths
    assert "over limit" in output
    *trained, over = (row for _, row in work.runs(name).iterrows())
    overrides = [row["tags.overrides"] for row in trained]
    assert overrides == [f"model.net.width={width}" for width in (2, 4, 8)]
    assert [row["tags.trial_state"] for row in trained] == ["complete"] * 3
    assert over["tags.overrides"] == "model.net.width=16"
    assert over["tags.trial_state"] == "over_limit"
    assert over["status"] == "FINISHED"
    assert over["tags.ended_early"] == "65191 breaks efficiency/params <= 40000"
    assert pd.isna(over["metrics.train/loss"])
    assert over["metrics.reached/epochs"] == 0
    assert work.states(name) == ["COMPLETE"] * 3 + ["PRUNED"]
    status, output = typed(*WIDTHS)  # again: nothing is to be done
    assert status == 0
    assert "4 trials already" in output
    assert len(work.runs(name)) == 4


def test_a_race_gives_fewer_seeds_to_what_is_behind_and_seeds_have_mean_and_spread(
    work: WorkingFolder, typed
) -> None:
    race = ["repeats=auto", "hydra.sweeper.max_repeats=3", "hydra.sweeper.drop_p=0.1"]
    race += ["trainer.max_epochs=2", "objective.objectives=[{metric: val/loss}]"]
    # The second cannot learn: its loss stays that of chance.
    sweep = ["optimizer.lr=0.003,1e-12", "hydra.sweeper.study_name=race"]
    status, output = typed("-m", *TINY, *race, *sweep)
    assert status == 0, output
    assert work.states("race") == ["COMPLETE", "COMPLETE"]
    above, behind = work.runs("race", "trial").sort_values("tags.trial").to_dict("records")
    below = work.runs("race").groupby("parent_id")
    assert below.size().to_dict() == {above["run_id"]: 3, behind["run_id"]: 1}
    seeds = below.get_group(above["run_id"])
    assert seeds["tags.seed"].tolist() == ["0", "1", "2"]
    names = [above["name"], *seeds["name"]]
    assert names == ["#0 custom lr=0.003", "#0 seed 0", "#0 seed 1", "#0 seed 2"]
    values, loss = seeds["metrics.best/val/loss"], above["metrics.best/val/loss"]
    assert work.trials("race")[0].values[0] == loss == pytest.approx(values.mean())
    spread = above["metrics.spread/best/val/loss"]
    assert spread == pytest.approx(values.std(ddof=1))
    assert above["metrics.test/accuracy"] == pytest.approx(seeds["metrics.test/accuracy"].mean())


def test_a_larger_total_resumes_and_a_changed_space_is_refused(work: WorkingFolder, typed) -> None:
    name = "hydra.sweeper.study_name"
    space, larger = (f"optimizer.lr=tag(log,interval(1e-4,{high}))" for high in ("1e-2", "1e-1"))

    def study(*arguments: str) -> tuple[int, str]:
        return typed("-m", *TINY, "trainer.max_epochs=1", "test=false", *arguments)

    assert study(space, f"{name}=grown", "hydra.sweeper.n_trials=1")[0] == 0
    assert study(space, f"{name}=grown", "hydra.sweeper.n_trials=2")[0] == 0
    drawn = [trial.params["optimizer.lr"] for trial in work.trials("grown")]
    assert len(set(drawn)) == 2
    folders = (work.folder / "logs" / "studies" / "grown").iterdir()
    assert sorted(folder.name for folder in folders) == ["0000", "0001"]
    status, output = study(larger, f"{name}=grown", "hydra.sweeper.n_trials=4")
    assert status == 2
    assert "optimizer.lr" in output
    assert "hydra.sweeper.warm_start=grown" in output
    warm = [f"{name}=warm", "hydra.sweeper.warm_start=grown", "hydra.sweeper.n_trials=1"]
    status, output = study(larger, *warm)
    assert status == 0, output
    trials = work.trials("warm")
    copies = [trial for trial in trials if "warm_from" in trial.user_attrs]
    assert [trial.params["optimizer.lr"] for trial in copies] == drawn
    assert len(trials) == 3


def test_teachers_are_trained_before_their_students(work: WorkingFolder, typed) -> None:
    name = "hydra.sweeper.study_name=taught"
    teachers = '+hydra.sweeper.teachers.seed="choice(0,1)"'
    students = '+hydra.sweeper.params.loss="choice(distillation)"'
    arguments = ("-m", *TINY, "trainer.max_epochs=1", "test=false", name, teachers, students)
    for _ in range(2):  # the second time nothing is to be done
        status, output = typed(*arguments)
        assert status == 0, output
    ids = work.runs("taught_teachers")["run_id"]
    assert len(ids) == 2
    (student,) = (row for _, row in work.runs("taught").iterrows())
    assert json.loads(student["params.loss.teacher"]) == sorted(ids)


def test_a_mistake_of_the_students_is_refused_before_a_teacher_is_trained(
    work: WorkingFolder, typed
) -> None:
    teachers = '+hydra.sweeper.teachers.seed="choice(0,1)"'
    name = "hydra.sweeper.study_name=untaught"
    status, output = typed("-m", *TINY, name, teachers, "loss=distillation", "loss.share=2")
    assert status == 2
    assert "loss.share" in output
    assert read.runs(work.store, "tags.study = 'untaught_teachers'").empty


def test_a_dry_run_estimates_and_trains_nothing(work: WorkingFolder, typed) -> None:
    status, output = typed(
        "-m", "model.net.width=4,8", *TINY, "dry_run=true", "hydra.sweeper.study_name=dry"
    )
    assert status == 0, output
    # thousand parameters, from 4-8-16 channels, 2x2 pixels, 128 and 64 units: 18,607
    assert "18.6" in output
    assert re.search(r"time: about \d+:\d+ of training for 2 trials", " ".join(output.split()))
    assert "memory: at most" in output
    assert read.runs(work.store, "tags.study = 'dry'").empty
    assert "dry" not in {
        summary.study_name
        for summary in optuna.get_all_study_summaries(f"sqlite:///{work.folder}/mlruns/optuna.db")
    }


def test_a_dry_run_that_draws_only_excluded_cells_ends_without_an_estimate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dry_run, "sample_cells", lambda space, count: [])
    assert not study._show_estimate(planned(SWEPT), config_loader())
    assert "no cell would be trained" in capsys.readouterr().out


EPOCHS = 8
LONG = [
    "-m",
    *TINY,
    "data.source.lesions=240",
    f"trainer.max_epochs={EPOCHS}",
    "test=false",
    "hydra.sweeper.keep_state_s=0",
]


def test_a_study_that_is_killed_and_interrupted_resumes_from_the_last_epoch(
    work: WorkingFolder, typed, start_owner: Callable[..., psutil.Process]
) -> None:
    """The first owner is killed, the second one gets Ctrl+C, the third one ends the study."""
    arguments = [*LONG, "hydra.sweeper.study_name=killed"]
    folder = work.folder / "logs" / "studies" / "killed"
    owner = start_owner(*arguments)
    wait_for((work.folder / "mlruns" / "optuna.db.killed.owner.txt").exists)
    status, output = typed(*arguments)
    assert "is being run by" in output
    assert status == 2
    wait_for((folder / "0000" / "checkpoint" / "last.ckpt").exists)
    family = [owner, *owner.children(recursive=True)]
    owner.kill()
    wait_for(lambda: not any(is_alive(child.pid) for child in family), 30)
    log = (folder / "0000" / "trial.log").read_text()

    def resumes(number: int) -> bool:
        file = folder / f"{number:04d}" / "trial.log"
        return file.exists() and "training resumes after epoch" in file.read_text()

    def interrupt() -> None:
        wait_for(lambda: resumes(1))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    status, output = typed(*arguments)
    thread.join()
    assert status == INTERRUPTED
    assert "the same command resumes the study" in output
    assert "Traceback" not in output
    assert work.states("killed") == ["FAIL", "FAIL", "WAITING"]
    assert work.runs("killed", "study")["status"].tolist() == ["KILLED"]
    status, output = typed(*arguments)
    assert status == 0, output
    assert (folder / "0000" / "trial.log").read_text() == log, "a folder was written twice"
    assert work.runs("killed")["status"].tolist() == ["FINISHED"] * 3
    states = work.runs("killed")["tags.trial_state"].tolist()
    assert states == ["put_back", "put_back", "complete"]
    assert "KILLED" not in output
    rows = [line for line in output.splitlines() if line.rstrip(" │").endswith("put back")]
    assert len(rows) == 2, output
    assert work.states("killed") == ["FAIL", "FAIL", "COMPLETE"]
    assert resumes(2)
    run_id = work.runs("killed")["run_id"].iloc[-1]
    history = work.store.client.get_metric_history(run_id, "val/loss")
    assert len(history) == EPOCHS, "the curve has a gap, or an epoch twice"
