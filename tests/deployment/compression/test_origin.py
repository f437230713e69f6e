"""Every choice of conf/compression makes a measured run of its own from a trained one."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import DictConfig, OmegaConf

from src import train
from src.core.cli import ROOT
from src.core.errors import ConfigError
from src.data.module import DataModule
from src.deployment.compression.origin import check_study
from src.deployment.runtimes.files import open_file
from src.deployment.trained import describe, single
from src.metrics.paired import degradation
from src.tracking import read
from src.tracking import read as history
from src.tracking.store import Store
from src.training import teachers

CHOICES = sorted(
    file.stem for file in (ROOT / "conf" / "compression").glob("*.yaml") if file.stem != "none"
)
FILES = {"onnx": ".onnx", "executorch": ".pte", "litert": ".tflite"}
TRAINED = [
    "model=custom",
    "model.image_size=16",
    "model.net.width=16",
    "model.net.depth=1",
    "model.net.dense=[16]",
    "data=synthetic",
    "data.source.lesions=120",
    "efficiency=fast",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "threads=1",
]
Entry = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    folder = tmp_path_factory.mktemp("compressed")
    (folder / "mlruns").mkdir()
    shutil.copy(empty_database, folder / "mlruns" / "mlflow.db")
    return folder


@pytest.fixture
def entry(
    place: Path, run_entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    monkeypatch.chdir(place)
    monkeypatch.setenv("PARETODERM_CACHE", str(place / "cache"))
    return lambda *arguments: run_entry(train.main, *arguments)


@pytest.fixture
def store(place: Path) -> Store:
    return Store(folder=place / "mlruns", uri=f"sqlite:///{place}/mlruns/mlflow.db").open()


@pytest.fixture
def trial(entry: Entry, store: Store) -> pd.Series:
    """A trained trial of two seeds, made by the first test that asks."""
    wanted = "tags.study = 'trained' and tags.kind = 'trial'"
    found = read.runs(store, wanted)
    if found.empty:
        status, said = entry("-m", *TRAINED, "repeats=2", "hydra.sweeper.study_name=trained")
        assert status == 0, said
        found = read.runs(store, wanted)
    return found.iloc[0]


@pytest.fixture
def origin(trial: pd.Series, store: Store) -> pd.Series:
    """Its first seed's run."""
    return _seeds(store, trial).iloc[0]


@pytest.fixture
def in_a_file(entry: Entry, store: Store, origin: pd.Series) -> str:
    """Id of a run whose model is a file."""
    choice = "onnx_int8_dynamic"
    wanted = f"tags.compression = '{choice}' and tags.origin = '{origin['run_id']}'"
    if read.runs(store, wanted).empty:
        assert entry(f"compression={choice}", f"origin={origin['run_id']}")[0] == 0
    return str(read.runs(store, wanted)["run_id"].iloc[0])


def _seeds(store: Store, trial: pd.Series) -> pd.DataFrame:
    return read.children(store, trial["run_id"]).sort_values("tags.seed")


def _accuracy(store: Store, run_id: str) -> float:
    frame = history.predictions(store, run_id, "test")
    return float((frame.filter(like="p/").idxmax(axis=1).str[2:] == frame["label"]).mean())


@pytest.mark.parametrize("choice", CHOICES)
def test_every_compression_is_a_measured_child(
    choice: str, entry: Entry, origin: pd.Series, store: Store
) -> None:
    status, said = entry(f"compression={choice}", f"origin={origin['run_id']}")
    assert status == 0, said
    made = read.runs(store).iloc[0]
    assert made["parent_id"] == made["tags.origin"] == origin["run_id"]
    assert made["tags.compression"] == choice
    assert made["status"] == "FINISHED"
    for name in ("split_fingerprint", "data_fingerprint", "seed", "model", "data"):
        assert made[f"tags.{name}"] == origin[f"tags.{name}"]
    quality = ["accuracy", "balanced_accuracy", "recall/mel"]
    costs = ["flops", "params", "size_mb", "latency_ms/b1/p50", "latency_ratio", "throughput"]
    for name in [f"{split}/{metric}" for split in ("best/val", "test") for metric in quality]:
        assert 0 <= made[f"metrics.{name}"] <= 1
    for name in costs:
        assert made[f"metrics.efficiency/{name}"] > 0
    assert made["metrics.efficiency/params"] <= origin["metrics.efficiency/params"]
    kind = FILES.get(choice.partition("_")[0])
    if kind:
        file = read.artifact(store, made["run_id"], f"deployed/model{kind}")
        assert made["metrics.efficiency/size_mb"] == file.stat().st_size / 1e6
    else:
        assert read.artifact(store, made["run_id"], "checkpoint/best.ckpt").exists()
    before, after = (
        history.predictions(store, run, "test") for run in (origin["run_id"], made["run_id"])
    )
    assert set(before["image_id"]) == set(after["image_id"])
    lost = _accuracy(store, origin["run_id"]) - _accuracy(store, made["run_id"])
    assert made["metrics.compression/lost/accuracy"] == pytest.approx(lost)
    assert (
        made["metrics.compression/lost/accuracy/low"]
        <= made["metrics.compression/lost/accuracy/high"]
    )
    config = OmegaConf.load(read.artifact(store, made["run_id"], "config.yaml"))
    assert config.compression.name == choice
    assert config.origin == origin["run_id"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["compression=prune"],
            "origin: compression=prune needs the run to compress: origin=<run id>",
        ),
        (["origin=ORIGIN"], "compression: origin= is compressed: say how"),
        (["compression=prune", "origin=ORIGIN", "model=resnet50"], "model: is the origin's"),
        (
            ["compression=prune", "origin=ORIGIN", "trainer.max_epochs=3"],
            "trainer.max_epochs: is the origin's",
        ),
        (["compression=prune", "origin=nosuchrun"], "origin: nosuchrun: no such run"),
        (
            ["compression=prune", "origin=ORIGIN", "repeats=3", "-m"],
            "origin=ORIGIN is a run of one seed, 0",
        ),
        (["compression=prune", "origin=TRIAL"], "or all by -m and repeats=2"),
        (
            ["compression=prune", "origin=TRIAL", "repeats=3", "-m"],
            "TRIAL has no finished run of seed 2, only of 0, 1",
        ),
        (
            ["compression=prune", "origin=ORIGIN", "model.net.width=4,8", "-m"],
            "model.net.width: is the origin's",
        ),
        (
            ["sweeps=sun2023", "compression=prune", "origin=ORIGIN", "repeats=1"],
            "experiment: is the origin's",
        ),
        (["sweeps=smoke", "compression=prune", "origin=TRIAL", "repeats=2"], "is the origin's"),
        (
            ["compression=prune", "origin=FILED"],
            "FILED is compressed already (onnx_int8_dynamic); take its origin, OR",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: list[str],
    told: str,
    entry: Entry,
    trial: pd.Series,
    origin: pd.Series,
    in_a_file: str,
    store: Store,
) -> None:
    def named(text: str) -> str:
        return (
            text.replace("TRIAL", trial["run_id"])
            .replace("ORIGIN", origin["run_id"])
            .replace("FILED", in_a_file)
        )

    before = len(read.runs(store))
    status, said = entry(*map(named, arguments))
    assert status != 0
    assert named(told).removesuffix("OR") in " ".join(said.split())
    assert "Traceback" not in said
    assert len(read.runs(store)) == before  # no trial was begun


def test_a_studys_file_of_another_data_set_is_refused(store: Store) -> None:
    """Its data would be passed over in silence: they are the origin's."""
    default = OmegaConf.create(
        {"seed": 0, "repeats": 1, "origin": None, "data": {"name": "synthetic"}}
    )
    other = OmegaConf.merge(default, {"origin": "abc", "data": {"name": "ham10000"}})
    assert isinstance(default, DictConfig)
    assert isinstance(other, DictConfig)
    with pytest.raises(ConfigError, match="sets data, which is the origin's"):
        check_study(other, default, ["sweeps=mine", "origin=abc"], store)


def test_each_seed_of_a_trial_is_compressed_and_compared_with_itself(
    entry: Entry, trial: pd.Series, store: Store
) -> None:
    small = [
        "compression=prune",
        "compression.epochs=1",
        "repeats=2",
        "hydra.sweeper.study_name=smaller",
    ]
    status, said = entry("-m", f"origin={trial['run_id']}", *small)
    assert status == 0, said
    (made,) = (
        row
        for _, row in read.runs(store, "tags.study = 'smaller' and tags.kind = 'trial'").iterrows()
    )
    assert made["tags.origin"] == trial["run_id"]
    before, after = _seeds(store, trial), _seeds(store, made)
    assert list(after["tags.origin"]) == list(before["run_id"])
    assert list(after["tags.seed"]) == list(before["tags.seed"]) == ["0", "1"]
    assert {made["tags.lost_on"], *after["tags.lost_on"]} == {"test"}  # as a member of the front
    lost = [
        _accuracy(store, origin) - _accuracy(store, compressed)
        for origin, compressed in zip(before["run_id"], after["run_id"], strict=True)
    ]
    assert list(after["metrics.compression/lost/accuracy"]) == pytest.approx(lost)
    assert made["metrics.compression/lost/accuracy"] == pytest.approx(sum(lost) / 2)
    assert (
        made["metrics.compression/lost/accuracy/low"]
        <= sum(lost) / 2
        <= made["metrics.compression/lost/accuracy/high"]
    )
    assert (
        after["metrics.efficiency/params"] < before["metrics.efficiency/params"].to_numpy()
    ).all()


def test_a_studys_file_can_be_narrowed_and_its_table_says_what_was_lost(
    entry: Entry, origin: pd.Series, store: Store
) -> None:
    narrow = [
        "hydra.sweeper.params.compression='choice(onnx_float32)'",
        "hydra.sweeper.study_name=narrow",
    ]
    status, said = entry("sweeps=compression", f"origin={origin['run_id']}", *narrow)
    assert status == 0, said
    (made,) = (
        row for _, row in read.runs(store, "tags.study = 'narrow' and tags.kind = 'run'").iterrows()
    )
    assert made["tags.compression"] == "onnx_float32"
    table = said[said.index("lost by compression, points") :]
    assert (
        f"onnx_float32 {100 * made['metrics.compression/lost/balanced_accuracy']:.1f}"
        in " ".join(table.split())
    )


def test_data_that_the_origin_did_not_see_are_not_trained_on(
    entry: Entry, origin: pd.Series, store: Store
) -> None:
    """Its test images could be among them."""
    run_id, recorded = origin["run_id"], origin["tags.split_fingerprint"]
    store.client.set_tag(run_id, "split_fingerprint", "another")
    try:
        status, said = entry("compression=bfloat16", f"origin={run_id}")
    finally:
        store.client.set_tag(run_id, "split_fingerprint", recorded)
    assert status != 0
    assert f"are not those that run {run_id} was trained on" in " ".join(said.split())
    assert "Traceback" not in said


def test_a_distilled_net_is_fine_tuned_by_its_teacher(
    entry: Entry, origin: pd.Series, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        entry(
            *TRAINED,
            "trainer.max_epochs=1",
            "loss=distillation",
            f"loss.teacher={origin['run_id']}",
        )[0]
        == 0
    )
    student = read.runs(store)["run_id"].iloc[0]
    asked: list[object] = []
    load = teachers.load

    def noted(store: Store, run_ids: str, data: DataModule) -> list[teachers.Teacher]:
        asked.append(run_ids)
        return load(store, run_ids, data)

    monkeypatch.setattr(teachers, "load", noted)
    status, said = entry("compression=prune", "compression.epochs=1", f"origin={student}")
    assert status == 0, said
    assert asked == [origin["run_id"]]


def test_a_run_whose_model_is_a_file_says_what_the_file_says(store: Store, in_a_file: str) -> None:
    said = describe(store, single(store, in_a_file))
    assert said == open_file(read.artifact(store, in_a_file, "deployed/model.onnx")).description
    assert (said.run_id, said.precision) == (in_a_file, "int8")
    assert said.decision is not None
    assert said.decision.aim.endswith("for the net that this one was made from")


def test_what_was_lost_is_a_difference_on_the_same_images() -> None:
    label = ["mel", "mel", "nv", "nv", "nv", "nv", "mel", "nv"]
    sure = [0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9, 0.1]
    before = _frame(label, sure)
    assert degradation([before], [before]) == {
        f"compression/lost/{metric}{end}": 0.0
        for metric in ("accuracy", "balanced_accuracy", "recall/mel")
        for end in ("", "/low", "/high")
    }
    missed = degradation(
        [before], [_frame(label, [0.1, *sure[1:]])]
    )  # one melanoma of three, one image of eight
    assert missed["compression/lost/recall/mel"] == pytest.approx(1 / 3)
    assert missed["compression/lost/accuracy"] == pytest.approx(1 / 8)
    assert missed["compression/lost/balanced_accuracy"] == pytest.approx(1 / 6)
    assert (
        0
        <= missed["compression/lost/accuracy/low"]
        <= 1 / 8
        <= missed["compression/lost/accuracy/high"]
    )


def test_without_a_melanoma_class_its_recall_is_left_out() -> None:
    frame = _frame(["a", "b", "a", "b"], [0.9, 0.1, 0.8, 0.2], ("a", "b"))
    assert not any(
        "recall" in name or math.isnan(value)
        for name, value in degradation([frame], [frame]).items()
    )


def _frame(
    label: list[str], first: list[float], classes: tuple[str, str] = ("mel", "nv")
) -> pd.DataFrame:
    ids = [f"image{number}" for number in range(len(label))]
    return pd.DataFrame(
        {
            "image_id": ids,
            "group": ids,
            "label": label,
            f"p/{classes[0]}": first,
            f"p/{classes[1]}": [1 - value for value in first],
        }
    )
