"""Recorded runs are found, described, loaded and written as files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from small_store import SmallStore, write_run

from src.core.config import instantiate
from src.core.errors import UserError
from src.deployment import trained
from src.deployment.export import load_validation_images
from src.deployment.runtimes.formats import open_file
from src.tracking import read
from src.tracking.run import Run

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
FREE = "CC BY-NC 4.0: no commercial use"


@pytest.fixture(scope="module")
def trial(recorded: SmallStore) -> tuple[str, list[str]]:
    """Ids of a trial and of its two seeds; the first one is also evaluated on test."""
    with Run.start(
        recorded.store, "custom", {"kind": "trial", "study": "", "model": "custom"}
    ) as run:
        pass
    seeds = [write_run(recorded.store, recorded.folder, seed, parent=run.id) for seed in (1, 0)]
    first = Run.attach(recorded.store, seeds[1])
    first.table(read.predictions(recorded.store, seeds[1], "val"), "predictions/test.csv")
    first.flush()
    return run.id, seeds[::-1]


def test_the_start_of_an_id_is_enough(recorded: SmallStore) -> None:
    run = trained.find(recorded.store, recorded.run_id[:12])
    assert (run.run_id, run.repeated, run.model, run.data) == (
        *(recorded.run_id, False, "custom", "synthetic"),
    )
    assert [(net.run_id, net.seed) for net in run.nets] == [(recorded.run_id, "0")]
    assert run.config.data.image_size == 16
    assert run.title == f"custom ({recorded.run_id[:8]})"


def test_a_trial_has_the_nets_of_its_seeds(
    recorded: SmallStore, trial: tuple[str, list[str]]
) -> None:
    run = trained.find(recorded.store, trial[0])
    assert run.repeated
    assert [(net.run_id, net.seed) for net in run.nets] == [*zip(trial[1], "01", strict=True)]
    assert run.title == f"custom ({trial[0][:8]}, 2 seeds)"
    assert len(run.predictions(recorded.store, "val")) == 2
    assert run.predictions(recorded.store, "test") == []  # one of the two seeds has none
    assert [run.count_predicted(recorded.store, split) for split in ("val", "test")] == [2, 1]
    names = f"name one: {trial[1][0]} \\(seed 0\\), {trial[1][1]} \\(seed 1\\)"
    with pytest.raises(UserError, match=f"is a trial of several seeds, .*{names}"):
        trained.single(recorded.store, trial[0])


def test_runs_without_a_net_are_refused_with_the_reason(recorded: SmallStore) -> None:
    store = recorded.store.open()
    kinds = {"bare": "run", "study": "study", "empty": "trial"}
    ids = {}
    for name, kind in kinds.items():
        with Run.start(store, name, {"kind": kind}) as run:
            ids[name] = run.id
    with Run.start(store, "e", {"kind": "evaluation", "evaluated_run": "abc"}) as evaluation:
        pass
    with Run.start(store, "p", {"kind": "run"}) as pruned:
        pruned.ends_early("pruned", "behind at epoch 3")
    with pytest.raises(ValueError, match="broken"), Run.start(store, "f", {}) as failed:
        raise ValueError("broken")
    unfinished = Run.start(store, "g", {"kind": "run"})
    for prefix, message in {
        "zzz": "run=zzz: no such run",
        "": "run=: several runs start so: .*name more of the id",
        ids["bare"]: "has no artifact 'checkpoint'",
        ids["study"]: "is a study, not a trained run",
        ids["empty"]: "it has no seeds",
        evaluation.id: "is an evaluation of run abc, not a trained run",
        pruned.id: "it was ended early: behind at epoch 3",
        failed.id: "it is FAILED: ValueError: broken",
        unfinished.id: "it is RUNNING",
    }.items():
        with pytest.raises(UserError, match=message):
            trained.find(store, prefix)
    unfinished.__exit__(None, None, None)


def test_damaged_records_are_refused(recorded: SmallStore) -> None:
    run_id = write_run(recorded.store, recorded.folder, seed=0)
    run = trained.find(recorded.store, run_id)
    artifacts = recorded.folder / "mlruns" / "artifacts" / run_id / "artifacts"
    (artifacts / "predictions" / "val.csv").write_text("")
    with pytest.raises(UserError, match=r"artifact 'predictions/val.csv' of run .* is no table"):
        run.predictions(recorded.store, "val")
    config = artifacts / "config.yaml"
    config.write_text(config.read_text().replace(trained.CLASSIFIER, "os.system"))
    with pytest.raises(UserError, match="must be a part of"):
        trained.find(recorded.store, run_id)


def test_a_loaded_net_predicts_what_is_recorded(recorded: SmallStore) -> None:
    run = trained.find(recorded.store, recorded.run_id)
    images = load_validation_images(run, None, None, str(recorded.folder / "cache"))
    [frame] = run.predictions(recorded.store, "val")
    expected = frame.set_index("image_id").loc[images.ids[3:]].filter(like="p/")
    rows = np.arange(3, len(images.ids))
    checkpoint = read.artifact(recorded.store, recorded.run_id, trained.CHECKPOINT)
    classifier = trained.load_checkpoint(run.config, CLASSES, checkpoint)
    probabilities = trained.predict(classifier, images.pictures, rows, 5, "test")
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_another_nets_checkpoint_is_refused(recorded: SmallStore, tmp_path: Path) -> None:
    config = trained.find(recorded.store, recorded.run_id).config
    checkpoint = read.artifact(recorded.store, recorded.run_id, trained.CHECKPOINT)
    with pytest.raises(UserError, match="not a checkpoint of this network"):
        trained.load_checkpoint(config, CLASSES[:5], checkpoint)
    with pytest.raises(UserError, match="no such checkpoint"):
        trained.load_checkpoint(config, CLASSES, tmp_path / "best.ckpt")


def test_two_classes_come_from_one_logit(recorded: SmallStore, tmp_path: Path) -> None:
    config = trained.find(recorded.store, recorded.run_id).config
    torch.manual_seed(0)
    net = instantiate(config.model.net, "model.net", outputs=1).eval()
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "best.ckpt")
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    classifier = trained.load_checkpoint(config, ("benign", "malignant"), tmp_path / "best.ckpt")
    probabilities = trained.predict(classifier, images, np.array([4, 1]), 8, "test")
    mean, std = (np.array(config.model[name], dtype=np.float32) for name in ("mean", "std"))
    normal = torch.from_numpy((images[[4, 1]] / np.float32(255) - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = torch.sigmoid(net(normal))[:, 0].numpy()
    np.testing.assert_allclose(probabilities[:, 1], expected, rtol=1e-4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_another_training_precision_gives_a_warning(recorded: SmallStore) -> None:
    config = trained.find(recorded.store, recorded.run_id).config
    assert trained.precision_warnings(config) == []
    config.trainer.precision = "bf16-mixed"
    [warning] = trained.precision_warnings(config)
    assert "come from a trainer in bf16-mixed precision" in warning


def test_a_file_contains_the_description_of_its_run(recorded: SmallStore) -> None:
    description = open_file(recorded.onnx).description
    assert recorded.onnx.name == f"{recorded.run_id}.onnx"
    assert description == trained.describe(
        recorded.store, trained.single(recorded.store, recorded.run_id)
    )
    assert (description.run_id, description.model) == (recorded.run_id, "custom")
    assert (description.image_size, description.geometry) == (16, "squash")
    assert (description.data, description.split) == ("synthetic", "grouped")
    assert (description.precision, description.classes) == ("float32", CLASSES)
    assert description.licence == "none applies: drawn pictures"


def test_the_threshold_is_chosen_on_val(recorded: SmallStore) -> None:
    decision = trained.choose_decision(
        recorded.store, trained.single(recorded.store, recorded.run_id)
    )
    assert decision is not None
    val = read.predictions(recorded.store, recorded.run_id, "val")
    positive = val.loc[val["label"] == "mel", "p/mel"]
    assert decision.positive == "mel"
    assert (positive >= decision.threshold).mean() >= 0.8
    # The strictest one: with a higher threshold the sensitivity is too low. No image lies so
    # close that rounding moves it to the other side.
    assert (positive > decision.threshold + 1e-5).mean() < 0.8 + 1 / len(positive)
    assert (val["p/mel"] - decision.threshold).abs().min() > 1e-8
    assert decision.aim == "sensitivity >= 0.8 on val"
    assert decision.temperature is not None
    assert 0.05 <= decision.temperature <= 20


@pytest.mark.parametrize(
    ("source", "licence"),
    [
        ({"_target_": "src.data.ham10000.HAM10000"}, FREE),
        ({"_target_": "src.data.isic2018.ISIC2018"}, FREE),
        ({"_target_": "src.data.isic2019.ISIC2019"}, FREE),
        ({"_target_": "src.data.siim2020.SIIM2020"}, FREE),
        ({"_target_": "src.data.medmnist.MedMNIST", "flag": "dermamnist"}, FREE),
        ({"_target_": "src.data.medmnist.MedMNIST", "flag": "pathmnist"}, "unknown: ask the owner"),
        ({"_target_": "src.data.table.CsvTable"}, "unknown: ask the owners of mine"),
        ({"_target_": "src.data.synthetic.Synthetic"}, "none applies: drawn pictures"),
    ],
)
def test_the_licence_is_that_of_the_data(source: dict[str, str], licence: str) -> None:
    data = OmegaConf.create({"name": "mine", "source": source})
    assert trained.licence_note(data).startswith(licence)
