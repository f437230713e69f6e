"""The main job on real (synthetic) input, most of it in processes of its own, read back from the store."""

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from PIL import Image

from src import train
from src.core.cli import ROOT
from src.tracking import read
from src.tracking.store import Store


class Finished(NamedTuple):
    folder: Path
    store: Store
    process: subprocess.CompletedProcess[str]


def command(folder: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "PARETODERM_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return [sys.executable, "-m", "src.train", *arguments], environment


@pytest.fixture
def typed(
    multirun: Finished, monkeypatch: pytest.MonkeyPatch, run_entry
) -> Callable[..., tuple[int, str]]:
    """`python -m src.train <arguments>` in this process, so that the imports are paid once: status and output."""
    monkeypatch.chdir(multirun.folder)
    monkeypatch.setenv("PARETODERM_CACHE", str(multirun.folder / "cache"))
    return functools.partial(run_entry, train.main)


@pytest.fixture(scope="module")
def multirun(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Three cells, of which one cannot be."""
    folder = tmp_path_factory.mktemp("multirun")
    arguments = ["-m", "experiment=smoke", "model=custom", "model.net.width=4,0,8", "study=widths"]
    line, environment = command(folder, *arguments)
    process = subprocess.run(
        line, cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    return Finished(folder, Store(folder=folder / "mlruns"), process)


@pytest.fixture(scope="module")
def runs(multirun: Finished) -> pd.DataFrame:
    return read.runs(multirun.store)


@pytest.fixture(scope="module")
def children(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs["parent_id"].notna()].set_index("params.model.net.width").loc[["4", "0", "8"]]


@pytest.fixture(scope="module")
def parent(runs: pd.DataFrame) -> pd.Series:
    (only,) = (row for _, row in runs[runs["parent_id"].isna()].iterrows())
    return only


def test_a_bad_cell_is_a_row_with_its_reason_and_the_others_go_on(
    multirun: Finished, children: pd.DataFrame
) -> None:
    assert children["status"].tolist() == ["FINISHED", "FAILED", "FINISHED"]
    assert "model.net.width" in children.loc["0", "tags.failure"]
    assert multirun.process.returncode == 1
    assert "Traceback" not in multirun.process.stderr
    assert "model.net.width" in multirun.process.stdout


def test_parent_ties_the_runs_together(parent: pd.Series, children: pd.DataFrame) -> None:
    assert parent["status"] == "FINISHED"
    assert parent["name"] == parent["tags.study"] == "widths"
    assert set(children["parent_id"]) == {parent["run_id"]}
    assert set(children["tags.study"]) == {"widths"}
    assert children["tags.trial"].tolist() == ["0", "1", "2"]


def test_record_has_the_whole_vocabulary(children: pd.DataFrame) -> None:
    quality = [
        "loss",
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "auroc",
        "recall/mel",
        "specificity/mel",
    ]
    wanted = [f"{split}/{name}" for split in ("val", "best/val") for name in quality]
    cost = [
        "flops",
        "params",
        "trainable_params",
        "size_mb",
        "latency_ratio",
        "throughput",
        "peak_memory_mb",
    ]
    wanted += [f"efficiency/{name}" for name in cost]
    wanted += [f"efficiency/latency_ms/b{batch}/p{p}" for batch in (1, 64) for p in (50, 90, 99)]
    wanted += [
        "train/loss",
        "time/fit_s",
        "time/images_per_s",
        "data/images/train",
        "data/unreadable",
    ]
    for _, run in children[children["status"] == "FINISHED"].iterrows():
        missing = [name for name in wanted if pd.isna(run[f"metrics.{name}"])]
        assert missing == []
        for tag in (
            "seed",
            "model",
            "data",
            "split",
            "weights",
            "git_commit",
            "data_fingerprint",
            "config_hash",
            "device",
        ):
            assert run[f"tags.{tag}"], tag
        assert run["params.trainer.max_epochs"] == "2"
        assert run["params.data.source.lesions"] == "120"


def test_only_the_front_touches_test(children: pd.DataFrame) -> None:
    finished = children[children["status"] == "FINISHED"]
    quality, flops = (
        finished["metrics.best/val/balanced_accuracy"],
        finished["metrics.efficiency/flops"],
    )
    assert flops["4"] < flops["8"]
    expected = {
        "4": True,
        "8": bool(quality["8"] > quality["4"]),
    }  # the wider one has to be better to stand beside
    assert {width: tag == "true" for width, tag in finished["tags.front"].items()} == expected
    assert finished["metrics.test/accuracy"].notna().to_dict() == expected


def test_costs_are_those_of_the_architecture(children: pd.DataFrame) -> None:
    def parameters(width: int) -> int:  # at 32 px three unpadded blocks leave a map of 2 x 2
        convolutions = (
            3 * width * 9
            + width
            + width * 2 * width * 9
            + 2 * width
            + 2 * width * 4 * width * 9
            + 4 * width
        )
        return convolutions + (4 * width * 4 + 1) * 128 + 129 * 64 + 65 * 7

    for width in ("4", "8"):
        assert children.loc[width, "metrics.efficiency/params"] == parameters(int(width))


def test_artifacts_are_there_and_whole(multirun: Finished, children: pd.DataFrame) -> None:
    run_id = children.loc["4", "run_id"]
    artifacts = read.artifact(multirun.store, run_id, "")
    names = {str(path.relative_to(artifacts)) for path in artifacts.rglob("*") if path.is_file()}
    assert names >= {
        "config.yaml",
        "overrides.txt",
        "environment.json",
        "efficiency.json",
        "checkpoint/best.ckpt",
        "figures/contact_sheet.png",
        "figures/learning_curves.png",
        "figures/confusion_val.png",
        "figures/confusion_test.png",
        "per_class/val.csv",
        "predictions/val.csv",
        "predictions/test.csv",
    }
    assert "model.net.width=4" in (artifacts / "overrides.txt").read_text()
    assert json.loads((artifacts / "environment.json").read_text())["packages"]["torch"]
    for picture in (artifacts / "figures").glob("*.png"):
        with Image.open(picture) as image:
            assert min(image.size) > 200


def test_predictions_say_what_the_metrics_say(multirun: Finished, children: pd.DataFrame) -> None:
    table = pd.read_csv(
        read.artifact(multirun.store, children.loc["4", "run_id"], "predictions/val.csv")
    )
    probability = table.filter(like="p/")
    assert probability.sum(axis=1).tolist() == pytest.approx([1.0] * len(table), abs=1e-4)
    predicted = probability.idxmax(axis=1).str.removeprefix("p/")
    accuracy = (predicted == table["label"]).mean()
    assert children.loc["4", "metrics.best/val/accuracy"] == pytest.approx(accuracy, abs=1e-6)
    per_class = pd.read_csv(
        read.artifact(multirun.store, children.loc["4", "run_id"], "per_class/val.csv")
    )
    assert (
        per_class.set_index("class")["images"].to_dict() == table["label"].value_counts().to_dict()
    )
    test = pd.read_csv(
        read.artifact(multirun.store, children.loc["4", "run_id"], "predictions/test.csv")
    )
    assert set(test["group"]).isdisjoint(table["group"])


def test_comparison_stands_on_the_parent_and_on_the_terminal(
    multirun: Finished, parent: pd.Series
) -> None:
    table = pd.read_csv(read.artifact(multirun.store, parent["run_id"], "comparison.csv"))
    assert len(table) == 3
    assert table["front"].sum() >= 1
    assert table.iloc[-1]["status"] == "FAILED"
    for run_id in table["run_id"]:
        assert run_id in multirun.process.stdout
    assert "make ui" in multirun.process.stdout
    lines = [line for line in multirun.process.stdout.splitlines() if "http://" not in line]
    assert max(map(len, lines)) <= 100
    assert parent["metrics.runs/all"] == 3


def test_cost_is_of_the_size_that_the_net_is_built_for(multirun: Finished, typed) -> None:
    size = [
        "model=custom_gap",
        "model.image_size=32",
        "data.image_size=40",
        "trainer.max_epochs=1",
        "study=size",
    ]
    status, said = typed("experiment=smoke", *size)
    assert status == 0, said
    (run,) = (row for _, row in read.runs(multirun.store, "tags.study = 'size'").iterrows())
    convolutions = (
        40 * 40 * 27 * 32 + 20 * 20 * 9 * 32 * 64 + 10 * 10 * 9 * 64 * 128
    )  # padded, pooled to 40, 20, 10
    # global average pooling is counted once a value of its 5 x 5 map
    assert run["metrics.efficiency/flops"] - convolutions - 128 * 256 - 256 * 7 in (0, 5 * 5 * 128)


def test_runs_that_never_reach_the_store_are_no_success(typed) -> None:
    status, said = typed("-m", "tracking.uri=file:///nowhere", "model=custom,custom_gap")
    assert status == 2  # told once, before any trial is started
    assert "Traceback" not in said
    assert said.count("must be sqlite:///") == 1


def test_two_processes_train_one_run(multirun: Finished) -> None:
    ddp = [
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "trainer.precision=32-true",
    ]
    line, environment = command(multirun.folder, "experiment=smoke", *ddp, "study=ddp")
    subprocess.run(
        line, cwd=multirun.folder, env=environment, capture_output=True, check=True, timeout=200
    )
    (run,) = (row for _, row in read.runs(multirun.store, "tags.study = 'ddp'").iterrows())
    assert run["status"] == "FINISHED"
    for split in ("val", "test"):
        table = pd.read_csv(
            read.artifact(multirun.store, run["run_id"], f"predictions/{split}.csv")
        )
        assert len(table) == table["image_id"].nunique() == run[f"metrics.data/images/{split}"]


def test_two_classes_of_real_images(multirun: Finished, shared_data: Path, typed) -> None:
    data = [
        "data=siim2020",
        f"data.root={shared_data / 'siim2020'}",
        "data.source.limit=150",
        "data.oversample=0.5",
    ]
    small = [
        "model.image_size=32",
        "efficiency=fast",
        "trainer.max_epochs=1",
        "data.batch_size=16",
        "loss=weighted_focal",
    ]
    status, said = typed(*data, *small, "augment=sun2023", "study=siim")
    assert status == 0, said
    (run,) = (row for _, row in read.runs(multirun.store, "tags.study = 'siim'").iterrows())
    assert run["tags.grouped_by"] == "patient"
    assert run["tags.split"] == "grouped"
    assert run["metrics.data/groups_on_two_sides"] == 0
    table = pd.read_csv(read.artifact(multirun.store, run["run_id"], "predictions/test.csv"))
    assert list(table.filter(like="p/")) == ["p/benign", "p/malignant"]
    found = (table["p/malignant"] > 0.5)[table["label"] == "malignant"].mean()
    assert run["metrics.test/recall/malignant"] == pytest.approx(found, abs=1e-6)


@pytest.fixture(scope="module")
def under_way(multirun: Finished) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Three trainings without an end, started at once, by the signal that each is to get: a study is named after it."""
    started = {}
    for name in ("SIGINT", "SIGTERM", "SIGKILL"):
        line, environment = command(
            multirun.folder, "experiment=smoke", "trainer.max_epochs=100000", f"study={name}"
        )
        started[name] = subprocess.Popen(
            line,
            cwd=multirun.folder,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            # a test run in the background of a shell has SIGINT ignored, and its children inherit
            # that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str], sent: signal.Signals) -> int:
    """Send the signal in the third epoch; the status that the process ends with."""
    assert process.stderr is not None
    for text in process.stderr:
        if "epoch 2/" in text:
            break
    process.send_signal(sent)
    process.communicate(timeout=120)
    return process.returncode


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_run_is_killed_with_its_reason_and_never_left_running(
    multirun: Finished, under_way: dict[str, subprocess.Popen[str]], name: str
) -> None:
    assert end(under_way[name], signal.Signals[name]) != 0
    (run,) = (row for _, row in read.runs(multirun.store, f"tags.study = '{name}'").iterrows())
    assert run["status"] == "KILLED"
    assert run["tags.failure"]


def test_a_killed_run_is_marked_by_the_next_one(
    multirun: Finished, under_way: dict[str, subprocess.Popen[str]], typed
) -> None:
    end(under_way["SIGKILL"], signal.SIGKILL)
    assert read.runs(multirun.store, "tags.study = 'SIGKILL'")["status"].tolist() == ["RUNNING"]
    status, said = typed("experiment=smoke", "trainer.max_epochs=1", "study=next")
    assert status == 0, said
    assert read.runs(multirun.store, "tags.study = 'SIGKILL'")["status"].tolist() == ["FAILED"]
    assert read.runs(multirun.store, "tags.study = 'next'")["status"].tolist() == ["FINISHED"]
