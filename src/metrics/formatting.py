"""Figures in plain language: a number with its unit, a difference, a ratio, a count of things."""

import re
from collections.abc import Sequence

from src.metrics.registry import Limit, describe

FORMATS = {
    "efficiency/flops": lambda value: engineering(value),
    "efficiency/params": lambda value: engineering(value),
    "efficiency/latency_ms/b1/p50": lambda value: f"{value:.2f}",
    "efficiency/latency_ratio": lambda value: f"{value:.2f}",
}


def engineering(value: float) -> str:
    """Three figures and a letter: 30037824 -> 30.0M."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.0f}"


# counts and ratios whose noun tells what they are of; the name stands in for the label
_NOUNS = {
    "efficiency/flops": "multiply-adds",
    "efficiency/params": "parameters",
    "efficiency/trainable_params": "trainable parameters",
    "efficiency/latency_ratio": "x the reference net",
}
_COSTS = ("efficiency/", "time/")
_RATIO = "efficiency/latency_ratio"
_LATENCY = re.compile(r"efficiency/latency_ms/b(\d+)/p(\d+)")


def is_cost(name: str) -> bool:
    """Whether the metric says what a model costs, not how good it is."""
    return name.startswith(_COSTS)


def is_fraction(name: str) -> bool:
    """Whether the metric is a quality in [0, 1], of which people speak in percentage points."""
    return not is_cost(name) and not name.endswith("/loss")


def label(name: str) -> str:
    """What the metric is called in a sentence: without unit and split, such as "recall of mel"."""
    batch = _LATENCY.fullmatch(name)
    if batch:
        return f"latency of a batch of {batch[1]} (p{batch[2]})"
    return re.sub(r" \([^()]*\)$", "", describe(name).label)


def number(name: str, value: float, apart_from: float | None = None) -> str:
    """`value` without its unit, with as many digits as it takes to differ from 0, from 1 and from `apart_from`.

    Args:
        name: The metric.
        value: A finite number.
        apart_from: Another value of the metric that stands in the same sentence; a different one
            reads differently.
    """
    if value == 0 or (value == 1 and is_fraction(name)):
        return f"{value:.0f}"
    others = [other for other in (0.0, 1.0, apart_from) if other is not None and other != value]
    for digits in range(3, 10):
        text = _digits(name, value, digits)
        if all(text != _digits(name, other, digits) for other in others):
            return text
    near = round(value, 9)  # nobody measures more closely
    return _digits(name, value, 9) if near == value else number(name, near)


def quantity(name: str, value: float, apart_from: float | None = None) -> str:
    """`value` with its unit, such as "30M multiply-adds", "3.21 ms", "0.83 x the reference net", "0.643"."""
    unit = _NOUNS.get(name, describe(name).unit)
    return f"{number(name, value, apart_from)} {unit}".rstrip()


def figure(name: str, value: float, apart_from: float | None = None) -> str:
    """`value` with what it is of, such as "recall of mel 0.81" or "latency 0.83 x the reference net"."""
    told = quantity(name, value, apart_from)
    if name == _RATIO:
        return f"latency {told}"
    batch = _LATENCY.fullmatch(name)
    if batch:
        return f"{told} for a batch of {batch[1]} (p{batch[2]})"
    return told if name in _NOUNS else f"{label(name)} {told}"


def difference(name: str, first: float, second: float) -> str:
    """How far apart two values are, without sign, such as "1.2 percentage points" or "508k parameters"."""
    gap = abs(first - second)
    if is_fraction(name):
        points = significant(100 * gap)
        return f"{points} percentage point{'' if points == '1' else 's'}"
    return quantity(name, gap) if name in _NOUNS or describe(name).unit else significant(gap)


def ratio(value: float, other: float) -> str:
    """How `value` stands to `other`, such as "3.2 times less", "3.2 times as much", "12% more" or "the same".

    Empty where one of them is zero or less.
    """
    low, high = sorted((value, other))
    if low == high:
        return "the same"
    if low <= 0:
        return ""
    if high / low >= 2:
        return f"{significant(high / low)} times {'less' if value < other else 'as much'}"
    return f"{significant(100 * abs(value / other - 1))}% {'less' if value < other else 'more'}"


def bound(limit: Limit) -> str:
    """A limit in a sentence, such as "parameters <= 692k" or "latency <= 1 x the reference net"."""
    typed = _as_typed(limit.metric, limit.value)
    if limit.metric == _RATIO:
        return f"latency {limit.operator} {typed} {_NOUNS[_RATIO]}"
    unit = "" if limit.metric in _NOUNS else describe(limit.metric).unit
    return f"{label(limit.metric)} {limit.operator} {typed} {unit}".rstrip()


def short_bound(limit: Limit) -> str:
    """A limit as a name, such as "params <= 692k" or "recall/mel >= 0.8"."""
    metric = re.sub(r"^(best/)?(val|efficiency|time)/", "", limit.metric)
    return f"{metric} {limit.operator} {_as_typed(limit.metric, limit.value)}"


def count(number_of: int, noun: str) -> str:
    """A count of things, such as "1 trial" or "3 trials"."""
    return f"{number_of:,} {noun}{'' if number_of == 1 else 's'}"


def joined(parts: Sequence[str]) -> str:
    """A list in a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else list(parts))


def significant(value: float, digits: int = 2) -> str:
    """`value` with `digits` figures that count, more before the point if need be, never as a power of ten."""
    if abs(value) < 1e-9:
        return "0" if value == 0 else "almost 0"
    magnitude = int(f"{value:.{digits - 1}e}".split("e")[1])
    text = f"{value:,.{max(0, digits - 1 - magnitude)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _digits(name: str, value: float, digits: int) -> str:
    if name in _NOUNS and name != _RATIO:
        return engineering(value) if digits == 3 else f"{value:,.{max(0, digits - 4)}f}"
    if is_cost(name):
        return significant(value, digits)
    return f"{value:.{digits}f}"


def _as_typed(name: str, value: float) -> str:
    """The bound exactly; with a letter where that loses nothing."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if name in _NOUNS and value >= factor:
            return f"{value / factor:.12g}{letter}"
    return f"{value:.12g}"
