"""`python -m src.report` as a user types it, on a real small study: files, MLflow, bad input."""

import functools
import json
import shlex
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from src import report, train
from src.tracking import read
from src.tracking.store import Store

FEW_SAMPLES = "samples=200"  # intervals are not the point here
BUDGET = "budgets=['params<=692e3']"
STUDY = ["-m", "sweeps=smoke", "hydra.sweeper.n_trials=2", "repeats=2", "trainer.max_epochs=2"]
STUDY += ["model.net.depth=1", "model.image_size=16", "model.net.dense=[16]"]
STUDY += [
    "data.source.lesions=100",
    "trainer=cpu",
    "threads=1",
    "hydra.sweeper.pruner.min_epochs=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "mlruns").mkdir()
    shutil.copy(empty_database, folder / "mlruns" / "mlflow.db")
    return folder


@pytest.fixture
def typed(folder: Path, monkeypatch: pytest.MonkeyPatch, run_entry):
    """`typed(report.main, *arguments)` runs a command in the folder: status and output."""
    monkeypatch.chdir(folder)
    return run_entry


@pytest.fixture
def command(reported: str, typed, monkeypatch: pytest.MonkeyPatch):
    """`python -m src.report <arguments>` after the study was reported: status and output.

    It draws no files of figures: they take most of the time, and the first report has them.
    """
    monkeypatch.setattr("src.reporting.plots_static.write", lambda charts, folder: [])
    return functools.partial(typed, report.main)


@pytest.fixture(scope="module")
def outputs() -> list[str]:
    """The output of the module's one report, once it is made."""
    return []


@pytest.fixture
def reported(folder: Path, typed, outputs: list[str]) -> str:
    """The output of a report on a study of two trials under two seeds."""
    if not outputs:
        status, output = typed(train.main, *STUDY)
        assert status == 0, output
        status, output = typed(report.main, "study=smoke", "register=derm", BUDGET, FEW_SAMPLES)
        assert status == 0, output
        outputs.append(output)
    return outputs[0]


@pytest.fixture
def store(folder: Path, reported: str) -> Store:
    return Store(folder=folder / "mlruns")


@pytest.fixture
def table(folder: Path, reported: str) -> pd.DataFrame:
    return pd.read_csv(folder / "reports" / "smoke" / "table.csv")


def test_the_terminal_shows_answers_and_the_path_of_the_page(reported: str) -> None:
    for part in ("answer", "cheapest within 0.02", "best with params <= 692k"):
        assert part in reported
    assert "look: reports/smoke/report.html" in reported
    assert "The images are drawn, not photographed" in reported
    shown = reported[reported.index("smoke: the Pareto report") :].partition("look: reports/")[0]
    assert max(map(len, shown.splitlines())) <= 80


def test_files_hold_every_trial_and_the_members_of_the_front_are_tested(
    folder: Path, table: pd.DataFrame
) -> None:
    assert len(table) == 2
    states = {"front", "dominated", "over limit", "pruned", "over_limit", "failed", "no value"}
    assert set(table["state"]) <= states
    reports = folder / "reports" / "smoke"
    assert (reports / "report.html").stat().st_size < 6_000_000
    for name in ("front.png", "front.svg"):
        assert (reports / "figures" / name).stat().st_size > 1000
    assert list(reports.glob("*.tex"))
    tested, member = table["test/accuracy"].notna(), table["state"] == "front"
    assert tested[member].all()
    assert not tested[~member & table["chosen"].isna()].any()


def test_mlflow_has_the_files_the_figures_the_tags_and_a_description(
    store: Store, table: pd.DataFrame
) -> None:
    run = read.runs(store, "tags.study = 'smoke' and tags.kind = 'study'").iloc[0]
    assert read.artifact(store, run["run_id"], "report/report.html").exists()
    assert run["metrics.report/front"] == (table["state"] == "front").sum()
    assert 0 < run["metrics.report/hypervolume"] <= 1
    front = read.runs(store, "tags.front = 'true'")
    assert set(front["run_id"]) == set(table.loc[table["state"] == "front", "run_id"])
    knee = read.runs(store, "tags.knee = 'true'")
    assert set(knee.get("run_id", [])) == set(table.loc[table["knee"], "run_id"])
    assert "balanced accuracy" in run["tags.mlflow.note.content"]


def test_the_registered_model_predicts_and_has_a_card_in_the_same_store(
    folder: Path, store: Store, reported: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = store.client.get_model_version_by_alias("derm", "champion")
    artifacts = folder / "mlruns" / "artifacts"
    [logged] = store.client.get_run(version.run_id).outputs.model_outputs
    assert logged.model_id in version.source
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    model = mlflow.pyfunc.load_model("models:/derm@champion")
    side = model.metadata.signature.inputs.inputs[0].shape[1]
    for number in (1, 5):
        images = np.random.default_rng(0).integers(0, 256, (number, side, side, 3), np.uint8)
        answer = model.predict(images)
        assert answer.shape == (number, len(json.loads(version.tags["classes"])))
        np.testing.assert_allclose(answer.sum(axis=1), 1, rtol=1e-5)
    files = [path.name for path in artifacts.rglob("*") if path.is_file()]
    assert not [name for name in files if name.endswith((".pkl", ".pth"))]
    assert "has no model card" not in reported
    assert "# Model card" in version.description
    card = read.artifact(store, version.run_id, "card/card.md")
    assert "derm" in card.read_text(encoding="utf-8")
    # MLflow's own default, which a registry URI of the process would fill
    assert not list(folder.glob("*.db"))


def test_each_member_of_the_front_has_a_model_in_mlflow(store: Store, table: pd.DataFrame) -> None:
    for member in table.loc[table["state"] == "front", "run_id"]:
        seeds = read.children(store, member).set_index("tags.seed")["run_id"]
        models = {
            seed: store.client.get_run(run_id).outputs.model_outputs
            for seed, run_id in seeds.items()
        }
        assert {seed: len(some) for seed, some in models.items()} == {"0": 1, "1": 0}


def test_the_command_trains_the_same_configuration_again(
    store: Store, table: pd.DataFrame, typed
) -> None:
    row = table[table["state"] == "front"].iloc[0]
    arguments = shlex.split(row["command"])
    assert arguments[:3] == ["python", "-m", "src.train"]
    assert "sweeps=smoke" in arguments
    status, output = typed(train.main, *arguments[3:])
    assert status == 0, output
    again = read.runs(store).iloc[0]
    seed = read.children(store, row["run_id"]).set_index("tags.seed").loc["0"]
    for column in ("tags.config_hash", "metrics.best/val/balanced_accuracy"):
        assert again[column] == seed[column]
    assert again["tags.study"] == ""


def test_a_second_report_reads_the_cache_and_replaces_the_folder(
    folder: Path, table: pd.DataFrame, command
) -> None:
    reports = folder / "reports" / "smoke"
    (reports / "pairs_of_another_front.csv").write_text("former")
    status, output = command("study=smoke", BUDGET, "publish=false", FEW_SAMPLES)
    assert status == 0, output
    pd.testing.assert_frame_equal(pd.read_csv(reports / "table.csv"), table)
    assert "reading all runs" not in output
    assert [path.name for path in reports.parent.iterdir()] == ["smoke"]
    assert not (reports / "pairs_of_another_front.csv").exists()
    assert (reports / "report.html").exists()


def test_a_study_beside_what_it_was_and_a_filter(table: pd.DataFrame, command) -> None:
    before = f"before={sorted(table['ended'])[1].replace(' ', 'T')}"
    status, output = command("study=smoke", before, "publish=false", "folder=then", FEW_SAMPLES)
    assert status == 0, output
    assert "Studies side by side, on one scale" in " ".join(output.split())
    search = "filter=\"tags.model = 'custom' and tags.kind = 'trial'\""
    status, output = command(search, "folder=filtered", FEW_SAMPLES)
    assert status == 0, output
    assert "has no run of its own" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["study=smoke", "objectives=[val/recall/xyz,efficiency/flops]"],
            "objectives[0]: no run has best/val/recall/xyz",
        ),
        (["study=smoke", "budgets=[params]"], "budgets[0]: must be like"),
        (["study=smoke", "before=2001-01-01"], "before=2001-01-01: no trial of smoke had ended by"),
        (
            ["study=smoke", "folder=/proc/reports"],
            "folder=/proc/reports: the report cannot be written there",
        ),
        (["experiment=nosuch"], "experiment 'nosuch': not in"),
        (["study=smoke", "tracking.folder=elsewhere"], "no run store is there"),
        (["study=smoke", "tracking.uri=http://127.0.0.1:9"], "the run store cannot be used"),
        (["filter=tags.model ~ 3"], "cannot search the runs for 'tags.model ~ 3'"),
    ],
)
def test_bad_input_is_one_line(folder: Path, command, arguments: list[str], message: str) -> None:
    status, output = command(*arguments)
    assert status == 2, output
    assert message in output.strip().splitlines()[-1], output
    assert "Traceback" not in output
    assert not (folder / "elsewhere").exists()
