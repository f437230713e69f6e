"""The contract of a loss: every file of conf/loss builds a loss that keeps it."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from src.metrics.classification import one_per_class

FILES = sorted((Path(__file__).resolve().parents[2] / "conf" / "loss").glob("*.yaml"))
VARIANTS = {  # beside the files
    "focal": [{"gamma": 0.5}],
    "weighted_cross_entropy": [{"label_smoothing": 0.1}],
    "distillation": [{"weighted": True, "gamma": 1.0}],
    "balanced_softmax": [{"prior": 0.5}, {"label_smoothing": 0.1, "weighted": True}],
}
CASES = [
    pytest.param((file, change), id=f"{file.stem}{change or ''}")
    for file in FILES
    for change in [{}, *VARIANTS.get(file.stem, [])]
]


@pytest.fixture(params=CASES)
def build(request: pytest.FixtureRequest):
    """Build the loss of a file from the class counts."""
    file, change = request.param
    config = OmegaConf.load(file)
    config.pop("teacher", None)  # without teachers, as in evaluation
    return lambda counts: instantiate({**config, **change}, class_counts=counts, _convert_="all")


def test_one_column_is_two_classes_of_logits_zero_and_z(build) -> None:
    z, target = torch.randn(30, 1) * 4, torch.randint(2, (30,))
    loss = build([20, 3])
    torch.testing.assert_close(
        loss(z, target), loss(torch.cat([torch.zeros_like(z), z], 1), target)
    )


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("size", [1e2, 1e5, 1e30])
def test_loss_and_gradient_are_finite_at_extreme_logits(build, outputs: int, size: float) -> None:
    classes = max(outputs, 2)
    logits = (torch.eye(classes, outputs).repeat(2, 1) * 2 - 1).mul(size).requires_grad_()
    target = torch.arange(2 * classes) % classes
    for labels in (target, (target + 1) % classes):  # all correct, then all wrong
        value = build(list(range(1, classes + 1)))(logits, labels)
        (gradient,) = torch.autograd.grad(value, logits)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
        assert value >= 0


def test_gradient_is_that_of_finite_differences(build) -> None:
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    loss, target = build([5, 1, 2]).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits)


def test_better_answer_costs_less(build) -> None:
    loss, target = build([5, 1, 2]), torch.tensor([0, 1, 2])
    costs = [loss(torch.eye(3) * confidence, target).item() for confidence in (-2.0, 0.0, 2.0)]
    assert costs == sorted(costs, reverse=True)


def test_weights_are_not_in_the_checkpoint_and_follow_the_device(build) -> None:
    loss: nn.Module = build([5, 1, 2])
    assert not loss.state_dict()
    assert all(buffer.device.type == "meta" for buffer in loss.to("meta").buffers())


@pytest.mark.parametrize("outputs", [1, 3])
def test_soft_labels_of_one_class_are_that_label_and_mixtures_lie_between(
    build, outputs: int
) -> None:
    classes = max(outputs, 2)
    loss, logits = build([5, 1, 2][:classes]), torch.randn(8, outputs) * 3
    first, second = torch.randint(classes, (8,)), torch.randint(classes, (8,))
    ones, others = nn.functional.one_hot(torch.stack([first, second]), classes).float()
    torch.testing.assert_close(loss(logits, ones), loss(logits, first))
    single = logits[:1], 0.3 * ones[:1] + 0.7 * others[:1]
    ends = [loss(logits[:1], label[:1]) for label in (first, second)]
    assert min(ends) - 1e-5 <= loss(*single) <= max(ends) + 1e-5
    if loss.weight is None:
        expected = 0.3 * loss(logits, first) + 0.7 * loss(logits, second)
        torch.testing.assert_close(loss(logits, 0.3 * ones + 0.7 * others), expected)


def test_class_without_training_images_is_refused_by_weights(build) -> None:
    if list(build([1, 1]).buffers()):
        expected = r"class_counts: must be .* but got \[5, 0, 2\] .*class 1\)"
        with pytest.raises(Exception, match=expected):
            build([5, 0, 2])
    else:
        build([5, 0, 2])


def test_one_column_becomes_two_and_more_stay() -> None:
    z, many = torch.randn(5, 1), torch.randn(5, 3)
    torch.testing.assert_close(one_per_class(z).softmax(1)[:, 1:], z.sigmoid())
    assert one_per_class(many) is many
