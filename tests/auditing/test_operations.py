"""The arithmetic of an audit against hand arithmetic, and against tables that are counted out."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from src.auditing.operations import OPERATIONS, apply
from src.core.errors import ConfigError


def exact(*values: float) -> list[tuple[float, float, float]]:
    return [(value, value, value) for value in values]


def value(name: str, *operands: float) -> float:
    found, low, high = apply(name, exact(*operands))
    assert low == found == high
    return found


@pytest.mark.parametrize(
    ("name", "operands", "expected"),
    [
        ("sum", (1, 2, 3.5), 6.5),
        ("product", (28, 28, 128), 100_352),
        ("difference", (0.8908, 0.8705), 0.0203),
        ("ratio", (117, 0.2), 585),
        ("complement", (0.3993,), 0.6007),
        ("square_root", (9,), 3),
        ("reduction", (23.9e6, 692e3), 23_208 / 23_900),
        ("increase", (30.04e6, 4e9), (4000 - 30.04) / 30.04),
        ("share_after_oversampling", (0.5,), 1 / 3),
        ("share_rounded_up", (33126, 0.2), 6626),
        ("share_rounded_up", (10, 0.2), 2),
        ("milliseconds_each", (69.737, 6626), 69737 / 6626),
        ("common_denominator", (50, 200, 54 / 117, 32 / 117), 117),
        ("rank_from_lowest", (2, 1, 2, 3), 2),
        ("rank_from_highest", (0.8, 0.9, 0.7, 0.8), 2),
    ],
)
def test_by_hand(name: str, operands: tuple[float, ...], expected: float) -> None:
    assert value(name, *operands) == pytest.approx(expected, rel=1e-12)


counts = st.integers(1, 5000)


@given(counts, counts, counts, counts)
def test_rates_give_back_the_table_they_are_of(
    hits: int, missed: int, false: int, true: int
) -> None:
    positives, negatives = hits + missed, false + true
    images = positives + negatives
    recall, precision, specificity = hits / positives, hits / (hits + false), true / negatives
    assert value("precision", recall, specificity, positives / images) == pytest.approx(precision)
    assert value("prevalence", precision, recall, specificity) == pytest.approx(positives / images)
    assert value("specificity", precision, recall, positives, images) == pytest.approx(specificity)
    assert value("true_negative_share", precision, recall, positives, images) == pytest.approx(
        true / images
    )


@given(st.floats(0.1, 0.9), st.floats(0.1, 0.9), st.floats(0.01, 0.5), st.data())
def test_a_range_holds_what_its_operands_may_be(
    recall: float, specificity: float, share: float, data: st.DataObject
) -> None:
    operands = [(each, each - 0.005, each + 0.005) for each in (recall, specificity, share)]
    inside = [data.draw(st.floats(low, high)) for _, low, high in operands]
    found, low, high = apply("precision", operands)
    assert low <= found <= high
    assert low - 1e-12 <= value("precision", *inside) <= high + 1e-12


@given(st.integers(2, 60), st.data())
def test_the_common_denominator_has_every_share_and_none_below_it_has(
    number: int, data: st.DataObject
) -> None:
    shares = data.draw(st.lists(st.integers(1, number), min_size=1, max_size=4))
    rounded = [(part / number, part / number - 5e-5, part / number + 5e-5) for part in shares]
    found = apply("common_denominator", [*exact(1, 100), *rounded])[0]
    assert found <= number
    fits = [
        n
        for n in range(1, int(found) + 1)
        if all(any(lo <= k / n <= hi for k in range(n + 1)) for _, lo, hi in rounded)
    ]
    assert fits == [found]


def test_standard_errors_of_shares_are_those_of_the_chi_squared_test() -> None:
    table = [[63, 54], [54, 63]]
    chi2 = stats.chi2_contingency(table, correction=False)[0]
    assert value("z_of_shares", 63 / 117, 54 / 117, 117) == pytest.approx(math.sqrt(chi2))


def test_standard_errors_of_areas_are_hanley_and_mcneils() -> None:
    # A = 0.8, 20 malignant, 30 benign: Q1 = 2/3, Q2 = 1.28/1.8; variance (0.16 + 19 (Q1 - 0.64) +
    # 29 (Q2 - 0.64)) / 600
    first = (0.16 + 19 * (2 / 3 - 0.64) + 29 * (1.28 / 1.8 - 0.64)) / 600
    # A = 0.5: Q1 = 1/3 = Q2
    second = (0.25 + 19 * (1 / 3 - 0.25) + 29 * (1 / 3 - 0.25)) / 600
    assert value("z_of_areas", 0.8, 0.5, 20, 30) == pytest.approx(0.3 / math.sqrt(first + second))


@given(st.floats(0.5, 0.95), st.floats(0.5, 0.95))
def test_a_lead_turned_round_is_a_deficit(first: float, second: float) -> None:
    assume(first != second)
    assert value("z_of_areas", first, second, 117, 6509) == -value(
        "z_of_areas", second, first, 117, 6509
    )
    assert value("z_of_shares", first, second, 117) == pytest.approx(
        -value("z_of_shares", second, first, 117)
    )


@pytest.mark.parametrize(
    ("name", "operands", "problem"),
    [
        ("ratio", (1, 0), "ratio is not defined for 1, 0"),
        ("square_root", (-1,), "square_root is not defined for -1"),
        ("common_denominator", (2, 3, 0.1234), "no number from 2 to 3"),
        ("ratio", (1,), "ratio takes 2 figures, but got 1"),
        ("sum", (1,), "sum takes two or more figures, but got 1"),
    ],
)
def test_what_cannot_be_is_one_line(name: str, operands: tuple[float, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        apply(name, exact(*operands), "paper.figures.x.operation")


def test_arithmetic_is_shown_with_its_operands() -> None:
    assert OPERATIONS["reduction"].show("reduction", ["23.9M", "692K"]) == "1 - 692K / 23.9M"
    assert OPERATIONS["product"].show("product", ["2", "3"]) == "product of 2, 3"
