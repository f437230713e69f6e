"""Verdicts, by what must hold for any readings."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.auditing.figures import Found
from src.auditing.printed import parse
from src.auditing.verdicts import (
    CONTRADICTED,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    OTHER_READING,
    REPRODUCED,
    VERDICTS,
    ClaimOutcome,
    agrees,
    decide,
)


def found(
    value: float, low: float | None = None, high: float | None = None, **more: object
) -> Found:
    return Found(
        value, value if low is None else low, value if high is None else high, f"{value}", **more
    )  # type: ignore[arg-type]


ORIGINS = st.sets(st.sampled_from(["printed", "counted", "published", "measured"])).map(frozenset)


@st.composite
def outcomes(draw: st.DrawFn) -> ClaimOutcome:
    figure = found(
        1.0, origins=draw(ORIGINS), problem=draw(st.sampled_from(["", "", "random weights"]))
    )
    return ClaimOutcome(
        "r", figure, draw(st.booleans()), draw(st.sampled_from([True, False, None]))
    )


@given(st.lists(outcomes(), max_size=5))
def test_a_verdict_follows_from_what_decides(given_: list[ClaimOutcome]) -> None:
    verdict = decide(given_)
    own = [each for each in given_ if not each.beside]
    deciding = [each for each in own if not each.found.problem and each.agrees is not None]
    assert verdict.name in VERDICTS
    assert (verdict.name in (REPRODUCED, OTHER_READING)) == any(each.agrees for each in deciding)
    if verdict.name == REPRODUCED:
        assert own[0].agrees
    if verdict.name == OTHER_READING:
        assert verdict.outcome is not own[0]
    if verdict.name == CONTRADICTED:
        assert verdict.outcome is not None
        assert verdict.outcome.found.origins == {"printed"}
    if verdict.name == NOT_REPRODUCED:
        assert own[0].agrees is False
        assert not own[0].found.problem
    if not deciding:
        assert verdict.name == NOT_TESTABLE


@given(st.lists(outcomes(), max_size=4), outcomes())
def test_what_stands_beside_changes_nothing(given_: list[ClaimOutcome], more: ClaimOutcome) -> None:
    beside = ClaimOutcome(more.reading, more.found, True, more.agrees)
    assert decide([*given_, beside]) == decide(given_)


@pytest.mark.parametrize("agreed", [True, False])
def test_runs_from_random_weights_neither_confirm_nor_refute(agreed: bool) -> None:
    figure = found(
        0.7,
        0.6,
        0.8,
        origins=frozenset({"measured"}),
        problem="these runs start from random weights",
    )
    assert decide([ClaimOutcome("own", figure, False, agreed)]).name == NOT_TESTABLE


def test_measured_against_its_interval() -> None:
    number = parse("87.05%")
    assert agrees(found(0.85, 0.83, 0.8704), number, "equal") is False
    assert agrees(found(0.85, 0.83, 0.87046), number, "equal") is True  # would be printed as 87.05
    assert agrees(found(math.nan), number, "equal") is None
    assert (
        agrees(found(0.8705, math.nan, math.nan), number, "equal") is True
    )  # one group: no interval


def test_a_limit_is_kept_by_the_whole_interval_and_broken_by_the_whole_interval() -> None:
    number = parse("80%")
    assert agrees(found(0.85, 0.81, 0.9), number, "above") is True
    assert agrees(found(0.75, 0.7, 0.8), number, "above") is False
    assert agrees(found(0.75, 0.7, 0.79), number, "below") is True
    assert agrees(found(0.85, 0.8, 0.9), number, "below") is False
    assert agrees(found(0.85, math.nan, math.nan), number, "above") is None


@given(
    st.floats(0.01, 0.3),
    st.floats(0.01, 0.3),
    st.floats(0.01, 0.99),
    st.sampled_from(["above", "below"]),
)
def test_an_interval_with_the_limit_in_it_decides_nothing(
    down: float, up: float, where: float, side: str
) -> None:
    low, high = 0.8 - down, 0.8 + up
    middle = low + where * (high - low)
    assert agrees(found(middle, low, high), parse("80%"), side) is None  # type: ignore[arg-type]
