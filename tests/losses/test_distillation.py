"""Distillation against hand arithmetic and torch's own divergence."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from src.losses.distillation import Distillation


def divergence(logits: torch.Tensor, teacher: list[float], temperature: float) -> float:
    """The loss without a share of the labels."""
    counts, target = [1] * logits.shape[1], torch.zeros(len(logits), dtype=torch.int64)
    loss = Distillation(counts, temperature=temperature, share=1.0)
    return float(loss(logits, target, torch.tensor(teacher).expand(len(logits), 1, -1)))


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
    logits, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    teachers = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 4.0]]).expand(6, 2, 3)
    loss = Distillation([5, 3, 1], temperature=2.0, share=0.3, weighted=True)
    softened = torch.tensor([[0.5, 0, 0], [0.0, 0, 2.0]]).softmax(dim=1)
    answers = softened.mean(dim=0)
    student = torch.log_softmax(logits / 2, dim=1)
    soft = 4 * (answers * (answers.log() - student)).sum(dim=1).mean()
    hard = F.cross_entropy(logits, target, torch.tensor([9 / 15, 9 / 9, 9 / 3]))
    torch.testing.assert_close(loss(logits, target, teachers), 0.7 * hard + 0.3 * soft)


def test_label_loss_may_be_focal() -> None:
    # logits 0 and log(3): the target has 3/4, the factor is (1/4)^2
    logits, target = torch.tensor([[0.0, math.log(3)]]), torch.tensor([1])
    loss = Distillation([1, 1], gamma=2.0)
    assert float(loss(logits, target)) == pytest.approx(-math.log(0.75) / 16, abs=1e-6)


def test_without_teachers_answers_it_is_the_label_loss_and_they_are_not_part_of_the_state() -> None:
    loss = Distillation([1, 1], [nn.Linear(2, 2)])
    logits, target = torch.randn(3, 2), torch.tensor([0, 1, 1])
    torch.testing.assert_close(loss(logits, target), F.cross_entropy(logits, target))
    assert not list(loss.modules())[1:]
    assert not loss.state_dict()


def test_one_column_of_logits_is_two_classes() -> None:
    z, target = torch.randn(7, 1), torch.randint(2, (7,))
    both = torch.cat([torch.zeros_like(z), z], dim=1)
    loss = Distillation([3, 4])
    one, two = torch.full((7, 1, 1), 1.5), torch.tensor([0.0, 1.5]).expand(7, 1, 2)
    torch.testing.assert_close(loss(z, target, one), loss(both, target, two))
