"""Int8, QAT by torchao PT2E."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from src.core.errors import ConfigError, UserError
from src.core.files import atomic_file
from src.data.module import DataModule
from src.deployment.compression import base
from src.deployment.compression.base import CompressedModel, Tune, require_network
from src.deployment.description import Description
from src.deployment.runtimes import executorch
from src.deployment.runtimes.base import ImageBatch, in_batches, naming_operators, needs, quiet
from src.deployment.runtimes.eager import CameraNet
from src.training.classifier import Classifier, as_float

_ATEN = torch.ops.aten
WEIGHTED = (_ATEN.conv2d.default, _ATEN.linear.default)
RELU = (_ATEN.relu.default, _ATEN.relu_.default)
RELU6 = (_ATEN.hardtanh.default, _ATEN.hardtanh_.default)
POOL, PAD = _ATEN.max_pool2d.default, _ATEN.pad.default


def order_activations(graph: GraphModule) -> None:
    """Put a ReLU that follows a max-pooling before it, which computes the same, as ReLU is monotone.

    XNNPACK's kernels for a quantised ReLU ignore that its output has another scale than its input;
    before the pooling it becomes part of the convolution.
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
        seen = replace(
            config.input_activation, observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=2**-12)
        )
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
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                output_qspec=annotation.output_qspec, _annotated=True
            )
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


FILE = "model.pte"
BATCH = 32
CHECKED = (
    32  # calibration pictures on which the file's answers are held against the quantised graph's
)
TOLERANCE = (
    0.05  # mean difference of their probabilities; kernels that round differently stay below 0.01
)
DROPOUT = (torch.ops.aten.dropout.default, torch.ops.aten.dropout_.default)


class Graph(nn.Module):
    """An exported net that can be trained, and whose observers learn nothing from what it is evaluated on.

    torchao's own switch between training and evaluation sets every dropout to 0.5 and every batch
    normalisation's epsilon to its default.

    Args:
        graph: From `torch.export`, of a net in evaluation mode.
    """

    def __init__(self, graph: GraphModule) -> None:
        super().__init__()
        self.graph = graph
        self._set_for: bool | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, S, S) -> logits."""
        if (
            self.training != self._set_for
        ):  # looked at here: Lightning sets the attribute without calling `train`
            self._switch(self.training)
        found: Tensor = self.graph(images)
        return found

    def train(self, mode: bool = True) -> "Graph":
        """Dropout and observers on, or off; batch normalisation is part of the convolutions by now."""
        self.training = mode
        return self

    def _switch(self, training: bool) -> None:
        from torchao.quantization.pt2e import disable_observer, enable_observer

        for node in self.graph.graph.nodes:
            if node.target in DROPOUT:
                node.args = (*node.args[:2], training)
        self.graph.recompile()
        self.graph.apply(enable_observer if training else disable_observer)
        self._set_for = training


class ExecutorchInt8:
    """Weights and activations in 8 bits, symmetric weights with a scale for each output channel.

    Args:
        method: How an activation's range follows from what was seen on training images: "histogram"
            takes the one with the least squared error, "minmax" the extremes.
        images: Training images that are seen, stratified by class.
        seed: Of their draw.
        float_first: Layers with weights, counted from the input, that stay in float32.
        float_last: The same, counted from the output.
        epochs: Of fine-tuning with rounding simulated; 0 is none. The ranges then follow it,
            whatever `method` says, as a moving average of the extremes.
        lr: Its learning rate.
    """

    config_only = ("name",)

    def __init__(
        self,
        method: Literal["histogram", "minmax"] = "histogram",
        images: Annotated[int, Ge(1)] = 256,
        seed: Annotated[int, Ge(0)] = 0,
        float_first: Annotated[int, Ge(0)] = 0,
        float_last: Annotated[int, Ge(0)] = 1,
        epochs: Annotated[int, Ge(0)] = 0,
        lr: Annotated[float, Gt(0)] = 1e-4,
    ) -> None:
        self.method = method
        self.images = images
        self.seed = seed
        self.ends = (float_first, float_last)
        self.epochs = epochs
        self.lr = lr

    def compress(
        self,
        classifier: Classifier,
        data: DataModule,
        description: Description,
        tune: Tune,
        folder: Path,
    ) -> CompressedModel:
        """Quantise, fine-tune if asked for, and lower, see `src.deployment.compression.base`.

        Raises:
            UserError: The net cannot be exported, no layer can be quantised, or the file does not
                do what it should.
        """
        require_network(classifier)
        with quiet(), needs("executorch"):
            import executorch.backends.xnnpack.quantizer.xnnpack_quantizer  # noqa: F401
            import torchao.quantization.pt2e  # noqa: F401
        seen = base.pictures(data, self.images, self.seed)
        prepared = self._prepared(classifier, seen)
        if self.epochs:
            _tuned(classifier, prepared, lambda: tune(classifier, self.epochs, self.lr))
        converted, facts = _converted(prepared)
        camera = CameraNet.of(classifier)
        camera.net = converted
        with atomic_file(folder / FILE) as path:
            executorch.write(camera, replace(description, precision="int8"), path)
            _check(path, camera, seen[:CHECKED])
        facts |= {
            "calibration": "moving_average" if self.epochs else self.method,
            "calibration_images": len(seen),
        }
        return CompressedModel(classifier, folder / FILE, "int8", facts)

    def _prepared(self, classifier: Classifier, seen: ImageBatch) -> Graph:
        """The net with observers that have seen the pictures; batch normalisation has become part of convolutions."""
        from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

        size = classifier.image_size
        example = torch.zeros(2, 3, size, size)
        with naming_operators(executorch.FORMAT), quiet():
            exported = torch.export.export(
                CameraNet.of(classifier).portable().net,
                (example,),
                dynamic_shapes=({0: torch.export.Dim("N")},),
            )
        graph = exported.module(check_guards=False)
        order_activations(graph)
        kept = in_float(graph, *self.ends)
        # not prepare_qat_pt2e: that takes each batch normalisation's epsilon for 1e-5
        prepared = Graph(
            prepare_pt2e(graph, quantiser(kept, self.method, training=self.epochs > 0))
        )
        with torch.no_grad():
            for start in range(0, len(seen), BATCH):
                pictures = torch.from_numpy(seen[start : start + BATCH]).permute(0, 3, 1, 2)
                prepared((as_float(pictures) - classifier.mean) * classifier.inverse_std)
        return prepared.eval()


def _tuned(classifier: Classifier, prepared: Graph, tune: Callable[[], None]) -> None:
    """Tune a graph in the place of the classifier's net."""
    net = classifier.net
    classifier.net = prepared
    try:
        classifier.train()
        tune()
    finally:
        classifier.net = net
        classifier.eval()
    prepared.cpu().eval()


def _converted(prepared: Graph) -> tuple[Graph, dict[str, float | str]]:
    """The graph in whole numbers; how many layers' weights have 8 bits, and what share of all weights they are.

    Raises:
        UserError: None has.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    converted = Graph(convert_pt2e(prepared.graph)).eval()
    held = (
        attrgetter(str(node.target))(converted.graph)
        for node in converted.graph.graph.nodes
        if node.op == "get_attr"
    )
    weights = [each for each in held if isinstance(each, Tensor) and each.dim() > 1]
    small = [each.numel() for each in weights if each.dtype == torch.int8]
    if not small:
        raise UserError("XNNPACK's quantiser takes no layer of this net")
    return converted, {
        "layers": len(small),
        "share_of_weights": sum(small) / sum(each.numel() for each in weights),
    }


def _check(path: Path, camera: CameraNet, pictures: ImageBatch) -> None:
    """Hold the file's answers against the graph's: kernels that compute something else are not unheard of.

    Raises:
        UserError: They are not near.
    """
    with torch.inference_mode():
        wanted = camera(torch.from_numpy(pictures)).numpy()
    found = in_batches(executorch.ExecutorchRuntime(path), pictures)
    if not (difference := float(np.abs(found - wanted).mean())) < TOLERANCE:
        raise UserError(
            "ExecuTorch's kernels do not compute what the quantised net says: probabilities differ by "
            f"{difference:.3f} on average; take another compression"
        )
