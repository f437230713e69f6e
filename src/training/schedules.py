"""Learning-rate schedules: functions of the optimizer and the number of steps."""

import math
from typing import Annotated

from annotated_types import Interval
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

Fraction = Annotated[float, Interval(gt=0, lt=1)]


def constant(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """The optimizer's learning rate, unchanged."""
    return LambdaLR(optimizer, lambda step: 1.0)


def onecycle(
    optimizer: Optimizer, total_steps: int, warmup: Fraction = 0.3, cycle_momentum: bool = True
) -> LRScheduler:
    """Rise to each parameter group's learning rate, then fall to nearly zero.

    Source: Smith & Topin 2019, arXiv 1708.07120.

    Args:
        optimizer: The learning rates of its groups are the peaks.
        total_steps: Number of training steps.
        warmup: Part of the steps spent rising, in (0, 1).
        cycle_momentum: Let momentum (Adam's first beta) fall from 0.95 to 0.85 and rise again, as
            in the paper; the optimizer's own value then has no effect.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    steps = max(total_steps, 2)
    return OneCycleLR(optimizer, peaks, steps, pct_start=warmup, cycle_momentum=cycle_momentum)


def cosine(optimizer: Optimizer, total_steps: int, warmup: Fraction = 0.05) -> LRScheduler:
    """Linear warm-up over a part `warmup` of the steps, in (0, 1), then half a cosine down to zero.

    The peaks are the learning rates of the optimizer's groups.

    Source: Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts.
    """
    rising = max(1, round(warmup * total_steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        progress = min(1.0, (step - rising) / max(1, total_steps - rising))
        return 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)
