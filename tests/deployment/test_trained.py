"""Recorded runs are found, described, loaded and written as files."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from omegaconf import OmegaConf
from small_store import SmallStore, write_run

from src.core.config import instantiate
from src.core.errors import UserError
from src.deployment import trained
from src.deployment.description import KEY
from src.deployment.export import validation_rows
from src.deployment.runtimes.base import in_batches
from src.deployment.runtimes.formats import open_file
from src.deployment.trained import RecordedModel
from src.tracking import read
from src.tracking.run import Run

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
FREE = "CC BY-NC 4.0: no commercial use"


@pytest.fixture(scope="module")
def run(recorded: SmallStore) -> RecordedModel:
    """Found by the start of its id."""
    return trained.find(recorded.store, recorded.run_id[:12])


@pytest.fixture(scope="module")
def checkpoint(recorded: SmallStore) -> Path:
    return read.artifact(recorded.store, recorded.run_id, trained.CHECKPOINT)


def test_a_run_is_found(recorded: SmallStore, run: RecordedModel) -> None:
    expected = (recorded.run_id, False, "custom", "synthetic")
    assert (run.run_id, run.repeated, run.model, run.data) == expected
    assert [(net.run_id, net.seed) for net in run.nets] == [(recorded.run_id, "0")]
    assert run.config.data.image_size == 16
    assert run.title == f"custom ({recorded.run_id[:8]})"


def test_a_trial_has_the_nets_of_its_seeds(recorded: SmallStore) -> None:
    store, tags = recorded.store, {"kind": "trial", "study": "", "model": "custom"}
    with Run.start(store, "custom", tags) as parent:
        pass
    second, first = (write_run(store, recorded.folder, seed, parent=parent.id) for seed in (1, 0))
    predicted = Run.attach(store, first)
    predicted.table(read.predictions(store, first, "val"), "predictions/test.csv")
    predicted.flush()
    trial = trained.find(store, parent.id)
    assert trial.repeated
    assert [(net.run_id, net.seed) for net in trial.nets] == [(first, "0"), (second, "1")]
    assert trial.title == f"custom ({parent.id[:8]}, 2 seeds)"
    assert len(trial.predictions(store, "val")) == 2
    assert trial.predictions(store, "test") == []  # one of the two seeds has none
    assert [trial.count_predicted(store, split) for split in ("val", "test")] == [2, 1]
    names = f"name one: {first} \\(seed 0\\), {second} \\(seed 1\\)"
    with pytest.raises(UserError, match=f"is a trial of several seeds, .*{names}"):
        trained.single(store, parent.id)


def test_runs_without_a_net_are_refused_with_the_reason(recorded: SmallStore) -> None:
    store = recorded.store.open()
    ids = {}
    for name, kind in {"bare": "run", "study": "study", "empty": "trial"}.items():
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
    with pytest.raises(UserError, match="is named by no file in conf/"):
        trained.find(recorded.store, run_id)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.geometry", "\x1b[31m", "geometry: input should be"),
        ("data.image_size", "32px", "image_size: input should be a valid integer"),
        ("data.image_size", 10**8, "image_size: input should be less"),
        ("model.mean", [0.5], "model.mean, model.std: must be three numbers each"),
        ("model.std", ["a", "b", "c"], "model.mean, model.std: must be three numbers each"),
        ("model.net._partial_", True, r"model\.net\._target_: must be a Module, but src"),
        ("model.net", {"_target_": "src.data.folder.ClassFolders"}, r"model\.net: .*'outputs'"),
    ],
)
def test_impossible_values_of_a_record_are_refused(
    recorded: SmallStore,
    run: RecordedModel,
    checkpoint: Path,
    key: str,
    value: object,
    message: str,
) -> None:
    config = run.config.copy()
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    changed = dataclasses.replace(run, config=config)
    with pytest.raises(UserError, match=message):  # noqa: PT012  one of them refuses
        trained.describe(recorded.store, changed)
        trained.load_checkpoint(config, CLASSES, checkpoint)


def test_a_loaded_net_predicts_what_is_recorded(
    recorded: SmallStore, run: RecordedModel, checkpoint: Path
) -> None:
    data, _, rows = validation_rows(run, None, None, str(recorded.folder / "cache"))
    [frame] = run.predictions(recorded.store, "val")
    ids = data.frame["image_id"].iloc[rows[3:]]
    camera = trained.load_checkpoint(run.config, CLASSES, checkpoint)
    probabilities = in_batches(camera.probabilities, data.cache.images, 5, rows=rows[3:])
    expected = frame.set_index("image_id").loc[ids].filter(like="p/")
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_the_state_of_the_loss_is_not_loaded(
    run: RecordedModel, checkpoint: Path, tmp_path: Path
) -> None:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    torch.save({"state_dict": state | {"loss.weight": torch.ones(7)}}, tmp_path / "best.ckpt")
    camera = trained.load_checkpoint(run.config, CLASSES, tmp_path / "best.ckpt")
    loaded = camera.net.state_dict()
    assert all(torch.equal(loaded[name.removeprefix("net.")], state[name]) for name in state)


def test_two_classes_come_from_one_logit(run: RecordedModel, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = instantiate(run.config.model.net, "model.net", outputs=1).eval()
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "best.ckpt")
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    camera = trained.load_checkpoint(run.config, ("no", "yes"), tmp_path / "best.ckpt")
    probabilities = in_batches(camera.probabilities, images, 8, rows=np.array([4, 1]))
    mean, std = (np.array(run.config.model[name], dtype=np.float32) for name in ("mean", "std"))
    normal = torch.from_numpy((images[[4, 1]] / np.float32(255) - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = torch.sigmoid(net(normal))[:, 0].numpy()
    np.testing.assert_allclose(probabilities[:, 1], expected, rtol=1e-4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_another_training_precision_gives_a_warning(run: RecordedModel) -> None:
    assert trained.precision_warnings(run.config) == []
    config = OmegaConf.create({"trainer": {"precision": "bf16-mixed"}})
    [warning] = trained.precision_warnings(config)
    assert "come from a trainer in bf16-mixed precision" in warning


def test_a_file_contains_the_description_of_its_run(
    recorded: SmallStore, run: RecordedModel
) -> None:
    description = open_file(recorded.onnx).description
    assert recorded.onnx.name == f"{recorded.run_id}.onnx"
    assert description == trained.describe(recorded.store, run)
    assert (description.run_id, description.model) == (recorded.run_id, "custom")
    assert (description.image_size, description.geometry) == (16, "squash")
    assert (description.data, description.split) == ("synthetic", "grouped")
    assert (description.precision, description.classes) == ("float32", CLASSES)
    assert description.licence == "none applies: drawn pictures"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 24}, "cannot load it: .*invalid dimensions"),
        (
            {"classes": [*CLASSES, "other"]},
            r"8 classes, but its net has an output of shape \(1, 7\)",
        ),
    ],
)
def test_a_description_of_another_net_is_one_error(
    recorded: SmallStore, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    model = onnx.load(recorded.onnx)
    [entry] = [entry for entry in model.metadata_props if entry.key == KEY]
    entry.value = json.dumps(json.loads(entry.value) | change)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match=rf"other\.onnx: .*{message}"):
        open_file(tmp_path / "other.onnx")


def test_the_threshold_is_chosen_on_val(recorded: SmallStore, run: RecordedModel) -> None:
    chosen = trained.choose_decision(recorded.store, run, list(CLASSES))
    assert list(chosen) == ["decision"]  # argmax has no offsets
    decision = chosen["decision"]
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
        ("ham10000.HAM10000", FREE),
        ("isic2018.ISIC2018", FREE),
        ("isic2019.ISIC2019", FREE),
        ("siim2020.SIIM2020", FREE),
        ("medmnist.MedMNIST dermamnist", FREE),
        ("medmnist.MedMNIST pathmnist", "unknown: ask the owner"),
        ("table.CsvTable", "unknown: ask the owners of mine"),
        ("synthetic.Synthetic", "none applies: drawn pictures"),
    ],
)
def test_the_licence_is_that_of_the_data(source: str, licence: str) -> None:
    target, _, flag = source.partition(" ")
    node = {"_target_": f"src.data.{target}", "flag": flag}
    data = OmegaConf.create({"name": "mine", "source": node})
    assert trained.licence_note(data).startswith(licence)
