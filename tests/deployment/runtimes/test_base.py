"""Unsupported operators are named; batches are filled up."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from src.core.errors import UserError
from src.deployment.description import Description
from src.deployment.runtimes.base import ImageBatch, Probabilities, in_batches, naming_operators
from src.deployment.runtimes.eager import CameraNet
from src.deployment.runtimes.formats import FORMATS

DESCRIPTION = Description("3f2a", "odd", ("nv", "mel"), 4, "squash", "x", "grouped", "free")


class Bessel(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(images.flatten(1))[:, :2]


class DataDependent(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = images.flatten(1)[:, :2]
        return output * 2 if images.sum() > 3 else output


@pytest.mark.parametrize(
    ("name", "net", "message"),
    [
        ("onnx", Bessel, r"has no operator for [\w.]*bessel_j0 of this net"),
        ("executorch", DataDependent, r"shows \(return output \* 2 if images\.sum\(\) > 3"),
    ],
)
def test_what_a_format_does_not_support_is_named(
    name: str, net: type[nn.Module], message: str, tmp_path: Path
) -> None:
    camera = CameraNet(net(), [0.5] * 3, [0.2] * 3)
    with pytest.raises(UserError, match=message) as caught:
        FORMATS[name].write(camera, DESCRIPTION, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "operators"),
    [
        ("Lowering not found: aten.special_j0.default\n\nWhile executing %x", "aten.special_j0 of"),
        ("%n : call_function[target=torch.ops.aten.nonzero.default](args = ())", "aten.nonzero of"),
        (
            "Operator torch._ops.aten.b.default is not in Core ATen\n"
            "Operator torch._ops.aten.a.out is not in",
            "aten.a.out, aten.b of",
        ),
    ],
)
def test_the_messages_of_each_exporter_are_read(text: str, operators: str) -> None:
    message = f"^LiteRT has no operator for {operators}"
    with pytest.raises(UserError, match=message), naming_operators("LiteRT"):
        raise RuntimeError(text)


def test_other_exceptions_pass_unchanged() -> None:
    with pytest.raises(ZeroDivisionError), naming_operators("LiteRT"):
        _ = 1 / 0


@pytest.mark.parametrize(("batch", "calls"), [(None, [4, 1]), (3, [3, 3])])
def test_a_runtime_with_a_fixed_batch_gets_a_full_one(batch: int | None, calls: list[int]) -> None:
    class Means:
        name, description = "means", DESCRIPTION

        def __init__(self) -> None:
            self.batch, self.sizes = batch, list[int]()

        def __call__(self, pictures: ImageBatch) -> Probabilities:
            self.sizes.append(len(pictures))
            return pictures.mean(axis=(1, 2), dtype=np.float32)

    pictures = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    runtime = Means()
    np.testing.assert_allclose(in_batches(runtime, pictures, 4), pictures.mean(axis=(1, 2)))
    assert runtime.sizes == calls
