"""`python -m src.predict` with recorded runs: by id, as a trial, by a registered name; and with Grad-CAM."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from scipy.special import softmax
from tiny_models import SIZE, Exported, Place, Typed, written

from src.core.errors import ConfigError
from src.data.cache import square
from src.deployment import predict
from src.models.custom import CustomCNN
from src.tracking import read, registry
from src.tracking import read as history
from src.tracking.run import Run
from src.tracking.store import TrackingError

NAMES = ["a.png", "b.png", "c.png"]


def by_hand(place: Place, run_id: str, folder: Path) -> tuple[list[str], np.ndarray]:
    """Classes, and probabilities of the recorded weights on the pictures' squares."""
    classes = [
        name[2:]
        for name in history.predictions(place.store, run_id, "val")
        if name.startswith("p/")
    ]
    state = torch.load(
        read.artifact(place.store, run_id, "checkpoint/best.ckpt"), weights_only=True
    )["state_dict"]
    net = CustomCNN(image_size=SIZE, outputs=len(classes), width=4, depth=1, dense=[8])
    net.load_state_dict(
        {name[4:]: values for name, values in state.items() if name.startswith("net.")}
    )
    config = OmegaConf.load(read.artifact(place.store, run_id, "config.yaml"))
    mean, std, geometry = (
        np.array(config.model.mean),
        np.array(config.model.std),
        config.data.geometry,
    )
    squares = np.stack(
        [square(Image.open(folder / name).convert("RGB"), SIZE, geometry) for name in NAMES]
    )
    normal = torch.from_numpy(((squares / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    with torch.no_grad():
        logits: np.ndarray = net.eval()(normal).double().numpy()
    return classes, softmax(logits, axis=1)


def asked(place: Place, model: str, *more: str) -> list[str]:
    return [f"model={model}", "input=pictures", f"tracking.folder={place.folder / 'mlruns'}", *more]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    written(tmp_path / "pictures", NAMES)
    return tmp_path / "pictures"


def test_a_run_by_the_start_of_its_id(
    place: Place, predicted: Typed, pictures: Path, tmp_path: Path
) -> None:
    run_id = place.seeds[0]
    status, said = predicted(*asked(place, run_id[:10]))
    assert status == 0, said
    found = pd.read_csv(tmp_path / "predictions.csv")
    classes, expected = by_hand(place, run_id, pictures)
    np.testing.assert_allclose(found[[f"p/{name}" for name in classes]], expected, atol=1e-6)
    threshold = float(re.findall(r"p\(mel\) = ([\d.e-]+)", said)[0])
    assert found["decision"].tolist() == [
        "mel" if value >= threshold else "not mel" for value in expected[:, classes.index("mel")]
    ]


def test_the_seeds_of_a_trial_are_averaged_and_decided_as_one(
    place: Place, predicted: Typed, pictures: Path, tmp_path: Path
) -> None:
    status, said = predicted(*asked(place, place.trial))
    assert status == 0, said
    assert "2 seeds), mean of their probabilities" in said
    found = pd.read_csv(tmp_path / "predictions.csv")
    (classes, first), (_, second) = (by_hand(place, run_id, pictures) for run_id in place.seeds)
    np.testing.assert_allclose(
        found[[f"p/{name}" for name in classes]], (first + second) / 2, atol=1e-6
    )
    val = [history.predictions(place.store, run_id, "val") for run_id in place.seeds]
    score = (val[0]["p/mel"] + val[1]["p/mel"]).to_numpy() / 2
    own = score[val[0]["label"] == "mel"]
    threshold = float(re.findall(r"p\(mel\) = ([\d.e-]+)", said)[0])
    assert (own >= threshold).mean() >= 0.8
    assert (own > own[own >= threshold].min()).mean() < 0.8  # a stricter one would lose too many


def test_a_registered_model(place: Place, predicted: Typed, pictures: Path, tmp_path: Path) -> None:
    client = place.store.client
    client.create_registered_model("skin")
    for run_id in place.seeds:
        client.create_model_version("skin", f"runs:/{run_id}/model", run_id)
    client.set_registered_model_alias("skin", "champion", "1")
    for name, version in (("skin", 2), ("skin/1", 1), ("skin@champion", 1)):
        meant = registry.resolve(place.store, name)
        assert (meant.name, meant.version, meant.run_id) == (
            "skin",
            version,
            place.seeds[version - 1],
        )
    status, said = predicted(*asked(place, "skin@champion"))
    assert status == 0, said
    assert "skin version 1, custom" in said
    classes, expected = by_hand(place, place.seeds[0], pictures)
    found = pd.read_csv(tmp_path / "predictions.csv")
    np.testing.assert_allclose(found[[f"p/{name}" for name in classes]], expected, atol=1e-6)
    for wanted in ("skin@nosuch", "skin/7", "skin/seven", "a:b"):
        with pytest.raises(TrackingError, match=wanted):
            registry.resolve(place.store, wanted)


def test_a_name_that_is_an_id_too_is_refused(place: Place) -> None:
    short = place.seeds[0][:6]
    place.store.client.create_registered_model(short)
    place.store.client.create_model_version(short, f"runs:/{place.seeds[1]}/model", place.seeds[1])
    with pytest.raises(
        ConfigError, match=f"{short} is a registered model, and a run's id starts so too"
    ):
        predict.find(short, lambda: place.store, 1)
    assert (
        predict.find(f"{short}/1", lambda: place.store, 1).nets[0].description.run_id
        == place.seeds[1]
    )
    assert predict.find(place.seeds[0], lambda: place.store, 1).description.run_id == place.seeds[0]
    place.store.client.delete_registered_model(short)


def test_the_precision_of_a_trial_is_that_of_its_nets(place: Place) -> None:
    for run_id in place.seeds:
        place.store.client.set_tag(run_id, "precision", "bfloat16")
    assert predict.find(place.trial, lambda: place.store, 1).description.precision == "bfloat16"
    for run_id in place.seeds:
        place.store.client.delete_tag(run_id, "precision")


def test_a_compressed_run_that_is_a_file(
    place: Place, exported: Exported, predicted: Typed, pictures: Path, tmp_path: Path
) -> None:
    """Its file answers, decided by the threshold of its own recorded predictions."""
    config = OmegaConf.load(read.artifact(place.store, place.seeds[0], "config.yaml"))
    config.data.geometry = "pad"
    score = np.array(
        [0.9, 0.2, 0.3, 0.4, 0.5, 0.1]
    )  # 0.2 is the fifth of five: 4 of 5 are 0.3 and more
    val = pd.DataFrame(
        {"image_id": list("uvwxyz"), "group": list("uvwxyz"), "label": ["mel"] * 5 + ["nv"]}
    )
    val = val.assign(**{"p/bkl": 0.0, "p/mel": score, "p/nv": 1 - score})
    tags = {"kind": "run", "seed": "5", "model": "custom", "data": "made", "split": "grouped"}
    with Run.start(place.store, "custom", tags) as run:
        run.text(OmegaConf.to_yaml(config), "config.yaml")
        run.artifact(exported.path, "deployed")
        run.table(val, "predictions/val.csv")
    status, said = predicted(*asked(place, run.id))
    assert status == 0, said
    own, of_file = (tmp_path / name for name in ("predictions.csv", "file.csv"))
    status, said = predicted(f"model={exported.path}", "input=pictures", f"out={of_file.name}")
    assert status == 0, said
    found, expected = pd.read_csv(own), pd.read_csv(of_file)
    columns = [f"p/{name}" for name in ("bkl", "mel", "nv")]
    assert found[columns].equals(expected[columns])
    assert found["decision"].tolist() == [
        "mel" if value >= 0.29 else "not mel" for value in found["p/mel"]
    ]
    status, said = predicted(*asked(place, run.id, "gradcam=true"))
    assert status == 2
    assert "runs from an exported file, without gradients; name its origin" in said.splitlines()[-1]
    place.store.client.delete_run(run.id)


def test_a_training_in_half_precision_is_told(
    place: Place, predicted: Typed, pictures: Path
) -> None:
    run_id, note = place.seeds[0], "come from a trainer in bf16-mixed precision"
    config = OmegaConf.load(read.artifact(place.store, run_id, "config.yaml"))
    assert note not in " ".join(predicted(*asked(place, run_id))[1].split())
    with Run.start(
        place.store, "half", {"kind": "run", "model": "custom", "data": "synthetic"}
    ) as run:
        run.text(
            OmegaConf.to_yaml(OmegaConf.merge(config, {"trainer": {"precision": "bf16-mixed"}})),
            "config.yaml",
        )
        run.artifact(read.artifact(place.store, run_id, "checkpoint/best.ckpt"), "checkpoint")
        run.table(history.predictions(place.store, run_id, "val"), "predictions/val.csv")
    status, said = predicted(*asked(place, run.id))
    assert status == 0, said
    assert note in " ".join(said.split())
    place.store.client.delete_run(run.id)


def test_what_is_named_nowhere_is_one_line(place: Place, predicted: Typed, pictures: Path) -> None:
    status, said = predicted(*asked(place, "nosuch"))
    assert status == 2
    assert said.splitlines()[-1].startswith(
        "error: model: nosuch: no such registered model; there are "
    )
    assert said.splitlines()[-1].endswith(
        "nor does a run's id start so, nor is it an exported file"
    )


@pytest.mark.parametrize("model", ["run", "trial"])
def test_gradcam_draws_each_picture(
    place: Place, predicted: Typed, pictures: Path, tmp_path: Path, model: str
) -> None:
    (pictures / "broken.png").write_text("a text")
    named = place.trial if model == "trial" else place.seeds[1]
    status, said = predicted(*asked(place, named, "gradcam=mel", "out=said.csv"))
    assert status == 1, said
    drawn = sorted((tmp_path / "said_gradcam").iterdir())
    assert [path.name for path in drawn] == [
        "000001_a_mel.png",
        "000002_b_mel.png",
        "000004_c_mel.png",
    ]
    for path in drawn:
        assert np.asarray(Image.open(path).convert("L")).std() > 10  # something is on it
    assert f"look: {tmp_path / 'said_gradcam'}" in said


def test_gradcam_of_a_class_that_is_none(
    place: Place, predicted: Typed, pictures: Path, tmp_path: Path
) -> None:
    status, said = predicted(*asked(place, place.seeds[0], "gradcam=melanoma"))
    assert status == 2
    assert "gradcam: must be true, false or one of akiec, bcc" in said.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"] or not list(
        tmp_path.glob("*.csv")
    )
