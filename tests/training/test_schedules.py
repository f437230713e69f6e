import numpy as np
import pytest
import torch
from torch import nn

from src.training import schedules


@pytest.mark.parametrize("schedule", [schedules.onecycle, schedules.cosine])
def test_schedules_rise_to_each_groups_rate_and_fall_to_nearly_nothing(schedule: object) -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": parameters[:1], "lr": 1.0}, {"params": parameters[1:], "lr": 0.1}]
    )
    scheduler = schedule(optimizer, 100)  # type: ignore[operator]
    rates = []
    for _ in range(100):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    peaks = np.max(rates, axis=0)
    np.testing.assert_allclose(peaks, [1.0, 0.1], rtol=1e-6)
    assert rates[0][0] < 0.25
    assert rates[-1][0] < 0.01
    np.testing.assert_allclose(np.array(rates)[:, 0], 10 * np.array(rates)[:, 1], rtol=1e-6)


def test_constant_schedule_leaves_the_rate_alone() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = schedules.constant(optimizer, 5)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.3
