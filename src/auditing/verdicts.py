"""What a claim comes to, from what its readings lead to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from src.auditing.figures import Found
from src.auditing.printed import Printed

REPRODUCED = "reproduced"
OTHER_READING = "reproduced under another reading"
CONTRADICTED = "contradicted by its own numbers"
NOT_REPRODUCED = "not reproduced"
NOT_TESTABLE = "not testable"
VERDICTS = (REPRODUCED, OTHER_READING, CONTRADICTED, NOT_REPRODUCED, NOT_TESTABLE)
UNDECIDED = "undecided: the interval contains the limit"
Relation = Literal["equal", "below", "above"]


@dataclass(frozen=True)
class ClaimOutcome:
    """What a reading leads to.

    Attributes:
        reading: Its name.
        found: Its figure.
        beside: It decides nothing.
        agrees: With what is printed; None where there is no figure to compare, or it leaves the
            limit undecided.
        unit: Of the figure, where it is not the printed one's.
    """

    reading: str
    found: Found
    beside: bool
    agrees: bool | None
    unit: str | None = None

    @property
    def decides(self) -> bool:
        """Whether it speaks for or against the claim."""
        return not self.beside and not self.found.problem and self.agrees is not None


@dataclass(frozen=True)
class ClaimVerdict:
    """One of `VERDICTS`, and the outcome it rests on (None: on none)."""

    name: str
    outcome: ClaimOutcome | None = None


def agrees(found: Found, number: Printed, relation: Relation) -> bool | None:
    """Whether a figure is as the claim says; None without a figure, and where it cannot be said.

    Equal: some value in its range would be printed so. Below and above: the whole range keeps the
        limit, or none of it
    does; of a range with the limit in it, and of a figure without a range, None (`UNDECIDED`).
    """
    if math.isnan(found.value):
        return None
    if relation == "equal":
        low, high = (found.value, found.value) if math.isnan(found.low) else (found.low, found.high)
        return number.admits(low, high)
    if relation == "below":
        kept, broken = found.high < number.value, found.low >= number.value
    else:
        kept, broken = found.low > number.value, found.high <= number.value
    return kept if kept or broken else None


def decide(outcomes: Sequence[ClaimOutcome]) -> ClaimVerdict:
    """The verdict on a claim that can be tested.

    The first reading, in the paper's order, that agrees reproduces the claim. Where none does,
    arithmetic on nothing but printed figures contradicts it; else it is not reproduced if its first
    reading could be tested, and not testable if that one could not.

    Args:
        outcomes: One a reading, the paper's own first.
    """
    own = [outcome for outcome in outcomes if not outcome.beside]
    deciding = [outcome for outcome in own if outcome.decides]
    for outcome in deciding:
        if outcome.agrees:
            return ClaimVerdict(REPRODUCED if outcome is own[0] else OTHER_READING, outcome)
    for outcome in deciding:
        if outcome.found.origins == {"printed"}:
            return ClaimVerdict(CONTRADICTED, outcome)
    if deciding and deciding[0] is own[0]:
        return ClaimVerdict(NOT_REPRODUCED, own[0])
    return ClaimVerdict(NOT_TESTABLE, own[0] if own else None)
