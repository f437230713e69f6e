"""The contract of every format: parity with PyTorch, its description, errors in one line."""

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


@pytest.mark.parametrize(("kind", "net"), CASES)
def test_a_file_has_the_output_of_pytorch(
    kind: str,
    net: str,
    pictures: ImageBatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    camera = varied(NETS[net](), pictures)
    description = describe(TWO if "one logit" in net else SEVEN)
    path = tmp_path / f"model{FORMATS[kind].suffix}"
    FORMATS[kind].write(camera, description, path)
    runtime = open_file(path)
    probabilities = expected(camera, pictures)
    assert probabilities.std(axis=0).max() > 0.1  # else a constant output would pass
    for output in (in_batches(runtime, pictures), in_batches(runtime, pictures, 5)):
        np.testing.assert_allclose(output, probabilities, atol=TOLERANCE)
    assert runtime.description == description
    assert (runtime.name, runtime.batch) == (kind, FIXED_BATCH[kind])
    assert [*tmp_path.iterdir()] == [path]  # the weights are inside
    assert capfd.readouterr().out == ""
    weights = next(weight for weight in camera.net.parameters() if weight.dim() == 4)
    assert weights.is_contiguous(memory_format=torch.channels_last)  # the net is unchanged
    if kind == "executorch":
        with pytest.raises(UserError, match=r"^threads=2: .*same pool"):
            open_file(path, threads=2)


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
