"""Printed numbers: what they mean, and what would be printed so."""

import math
from decimal import ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.auditing.printed import SCALES, parse
from src.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value", "step", "unit"),
    [
        ("692K", 692_000, 1000, "K"),
        ("23.9 million", 23_900_000, 100_000, "million"),
        ("4.00 billion", 4e9, 1e7, "billion"),
        ("13,216.76%", 132.1676, 1e-4, "%"),
        ("0.022%", 0.00022, 1e-5, "%"),
        ("1,602,929", 1_602_929, 1, ""),
        ("0.8284", 0.8284, 1e-4, ""),
        ("14.4 seconds", 14.4, 0.1, "seconds"),
    ],
)
def test_value_step_and_unit(text: str, value: float, step: float, unit: str) -> None:
    number = parse(text)
    assert number.value == pytest.approx(value, rel=1e-12)
    assert number.step == pytest.approx(step, rel=1e-12)
    assert number.unit == unit


@given(st.decimals("0.01", "99999", places=6), st.integers(0, 4), st.sampled_from(["", *SCALES]))
def test_a_number_admits_exactly_what_rounds_to_it(true: Decimal, digits: int, unit: str) -> None:
    rounded = true.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    number = parse(f"{rounded:,}{unit}")
    scale = SCALES.get(unit, 1)
    assert number.admits(float(true) * scale, float(true) * scale)
    beyond = float(rounded + Decimal("0.51").scaleb(-digits)) * scale
    assert not number.admits(beyond, beyond)
    assert number.admits(number.value - number.step, number.value)  # a range that reaches it


@pytest.mark.parametrize(
    ("printed", "value", "shown"),
    [
        ("692K", 691_911, "691,911"),
        ("692K", 692_000, "692K"),
        ("96.7%", 1 - 692e3 / 23.9e6, "97.1%"),
        ("80%", 0.796, "79.6%"),
        ("80%", 0.0, "0.0%"),
        ("13,216.76%", 4.00e9 / 30.04e6 - 1, "13,215.58%"),
        ("0.8936", 0.90966, "0.9097"),
        ("500", 585.0, "585"),
        ("14.4 seconds", 0.0144, "0.014 seconds"),
        ("0.5", math.nan, "-"),
    ],
)
def test_others_are_shown_like_it(printed: str, value: float, shown: str) -> None:
    assert parse(printed).like(value) == shown


@given(st.floats(0, 1e6), st.sampled_from(["96.7%", "692K", "0.8284", "500", "4.00 billion"]))
def test_what_does_not_agree_never_looks_the_same(value: float, text: str) -> None:
    number = parse(text)
    if not number.admits(value, value):
        assert number.like(value) != text


@pytest.mark.parametrize("text", ["", "lots", "69 2K", "K692", "1,60,929", "0.1.2"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="paper.claims.3..printed: must be a number as printed"):
        parse(text, "paper.claims[3].printed")
