"""`python -m src.report` as a user types it, on a real small study: files, MLflow, bad input."""

import functools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from src import report
from src.core.cli import ROOT
from src.tracking import read
from src.tracking.store import Store

FEW_SAMPLES = "samples=200"  # where intervals are not the point
BUDGET = "budgets=['params<=692e3']"
STUDY = ["-m", "sweeps=smoke", "hydra.sweeper.n_trials=6", "repeats=2", "trainer.max_epochs=3"]


def typed(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PARETODERM_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "100",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of six trials under two seeds."""
    folder = tmp_path_factory.mktemp("report")
    done = typed(folder, "src.train", *STUDY)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch, run_entry):
    """`python -m src.report <arguments>` in this process: status and output."""
    monkeypatch.chdir(place)
    return functools.partial(run_entry, report.main)


@pytest.fixture(scope="module")
def reported(place: Path) -> subprocess.CompletedProcess[str]:
    done = typed(place, "src.report", "study=smoke", "register=derm", BUDGET)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def store(place: Path) -> Store:
    return Store(folder=place / "mlruns")


def study_run(store: Store) -> pd.Series:
    return read.runs(store, "tags.study = 'smoke' and tags.kind = 'study'").iloc[0]


def test_the_terminal_tells_answers_and_where_to_look(reported) -> None:
    assert "Which model has the best balanced accuracy" in reported.stdout
    assert "look: reports/smoke/report.html" in reported.stdout
    assert "The images are drawn, not photographed" in reported.stdout
    lines = reported.stdout.partition("look: reports/")[0].splitlines()
    assert max(map(len, lines)) <= 80


def test_files_are_there_and_hold_every_trial(place: Path, reported) -> None:
    folder = place / "reports" / "smoke"
    table = pd.read_csv(folder / "table.csv")
    assert len(table) == 6
    assert set(table["state"]) <= {
        "front",
        "dominated",
        "over limit",
        "pruned",
        "over_limit",
        "failed",
        "no value",
    }
    assert (folder / "report.html").stat().st_size < 6_000_000
    for name in ("front.png", "front.svg"):
        assert (folder / "figures" / name).stat().st_size > 1000
    assert list(folder.glob("*.tex"))


def test_mlflow_has_the_files_the_figures_the_tags_and_a_description(
    place: Path, store: Store, reported
) -> None:
    run = study_run(store)
    assert read.artifact(store, run["run_id"], "report/report.html").exists()
    table = pd.read_csv(place / "reports" / "smoke" / "table.csv")
    assert run["metrics.report/front"] == (table["state"] == "front").sum()
    assert 0 < run["metrics.report/hypervolume"] <= 1
    tagged = read.runs(store, "tags.front = 'true'")
    assert set(tagged["run_id"]) == set(table.loc[table["state"] == "front", "run_id"])
    assert set(read.runs(store, "tags.knee = 'true'")["run_id"]) == set(
        table.loc[table["knee"], "run_id"]
    )
    assert "balanced accuracy" in run["tags.mlflow.note.content"]


def test_every_member_of_the_front_was_tested_and_no_other_but_the_chosen(
    place: Path, store: Store, reported
) -> None:
    table = pd.read_csv(
        place / "reports" / "smoke" / "table.csv", keep_default_na=False, na_values=[""]
    )
    tested = table["test/accuracy"].notna()
    assert tested[table["state"] == "front"].all()
    assert not tested[(table["state"] != "front") & table["chosen"].isna()].any()


def test_the_command_trains_the_same_configuration_again(
    place: Path, store: Store, reported
) -> None:
    table = pd.read_csv(place / "reports" / "smoke" / "table.csv")
    row = table[table["state"] == "front"].iloc[0]
    arguments = shlex.split(row["command"])
    assert arguments[:3] == ["python", "-m", "src.train"]
    assert "sweeps=smoke" in arguments
    done = typed(place, "src.train", *arguments[3:])
    assert done.returncode == 0, done.stderr
    again = read.runs(store).iloc[0]
    first_seed = read.children(store, row["run_id"]).set_index("tags.seed").loc["0"]
    assert again["tags.config_hash"] == first_seed["tags.config_hash"]
    assert (
        again["metrics.best/val/balanced_accuracy"]
        == first_seed["metrics.best/val/balanced_accuracy"]
    )
    assert again["tags.study"] == ""


def test_the_registered_model_predicts_what_the_run_recorded(
    place: Path, store: Store, reported
) -> None:
    version = store.client.get_model_version_by_alias("derm", "champion")
    [folder] = {path.parent for path in (place / "mlruns" / "artifacts").rglob("MLmodel")}
    model = mlflow.pyfunc.load_model(
        str(folder)
    )  # by its folder: MLflow would note a store in the environment
    assert (
        len(json.loads(version.tags["classes"]))
        == model.metadata.signature.outputs.inputs[0].shape[-1]
    )
    side = model.metadata.signature.inputs.inputs[0].shape[-1]
    for number in (1, 5):
        answer = model.predict(
            np.random.default_rng(0).random((number, 3, side, side), dtype=np.float32)
        )
        assert answer.shape[0] == number
        np.testing.assert_allclose(answer.sum(axis=1), 1, rtol=1e-5)
    files = [path.name for path in (place / "mlruns" / "artifacts").rglob("*") if path.is_file()]
    assert "model.pt2" in files
    assert not [name for name in files if name.endswith((".pkl", ".pth"))]


def test_the_registered_model_has_a_card_in_its_own_store(
    place: Path, store: Store, reported
) -> None:
    version = store.client.get_model_version_by_alias("derm", "champion")
    assert "has no model card" not in reported.stderr
    assert "# Model card" in version.description
    assert "derm" in read.artifact(store, version.run_id, "card/card.md").read_text(
        encoding="utf-8"
    )
    assert not list(
        place.glob("*.db")
    )  # MLflow's own default, which a registry URI of the process would fill


def test_a_second_report_reads_the_cache_and_says_the_same(place: Path, reported, here) -> None:
    before = pd.read_csv(place / "reports" / "smoke" / "table.csv")
    status, said = here("study=smoke", BUDGET)
    assert status == 0, said
    pd.testing.assert_frame_equal(pd.read_csv(place / "reports" / "smoke" / "table.csv"), before)
    assert "reading all runs" not in said


def test_a_report_replaces_the_whole_folder_and_leaves_nothing_of_an_earlier_one(
    place: Path, reported, here
) -> None:
    folder = place / "again" / "smoke"
    folder.mkdir(parents=True)
    (folder / "pairs_of_another_front.csv").write_text("old")
    status, said = here("study=smoke", "publish=false", "folder=again", FEW_SAMPLES)
    assert status == 0, said
    assert [path.name for path in (place / "again").iterdir()] == ["smoke"]
    assert not (folder / "pairs_of_another_front.csv").exists()
    assert (folder / "report.html").exists()


def test_a_study_beside_what_it_was_and_a_filter(place: Path, reported, here) -> None:
    table = pd.read_csv(place / "reports" / "smoke" / "table.csv")
    middle = sorted(table["ended"])[2]
    before = f"before={middle.replace(' ', 'T')}"
    status, said = here("study=smoke", before, "publish=false", "folder=then", FEW_SAMPLES)
    assert status == 0, said
    assert "Studies side by side, on one scale" in " ".join(said.split())
    status, said = here(
        "filter=\"tags.model = 'custom' and tags.kind = 'trial'\"", "folder=found", FEW_SAMPLES
    )
    assert status == 0, said
    assert "has no run of its own" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "study: name one, as in study=dense_size"),
        (["study=nosuch"], "study=nosuch: no such study in sqlite"),
        (
            ["study=smoke", "objectives=[val/recall/xyz,efficiency/flops]"],
            "objectives[0]: no run has val/recall/xyz",
        ),
        (["study=smoke", "budgets=[params]"], "budgets[0]: must be like"),
        (["study=smoke", "margin=2"], "margin: input should be less than 1"),
        (["study=smoke", "studi=x"], "studi: unknown key"),
        (["study=smoke", "before=yesterdayish"], "before: must be a time"),
        (
            ["study=smoke", "before=2001-01-01"],
            "before=2001-01-01: no trial of smoke had ended by then",
        ),
        (
            ["study=smoke", "folder=/proc/reports"],
            "folder=/proc/reports: the report cannot be written there",
        ),
        (["study=smoke", "register=a/b"], "register: must be a model's name"),
        (["experiment=nosuch"], "experiment 'nosuch': not in"),
        (["study=smoke", "tracking.folder=elsewhere"], "no run store is there"),
        (["study=smoke", "tracking.uri=http://127.0.0.1:9"], "the run store cannot be used"),
        (["filter=tags.model ~ 3"], "cannot search the runs for 'tags.model ~ 3'"),
    ],
)
def test_bad_input_is_one_line(place: Path, here, arguments: list[str], message: str) -> None:
    status, said = here(*arguments)
    assert status == 2, said
    assert message in said.strip().splitlines()[-1], said
    assert "Traceback" not in said
    assert not (place / "elsewhere").exists()
