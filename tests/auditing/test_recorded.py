"""What recorded runs say, on runs that are written and read as training does."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.auditing.claims import MeasuredClaim, Paper, PaperSystem, Requirement
from src.auditing.recorded import ClaimBootstrap, Runs
from src.auditing.selection import choose
from src.metrics.bootstrap import intervals
from src.metrics.paired import paired_difference
from src.tracking import read
from src.tracking.run import Run
from src.tracking.store import Store

PRETRAINED = Requirement(
    column="tags.weights", equals="imagenet", otherwise="these runs start from random weights"
)
LONG = Requirement(column="params.trainer.max_epochs", at_least=8, otherwise="these runs are short")
SYSTEMS = {
    "any": PaperSystem(preset="x/net", data="ham10000", split="grouped"),
    "pretrained": PaperSystem(
        preset="x/net", data="ham10000", split="grouped", requires=[PRETRAINED]
    ),
    "long": PaperSystem(preset="x/net", data="ham10000", split="grouped", requires=[LONG]),
    "image": PaperSystem(preset="x/net", data="ham10000", split="image (leaking)"),
    "wide": PaperSystem(
        preset="x/net", data="ham10000", split="grouped", fixed={"params.width": 32}
    ),
    "half": PaperSystem(preset="x/half", data="ham10000", split="grouped"),
}
PAPER = Paper(
    name="p", title="t", citation="c", source="s", read="r", command="x", systems=SYSTEMS, claims=[]
)


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


def record(
    store: Store, seed: int, epochs: int = 4, frame: pd.DataFrame | None = None, **tags: str
) -> None:
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
    record(
        store, 4, preset="x/half", frame=predictions(11), git_commit="0123456789", git_dirty="true"
    )
    return store


def reader(store: Store, *studies: str, seeds: int = 1) -> Runs:
    return Runs(read.runs(store), store, PAPER, studies, seeds, ClaimBootstrap(200, 3, 0.9))


def table(*rows: Mapping[str, object]) -> pd.DataFrame:
    tags = {"kind": "run", "preset": "x/net", "data": "ham10000", "split": "grouped"}
    common = {f"tags.{key}": value for key, value in tags.items()}
    common |= {"status": "FINISHED", "metrics.test/accuracy": "0.5"}
    return pd.DataFrame(
        [{**common, "run_id": f"r{place}", **row} for place, row in enumerate(rows)]
    )


def test_a_metric_is_the_mean_over_the_seeds_of_one_setting(store: Store) -> None:
    found = reader(store).measure(MeasuredClaim(system="any", metric="recall/mel"))
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
    found = reader(store, "s").measure(MeasuredClaim(system="any", metric="auroc"))
    expected = intervals([predictions(0), predictions(1)], ["auroc"], 200).iloc[0]
    assert found.value == pytest.approx(expected["estimate"])
    assert reader(store, "nosuch").measure(MeasuredClaim(system="any", metric="auroc")).unrecorded


def test_runs_that_meet_the_requirements_come_first(store: Store) -> None:
    found = reader(store).measure(MeasuredClaim(system="long", metric="accuracy"))
    frame = predictions(5)
    assert found.value == pytest.approx(
        ((frame["p/mel"] > frame["p/nv"]) == (frame["label"] == "mel")).mean()
    )
    assert "1 seed of x/net" in found.how
    assert not found.problem


def test_from_random_weights_the_figure_is_there_and_decides_nothing(store: Store) -> None:
    found = reader(store).measure(MeasuredClaim(system="pretrained", metric="accuracy"))
    assert 0 < found.value < 1
    assert found.problem == "these runs start from random weights"
    assert not found.unrecorded


def test_a_cost_is_the_mean_of_its_runs_and_their_span(store: Store) -> None:
    found = reader(store).measure(MeasuredClaim(system="any", metric="efficiency/latency_ratio"))
    assert found.range == (1.5, 1.0, 2.0)
    missing = reader(store).measure(MeasuredClaim(system="any", metric="efficiency/size_mb"))
    assert missing.problem == "its runs have no efficiency/size_mb"


def test_seeds_on_different_images_are_not_pooled(store: Store) -> None:
    found = reader(store).measure(MeasuredClaim(system="image", metric="accuracy"))
    assert np.isnan(found.value)
    assert "its seeds were tested on different images" in found.problem


def test_without_a_store_nothing_is_recorded() -> None:
    found = Runs(pd.DataFrame(columns=["run_id", "status"]), None, PAPER).measure(
        MeasuredClaim(system="any", metric="accuracy")
    )
    assert found.unrecorded
    assert found.problem == "no tested runs of x/net (split grouped) are recorded"


@pytest.mark.parametrize(
    ("recorded", "wanted", "same"),
    [
        ("8", 32, False),
        ("32", 32, True),
        ("1.0", 1, True),
        ("[128, 64]", [128, 64], True),
        ("[128]", [128, 64], False),
        ("true", True, True),
        ("1", True, False),
        ("null", None, True),
        ("0.5", None, False),
        ("flatten", "flatten", True),
        ("gap", "flatten", False),
        (691_911.0, 691_911, True),
        (np.nan, 691_911, False),
    ],
)
def test_a_run_is_the_papers_system_by_its_parameters_and_not_by_its_tag(
    recorded: object, wanted: object, same: bool
) -> None:
    system = PaperSystem(
        preset="x/net", data="ham10000", split="grouped", fixed={"params.model.net.width": wanted}
    )
    chosen = choose(table({"tags.seed": "0", "params.model.net.width": recorded}), system)
    assert len(chosen.runs) == 1  # it may stand beside the claim
    assert bool(chosen.problems) is not same
    if not same:
        assert "model.net.width" in chosen.problems[0]


def test_the_difference_is_named_and_decides_nothing(store: Store) -> None:
    found = reader(store).measure(MeasuredClaim(system="wide", metric="accuracy"))
    assert 0 < found.value < 1
    assert found.problem == "these runs have no width"


def test_of_several_runs_those_nearest_to_the_paper_are_taken() -> None:
    fixed = {"params.width": 32, "params.dense": [128, 64], "params.loss": "focal"}
    system = PaperSystem(preset="x/net", data="ham10000", split="grouped", fixed=fixed)
    far = {"params.width": "8", "params.dense": "[]", "params.loss": "focal"}
    near = far | {"params.width": "32"}
    rows = [{"tags.seed": "0"} | far, {"tags.seed": "1"} | far, {"tags.seed": "0"} | near]
    chosen = choose(table(*rows), system)
    assert chosen.runs["run_id"].tolist() == ["r2"]
    assert chosen.problems == ["these runs have dense [] instead of [128, 64]"]
    assert "runs with other settings left out: 2" in chosen.described


def test_seeds_from_other_weights_are_not_pooled() -> None:
    rows = [
        {"tags.seed": "0", "tags.weights": "imagenet"},
        {"tags.seed": "1", "tags.weights": "random"},
    ]
    assert len(choose(table(*rows), SYSTEMS["any"]).runs) == 1


def test_fewer_seeds_than_wanted_decide_nothing(store: Store) -> None:
    wanted = MeasuredClaim(system="any", metric="accuracy")
    few = reader(store, seeds=3).measure(wanted)
    assert few.problem == "2 of 3 seeds"
    assert few.value == reader(store, seeds=2).measure(wanted).value
    assert not reader(store, seeds=2).measure(wanted).problem
    assert (
        reader(store, seeds=3)
        .measure(MeasuredClaim(system="any", metric="efficiency/latency_ratio"))
        .problem
    )


def test_a_changed_tree_and_a_seed_trained_twice_are_said(store: Store) -> None:
    assert (
        "commit 0123456 with changes"
        in reader(store).measure(MeasuredClaim(system="half", metric="accuracy")).how
    )
    found = reader(store).measure(MeasuredClaim(system="any", metric="accuracy"))
    assert "seed 0 trained more than once, the newest taken" in found.how
    assert "with changes" not in found.how


def test_two_systems_are_compared_on_the_same_images(store: Store) -> None:
    found = reader(store).measure(MeasuredClaim(system="half", metric="accuracy", less="any"))
    expected = paired_difference(
        [predictions(11)], [predictions(7), predictions(1)], "accuracy", 200, 3, 0.9
    )
    assert found.range == pytest.approx(expected[:3])
    assert "1 seed of x/half" in found.how
    assert "2 seeds of x/net" in found.how
    few = reader(store, seeds=2).measure(
        MeasuredClaim(system="half", metric="accuracy", less="any")
    )
    assert few.problem == "1 of 2 seeds"
    other = reader(store).measure(MeasuredClaim(system="half", metric="accuracy", less="image"))
    assert np.isnan(other.value)
    assert "the two systems or their seeds were tested on different images" in other.problem
