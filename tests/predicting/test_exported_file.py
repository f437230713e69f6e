"""`python -m src.predict` with an exported file: what it says, what it writes, and what it refuses."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from tiny_models import CLASSES, MEAN, SIZE, STD, Exported, Typed, written

from src.data.cache import square
from src.deployment.description import RESEARCH


def by_hand(net: torch.nn.Module, paths: list[Path]) -> np.ndarray:
    """Probabilities of the net itself on the pictures' squares."""
    squares = np.stack([square(Image.open(path).convert("RGB"), SIZE, "pad") for path in paths])
    normal = (squares / 255 - np.array(MEAN)) / np.array(STD)
    with torch.no_grad():
        logits = net(torch.from_numpy(normal.transpose(0, 3, 1, 2)).float())
    return softmax(logits.double().numpy(), axis=1)


def columns(frame: pd.DataFrame, kind: str) -> np.ndarray:
    return frame[[f"{kind}/{name}" for name in CLASSES]].to_numpy()


def test_a_folder_with_a_damaged_file(exported: Exported, predicted: Typed, tmp_path: Path) -> None:
    names = [f"{number:02d}.png" for number in range(7)]
    written(tmp_path / "pictures", names)
    (tmp_path / "pictures" / "03.png").write_text("a text")
    status, said = predicted(
        f"model={exported.path}", "input=pictures", "unsure_below=0.5", "batch_size=3"
    )
    assert status == 1, said
    assert said.count(RESEARCH) == 1
    assert max(map(len, said.splitlines())) <= 100
    assert "not an image" in said
    assert "Decision: mel from p(mel) = 0.3 on" in said

    read = pd.read_csv(tmp_path / "predictions.csv", keep_default_na=False, na_values=[""])
    assert list(read) == [
        "image",
        *(f"p/{name}" for name in CLASSES),
        *(f"calibrated/{name}" for name in CLASSES),
        *("top", "confidence", "decision", "unsure", "problem"),
    ]
    assert read["image"].tolist() == names
    assert read["problem"].fillna("").tolist() == ["", "", "", "not an image", "", "", ""]
    assert read.loc[3].drop(["image", "problem"]).isna().all()
    rest = read.drop(index=3)
    expected = by_hand(exported.net, [tmp_path / "pictures" / name for name in rest["image"]])
    tempered = softmax(np.log(expected) / 1.7, axis=1)
    np.testing.assert_allclose(columns(rest, "p"), expected, atol=1e-6)
    np.testing.assert_allclose(columns(rest, "calibrated"), tempered, atol=1e-6)
    assert rest["top"].tolist() == [CLASSES[label] for label in expected.argmax(axis=1)]
    np.testing.assert_allclose(rest["confidence"], tempered.max(axis=1), atol=1e-6)
    assert rest["decision"].tolist() == [
        "mel" if value >= 0.3 else "not mel" for value in expected[:, 1]
    ]
    assert rest["unsure"].astype(bool).tolist() == (tempered.max(axis=1) < 0.5).tolist()
    assert rest["decision"].nunique() == rest["unsure"].nunique() == 2  # the pictures try both


def test_many_pictures_are_counted(exported: Exported, predicted: Typed, tmp_path: Path) -> None:
    names = [f"sub/{number:02d}.png" for number in range(24)]
    written(tmp_path / "pictures", names)
    status, said = predicted(f"model={exported.path}", "input=pictures", "out=new/said.csv")
    assert status == 0, said
    read = pd.read_csv(tmp_path / "new" / "said.csv")
    assert read["image"].tolist() == names
    for name, number in read["top"].value_counts().items():
        assert f"most probable: {name} " in said
        assert f"{number} " in said.partition(f"most probable: {name} ")[2].partition("\n")[0]
    assert "24 pictures, 0 unreadable;" in said
    assert "images/s" in said
    assert "sub/00.png" not in said


def test_a_csv_and_its_order(exported: Exported, predicted: Typed, tmp_path: Path) -> None:
    written(tmp_path / "lists" / "some, of (mine)", ["a.png", "b.png"])
    (tmp_path / "lists" / "list.csv").write_text(
        'image\n"some, of (mine)/b.png"\ngone.png\n"some, of (mine)/a.png"\n'
    )
    status, said = predicted(f"model={exported.path}", "input=lists/list.csv", "out=the result.csv")
    assert status == 1, said
    read = pd.read_csv(tmp_path / "the result.csv", keep_default_na=False)
    assert read["image"].tolist() == ["some, of (mine)/b.png", "gone.png", "some, of (mine)/a.png"]
    assert read["problem"].tolist() == ["", "absent", ""]


def test_one_picture_without_a_csv(exported: Exported, predicted: Typed, tmp_path: Path) -> None:
    written(tmp_path, ["it.png"])
    status, said = predicted(f"model={exported.path}", "input=it.png", "out=null")
    assert status == 0, said
    probability = by_hand(exported.net, [tmp_path / "it.png"])[0]
    assert f"{probability[1]:.4f}" in said
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["it.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_leaves_the_former_csv(
    exported: Exported, predicted: Typed, tmp_path: Path
) -> None:
    written(tmp_path, ["it.png"])
    (tmp_path / "said.csv").write_text("of yesterday")
    (tmp_path / f".said.csv.{os.getpid()}.part").symlink_to(
        "/dev/full"
    )  # what the draft is written to
    status, said = predicted(f"model={exported.path}", "input=it.png", "out=said.csv")
    assert status == 2
    assert (
        said.splitlines()[-1]
        == "error: out=said.csv: cannot be written there (No space left on device)"
    )
    assert (tmp_path / "said.csv").read_text() == "of yesterday"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["input=it.png"], "model: name a run, a registered model or an exported file"),
        (["model=MODEL"], "input: name a picture, a folder or a CSV"),
        (["model=MODEL", "input=nosuch"], "input: nosuch is not there"),
        (["model=MODEL", "input=empty"], "input: empty has no picture in it or below it"),
        (
            ["model=MODEL", "input=list.csv"],
            "list.csv: has no column 'path' (or 'image'), only file; add it",
        ),
        (
            ["model=MODEL", "input=text.jpg"],
            "text.jpg: not an image; name a picture, a folder or a CSV",
        ),
        (["model=MODEL", "input=list.csv", "out=./list.csv"], "out: ./list.csv is the input"),
        (
            ["model=MODEL", "input=it.png", "out=text.jpg/said.csv"],
            "out=text.jpg/said.csv: cannot be written there",
        ),
        (
            ["model=MODEL", "input=it.png", "unsure_below=70"],
            "unsure_below: input should be less than or equal to 1",
        ),
        (
            ["model=MODEL", "input=it.png", "gradcam=true"],
            "gradcam: tiny.onnx is an exported file, without gradients",
        ),
        (["model=nosuch.onnx", "input=it.png"], "nosuch.onnx: no such file"),
        (
            ["model=text.jpg", "input=it.png"],
            "text.jpg: no kind of model that is known by its suffix",
        ),
        (["model=3f2a", "input=it.png"], "no run store is there"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], message: str, exported: Exported, predicted: Typed, tmp_path: Path
) -> None:
    written(tmp_path, ["it.png"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("file\nit.png\n")
    (tmp_path / "text.jpg").write_text("a text")
    status, said = predicted(
        *(argument.replace("MODEL", str(exported.path)) for argument in arguments)
    )
    assert status == 2
    assert message in said.splitlines()[-1]
    assert "Traceback" not in said
    assert not (tmp_path / "predictions.csv").exists()
    assert not list(tmp_path.glob("*_gradcam"))
