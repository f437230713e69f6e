"""Formats a metric's value: table cell, value with unit, difference, ratio, limit, sentence."""

import functools
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.core.errors import ConfigError
from src.metrics.registry import Limit, describe

if TYPE_CHECKING:
    import jinja2

_FACTORS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def is_cost(name: str) -> bool:
    """Whether a metric is a cost of a model (`efficiency/`, `time/`), not a quality."""
    return name.startswith(("efficiency/", "time/"))


def cell(name: str, value: float) -> str:
    """`value` as a table cell, by the registry's format; three decimals for other names."""
    spec = ".3f"
    with suppress(ConfigError):
        spec = describe(name).format
    return engineering(value) if spec == "engineering" else format(value, spec)


def engineering(value: float) -> str:
    """Three significant figures and a letter: 30037824 -> 30.0M."""
    for factor, letter in _FACTORS:
        if value >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.0f}"


def label(name: str) -> str:
    """The metric in a sentence: without unit and split, such as "recall of mel"."""
    return describe(name).plain_label


def number(name: str, value: float, apart_from: float | None = None) -> str:
    """`value` without its unit, with enough digits to differ from 0, 1 and `apart_from`.

    `value` is finite; `apart_from` is another value of the metric in the same sentence, which gets
    another text if it differs.
    """
    if value == 0 or (value == 1 and describe(name).kind == "fraction"):
        return f"{value:.0f}"
    others = [other for other in (0.0, 1.0, apart_from) if other is not None and other != value]
    for digits in range(3, 10):
        text = _with_digits(name, value, digits)
        if all(text != _with_digits(name, other, digits) for other in others):
            return text
    rounded = round(value, 9)
    return _with_digits(name, value, 9) if rounded == value else number(name, rounded)


def quantity(name: str, value: float, apart_from: float | None = None) -> str:
    """`value` with its unit: "30M multiply-adds", "3.21 ms", "0.83 x the reference net"."""
    metric = describe(name)
    return f"{number(name, value, apart_from)} {metric.noun or metric.unit}".rstrip()


def figure(name: str, value: float, apart_from: float | None = None) -> str:
    """The metric with its value: "recall of mel 0.81", "latency 0.83 x the reference net"."""
    metric = describe(name)
    phrase = metric.phrase.replace("<label>", metric.plain_label)
    return phrase.replace("<quantity>", quantity(name, value, apart_from))


def difference(name: str, first: float, second: float) -> str:
    """The absolute difference of two values: "1.2 percentage points", "508k parameters"."""
    gap, metric = abs(first - second), describe(name)
    if metric.kind == "fraction":
        points = significant(100 * gap)
        return f"{points} percentage point{'' if points == '1' else 's'}"
    return quantity(name, gap) if metric.noun or metric.unit else significant(gap)


def ratio(value: float, other: float) -> str:
    """`value` relative to `other`: "3.2 times less", "3.2 times as much", "12% more", "the same".

    Empty if one of them is zero or less.
    """
    low, high = sorted((value, other))
    if low == high or low <= 0:
        return "the same" if low == high else ""
    less = value < other
    if high / low >= 2:
        return f"{significant(high / low)} times {'less' if less else 'as much'}"
    return f"{significant(100 * abs(value / other - 1))}% {'less' if less else 'more'}"


def bound(limit: Limit) -> str:
    """A limit in a sentence: "parameters <= 692k", "latency <= 1 x the reference net"."""
    metric = describe(limit.metric)
    head = metric.plain_label
    unit = "" if metric.format == "engineering" else metric.noun or metric.unit
    if metric.noun and unit:
        head = metric.phrase.partition(" <quantity>")[0]
    return f"{head} {limit.operator} {_bound_value(limit)} {unit}".rstrip()


def short_bound(limit: Limit) -> str:
    """A limit as a name: "params <= 692k", "recall/mel >= 0.8"."""
    metric = re.sub(r"^(best/)?(val|efficiency|time)/", "", limit.metric)
    return f"{metric} {limit.operator} {_bound_value(limit)}"


def interval(
    low: float | None, high: float | None, show: Callable[[float], str] = "{:.3f}".format
) -> str:
    """An interval behind its estimate: " [0.580, 0.644]"; empty if it is not known."""
    if low is None or high is None or low != low or high != high:
        return ""
    return f" [{show(low)}, {show(high)}]"


def count(items: int, noun: str) -> str:
    """A number of things: "1 trial", "3 trials"."""
    return f"{items:,} {noun}{'' if items == 1 else 's'}"


def joined(parts: Sequence[str]) -> str:
    """A list in a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else list(parts))


def sentences(template: Path, part: str, **values: Any) -> list[str]:
    """The sentences of one part of a template, each in one line; it may call functions from here.

    A sentence goes from "- " at the start of a line up to the next; line breaks do not count.
    """
    text = _template(template).render(part=part, **values)
    return [" ".join(item.split()) for item in re.split(r"^- ", text, flags=re.MULTILINE)[1:]]


@functools.cache
def _template(file: Path) -> "jinja2.Template":
    import jinja2

    environment = jinja2.Environment(  # noqa: S701  plain text: the pages escape it
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        # a text from outside stays within its sentence
        finalize=lambda value: " ".join(value.split()) if isinstance(value, str) else value,
    )
    functions = [bound, count, describe, difference, figure, interval, is_cost, joined, label]
    functions += [number, quantity, ratio, significant]
    environment.globals |= {function.__name__: function for function in functions}
    return environment.from_string(file.read_text("utf-8"))


def significant(value: float, digits: int = 2) -> str:
    """`value` with at least `digits` significant figures, never as a power of ten."""
    if abs(value) < 1e-9:
        return "0" if value == 0 else "almost 0"
    magnitude = int(f"{value:.{digits - 1}e}".split("e")[1])
    text = f"{value:,.{max(0, digits - 1 - magnitude)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _with_digits(name: str, value: float, digits: int) -> str:
    if describe(name).format == "engineering":
        return engineering(value) if digits == 3 else f"{value:,.{max(0, digits - 4)}f}"
    return significant(value, digits) if is_cost(name) else f"{value:.{digits}f}"


def _bound_value(limit: Limit) -> str:
    """The bound exactly, with a letter where that loses nothing; a computed one in four figures."""
    for factor, letter in _FACTORS:
        if describe(limit.metric).format == "engineering" and limit.value >= factor:
            return f"{limit.value / factor:.12g}{letter}"
    exact = f"{limit.value:.12g}"
    return exact if len(exact) <= 8 else significant(limit.value, 4)
