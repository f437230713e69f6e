"""int8 for ExecuTorch, by torchao's PT2E flow with XNNPACK's quantiser: after training, or with fine-tuning."""

from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.fx import GraphModule

from src.classifier import Classifier, as_float
from src.compression import calibration
from src.compression.draft import draft
from src.compression.record import Compressed, Tune
from src.compression.unfit import refuse_fitted
from src.compression.xnnpack import in_float, order_activations, quantiser
from src.data.module import DataModule
from src.deployment import executorch as deployed
from src.deployment.camera import CameraNet
from src.deployment.description import Description
from src.deployment.extras import needs
from src.deployment.quiet import quiet
from src.deployment.runtime import Pictures, in_batches
from src.deployment.unsupported import naming_operators
from src.errors import UserError

FILE = "model.pte"
BATCH = 32
CHECKED = 32  # calibration pictures on which the file's answers are held against the quantised graph's
TOLERANCE = 0.05  # mean difference of their probabilities; kernels that round differently stay below 0.01
DROPOUT = (torch.ops.aten.dropout.default, torch.ops.aten.dropout_.default)


class Graph(nn.Module):
    """An exported net that can be trained, and whose observers learn nothing from what it is evaluated on.

    torchao's own switch between training and evaluation sets every dropout to 0.5 and every batch normalisation's
    epsilon to its default.

    Args:
        graph: From `torch.export`, of a net in evaluation mode.
    """

    def __init__(self, graph: GraphModule) -> None:
        super().__init__()
        self.graph = graph
        self._set_for: bool | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, S, S) -> logits."""
        if self.training != self._set_for:  # looked at here: Lightning sets the attribute without calling `train`
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
        method: How an activation's range follows from what was seen on training images: "histogram" takes the one with
            the least squared error, "minmax" the extremes.
        images: Training images that are seen, stratified by class.
        seed: Of their draw.
        float_first: Layers with weights, counted from the input, that stay in float32.
        float_last: The same, counted from the output.
        epochs: Of fine-tuning with rounding simulated; 0 is none. The ranges then follow it, whatever `method` says, as
            a moving average of the extremes.
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
        self, classifier: Classifier, data: DataModule, description: Description, tune: Tune, folder: Path
    ) -> Compressed:
        """Quantise, fine-tune if asked for, and lower, see `src.compression.record`.

        Raises:
            UserError: The net cannot be exported, no layer can be quantised, or the file does not do what it should.
        """
        refuse_fitted(classifier)
        with quiet(), needs("executorch"):
            import executorch.backends.xnnpack.quantizer.xnnpack_quantizer  # noqa: F401
            import torchao.quantization.pt2e  # noqa: F401
        seen = calibration.pictures(data, self.images, self.seed)
        prepared = self._prepared(classifier, seen)
        if self.epochs:
            _tuned(classifier, prepared, lambda: tune(classifier, self.epochs, self.lr))
        converted, facts = _converted(prepared)
        camera = CameraNet.of(classifier)
        camera.net = converted
        with draft(folder / FILE) as path:
            deployed.write(camera, replace(description, precision="int8"), path)
            _check(path, camera, seen[:CHECKED])
        facts |= {"calibration": "moving_average" if self.epochs else self.method, "calibration_images": len(seen)}
        return Compressed(classifier, folder / FILE, "int8", facts)

    def _prepared(self, classifier: Classifier, seen: Pictures) -> Graph:
        """The net with observers that have seen the pictures; batch normalisation has become part of convolutions."""
        from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

        size = classifier.image_size
        example = torch.zeros(2, 3, size, size)
        with naming_operators(deployed.FORMAT), quiet():
            exported = torch.export.export(
                CameraNet.of(classifier).portable().net, (example,), dynamic_shapes=({0: torch.export.Dim("N")},)
            )
        graph = exported.module(check_guards=False)
        order_activations(graph)
        kept = in_float(graph, *self.ends)
        # not prepare_qat_pt2e: that takes each batch normalisation's epsilon for 1e-5
        prepared = Graph(prepare_pt2e(graph, quantiser(kept, self.method, training=self.epochs > 0)))
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
        attrgetter(str(node.target))(converted.graph) for node in converted.graph.graph.nodes if node.op == "get_attr"
    )
    weights = [each for each in held if isinstance(each, Tensor) and each.dim() > 1]
    small = [each.numel() for each in weights if each.dtype == torch.int8]
    if not small:
        raise UserError("XNNPACK's quantiser takes no layer of this net")
    return converted, {"layers": len(small), "share_of_weights": sum(small) / sum(each.numel() for each in weights)}


def _check(path: Path, camera: CameraNet, pictures: Pictures) -> None:
    """Hold the file's answers against the graph's: kernels that compute something else are not unheard of.

    Raises:
        UserError: They are not near.
    """
    with torch.inference_mode():
        wanted = camera(torch.from_numpy(pictures)).numpy()
    found = in_batches(deployed.ExecutorchRuntime(path), pictures)
    if not (difference := float(np.abs(found - wanted).mean())) < TOLERANCE:
        raise UserError(
            "ExecuTorch's kernels do not compute what the quantised net says: probabilities differ by "
            f"{difference:.3f} on average; take another compression"
        )
