"""What XNNPACK's quantiser for PT2E graphs needs beside itself, so that XNNPACK's kernels do what the graph says."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from src.errors import ConfigError

_ATEN = torch.ops.aten
WEIGHTED = (_ATEN.conv2d.default, _ATEN.linear.default)
RELU = (_ATEN.relu.default, _ATEN.relu_.default)
RELU6 = (_ATEN.hardtanh.default, _ATEN.hardtanh_.default)
POOL, PAD = _ATEN.max_pool2d.default, _ATEN.pad.default


def order_activations(graph: GraphModule) -> None:
    """Put a ReLU that follows a max-pooling before it, which computes the same, as ReLU is monotone.

    XNNPACK's kernels for a quantised ReLU ignore that its output has another scale than its input; before the pooling
    it becomes part of the convolution.
    """
    for relu in list(graph.graph.nodes):
        pool = relu.args[0] if relu.target in RELU else None
        if isinstance(pool, Node) and pool.target == POOL and len(pool.users) == 1:
            relu.replace_all_uses_with(pool)
            relu.args = (pool.args[0],)
            pool.prepend(relu)
            pool.args = (relu, *pool.args[1:])
    graph.graph.lint()
    graph.recompile()


def in_float(graph: GraphModule, first: int, last: int) -> Sequence[Node]:
    """The first and the last so many layers with weights.

    Raises:
        ConfigError: No layer is left between.
    """
    layers = [node for node in graph.graph.nodes if node.target in WEIGHTED]
    if first + last >= len(layers):
        problem = f"of {len(layers)} layers, {first} + {last} in float32 leave none to quantise"
        raise ConfigError("compression.float_first", problem)
    return [*layers[:first], *layers[len(layers) - last :]]


def quantiser(kept: Sequence[Node], method: str, training: bool) -> Any:
    """XNNPACK's quantiser, symmetric and per channel.

    Args:
        kept: Layers that stay in float32.
        method: "histogram" or "minmax".
        training: Whether rounding is to be simulated for fine-tuning.
    """
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e import MinMaxObserver

    class Quantiser(xnnpack.XNNPACKQuantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            super().annotate(model)
            _absorb_relu6(model)
            _share_around_padding(model)
            return model

    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_qat=training)
    if method == "minmax" and not training:
        seen = replace(config.input_activation, observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=2**-12))
        config = replace(config, input_activation=seen, output_activation=seen)
    return Quantiser().set_global(config).set_filter_function(lambda node: node not in kept)


def _absorb_relu6(graph: GraphModule) -> None:
    """Quantise what a ReLU6 leaves of a convolution's output, not the output: of that, most is cut off."""
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    for node in graph.graph.nodes:
        layer = node.args[0] if node.target in RELU6 else None
        if not isinstance(layer, Node) or layer.target not in WEIGHTED or len(layer.users) > 1:
            continue
        annotation = layer.meta.get(Q_ANNOTATION_KEY)
        if annotation is not None:
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=annotation.output_qspec, _annotated=True)
            annotation.output_qspec = None


def _share_around_padding(graph: GraphModule) -> None:
    """Give what is padded one scale before and after: XNNPACK copies the numbers as they are."""
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, SharedQuantizationSpec
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    for node in graph.graph.nodes:
        before = node.args[0] if node.target == PAD else None
        if not isinstance(before, Node):
            continue
        annotation = before.meta.get(Q_ANNOTATION_KEY)
        if annotation is not None and annotation.output_qspec is not None:
            shared = SharedQuantizationSpec(before)
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                input_qspec_map={before: shared}, output_qspec=shared, _annotated=True
            )
