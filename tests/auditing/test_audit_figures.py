"""Figures: worked out from one another, with their ranges, origins and what they lack."""

import math

import pytest

from src.auditing.claims import Claim, Figure, MeasuredClaim, Paper, PaperSystem, Reading
from src.auditing.figures import Figures, Found
from src.core.errors import ConfigError


class Told:
    """Runs that were recorded, and one system of which none was."""

    def measure(self, wanted: MeasuredClaim) -> Found:
        if wanted.system == "none":
            return Found(
                math.nan, math.nan, math.nan, "-", frozenset({"measured"}), "", "no runs", True
            )
        return Found(0.8, 0.7, 0.9, "0.8", frozenset({"measured"}), "seen", "random weights")


def figures(**named: Figure) -> Figures:
    system = PaperSystem(preset="p", data="d", split="s")
    claim = Claim(
        id="big",
        claim="c",
        where="w",
        printed="23.9 million",
        readings=[Reading(name="own", figure="small")],
    )
    words = Claim(id="few", claim="c", where="w", printed="few", untestable="words")
    return Figures(
        Paper(
            name="p",
            title="t",
            citation="c",
            source="s",
            read="r",
            command="x",
            systems={"some": system, "none": system},
            figures={"small": Figure(printed="692K"), **named},
            claims=[claim, words],
        ),
        Told(),
    )


def test_arithmetic_on_printed_figures_has_the_range_of_their_rounding() -> None:
    found = figures(cut=Figure(operation="reduction", of=["big", "small"])).of("cut")
    assert found.value == pytest.approx(1 - 692 / 23900)
    assert found.low == pytest.approx(1 - 692.5 / 23850)
    assert found.high == pytest.approx(1 - 691.5 / 23950)
    assert found.origins == {"printed"}
    assert found.how == "1 - 692K / 23.9 million"


def test_plain_numbers_have_no_origin_and_others_keep_theirs() -> None:
    named = {
        "fact": Figure(published=584, source="S"),
        "mix": Figure(operation="sum", of=["fact", "small", 1]),
    }
    assert figures(**named).of("mix").origins == {"published", "printed"}
    assert (
        figures(plain=Figure(operation="product", of=[28, 28, 128])).of("plain").origins
        == frozenset()
    )


def test_what_a_measured_figure_lacks_goes_on_into_what_is_computed_from_it() -> None:
    some, none = (
        Figure(measured=MeasuredClaim(system=name, metric="accuracy")) for name in ("some", "none")
    )
    named = {"some": some, "none": none}
    half = figures(**named, half=Figure(operation="ratio", of=["some", 2])).of("half")
    assert (half.low, half.value, half.high, half.problem) == (0.35, 0.4, 0.45, "random weights")
    gap = figures(**named, gap=Figure(operation="difference", of=["some", "none"])).of("gap")
    assert math.isnan(gap.value)
    assert (gap.problem, gap.unrecorded) == ("random weights; no runs", True)


def test_a_figure_that_depends_on_itself_is_refused() -> None:
    named = {"a": Figure(operation="sum", of=["b", 1]), "b": Figure(figure="a")}
    with pytest.raises(ConfigError, match="paper.figures.a: depends on itself: a -> b"):
        figures(**named).of("a")


def test_a_claim_in_words_is_no_figure() -> None:
    with pytest.raises(ConfigError, match="few prints no number"):
        figures(x=Figure(figure="few")).of("x")
