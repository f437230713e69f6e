import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from small_store import CLASSES

from compression.nets import Sample, confident, context
from src.core.errors import ConfigError
from src.deployment.compression.base import CompressedModel
from src.deployment.compression.onnx import (
    OnnxDynamicInt8,
    OnnxFloat16,
    OnnxFloat32,
    OnnxStaticInt8,
)
from src.deployment.runtimes.base import in_batches
from src.deployment.runtimes.onnx import OnnxRuntime

METHODS = {
    "float32": OnnxFloat32(),
    "static": OnnxStaticInt8(images=32),
    "dynamic": OnnxDynamicInt8(),
    "float16": OnnxFloat16(),
}
Compressed = Callable[[str], CompressedModel]


@pytest.fixture(scope="module")
def compressed(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Compressed:
    """Compresses `confident` by a method's name; the slow exporter is called once."""
    plain = context(confident(), sample.data, tmp_path_factory.mktemp("exported"))
    METHODS["float32"].compress(plain)

    @functools.cache
    def compress(name: str) -> CompressedModel:
        with pytest.MonkeyPatch.context() as patch:
            content = (plain.folder / "model.onnx").read_bytes()
            patch.setattr(OnnxRuntime, "export", lambda *_: content)
            folder = tmp_path_factory.mktemp(name)
            return METHODS[name].compress(context(confident(), sample.data, folder))

    return compress


def size(model: CompressedModel) -> int:
    assert model.file is not None
    return model.file.stat().st_size


@pytest.mark.parametrize(
    ("name", "precision", "share"),
    [("static", "int8", 0.45), ("dynamic", "int8", 0.45), ("float16", "float16", 0.65)],
)
def test_files_are_smaller_and_have_nearly_the_same_output(
    name: str, precision: str, share: float, compressed: Compressed, sample: Sample
) -> None:
    model = compressed(name)
    assert model.file is not None
    runtime = OnnxRuntime(model.file)
    assert sample.is_near(runtime)
    assert (runtime(sample.pictures[:1]) != sample.expected[:1]).any()
    assert runtime.description.precision == model.precision == precision
    assert runtime.description.classes == CLASSES
    assert [file.name for file in model.file.parent.iterdir()] == ["model.onnx"]
    # 25,000 weights of four bytes; the rest of the file, about 10 kB, stays as large.
    assert size(model) < share * size(compressed("float32"))


def initializers(model: CompressedModel) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(model.file).graph.initializer}


def test_static_weights_are_int8_per_channel_and_both_ends_stay_float(
    compressed: Compressed,
) -> None:
    model, tensors = compressed("static"), initializers(compressed("static"))
    shapes = {
        tuple(tensor.dims)
        for tensor in tensors.values()
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1
    }
    # 8 maps of 7 x 7 pixels; neither the convolution nor the 7 logits.
    assert shapes == {(64, 392), (8, 64)}
    scales = {tuple(tensor.dims) for name, tensor in tensors.items() if name.endswith("_scale")}
    assert {(64,), (8,)} <= scales
    first, dense, second, last = 8 * 3 * 9, 64 * 392, 8 * 64, 7 * 8
    share = (dense + second) / (first + dense + second + last)
    assert model.facts["layers"] == 2
    assert model.facts["share_of_weights"] == pytest.approx(share)
    assert (model.facts["calibration"], model.facts["calibration_images"]) == ("minmax", 32)


def test_dynamic_quantises_convolutions_only_if_asked(compressed: Compressed) -> None:
    model = compressed("dynamic")
    kinds = {tuple(tensor.dims): tensor.data_type for tensor in initializers(model).values()}
    assert kinds[8, 3, 3, 3] == TensorProto.FLOAT
    assert (model.facts["layers"], model.facts["quantised"]) == (3, "Gemm, MatMul")


def test_dynamic_output_does_not_depend_on_the_batch(
    compressed: Compressed, sample: Sample
) -> None:
    pictures = sample.pictures
    runtime = OnnxRuntime(compressed("dynamic").file)  # type: ignore[arg-type]
    assert runtime.batch == 1
    output = in_batches(runtime, pictures)
    np.testing.assert_array_equal(in_batches(runtime, pictures[::-1])[::-1], output)
    assert np.abs(runtime(pictures) - output).max() > 0  # as one batch it would
    assert OnnxRuntime(compressed("static").file).batch is None  # type: ignore[arg-type]


def test_a_net_with_no_layer_between_the_float_ones_is_refused(
    sample: Sample, tmp_path: Path
) -> None:
    method = OnnxStaticInt8(images=8, float_first=2, float_last=2)
    message = r"float_first: of 4 layers, 2 \+ 2 in float32 leave none"
    with pytest.raises(ConfigError, match=message):
        method.compress(context(confident(), sample.data, tmp_path))
    assert list(tmp_path.iterdir()) == []
