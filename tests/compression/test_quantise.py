import copy
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import around
import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from around import CLASSES
from onnx import TensorProto
from torch import nn

from src.core.config import check
from src.core.errors import ConfigError, UserError
from src.core.files import atomic_file
from src.data.module import DataModule
from src.data.synthetic import Synthetic
from src.deployment.compression import base
from src.deployment.compression import onnx as onnx_quantise
from src.deployment.compression.base import Bfloat16, CompressedModel
from src.deployment.compression.executorch import ExecutorchInt8, Graph, _converted
from src.deployment.compression.litert import LitertInt8
from src.deployment.compression.onnx import (
    OnnxDynamicInt8,
    OnnxFloat16,
    OnnxFloat32,
    OnnxStaticInt8,
)
from src.deployment.description import Description
from src.deployment.runtimes.base import in_batches
from src.deployment.runtimes.eager import CameraNet
from src.deployment.runtimes.executorch import ExecutorchRuntime
from src.deployment.runtimes.litert import LitertRuntime
from src.deployment.runtimes.onnx import OnnxRuntime
from src.models.custom import CustomCNN
from src.models.precision import cast
from src.models.svm import RadiomicsSVM
from src.training.checkpoint import load_weights, save_weights
from src.training.classifier import Classifier

SIZE = 16
DESCRIPTION = Description("run", "net", CLASSES, SIZE, "squash", "synthetic", "grouped", "none")
# Each rounding to 8 bits moves a value by at most 1/510 of its range; a few layers on, logits of a
# range of about 10 move by a tenth, and a probability by at most a quarter of that (softmax's
# steepest slope). On average it is far less.
NEAR = 0.025
Probabilities = npt.NDArray[np.float32]


def no_tuning(classifier: Classifier, epochs: int, lr: float) -> None:
    raise AssertionError("nothing was to be tuned")


def wrapped(net: nn.Module) -> Classifier:
    return around.classifier(net, SIZE, [0.5, 0.5, 0.5], [0.2, 0.2, 0.2])


def confident() -> Classifier:
    """A net of one convolution and three dense layers, untrained, whose answers differ from picture to picture."""
    torch.manual_seed(0)
    net = CustomCNN(SIZE, len(CLASSES), width=8, depth=1, dense=[64, 8])
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(3)
    return wrapped(net)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataModule:
    source = Synthetic(lesions=150, max_views=1, native_size=32, seed=0)
    cache = str(tmp_path_factory.mktemp("cache"))
    return DataModule(
        "synthetic", source, SIZE, "squash", "grouped", [0.6, 0.2, 0.2], 0, None, "error", 32, cache
    ).prepare()


@pytest.fixture(scope="module")
def pictures(data: DataModule) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(data.cache.images[data.rows("val")])


@pytest.fixture(scope="module")
def wanted(pictures: npt.NDArray[np.uint8]) -> Probabilities:
    with torch.inference_mode():
        found: Probabilities = CameraNet.of(confident())(torch.from_numpy(pictures)).numpy()
    assert found.std(axis=0).max() > 0.1  # else all quantised nets would be near
    return found


@pytest.fixture(scope="module")
def made(
    data: DataModule, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], CompressedModel]:
    methods = {
        "float32": OnnxFloat32(),
        "static": OnnxStaticInt8(images=32),
        "dynamic": OnnxDynamicInt8(),
        "float16": OnnxFloat16(),
    }

    exported = tmp_path_factory.mktemp("exported") / "model.onnx"
    OnnxFloat32().compress(confident(), data, DESCRIPTION, no_tuning, exported.parent)

    @functools.cache
    def make(name: str) -> CompressedModel:
        folder = tmp_path_factory.mktemp(name)
        with (
            pytest.MonkeyPatch.context() as patch
        ):  # the export, which takes longest, is the same for all
            patch.setattr(
                onnx_quantise.deployed,
                "write",
                lambda camera, about, path: shutil.copy(exported, path),
            )
            return methods[name].compress(confident(), data, DESCRIPTION, no_tuning, folder)

    return make


def size(found: CompressedModel) -> int:
    assert found.file is not None
    return found.file.stat().st_size


@pytest.mark.parametrize("name", ["static", "dynamic", "float16"])
def test_onnx_files_answer_nearly_as_before_say_what_they_are_and_are_smaller(
    name: str,
    made: Callable[[str], CompressedModel],
    pictures: npt.NDArray[np.uint8],
    wanted: Probabilities,
) -> None:
    found = made(name)
    assert found.file is not None
    runtime = OnnxRuntime(found.file)
    difference = np.abs(in_batches(runtime, pictures) - wanted).mean()
    assert 0 < difference < NEAR
    assert (
        runtime.description.precision
        == found.precision
        == ("float16" if name == "float16" else "int8")
    )
    assert runtime.description.classes == CLASSES
    assert [each.name for each in found.file.parent.iterdir()] == ["model.onnx"]
    # 25,000 weights of four bytes: the rest of the file, some 10 kB, does not shrink
    assert size(found) < (0.65 if name == "float16" else 0.45) * size(made("float32"))


def initializers(found: CompressedModel) -> dict[str, onnx.TensorProto]:
    return {each.name: each for each in onnx.load(found.file).graph.initializer}


def test_static_weights_are_int8_with_a_scale_a_channel_and_both_ends_stay_float(
    made: Callable[[str], CompressedModel],
) -> None:
    tensors = initializers(made("static"))
    shapes = {
        tuple(each.dims)
        for each in tensors.values()
        if each.data_type == TensorProto.INT8 and len(each.dims) > 1
    }
    assert shapes == {
        (64, 392),
        (8, 64),
    }  # 8 maps of 7 x 7 pixels; not the convolution, not the 7 logits
    scales = {
        tuple(each.dims) for name, each in tensors.items() if name.endswith("_scale") and each.dims
    }
    assert {(64,), (8,)} <= scales
    facts = made("static").facts
    assert facts["layers"] == 2
    weights = {"conv": 8 * 3 * 9, "dense": 64 * 392, "second": 8 * 64, "logits": 7 * 8}
    assert facts["share_of_weights"] == pytest.approx(
        (weights["dense"] + weights["second"]) / sum(weights.values())
    )
    assert facts["calibration_images"] == 32


def test_dynamic_leaves_convolutions_alone_unless_told(
    made: Callable[[str], CompressedModel],
) -> None:
    kinds = {tuple(each.dims): each.data_type for each in initializers(made("dynamic")).values()}
    assert kinds[8, 3, 3, 3] == TensorProto.FLOAT
    assert made("dynamic").facts["layers"] == 3
    assert "Conv" in OnnxDynamicInt8(convolutions=True).operators


def test_dynamic_answers_do_not_depend_on_their_neighbours(
    made: Callable[[str], CompressedModel], pictures: npt.NDArray[np.uint8]
) -> None:
    runtime = OnnxRuntime(made("dynamic").file)
    assert runtime.batch == 1
    found = in_batches(runtime, pictures)
    np.testing.assert_array_equal(in_batches(runtime, pictures[::-1])[::-1], found)
    assert np.abs(runtime(pictures) - found).max() > 0  # as one batch they would
    assert OnnxRuntime(made("static").file).batch is None


def test_a_net_with_nothing_left_between_its_ends_is_refused(
    data: DataModule, tmp_path: Path
) -> None:
    whole = OnnxStaticInt8(images=8, float_first=2, float_last=2)
    with pytest.raises(
        ConfigError, match=r"float_first: of 4 layers, 2 \+ 2 in float32 leave none"
    ):
        whole.compress(confident(), data, DESCRIPTION, no_tuning, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_layers_is_refused_by_all(data: DataModule, tmp_path: Path) -> None:
    svm = wrapped(RadiomicsSVM(len(CLASSES)))
    for method in (OnnxFloat32(), OnnxStaticInt8(), Bfloat16(), ExecutorchInt8(), LitertInt8()):
        with pytest.raises(UserError, match="net is no network"):
            method.compress(svm, data, DESCRIPTION, no_tuning, tmp_path)


def test_calibration_takes_training_images_of_each_class_its_share(data: DataModule) -> None:
    taken = base.pictures(data, 40, seed=1)
    rows = {data.cache.images[row].tobytes(): row for row in range(len(data.labels))}
    chosen = [rows[each.tobytes()] for each in taken]
    assert len(set(chosen)) == 40
    assert set(chosen) <= set(data.rows("train"))
    counts = np.bincount(data.labels[chosen], minlength=7)
    share = 40 * np.array(data.class_counts) / sum(data.class_counts)
    assert (np.abs(counts - share) < 1).all() or (counts[share < 1] == 1).all()
    assert (counts >= 1).all()
    assert (taken == base.pictures(data, 40, seed=1)).all()
    assert (taken != base.pictures(data, 40, seed=2)).any()


def test_strata_are_rounded_by_largest_remainders() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    chosen = base.stratified(labels, 9, np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == [5, 3, 1]  # shares of 5.4, 2.7 and 0.9
    assert len(base.stratified(labels, 500, np.random.default_rng(0))) == 100
    assert np.bincount(labels[base.stratified(labels, 1, np.random.default_rng(0))]).tolist() == [
        1,
        1,
        1,
    ]


def test_bfloat16_survives_its_checkpoint(
    data: DataModule, tmp_path: Path, pictures: npt.NDArray[np.uint8], wanted: Probabilities
) -> None:
    found = Bfloat16().compress(confident(), data, DESCRIPTION, no_tuning, tmp_path)
    assert found.file is None
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    with torch.inference_mode():
        logits = found.classifier(images)
    assert logits.dtype == torch.float32
    assert {each.dtype for each in found.classifier.net.parameters()} == {torch.bfloat16}
    assert np.abs(logits.softmax(1).numpy() - wanted).mean() < NEAR
    save_weights(found.classifier, tmp_path / "half.ckpt")
    save_weights(confident(), tmp_path / "whole.ckpt")
    assert (tmp_path / "half.ckpt").stat().st_size < 0.6 * (tmp_path / "whole.ckpt").stat().st_size
    again = wrapped(CustomCNN(SIZE, len(CLASSES), width=8, depth=1, dense=[64, 8]))
    cast(again.net)
    load_weights(again, tmp_path / "half.ckpt")
    with torch.inference_mode():
        assert torch.equal(again(images), logits)


class Awkward(nn.Module):
    """ReLU6 after a normalised convolution (epsilon not the default), padding, ReLU after pooling, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8, eps=0.1)
        self.two = nn.Conv2d(8, 8, 3, stride=2)
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(8 * 3 * 3, len(CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = nn.functional.relu6(self.norm(self.one(images)) * 4)
        found = nn.functional.relu(
            nn.functional.max_pool2d(self.two(nn.functional.pad(found, (0, 1, 0, 1))), 2)
        )
        found = self.drop(found.flatten(1))
        logits: torch.Tensor = self.out(found)
        return 2 * logits


def awkward() -> Classifier:
    torch.manual_seed(0)
    found = Awkward()
    nn.init.uniform_(found.norm.running_var, 0.01, 0.1)
    return wrapped(found)


def test_executorch_computes_what_the_tuned_net_says(
    data: DataModule, tmp_path: Path, pictures: npt.NDArray[np.uint8]
) -> None:
    before, given, asked = awkward(), awkward(), []
    own = given.net

    def tune(classifier: Classifier, epochs: int, lr: float) -> None:
        asked.append((epochs, lr))
        graph = classifier.net
        assert isinstance(graph, Graph)
        assert graph.training
        images = torch.from_numpy(pictures[:8]).permute(0, 3, 1, 2)
        classifier(images).square().mean().backward()
        gradients = [each.grad for each in graph.parameters() if each.dim() > 1]
        assert [each is not None and bool(each.abs().sum() > 0) for each in gradients] == [True] * 3
        assert [
            node.args[1:] for node in graph.graph.graph.nodes if "dropout" in str(node.target)
        ] == [(0.1, True)]
        seen = {name: each.clone() for name, each in graph.named_buffers()}
        classifier.eval()
        with torch.no_grad():
            assert torch.equal(classifier(images * 0), classifier(images * 0))  # no dropout
        assert all(
            torch.equal(each, seen[name])
            for name, each in graph.named_buffers()
            if "enabled" not in name
        )

    found = ExecutorchInt8(epochs=3, lr=0.01, images=32, float_last=0).compress(
        given, data, DESCRIPTION, tune, tmp_path
    )
    assert asked == [(3, 0.01)]
    assert found.classifier.net is own
    assert found.file == tmp_path / "model.pte"
    runtime = ExecutorchRuntime(found.file)
    assert runtime.description.precision == "int8"
    with torch.inference_mode():
        expected = CameraNet.of(before)(torch.from_numpy(pictures)).numpy()
    assert np.abs(in_batches(runtime, pictures) - expected).mean() < NEAR
    assert found.facts["layers"] == 3
    assert found.facts["share_of_weights"] == 1


def test_xnnpack_weights_are_int8_with_a_scale_a_channel(
    data: DataModule, pictures: npt.NDArray[np.uint8], wanted: Probabilities
) -> None:
    classifier = confident()
    seen = base.pictures(data, 32, 0)
    prepared = ExecutorchInt8(method="minmax")._prepared(classifier, seen)
    state = copy.deepcopy(prepared.state_dict())
    prepared.load_state_dict(state)  # as the chosen epoch's checkpoint is
    converted, facts = _converted(prepared)
    held = dict(converted.graph.named_buffers())
    assert {tuple(each.shape) for each in held.values() if each.dtype == torch.int8} == {
        (8, 3, 3, 3),
        (64, 392),
        (8, 64),
    }
    assert {tuple(each.shape) for name, each in held.items() if "scale" in name} == {(8,), (64,)}
    assert facts["layers"] == 3
    camera = CameraNet.of(classifier)
    camera.net = converted
    with torch.inference_mode():
        assert np.abs(camera(torch.from_numpy(pictures)).numpy() - wanted).mean() < NEAR


def test_litert_takes_uint8_gives_float_and_holds_int8(
    data: DataModule, tmp_path: Path, pictures: npt.NDArray[np.uint8], wanted: Probabilities
) -> None:
    found = LitertInt8(images=32).compress(confident(), data, DESCRIPTION, no_tuning, tmp_path)
    assert found.file is not None
    runtime = LitertRuntime(found.file)
    answers = in_batches(runtime, pictures)
    assert answers.dtype == np.float32
    assert np.abs(answers - wanted).mean() < NEAR
    assert runtime.description.precision == "int8"
    details = {
        tuple(each["shape"]): each
        for each in runtime._interpreter.get_tensor_details()
        if each["shape"].size > 1
    }
    assert details[64, 392]["dtype"] == np.int8
    assert len(details[64, 392]["quantization_parameters"]["scales"]) == 64
    assert found.facts["layers"] == 3


def test_a_draft_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_file(tmp_path / "model.onnx") as path:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(
        UserError, match="model.onnx: the model cannot be written there .*No space left"
    ):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "key", "value"),
    [
        ("onnx_quantise.OnnxStaticInt8", "method", "best"),
        ("onnx_quantise.OnnxStaticInt8", "images", 0),
        ("pt2e.ExecutorchInt8", "method", "entropy"),
        ("litert_quantise.LitertInt8", "method", "best"),
    ],
)
def test_unknown_methods_are_refused_by_their_key(target: str, key: str, value: object) -> None:
    config = {"compression": {"_target_": f"src.compression.{target}", key: value}}
    with pytest.raises(ConfigError, match=f"compression.{key}: .* but got"):
        check(config)
