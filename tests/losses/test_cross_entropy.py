import math

import pytest
import torch
import torch.nn.functional as F

from src.losses.cross_entropy import CrossEntropy, cross_entropy


def test_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 5.0], [4.0, 4.0, 2.0]]).log()
    loss = CrossEntropy(class_counts=[1, 1, 1])(logits, torch.tensor([2, 2]))
    assert loss.item() == pytest.approx(-(math.log(5 / 8) + math.log(2 / 10)) / 2, rel=1e-6)


def test_weighted_mean_is_divided_by_the_sum_of_weights() -> None:
    logits = torch.tensor([[3.0, 1.0], [3.0, 1.0]]).log()
    # counts 9 and 1: weights 10/(2*9) and 10/(2*1)
    loss = CrossEntropy(class_counts=[9, 1], weighted=True)(logits, torch.tensor([0, 1]))
    first, second = 10 / 18, 10 / 2
    expected = (first * -math.log(3 / 4) + second * -math.log(1 / 4)) / (first + second)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_smoothed_labels_by_hand() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1]])
    loss = CrossEntropy(class_counts=[1, 1, 1], label_smoothing=0.3)(p.log(), torch.tensor([0]))
    expected = -(0.8 * math.log(0.7) + 0.1 * math.log(0.2) + 0.1 * math.log(0.1))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy_of_torch(smoothing: float) -> None:
    logits, target = torch.randn(50, 1) * 3, torch.randint(2, (50,))
    smoothed = target * (1 - smoothing) + smoothing / 2
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], smoothed)
    torch.testing.assert_close(cross_entropy(logits, target, label_smoothing=smoothing), expected)
    weight = torch.tensor([0.6, 3.0])[target]
    summed = F.binary_cross_entropy_with_logits(
        logits[:, 0], target.float(), weight=weight, reduction="sum"
    )
    weighted = cross_entropy(logits, target, torch.tensor([0.6, 3.0]))
    torch.testing.assert_close(weighted, summed / weight.sum())
