"""What recorded runs say, on runs that are written and read as training does."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.analysis.bootstrap import intervals
from src.auditing.claims import Measured, Paper, Requirement, System
from src.auditing.recorded import Runs
from src.tracking import read
from src.tracking.run import Run
from src.tracking.store import Store

PRETRAINED = Requirement(column="tags.weights", equals="imagenet", otherwise="these runs start from random weights")
LONG = Requirement(column="params.trainer.max_epochs", at_least=8, otherwise="these runs are short")
SYSTEMS = {
    "any": System(preset="x/net", data="ham10000", split="grouped"),
    "pretrained": System(preset="x/net", data="ham10000", split="grouped", requires=[PRETRAINED]),
    "long": System(preset="x/net", data="ham10000", split="grouped", requires=[LONG]),
    "image": System(preset="x/net", data="ham10000", split="image (leaking)"),
}
PAPER = Paper(name="p", title="t", citation="c", source="s", read="r", command="x", systems=SYSTEMS, claims=[])


def predictions(seed: int, images: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    label = np.arange(images) % 3 == 0
    probability = np.clip(0.5 + 0.3 * (label - 0.5) + 0.3 * rng.standard_normal(images), 0, 1)
    return pd.DataFrame(
        {
            "image_id": [f"i{n}" for n in range(images)],
            "group": [f"g{n // 2}" for n in range(images)],
            "label": np.where(label, "mel", "nv"),
            "p/nv": 1 - probability,
            "p/mel": probability,
        }
    )


def record(store: Store, seed: int, epochs: int = 4, frame: pd.DataFrame | None = None, **tags: str) -> None:
    common = {
        "kind": "run",
        "preset": "x/net",
        "data": "ham10000",
        "split": "grouped",
        "weights": "random",
        "study": "s",
    }
    params = {"seed": seed, "trainer": {"max_epochs": epochs}, "data": {"root": f"/disk{seed}"}}
    with Run.start(store, "net", common | {"seed": str(seed)} | tags, params) as run:
        frame = predictions(seed) if frame is None else frame
        run.log({"test/accuracy": 0.5, "efficiency/latency_ratio": 1.0 + seed})
        run.table(frame, "predictions/test.csv")


@pytest.fixture(scope="module")
def store(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    store = Store(uri=f"sqlite:///{folder}/mlflow.db", folder=folder)
    for seed in (0, 1):
        record(store, seed)
    record(store, 5, epochs=9)  # another setting, fewer seeds
    record(store, 0, study="other", frame=predictions(7))  # the newest of its seed
    record(store, 2, data="synthetic")
    record(store, 3, preset="x/other")
    record(store, 8, split="image (leaking)", frame=predictions(8, 40))
    record(store, 9, split="image (leaking)")
    return store


def reader(store: Store, *studies: str) -> Runs:
    return Runs(read.runs(store), store, PAPER, studies, samples=200, seed=3, level=0.9)


def test_a_metric_is_the_mean_over_the_seeds_of_one_setting(store: Store) -> None:
    found = reader(store).measure(Measured(system="any", metric="recall/mel"))
    recalls = []
    for seed in (1, 7):
        frame = predictions(seed)
        of_class = frame[frame["label"] == "mel"]
        recalls.append((of_class["p/mel"] > of_class["p/nv"]).mean())
    assert found.value == pytest.approx(np.mean(recalls))
    expected = intervals([predictions(7), predictions(1)], ["recall/mel"], 200, 3, 0.9).iloc[0]
    assert (found.low, found.high) == pytest.approx((expected["low"], expected["high"]))
    assert found.origins == {"measured"}
    assert "20 images of 20 lesions or patients" in found.how
    assert "2 seeds of x/net" in found.how
    assert "runs with other settings left out: 1" in found.how
    assert not found.problem


def test_a_study_can_be_named(store: Store) -> None:
    found = reader(store, "s").measure(Measured(system="any", metric="auroc"))
    expected = intervals([predictions(0), predictions(1)], ["auroc"], 200).iloc[0]
    assert found.value == pytest.approx(expected["estimate"])
    assert reader(store, "nosuch").measure(Measured(system="any", metric="auroc")).unrecorded


def test_runs_that_meet_the_requirements_come_first(store: Store) -> None:
    found = reader(store).measure(Measured(system="long", metric="accuracy"))
    frame = predictions(5)
    assert found.value == pytest.approx(((frame["p/mel"] > frame["p/nv"]) == (frame["label"] == "mel")).mean())
    assert "1 seed of x/net" in found.how
    assert not found.problem


def test_from_random_weights_the_figure_is_there_and_decides_nothing(store: Store) -> None:
    found = reader(store).measure(Measured(system="pretrained", metric="accuracy"))
    assert 0 < found.value < 1
    assert found.problem == "these runs start from random weights"
    assert not found.unrecorded


def test_a_cost_is_the_mean_of_its_runs_and_their_span(store: Store) -> None:
    found = reader(store).measure(Measured(system="any", metric="efficiency/latency_ratio"))
    assert found.range == (1.5, 1.0, 2.0)
    missing = reader(store).measure(Measured(system="any", metric="efficiency/size_mb"))
    assert missing.problem == "its runs have no efficiency/size_mb"


def test_seeds_on_different_images_are_not_pooled(store: Store) -> None:
    found = reader(store).measure(Measured(system="image", metric="accuracy"))
    assert np.isnan(found.value)
    assert "its seeds were tested on different images" in found.problem


def test_without_a_store_nothing_is_recorded() -> None:
    found = Runs(pd.DataFrame(columns=["run_id", "status"]), None, PAPER).measure(
        Measured(system="any", metric="accuracy")
    )
    assert found.unrecorded
    assert found.problem == "no tested runs of x/net (split grouped) are recorded"
