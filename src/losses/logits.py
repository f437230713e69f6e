"""The two shapes in which a net gives its logits, made one."""

import torch
from torch import Tensor


def one_per_class(logits: Tensor) -> Tensor:
    """Logits with a column a class, (N, K), K >= 2.

    Args:
        logits: (N, K), returned as they are, or (N, 1) for two classes: z is the log-odds of class 1. It becomes
            [0, z], whose softmax is [1 - sigmoid(z), sigmoid(z)], so that all that follows needs one formula.
    """
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits
