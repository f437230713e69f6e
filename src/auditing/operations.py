"""The arithmetic that claims are held against: named operations on figures that are known to within their rounding.

Each result has a range: the operation at every corner of its operands' ranges. The operations are
monotone in each operand, so no rounded operand can lead out of it.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from src.core.errors import ConfigError

Range = tuple[float, float, float]  # value, least, largest


@dataclass(frozen=True)
class Operation:
    """What can be done with figures.

    Attributes:
        function: Of the operands' ranges.
        operands: How many it takes; None: two or more.
        shown: The arithmetic, the operands as {0}, {1} ...; empty: the operation's name and its
            operands.
    """

    function: Callable[[Sequence[Range]], Range]
    operands: int | None
    shown: str = ""

    def show(self, name: str, texts: Sequence[str]) -> str:
        """The arithmetic with its operands as texts."""
        return (
            self.shown.format(*texts)
            if self.shown
            else f"{name.replace('_', ' ')} of {', '.join(texts)}"
        )


def apply(name: str, operands: Sequence[Range], key: str = "operation") -> Range:
    """The result of an operation and its range.

    Raises:
        ConfigError: Too many operands or too few, or none that it is defined for.
    """
    operation = OPERATIONS[name]
    fits = len(operands) >= 2 if operation.operands is None else len(operands) == operation.operands
    if not fits:
        wanted = "two or more" if operation.operands is None else operation.operands
        raise ConfigError(key, f"{name} takes {wanted} figures, but got {len(operands)}")
    try:
        return operation.function(operands)
    except (ZeroDivisionError, ValueError, OverflowError) as error:
        values = ", ".join(f"{value:g}" for value, _, _ in operands)
        raise ConfigError(key, f"{name} is not defined for {values} ({error})") from error


def _at_corners(function: Callable[..., float]) -> Callable[[Sequence[Range]], Range]:
    def ranged(operands: Sequence[Range]) -> Range:
        ends = [(low, high) if low < high else (low,) for _, low, high in operands]
        corners = [function(*corner) for corner in itertools.product(*ends)]
        value = function(*(value for value, _, _ in operands))
        return value, min(value, *corners), max(value, *corners)

    return ranged


def precision(recall: float, specificity: float, prevalence: float) -> float:
    """Bayes: the share of malignant ones among those called malignant."""
    true, false = recall * prevalence, (1 - specificity) * (1 - prevalence)
    return true / (true + false)


def prevalence(precision: float, recall: float, specificity: float) -> float:
    """The share of malignant images at which the three belong to one classifier; Bayes solved for it."""
    odds = precision * (1 - specificity) / (recall * (1 - precision))
    return odds / (1 + odds)


def specificity(precision: float, recall: float, positives: float, images: float) -> float:
    """The share of the benign that are called benign, from what the other two say of so many images."""
    return 1 - _false_positives(precision, recall, positives) / (images - positives)


def true_negative_share(precision: float, recall: float, positives: float, images: float) -> float:
    """Benign ones called benign as a share of all images: what a slip in the denominator makes of the specificity."""
    return (images - positives - _false_positives(precision, recall, positives)) / images


def z_of_shares(first: float, second: float, number: float) -> float:
    """Difference of two shares of `number` cases each in standard errors, taken as independent.

    Of two classifiers on the same cases that is too few rather than too many: their answers agree
    more often.
    """
    pooled = (first + second) / 2
    return (first - second) / math.sqrt(2 * pooled * (1 - pooled) / number)


def z_of_areas(first: float, second: float, positives: float, negatives: float) -> float:
    """Difference of two areas under ROC curves in standard errors, taken as independent.

    Hanley & McNeil, The meaning and use of the area under a ROC curve, Radiology 143, 1982.
    """

    def variance(area: float) -> float:
        one, two = area / (2 - area), 2 * area**2 / (1 + area)
        spread = (
            area * (1 - area)
            + (positives - 1) * (one - area**2)
            + (negatives - 1) * (two - area**2)
        )
        return spread / (positives * negatives)

    return (first - second) / math.sqrt(variance(first) + variance(second))


def common_denominator(operands: Sequence[Range]) -> Range:
    """The least whole n of which all printed shares are whole parts; operands: least n, largest n, the shares.

    Raises:
        ValueError: There is none.
    """
    (least, *_), (most, *_), *shares = operands
    for number in range(math.ceil(least), math.floor(most) + 1):
        if all(
            math.ceil(low * number - 1e-9) <= math.floor(high * number + 1e-9)
            for _, low, high in shares
        ):
            return float(number), float(number), float(number)
    raise ValueError(f"no number from {least:g} to {most:g} has them all as whole parts")


def _rank_from_lowest(operands: Sequence[Range]) -> Range:
    rank = 1.0 + sum(other[0] < operands[0][0] for other in operands[1:])
    return rank, rank, rank


def _rank_from_highest(operands: Sequence[Range]) -> Range:
    return _rank_from_lowest([(-value, -high, -low) for value, low, high in operands])


def _false_positives(precision: float, recall: float, positives: float) -> float:
    return recall * positives * (1 / precision - 1)


def _rounded_up(total: float, share: float) -> float:
    return float(math.ceil(round(total * share, 6)))


OPERATIONS = {
    "sum": Operation(_at_corners(lambda *each: math.fsum(each)), None),
    "product": Operation(_at_corners(lambda *each: math.prod(each)), None),
    "difference": Operation(_at_corners(lambda a, b: a - b), 2, "{0} - {1}"),
    "ratio": Operation(_at_corners(lambda a, b: a / b), 2, "{0} / {1}"),
    "complement": Operation(_at_corners(lambda a: 1 - a), 1, "1 - {0}"),
    "square_root": Operation(_at_corners(math.sqrt), 1, "square root of {0}"),
    "reduction": Operation(
        _at_corners(lambda before, after: 1 - after / before), 2, "1 - {1} / {0}"
    ),
    "increase": Operation(
        _at_corners(lambda before, after: after / before - 1), 2, "{1} / {0} - 1"
    ),
    "share_after_oversampling": Operation(
        _at_corners(lambda ratio: ratio / (1 + ratio)), 1, "{0} / (1 + {0})"
    ),
    "share_rounded_up": Operation(_at_corners(_rounded_up), 2, "{1} of {0}, rounded up"),
    "milliseconds_each": Operation(
        _at_corners(lambda seconds, number: 1000 * seconds / number), 2, "1000 {0} / {1}"
    ),
    "precision": Operation(
        _at_corners(precision),
        3,
        "recall {0}, specificity {1} and prevalence {2} give by Bayes the precision",
    ),
    "prevalence": Operation(
        _at_corners(prevalence),
        3,
        "precision {0}, recall {1} and specificity {2} give by Bayes the prevalence",
    ),
    "specificity": Operation(
        _at_corners(specificity),
        4,
        "precision {0} and recall {1} with {2} malignant of {3} give the specificity",
    ),
    "true_negative_share": Operation(
        _at_corners(true_negative_share),
        4,
        "precision {0} and recall {1} with {2} malignant of {3} give true negatives over all images",
    ),
    "z_of_shares": Operation(
        _at_corners(z_of_shares), 3, "({0} - {1}) in standard errors of {2} cases each"
    ),
    "z_of_areas": Operation(
        _at_corners(z_of_areas), 4, "({0} - {1}) in standard errors, {2} malignant, {3} benign"
    ),
    "common_denominator": Operation(common_denominator, None),
    "rank_from_lowest": Operation(_rank_from_lowest, None),
    "rank_from_highest": Operation(_rank_from_highest, None),
}
