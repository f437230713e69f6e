"""The contract of a loss, and balanced class weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from src.core.errors import ConfigError


def balanced(class_counts: Sequence[int]) -> Tensor:
    """Weights n / (K * n_c), float32 (K,): "balanced" of scikit-learn (King & Zeng 2001).

    Their mean over the training images is 1.

    Args:
        class_counts: Training images of each class, in label order.

    Raises:
        ConfigError: A class has no training image, so its weight would be infinite.
    """
    counts = torch.as_tensor(list(class_counts), dtype=torch.float64)
    empty = [str(label) for label, count in enumerate(class_counts) if count <= 0]
    if empty or len(counts) == 0:
        raise ConfigError(
            "class_counts",
            f"must be at least 1 each for class weights, but got {list(class_counts)} (no training "
            f"image of class {', '.join(empty) or 'any'}); take a loss without weights or another "
            "split",
        )
    return (counts.sum() / (len(counts) * counts)).float()


class ClassWeightedLoss(nn.Module):
    """A loss whose classes may be weighted inversely to their counts; base of all losses here.

    To add a loss, write a class in `src/losses/<name>.py` and `conf/loss/<name>.yaml`, whose
    `_target_` names it. It need not inherit from this class. The framework builds it with the
    other keys of the config and

    - `class_counts`: training images of each class as an epoch visits them, in label order;
    - `teachers`: only if the config has a key `teacher` (a run id or a list of ids): the trained
      networks of these runs, images -> logits. List `teacher` in `config_only`.

    It calls `loss(logits, target)` with logits (N, K), or (N, 1) for two classes, and labels, int64
    (N,), and expects a scalar. A loss with the attribute `needs_images = True` gets the training
    batch too, `images=`, (N, 3, S, S) in [0, 1] or uint8; in evaluation it is called without it.

    Args:
        class_counts: Training images of each class, in label order.
        weighted: Whether `weight` is `balanced(class_counts)`, not None.

    Attributes:
        weight: Weight of each class, (K,), or None. It is not part of the state dict.

    Raises:
        ConfigError: `weighted`, and a class has no training images.
    """

    weight: Tensor | None
    needs_images = False

    def __init__(self, class_counts: Sequence[int], weighted: bool) -> None:
        super().__init__()
        weight = balanced(class_counts) if weighted else None
        self.register_buffer("weight", weight, persistent=False)
