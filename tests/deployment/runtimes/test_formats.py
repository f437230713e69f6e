"""The contract of every format: parity with PyTorch, its description, errors in one line."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from runtimes.nets import (
    SEVEN,
    SIDE,
    TOLERANCE,
    TWO,
    NetSum,
    backbone,
    describe,
    expected,
    varied,
)
from src.core.errors import UserError
from src.deployment.runtimes.base import ImageBatch, in_batches
from src.deployment.runtimes.eager import CameraNet
from src.deployment.runtimes.formats import FORMATS, open_file
from src.models.custom import CustomCNN


def small() -> CustomCNN:
    return CustomCNN(SIDE, 7, width=4, depth=1, dense=[8])


NETS: dict[str, Callable[[], nn.Module]] = {
    "custom, batch norm, one logit": lambda: CustomCNN(
        SIDE, 1, width=4, depth=2, padding=1, head="gap", norm="batch"
    ),
    "resnet": lambda: backbone("test_resnet"),
    "vgg": lambda: backbone("vgg11"),
    "lite0 and mobilenetv3, cut": lambda: NetSum(
        backbone("tf_efficientnet_lite0", 2), backbone("mobilenetv3_small_100", 2)
    ),
    # Both mobile formats have gone wrong on weights in channels-last memory.
    "custom and lite0": lambda: NetSum(small(), backbone("tf_efficientnet_lite0", 2)),
    "custom and vgg": lambda: NetSum(small(), backbone("vgg11")),
}
CASES = [  # the mobile exporters are slow: one net for each
    *(("onnx", net) for net in [*NETS][:4]),
    ("executorch", "custom and lite0"),
    ("litert", "custom and vgg"),
]
HIDDEN = {"onnx": "onnxscript", "executorch": "executorch", "litert": "litert_torch"}
FIXED_BATCH = {"onnx": None, "executorch": 1, "litert": 1}


def test_every_format_is_tested() -> None:
    assert [*FORMATS] == [*FIXED_BATCH] == [*dict(CASES)] == [*HIDDEN]


def test_the_formats_are_listed_without_heavy_imports(root: Path) -> None:
    """An ONNX file is used without torch and MLflow, see benchmarks/startup.py."""
    program = "import sys, src.deployment.runtimes.formats; print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    heavy = {"torch", "mlflow", "pandas", "hydra", "onnxruntime", "onnx", "pydantic"}
    assert not heavy & set(ended.stdout.split())


@pytest.fixture(scope="module")
def exported(
    pictures: ImageBatch, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[CameraNet, Path]]:
    """A net and its file; the slow exporters are called once for each pair."""

    @functools.cache
    def export(kind: str, net: str) -> tuple[CameraNet, Path]:
        camera = varied(NETS[net](), pictures)
        path = tmp_path_factory.mktemp(kind) / f"model{FORMATS[kind].suffix}"
        FORMATS[kind].write(camera, describe(classes(net)), path)
        return camera, path

    return export


def classes(net: str) -> tuple[str, ...]:
    return TWO if "one logit" in net else SEVEN


@pytest.mark.parametrize(("kind", "net"), CASES)
def test_a_file_has_the_output_of_pytorch(
    kind: str,
    net: str,
    exported: Callable[[str, str], tuple[CameraNet, Path]],
    pictures: ImageBatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    camera, path = exported(kind, net)
    runtime = open_file(path)
    probabilities = expected(camera, pictures)
    assert probabilities.std(axis=0).max() > 0.1  # else a constant output would pass
    for output in (in_batches(runtime, pictures), in_batches(runtime, pictures, 5)):
        np.testing.assert_allclose(output, probabilities, atol=TOLERANCE)
    assert runtime.description == describe(classes(net))
    assert (runtime.name, runtime.batch) == (kind, FIXED_BATCH[kind])
    assert [*path.parent.iterdir()] == [path]  # the weights are inside
    assert capfd.readouterr().out == ""
    weights = next(weight for weight in camera.net.parameters() if weight.dim() == 4)
    assert weights.is_contiguous(memory_format=torch.channels_last)  # the net is unchanged
    if kind == "executorch":
        with pytest.raises(UserError, match=r"^threads=2: .*same pool"):
            open_file(path, threads=2)


PROGRAM = """
import json, sys

class OnlyNumpyAndOnnxRuntime:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("numpy", "onnxruntime"):
            raise ModuleNotFoundError(f"refused: {name}", name=name)

sys.meta_path.insert(0, OnlyNumpyAndOnnxRuntime())
for name in ("torch", "src"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        pass
    else:
        sys.exit(f"{name} could be imported")

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["paretoderm"])
pictures = np.load(sys.argv[2])
assert pictures.shape[1:] == (about["image_size"], about["image_size"], 3)
assert about["geometry"] == "squash"
(first,) = session.get_inputs()
(probabilities,) = session.run(None, {first.name: pictures})
column = about["classes"].index(about["decision"]["positive"])
print(json.dumps({
    "top": [about["classes"][label] for label in probabilities.argmax(axis=1)],
    "positive": (probabilities[:, column] >= about["decision"]["threshold"]).tolist(),
    "run": about["run_id"], "licence": about["licence"],
    "loaded": sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "src"}),
}))
"""


def test_an_onnx_file_decides_alike_where_only_numpy_and_onnx_runtime_are_installed(
    exported: Callable[[str, str], tuple[CameraNet, Path]], pictures: ImageBatch, tmp_path: Path
) -> None:
    camera, path = exported("onnx", "resnet")
    np.save(tmp_path / "pictures.npy", pictures)
    ended = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, str(path), "pictures.npy"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    output, probabilities = json.loads(ended.stdout), expected(camera, pictures)
    assert output["top"] == [SEVEN[label] for label in probabilities.argmax(axis=1)]
    assert output["positive"] == (probabilities[:, 1] >= 0.3).tolist()
    assert len(set(output["top"])) > 1
    assert (output["run"], output["licence"], output["loaded"]) == ("3f2a", "a licence", [])


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_file_ends_in_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{FORMATS[kind].suffix}"
    with pytest.raises(UserError, match="no such file"):
        open_file(path)
    path.write_bytes(b"no model")
    with pytest.raises(UserError, match=f"^{path}: .* cannot load it") as caught:
        open_file(path)
    assert "\n" not in str(caught.value)


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.bin: .*known are \.onnx, \.pte, \.tflite"):
        open_file(tmp_path / "model.bin")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_missing_extra_is_named_with_its_command(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = HIDDEN[kind]
    monkeypatch.setitem(sys.modules, hidden, None)
    for name in [name for name in sys.modules if name.startswith(f"{hidden}.")]:
        monkeypatch.delitem(sys.modules, name)
    message = rf"{hidden}.*pip install -e '\.\[{kind}\]'"
    with pytest.raises(UserError, match=message):
        FORMATS[kind].check_installed()
    camera = CameraNet(small(), [0.5] * 3, [0.2] * 3)
    with pytest.raises(UserError, match=message):
        FORMATS[kind].write(camera, describe(SEVEN), tmp_path / "model")
    assert not list(tmp_path.iterdir())
