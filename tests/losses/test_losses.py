"""What every loss keeps: one list of losses, one set of tests."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from src.core.config import check
from src.core.errors import ConfigError
from src.losses.cross_entropy import CrossEntropy
from src.losses.focal import Focal
from src.metrics.classification import one_per_class

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "cross_entropy": CrossEntropy,
    "weighted_cross_entropy": partial(CrossEntropy, weighted=True),
    "label_smoothing": partial(CrossEntropy, label_smoothing=0.1),
    "weighted_label_smoothing": partial(CrossEntropy, weighted=True, label_smoothing=0.1),
    "focal": Focal,
    "focal_root": partial(Focal, gamma=0.5),
    "weighted_focal": partial(Focal, weighted=True),
}


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest) -> Callable[..., nn.Module]:
    return LOSSES[request.param]


def test_binary_is_two_classes_of_logits_zero_and_z(loss: Callable[..., nn.Module]) -> None:
    z, target = torch.randn(30, 1) * 4, torch.randint(2, (30,))
    criterion = loss(class_counts=[20, 3])
    torch.testing.assert_close(
        criterion(z, target), criterion(torch.cat([torch.zeros_like(z), z], 1), target)
    )


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("size", [1e2, 1e5, 1e30])
def test_loss_and_gradient_are_finite_at_extreme_logits(
    loss: Callable[..., nn.Module], outputs: int, size: float
) -> None:
    classes = max(outputs, 2)
    logits = (torch.eye(classes, outputs).repeat(2, 1) * 2 - 1).mul(size).requires_grad_()
    target = torch.arange(2 * classes) % classes
    for answer in (target, (target + 1) % classes):  # all right, then all wrong
        value = loss(class_counts=list(range(1, classes + 1)))(logits, answer)
        (gradient,) = torch.autograd.grad(value, logits)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
        assert value >= 0


def test_gradient_is_that_of_finite_differences(loss: Callable[..., nn.Module]) -> None:
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    criterion = loss(class_counts=[5, 1, 2]).double()
    assert torch.autograd.gradcheck(
        lambda x: criterion(x, torch.tensor([0, 1, 2, 0, 1, 2])), logits
    )


def test_better_answer_costs_less(loss: Callable[..., nn.Module]) -> None:
    target = torch.tensor([0, 1, 2])
    criterion = loss(class_counts=[5, 1, 2])
    costs = [criterion(torch.eye(3) * confidence, target).item() for confidence in (-2.0, 0.0, 2.0)]
    assert costs == sorted(costs, reverse=True)


def test_weights_are_not_in_the_checkpoint_and_follow_the_device(
    loss: Callable[..., nn.Module],
) -> None:
    criterion = loss(class_counts=[5, 1, 2])
    assert not criterion.state_dict()
    assert all(buffer.device.type == "meta" for buffer in criterion.to("meta").buffers())


def test_class_without_training_images_matters_to_weights_alone(
    loss: Callable[..., nn.Module],
) -> None:
    weighted = any(True for _ in loss(class_counts=[1, 1]).buffers())
    if weighted:
        with pytest.raises(
            ConfigError, match=r"^class_counts: must be .* but got \[5, 0, 2\] .*class 1\)"
        ):
            loss(class_counts=[5, 0, 2])
    else:
        loss(class_counts=[5, 0, 2])


@pytest.mark.parametrize(
    ("target", "key", "value"),
    [
        ("cross_entropy.CrossEntropy", "label_smoothing", 1.0),
        ("cross_entropy.CrossEntropy", "label_smoothing", -0.1),
        ("cross_entropy.CrossEntropy", "weighted", "perhaps"),
        ("focal.Focal", "gamma", -1),
    ],
)
def test_impossible_value_is_refused_with_its_key(target: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^loss\.{key}: "):
        check({"loss": {"_target_": f"src.losses.{target}", "class_counts": [1, 1], key: value}})


def test_one_column_becomes_two_and_more_stay() -> None:
    z = torch.randn(5, 1)
    torch.testing.assert_close(one_per_class(z).softmax(1)[:, 1:], z.sigmoid())
    many = torch.randn(5, 3)
    assert one_per_class(many) is many
