"""The figures that claims are held against: each worked out once, with its range and where it comes from."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from src.auditing import printed
from src.auditing.claims import Figure, MeasuredClaim, Paper
from src.auditing.counts import Nets
from src.auditing.operations import OPERATIONS, Range, apply
from src.core.errors import ConfigError


@dataclass(frozen=True)
class Found:
    """A figure that was worked out.

    Attributes:
        value: NaN where there is none.
        low, high: Its range: of rounding for printed figures and what is computed from them, of
        chance for measured
            ones.
        text: As it stands in arithmetic.
        origins: Of what it is made: printed, counted, published, measured; none if of plain numbers
            only.
        how: How it was found, in words.
        problem: Why it decides nothing; empty if it does.
        unrecorded: It has no value because no run that would give it is recorded.
    """

    value: float
    low: float
    high: float
    text: str
    origins: frozenset[str] = field(default_factory=frozenset)
    how: str = ""
    problem: str = ""
    unrecorded: bool = False

    @property
    def range(self) -> Range:
        """Value, least and largest."""
        return self.value, self.low, self.high


class Recorded(Protocol):
    """Who knows what recorded runs say."""

    def measure(self, wanted: MeasuredClaim) -> Found:
        """A metric of a system, or why there is none."""


class Figures:
    """The figures of a paper.

    Args:
        paper: Checked.
        recorded: For what is measured.
    """

    def __init__(self, paper: Paper, recorded: Recorded) -> None:
        self._named: dict[str, Figure] = dict(paper.figures)
        for claim in paper.claims:
            if claim.value is None and not _is_number(claim.printed):
                continue
            text = claim.printed if claim.value is None else f"{claim.value:g}"
            self._named[claim.id] = Figure(printed=text, step=claim.step)
        self._nets = Nets(paper.nets)
        self._recorded = recorded
        self._done: dict[str, Found] = {}
        self._open: list[str] = []

    def of(self, name: str, key: str = "paper.figures") -> Found:
        """A figure or a claim's printed value, by its name.

        Raises:
            ConfigError: It depends on itself, or the claim prints no number.
        """
        if name not in self._named:
            raise ConfigError(key, f"the claim {name} prints no number: give it a value")
        if name in self._open:
            raise ConfigError(
                f"paper.figures.{name}", f"depends on itself: {' -> '.join([*self._open, name])}"
            )
        if name not in self._done:
            self._open.append(name)
            self._done[name] = self.work_out(self._named[name], f"paper.figures.{name}")
            self._open.pop()
        return self._done[name]

    def work_out(self, figure: Figure, key: str) -> Found:
        """The figure that a definition leads to.

        Args:
            figure: Its names are checked.
            key: Where it stands, for errors.

        Raises:
            ConfigError: It cannot be; the message names the key.
        """
        work: dict[str, Callable[[Figure, str], Found]] = {
            "printed": self._printed,
            "count": self._counted,
            "operation": self._computed,
            "figure": lambda figure, key: self.of(str(figure.figure), key),
            "measured": self._measured,
            "published": lambda figure, key: _exact(
                figure.published or 0.0, "published", figure.source
            ),
        }
        return work[figure.kind](figure, key)

    def _printed(self, figure: Figure, key: str) -> Found:
        number = printed.parse(str(figure.printed), f"{key}.printed", figure.step)
        return Found(
            number.value, number.low, number.high, number.text, frozenset({"printed"}), "as printed"
        )

    def _measured(self, figure: Figure, key: str) -> Found:
        assert figure.measured is not None
        return self._recorded.measure(figure.measured)

    def _counted(self, figure: Figure, key: str) -> Found:
        parts = {what: self._nets.count(str(figure.net), [what]) for what in figure.counts}
        what = " + ".join(
            f"{_thousands(value)} {what.replace('_', ' ')}" for what, value in parts.items()
        )
        return _exact(sum(parts.values()), "counted", f"{what} of the net {figure.net}")

    def _computed(self, figure: Figure, key: str) -> Found:
        name, operands = (
            str(figure.operation),
            [self._operand(each, f"{key}.of") for each in figure.of],
        )
        origins: frozenset[str] = frozenset().union(*(each.origins for each in operands))
        problems = list(dict.fromkeys(each.problem for each in operands if each.problem))
        if any(math.isnan(each.value) for each in operands):
            lacks = any(each.unrecorded for each in operands)
            return Found(math.nan, math.nan, math.nan, "-", origins, "", "; ".join(problems), lacks)
        arithmetic = OPERATIONS[name].show(name, [each.text for each in operands])
        measured = [each.how for each in operands if each.origins == {"measured"}]
        arithmetic += f" ({'; '.join(measured)})" if measured else ""
        value, low, high = apply(name, [each.range for each in operands], f"{key}.operation")
        return Found(value, low, high, _short(value), origins, arithmetic, "; ".join(problems))

    def _operand(self, each: float | str, key: str) -> Found:
        if isinstance(each, str):
            return self.of(each, key)
        return Found(each, each, each, _thousands(each))


def _exact(value: float, origin: str, how: str) -> Found:
    return Found(value, value, value, _thousands(value), frozenset({origin}), how)


def _thousands(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,g}"


def _short(value: float) -> str:
    return _thousands(value) if value == round(value) else f"{value:,.5g}"


def _is_number(text: str) -> bool:
    try:
        printed.parse(text)
    except ConfigError:
        return False
    return True
