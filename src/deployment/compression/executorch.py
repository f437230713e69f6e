"""int8 for ExecuTorch, with or without quantisation-aware training, by torchao's PT2E."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from src.core.errors import UserError
from src.deployment.compression import base
from src.deployment.compression.base import CompressionContext, Facts, FileCompression
from src.deployment.description import Description
from src.deployment.runtimes.base import ImageBatch, in_batches, naming_operators, needs, quiet
from src.deployment.runtimes.eager import CameraNet
from src.deployment.runtimes.executorch import ExecutorchRuntime
from src.training.classifier import as_float

BATCH = 32
CHECKED = 32  # pictures on which the file is compared with the quantised graph
# Mean difference of their probabilities. Kernels that round differently stay below 0.01.
TOLERANCE = 0.05
_ATEN = torch.ops.aten
WEIGHTED = (_ATEN.conv2d.default, _ATEN.linear.default)
RELU = (_ATEN.relu.default, _ATEN.relu_.default)
RELU6 = (_ATEN.hardtanh.default, _ATEN.hardtanh_.default)
DROPOUT = (_ATEN.dropout.default, _ATEN.dropout_.default)


class ExportedNet(nn.Module):
    """An exported net that can be trained; its observers do not learn in evaluation mode.

    torchao's own switch between the modes sets every dropout to 0.5 and every batch
    normalisation's epsilon to its default.

    Args:
        graph: From `torch.export`, of a net in evaluation mode.
    """

    def __init__(self, graph: GraphModule) -> None:
        super().__init__()
        self.graph = graph
        self._mode: bool | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, S, S) -> logits."""
        # Here, not in `train`: Lightning sets the attribute `training` without calling it.
        if self.training != self._mode:
            from torchao.quantization.pt2e import disable_observer, enable_observer

            for node in self.graph.graph.nodes:
                if node.target in DROPOUT:
                    node.args = (*node.args[:2], self.training)
            self.graph.recompile()
            self.graph.apply(enable_observer if self.training else disable_observer)
            self._mode = self.training
        logits: Tensor = self.graph(images)
        return logits

    def train(self, mode: bool = True) -> "ExportedNet":
        """Set dropout and observers; batch normalisation is part of the convolutions by now."""
        self.training = mode
        return self


@dataclass
class ExecutorchInt8(FileCompression):
    """Weights and activations in 8 bits, symmetric weights with a scale per output channel.

    The arguments are explained in conf/compression/executorch_int8.yaml. With fine-tuning, the
    ranges follow it as a moving average of the extremes, whatever `method` is.
    """

    method: Literal["histogram", "minmax"] = "histogram"
    images: Annotated[int, Ge(1)] = 256
    seed: Annotated[int, Ge(0)] = 0
    float_first: Annotated[int, Ge(0)] = 0
    float_last: Annotated[int, Ge(0)] = 1
    epochs: Annotated[int, Ge(0)] = 0
    lr: Annotated[float, Gt(0)] = 1e-4

    runtime = ExecutorchRuntime

    def write(self, path: Path, context: CompressionContext, description: Description) -> Facts:
        """Quantise the net, fine-tune it if epochs are set, and lower it to XNNPACK.

        The file's output is compared with that of the quantised net: kernels have computed
        something else before.
        """
        camera, classifier = context.camera(), context.classifier
        with quiet(), needs("executorch"):
            from executorch.backends.xnnpack.quantizer import xnnpack_quantizer  # noqa: F401
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e
        pictures = context.calibration_images(self.images, self.seed)
        prepared = self.prepare(context, pictures)
        if self.epochs:
            net, classifier.net = classifier.net, prepared
            try:
                classifier.train()
                context.tune(classifier, self.epochs, self.lr)
            finally:
                classifier.net = net
                classifier.eval()
            prepared.cpu().eval()
        quantised = convert_pt2e(prepared.graph)
        nodes = [node for node in quantised.graph.nodes if node.op == "get_attr"]
        tensors = [attrgetter(str(node.target))(quantised) for node in nodes]
        facts = base.weight_facts(
            [
                (tensor.numel(), tensor.dtype == torch.int8)
                for tensor in tensors
                if isinstance(tensor, Tensor) and tensor.dim() > 1
            ],
            "XNNPACK's quantiser supports no layer of this net",
        )
        camera.net = ExportedNet(quantised).eval()
        self.runtime.write(camera, description, path)
        with torch.inference_mode():
            expected = camera(torch.from_numpy(pictures[:CHECKED])).numpy()
        output = in_batches(self.runtime(path), pictures[:CHECKED])
        if not (difference := float(np.abs(output - expected).mean())) < TOLERANCE:
            problem = "ExecuTorch's kernels do not compute what the quantised net says"
            differ = f"probabilities differ by {difference:.3f} on average"
            raise UserError(f"{problem}: {differ}; take another compression")
        method = "moving_average" if self.epochs else self.method
        return facts | {"calibration": method, "calibration_images": len(pictures)}

    def prepare(self, context: CompressionContext, pictures: ImageBatch) -> ExportedNet:
        """The net with observers that have seen pictures; batch normalisation is folded."""
        from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

        classifier, size = context.classifier, context.classifier.image_size
        with naming_operators(self.runtime.label), quiet():
            net, images = CameraNet.of(classifier).portable().net, torch.zeros(2, 3, size, size)
            shapes = ({0: torch.export.Dim("N")},)
            exported = torch.export.export(net, (images,), dynamic_shapes=shapes)
        graph = exported.module(check_guards=False)
        # A ReLU that follows a max-pooling is moved before it; the result is the same. XNNPACK's
        # kernels for a quantised ReLU ignore that its output has another scale than its input.
        # Before the pooling it becomes part of the convolution.
        for relu in list(graph.graph.nodes):
            pool = relu.args[0] if relu.target in RELU else None
            pools = isinstance(pool, Node) and pool.target == _ATEN.max_pool2d.default
            if isinstance(pool, Node) and pools and len(pool.users) == 1:
                relu.replace_all_uses_with(pool)
                relu.args = (pool.args[0],)
                pool.prepend(relu)
                pool.args = (relu, *pool.args[1:])
        graph.graph.lint()
        graph.recompile()
        layers = [node for node in graph.graph.nodes if node.target in WEIGHTED]
        kept = base.float_layers(layers, self.float_first, self.float_last)
        # Not prepare_qat_pt2e, which assumes an epsilon of 1e-5 for every batch normalisation.
        prepared = ExportedNet(prepare_pt2e(graph, self._quantiser(kept)))
        with torch.no_grad():
            for start in range(0, len(pictures), BATCH):
                batch = torch.from_numpy(pictures[start : start + BATCH]).permute(0, 3, 1, 2)
                prepared((as_float(batch) - classifier.mean) * classifier.inverse_std)
        return prepared.eval()

    def _quantiser(self, kept: Sequence[Node]) -> Any:
        """XNNPACK's quantiser, symmetric and per channel, for all layers that are not kept."""
        from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
        from torchao.quantization.pt2e import MinMaxObserver

        class Quantiser(xnnpack.XNNPACKQuantizer):
            def annotate(self, model: GraphModule) -> GraphModule:
                super().annotate(model)
                _annotate_relu6_and_padding(model)
                return model

        training = self.epochs > 0
        config = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_qat=training)
        if self.method == "minmax" and not training:
            observer = MinMaxObserver.with_args(eps=2**-12)
            activation = replace(config.input_activation, observer_or_fake_quant_ctr=observer)
            config = replace(config, input_activation=activation, output_activation=activation)
        result = Quantiser()
        # Those with batch normalisation, which is folded by then, take seconds to trace.
        result.SUPPORTED_PATTERNS = [one for one in result.SUPPORTED_PATTERNS if not one.is_qat]
        return result.set_global(config).set_filter_function(lambda node: node not in kept)


def _annotate_relu6_and_padding(graph: GraphModule) -> None:
    """Quantise the output of a ReLU6, and give padding one scale for input and output.

    The output of the convolution before a ReLU6 has a wider range, most of which is cut off.
    XNNPACK copies padded numbers unchanged.
    """
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, SharedQuantizationSpec
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    for node in graph.graph.nodes:
        layer = node.args[0] if node.args else None
        if not isinstance(layer, Node):
            continue
        annotation = layer.meta.get(Q_ANNOTATION_KEY)
        if annotation is None:
            continue
        if node.target in RELU6 and layer.target in WEIGHTED and len(layer.users) == 1:
            spec = annotation.output_qspec
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=spec, _annotated=True)
            annotation.output_qspec = None
        elif node.target == _ATEN.pad.default and annotation.output_qspec is not None:
            shared = SharedQuantizationSpec(layer)
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                input_qspec_map={layer: shared}, output_qspec=shared, _annotated=True
            )
