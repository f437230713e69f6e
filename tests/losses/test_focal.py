import math

import kornia.losses
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from src.losses.focal import Focal


def test_by_hand() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    loss = Focal(class_counts=[1, 1, 1], gamma=2)(p.log(), torch.tensor([1, 2]))
    expected = -(0.8**2 * math.log(0.2) + 0.2**2 * math.log(0.8)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    # the weighted mean is divided by the sum of weights; counts 9 and 1: the second counts 9 times
    p = torch.tensor([[0.7, 0.3], [0.6, 0.4]])
    loss = Focal(class_counts=[9, 1], gamma=1, weighted=True)(p.log(), torch.tensor([0, 1]))
    expected = -(0.3 * math.log(0.7) + 9 * 0.6 * math.log(0.4)) / 10
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 1.0, 4.0])])
def test_gamma_near_zero_is_cross_entropy(weight: torch.Tensor | None) -> None:
    logits, target = torch.randn(40, 3) * 4, torch.randint(3, (40,))
    # counts 8, 4 and 1: weights 13/24, 13/12 and 13/3, which are as 0.5, 1 and 4
    loss = Focal([8, 4, 1], gamma=1e-9, weighted=weight is not None)
    torch.testing.assert_close(loss(logits, target), F.cross_entropy(logits, target, weight))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_losses_of_torchvision_and_kornia(gamma: float) -> None:
    logits, target = torch.randn(60, 1) * 3, torch.randint(2, (60,))
    expected = sigmoid_focal_loss(
        logits[:, 0], target.float(), alpha=-1, gamma=gamma, reduction="mean"
    )
    torch.testing.assert_close(Focal([1, 1], gamma)(logits, target), expected)
    logits, target = torch.randn(60, 5) * 3, torch.randint(5, (60,))
    expected = kornia.losses.focal_loss(logits, target, alpha=None, gamma=gamma, reduction="none")
    torch.testing.assert_close(Focal([1] * 5, gamma)(logits, target), expected.sum(1).mean())


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0, 8.0])
def test_gradient_of_a_perfect_answer_is_finite(gamma: float) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [0.0, 60.0, 0.0]], requires_grad=True)
    Focal([1, 1, 1], gamma)(logits, torch.tensor([0, 1])).backward()
    assert torch.isfinite(logits.grad).all()
