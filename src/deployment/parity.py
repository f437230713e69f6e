"""Whether two runtimes answer alike: largest difference of probabilities, agreement of decisions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src.deployment.description import Decision
from src.deployment.runtime import Probabilities


@dataclass(frozen=True)
class Parity:
    """How alike the answers to the same pictures are.

    Attributes:
        images: Number of pictures.
        difference: Largest absolute difference of a probability; NaN where one is no number.
        same_class: Share of pictures with the same most probable class, in [0, 1].
        same_side: Share on the same side of the stored threshold; NaN where there is none.
        agreement: Share with the same decision, by class and by threshold.
    """

    images: int
    difference: float
    same_class: float
    same_side: float
    agreement: float


def compare(
    reference: Probabilities, found: Probabilities, classes: Sequence[str], decision: Decision | None
) -> Parity:
    """Hold a runtime's answers against those of the reference.

    Args:
        reference: Probabilities, (N, K).
        found: Of the same pictures, (N, K).
        classes: In the order of the probabilities.
        decision: With the threshold; None: only the most probable class is compared.
    """
    same_class = reference.argmax(axis=1) == found.argmax(axis=1)
    same_side = np.full(len(found), np.nan)
    agreement = same_class
    if decision is not None:
        column = list(classes).index(decision.positive)
        sides = [each[:, column].astype(float) >= decision.threshold for each in (reference, found)]
        agreement, same_side = same_class & (sides[0] == sides[1]), (sides[0] == sides[1]).astype(float)
    difference = np.abs(reference.astype(float) - found.astype(float)).max()
    return Parity(
        len(found), float(difference), float(same_class.mean()), float(same_side.mean()), float(agreement.mean())
    )
