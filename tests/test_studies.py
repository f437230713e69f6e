"""Studies as a user runs them, on real (synthetic) data: what is typed, what stands in Optuna and MLflow afterwards."""

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

from benchmarks.sweep.faults import is_alive
from src import train
from src.core.cli import ROOT
from src.core.config import check, resolve
from src.tracking import read
from src.tracking.store import Store

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


class Workplace(NamedTuple):
    folder: Path
    store: Store

    def trials(self, study: str) -> list[optuna.trial.FrozenTrial]:
        return optuna.load_study(
            study_name=study, storage=f"sqlite:///{self.folder}/mlruns/optuna.db"
        ).trials

    def runs(self, study: str, kind: str = "run") -> pd.DataFrame:
        """The study's runs of a kind, in the order of their trials."""
        found = read.runs(self.store, f"tags.study = '{study}' and tags.kind = '{kind}'")
        return found.sort_values(["tags.trial", "tags.repeat"]) if kind == "run" else found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("studies")
    return Workplace(folder, Store(folder=folder / "mlruns"))


@pytest.fixture
def typed(place: Workplace, monkeypatch: pytest.MonkeyPatch, run_entry):
    """`python -m src.train <arguments>` in this process: status and output."""
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("PARETODERM_CACHE", str(place.folder / "cache"))
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


def process(place: Workplace, *arguments: str) -> subprocess.Popen[str]:
    """The same in a process of its own, to be killed."""
    environment = {
        **os.environ,
        "PARETODERM_CACHE": str(place.folder / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    for name in ("MLFLOW_TRACKING_URI", "HYDRA_FULL_ERROR"):
        environment.pop(name, None)
    return subprocess.Popen(
        [sys.executable, "-m", "src.train", *arguments],
        cwd=place.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(condition, seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.1)


def header(name: str) -> str:
    text = (ROOT / "sweeps" / f"{name}.yaml").read_text()
    assert text.startswith(f"# @package _global_\n# {name}: ")
    for word in ("command:", "hardware:", "time:", "expected:"):
        assert f"\n# {word} " in text, f"{name} has no {word}"
    return text


@pytest.mark.parametrize("name", ON_REAL_IMAGES)
def test_every_file_about_a_data_set_has_its_header_and_composes_to_its_cells(name: str) -> None:
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
def test_every_file_in_sweeps_has_its_header_and_runs(place: Workplace, typed, name: str) -> None:
    header(name)
    small = [
        "trainer.max_epochs=3",
        "repeats=1",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.n_jobs=2",
    ]
    status, said = typed("-m", f"sweeps={name}", *TINY, *small)
    assert status == 0, said
    first, second = (trial.state.name for trial in place.trials(name))
    assert "COMPLETE" in (first, second), said
    assert {first, second} <= {"COMPLETE", "PRUNED"}
    runs = place.runs(name)
    assert runs["status"].tolist() == ["FINISHED", "FINISHED"]
    assert runs["tags.trial"].tolist() == ["0", "1"]
    (parent,) = place.runs(name, "study")["run_id"]
    assert set(runs["parent_id"]) == {parent}


def test_a_grid_without_a_file_is_named_after_its_command_and_is_complete(
    place: Workplace, typed
) -> None:
    arguments = [
        "-m",
        "model.net.width=4,8",
        "loss=focal,cross_entropy",
        *TINY,
        "trainer.max_epochs=1",
    ]
    status, said = typed(*arguments)
    assert status == 0, said
    (name,) = {
        tag
        for tag in read.runs(place.store)["tags.study"].dropna()
        if tag.startswith("width-4,8-loss-focal,cross_entropy-")
    }
    overrides = place.runs(name)["tags.overrides"].tolist()
    assert overrides == [
        f"model.net.width={w} loss={x}" for w in (4, 8) for x in ("focal", "cross_entropy")
    ]
    status, said = typed(*arguments)  # again: everything is there
    assert status == 0
    assert "4 trials already" in said
    assert len(place.runs(name)) == 4


@pytest.fixture(scope="module")
def several_objectives(place: Workplace) -> str:
    """Name of a finished study with rungs, as sweeps/smoke.yaml has it."""
    name = "several_objectives"
    small = ["trainer.max_epochs=3", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2"]
    owner = process(place, "-m", "sweeps=smoke", *TINY, *small, f"hydra.sweeper.study_name={name}")
    said = owner.communicate(timeout=200)[0]
    assert owner.returncode == 0, said
    return name


def test_values_in_optuna_are_those_in_mlflow_and_test_is_touched_by_the_front_alone(
    place: Workplace, several_objectives: str
) -> None:
    (runs, trials) = place.runs(several_objectives), place.trials(several_objectives)
    (parent,) = (row for _, row in place.runs(several_objectives, "study").iterrows())
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


def test_repeats_are_seeds_with_their_mean_and_spread_above_them(place: Workplace, typed) -> None:
    status, said = typed(
        "-m", *TINY, "trainer.max_epochs=2", "repeats=2", "hydra.sweeper.study_name=seeds"
    )
    assert status == 0, said
    (trial,) = place.trials("seeds")
    (above,) = (row for _, row in place.runs("seeds", "trial").iterrows())
    below = place.runs("seeds")
    assert below["parent_id"].unique().tolist() == [above["run_id"]]
    assert below["tags.seed"].tolist() == ["0", "1"]
    values = below["metrics.best/val/balanced_accuracy"]
    assert trial.values[0] == pytest.approx(values.mean())
    assert above["metrics.best/val/balanced_accuracy"] == pytest.approx(values.mean())
    assert above["metrics.spread/best/val/balanced_accuracy"] == pytest.approx(values.std(ddof=1))
    assert above["metrics.test/accuracy"] == pytest.approx(below["metrics.test/accuracy"].mean())


def test_a_trial_over_a_known_limit_is_not_trained(place: Workplace, typed) -> None:
    limit = "objective.limits=['efficiency/params <= 20e3']"
    status, said = typed(
        "-m", "model.net.width=4,16", *TINY, limit, "hydra.sweeper.study_name=small"
    )
    assert status == 0, said
    trained, over = (row for _, row in place.runs("small").iterrows())
    assert trained["tags.trial_state"] == "complete"
    assert over["tags.trial_state"] == "over_limit"
    assert over["status"] == "FINISHED"
    assert over["tags.ended_early"] == "65191 breaks efficiency/params <= 20000"
    assert pd.isna(over["metrics.train/loss"])
    assert [trial.state.name for trial in place.trials("small")] == ["COMPLETE", "PRUNED"]
    assert "over limit" in said


def test_a_larger_total_goes_on_and_a_changed_space_is_refused(place: Workplace, typed) -> None:
    study = ["-m", *TINY, "trainer.max_epochs=1", "hydra.sweeper.study_name=grown"]
    space = ["optimizer.lr=tag(log,interval(1e-4,1e-2))"]
    assert typed(*study, *space, "hydra.sweeper.n_trials=1")[0] == 0
    assert typed(*study, *space, "hydra.sweeper.n_trials=3")[0] == 0
    drawn = [trial.params["optimizer.lr"] for trial in place.trials("grown")]
    assert len(set(drawn)) == 3
    assert sorted(
        file.name for file in (place.folder / "logs" / "studies" / "grown").iterdir()
    ) == [
        "0000",
        "0001",
        "0002",
    ]
    status, said = typed(
        *study, "optimizer.lr=tag(log,interval(1e-4,1e-1))", "hydra.sweeper.n_trials=4"
    )
    assert status == 2
    assert "optimizer.lr" in said
    assert "hydra.sweeper.warm_start=grown" in said
    warm = [
        "hydra.sweeper.study_name=warm",
        "hydra.sweeper.warm_start=grown",
        "hydra.sweeper.n_trials=1",
    ]
    status, said = typed(*study[:-1], "optimizer.lr=tag(log,interval(1e-4,1e-1))", *warm)
    assert status == 0, said
    taken = [
        trial.params["optimizer.lr"]
        for trial in place.trials("warm")
        if "warm_from" in trial.user_attrs
    ]
    assert taken == drawn
    assert len(place.trials("warm")) == 4


def test_a_dry_run_says_what_it_takes_and_trains_nothing(place: Workplace, typed) -> None:
    status, said = typed(
        "-m", "model.net.width=4,8", *TINY, "dry_run=true", "hydra.sweeper.study_name=dry"
    )
    assert status == 0, said
    assert (
        "18.6" in said
    )  # thousand parameters, from 4-8-16 channels, 2x2 pixels, 128 and 64 units: 18,607
    assert re.search(r"training: about \S+ h for 2 trials", said)
    assert "memory: at most" in said
    assert read.runs(place.store, "tags.study = 'dry'").empty
    assert "dry" not in {
        study.study_name
        for study in optuna.get_all_study_summaries(f"sqlite:///{place.folder}/mlruns/optuna.db")
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
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
def test_bad_input_ends_in_one_line_before_anything_is_trained(
    place: Workplace, typed, arguments: list[str], said: str
) -> None:
    before = len(read.runs(place.store, "tags.kind = 'run'"))
    status, output = typed("-m", *TINY, "hydra.sweeper.study_name=bad", *arguments)
    assert status == 2
    assert said in output
    assert "Traceback" not in output
    assert len(read.runs(place.store, "tags.kind = 'run'")) == before


def test_what_belongs_to_a_study_is_refused_in_a_single_run(place: Workplace, typed) -> None:
    status, said = typed(*TINY, "repeats=3")
    assert status == 2
    assert "repeats: belongs to a study: add -m" in said


EPOCHS = 12
LONG = [
    "-m",
    *TINY,
    "data.source.lesions=240",
    f"trainer.max_epochs={EPOCHS}",
    "hydra.sweeper.keep_state_s=0",
]


def test_an_owner_killed_in_the_middle_goes_on_from_the_epoch_it_had_reached(
    place: Workplace, typed, owners: list[subprocess.Popen[str]]
) -> None:
    arguments = [*LONG, "hydra.sweeper.study_name=murdered"]
    owner = process(place, *arguments)
    owners.append(owner)
    state = place.folder / "logs" / "studies" / "murdered" / "0000" / "checkpoint" / "last.ckpt"
    wait_for(state.exists)
    family = psutil.Process(owner.pid).children(recursive=True)
    owner.kill()
    owner.wait()
    wait_for(lambda: not any(is_alive(child.pid) for child in family), 30)
    log = (state.parent.parent / "trial.log").read_text()
    status, said = typed(*arguments)
    assert status == 0, said
    assert (state.parent.parent / "trial.log").read_text() == log, "a folder was written twice"
    old, new = (row for _, row in place.runs("murdered").iterrows())
    assert old["status"] in ("FAILED", "KILLED")
    assert new["status"] == "FINISHED"
    assert [trial.state.name for trial in place.trials("murdered")] == ["FAIL", "COMPLETE"]
    resumed = (place.folder / "logs" / "studies" / "murdered" / "0001" / "trial.log").read_text()
    assert "training resumes after epoch" in resumed
    history = place.store.client.get_metric_history(new["run_id"], "val/loss")
    assert len(history) == EPOCHS, "the curve has a gap, or an epoch twice"


def test_another_owner_is_refused_and_ctrl_c_marks_the_trials_and_says_how_to_go_on(
    place: Workplace, typed, owners: list[subprocess.Popen[str]]
) -> None:
    arguments = [*LONG, "trainer.max_epochs=100000", "hydra.sweeper.study_name=interrupted"]
    owner = process(place, *arguments)
    owners.append(owner)
    wait_for(
        (
            place.folder / "logs" / "studies" / "interrupted" / "0000" / "checkpoint" / "last.ckpt"
        ).exists
    )
    status, said = typed(*arguments)
    assert "is being run by" in said
    assert status == 2
    owner.send_signal(signal.SIGINT)
    said = owner.communicate(timeout=90)[0]
    assert owner.returncode != 0
    assert "the same command goes on" in said
    assert "Traceback" not in said
    (run,) = (row for _, row in place.runs("interrupted").iterrows())
    assert run["status"] == "KILLED"
    assert [trial.state.name for trial in place.trials("interrupted")] == ["FAIL", "WAITING"]
    assert place.runs("interrupted", "study")["status"].tolist() == ["KILLED"]
