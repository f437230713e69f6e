"""int8 and float16 in ONNX files, by ONNX Runtime's quantiser and converter."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Interval

from src.deployment.compression import base
from src.deployment.compression.base import CompressionContext, Facts, FileCompression
from src.deployment.description import KEY, Description
from src.deployment.runtimes.base import ImageBatch, needs, quiet
from src.deployment.runtimes.onnx import INPUT, SINGLE_KEY, OnnxRuntime

BATCH = 32  # calibration pictures in memory at once
# Methods of the settings by their names in ONNX Runtime.
CALIBRATION = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
WEIGHTED = ("Conv", "Gemm", "MatMul")
# Activations that the layer before them absorbs, and sums. Pooling stays in float32: the memory
# layout would change around each.
ABSORBED = ("Relu", "Clip", "Add")
NORMALISATION = [1, 3, 1, 1]  # shape of the camera's constants, which are not weights


class OnnxFloat32(FileCompression):
    """The plain export, as a reference for the other ONNX compressions."""

    runtime, precision = OnnxRuntime, "float32"

    def write(self, path: Path, context: CompressionContext, description: Description) -> Facts:
        """Export the net."""
        self.runtime.write(context.camera(), description, path)
        return {}


class RewrittenOnnx(FileCompression):
    """An export that a tool of ONNX Runtime rewrites."""

    runtime = OnnxRuntime

    @abstractmethod
    def rewrite(self, plain: Path, path: Path, context: CompressionContext) -> Facts:
        """Rewrite the float32 file `plain` to `path`; returns what is recorded."""

    def write(self, path: Path, context: CompressionContext, description: Description) -> Facts:
        """Export the net, rewrite the file and describe it."""
        plain = path.with_name("float32.onnx")
        self.runtime.write(context.camera(), description, plain)
        with quiet(), needs("onnx"):
            import onnx

            facts = self.rewrite(plain, path, context)
        model = onnx.load(path)
        metadata = {KEY: description.to_json()}
        if any(node.op_type == "DynamicQuantizeLinear" for node in model.graph.node):
            metadata[SINGLE_KEY] = "true"  # one range for all pictures of a batch
        onnx.helper.set_model_props(model, metadata)
        path.write_bytes(model.SerializeToString())
        kind = onnx.TensorProto.DataType.Value(self.precision.upper())
        weights = (
            (math.prod(tensor.dims), tensor.data_type == kind)
            for tensor in model.graph.initializer
            if len(tensor.dims) > 1 and list(tensor.dims) != NORMALISATION
        )
        problem = f"no layer of this net can be converted to {self.precision} in this way"
        reason = "it has no such layer, or all of them stay in float32"
        return facts | base.weight_facts(weights, f"{problem}: {reason}")


@dataclass
class OnnxStaticInt8(RewrittenOnnx):
    """Weights and activations in 8 bits; activation ranges are measured on training images.

    Weights are symmetric, with a scale per output channel. Layers at both ends can stay in
    float32: a first convolution of 3 channels is slower in int8 than in float32, and logits lose
    most by rounding. The arguments are explained in conf/compression/onnx_int8_static.yaml;
    "minmax" takes the extremes of the images, "percentile" ignores outliers, "entropy" keeps the
    distributions before and after close.
    """

    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    percentile: Annotated[float, Interval(gt=50, le=100)] = 99.99
    images: Annotated[int, Ge(1)] = 256
    seed: Annotated[int, Ge(0)] = 0
    activations: Literal["uint8", "int8"] = "uint8"
    reduce_range: bool = False
    float_first: Annotated[int, Ge(0)] = 1
    float_last: Annotated[int, Ge(0)] = 1

    def rewrite(self, plain: Path, path: Path, context: CompressionContext) -> Facts:
        """Calibrate and quantise."""
        from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        pictures = context.calibration_images(self.images, self.seed)
        quant_pre_process(plain, path)
        quantize_static(
            *(path, path, _calibration_reader(pictures)),
            op_types_to_quantize=[*WEIGHTED, *ABSORBED],
            nodes_to_exclude=_float_nodes(path, self.float_first, self.float_last),
            per_channel=True,
            reduce_range=self.reduce_range,
            activation_type=QuantType.QUInt8 if self.activations == "uint8" else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=getattr(CalibrationMethod, CALIBRATION[self.method]),
            # In batches: otherwise histograms keep every value of all images in memory.
            extra_options={"CalibStridedMinMax": 1, "CalibPercentile": self.percentile},
        )
        return {"calibration": self.method, "calibration_images": len(pictures)}


@dataclass
class OnnxDynamicInt8(RewrittenOnnx):
    """Weights in 8 bits; activations are quantised at each call, by their range in the batch.

    So that the output for a picture does not depend on the others, the file asks for one picture
    per call. With `convolutions` they are quantised too, not only dense layers.
    """

    convolutions: bool = False

    def rewrite(self, plain: Path, path: Path, context: CompressionContext) -> Facts:
        """Quantise the weights."""
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.shape_inference import quant_pre_process

        operators = WEIGHTED if self.convolutions else WEIGHTED[1:]
        quant_pre_process(plain, path)
        how: dict[str, Any] = {"per_channel": True, "weight_type": QuantType.QInt8}
        quantize_dynamic(path, path, op_types_to_quantize=list(operators), **how)
        return {"quantised": ", ".join(operators)}


class OnnxFloat16(RewrittenOnnx):
    """Weights, and everything between normalisation and softmax, in float16."""

    precision = "float16"

    def rewrite(self, plain: Path, path: Path, context: CompressionContext) -> Facts:
        """Convert the weights."""
        import onnx
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

        model = convert_float_to_float16(
            onnx.load(plain),
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, "Softmax"],
            node_block_list=_float_nodes(plain, 0, 0),
        )
        onnx.save(model, path)
        return {}


def _float_nodes(path: Path, first: int, last: int) -> list[str]:
    """Nodes before the first and after the last layer that is rewritten."""
    import onnx

    nodes = onnx.load(path).graph.node
    layers = [number for number, node in enumerate(nodes) if node.op_type in WEIGHTED]
    base.float_layers(layers, first, last)
    end = layers[-last] if last else len(nodes)
    return [node.name for number, node in enumerate(nodes) if not layers[first] <= number < end]


def _calibration_reader(pictures: ImageBatch) -> Any:
    """The calibration pictures, batch by batch, through ONNX Runtime's interface."""
    from onnxruntime.quantization import CalibrationDataReader

    batches = np.array_split(pictures, math.ceil(len(pictures) / BATCH))

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.set_range(0, len(batches))

        def __len__(self) -> int:
            return len(batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self._remaining = iter(batches[start_index:end_index])

        def get_next(self) -> dict[str, ImageBatch] | None:
            batch = next(self._remaining, None)
            return None if batch is None else {INPUT: batch}

    return Reader()
