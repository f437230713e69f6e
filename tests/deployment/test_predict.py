"""Predictions: arithmetic, settings, and `python -m src.predict` with files, runs and names."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from scipy.special import softmax
from small_store import SmallStore, write_run

from src import predict as entry
from src.core.cli import ROOT
from src.core.errors import ConfigError
from src.data.cache import square
from src.deployment import predict, trained
from src.deployment.description import KEY, RESEARCH, Decision, Description
from src.deployment.predict import NO_NUMBER, PredictSettings, predictions_frame
from src.deployment.runtimes.formats import open_file
from src.models.custom import CustomCNN
from src.tracking import model_registry, read
from src.tracking.run import Run
from src.tracking.store import Store, TrackingError

CLASSES = ("bkl", "mel", "nv")
CODES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")  # of the recorded runs
MEL, SIZE = CODES.index("mel"), 16
NAMES = ["a.png", "b.png", "c.png"]
P = np.array([[0.2, 0.3, 0.5], [0.1, 0.125, 0.775], [0.0, 1.0, 0.0], [0.4, 0.1, 0.5]], np.float32)
Typed = Callable[..., tuple[int, str]]


@dataclass(frozen=True)
class Trial:
    """A trial of two seeds in a store."""

    store: Store
    seeds: tuple[str, str]
    run_id: str

    def arguments(self, model: str, *more: str) -> list[str]:
        return [f"model={model}", "input=pictures", f"tracking.folder={self.store.folder}", *more]

    def probabilities(self, run_id: str, paths: list[Path], geometry: str = "") -> np.ndarray:
        """Of a run's weights, for the squares of pictures."""
        path = read.artifact(self.store, run_id, "checkpoint/best.ckpt")
        state = torch.load(path, weights_only=True)["state_dict"]
        net = CustomCNN(image_size=SIZE, outputs=len(CODES), width=4, depth=1, dense=[8]).eval()
        net.load_state_dict({name.removeprefix("net."): item for name, item in state.items()})
        config = OmegaConf.load(read.artifact(self.store, run_id, "config.yaml"))
        geometry = geometry or config.data.geometry
        images = squares(paths, geometry)
        normal = (images / 255 - np.array(config.model.mean)) / np.array(config.model.std)
        with torch.no_grad():
            logits = net(torch.from_numpy(normal.transpose(0, 3, 1, 2)).float())
        return softmax(logits.double().numpy(), axis=1)


@pytest.fixture(scope="module")
def trial(recorded: SmallStore) -> Trial:
    """A test that adds a run deletes it."""
    tags = {"kind": "trial", "model": "custom", "data": "synthetic"}
    with Run.start(recorded.store, "custom", tags) as run:
        pass
    seeds = [write_run(recorded.store, recorded.folder, seed, parent=run.id) for seed in (0, 1)]
    return Trial(recorded.store, (seeds[0], seeds[1]), run.id)


@pytest.fixture(scope="module")
def exported(recorded: SmallStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded run's ONNX file, with a decision that divides the pictures of `write`."""
    path, runtime = tmp_path_factory.mktemp("exported") / "tiny.onnx", open_file(recorded.onnx)
    images = map(Image.open, write(path.parent, [f"{number}.png" for number in range(9)]))
    probability = runtime(np.stack([square(image, SIZE, "pad+shades_of_grey") for image in images]))
    threshold = round(float(np.sort(probability[:, MEL])[3:5].mean()), 4)
    decision = Decision("mel", threshold, "sensitivity >= 0.8 on val", temperature=1.7)
    about = replace(runtime.description, geometry="pad+shades_of_grey", decision=decision)
    model = onnx.load(recorded.onnx)
    onnx.helper.set_model_props(model, {KEY: about.to_json()})
    onnx.save(model, path)
    return path


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


def write(folder: Path, names: list[str]) -> list[Path]:
    """Different pictures."""
    for number, name in enumerate(names):
        coarse = np.random.default_rng(number).integers(0, 256, (5, 5, 3), np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(coarse).resize((40 + number % 7, 30), Image.Resampling.BICUBIC)
        picture.save(folder / name)
    return [folder / name for name in names]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return write(tmp_path / "pictures", NAMES)


def squares(paths: list[Path], geometry: str = "squash") -> np.ndarray:
    """Pictures as a net gets them."""
    images = [Image.open(path).convert("RGB") for path in paths]
    return np.stack([square(image, SIZE, geometry) for image in images])


def matrix(frame: pd.DataFrame, kind: str = "p", classes: tuple[str, ...] = CODES) -> np.ndarray:
    return frame[[f"{kind}/{name}" for name in classes]].to_numpy()


def frame_of(
    probability: np.ndarray, decision: Decision | None = None, unsure_below: float | None = None
) -> pd.DataFrame:
    origin = ("3f2a", "net", CLASSES, SIZE, "squash", "x", "grouped", "free")
    return predictions_frame(probability, Description(*origin, decision=decision), unsure_below)


def threshold_in(output: str) -> float:
    return float(re.findall(r"p\(mel\) = ([\d.e-]+)", output)[0])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_calibrated_is_the_softmax_of_logarithms_over_the_temperature(temperature: float) -> None:
    some = P[[0, 1, 3]]
    decision = Decision("mel", 0.125, "sensitivity >= 0.8", temperature)
    rows = frame_of(some, decision)
    expected = softmax(np.log(some.astype(float)) / temperature, axis=1)
    np.testing.assert_allclose(matrix(rows, "calibrated", CLASSES), expected, rtol=1e-12)
    np.testing.assert_allclose(rows["confidence"], expected[:, 2], rtol=1e-12)


def test_the_decision_uses_the_raw_probability_from_the_threshold_on() -> None:
    # 0.125 is exact in single precision
    for threshold, second in ((0.125, "mel"), (float(np.nextafter(0.125, 1)), "not mel")):
        rows = frame_of(P, Decision("mel", threshold, "", 5.0))
        assert rows["decision"].tolist() == ["mel", second, "mel", "not mel"]
        assert rows["top"].tolist() == ["nv", "nv", "mel", "nv"]  # independent of the decision


def test_unsure_is_below_the_calibrated_confidence() -> None:
    for limit, expected in ((0.5, [False] * 4), (0.51, [True, False, False, True])):
        assert frame_of(P, None, limit)["unsure"].tolist() == expected
    calibrated = softmax(np.log(P[1].astype(float)) / 5)[2]
    assert P[1, 2] > calibrated + 0.01
    rows = frame_of(P[1:2], Decision("mel", 0.5, "", 5.0), calibrated + 0.01)
    assert rows["unsure"].tolist() == [True]


def test_without_a_decision_nothing_is_decided_or_calibrated() -> None:
    rows = frame_of(P)
    assert rows[["decision", "unsure"]].isna().all(axis=None)
    assert rows["confidence"].tolist() == P.max(axis=1).tolist()
    equal = frame_of(np.array([[0.4, 0.4, 0.2]], np.float32))
    assert equal["top"].tolist() == ["bkl"]  # the first of equal ones


def test_a_value_that_is_not_a_number_is_a_problem() -> None:
    broken = np.array([[np.nan, np.nan, np.nan], [0.2, 0.3, 0.5]], np.float32)
    rows = frame_of(broken, Decision("mel", 0.1, "", 2.0), 0.9)
    assert rows["problem"].tolist() == [NO_NUMBER, ""]
    assert rows.drop(columns="problem").iloc[0].isna().all()
    assert rows.loc[1, ["top", "decision", "unsure"]].tolist() == ["nv", "mel", True]


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
    exported: Path, recorded: SmallStore, trial: Trial, typed: Typed, tmp_path: Path
) -> None:
    names = [f"{number:02d}.png" for number in range(9)]
    paths = write(tmp_path / "pictures", names)
    paths[3].write_text("a text")
    readable = paths[:3] + paths[4:]
    expected = trial.probabilities(recorded.run_id, readable, "pad+shades_of_grey")
    calibrated = softmax(np.log(expected) / 1.7, axis=1)
    confidence, decision = calibrated.max(axis=1), open_file(exported).description.decision
    assert decision is not None
    limit = np.sort(confidence)[3:5].mean()
    options = ("input=pictures", f"unsure_below={limit}", "batch_size=3")
    status, output = typed(f"model={exported}", *options)
    assert status == 1, output
    assert " ".join(output.split()).count(RESEARCH) == 1
    assert max(map(len, output.splitlines())) <= 100
    assert "not an image" in output
    assert threshold_in(output) == decision.threshold
    rows = pd.read_csv(
        tmp_path / "reports" / "predictions.csv", keep_default_na=False, na_values=[""]
    )
    assert list(rows) == [
        *("image", *(f"{kind}/{name}" for kind in ("p", "calibrated") for name in CODES)),
        *("top", "confidence", "decision", "unsure", "problem"),
    ]
    assert rows["image"].tolist() == names
    assert rows.pop("problem").fillna("").tolist() == [*[""] * 3, "not an image", *[""] * 5]
    assert rows.loc[3].drop("image").isna().all()
    rows = rows.drop(index=3)
    np.testing.assert_allclose(matrix(rows), expected, atol=1e-6)
    np.testing.assert_allclose(matrix(rows, "calibrated"), calibrated, atol=1e-6)
    assert rows["top"].tolist() == [CODES[label] for label in expected.argmax(axis=1)]
    np.testing.assert_allclose(rows["confidence"], confidence, atol=1e-6)
    decisions = np.where(expected[:, MEL] >= decision.threshold, "mel", "not mel")
    assert rows["decision"].tolist() == decisions.tolist()
    assert rows["unsure"].astype(bool).tolist() == (confidence < limit).tolist()
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
    exported: Path, recorded: SmallStore, trial: Trial, typed: Typed, tmp_path: Path
) -> None:
    paths = write(tmp_path, ["it.png"])
    status, output = typed(f"model={exported}", "input=it.png", "out=null")
    assert status == 0, output
    assert (
        f"{trial.probabilities(recorded.run_id, paths, 'pad+shades_of_grey')[0, MEL]:.4f}" in output
    )
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
    files = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert files == ["it.png", "out.csv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("input=it.png", "model: name a run, a registered model or an exported file"),
        ("model=MODEL", "input: name a picture, a folder or a CSV"),
        ("model=MODEL input=nosuch", "input: nosuch is not there"),
        ("model=MODEL input=empty", "input: empty has no picture in it or below it"),
        ("model=MODEL input=list.csv", "list.csv: has no column 'path' (or 'image')"),
        ("model=MODEL input=text.jpg", "text.jpg: not an image; name a picture"),
        ("model=MODEL input=list.csv out=./list.csv", "out: ./list.csv is the input"),
        ("model=MODEL input=it.png out=text.jpg/out.csv", "cannot be written there"),
        ("model=MODEL input=it.png unsure_below=70", "unsure_below: input should be less"),
        ("model=MODEL input=it.png gradcam=true", "is an exported file, without gradients"),
        ("model=MODEL input=it.png gradcam=true out=text.csv", "text_gradcam is a file"),
        ("model=nosuch.onnx input=it.png", "nosuch.onnx: no such file"),
        ("model=text.jpg input=it.png", "text.jpg: unknown suffix of a model file"),
        ("model=3f2a input=it.png", "no run store is there"),
    ],
)
def test_bad_input_is_one_line(
    arguments: str, message: str, exported: Path, typed: Typed, tmp_path: Path
) -> None:
    write(tmp_path, ["it.png"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("file\nit.png\n")
    for name in ("text.jpg", "text_gradcam"):
        (tmp_path / name).write_text("a text")
    status, output = typed(*arguments.replace("MODEL", str(exported)).split())
    assert status == 2
    assert message in output.splitlines()[-1]
    assert "Traceback" not in output
    assert not (tmp_path / "reports" / "predictions.csv").exists()
    assert not [path for path in tmp_path.glob("*_gradcam") if path.is_dir()]


def test_an_onnx_file_decides_by_its_offsets_without_torch_and_mlflow(
    exported: Path, tmp_path: Path
) -> None:
    write(tmp_path / "pictures", [f"{number}.png" for number in range(9)])
    offsets = (3.0, -2.0, 0.5, 1.0, 2.0, -1.0, -3.5)
    about = replace(open_file(exported).description, rule="balanced", offsets=offsets)
    model = onnx.load(exported)
    onnx.helper.set_model_props(model, {KEY: about.to_json()})
    onnx.save(model, file := tmp_path / "by_rule.onnx")
    arguments = [f"model={file}", f"input={tmp_path}/pictures", f"out={tmp_path}/out.csv"]
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
    assert "by the rule balanced, log p plus akiec +3.00, bcc -2.00" in process.stdout
    rows = pd.read_csv(tmp_path / "out.csv")
    by_hand = (np.log(matrix(rows)) + offsets).argmax(axis=1)
    assert rows["top"].tolist() == [CODES[label] for label in by_hand]
    assert (by_hand != matrix(rows).argmax(axis=1)).any()
    taken = matrix(rows, "calibrated")[np.arange(9), by_hand]
    np.testing.assert_allclose(rows["confidence"], taken, rtol=1e-6)


def test_a_run_by_the_start_of_its_id(
    trial: Trial, typed: Typed, pictures: list[Path], tmp_path: Path
) -> None:
    run_id = trial.seeds[0]
    status, output = typed(*trial.arguments(run_id[:10]))
    assert status == 0, output
    rows = pd.read_csv(tmp_path / "reports" / "predictions.csv")
    expected = trial.probabilities(run_id, pictures)
    np.testing.assert_allclose(matrix(rows), expected, atol=1e-6)
    decisions = np.where(expected[:, MEL] >= threshold_in(output), "mel", "not mel")
    assert rows["decision"].tolist() == decisions.tolist()


def test_the_seeds_of_a_trial_are_averaged_with_a_threshold_for_the_mean(
    trial: Trial, typed: Typed, pictures: list[Path], tmp_path: Path
) -> None:
    status, output = typed(*trial.arguments(trial.run_id))
    assert status == 0, output
    assert "2 seeds), mean of their probabilities" in " ".join(output.split())
    rows = pd.read_csv(tmp_path / "reports" / "predictions.csv")
    nets = [trial.probabilities(run_id, pictures) for run_id in trial.seeds]
    np.testing.assert_allclose(matrix(rows), np.mean(nets, axis=0), atol=1e-6)
    val = [read.predictions(trial.store, run_id, "val") for run_id in trial.seeds]
    mean = (val[0]["p/mel"] + val[1]["p/mel"]).to_numpy() / 2
    melanoma, threshold = mean[val[0]["label"] == "mel"], threshold_in(output)
    assert (melanoma >= threshold).mean() >= 0.8
    assert (melanoma > melanoma[melanoma >= threshold].min()).mean() < 0.8  # a stricter one fails


def test_a_registered_model(
    trial: Trial, typed: Typed, pictures: list[Path], tmp_path: Path
) -> None:
    client = trial.store.client
    client.create_registered_model("skin")
    for run_id in trial.seeds:
        client.create_model_version("skin", f"runs:/{run_id}/model", run_id)
    client.set_registered_model_alias("skin", "champion", "1")
    for name, number in (("skin", 2), ("skin/1", 1), ("skin@champion", 1)):
        version = model_registry.resolve(trial.store, name)
        expected = ("skin", number, trial.seeds[number - 1])
        assert (version.name, version.number, version.run_id) == expected
    status, output = typed(*trial.arguments("skin@champion"))
    assert status == 0, output
    assert "skin version 1, custom" in output
    rows = pd.read_csv(tmp_path / "reports" / "predictions.csv")
    probability = trial.probabilities(trial.seeds[0], pictures)
    np.testing.assert_allclose(matrix(rows), probability, atol=1e-6)
    for name in ("skin@nosuch", "skin/7", "skin/seven", "a:b"):
        with pytest.raises(TrackingError, match=name):
            model_registry.resolve(trial.store, name)
    status, output = typed(*trial.arguments("nosuch"))
    assert status == 2
    last = output.splitlines()[-1]
    assert last.startswith("error: model: nosuch: no such registered model; there are ")
    assert last.endswith("no run id starts like this, and no exported file has this name")


@pytest.fixture(scope="module")
def logged(trial: Trial) -> str:
    """The URI of the model that is logged for the first seed of the trial."""
    run_id, uri = trained.log_model(trial.store, trial.run_id)
    assert run_id == trial.seeds[0]
    return uri


def test_a_logged_model_answers_as_the_command_does(
    trial: Trial,
    logged: str,
    typed: Typed,
    pictures: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status, output = typed(*trial.arguments(trial.seeds[0]))
    assert status == 0, output
    expected = matrix(pd.read_csv(tmp_path / "reports" / "predictions.csv"))
    images = squares(pictures)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trial.store.uri)
    for uri in (logged, f"runs:/{trial.seeds[0]}/model"):
        model = mlflow.pyfunc.load_model(uri)
        answer = model.predict(images)
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected, atol=1e-6)
    example = model.input_example
    assert (example.shape, example.dtype) == ((1, SIZE, SIZE, 3), np.uint8)
    assert model.predict(example).shape == (1, len(CODES))
    assert model.metadata.metadata["classes"] == list(CODES)
    with pytest.raises(mlflow.MlflowException, match="uint8"):
        model.predict(images / np.float32(255))
    assert trained.log_model(trial.store, trial.seeds[0])[1] == logged  # not logged twice
    [output] = trial.store.client.get_run(trial.seeds[0]).outputs.model_outputs
    assert f"models:/{output.model_id}" == logged


def test_a_compressed_model_is_logged_as_its_file(
    recorded: SmallStore,
    compressed: str,
    pictures: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = trained.log_model(recorded.store, compressed)[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", recorded.store.uri)
    answer = mlflow.pyfunc.load_model(uri).predict(squares(pictures))
    np.testing.assert_allclose(answer, open_file(recorded.onnx)(squares(pictures)), atol=1e-6)


@pytest.mark.slow
def test_a_server_of_mlflow_answers_as_the_net(
    trial: Trial, logged: str, pictures: list[Path], free_port: int, wait_for: Any, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["-m", f"runs:/{trial.seeds[0]}/model", "-h", "127.0.0.1", "-p", str(free_port)]
    # MLflow calls uvicorn by name
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    variables |= {"MLFLOW_TRACKING_URI": trial.store.uri}
    log, address = tmp_path / "log.txt", f"http://127.0.0.1:{free_port}"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=variables, stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_for(f"{address}/ping", process, log)
        images = squares(pictures)
        body = json.dumps({"inputs": images.tolist()}).encode()
        request = urllib.request.Request(f"{address}/invocations", body)
        request.add_header("Content-Type", "application/json")
        answer = json.load(urllib.request.urlopen(request, timeout=60))["predictions"]
    finally:
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(process.pid, signal.SIGTERM)  # the server is a process of its own
        process.wait(timeout=30)
    expected = trial.probabilities(trial.seeds[0], pictures)
    np.testing.assert_allclose(answer, expected, atol=1e-6)


def test_a_run_without_a_checkpoint_is_not_logged(recorded: SmallStore) -> None:
    with Run.start(recorded.store.open(), "bare", {"kind": "run"}) as run:
        pass
    with pytest.raises(TrackingError, match=r"^run \w+ has no artifact 'checkpoint'[^\n]*$"):
        trained.log_model(recorded.store, run.id)
    recorded.store.client.delete_run(run.id)


def test_a_name_that_is_also_an_id_is_refused(trial: Trial) -> None:
    short, (first, second) = trial.seeds[0][:6], trial.seeds
    client = trial.store.client
    client.create_registered_model(short)
    client.create_model_version(short, f"runs:/{second}/model", second)

    def run_of(name: str) -> str:
        return predict.find(name, lambda: trial.store, 1).runtimes[0].description.run_id

    problem = f"{short} is a registered model, and a run's id starts so too"
    with pytest.raises(ConfigError, match=problem):
        run_of(short)
    assert (run_of(f"{short}/1"), run_of(first)) == (second, first)
    client.delete_registered_model(short)


def test_the_precision_of_a_trial_is_that_of_its_nets(trial: Trial) -> None:
    for run_id in trial.seeds:
        trial.store.client.set_tag(run_id, "precision", "bfloat16")
    model = predict.find(trial.run_id, lambda: trial.store, 1)
    assert model.description.precision == "bfloat16"
    for run_id in trial.seeds:
        trial.store.client.delete_tag(run_id, "precision")


def test_a_compressed_run_that_is_a_file(
    recorded: SmallStore,
    compressed: str,
    trial: Trial,
    typed: Typed,
    pictures: list[Path],
    tmp_path: Path,
) -> None:
    for name, out in ((compressed, "predictions.csv"), (str(recorded.onnx), "file.csv")):
        status, output = typed(*trial.arguments(name, f"out={out}"))
        assert status == 0, output
    rows, file = (pd.read_csv(tmp_path / name) for name in ("predictions.csv", "file.csv"))
    pd.testing.assert_frame_equal(rows, file)
    status, output = typed(*trial.arguments(compressed, "gradcam=true"))
    assert status == 2
    assert "is an exported file, without gradients" in output.splitlines()[-1]


def test_training_in_half_precision_is_noted(
    trial: Trial, typed: Typed, pictures: list[Path]
) -> None:
    store, run_id, note = trial.store, trial.seeds[0], "bf16-mixed precision"
    assert note not in " ".join(typed(*trial.arguments(run_id))[1].split())
    with Run.start(store, "half", {"kind": "run", "model": "custom", "data": "synthetic"}) as run:
        config = OmegaConf.load(read.artifact(store, run_id, "config.yaml"))
        config.trainer.precision = "bf16-mixed"
        run.text(OmegaConf.to_yaml(config), "config.yaml")
        run.artifact(read.artifact(store, run_id, "checkpoint/best.ckpt"), "checkpoint")
        run.table(read.predictions(store, run_id, "val"), "predictions/val.csv")
    status, output = typed(*trial.arguments(run.id))
    assert status == 0, output
    assert note in " ".join(output.split())
    store.client.delete_run(run.id)


@pytest.mark.parametrize("model", ["run", "trial"])
def test_gradcam_draws_each_readable_picture(
    trial: Trial, typed: Typed, pictures: list[Path], tmp_path: Path, model: str
) -> None:
    pictures[0].with_name("broken.png").write_text("a text")
    name = trial.run_id if model == "trial" else trial.seeds[1]
    status, output = typed(*trial.arguments(name, "gradcam=mel", "out=out.csv"))
    assert status == 1, output
    drawn = sorted((tmp_path / "out_gradcam").iterdir())
    names = ["000001_a_mel.png", "000002_b_mel.png", "000004_c_mel.png"]
    assert [path.name for path in drawn] == names
    for path in drawn:
        assert np.asarray(Image.open(path).convert("L")).std() > 10  # it is not empty
    assert f"look: {tmp_path / 'out_gradcam'}" in output
    status, output = typed(*trial.arguments(name, "gradcam=melanoma", "out=other.csv"))
    assert status == 2
    assert "gradcam: must be true, false or one of akiec, bcc" in output.splitlines()[-1]
    assert not list(tmp_path.glob("other*"))
