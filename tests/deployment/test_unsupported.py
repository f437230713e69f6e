"""Operators that a format cannot hold are named."""

from pathlib import Path

import pytest
import torch
from torch import nn

from src.core.errors import UserError
from src.deployment.description import Description
from src.deployment.runtimes.base import naming_operators
from src.deployment.runtimes.eager import CameraNet
from src.deployment.runtimes.files import FORMATS

DESCRIPTION = Description("3f2a", "odd", ("nv", "mel"), 4, "squash", "x", "grouped", "free")


class Bessel(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(images.flatten(1))[:, :2]


class Depends(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = images.flatten(1)[:, :2]
        return found * 2 if images.sum() > 3 else found


def test_an_operator_is_named(tmp_path: Path) -> None:
    camera = CameraNet(Bessel(), [0.5] * 3, [0.2] * 3)
    with pytest.raises(UserError, match=r"has no operator for [\w.]*bessel_j0 of this net") as told:
        FORMATS["onnx"].write(camera, DESCRIPTION, tmp_path / "model")
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


def test_a_step_that_the_picture_decides_is_shown(tmp_path: Path) -> None:
    camera = CameraNet(Depends(), [0.5] * 3, [0.2] * 3)
    with pytest.raises(
        UserError,
        match=r"depends on what the picture shows \(return found \* 2 if images\.sum\(\) > 3",
    ):
        FORMATS["executorch"].write(camera, DESCRIPTION, tmp_path / "model")


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (
            "Lowering not found: aten.special_bessel_j0.default\n\nWhile executing %x",
            "aten.special_bessel_j0 of",
        ),
        (
            "while executing %n : call_function[target=torch.ops.aten.nonzero.default](args = ())",
            "aten.nonzero of",
        ),
        (
            "Operator torch._ops.aten.b.default is not in Core ATen\nOperator torch._ops.aten.a.out is not in",
            "aten.a.out, aten.b of",
        ),
    ],
)
def test_each_exporter_is_understood(said: str, named: str) -> None:
    with (
        pytest.raises(UserError, match=f"^LiteRT has no operator for {named}"),
        naming_operators("LiteRT"),
    ):
        raise RuntimeError(said)


def test_another_failure_is_a_bug_and_stays_one() -> None:
    with pytest.raises(ZeroDivisionError), naming_operators("LiteRT"):
        _ = 1 / 0
