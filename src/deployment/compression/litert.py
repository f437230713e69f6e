"""int8 for LiteRT, by Google's quantiser of its files (ai-edge-quantizer)."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from src.deployment.compression import base
from src.deployment.compression.base import CompressionContext, Facts, FileCompression
from src.deployment.description import Description
from src.deployment.runtimes.base import ImageBatch, needs, quiet
from src.deployment.runtimes.litert import LitertRuntime

# Operators of the camera's picture, its normalisation and the probabilities; they stay in float32.
FLOAT = ("INPUT", "OUTPUT", "SUB", "MUL", "SOFTMAX")
_RANGE_UPDATE = {"minmax": "min_max_update", "moving_average": "moving_average_update"}
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


@dataclass
class LitertInt8(FileCompression):
    """Weights and activations in 8 bits, weights with a scale per output channel.

    The input is uint8 and the output float32; normalisation and softmax stay in float32. The
    arguments are explained in conf/compression/litert_int8.yaml; "minmax" takes the extremes of
    all images, "moving_average" averages the extremes of each, with more weight on later ones.
    """

    method: Literal["minmax", "moving_average"] = "minmax"
    images: Annotated[int, Ge(1)] = 256
    seed: Annotated[int, Ge(0)] = 0
    float_last: Annotated[int, Ge(0)] = 1

    runtime = LitertRuntime

    def write(self, path: Path, context: CompressionContext, description: Description) -> Facts:
        """Export the net, calibrate and quantise the file."""
        pictures = context.calibration_images(self.images, self.seed)
        self.runtime.write(context.camera(), description, path)
        path.write_bytes(content := self._quantise(path.read_bytes(), pictures))
        from ai_edge_litert.schema_py_generated import TensorType

        weights = [
            (math.prod(tensor.shape), tensor.type == TensorType.INT8)
            for _, tensor in _layers(content)
        ]
        facts = base.weight_facts(weights, "LiteRT's quantiser supports no layer of this net")
        return facts | {"calibration": self.method, "calibration_images": len(pictures)}

    def _quantise(self, content: bytes, pictures: ImageBatch) -> bytes:
        with quiet(), needs("litert"):
            from ai_edge_litert.interpreter import Interpreter
            from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager
            from ai_edge_quantizer.utils import qsv_utils

        operators = qtyping.TFLOperationName
        layers = [name for name, _ in _layers(content)]
        float_operators = base.float_layers(layers, 0, self.float_last, "float_last")
        with quiet():
            work = quantizer.Quantizer(content)
            work.add_static_config(
                ".*", operators.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8
            )
            for scope, operator in [
                *((".*", operators(name)) for name in FLOAT),
                *((f"{re.escape(name)};?$", operators.ALL_SUPPORTED) for name in float_operators),
            ]:
                work.update_quantization_recipe(scope, operator, algorithm_key="no_quantize")
            signatures = Interpreter(model_content=content).get_signature_list()
            (signature, names), *_ = signatures.items()
            recipe = recipe_manager.RecipeManager()
            recipe.load_quantization_recipe(work.get_quantization_recipe())
            # Not `work.calibrate`, which supports the moving average only.
            update = getattr(qsv_utils, _RANGE_UPDATE[self.method])
            run = calibrator.Calibrator(content, num_threads=1, qsv_update_func=update)
            feeds = [{names["inputs"][0]: picture[None]} for picture in pictures]
            run.calibrate({signature: feeds}, recipe)
            result = work.quantize(run.get_model_qsvs(), enable_progress_report=False)
        return bytes(result.quantized_model)


def _layers(content: bytes) -> list[tuple[str, Any]]:
    """The layers with weights, in order: the name of the output, and the tensor of the weights."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(content), 0))
    graph = model.subgraphs[0]
    kinds = {getattr(schema.BuiltinOperator, name) for name in WEIGHTED}
    return [
        (graph.tensors[operator.outputs[0]].name.decode(), graph.tensors[operator.inputs[1]])
        for operator in graph.operators
        if model.operatorCodes[operator.opcodeIndex].builtinCode in kinds
    ]
