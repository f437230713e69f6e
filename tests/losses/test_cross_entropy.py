import math

import pytest
import torch
import torch.nn.functional as F

from src.losses.cross_entropy import CrossEntropy


@pytest.mark.parametrize(
    ("probability", "target", "options", "expected"),
    [
        ([[1, 2, 5], [4, 4, 2]], [2, 2], {}, -(math.log(5 / 8) + math.log(2 / 10)) / 2),
        # counts 9 and 1: weights 10/(2*9) and 10/(2*1), so the second image counts 9 times
        (
            [[3, 1], [3, 1]],
            [0, 1],
            {"weighted": True},
            -(math.log(3 / 4) + 9 * math.log(1 / 4)) / 10,
        ),
        (
            [[7, 2, 1]],
            [0],
            {"label_smoothing": 0.3},
            -(0.8 * math.log(0.7) + 0.1 * math.log(0.2) + 0.1 * math.log(0.1)),
        ),
    ],
)
def test_by_hand(probability, target, options, expected) -> None:
    loss = CrossEntropy(class_counts=[9, 1], **options)
    value = loss(torch.tensor(probability).float().log(), torch.tensor(target))
    assert value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy_of_torch(smoothing: float) -> None:
    logits, target = torch.randn(50, 1) * 3, torch.randint(2, (50,))
    smoothed = target * (1 - smoothing) + smoothing / 2
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], smoothed)
    loss = CrossEntropy([30, 6], label_smoothing=smoothing)
    torch.testing.assert_close(loss(logits, target), expected)
    weight = torch.tensor([0.6, 3.0])[target]  # 36 / (2 * 30) and 36 / (2 * 6)
    summed = F.binary_cross_entropy_with_logits(
        logits[:, 0], target.float(), weight=weight, reduction="sum"
    )
    weighted = CrossEntropy([30, 6], weighted=True)(logits, target)
    torch.testing.assert_close(weighted, summed / weight.sum())
