import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from src.core.errors import ConfigError
from src.losses.cross_entropy import CrossEntropy


@given(st.lists(st.integers(1, 200), min_size=2, max_size=9))
def test_balanced_of_scikit_learn(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
    weight = CrossEntropy(counts, weighted=True).weight
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("counts", [[0, 3], [5, 0, 0], []])
def test_empty_class_is_refused(counts: list[int]) -> None:
    with pytest.raises(ConfigError, match="^class_counts: "):
        CrossEntropy(counts, weighted=True)
    assert CrossEntropy(counts, weighted=False).weight is None


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


def test_weighted_soft_labels_by_hand() -> None:
    # counts 9 and 1: class 1 counts 9 times as much as class 0; the image is three quarters class 0
    loss = CrossEntropy(class_counts=[9, 1], weighted=True)
    logits = torch.tensor([[0.2, 0.8]]).log()
    expected = -(0.75 * math.log(0.2) + 0.25 * 9 * math.log(0.8)) / (0.75 + 0.25 * 9)
    value = loss(logits, torch.tensor([[0.75, 0.25]]))
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_balanced_softmax_by_hand() -> None:
    # exp(logit) times the class's images: 3 * 9 and 1 * 1, then at strength 2: 3 * 81 and 1
    logits, target = torch.tensor([[3.0, 1.0]]).log(), torch.tensor([1])
    value = CrossEntropy(class_counts=[9, 1], prior=1.0)(logits, target)
    assert value.item() == pytest.approx(-math.log(1 / 28), rel=1e-5)
    value = CrossEntropy(class_counts=[9, 1], prior=2.0)(logits, target)
    assert value.item() == pytest.approx(-math.log(1 / 244), rel=1e-5)


def test_balanced_softmax_is_cross_entropy_with_log_priors() -> None:
    counts = torch.tensor([50.0, 7.0, 3.0])
    logits, target = torch.randn(40, 3) * 3, torch.randint(3, (40,))
    expected = F.cross_entropy(logits + (counts / counts.sum()).log(), target)
    torch.testing.assert_close(CrossEntropy([50, 7, 3], prior=1.0)(logits, target), expected)
    z, target = torch.randn(40, 1) * 3, torch.randint(2, (40,))
    expected = F.binary_cross_entropy_with_logits(z[:, 0] + math.log(5 / 20), target.float())
    torch.testing.assert_close(CrossEntropy([20, 5], prior=1.0)(z, target), expected)


def test_balanced_softmax_is_least_for_the_logits_of_equally_frequent_classes() -> None:
    """Without images only the prior can be learnt, and it is in the loss already."""
    logits = torch.zeros(1, 3, requires_grad=True)
    target = torch.tensor([0] * 50 + [1] * 7 + [2] * 3)
    CrossEntropy([50, 7, 3], prior=1.0)(logits.expand(60, 3), target).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(1, 3), atol=1e-6, rtol=0)


def test_priors_of_a_source_are_those_of_its_images() -> None:
    counts = [[30, 10], [0, 20]]  # class 0 is not in the second source: it counts as half an image
    loss = CrossEntropy([30, 30], prior=1.0, per_source=True, source_counts=counts)
    logits, target, source = torch.zeros(2, 2), torch.tensor([1, 1]), torch.tensor([0, 1])
    expected = -(math.log(10 / 40) + math.log(20 / 20.5)) / 2
    assert loss(logits, target, source=source).item() == pytest.approx(expected)
