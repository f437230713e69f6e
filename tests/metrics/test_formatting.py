import pytest

from src.metrics import formatting
from src.metrics.registry import Limit

QUALITY, FLOPS, PARAMS = "best/val/balanced_accuracy", "efficiency/flops", "efficiency/params"
RATIO, LATENCY = "efficiency/latency_ratio", "efficiency/latency_ms/b1/p50"


@pytest.mark.parametrize(
    ("name", "value", "apart_from", "text"),
    [
        (QUALITY, 0.6434, None, "0.643"),
        (QUALITY, 0.7996, 0.8, "0.7996"),  # reads differently from the bound that it misses
        (QUALITY, 0.8, 0.8, "0.800"),
        (QUALITY, 0.9999, None, "0.9999"),
        (QUALITY, 0.0001, None, "0.0001"),
        (QUALITY, 0.0, None, "0"),
        (QUALITY, 1.0, None, "1"),
        (QUALITY, 1e-300, None, "0"),
        (FLOPS, 30_037_824, None, "30M"),
        (PARAMS, 692_100, 692e3, "692,100"),
        (RATIO, 1.0004, 1, "1.0004"),
        (LATENCY, 3.2134, None, "3.21"),
        (LATENCY, 1234.5, None, "1,234"),
        ("best/val/loss", 1.0, None, "1.000"),
    ],
)
def test_digits(name: str, value: float, apart_from: float | None, text: str) -> None:
    assert formatting.number(name, value, apart_from) == text


def test_units() -> None:
    assert formatting.quantity(PARAMS, 691_911) == "692k parameters"
    assert formatting.quantity("efficiency/size_mb", 2.768) == "2.77 MB"
    assert formatting.figure(RATIO, 0.83) == "latency 0.83 x the reference net"
    assert formatting.figure(LATENCY, 3.21) == "3.21 ms for a batch of 1 (p50)"
    assert formatting.figure("best/val/recall/mel", 0.81) == "recall of mel 0.810"
    assert formatting.figure("time/fit_s", 61.24) == "training time 61.2 s"
    assert formatting.label("best/val/loss") == "loss"


@pytest.mark.parametrize(
    ("name", "first", "second", "text"),
    [
        (QUALITY, 0.643, 0.631, "1.2 percentage points"),
        (QUALITY, 0.64, 0.65, "1 percentage point"),
        (QUALITY, 0.64, 0.64001, "0.001 percentage points"),
        (PARAMS, 1_200_000, 692e3, "508k parameters"),
        (LATENCY, 3.5, 3.0, "0.5 ms"),
        ("best/val/loss", 0.75, 0.5, "0.25"),
    ],
)
def test_differences(name: str, first: float, second: float, text: str) -> None:
    assert (
        formatting.difference(name, first, second)
        == formatting.difference(name, second, first)
        == text
    )


@pytest.mark.parametrize(
    ("value", "other", "text"),
    [
        (30, 4100, "137 times less"),
        (10, 32, "3.2 times less"),
        (32, 10, "3.2 times as much"),
        (88, 100, "12% less"),
        (112, 100, "12% more"),
        (1000, 1000.1, "0.01% less"),
        (5, 5, "the same"),
        (0, 5, ""),
    ],
)
def test_ratios(value: float, other: float, text: str) -> None:
    assert formatting.ratio(value, other) == text


def test_limits_and_lists() -> None:
    limits = [
        Limit(PARAMS, "<=", 692e3),
        Limit(RATIO, "<=", 1),
        Limit("best/val/recall/mel", ">=", 0.8),
    ]
    assert [formatting.short_bound(limit) for limit in limits] == [
        "params <= 692k",
        "latency_ratio <= 1",
        "recall/mel >= 0.8",
    ]
    assert formatting.joined([formatting.bound(limit) for limit in limits]) == (
        "parameters <= 692k, latency <= 1 x the reference net and recall of mel >= 0.8"
    )
    assert formatting.bound(Limit(PARAMS, "<=", 691_911)) == "parameters <= 691.911k"
    assert formatting.bound(Limit(QUALITY, ">=", 0.408571431829)) == "balanced accuracy >= 0.4086"
    assert formatting.bound(Limit(LATENCY, "<=", 3)) == "latency of a batch of 1, p50 <= 3 ms"
    assert [formatting.joined(parts) for parts in ([], ["a"], ["a", "b"])] == ["", "a", "a and b"]


def test_an_interval_stands_behind_its_estimate_if_both_ends_are_known() -> None:
    assert formatting.interval(0.58, 0.6444) == " [0.580, 0.644]"
    assert formatting.interval(1.04, 2.0, "{:.1f}".format) == " [1.0, 2.0]"
    for ends in ((None, 1.0), (0.5, float("nan")), (None, None)):
        assert formatting.interval(*ends) == ""
