import copy
from pathlib import Path

import numpy as np
import torch
from small_store import CLASSES
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from compression.nets import NEAR, Sample, confident, context
from src.deployment.compression.executorch import ExecutorchInt8, ExportedNet
from src.deployment.runtimes.base import in_batches
from src.deployment.runtimes.executorch import ExecutorchRuntime
from src.training.classifier import Classifier


class Difficult(nn.Module):
    """ReLU6 after a normalised convolution with another epsilon, padding, ReLU after pooling."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8, eps=0.1)
        self.two = nn.Conv2d(8, 8, 3, stride=2)
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(8 * 3 * 3, len(CLASSES))
        nn.init.uniform_(self.norm.running_var, 0.01, 0.1)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = nn.functional.relu6(self.norm(self.one(images)) * 4)
        maps = nn.functional.max_pool2d(self.two(nn.functional.pad(maps, (0, 1, 0, 1))), 2)
        logits: torch.Tensor = self.out(self.drop(nn.functional.relu(maps).flatten(1)))
        return 2 * logits


def test_a_tuned_file_has_the_output_of_the_net(sample: Sample, tmp_path: Path) -> None:
    net, settings, pictures = Difficult(), [], sample.pictures
    images = torch.from_numpy(pictures[:8]).permute(0, 3, 1, 2)

    def tune(classifier: Classifier, epochs: int, lr: float) -> None:
        settings.append((epochs, lr))
        exported = classifier.net
        assert isinstance(exported, ExportedNet)
        assert exported.training
        classifier(images).square().mean().backward()
        gradients = [weight.grad for weight in exported.parameters() if weight.dim() > 1]
        assert len(gradients) == 3
        assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
        nodes = exported.graph.graph.nodes
        dropout = [node.args[1:] for node in nodes if "dropout" in str(node.target)]
        assert dropout == [(0.1, True)]
        buffers = {name: buffer.clone() for name, buffer in exported.named_buffers()}
        classifier.eval()
        with torch.no_grad():
            assert torch.equal(classifier(images * 0), classifier(images * 0))  # no dropout
        for name, buffer in exported.named_buffers():
            assert "enabled" in name or torch.equal(buffer, buffers[name])  # no observers

    source = context(net, sample.data, tmp_path, tune)
    with torch.inference_mode():
        expected = source.camera()(torch.from_numpy(pictures)).numpy()
    method = ExecutorchInt8(epochs=3, lr=0.01, images=32, float_last=0)
    model = method.compress(source)
    assert settings == [(3, 0.01)]
    assert model.classifier.net is net
    assert model.file == tmp_path / "model.pte"
    runtime = ExecutorchRuntime(model.file)
    assert runtime.description.precision == "int8"
    assert np.abs(in_batches(runtime, pictures) - expected).mean() < NEAR
    assert (model.facts["layers"], model.facts["share_of_weights"]) == (3, 1)
    assert model.facts["calibration"] == "moving_average"


def test_weights_are_int8_with_a_scale_per_channel(sample: Sample) -> None:
    source = context(confident(), sample.data, Path())
    prepared = ExecutorchInt8(method="minmax").prepare(source, source.calibration_images(32, 0))
    prepared.load_state_dict(copy.deepcopy(prepared.state_dict()))  # as the best epoch's is
    quantised = convert_pt2e(prepared.graph)
    buffers = dict(quantised.named_buffers())
    shapes = {tuple(item.shape) for item in buffers.values() if item.dtype == torch.int8}
    assert shapes == {(8, 3, 3, 3), (64, 392), (8, 64)}
    assert {tuple(b.shape) for name, b in buffers.items() if "scale" in name} == {(8,), (64,)}
    camera = source.camera()
    camera.net = ExportedNet(quantised).eval()
    with torch.inference_mode():
        assert sample.is_near(camera(torch.from_numpy(sample.pictures)).numpy())
