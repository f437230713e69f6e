"""One run: what is refused, what is logged, and the main job read back from the store."""

import contextlib
import functools
import io
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

from src import dry_run, train
from src import run as runs
from src import study as studies
from src.core.cli import ROOT
from src.core.config import WITHOUT_EFFECT
from src.core.environment import config_hash
from src.core.errors import ConfigError, UserError
from src.tracking import read
from src.tracking.read import artifact
from src.tracking.run import Run
from src.tracking.store import Store
from src.training import loop

QUALITY = "loss accuracy balanced_accuracy macro_f1 auroc recall/mel specificity/mel"
COST = "flops params trainable_params size_mb latency_ratio throughput peak_memory_mb"
OTHERS = "train/loss train/accuracy time/epoch_s time/fit_s time/images_per_s"
OTHERS += " data/images/train data/unreadable"
TAGS = "seed model data split weights git_commit data_fingerprint config_hash device"
URI = "postgresql://me:s3cret@db.example.org:5432/runs"


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(overrides))


def test_a_run_whose_changes_cannot_be_recorded_has_failed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Run) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "git_state", lambda root: ("abc", True))
    monkeypatch.setattr(runs, "record_changes", fail)
    with pytest.raises(OSError, match="No space"):
        runs._start(store, composed("experiment=smoke"), {}, [], runs.RunContext(), "custom")
    (run,) = store.search()
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"].startswith("the disk is full")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["model=custom", "model.net.width=32", "++model.net.dropout=0.2"], "width=32 dropout=0.2"),
        (
            ["model.net.dense=[64,32]", "~callbacks.stop", "loss=focal"],
            "dense=[64,32] ~stop loss=focal",
        ),
        (["optimizer.lr=0.001449804748618048", "x.y=1.2345e-05"], "lr=0.00145 y=1.23e-05"),
        (["a=0.5", f"data.root=/{'x' * 200}"], "a=0.5 ..."),  # a database has 250 characters
        ([], ""),
    ],
)
def test_a_trial_is_named_by_what_was_swept(overrides: list[str], name: str) -> None:
    shown = runs.trial_name(composed("experiment=smoke"), overrides, 12)
    assert shown == f"#12 custom {name}".rstrip()


@pytest.mark.parametrize(
    ("overrides", "gpus", "several"),
    [
        (["devices=2"], 4, True),
        (["devices=[0,1]"], 4, True),
        (["devices='2'"], 4, True),
        (["strategy=ddp"], 4, True),
        (["strategy=ddp_spawn"], 4, True),
        (["num_nodes=2"], 4, True),
        (["devices=1", "accelerator=gpu"], 4, False),
        (["devices=[0]", "accelerator=gpu"], 4, False),
        (["devices=[1]", "accelerator=gpu"], 4, False),
        (["devices=auto", "accelerator=cpu"], 4, False),
        (["devices=-1", "accelerator=cpu"], 4, False),
        *((["devices=auto", "accelerator=auto"], gpus, gpus > 1) for gpus in (0, 1, 2)),
        *((["devices=-1", "accelerator=auto"], gpus, gpus > 1) for gpus in (0, 1, 2)),
        *(([name], 1, False) for name in ("auto", "cpu", "gpu")),  # choices of conf/trainer
    ],
)
def test_a_trial_on_several_devices_is_refused(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], gpus: int, several: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    keys = [f"++trainer.{item}" if "=" in item else f"trainer={item}" for item in overrides]
    problem = "trainer.devices: a trial of a study trains on one"
    expected: Any = pytest.raises(ConfigError, match=problem) if several else nullcontext()
    with expected:
        runs.refuse_devices(composed(*keys), is_trial=True)


def test_no_record_has_the_password(
    monkeypatch: pytest.MonkeyPatch, store: Store, tmp_path: Path
) -> None:
    config = composed(f"tracking.uri={URI}")
    net = SimpleNamespace(net=None, image_size=32)
    built = SimpleNamespace(classifier=net, data=None)
    monkeypatch.setattr(loop, "build", lambda config, **options: built)
    monkeypatch.setattr(runs, "static_cost", lambda net, size: {})
    write_text = Run.text

    class EnoughError(Exception):
        pass

    def note(run: Run, content: str, name: str) -> None:
        write_text(run, content, name)
        raise EnoughError

    monkeypatch.setattr(Run, "text", note)
    _, plain, problem = runs._checked(config, [], store)
    assert problem is None
    typed, clean = [f"tracking.uri={URI}", "seed=0"], runs.RunContext(git=("abc", False))
    with (
        pytest.raises(EnoughError),
        runs._start(store, config, plain, typed, clean, "custom") as logged,
    ):
        runs.record(config, tmp_path, typed, logged)
    written = artifact(store, logged.id, "config.yaml").read_text()
    assert "postgresql://me:***@db.example.org" in written
    assert "s3cret" not in written
    assert config.tracking.uri == URI  # the job itself still needs it
    recorded = store.client.get_run(logged.id).data
    assert recorded.params["tracking.uri"] == "postgresql://me:***@db.example.org:5432/runs"
    assert "s3cret" not in str(recorded.params) + str(recorded.tags)
    assert recorded.tags["overrides"].endswith(" seed=0")
    assert recorded.tags["config_hash"] == config_hash(plain, WITHOUT_EFFECT)


class Finished(NamedTuple):
    folder: Path
    store: Store
    status: int
    output: str

    def study(self, name: str) -> pd.DataFrame:
        """The runs of a study."""
        return read.runs(self.store, f"tags.study = '{name}'")

    def run(self, study: str) -> pd.Series:
        """The only run of a study."""
        [row] = (row for _, row in self.study(study).iterrows())
        return row

    def csv(self, run_id: str, name: str) -> pd.DataFrame:
        """A table among the artifacts of a run."""
        return pd.read_csv(read.artifact(self.store, run_id, name))


Typed = Callable[..., tuple[int, str]]


@pytest.fixture
def typed(multirun: Finished, run_entry: Typed) -> Typed:
    """`python -m src.train <arguments>` in this process: status and output."""
    return functools.partial(run_entry, train.main)


@pytest.fixture(scope="module")
def multirun(
    tmp_path_factory: pytest.TempPathFactory,
    empty_database: Path,
    module_patch: pytest.MonkeyPatch,
) -> Finished:
    """Three configurations, of which one is invalid; the module runs in the folder."""
    folder = tmp_path_factory.mktemp("multirun")
    (folder / "mlruns").mkdir()
    shutil.copy(empty_database, folder / "mlruns" / "mlflow.db")
    arguments = ["-m", "experiment=smoke", "model=custom", "model.net.width=4,0,8", "study=widths"]
    arguments += ["threads=1"]
    module_patch.setattr(dry_run, "CHECKED", 0)  # else the invalid one is refused
    module_patch.chdir(folder)
    module_patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    output, handler, root = io.StringIO(), signal.getsignal(signal.SIGTERM), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    module_patch.setattr(sys, "argv", ["src.train", *arguments])
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        ended = pytest.raises(SystemExit, train.main)
    signal.signal(signal.SIGTERM, handler)
    root.handlers, root.level = handlers, level
    return Finished(folder, Store(folder=folder / "mlruns"), ended.value.code, output.getvalue())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def children(multirun: Finished) -> pd.DataFrame:
    rows = multirun.study("widths")
    return rows[rows["parent_id"].notna()].set_index("params.model.net.width").loc[["4", "0", "8"]]


@pytest.fixture(scope="module")
def parent(multirun: Finished) -> pd.Series:
    rows = multirun.study("widths")
    return rows[rows["parent_id"].isna()].iloc[0]


def test_an_invalid_configuration_is_a_failed_run_and_the_others_continue(
    multirun: Finished, parent: pd.Series, children: pd.DataFrame
) -> None:
    assert children["status"].tolist() == ["FINISHED", "FAILED", "FINISHED"]
    assert "model.net.width" in children.loc["0", "tags.failure"]
    assert multirun.status == 1
    assert "Traceback" not in multirun.output
    assert "model.net.width" in multirun.output
    assert parent["status"] == "FINISHED"
    assert parent["name"] == parent["tags.study"] == "widths"
    assert parent["metrics.runs/all"] == 3
    assert set(children["parent_id"]) == {parent["run_id"]}
    assert set(children["tags.study"]) == {"widths"}
    assert children["tags.trial"].tolist() == ["0", "1", "2"]
    assert children["name"].tolist() == [f"#{n} custom width={w}" for n, w in enumerate("408")]


def test_a_run_has_all_metrics_tags_and_parameters(children: pd.DataFrame) -> None:
    quality, cost, tags = QUALITY.split(), COST.split(), TAGS.split()
    cost += [f"latency_ms/b{batch}/p{p}" for batch in (1, 64) for p in (50, 90, 99)]
    metrics = [f"{split}/{name}" for split in ("val", "best/val") for name in quality]
    metrics += [f"efficiency/{name}" for name in cost]
    metrics += OTHERS.split()
    for _, row in children[children["status"] == "FINISHED"].iterrows():
        assert [name for name in metrics if pd.isna(row[f"metrics.{name}"])] == []
        assert [tag for tag in tags if not row[f"tags.{tag}"]] == []
        assert row["params.trainer.max_epochs"] == "2"
        assert row["params.data.source.lesions"] == "120"


def test_the_data_set_is_an_input_of_each_split(multirun: Finished, children: pd.DataFrame) -> None:
    inputs = {}
    for width in ("4", "8"):
        recorded = multirun.store.client.get_run(children.loc[width, "run_id"]).inputs
        inputs[width] = {
            item.tags[0].value: (item.dataset.name, item.dataset.digest, item.dataset.profile)
            for item in recorded.dataset_inputs
        }
    assert inputs["4"] == inputs["8"]  # the same data for both
    assert len({digest for _, digest, _ in inputs["4"].values()}) == 3
    for split, (name, _, profile) in inputs["4"].items():
        assert name == "synthetic"
        rows = children.loc["4", f"metrics.data/images/{split}"]
        classes = json.loads(profile)["classes"]
        assert json.loads(profile)["num_rows"] == sum(classes.values()) == rows
        assert "mel" in classes
    predicted = multirun.csv(children.loc["4", "run_id"], "predictions/val.csv")["label"]
    expected = predicted.value_counts().to_dict()
    assert json.loads(inputs["4"]["val"][2])["classes"] == expected


def test_only_the_front_is_evaluated_on_test(children: pd.DataFrame) -> None:
    finished = children[children["status"] == "FINISHED"]
    quality = finished["metrics.best/val/balanced_accuracy"]
    flops = finished["metrics.efficiency/flops"]
    assert flops["4"] < flops["8"]
    # the wider net is on the front only if it is better
    expected = {"4": True, "8": bool(quality["8"] > quality["4"])}
    assert {width: tag == "true" for width, tag in finished["tags.front"].items()} == expected
    assert finished["metrics.test/accuracy"].notna().to_dict() == expected


@pytest.mark.parametrize("w", [4, 8])
def test_costs_are_those_of_the_architecture(children: pd.DataFrame, w: int) -> None:
    # at 32 px three unpadded blocks leave a map of 2 x 2
    convolutions = 3 * w * 9 + w + w * 2 * w * 9 + 2 * w + 2 * w * 4 * w * 9 + 4 * w
    parameters = convolutions + (4 * w * 4 + 1) * 128 + 129 * 64 + 65 * 7
    assert children.loc[str(w), "metrics.efficiency/params"] == parameters


def test_artifacts_are_complete(multirun: Finished, children: pd.DataFrame) -> None:
    artifacts = read.artifact(multirun.store, children.loc["4", "run_id"], "")
    names = {str(path.relative_to(artifacts)) for path in artifacts.rglob("*") if path.is_file()}
    files = "config.yaml overrides.txt environment.json efficiency.json checkpoint/best.ckpt "
    files += "figures/contact_sheet.png figures/augmentation_sheet.png figures/confusion_val.png "
    files += "figures/learning_curves.png figures/confusion_test.png per_class/val.csv "
    files += "predictions/val.csv predictions/test.csv"
    assert names >= set(files.split())
    assert "model.net.width=4" in (artifacts / "overrides.txt").read_text()
    assert json.loads((artifacts / "environment.json").read_text())["packages"]["torch"]
    for picture in (artifacts / "figures").glob("*_sheet.png"):
        with Image.open(picture) as image:
            assert min(image.size) > 200


def test_predictions_agree_with_the_metrics(multirun: Finished, children: pd.DataFrame) -> None:
    run_id = children.loc["4", "run_id"]
    val, test = (multirun.csv(run_id, f"predictions/{split}.csv") for split in ("val", "test"))
    probability = val.filter(like="p/")
    assert probability.sum(axis=1).tolist() == pytest.approx([1.0] * len(val), abs=1e-4)
    accuracy = (probability.idxmax(axis=1).str.removeprefix("p/") == val["label"]).mean()
    assert children.loc["4", "metrics.best/val/accuracy"] == pytest.approx(accuracy, abs=1e-6)
    images = multirun.csv(run_id, "per_class/val.csv").set_index("class")["images"]
    assert images.to_dict() == val["label"].value_counts().to_dict()
    assert set(test["group"]).isdisjoint(val["group"])


def test_the_comparison_is_logged_and_printed(multirun: Finished, parent: pd.Series) -> None:
    table = multirun.csv(parent["run_id"], "comparison.csv")
    assert len(table) == 3
    assert table["front"].sum() >= 1
    assert table.iloc[-1]["status"] == "FAILED"
    output = multirun.output
    assert all(run_id in output for run_id in table["run_id"])
    assert "look: python -m src.tracking.ui, then" in output
    assert max(len(line) for line in output.splitlines() if "http://" not in line) <= 100


def test_cost_is_of_the_size_that_the_net_is_built_for(multirun: Finished, typed: Typed) -> None:
    size = ["model=custom_gap", "model.image_size=32", "data.image_size=40"]
    status, output = typed("experiment=smoke", *size, "trainer.max_epochs=1", "study=size")
    assert status == 0, output
    assert multirun.run("size")["name"] == "custom_gap synthetic"
    flops = multirun.run("size")["metrics.efficiency/flops"]
    # padded, pooled to 40, 20, 10
    convolutions = 40 * 40 * 27 * 32 + 20 * 20 * 9 * 32 * 64 + 10 * 10 * 9 * 64 * 128
    # global average pooling may be counted once per value of its 5 x 5 map
    assert flops - convolutions - 128 * 256 - 256 * 7 in (0, 5 * 5 * 128)


def test_a_single_run_waits_for_a_database_as_a_study_does(
    typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = []

    def stop(config: DictConfig, folder: Path, overrides: list[str], run: Run) -> None:
        seconds.append(run.store.retry.seconds)
        raise UserError("enough")

    monkeypatch.setattr(runs, "record", stop)
    assert typed("experiment=smoke")[0] == 2
    assert seconds == [300.0]  # hydra.sweeper.storage_wait_s


def test_two_processes_train_one_run(multirun: Finished) -> None:
    line = [sys.executable, "-m", "src.train", "experiment=smoke", "trainer.max_epochs=1"]
    line += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "threads=1"]
    line += ["trainer.precision=32-true", "study=ddp", "efficiency.batch_sizes=[1]"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(line, env=environment, capture_output=True, check=True, timeout=200)
    row = multirun.run("ddp")
    assert row["status"] == "FINISHED"
    for split in ("val", "test"):
        table = multirun.csv(row["run_id"], f"predictions/{split}.csv")
        assert len(table) == table["image_id"].nunique() == row[f"metrics.data/images/{split}"]
    pictures = read.artifact(multirun.store, row["run_id"], "figures")
    for picture in pictures.glob("*.png"):  # this process draws them, see tests/quick_runs.py
        with Image.open(picture) as image:
            assert min(image.size) > 200


def test_two_classes_of_real_images(multirun: Finished, shared_data: Path, typed: Typed) -> None:
    data = ["data=siim2020", f"data.root={shared_data / 'siim2020'}", "data.source.limit=150"]
    small = ["model.image_size=32", "efficiency=fast", "trainer.max_epochs=1", "data.batch_size=16"]
    more = ["data.oversample=0.5", "loss=weighted_focal", "augment=sun2023", "study=siim"]
    status, output = typed(*data, *small, *more)
    assert status == 0, output
    row = multirun.run("siim")
    assert (row["tags.grouped_by"], row["tags.split"]) == ("patient", "grouped")
    assert row["metrics.data/groups_on_two_sides"] == 0
    table = multirun.csv(row["run_id"], "predictions/test.csv")
    assert list(table.filter(like="p/")) == ["p/benign", "p/malignant"]
    recall = (table["p/malignant"] > 0.5)[table["label"] == "malignant"].mean()
    assert row["metrics.test/recall/malignant"] == pytest.approx(recall, abs=1e-6)


def train_without_an_end(folder: Path, study: str) -> None:
    """The body of a process: `python -m src.train` with its output in a file."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    os.chdir(folder)
    sys.stdout = sys.stderr = (folder / f"{study}.log").open("w", buffering=1)
    options = ["trainer.max_epochs=100000", "threads=1"]
    sys.argv = ["src.train", "experiment=smoke", *options, f"study={study}"]
    train.main()


@pytest.fixture(scope="module")
def endless(multirun: Finished) -> Iterator[dict[str, Any]]:
    """Three trainings without an end, from the fork server of the study's trials.

    Each study has the name of the signal it will receive.
    """
    context = multiprocessing.get_context("forkserver")
    signals = ("SIGINT", "SIGTERM", "SIGKILL")
    processes: dict[str, Any] = {
        name: context.Process(target=train_without_an_end, args=(multirun.folder, name))
        for name in signals
    }
    for process in processes.values():
        process.start()
    yield processes
    for process in processes.values():
        process.kill()
        process.join()


def end(multirun: Finished, process: Any, name: str) -> int:
    """Send the signal in the third epoch; the exit status of the process."""
    log = multirun.folder / f"{name}.log"
    while not (log.exists() and "epoch 2/" in log.read_text()):
        assert process.is_alive(), log.read_text()
        time.sleep(0.1)
    os.kill(process.pid, signal.Signals[name])
    process.join(120)
    return int(process.exitcode)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_run_is_marked_as_killed(
    multirun: Finished, endless: dict[str, Any], name: str
) -> None:
    assert end(multirun, endless[name], name) != 0
    row = multirun.run(name)
    assert row["status"] == "KILLED"
    assert row["tags.failure"]


def test_the_next_run_marks_a_killed_one(
    multirun: Finished, endless: dict[str, Any], typed: Typed
) -> None:
    assert end(multirun, endless["SIGKILL"], "SIGKILL") == -signal.SIGKILL
    assert multirun.run("SIGKILL")["status"] == "RUNNING"
    status, output = typed("experiment=smoke", "trainer.max_epochs=1", "study=next")
    assert status == 0, output
    assert multirun.run("SIGKILL")["status"] == "FAILED"
    assert multirun.run("next")["status"] == "FINISHED"


def test_uncommitted_changes_are_an_artifact_without_passwords(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q", "."], [*identity, "commit", "-q", "--allow-empty", "-m", "a"]):
        project.mkdir(exist_ok=True)
        subprocess.run(["git", *command], cwd=project, check=True)
    (project / "mine.yaml").write_text("uri: http://me:secret@example.org")
    monkeypatch.setattr(runs, "ROOT", project)
    with Run.start(store, "mine", {}) as recorded:
        runs.record_changes(recorded)
    [patch] = store.client.list_artifacts(recorded.id)
    text = Path(store.client.download_artifacts(recorded.id, patch.path, str(tmp_path))).read_text()
    assert "+uri: http://me:***@example.org" in text
    assert "secret" not in text


def test_a_finished_training_is_taken_over(
    multirun: Finished, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (runs, studies):
        monkeypatch.setattr(module, "git_state", lambda root: ("abc", False))
    line = ["experiment=smoke", "model.net.width=4", "threads=1", "test=false"]
    assert typed(*line, "study=trained")[0] == 0
    expected = multirun.run("trained")

    def fail(*arguments: object, **options: object) -> None:
        raise UserError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", fail)
        status, output = typed(*line, "study=taken", "reuse=true")
        assert status == 0, output
        other_seed = typed(*line, "study=other", "reuse=true", "seed=1")
        assert (other_seed[0], "trained again" in other_seed[1]) == (2, True)
    taken = multirun.run("taken")
    assert taken["tags.reused_from"] == expected["run_id"]
    for name in ("tags.chosen_by", *(f"metrics.{m}" for m in ("best/epoch", "time/fit_s"))):
        assert taken[name] == expected[name]
    names = [f"metrics.best/val/{name}" for name in QUALITY.split()]
    assert taken[names].tolist() == pytest.approx(expected[names].tolist(), abs=1e-6)
    curves = read.history(multirun.store, [expected["run_id"], taken["run_id"]], "val/loss")
    first, second = (group.tolist() for _, group in curves.groupby("run_id", sort=False)["value"])
    assert first == second
    assert len(first) == 2
    files = [read.artifact(multirun.store, row["run_id"], "") for row in (expected, taken)]
    paths = [{path.relative_to(root) for path in root.rglob("*")} for root in files]
    assert paths[0] == paths[1]

    several = ["seed=0", "study=seeds", "reuse=true", "repeats=2", "efficiency.trials=front"]
    status, output = typed("-m", *line, *several)
    assert status == 0, output
    rows = multirun.study("seeds").set_index("tags.seed")
    of_trials = rows[rows["tags.kind"] != "study"]
    assert of_trials["metrics.efficiency/latency_ratio"].nunique(dropna=False) == 1
    assert of_trials["metrics.efficiency/latency_ms/b1/p50"].notna().all()
    assert of_trials["tags.ratio_method"].astype(str).str.endswith("at the end of the study").all()
    memory = "efficiency/peak_memory_mb"  # was measured with the seeds
    for run_id in of_trials["run_id"]:
        assert len(multirun.store.client.get_metric_history(run_id, memory)) == 1
    repeats = rows[rows["tags.kind"] == "run"]
    sheets = [read.artifacts(multirun.store, run_id, "figures") for run_id in repeats["run_id"]]
    assert sum("figures/contact_sheet.png" in files for files in sheets) == 1  # of both seeds
    assert repeats.loc["0", "tags.reused_from"] == expected["run_id"]
    assert pd.isna(repeats.loc["1", "tags.reused_from"])


@pytest.mark.parametrize("override", ["", "${seed}", "${..seed}", "${ seed }"])
def test_seeds_share_what_does_not_refer_to_the_seed(override: str) -> None:
    config = composed(*([f"data.split_seed={override}"] if override else []))
    assert runs.seeds_are_alike(config) == (override == "")


def test_nothing_is_taken_over_from_uncommitted_code(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    dirty = runs.RunContext(git=("abc", True))
    with runs._start(store, composed("experiment=smoke"), {}, [], dirty, "custom") as run:
        assert runs.equal_run(run) is None
    assert "the code has uncommitted changes" in caplog.text
