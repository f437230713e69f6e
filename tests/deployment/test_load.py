"""Runs in any runtime, and what a deployed model says about itself."""

import numpy as np
import pytest
from omegaconf import OmegaConf
from small_store import Place

from src.core.errors import UserError
from src.deployment import description, trained
from src.deployment.runtimes.files import open_file
from src.tracking import read
from src.tracking.run import Run

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def test_eager_answers_what_was_recorded(place: Place) -> None:
    runtime = trained.open_run(place.store, place.run_id[:8])
    assert (runtime.name, runtime.batch) == ("eager", None)
    assert runtime.description.classes == CLASSES
    assert runtime(np.zeros((3, 16, 16, 3), np.uint8)).shape == (3, 7)


def test_a_file_says_what_the_run_is(place: Place) -> None:
    said = open_file(place.onnx).description
    assert place.onnx.name == f"{place.run_id}.onnx"
    assert (said.run_id, said.model, said.image_size, said.geometry) == (
        place.run_id,
        "custom",
        16,
        "squash",
    )
    assert (said.data, said.split, said.precision) == ("synthetic", "grouped", "float32")
    assert said.licence == "none applies: drawn pictures"


def test_the_threshold_is_one_of_val(place: Place) -> None:
    decision = trained.describe(place.store, trained.single(place.store, place.run_id)).decision
    assert decision is not None
    val = read.predictions(place.store, place.run_id, "val")
    positive = val.loc[val["label"] == "mel", "p/mel"]
    caught = (positive >= decision.threshold).mean()
    assert decision.positive == "mel"
    assert caught >= 0.8
    # the strictest one: above it fewer are caught; and no image of val stands so near that rounding
    # moves it over
    assert (positive > decision.threshold + 1e-5).mean() < 0.8 + 1 / len(positive)
    assert (val["p/mel"] - decision.threshold).abs().min() > 1e-8
    assert decision.aim == "sensitivity >= 0.8 on val"
    assert decision.temperature is not None
    assert 0.05 <= decision.temperature <= 20


def test_a_trial_is_refused_and_names_its_runs(place: Place) -> None:
    with Run.start(
        place.store, "custom", {"kind": "trial", "study": "", "model": "custom"}
    ) as trial:
        pass
    run = Run.attach(place.store, place.run_id)
    run.move_below(trial)
    try:
        with pytest.raises(UserError, match=f"trial of several seeds.*{place.run_id} \\(seed 0\\)"):
            trained.open_run(place.store, trial.id)
    finally:
        run.untag("mlflow.parentRunId")


def test_a_compressed_run_has_its_own_runtime(place: Place, compressed: str) -> None:
    assert trained.open_run(place.store, compressed, "onnx").name == "onnx"
    with pytest.raises(UserError, match=r"^runtime=eager: .* is a \.onnx file; take runtime=onnx"):
        trained.open_run(place.store, compressed)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"_target_": "src.data.ham10000.HAM10000"}, "CC BY-NC 4.0: no commercial use"),
        ({"_target_": "src.data.isic2018.ISIC2018"}, "CC BY-NC 4.0: no commercial use"),
        ({"_target_": "src.data.isic2019.ISIC2019"}, "CC BY-NC 4.0: no commercial use"),
        ({"_target_": "src.data.siim2020.SIIM2020"}, "CC BY-NC 4.0: no commercial use"),
        (
            {"_target_": "src.data.medmnist.MedMNIST", "flag": "dermamnist"},
            "CC BY-NC 4.0: no commercial use",
        ),
        (
            {"_target_": "src.data.medmnist.MedMNIST", "flag": "pathmnist"},
            "unknown: ask the owners of mine",
        ),
        ({"_target_": "src.data.table.CsvTable"}, "unknown: ask the owners of mine"),
        ({"_target_": "src.data.synthetic.Synthetic"}, "none applies: drawn pictures"),
    ],
)
def test_the_licence_is_that_of_the_data(source: dict[str, str], said: str) -> None:
    assert description.note(OmegaConf.create({"name": "mine", "source": source})).startswith(said)
