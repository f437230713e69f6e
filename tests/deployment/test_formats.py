"""What every format has to keep: parity with PyTorch, its own description, errors in one line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from src.core.errors import UserError
from src.data.synthetic import Synthetic
from src.deployment.description import Decision, Description
from src.deployment.runtimes import executorch
from src.deployment.runtimes.base import ImageBatch, in_batches
from src.deployment.runtimes.eager import CameraNet
from src.deployment.runtimes.files import FORMATS, open_file
from src.models.backbone import Backbone
from src.models.custom import CustomCNN

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "ham10000"
SEVEN = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
TWO = ("benign", "malignant")
TOLERANCE = 1e-4  # what src.export allows; single precision, a dozen layers deep, outputs stretched
SIDE = 32


class Sum(nn.Module):
    """Two nets in one file: a slow converter is called once for both."""

    def __init__(self, *nets: nn.Module) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([net(images) for net in self.nets]).sum(dim=0)


def backbone(name: str, blocks: int | None = None) -> Backbone:
    return Backbone(name, SIDE, 7, weights="random", blocks=blocks)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "custom, batch norm, one logit": lambda: CustomCNN(
        SIDE, 1, width=4, depth=2, padding=1, head="gap", norm="batch"
    ),
    "resnet": lambda: backbone("test_resnet"),
    "efficientnet_lite0 and mobilenetv3_small, cut": lambda: Sum(
        backbone("tf_efficientnet_lite0", 2), backbone("mobilenetv3_small_100", 2)
    ),
    "vgg": lambda: backbone("vgg11"),
}


def lively(net: nn.Module, pictures: ImageBatch) -> CameraNet:
    """As if trained: no batch normalisation at its start, logits that tell images apart; channels last, as ours are."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    camera = CameraNet(net.to(memory_format=torch.channels_last), [0.7, 0.5, 0.5], [0.2, 0.2, 0.2])  # type: ignore[call-overload]
    for each in net.nets if isinstance(net, Sum) else [net]:
        last = [module for module in each.modules() if isinstance(module, nn.Linear)][-1]
        with torch.inference_mode():
            images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
            logits = each((images - camera.mean) * camera.scale)
        with torch.no_grad():
            deviation = logits.std(dim=0).clamp_min(1e-6)
            last.weight /= deviation[:, None]
            last.bias.copy_((last.bias - logits.mean(dim=0)) / deviation)
    return camera


def describe(camera: CameraNet, classes: tuple[str, ...]) -> Description:
    decision = Decision(classes[1], 0.3, "sensitivity >= 0.8 on val", 1.5)
    return Description(
        "3f2a",
        "tiny",
        classes,
        SIDE,
        "squash",
        "ham10000",
        "grouped",
        "a licence",
        decision=decision,
    )


def expected(camera: CameraNet, pictures: ImageBatch) -> np.ndarray:
    with torch.inference_mode():
        return camera(torch.from_numpy(pictures)).numpy()


@pytest.fixture(scope="module")
def pictures() -> ImageBatch:
    """Real images where they are there, drawn ones otherwise."""
    files = sorted(SHARED.glob("*_part_1/*.jpg"))[:12]
    if files:
        images = [Image.open(file) for file in files]
    else:
        source = Synthetic(lesions=14, native_size=48)
        manifest = source.manifest()
        images = [source.picture(manifest, row) for row in range(12)]
    return np.stack([np.asarray(image.convert("RGB").resize((SIDE, SIDE))) for image in images])


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_answers_as_pytorch(family: str, pictures: ImageBatch, tmp_path: Path) -> None:
    camera = lively(FAMILIES[family](), pictures)
    description = describe(camera, TWO if "one logit" in family else SEVEN)
    FORMATS["onnx"].write(camera, description, tmp_path / "model.onnx")
    runtime = open_file(tmp_path / "model.onnx")
    wanted = expected(camera, pictures)
    assert wanted.std(axis=0).max() > 0.1  # or nothing would be compared
    np.testing.assert_allclose(runtime(pictures), wanted, atol=TOLERANCE)
    np.testing.assert_allclose(in_batches(runtime, pictures, 5), wanted, atol=TOLERANCE)
    np.testing.assert_allclose(wanted.sum(axis=1), 1, atol=1e-6)
    assert runtime.description == description
    assert runtime.batch is None
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"]  # weights inside


@pytest.mark.parametrize("kind", ["executorch", "litert"])
def test_a_mobile_format_answers_as_pytorch(
    kind: str, pictures: ImageBatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    custom = CustomCNN(SIDE, 7, width=4, depth=1, dense=[8])
    other = backbone("tf_efficientnet_lite0", 2) if kind == "executorch" else backbone("vgg11")
    camera = lively(
        Sum(custom, other), pictures
    )  # both formats could go wrong on its channels-last memory
    made, description = FORMATS[kind], describe(camera, SEVEN)
    path = tmp_path / f"model{made.suffix}"
    made.write(camera, description, path)
    runtime = open_file(path)
    wanted = expected(camera, pictures)
    assert wanted.std(axis=0).max() > 0.1
    np.testing.assert_allclose(in_batches(runtime, pictures), wanted, atol=TOLERANCE)
    assert runtime.description == description
    assert (runtime.batch, runtime.name) == (1, kind)
    weights = next(custom.parameters())
    assert weights.is_contiguous(memory_format=torch.channels_last)  # the net itself was left alone
    assert capfd.readouterr().out == ""
    if kind == "executorch":
        _refuses_other_threads(path)


def _refuses_other_threads(path: Path) -> None:
    runtime = executorch.ExecutorchRuntime(path)
    with pytest.raises(UserError, match=r"^threads=2: .*same pool"):
        executorch.ExecutorchRuntime(path, threads=2)
    assert runtime.batch == 1


DECIDES = """
import json, sys

class Bare:  # nothing but Python itself, NumPy and ONNX Runtime
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("numpy", "onnxruntime"):
            raise ModuleNotFoundError(f"refused: {name}", name=name)

sys.meta_path.insert(0, Bare())
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
assert pictures.shape[1:] == (about["image_size"], about["image_size"], 3) and about["geometry"] == "squash"
(given,) = session.get_inputs()
(probabilities,) = session.run(None, {given.name: pictures})
column = about["classes"].index(about["decision"]["positive"])
print(json.dumps({
    "top": [about["classes"][label] for label in probabilities.argmax(axis=1)],
    "positive": (probabilities[:, column] >= about["decision"]["threshold"]).tolist(),
    "run": about["run_id"], "licence": about["licence"],
    "loaded": sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "src"}),
}))
"""


def test_onnx_decides_alike_where_neither_torch_nor_this_project_is(
    pictures: ImageBatch, tmp_path: Path
) -> None:
    camera = lively(CustomCNN(SIDE, 7, width=4, depth=1, dense=[8]), pictures)
    FORMATS["onnx"].write(camera, describe(camera, SEVEN), tmp_path / "model.onnx")
    np.save(tmp_path / "pictures.npy", pictures)
    (empty := tmp_path / "empty").mkdir()
    command = [
        sys.executable,
        "-I",
        "-c",
        DECIDES,
        str(tmp_path / "model.onnx"),
        str(tmp_path / "pictures.npy"),
    ]
    done = subprocess.run(
        command, cwd=empty, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    said, wanted = json.loads(done.stdout), expected(camera, pictures)
    assert said["top"] == [SEVEN[label] for label in wanted.argmax(axis=1)]
    assert said["positive"] == (wanted[:, 1] >= 0.3).tolist()
    assert len(set(said["top"])) > 1
    assert (said["run"], said["licence"], said["loaded"]) == ("3f2a", "a licence", [])


@pytest.mark.parametrize("suffix", [".onnx", ".pte", ".tflite"])
def test_a_damaged_file_is_told_in_one_line(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"no model")
    with pytest.raises(UserError, match=f"^{path}: .* cannot load it") as told:
        open_file(path)
    assert "\n" not in str(told.value)


def test_a_file_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.bin: .*known are \.onnx, \.pte, \.tflite"):
        open_file(tmp_path / "model.bin")
    with pytest.raises(UserError, match=r"model\.onnx: no such file"):
        open_file(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("kind", "hidden"),
    [("onnx", "onnxscript"), ("executorch", "executorch"), ("litert", "litert_torch")],
)
def test_a_missing_extra_is_named_with_its_command(
    kind: str, hidden: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, hidden, None)
    for name in [name for name in sys.modules if name.startswith(f"{hidden}.")]:
        monkeypatch.delitem(sys.modules, name)
    told = rf"{hidden}.*pip install -e '\.\[{kind}\]'"
    with pytest.raises(UserError, match=told):
        FORMATS[kind].check_installed()
    camera = CameraNet(CustomCNN(SIDE, 7, width=4, depth=1), [0.5] * 3, [0.2] * 3)
    with pytest.raises(UserError, match=told):
        FORMATS[kind].write(camera, describe(camera, SEVEN), tmp_path / "model")
    assert not list(tmp_path.iterdir())
