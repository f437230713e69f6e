from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from src.training import schedules


def rates(schedule: Callable[..., Any]) -> np.ndarray:
    """Of two groups of parameters, with rates 1 and 0.1, in 100 steps."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    optimizer = torch.optim.SGD(groups)
    scheduler, values = schedule(optimizer, 100), []
    for _ in range(100):
        values.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return np.array(values)


@pytest.mark.parametrize("schedule", [schedules.onecycle, schedules.cosine])
def test_schedules_rise_to_each_groups_rate_and_fall_to_nearly_nothing(schedule: Any) -> None:
    first, second = rates(schedule).T
    np.testing.assert_allclose([first.max(), second.max()], [1.0, 0.1], rtol=1e-6)
    assert first[0] < 0.25
    assert first[-1] < 0.01
    np.testing.assert_allclose(first, 10 * second, rtol=1e-6)


def test_constant_schedule_leaves_the_rate_alone() -> None:
    assert (rates(schedules.constant) == [1.0, 0.1]).all()
