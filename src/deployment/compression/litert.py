"""int8 for LiteRT, by Google's quantiser for its files (ai-edge-quantizer)."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from src.core.errors import ConfigError, UserError
from src.core.files import atomic_file
from src.data.module import DataModule
from src.deployment.compression import base
from src.deployment.compression.base import CompressedModel, Tune, require_network
from src.deployment.description import Description
from src.deployment.runtimes import litert
from src.deployment.runtimes.base import ImageBatch, needs, quiet
from src.deployment.runtimes.eager import CameraNet
from src.training.classifier import Classifier

FILE = "model.tflite"
FLOAT = (
    "INPUT",
    "OUTPUT",
    "SUB",
    "MUL",
    "SOFTMAX",
)  # the camera's picture, its normalisation, the probabilities
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


class LitertInt8:
    """Weights and activations in 8 bits, weights with a scale for each output channel.

    The picture goes in as uint8, and probabilities come out as float32; normalisation and softmax
    stay in float32.

    Args:
        method: How an activation's range follows from the images: "minmax" takes the extremes of
            all, "moving_average" (the library's default) averages each image's, the later ones
            counting more.
        images: Training images that are seen, stratified by class.
        seed: Of their draw.
        float_last: Layers with weights, counted from the output, that stay in float32.
    """

    config_only = ("name",)

    def __init__(
        self,
        method: Literal["minmax", "moving_average"] = "minmax",
        images: Annotated[int, Ge(1)] = 256,
        seed: Annotated[int, Ge(0)] = 0,
        float_last: Annotated[int, Ge(0)] = 1,
    ) -> None:
        self.method = method
        self.images = images
        self.seed = seed
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
            UserError: The net cannot be exported, or no layer can be quantised.
        """
        require_network(classifier)
        seen = base.pictures(data, self.images, self.seed)
        with atomic_file(folder / FILE) as path:
            litert.write(CameraNet.of(classifier), replace(description, precision="int8"), path)
            path.write_bytes(content := self._quantised(path.read_bytes(), seen))
            facts = _held(content) | {"calibration": self.method, "calibration_images": len(seen)}
        return CompressedModel(classifier, folder / FILE, "int8", facts)

    def _quantised(self, content: bytes, seen: ImageBatch) -> bytes:
        with quiet(), needs("litert"):
            from ai_edge_litert.interpreter import Interpreter
            from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager
            from ai_edge_quantizer.utils import qsv_utils

        operators = qtyping.TFLOperationName
        updates = {
            "minmax": qsv_utils.min_max_update,
            "moving_average": qsv_utils.moving_average_update,
        }
        with quiet():
            work = quantizer.Quantizer(content)
            work.add_static_config(
                ".*", operators.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8
            )
            for name in FLOAT:
                work.update_quantization_recipe(".*", operators(name), algorithm_key="no_quantize")
            for name in _last(content, self.float_last):
                work.update_quantization_recipe(
                    f"{re.escape(name)};?$", operators.ALL_SUPPORTED, algorithm_key="no_quantize"
                )
            signatures = Interpreter(model_content=content).get_signature_list()
            (signature, names), *_ = signatures.items()
            recipe = recipe_manager.RecipeManager()
            recipe.load_quantization_recipe(work.get_quantization_recipe())
            # not the quantizer's own `calibrate`, which knows the moving average only
            run = calibrator.Calibrator(
                content, num_threads=1, qsv_update_func=updates[self.method]
            )
            run.calibrate(
                {signature: [{names["inputs"][0]: picture[None]} for picture in seen]}, recipe
            )
            result = work.quantize(run.get_model_qsvs(), enable_progress_report=False)
        return bytes(result.quantized_model)


def _layers(content: bytes) -> list[tuple[str, Any]]:
    """Of each layer with weights, in order: the name of its output, and its weights' tensor."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(content), 0))
    graph = model.subgraphs[0]
    kinds = {getattr(schema.BuiltinOperator, name) for name in WEIGHTED}
    return [
        (graph.tensors[each.outputs[0]].name.decode(), graph.tensors[each.inputs[1]])
        for each in graph.operators
        if model.operatorCodes[each.opcodeIndex].builtinCode in kinds
    ]


def _last(content: bytes, number: int) -> Sequence[str]:
    """Names of the outputs of the last so many layers.

    Raises:
        ConfigError: No other layer is left.
    """
    names = [name for name, _ in _layers(content)]
    if number >= len(names):
        problem = f"of {len(names)} layers, {number} in float32 leave none to quantise"
        raise ConfigError("compression.float_last", problem)
    return names[len(names) - number :]


def _held(content: bytes) -> dict[str, float | str]:
    """How many layers' weights have 8 bits, and what share of all weights they are.

    Raises:
        UserError: None has.
    """
    from ai_edge_litert.schema_py_generated import TensorType

    weights = [
        (int(np.prod(tensor.shape)), tensor.type == TensorType.INT8)
        for _, tensor in _layers(content)
    ]
    small = [size for size, is_small in weights if is_small]
    if not small:
        raise UserError("LiteRT's quantiser takes no layer of this net")
    return {"layers": len(small), "share_of_weights": sum(small) / sum(size for size, _ in weights)}
