"""Every choice of conf/compression makes a measured run of its own from a trained one."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from src import train
from src.core.cli import CONF, ROOT
from src.core.errors import ConfigError
from src.data.module import DataModule
from src.deployment.compression.origin import (
    check_study,
    compressed_run_config,
    record_degradation,
)
from src.deployment.description import KEY, Description
from src.deployment.runtimes.eager import CameraNet
from src.deployment.runtimes.formats import FORMATS, open_file
from src.deployment.runtimes.onnx import OnnxRuntime
from src.deployment.trained import describe, single
from src.metrics.decision_rules import with_decisions
from src.tracking import read
from src.tracking.run import Run
from src.tracking.store import Store
from src.training import teachers

FOLDER = ROOT / "conf" / "compression"
COMPRESSIONS = sorted({path.stem for path in FOLDER.glob("*.yaml")} - {"none"})
TRAINED = [
    *("model=custom", "model.image_size=16", "model.net.width=16", "model.net.depth=1"),
    *("model.net.dense=[16]", "data=synthetic", "data.source.lesions=120", "efficiency=fast"),
    *("trainer=cpu", "trainer.max_epochs=2", "threads=1", "data.source.native_size=32"),
]
QUALITY = ("accuracy", "balanced_accuracy", "recall/mel")
FEWER = {"images": 32, "epochs": 1}
COST = ("flops", "params", "size_mb", "latency_ms/b1/p50", "latency_ratio", "throughput")


@dataclass
class Study:
    """A store with a trained trial of two seeds, and `python -m src.train` in its folder."""

    store: Store
    run_entry: Callable[..., tuple[int, str]]
    made: ClassVar[dict[str, pd.DataFrame]] = {}  # by query

    def train(self, *arguments: str) -> str:
        """The output of a command that ends with status 0."""
        status, output = self.run_entry(train.main, *arguments)
        assert status == 0, output
        return output

    def runs(self, query: str, *arguments: str) -> pd.DataFrame:
        """The runs of a query, read once; made by a command if there are none."""
        if query not in self.made:
            if read.runs(self.store, query).empty:
                self.train(*arguments)
            self.made[query] = read.runs(self.store, query)
        return self.made[query]

    @property
    def trial(self) -> pd.Series:
        query = "tags.study = 'trained' and tags.kind = 'trial'"
        options = ("repeats=2", "hydra.sweeper.study_name=trained")
        return self.runs(query, "-m", *TRAINED, *options).iloc[0]

    def seeds(self, trial: pd.Series) -> pd.DataFrame:
        return read.children(self.store, trial["run_id"]).sort_values("tags.seed")

    @property
    def origin(self) -> pd.Series:
        """The run of the trial's first seed."""
        query = f"tags.`mlflow.parentRunId` = '{self.trial['run_id']}' and tags.seed = '0'"
        return self.runs(query).iloc[0]

    @property
    def in_a_file(self) -> str:
        """Id of a run whose model is a file."""
        run_id, name = self.origin["run_id"], "onnx_int8_dynamic"
        query = f"tags.compression = '{name}' and tags.origin = '{run_id}'"
        return str(self.runs(query, f"compression={name}", f"origin={run_id}")["run_id"].iloc[0])


@pytest.fixture(scope="module", autouse=True)
def each_net_is_exported_once(module_patch: pytest.MonkeyPatch) -> None:
    """The ONNX exporter takes seconds; files of one net differ only in their description."""
    export, files = OnnxRuntime.export, dict[tuple[bytes, ...], bytes]()

    def export_once(camera: CameraNet, example: torch.Tensor, description: Description) -> bytes:
        weights = tuple(item.numpy().tobytes() for item in camera.state_dict().values())
        files[weights] = files.get(weights) or export(camera, example, description)
        model = onnx.load_from_string(files[weights])
        onnx.helper.set_model_props(model, {KEY: description.to_json()})
        return bytes(model.SerializeToString())

    module_patch.setattr(OnnxRuntime, "export", export_once)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    folder = tmp_path_factory.mktemp("compressed")
    (folder / "mlruns").mkdir()
    shutil.copy(empty_database, folder / "mlruns" / "mlflow.db")
    return folder


@pytest.fixture
def study(
    folder: Path, run_entry: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> Study:
    monkeypatch.chdir(folder)
    store = Store(folder=folder / "mlruns", uri=f"sqlite:///{folder}/mlruns/mlflow.db")
    return Study(store.open(), run_entry)


def accuracy(store: Store, run_id: str) -> float:
    frame = read.predictions(store, run_id, "test")
    return float((frame.filter(like="p/").idxmax(axis=1).str[2:] == frame["label"]).mean())


@pytest.mark.parametrize("choice", COMPRESSIONS)
def test_every_compression_is_a_measured_child(choice: str, study: Study) -> None:
    store, origin = study.store, study.origin
    fewer = [
        f"compression.{key}={min(value, FEWER[key])}"
        for key, value in OmegaConf.load(FOLDER / f"{choice}.yaml").items()
        if key in FEWER
    ]
    if choice == "average":
        fewer.append(f"compression.runs=[{study.seeds(study.trial)['run_id'].iloc[1]}]")
    study.train(f"compression={choice}", f"origin={origin['run_id']}", *fewer)
    run = read.runs(store).iloc[0]
    run_id = run["run_id"]
    assert run["parent_id"] == run["tags.origin"] == origin["run_id"]
    assert (run["tags.compression"], run["status"]) == (choice, "FINISHED")
    for name in ("split_fingerprint", "data_fingerprint", "seed", "model", "data"):
        assert run[f"tags.{name}"] == origin[f"tags.{name}"]
    for name in [f"{split}/{metric}" for split in ("best/val", "test") for metric in QUALITY]:
        assert 0 <= run[f"metrics.{name}"] <= 1
    for name in COST:
        assert run[f"metrics.efficiency/{name}"] > 0
    assert run["metrics.efficiency/params"] <= origin["metrics.efficiency/params"]
    form = FORMATS.get(choice.partition("_")[0])
    if form:
        file = read.artifact(store, run_id, f"deployed/model{form.suffix}")
        assert run["metrics.efficiency/size_mb"] == file.stat().st_size / 1e6
    else:
        assert read.artifact(store, run_id, "checkpoint/best.ckpt").exists()
    before, after = (read.predictions(store, name, "test") for name in (origin["run_id"], run_id))
    assert set(before["image_id"]) == set(after["image_id"])
    lost = accuracy(store, origin["run_id"]) - accuracy(store, run_id)
    metric = "metrics.compression/lost/accuracy"
    assert run[metric] == pytest.approx(lost)
    assert run[f"{metric}/low"] <= run[f"{metric}/high"]
    config = OmegaConf.load(read.artifact(store, run_id, "config.yaml"))
    assert (config.compression.name, config.origin) == (choice, origin["run_id"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("compression=prune", "origin: compression=prune needs the run to compress: origin=<run"),
        ("origin=ORIGIN", "compression: origin= is compressed: say how"),
        ("compression=prune origin=ORIGIN model=resnet50", "model: is the origin's"),
        ("compression=prune origin=ORIGIN trainer.max_epochs=3", "max_epochs: is the origin's"),
        ("compression=prune origin=nosuchrun", "origin: nosuchrun: no such run"),
        ("compression=prune origin=ORIGIN repeats=3 -m", "origin=ORIGIN is a run of one seed, 0"),
        ("compression=prune origin=TRIAL", "or all by -m and repeats=2"),
        (
            "compression=prune origin=TRIAL repeats=3 -m",
            "TRIAL has no finished run of seed 2, only of 0, 1",
        ),
        ("compression=prune origin=ORIGIN model.net.width=4,8 -m", "width: is the origin's"),
        ("sweeps=sun2023 compression=prune origin=ORIGIN repeats=1", "experiment: is the origin's"),
        ("sweeps=smoke compression=prune origin=TRIAL repeats=2", "is the origin's"),
        (
            "compression=prune origin=FILED",
            "FILED is compressed already (onnx_int8_dynamic); take its origin, ORIGIN",
        ),
    ],
)
def test_impossible_requests_are_refused_before_a_run_starts(
    arguments: str, message: str, study: Study
) -> None:
    ids = {"TRIAL": study.trial["run_id"], "ORIGIN": study.origin["run_id"]}
    ids["FILED"] = study.in_a_file
    for name, run_id in ids.items():
        arguments, message = arguments.replace(name, run_id), message.replace(name, run_id)
    before = len(read.runs(study.store))
    status, output = study.run_entry(train.main, *arguments.split())
    assert status != 0
    assert message in " ".join(output.split())
    assert "Traceback" not in output
    assert len(read.runs(study.store)) == before


def test_a_study_of_another_data_set_is_refused(study: Study) -> None:
    """Its data would be ignored: they are the origin's."""
    default = OmegaConf.create(
        {"seed": 0, "repeats": 1, "origin": None, "data": {"name": "synthetic"}}
    )
    other = OmegaConf.create({**default, "origin": "abc", "data": {"name": "ham10000"}})
    with pytest.raises(ConfigError, match="sets data, which is the origin's"):
        check_study(other, default, ["sweeps=mine", "origin=abc"], study.store)


def test_each_seed_of_a_trial_is_compared_with_its_origin(study: Study) -> None:
    store, trial = study.store, study.trial
    study.train(
        *("-m", f"origin={trial['run_id']}", "compression=prune", "compression.epochs=1"),
        *("repeats=2", "hydra.sweeper.study_name=smaller"),
    )
    trials = read.runs(store, "tags.study = 'smaller' and tags.kind = 'trial'")
    assert len(trials) == 1
    pruned = trials.iloc[0]
    assert pruned["tags.origin"] == trial["run_id"]
    before, after = study.seeds(trial), study.seeds(pruned)
    assert list(after["tags.origin"]) == list(before["run_id"])
    assert list(after["tags.seed"]) == list(before["tags.seed"]) == ["0", "1"]
    assert {pruned["tags.lost_on"], *after["tags.lost_on"]} == {"test"}  # as a front member
    lost = [
        accuracy(store, origin) - accuracy(store, run)
        for origin, run in zip(before["run_id"], after["run_id"], strict=True)
    ]
    metric, mean = "metrics.compression/lost/accuracy", sum(lost) / 2
    assert list(after[metric]) == pytest.approx(lost)
    assert pruned[metric] == pytest.approx(mean)
    assert pruned[f"{metric}/low"] <= mean <= pruned[f"{metric}/high"]
    parameters = "metrics.efficiency/params"
    assert (after[parameters] < before[parameters].to_numpy()).all()


def test_a_study_can_be_narrowed_and_its_table_shows_the_loss(study: Study) -> None:
    output = study.train(
        *("sweeps=compression", f"origin={study.origin['run_id']}"),
        "hydra.sweeper.study_name=narrow",
        "hydra.sweeper.params.compression='choice(bfloat16)'",
    )
    runs = read.runs(study.store, "tags.study = 'narrow' and tags.kind = 'run'")
    assert list(runs["tags.compression"]) == ["bfloat16"]
    table = " ".join(output[output.index("Lost by compression") :].split())
    points = 100 * runs["metrics.compression/lost/balanced_accuracy"].iloc[0]
    assert f"bfloat16 {points:.1f}" in table


def test_other_data_than_the_origins_is_refused(study: Study) -> None:
    """The origin's test images could be among the training images."""
    origin, client = study.origin, study.store.client
    run_id, recorded = origin["run_id"], origin["tags.split_fingerprint"]
    client.set_tag(run_id, "split_fingerprint", "another")
    try:
        status, output = study.run_entry(train.main, "compression=bfloat16", f"origin={run_id}")
    finally:
        client.set_tag(run_id, "split_fingerprint", recorded)
    assert status != 0
    assert f"are not those that run {run_id} was trained on" in " ".join(output.split())
    assert "Traceback" not in output


def test_fine_tuning_uses_the_teacher(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = study.origin["run_id"]
    distilled = ("trainer.max_epochs=1", "loss=distillation", f"loss.teacher={teacher}")
    study.train(*TRAINED, *distilled)
    student = read.runs(study.store)["run_id"].iloc[0]
    loaded: list[object] = []
    load = teachers.load

    def spy(store: Store, run_ids: str, data: DataModule) -> list[teachers.Teacher]:
        loaded.append(run_ids)
        return load(store, run_ids, data)

    monkeypatch.setattr(teachers, "load", spy)
    study.train("compression=prune", "compression.epochs=1", f"origin={student}")
    assert loaded == [teacher]


@pytest.mark.parametrize("choice", ["fold", "prune"])
def test_fine_tuning_that_diverges_is_a_failed_run(choice: str, study: Study) -> None:
    origin = study.origin["run_id"]
    arguments = (f"compression={choice}", "compression.lr=1e30", "compression.images=32")
    status, output = study.run_entry(train.main, *arguments, f"origin={origin}")
    assert status == 2
    assert "Traceback" not in output
    line = "is nan in epoch 1: the training diverged; lower compression.lr"
    assert [text for text in output.splitlines() if text.startswith("error: ")][0].endswith(line)
    run = read.runs(study.store, "attributes.status = 'FAILED'").iloc[0]
    assert (run["tags.compression"], run["tags.failure"].endswith(line)) == (choice, True)


def test_the_description_of_a_compressed_run_is_that_of_its_file(study: Study) -> None:
    store, in_a_file = study.store, study.in_a_file
    description = describe(store, single(store, in_a_file))
    file = read.artifact(store, in_a_file, "deployed/model.onnx")
    assert description == open_file(file).description
    assert (description.run_id, description.precision) == (in_a_file, "int8")
    assert description.decision is not None
    assert description.decision.aim.endswith("for the net that this one was made from")


def test_the_moved_data_of_an_origin_can_be_named_without_naming_the_data_set(study: Study) -> None:
    origin = study.origin["run_id"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["compression=fold", f"origin={origin}", "data.root=/moved"])
    assert config.data.root == "/moved"
    recorded = compressed_run_config(config, ["data.root=/moved"], study.store)
    assert recorded.data.root == "/moved"


def test_the_loss_is_not_that_of_another_decision_rule(store: Store) -> None:
    """The origin decides by the most probable class; its exact copy has another rule."""
    random = np.random.default_rng(0)
    labels = random.choice(3, 200, p=[0.7, 0.2, 0.1])
    scores = random.dirichlet(np.ones(3), 200) + 0.3 * np.eye(3)[labels]
    classes = np.array(["mel", "nv", "bkl"])
    columns = [f"p/{name}" for name in classes]
    frame = pd.DataFrame(scores / scores.sum(axis=1, keepdims=True), columns=columns)
    frame = frame.assign(label=classes[labels], group=[f"g{n // 2}" for n in range(200)])
    frame.insert(0, "image_id", [f"i{n}" for n in range(200)])
    decided = with_decisions(frame, "accuracy", frame)
    assert (decided["decision/accuracy"] != classes[scores.argmax(axis=1)]).any()
    ids = []
    for tables in ({"val": frame, "test": frame}, {"test": decided}):
        with Run.start(store, "net", {"kind": "run"}, {}) as run:
            for split, table in tables.items():
                run.table(table, f"predictions/{split}.csv")
        ids.append(run.id)
    compressed = Run.attach(store, ids[1])
    record_degradation(store, compressed, [(ids[0], ids[1])])
    compressed.flush()
    metrics = store.client.get_run(ids[1]).data.metrics
    lost = {name: value for name, value in metrics.items() if name.startswith("compression/lost/")}
    assert len(lost) >= 9
    assert set(lost.values()) == {0.0}
