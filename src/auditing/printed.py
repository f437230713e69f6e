"""Numbers as a paper prints them: their value, and how far their digits let them stray."""

import math
import re
from dataclasses import dataclass

from src.core.errors import ConfigError

SCALES = {"%": 1e-2, "K": 1e3, "thousand": 1e3, "M": 1e6, "million": 1e6, "B": 1e9, "billion": 1e9}
_NUMBER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?\s*(%|[A-Za-z][A-Za-z ]*)?")
_MORE_DIGITS = 6
_CLOSE = 0.05  # rounding may take no more of a value than this where its size says nothing else
# binary fractions are not the decimal ones that were printed
_SLACK = 1e-14  # of the value
_STEP_SLACK = 1e-9  # of the step


@dataclass(frozen=True)
class Printed:
    """A number that stands in a paper.

    Attributes:
        text: As it is printed: "692K", "13,216.76%", "0.8284", "14.4 seconds".
        value: What it means; a percentage as a fraction, "692K" as 692,000.
        step: Worth of the last printed digit; the true value lies within half of it. 0: it is
            exact.
        unit: What follows the digits, such as "%", "K" or "seconds"; may be empty.
        digits: Printed behind the decimal point.
    """

    text: str
    value: float
    step: float
    unit: str = ""
    digits: int = 0

    @property
    def low(self) -> float:
        """The least value that would be printed so."""
        return self.value - self.step / 2

    @property
    def high(self) -> float:
        """The largest value that would be printed so."""
        return self.value + self.step / 2

    def admits(self, low: float, high: float) -> bool:
        """Whether any value from `low` to `high` would be printed so; a half may have gone either way."""
        slack = _SLACK * abs(self.value) + _STEP_SLACK * self.step
        return low <= self.high + slack and high >= self.low - slack

    def like(self, value: float) -> str:
        """Another value in this one's unit, to its digits, or more where it would look the same; counts in full."""
        if math.isnan(value):
            return "-"
        scale = SCALES.get(self.unit, 1.0)
        if value == self.value or (scale > 1 and value == round(value)):
            return self.text if value == self.value else f"{value:,.0f}"
        digits = max(self.digits, int(self.unit == "%"))
        same = f"{self.value / scale:,.{digits}f}"
        while digits < self.digits + _MORE_DIGITS and not self.admits(value, value):
            text = f"{value / scale:,.{digits}f}"
            close = abs(float(text.replace(",", "")) * scale - value) <= _CLOSE * abs(value)
            if text != same and close:
                break
            digits += 1
            same = f"{self.value / scale:,.{digits}f}"
        space = "" if len(self.unit) <= 1 else " "
        return f"{value / scale:,.{digits}f}{space}{self.unit}"


def parse(text: str, key: str = "printed", step: float | None = None) -> Printed:
    """A printed number.

    Args:
        text: Digits, with thousands' commas or not, and a unit: %, K, M, B, thousand, million,
            billion, or any word.
        key: Where it stands, for the error.
        step: Worth of the last digit that counts, in the unit's terms, where it is not the last one
            printed; 0: exact.

    Raises:
        ConfigError: It is no number.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            key, f"must be a number as printed, such as 692K, 96.7% or 0.8284, but got {text!r}"
        )
    sign, whole, decimals, unit = (
        match[1],
        match[2].replace(",", ""),
        match[3] or "",
        match[4] or "",
    )
    scale = SCALES.get(unit, 1.0)
    digits = max(0, len(decimals) - 1)
    last = 10.0**-digits if step is None else step
    digits = max(digits, -math.floor(math.log10(last))) if 0 < last < 1 else digits
    return Printed(text, float(f"{sign}{whole}{decimals}") * scale, last * scale, unit, digits)
