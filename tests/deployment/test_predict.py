"""Predictions: arithmetic, settings, and `python -m src.predict` with files, runs and names."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from scipy.special import softmax

from src import predict as entry
from src.core.cli import CONF, ROOT
from src.core.errors import ConfigError
from src.data.cache import square
from src.deployment import predict, trained
from src.deployment.description import RESEARCH, Decision, Description
from src.deployment.predict import NO_NUMBER, PredictSettings, columns, predictions_frame
from src.deployment.runtimes import onnx
from src.deployment.runtimes.eager import CameraNet
from src.models.custom import CustomCNN
from src.tracking import model_registry, read
from src.tracking.run import Run
from src.tracking.store import Store, TrackingError
from src.training.checkpoint import save_weights

CLASSES = ("bkl", "mel", "nv")
CODES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")  # of the recorded runs
SIZE = 16
MEAN, STD = (0.7, 0.5, 0.4), (0.2, 0.25, 0.3)
NAMES = ["a.png", "b.png", "c.png"]
P = np.array([[0.2, 0.3, 0.5], [0.1, 0.125, 0.775], [0.0, 1.0, 0.0], [0.4, 0.1, 0.5]], np.float32)
Typed = Callable[..., tuple[int, str]]


@dataclass(frozen=True)
class Recorded:
    """A store with a trial of two seeds."""

    store: Store
    seeds: tuple[str, str]
    trial: str

    def arguments(self, model: str, *more: str) -> list[str]:
        return [f"model={model}", "input=pictures", f"tracking.folder={self.store.folder}", *more]


@pytest.fixture(scope="module")
def net() -> CustomCNN:
    torch.manual_seed(1)
    net = CustomCNN(image_size=SIZE, outputs=len(CLASSES), width=4, depth=1, dense=[8]).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)  # farther from equal probabilities
    return net


@pytest.fixture(scope="module")
def exported(net: CustomCNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of `net`."""
    decision = Decision("mel", 0.3, "sensitivity >= 0.8 on val", temperature=1.7)
    about = Description(
        "3f2a" * 8, "custom", CLASSES, SIZE, "pad", "made", "grouped", "none", decision=decision
    )
    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    onnx.FORMAT.write(CameraNet(net, MEAN, STD), about, path)
    return path


@pytest.fixture(scope="module")
def recorded(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Made once; a test that adds a run deletes it."""
    folder = tmp_path_factory.mktemp("recorded") / "mlruns"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    store = Store(folder=folder)
    GlobalHydra.instance().clear()
    tiny = [f"model.image_size={SIZE}", "model.net.width=4", "model.net.depth=1"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["model=custom", "data=synthetic", *tiny, "model.net.dense=[8]"])
    tags = {"kind": "trial", "model": "custom", "data": "synthetic"}
    with Run.start(store, "custom", tags) as trial:
        pass
    first, second = (record(store, config, seed, trial, folder.parent) for seed in (0, 1))
    return Recorded(store, (first, second), trial.id)


def record(store: Store, config: DictConfig, seed: int, trial: Run, folder: Path) -> str:
    """A run with random weights and random predictions."""
    torch.manual_seed(seed)
    net = torch.nn.ModuleDict({"net": trained.build_net(config, CODES)})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 + seed)
    save_weights(net, folder / "best.ckpt")
    label = np.arange(70) % len(CODES)
    noise = np.random.default_rng(seed).normal(size=(70, len(CODES)))
    frame = pd.DataFrame({"image_id": [f"{row:02d}" for row in range(70)]})
    frame["label"], frame["group"] = np.array(CODES)[label], frame["image_id"]
    frame[[f"p/{name}" for name in CODES]] = softmax(2 * np.eye(len(CODES))[label] + noise, 1)
    tags = {"kind": "run", "model": "custom", "data": "synthetic", "split": "grouped"}
    with Run.start(store, "custom", tags | {"seed": str(seed)}, parent_id=trial.id) as run:
        run.text(OmegaConf.to_yaml(config, resolve=True), "config.yaml")
        run.artifact(folder / "best.ckpt", "checkpoint")
        run.table(frame, "predictions/val.csv")
    return run.id


@pytest.fixture
def typed(run_entry: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Typed:
    """`python -m src.predict <arguments>` in an empty folder: status and output."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def run(*arguments: str) -> tuple[int, str]:
        try:
            return run_entry(entry.main, "threads=1", *arguments)
        finally:
            torch.set_num_threads(threads)

    return run


def write(folder: Path, names: list[str]) -> Path:
    """Different pictures."""
    for number, name in enumerate(names):
        coarse = np.random.default_rng(number).integers(0, 256, (5, 5, 3), np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(coarse).resize((40 + number % 7, 30), Image.Resampling.BICUBIC)
        picture.save(folder / name)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write(tmp_path / "pictures", NAMES)


def probabilities(net: torch.nn.Module, paths: list[Path], geometry: str = "pad") -> np.ndarray:
    """Of the net itself, for the pictures' squares."""
    images = [Image.open(path).convert("RGB") for path in paths]
    squares = np.stack([square(image, SIZE, geometry) for image in images])  # type: ignore[arg-type]
    normal = (squares / 255 - np.array(MEAN)) / np.array(STD)
    with torch.no_grad():
        logits = net(torch.from_numpy(normal.transpose(0, 3, 1, 2)).float())
    return softmax(logits.double().numpy(), axis=1)


def recorded_probabilities(recorded: Recorded, run_id: str, folder: Path) -> np.ndarray:
    """Of a run's weights, for the pictures."""
    path = read.artifact(recorded.store, run_id, "checkpoint/best.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    net = CustomCNN(image_size=SIZE, outputs=len(CODES), width=4, depth=1, dense=[8]).eval()
    net.load_state_dict({name[4:]: value for name, value in state.items() if name[:4] == "net."})
    config = OmegaConf.load(read.artifact(recorded.store, run_id, "config.yaml"))
    images = [Image.open(folder / name).convert("RGB") for name in NAMES]
    squares = np.stack([square(image, SIZE, config.data.geometry) for image in images])
    normal = (squares / 255 - np.array(config.model.mean)) / np.array(config.model.std)
    with torch.no_grad():
        logits = net(torch.from_numpy(normal.transpose(0, 3, 1, 2)).float())
    return softmax(logits.double().numpy(), axis=1)


def matrix(frame: pd.DataFrame, kind: str = "p", classes: tuple[str, ...] = CODES) -> np.ndarray:
    return frame[[f"{kind}/{name}" for name in classes]].to_numpy()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_calibrated_is_the_softmax_of_logarithms_over_the_temperature(temperature: float) -> None:
    some = P[[0, 1, 3]]
    decision = Decision("mel", 0.125, "sensitivity >= 0.8", temperature)
    rows = predictions_frame(some, CLASSES, decision, None)
    expected = softmax(np.log(some.astype(float)) / temperature, axis=1)
    np.testing.assert_allclose(matrix(rows, "calibrated", CLASSES), expected, rtol=1e-12)
    np.testing.assert_allclose(rows["confidence"], expected[:, 2], rtol=1e-12)


def test_the_decision_uses_the_raw_probability_from_the_threshold_on() -> None:
    # 0.125 is exact in single precision
    rows = predictions_frame(P, CLASSES, Decision("mel", 0.125, "", 5.0), None)
    assert rows["decision"].tolist() == ["mel", "mel", "mel", "not mel"]
    above = Decision("mel", float(np.nextafter(0.125, 1)), "", 5.0)
    rows = predictions_frame(P, CLASSES, above, None)
    assert rows["decision"].tolist() == ["mel", "not mel", "mel", "not mel"]
    assert rows["top"].tolist() == ["nv", "nv", "mel", "nv"]  # independent of the decision


def test_unsure_is_below_the_calibrated_confidence() -> None:
    assert predictions_frame(P, CLASSES, None, 0.5)["unsure"].tolist() == [False] * 4
    unsure = predictions_frame(P, CLASSES, None, 0.51)["unsure"].tolist()
    assert unsure == [True, False, False, True]
    calibrated = softmax(np.log(P[1].astype(float)) / 5)[2]
    assert P[1, 2] > calibrated + 0.01
    rows = predictions_frame(P[1:2], CLASSES, Decision("mel", 0.5, "", 5.0), calibrated + 0.01)
    assert rows["unsure"].tolist() == [True]


def test_without_a_decision_nothing_is_decided_or_calibrated() -> None:
    rows = predictions_frame(P, CLASSES, None, None)
    assert rows[["decision", "unsure"]].isna().all(axis=None)
    assert rows["confidence"].tolist() == P.max(axis=1).tolist()
    equal = predictions_frame(np.array([[0.4, 0.4, 0.2]], np.float32), CLASSES, None, None)
    assert equal["top"].tolist() == ["bkl"]  # the first of equal ones


def test_a_value_that_is_not_a_number_is_a_problem() -> None:
    broken = np.array([[np.nan, np.nan, np.nan], [0.2, 0.3, 0.5]], np.float32)
    rows = predictions_frame(broken, CLASSES, Decision("mel", 0.1, "", 2.0), 0.9)
    assert rows["problem"].tolist() == [NO_NUMBER, ""]
    assert rows.drop(columns="problem").iloc[0].isna().all()
    assert rows.loc[1, ["top", "decision", "unsure"]].tolist() == ["nv", "mel", True]


@pytest.mark.parametrize("decision", [None, Decision("mel", 0.2, ""), Decision("mel", 0.2, "", 2)])
def test_the_columns_are_those_of_the_predictions(decision: Decision | None) -> None:
    assert columns(CLASSES, decision) == ["image", *predictions_frame(P, CLASSES, decision, 0.5)]


@pytest.mark.parametrize(
    ("out", "problem"),
    [
        ("empty", "empty is a folder"),
        ("./list.csv", "./list.csv is the input, which would be lost"),
        ("./custom.onnx", "./custom.onnx is the model, which would be lost"),
        ("it.png", "it.png is a picture's name"),
        ("/dev/null", "/dev/null is not a file that can be replaced"),  # root could
        (" ", "name a CSV to write"),
        ("new.csv", None),
        ("new/new.csv", None),
        ("yesterday.csv", None),
    ],
)
def test_the_output_replaces_no_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, problem: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("list.csv", "it.png", "custom.onnx", "yesterday.csv"):
        (tmp_path / name).write_text("")
    settings = PredictSettings(named="custom.onnx", input="list.csv", out=out)
    if problem is None:
        assert settings.csv == Path(out)
        return
    with pytest.raises(ConfigError, match="out: ") as caught:
        _ = settings.csv
    assert problem in str(caught.value)


@pytest.mark.parametrize("name", ["nosuch", "~no such user/it.png", "a" * 300])
def test_an_impossible_input_does_not_exist(name: str) -> None:
    with pytest.raises(ConfigError, match="input: .* is not there"):
        _ = PredictSettings(input=name).pictures


def test_a_folder_with_a_damaged_file(
    exported: Path, net: CustomCNN, typed: Typed, tmp_path: Path
) -> None:
    names = [f"{number:02d}.png" for number in range(7)]
    folder = write(tmp_path / "pictures", names)
    (folder / "03.png").write_text("a text")
    options = ("input=pictures", "unsure_below=0.5", "batch_size=3")
    status, output = typed(f"model={exported}", *options)
    assert status == 1, output
    assert " ".join(output.split()).count(RESEARCH) == 1
    assert max(map(len, output.splitlines())) <= 100
    assert "not an image" in output
    assert "Decision: mel from p(mel) = 0.3 on" in output
    rows = pd.read_csv(tmp_path / "predictions.csv", keep_default_na=False, na_values=[""])
    assert list(rows) == [
        "image",
        *(f"p/{name}" for name in CLASSES),
        *(f"calibrated/{name}" for name in CLASSES),
        *("top", "confidence", "decision", "unsure", "problem"),
    ]
    assert rows["image"].tolist() == names
    assert rows["problem"].fillna("").tolist() == ["", "", "", "not an image", "", "", ""]
    assert rows.loc[3].drop(["image", "problem"]).isna().all()
    rows = rows.drop(index=3)
    expected = probabilities(net, [folder / name for name in rows["image"]])
    calibrated = softmax(np.log(expected) / 1.7, axis=1)
    np.testing.assert_allclose(matrix(rows, "p", CLASSES), expected, atol=1e-6)
    np.testing.assert_allclose(matrix(rows, "calibrated", CLASSES), calibrated, atol=1e-6)
    assert rows["top"].tolist() == [CLASSES[label] for label in expected.argmax(axis=1)]
    np.testing.assert_allclose(rows["confidence"], calibrated.max(axis=1), atol=1e-6)
    decisions = np.where(expected[:, 1] >= 0.3, "mel", "not mel")
    assert rows["decision"].tolist() == decisions.tolist()
    assert rows["unsure"].astype(bool).tolist() == (calibrated.max(axis=1) < 0.5).tolist()
    assert rows["decision"].nunique() == rows["unsure"].nunique() == 2  # both occur


def test_many_pictures_are_counted(exported: Path, typed: Typed, tmp_path: Path) -> None:
    names = [f"sub/{number:02d}.png" for number in range(24)]
    write(tmp_path / "pictures", names)
    (tmp_path / "pictures" / "sub" / "=1+1.png").write_bytes(b"no picture")
    status, output = typed(f"model={exported}", "input=pictures", "out=new/out.csv")
    assert status == 1, output
    rows = pd.read_csv(tmp_path / "new" / "out.csv")
    assert rows["image"].tolist() == [*names, "sub/=1+1.png"]
    for name, number in rows["top"].value_counts().items():
        line = output.partition(f"most probable: {name} ")[2].partition("\n")[0]
        assert f"{number} " in line
    assert "25 pictures, 1 unreadable;" in output
    assert "images/s" in output
    assert "sub/00.png" not in output


def test_a_csv_keeps_its_order_and_formulas_are_quoted(
    exported: Path, typed: Typed, tmp_path: Path
) -> None:
    write(tmp_path / "lists" / "some, of (mine)", ["=a.png", "b.png"])
    (tmp_path / "lists" / "list.csv").write_text(
        'image\n"some, of (mine)/b.png"\n=gone.png\n"some, of (mine)/=a.png"\n'
    )
    status, output = typed(f"model={exported}", "input=lists/list.csv", "out=the result.csv")
    assert status == 1, output
    rows = pd.read_csv(tmp_path / "the result.csv", keep_default_na=False)
    names = ["some, of (mine)/b.png", "'=gone.png", "some, of (mine)/=a.png"]
    assert rows["image"].tolist() == names
    assert rows["problem"].tolist() == ["", "absent", ""]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["the result.csv"]


def test_one_picture_without_a_csv(
    exported: Path, net: CustomCNN, typed: Typed, tmp_path: Path
) -> None:
    write(tmp_path, ["it.png"])
    status, output = typed(f"model={exported}", "input=it.png", "out=null")
    assert status == 0, output
    assert f"{probabilities(net, [tmp_path / 'it.png'])[0, 1]:.4f}" in output
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["it.png"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_csv_that_cannot_be_finished_leaves_the_former_one(
    exported: Path,
    typed: Typed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    def fail(frame: pd.DataFrame, path: Path, **options: object) -> None:
        path.write_text("half of it")
        raise error

    write(tmp_path, ["it.png"])
    (tmp_path / "out.csv").write_text("of yesterday")
    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    status, output = typed(f"model={exported}", "input=it.png", "out=out.csv")
    assert status == (2 if isinstance(error, OSError) else 130)
    if status == 2:
        assert "cannot be written there" in output.splitlines()[-1]
        assert "No space left on device" in output.splitlines()[-1]
    assert (tmp_path / "out.csv").read_text() == "of yesterday"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "it.png",
        "out.csv",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["input=it.png"], "model: name a run, a registered model or an exported file"),
        (["model=MODEL"], "input: name a picture, a folder or a CSV"),
        (["model=MODEL", "input=nosuch"], "input: nosuch is not there"),
        (["model=MODEL", "input=empty"], "input: empty has no picture in it or below it"),
        (["model=MODEL", "input=list.csv"], "list.csv: has no column 'path' (or 'image')"),
        (["model=MODEL", "input=text.jpg"], "text.jpg: not an image; name a picture"),
        (["model=MODEL", "input=list.csv", "out=./list.csv"], "out: ./list.csv is the input"),
        (["model=MODEL", "input=it.png", "out=text.jpg/out.csv"], "cannot be written there"),
        (["model=MODEL", "input=it.png", "unsure_below=70"], "unsure_below: input should be less"),
        (["model=MODEL", "input=it.png", "gradcam=true"], "is an exported file, without gradients"),
        (["model=nosuch.onnx", "input=it.png"], "nosuch.onnx: no such file"),
        (["model=text.jpg", "input=it.png"], "text.jpg: unknown suffix of a model file"),
        (["model=3f2a", "input=it.png"], "no run store is there"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, exported: Path, typed: Typed, tmp_path: Path
) -> None:
    write(tmp_path, ["it.png"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("file\nit.png\n")
    (tmp_path / "text.jpg").write_text("a text")
    status, output = typed(*(word.replace("MODEL", str(exported)) for word in arguments))
    assert status == 2
    assert message in output.splitlines()[-1]
    assert "Traceback" not in output
    assert not (tmp_path / "predictions.csv").exists()
    assert not list(tmp_path.glob("*_gradcam"))


def test_an_onnx_file_needs_neither_torch_nor_mlflow(exported: Path, tmp_path: Path) -> None:
    write(tmp_path, ["it.png"])
    arguments = [f"model={exported}", f"input={tmp_path}/it.png", f"out={tmp_path}/out.csv"]
    program = (
        f"import sys; sys.argv = ['predict', *{arguments}, 'hydra.run.dir={tmp_path}/logs']; "
        "from src import predict; predict.main(); "
        "print('imported', *sys.modules.keys() & {'torch', 'mlflow', 'pytorch_lightning'})"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "imported"


def test_a_run_by_the_start_of_its_id(
    recorded: Recorded, typed: Typed, pictures: Path, tmp_path: Path
) -> None:
    run_id = recorded.seeds[0]
    status, output = typed(*recorded.arguments(run_id[:10]))
    assert status == 0, output
    rows = pd.read_csv(tmp_path / "predictions.csv")
    expected = recorded_probabilities(recorded, run_id, pictures)
    np.testing.assert_allclose(matrix(rows), expected, atol=1e-6)
    threshold = float(re.findall(r"p\(mel\) = ([\d.e-]+)", output)[0])
    decisions = np.where(expected[:, CODES.index("mel")] >= threshold, "mel", "not mel")
    assert rows["decision"].tolist() == decisions.tolist()


def test_the_seeds_of_a_trial_are_averaged_with_a_threshold_for_the_mean(
    recorded: Recorded, typed: Typed, pictures: Path, tmp_path: Path
) -> None:
    status, output = typed(*recorded.arguments(recorded.trial))
    assert status == 0, output
    assert "2 seeds), mean of their probabilities" in output
    rows = pd.read_csv(tmp_path / "predictions.csv")
    nets = [recorded_probabilities(recorded, run_id, pictures) for run_id in recorded.seeds]
    np.testing.assert_allclose(matrix(rows), np.mean(nets, axis=0), atol=1e-6)
    val = [read.predictions(recorded.store, run_id, "val") for run_id in recorded.seeds]
    mean = (val[0]["p/mel"] + val[1]["p/mel"]).to_numpy() / 2
    melanoma = mean[val[0]["label"] == "mel"]
    threshold = float(re.findall(r"p\(mel\) = ([\d.e-]+)", output)[0])
    assert (melanoma >= threshold).mean() >= 0.8
    assert (melanoma > melanoma[melanoma >= threshold].min()).mean() < 0.8  # a stricter one fails


def test_a_registered_model(
    recorded: Recorded, typed: Typed, pictures: Path, tmp_path: Path
) -> None:
    client = recorded.store.client
    client.create_registered_model("skin")
    for run_id in recorded.seeds:
        client.create_model_version("skin", f"runs:/{run_id}/model", run_id)
    client.set_registered_model_alias("skin", "champion", "1")
    for name, number in (("skin", 2), ("skin/1", 1), ("skin@champion", 1)):
        version = model_registry.resolve(recorded.store, name)
        expected = ("skin", number, recorded.seeds[number - 1])
        assert (version.name, version.number, version.run_id) == expected
    status, output = typed(*recorded.arguments("skin@champion"))
    assert status == 0, output
    assert "skin version 1, custom" in output
    rows = pd.read_csv(tmp_path / "predictions.csv")
    probability = recorded_probabilities(recorded, recorded.seeds[0], pictures)
    np.testing.assert_allclose(matrix(rows), probability, atol=1e-6)
    for name in ("skin@nosuch", "skin/7", "skin/seven", "a:b"):
        with pytest.raises(TrackingError, match=name):
            model_registry.resolve(recorded.store, name)
    status, output = typed(*recorded.arguments("nosuch"))
    assert status == 2
    last = output.splitlines()[-1]
    assert last.startswith("error: model: nosuch: no such registered model; there are ")
    assert last.endswith("nor does a run's id start so, nor is it an exported file")


def test_a_name_that_is_also_an_id_is_refused(recorded: Recorded) -> None:
    short, (first, second) = recorded.seeds[0][:6], recorded.seeds
    client = recorded.store.client
    client.create_registered_model(short)
    client.create_model_version(short, f"runs:/{second}/model", second)

    def run_of(name: str) -> str:
        return predict.find(name, lambda: recorded.store, 1).runtimes[0].description.run_id

    problem = f"{short} is a registered model, and a run's id starts so too"
    with pytest.raises(ConfigError, match=problem):
        run_of(short)
    assert (run_of(f"{short}/1"), run_of(first)) == (second, first)
    client.delete_registered_model(short)


def test_the_precision_of_a_trial_is_that_of_its_nets(recorded: Recorded) -> None:
    for run_id in recorded.seeds:
        recorded.store.client.set_tag(run_id, "precision", "bfloat16")
    model = predict.find(recorded.trial, lambda: recorded.store, 1)
    assert model.description.precision == "bfloat16"
    for run_id in recorded.seeds:
        recorded.store.client.delete_tag(run_id, "precision")


def test_a_compressed_run_that_is_a_file(
    recorded: Recorded, exported: Path, typed: Typed, pictures: Path, tmp_path: Path
) -> None:
    """The file predicts; the decision is chosen on the run's recorded predictions."""
    config = OmegaConf.load(read.artifact(recorded.store, recorded.seeds[0], "config.yaml"))
    config.data.geometry = "pad"
    score = np.array([0.9, 0.2, 0.3, 0.4, 0.5, 0.1])  # 4 of 5 melanomas have 0.3 or more
    val = pd.DataFrame({"image_id": list("uvwxyz"), "group": list("uvwxyz")})
    val = val.assign(label=["mel"] * 5 + ["nv"])
    val = val.assign(**{"p/bkl": 0.0, "p/mel": score, "p/nv": 1 - score})
    tags = {"kind": "run", "seed": "5", "model": "custom", "data": "made", "split": "grouped"}
    with Run.start(recorded.store, "custom", tags) as run:
        run.text(OmegaConf.to_yaml(config), "config.yaml")
        run.artifact(exported, "deployed")
        run.table(val, "predictions/val.csv")
    status, output = typed(*recorded.arguments(run.id))
    assert status == 0, output
    status, output = typed(f"model={exported}", "input=pictures", "out=file.csv")
    assert status == 0, output
    rows, file = (pd.read_csv(tmp_path / name) for name in ("predictions.csv", "file.csv"))
    np.testing.assert_array_equal(matrix(rows, "p", CLASSES), matrix(file, "p", CLASSES))
    status, output = typed(*recorded.arguments(run.id, "gradcam=true"))
    assert status == 2
    assert "is an exported file, without gradients" in output.splitlines()[-1]
    recorded.store.client.delete_run(run.id)


def test_training_in_half_precision_is_noted(
    recorded: Recorded, typed: Typed, pictures: Path
) -> None:
    run_id, note = recorded.seeds[0], "bf16-mixed precision"
    config = OmegaConf.load(read.artifact(recorded.store, run_id, "config.yaml"))
    assert note not in " ".join(typed(*recorded.arguments(run_id))[1].split())
    tags = {"kind": "run", "model": "custom", "data": "synthetic"}
    with Run.start(recorded.store, "half", tags) as run:
        config = OmegaConf.merge(config, {"trainer": {"precision": "bf16-mixed"}})
        run.text(OmegaConf.to_yaml(config), "config.yaml")
        checkpoint = read.artifact(recorded.store, run_id, "checkpoint/best.ckpt")
        run.artifact(checkpoint, "checkpoint")
        run.table(read.predictions(recorded.store, run_id, "val"), "predictions/val.csv")
    status, output = typed(*recorded.arguments(run.id))
    assert status == 0, output
    assert note in " ".join(output.split())
    recorded.store.client.delete_run(run.id)


@pytest.mark.parametrize("model", ["run", "trial"])
def test_gradcam_draws_each_readable_picture(
    recorded: Recorded, typed: Typed, pictures: Path, tmp_path: Path, model: str
) -> None:
    (pictures / "broken.png").write_text("a text")
    name = recorded.trial if model == "trial" else recorded.seeds[1]
    status, output = typed(*recorded.arguments(name, "gradcam=mel", "out=out.csv"))
    assert status == 1, output
    drawn = sorted((tmp_path / "out_gradcam").iterdir())
    names = ["000001_a_mel.png", "000002_b_mel.png", "000004_c_mel.png"]
    assert [path.name for path in drawn] == names
    for path in drawn:
        assert np.asarray(Image.open(path).convert("L")).std() > 10  # it is not empty
    assert f"look: {tmp_path / 'out_gradcam'}" in output
    status, output = typed(*recorded.arguments(name, "gradcam=melanoma", "out=other.csv"))
    assert status == 2
    assert "gradcam: must be true, false or one of akiec, bcc" in output.splitlines()[-1]
    assert not list(tmp_path.glob("other*"))
