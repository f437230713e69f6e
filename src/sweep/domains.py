"""What one swept parameter may be: as Optuna suggests it, as a grid lists it, and as a value of the config."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from math import isfinite
from typing import TYPE_CHECKING, Any, Protocol

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep

from src.errors import ConfigError
from src.sweep import grammar
from src.sweep.grammar import identity, text_of

if TYPE_CHECKING:
    import optuna

Category = str | int | float | bool | None


class Domain(Protocol):
    """The values of a parameter. "Parameter" below is the value as Optuna knows it, "value" as the config gets it."""

    @property
    def count(self) -> int | None:
        """How many values; None if continuous."""

    def suggest(self, trial: "optuna.Trial", name: str) -> Any:
        """The parameter that Optuna suggests under `name`; the same one that `parameter` gives for its value."""

    def value(self, parameter: Any) -> Any:
        """What the config gets for it."""

    def parameter(self, value: Any) -> Any:
        """What Optuna calls it; `value` must be contained."""

    def contains(self, value: Any) -> bool:
        """Whether it is one of the values."""

    def parameters(self) -> Iterator[Any]:
        """All of them in the grid's order; of a finite domain only."""


@dataclass(frozen=True)
class Choice:
    """Listed values.

    Attributes:
        values: Of any type that a config has, in the order given.
        categories: What Optuna calls them: the values themselves where it takes them and tells them apart, else texts.
    """

    values: tuple[Any, ...]
    categories: tuple[Category, ...]

    @classmethod
    def of(cls, values: Sequence[Any], where: str) -> "Choice":
        """The choice among `values`.

        Raises:
            ConfigError: None, or one of them twice.
        """
        if not values:
            raise ConfigError(where, "must have at least one value, but has none")
        seen: set[Any] = set()
        for value in values:
            if identity(value) in seen:
                raise ConfigError(where, f"must list each value once, but got {text_of(value)} again")
            seen.add(identity(value))
        categories = [_category(value) for value in values]
        if len(set(categories)) < len(categories):  # Optuna compares by ==: 1 would be true
            categories = [text_of(value) for value in values]
        return cls(tuple(values), tuple(categories))

    @property
    def count(self) -> int:  # noqa: D102
        return len(self.values)

    def suggest(self, trial: "optuna.Trial", name: str) -> Category:  # noqa: D102
        return trial.suggest_categorical(name, self.categories)

    def value(self, parameter: Any) -> Any:  # noqa: D102
        return self.values[self.categories.index(parameter)]

    def parameter(self, value: Any) -> Category:  # noqa: D102
        return self.categories[[identity(own) for own in self.values].index(identity(value))]

    def contains(self, value: Any) -> bool:  # noqa: D102
        return identity(value) in [identity(own) for own in self.values]

    def parameters(self) -> Iterator[Category]:  # noqa: D102
        return iter(self.categories)

    def __str__(self) -> str:
        return f"choice({','.join(map(text_of, self.values))})"


@dataclass(frozen=True)
class Range:
    """Numbers at equal distances.

    Attributes:
        start: The first of them. Decimals, so that 0.1 + 0.2 is 0.3.
        step: Not 0; negative in a descending range.
        count: How many.
        is_whole: Whether they are ints, not floats.
        is_shuffled: Whether a grid runs through them in a mixed order (always the same).
    """

    start: Decimal
    step: Decimal
    count: int
    is_whole: bool
    is_shuffled: bool = False

    @classmethod
    def of(cls, sweep: RangeSweep, where: str) -> "Range":
        """What Hydra's range() stands for; its stop is exclusive.

        Raises:
            ConfigError: It is empty, its step is 0, or it has more digits than a float.
        """
        given = [sweep.start or 0, sweep.stop or 0, sweep.step]
        text = f"range({','.join(map(text_of, given))})"
        if not all(map(isfinite, given)) or sweep.step == 0:
            raise ConfigError(where, f"must have finite bounds and a step other than 0, but got {text}")
        start, stop, step = (Decimal(repr(number)) for number in given)
        count = int(((stop - start) / step).to_integral_value(rounding=ROUND_CEILING))
        if count <= 0:
            raise ConfigError(where, f"must hold at least one number, but {text} is empty; its stop is exclusive")
        found = cls(start, step, count, all(isinstance(number, int) for number in given), sweep.shuffle)
        low, high = found._bounds()
        if (Decimal(repr(high)) - Decimal(repr(low))) % step != 0:  # Optuna would leave out the last number
            raise ConfigError(where, f"has more digits than a float holds in {text}: list the numbers, choice(...)")
        return found

    def suggest(self, trial: "optuna.Trial", name: str) -> int | float:  # noqa: D102
        low, high = self._bounds()
        if self.is_whole:
            return trial.suggest_int(name, int(low), int(high), step=int(abs(self.step)))
        return self.value(trial.suggest_float(name, low, high, step=float(abs(self.step))))

    def value(self, parameter: Any) -> int | float:
        """0.3, where Optuna computes 0.30000000000000004."""
        return self._number(self._index(parameter))

    def parameter(self, value: Any) -> int | float:  # noqa: D102
        return self.value(value)

    def contains(self, value: Any) -> bool:  # noqa: D102
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            return False
        index = self._index(value)
        return 0 <= index < self.count and self._number(index) == value

    def parameters(self) -> Iterator[int | float]:  # noqa: D102
        indices: Sequence[int] = range(self.count)
        if self.is_shuffled:
            indices = random.Random(str(self)).sample(indices, self.count)
        return map(self._number, indices)

    def __str__(self) -> str:
        step = self._typed(self.step)
        return f"range({self._number(0)},{self._number(self.count)}" + (")" if step == 1 else f",{step})")

    def _bounds(self) -> tuple[float, float]:
        first, last = self._number(0), self._number(self.count - 1)
        return min(first, last), max(first, last)

    def _number(self, index: int) -> int | float:
        return self._typed(self.start + index * self.step)

    def _typed(self, number: Decimal) -> int | float:
        return int(number) if self.is_whole else float(number)

    def _index(self, number: float) -> int:
        return round((Decimal(repr(number)) - self.start) / self.step)


@dataclass(frozen=True)
class Interval:
    """All numbers between two bounds, both of which belong to it; whole ones only if the bounds are ints."""

    low: int | float
    high: int | float
    log: bool

    @classmethod
    def of(cls, sweep: IntervalSweep, where: str) -> "Interval":
        """What Hydra's interval() stands for.

        Raises:
            ConfigError: The bounds are not in order, not finite, or not above 0 where the scale is logarithmic.
        """
        assert sweep.start is not None
        assert sweep.end is not None
        found = cls(sweep.start, sweep.end, "log" in sweep.tags)
        if not isfinite(found.low) or not isfinite(found.high) or not found.low < found.high:
            raise ConfigError(where, f"must have finite bounds, the lower one first, but got {found}")
        if found.log and found.low <= 0:
            raise ConfigError(where, f"must have bounds above 0 on a log scale, but got {found}")
        return found

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers belong to it."""
        return isinstance(self.low, int)

    @property
    def count(self) -> int | None:  # noqa: D102
        return int(self.high) - int(self.low) + 1 if self.is_whole else None

    def suggest(self, trial: "optuna.Trial", name: str) -> int | float:  # noqa: D102
        if self.is_whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def value(self, parameter: Any) -> int | float:  # noqa: D102
        return int(parameter) if self.is_whole else float(parameter)

    def parameter(self, value: Any) -> int | float:  # noqa: D102
        return self.value(value)

    def contains(self, value: Any) -> bool:  # noqa: D102
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        return not self.is_whole or value == int(value)

    def parameters(self) -> Iterator[int]:  # noqa: D102
        return iter(range(int(self.low), int(self.high) + 1))

    def __str__(self) -> str:
        text = f"interval({self.low!r},{self.high!r})"
        text = f"int({text})" if self.is_whole else text
        return f"tag(log,{text})" if self.log else text


def domain_of(value: Any, where: str) -> Domain:
    """The domain that a parsed value stands for; one that is no sweep is a choice of one.

    Args:
        value: Of a `src.sweep.grammar.Assignment`.
        where: The key that an error names.

    Raises:
        ConfigError: The values make no domain; the message says why.
    """
    if isinstance(value, RangeSweep):
        return Range.of(value, where)
    if isinstance(value, IntervalSweep):
        return Interval.of(value, where)
    if isinstance(value, ChoiceSweep):
        values = list(value.list)
        if value.shuffle:  # mixed, but each time in the same way: Optuna refuses a study whose categories moved
            random.Random(",".join(map(text_of, values))).shuffle(values)
        return Choice.of(values, where)
    return Choice.of([value], where)


def listed(values: Sequence[Any], where: str) -> Choice:
    """The choice among values that come from a YAML list; texts are taken as they are.

    Raises:
        ConfigError: One of them cannot be written as an override, or is there twice.
    """
    for value in values:
        grammar.refuse_nested(value, where)
        try:
            written = text_of(value)
            read = grammar.assignment(f"key={written}", where).value
        except TypeError as error:
            raise ConfigError(where, f"cannot sweep {value!r}: {error}") from None
        if identity(read) != identity(value):
            raise ConfigError(where, f"cannot sweep {value!r}: an override would read it as {read!r}")
    return Choice.of(values, where)


def _category(value: Any) -> Category:
    if isinstance(value, float) and not isfinite(value):
        return text_of(value)
    return value if value is None or isinstance(value, str | int | float | bool) else text_of(value)
