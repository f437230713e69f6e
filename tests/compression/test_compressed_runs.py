"""Every choice of conf/compression makes a measured run of its own from a trained one."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from src import train
from src.compression.lost import lost
from src.entry import ROOT
from src.tracking import history, read
from src.tracking.store import Store

CHOICES = sorted(file.stem for file in (ROOT / "conf" / "compression").glob("*.yaml") if file.stem != "none")
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
def entry(place: Path, run_entry: Entry, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    monkeypatch.chdir(place)
    monkeypatch.setenv("PARETODERM_CACHE", str(place / "cache"))
    return lambda *arguments: run_entry(train.main, *arguments)


@pytest.fixture
def store(place: Path) -> Store:
    return Store(folder=place / "mlruns", uri=f"sqlite:///{place}/mlruns/mlflow.db").open()


@pytest.fixture
def origin(entry: Entry, store: Store) -> pd.Series:
    """A trained run, made by the first test that asks."""
    found = _runs(store, "tags.compression IS NULL")
    if found.empty:
        assert entry(*TRAINED)[0] == 0
        found = _runs(store, "tags.compression IS NULL")
    return found.iloc[0]


def _runs(store: Store, filter: str = "") -> pd.DataFrame:
    found = read.runs(store)
    if "tags.compression" not in found:
        found["tags.compression"] = None
    return found[found["tags.compression"].isna()] if filter else found


@pytest.mark.parametrize("choice", CHOICES)
def test_every_compression_is_a_measured_child(choice: str, entry: Entry, origin: pd.Series, store: Store) -> None:
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
    before, after = (history.predictions(store, run, "test") for run in (origin["run_id"], made["run_id"]))
    assert set(before["image_id"]) == set(after["image_id"])
    right = [(frame.set_index("image_id").filter(like="p/").idxmax(axis=1).str[2:], frame) for frame in (before, after)]
    accuracy = [(top == frame.set_index("image_id")["label"]).mean() for top, frame in right]
    assert made["metrics.compression/lost/accuracy"] == pytest.approx(accuracy[0] - accuracy[1])
    assert made["metrics.compression/lost/accuracy/low"] <= made["metrics.compression/lost/accuracy/high"]
    config = OmegaConf.load(read.artifact(store, made["run_id"], "config.yaml"))
    assert config.compression.name == choice
    assert config.origin == origin["run_id"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["compression=prune"], "origin: compression=prune needs the run to compress: origin=<run id>"),
        (["origin=ORIGIN"], "compression: origin= is compressed: say how"),
        (["compression=prune", "origin=ORIGIN", "model=resnet50"], "model: is the origin's"),
        (["compression=prune", "origin=ORIGIN", "trainer.max_epochs=3"], "trainer.max_epochs: is the origin's"),
        (["compression=prune", "origin=nosuchrun"], "origin: nosuchrun: no such run"),
        (["compression=prune", "origin=ORIGIN", "repeats=3", "-m"], "origin=ORIGIN is a run of one seed, 0"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], told: str, entry: Entry, origin: pd.Series) -> None:
    status, said = entry(*(each.replace("ORIGIN", origin["run_id"]) for each in arguments))
    assert status != 0
    assert told.replace("ORIGIN", origin["run_id"]) in " ".join(said.split())
    assert "Traceback" not in said


def test_what_was_lost_is_a_difference_on_the_same_images() -> None:
    label = ["mel", "mel", "nv", "nv", "nv", "nv", "mel", "nv"]
    sure = [0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9, 0.1]
    before = _frame(label, sure)
    assert lost([before], [before]) == {
        f"compression/lost/{metric}{end}": 0.0
        for metric in ("accuracy", "balanced_accuracy", "recall/mel")
        for end in ("", "/low", "/high")
    }
    missed = lost([before], [_frame(label, [0.1, *sure[1:]])])  # one melanoma of three, one image of eight
    assert missed["compression/lost/recall/mel"] == pytest.approx(1 / 3)
    assert missed["compression/lost/accuracy"] == pytest.approx(1 / 8)
    assert missed["compression/lost/balanced_accuracy"] == pytest.approx(1 / 6)
    assert 0 <= missed["compression/lost/accuracy/low"] <= 1 / 8 <= missed["compression/lost/accuracy/high"]


def test_without_a_melanoma_class_its_recall_is_left_out() -> None:
    frame = _frame(["a", "b", "a", "b"], [0.9, 0.1, 0.8, 0.2], ("a", "b"))
    assert not any("recall" in name or math.isnan(value) for name, value in lost([frame], [frame]).items())


def _frame(label: list[str], first: list[float], classes: tuple[str, str] = ("mel", "nv")) -> pd.DataFrame:
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
