"""Focal loss: plain and class-weighted."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge

from src.losses.cross_entropy import CrossEntropy


class Focal(CrossEntropy):
    """Mean of -(1 - p)^gamma log(p), p: probability of the target; see `CrossEntropy`."""

    def __init__(
        self,
        class_counts: Sequence[int],
        gamma: Annotated[float, Ge(0)] = 2.0,
        weighted: bool = False,
    ) -> None:
        super().__init__(class_counts, weighted, gamma=gamma)
