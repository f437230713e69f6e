"""Smaller numbers in ONNX files, by ONNX Runtime's own quantiser and converter."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Interval

from src.core.errors import ConfigError, UserError
from src.core.files import atomic_file
from src.data.module import DataModule
from src.deployment.compression import base
from src.deployment.compression.base import CompressedModel, Tune, require_network
from src.deployment.description import KEY, Description
from src.deployment.runtimes import onnx as deployed
from src.deployment.runtimes.base import ImageBatch, needs, quiet
from src.deployment.runtimes.eager import CameraNet
from src.training.classifier import Classifier

if TYPE_CHECKING:
    from onnx import ModelProto


FILE = "model.onnx"
BATCH = 32  # pictures of which calibration holds all values at once
WEIGHTED = ("Conv", "Gemm", "MatMul")
# Activation functions, which the layer before them then absorbs, and sums, which then take int8.
# Pooling is left out, as the memory layout would change around each.
ABSORBED = ("Relu", "Clip", "Add")
NORMALISATION = [
    1,
    3,
    1,
    1,
]  # shape of the constants of the camera's normalisation, which are no weights
Facts = dict[str, float | str]


class OnnxFloat32:
    """The plain export, for the compressed ones to be compared with in the same runtime."""

    config_only = ("name",)

    def compress(
        self,
        classifier: Classifier,
        data: DataModule,
        description: Description,
        tune: Tune,
        folder: Path,
    ) -> CompressedModel:
        """Export, see `src.deployment.compression.base`."""
        require_network(classifier)
        with atomic_file(folder / FILE) as path:
            deployed.write(CameraNet.of(classifier), description, path)
        return CompressedModel(classifier, folder / FILE)


class OnnxStaticInt8:
    """Weights and activations in 8 bits, the activations' ranges measured beforehand on training images.

    Weights are symmetric, with a scale for each output channel. Layers at both ends can stay in
    float32: a first convolution of 3 channels is slower in int8 than in float32, and logits lose
    most by rounding.

    Args:
        method: How an activation's range follows from what was seen: "minmax" takes the extremes,
            "percentile" leaves outliers out, "entropy" keeps the distributions before and after
            close.
        percentile: Share of the values that a range holds, in %; for "percentile" only.
        images: Training images that are seen, stratified by class.
        seed: Of their draw.
        activations: "uint8" suits x86, "int8" ARM.
        reduce_range: 7 bits for weights: x86 processors without VNNI instructions overflow with 8.
        float_first: Layers with weights, counted from the input, that stay in float32.
        float_last: The same, counted from the output.
    """

    config_only = ("name",)

    def __init__(
        self,
        method: Literal["minmax", "entropy", "percentile"] = "minmax",
        percentile: Annotated[float, Interval(gt=50, le=100)] = 99.99,
        images: Annotated[int, Ge(1)] = 256,
        seed: Annotated[int, Ge(0)] = 0,
        activations: Literal["uint8", "int8"] = "uint8",
        reduce_range: bool = False,
        float_first: Annotated[int, Ge(0)] = 1,
        float_last: Annotated[int, Ge(0)] = 1,
    ) -> None:
        self.method = method
        self.percentile = percentile
        self.images = images
        self.seed = seed
        self.activations = activations
        self.reduce_range = reduce_range
        self.float_first = float_first
        self.float_last = float_last

    def compress(
        self,
        classifier: Classifier,
        data: DataModule,
        description: Description,
        tune: Tune,
        folder: Path,
    ) -> CompressedModel:
        """Export, calibrate and quantise, see `src.deployment.compression.base`.

        Raises:
            UserError: The net cannot be exported, or no layer is left to be quantised.
        """
        seen = base.pictures(data, self.images, self.seed)
        facts = _rewrite(
            classifier,
            description,
            "int8",
            folder,
            lambda plain, path: self._quantise(plain, path, seen),
        )
        facts |= {"calibration": self.method, "calibration_images": len(seen)}
        return CompressedModel(classifier, folder / FILE, "int8", facts)

    def _quantise(self, plain: Path, path: Path, seen: ImageBatch) -> None:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        methods = quantization.CalibrationMethod
        types = {"uint8": quantization.QuantType.QUInt8, "int8": quantization.QuantType.QInt8}
        quant_pre_process(plain, path)
        quantization.quantize_static(
            path,
            path,
            _reader(seen),
            op_types_to_quantize=[*WEIGHTED, *ABSORBED],
            nodes_to_exclude=_ends(path, self.float_first, self.float_last),
            per_channel=True,
            reduce_range=self.reduce_range,
            activation_type=types[self.activations],
            weight_type=quantization.QuantType.QInt8,
            calibrate_method={
                "minmax": methods.MinMax,
                "entropy": methods.Entropy,
                "percentile": methods.Percentile,
            }[self.method],
            # a batch at a time: otherwise histograms hold every value of all images in memory
            extra_options={"CalibStridedMinMax": 1, "CalibPercentile": self.percentile},
        )


class OnnxDynamicInt8:
    """Weights in 8 bits; activations are quantised at each call, by the range that they have there.

    That range is one for the whole batch: so that a picture's answer does not depend on its
    neighbours, the file asks to be given one at a time.

    Args:
        convolutions: Convolutions too, not only dense layers.
    """

    config_only = ("name",)

    def __init__(self, convolutions: bool = False) -> None:
        self.operators = WEIGHTED if convolutions else WEIGHTED[1:]

    def compress(
        self,
        classifier: Classifier,
        data: DataModule,
        description: Description,
        tune: Tune,
        folder: Path,
    ) -> CompressedModel:
        """Export and quantise, see `src.deployment.compression.base`.

        Raises:
            UserError: The net cannot be exported, or has no such layer.
        """
        facts = _rewrite(classifier, description, "int8", folder, self._quantise)
        return CompressedModel(
            classifier, folder / FILE, "int8", facts | {"quantised": ", ".join(self.operators)}
        )

    def _quantise(self, plain: Path, path: Path) -> None:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        quant_pre_process(plain, path)
        quantization.quantize_dynamic(
            path,
            path,
            op_types_to_quantize=list(self.operators),
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
        )


class OnnxFloat16:
    """Weights, and all between normalisation and softmax, in float16."""

    config_only = ("name",)

    def compress(
        self,
        classifier: Classifier,
        data: DataModule,
        description: Description,
        tune: Tune,
        folder: Path,
    ) -> CompressedModel:
        """Export and convert, see `src.deployment.compression.base`."""
        facts = _rewrite(classifier, description, "float16", folder, self._convert)
        return CompressedModel(classifier, folder / FILE, "float16", facts)

    def _convert(self, plain: Path, path: Path) -> None:
        import onnx
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

        model = convert_float_to_float16(
            onnx.load(plain),
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, "Softmax"],
            node_block_list=_ends(plain, 0, 0),
        )
        onnx.save(model, path)


def _rewrite(
    classifier: Classifier,
    description: Description,
    precision: str,
    folder: Path,
    rewrite: Callable[[Path, Path], None],
) -> Facts:
    """Export, rewrite the file (from the first path to the second), and describe it; what it then holds."""
    require_network(classifier)
    with atomic_file(folder / FILE) as path:
        plain = path.with_name("float32.onnx")
        deployed.write(CameraNet.of(classifier), description, plain)
        with quiet(), needs("onnx"):
            import onnx

            rewrite(plain, path)
        model = onnx.load(path)
        ranges_at_call = any(node.op_type == "DynamicQuantizeLinear" for node in model.graph.node)
        alone = {deployed.ALONE: "true"} if ranges_at_call else {}
        onnx.helper.set_model_props(
            model, {KEY: replace(description, precision=precision).to_json(), **alone}
        )
        path.write_bytes(model.SerializeToString())
        return _held(model, precision)


def _held(model: "ModelProto", precision: str) -> Facts:
    """How many tensors of weights have that precision, and what share of all weights they are.

    Raises:
        UserError: None has it.
    """
    from onnx import TensorProto

    kinds = {"int8": TensorProto.INT8, "float16": TensorProto.FLOAT16}
    tensors = [
        each
        for each in model.graph.initializer
        if len(each.dims) > 1 and list(each.dims) != NORMALISATION
    ]
    sizes = [(each.data_type, int(np.prod(each.dims))) for each in tensors]
    small = [size for kind, size in sizes if kind == kinds[precision]]
    if not small:
        raise UserError(
            f"no layer of this net can be made {precision} so: it has none of the kind, or all are left out"
        )
    return {"layers": len(small), "share_of_weights": sum(small) / sum(size for _, size in sizes)}


def _ends(path: Path, first: int, last: int) -> list[str]:
    """Names of the nodes before, and with, the first so many layers that have weights, and of those from the last on.

    Raises:
        ConfigError: No layer is left between.
    """
    import onnx

    nodes = onnx.load(path).graph.node
    layers = [number for number, node in enumerate(nodes) if node.op_type in WEIGHTED]
    if first + last >= len(layers):
        problem = f"of {len(layers)} layers, {first} + {last} in float32 leave none to quantise"
        raise ConfigError("compression.float_first", problem)
    end = layers[-last] if last else len(nodes)
    return [node.name for number, node in enumerate(nodes) if not layers[first] <= number < end]


def _reader(seen: ImageBatch) -> Any:
    """The calibration pictures as ONNX Runtime asks for them, batch by batch."""
    from onnxruntime.quantization import CalibrationDataReader

    batches = np.array_split(seen, -(-len(seen) // BATCH))

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(batches)

        def __len__(self) -> int:
            return len(batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self._left = iter(batches[start_index:end_index])

        def get_next(self) -> dict[str, ImageBatch] | None:
            batch = next(self._left, None)
            return None if batch is None else {deployed.INPUT: batch}

    return Reader()
