"""Colours, number formats and axis scales."""

import math

import pandas as pd
import pytest

from src.reporting import style

OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}


def test_colours_are_those_of_okabe_and_ito_and_states_are_distinct():
    assert set(style.CYCLE) <= OKABE_ITO
    assert len(set(style.CYCLE)) == len(style.CYCLE)
    looks = {(marker["symbol"], marker["color"]) for marker in style.STATES.values()}
    assert len(looks) == len(style.STATES)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "-"),
        (None, "-"),
        (30037824, "30M"),
        (0.71, "0.7100"),
        (0.00012345, "0.0001234"),
        (9120, "9120"),
        (math.inf, "infinite"),
        (True, "yes"),
        (-691911.0, "-692k"),
    ],
)
def test_numbers(value, text):
    assert style.number(value) == text


@pytest.mark.parametrize(
    ("name", "values", "log"),
    [
        ("efficiency/flops", [1e6, 2e6], True),
        ("", [1, 10, 100], True),
        ("", [1, 2, 3], False),
        ("", [1, 90, 95, 100], False),  # most values are at the upper end
        ("", [0, 10, 100], False),
        ("", [math.nan], False),
    ],
)
def test_an_axis_is_logarithmic_for_sizes_and_long_tails(name, values, log):
    assert style.logarithmic(name, pd.Series(values)) == log


def test_names_break_behind_dots_and_underscores_and_numbers_do_not():
    text = style.wrapped("model.net.dropout weighted_cross_entropy 0.5", 14)
    assert text == "model.net.\ndropout\nweighted_\ncross_\nentropy 0.5"
    assert style.wrapped("unknown/metric", 5) == "unknown/metric"
