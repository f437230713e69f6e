"""Distillation against hand arithmetic and torch's own divergence."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from src.losses.distillation import Distillation


class Fixed(nn.Module):
    """A teacher with the same answer for every image; it keeps its inputs."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)
        self.inputs: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.inputs.append(images)
        return self.logits.expand(len(images), -1)


def divergence(logits: torch.Tensor, teacher: list[float], temperature: float) -> float:
    """The loss without a share of the labels."""
    counts, target = [1] * logits.shape[1], torch.zeros(len(logits), dtype=torch.int64)
    loss = Distillation(counts, [Fixed(teacher)], temperature, share=1.0)
    return float(loss(logits, target, torch.rand(len(logits), 3, 4, 4)))


def test_divergence_by_hand() -> None:
    # student 1/2 and 1/2, teacher 3/4 and 1/4
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    value = divergence(torch.zeros(5, 2), [math.log(3), 0.0], temperature=1.0)
    assert value == pytest.approx(expected, abs=1e-6)
    # logits 2 and 0 at temperature 2 are 1 and 0: e / (1 + e); teacher 1/2 and 1/2; times 4
    p = math.e / (1 + math.e)
    expected = 4 * (0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)))
    value = divergence(torch.tensor([[2.0, 0.0]]), [1.0, 1.0], temperature=2.0)
    assert value == pytest.approx(expected, abs=1e-6)


@settings(max_examples=20)
@given(st.floats(0.5, 10), st.integers(2, 5))
def test_divergence_is_zero_for_equal_answers_only(temperature: float, classes: int) -> None:
    answers = torch.randn(classes)
    logits = answers.expand(4, classes)
    assert divergence(logits, answers.tolist(), temperature) == pytest.approx(0, abs=1e-4)
    assert divergence(logits + torch.eye(4, classes) * 3, answers.tolist(), temperature) > 0


def test_mean_of_the_teachers_and_share() -> None:
    logits, images = torch.randn(6, 3), torch.rand(6, 3, 8, 8)
    target = torch.tensor([0, 1, 2, 0, 1, 2])
    teachers = [Fixed([1.0, 0.0, 0.0]), Fixed([0.0, 0.0, 4.0])]
    loss = Distillation([5, 3, 1], teachers, temperature=2.0, share=0.3, weighted=True)
    softened = torch.tensor([[0.5, 0, 0], [0.0, 0, 2.0]]).softmax(dim=1)
    answers = softened.mean(dim=0)
    student = torch.log_softmax(logits / 2, dim=1)
    soft = 4 * (answers * (answers.log() - student)).sum(dim=1).mean()
    hard = F.cross_entropy(logits, target, torch.tensor([9 / 15, 9 / 9, 9 / 3]))
    torch.testing.assert_close(loss(logits, target, images), 0.7 * hard + 0.3 * soft)
    assert all(teacher.inputs[0] is images for teacher in teachers)


def test_label_loss_may_be_focal() -> None:
    # logits 0 and log(3): the target has 3/4, the factor is (1/4)^2
    logits, target = torch.tensor([[0.0, math.log(3)]]), torch.tensor([1])
    loss = Distillation([1, 1], gamma=2.0)
    assert float(loss(logits, target)) == pytest.approx(-math.log(0.75) / 16, abs=1e-6)


def test_teachers_are_used_in_training_only_and_not_part_of_the_state() -> None:
    teacher = Fixed([9.0, 0.0])
    loss = Distillation([1, 1], [teacher])
    logits, target = torch.randn(3, 2), torch.tensor([0, 1, 1])
    torch.testing.assert_close(loss(logits, target), F.cross_entropy(logits, target))
    assert not teacher.inputs
    assert not list(loss.modules())[1:]
    assert not loss.state_dict()


def test_one_column_of_logits_is_two_classes() -> None:
    z, target, images = torch.randn(7, 1), torch.randint(2, (7,)), torch.rand(7, 3, 4, 4)
    both = torch.cat([torch.zeros_like(z), z], dim=1)
    one, two = Distillation([3, 4], [Fixed([1.5])]), Distillation([3, 4], [Fixed([0.0, 1.5])])
    torch.testing.assert_close(one(z, target, images), two(both, target, images))
