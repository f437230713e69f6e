"""Search space: domains, conditions, zip, exclude, cells."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Decimal
from functools import cached_property
from math import isfinite, prod
from typing import TYPE_CHECKING, Any, Protocol

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep

from src.core.errors import ConfigError
from src.sweep import overrides as grammar
from src.sweep.overrides import Assignment, assignment, clauses, identity, refuse_key, text_of

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
class Categorical:
    """Listed values.

    Attributes:
        values: Of any type that a config has, in the order given.
        categories: What Optuna calls them: the values themselves where it takes them and tells them
            apart, else texts.
    """

    values: tuple[Any, ...]
    categories: tuple[Category, ...]

    @classmethod
    def of(cls, values: Sequence[Any], where: str) -> "Categorical":
        """The choice among `values`.

        Raises:
            ConfigError: None, or one of them twice.
        """
        if not values:
            raise ConfigError(where, "must have at least one value, but has none")
        seen: set[Any] = set()
        for value in values:
            if identity(value) in seen:
                raise ConfigError(
                    where, f"must list each value once, but got {text_of(value)} again"
                )
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
            raise ConfigError(
                where, f"must have finite bounds and a step other than 0, but got {text}"
            )
        start, stop, step = (Decimal(repr(number)) for number in given)
        count = int(((stop - start) / step).to_integral_value(rounding=ROUND_CEILING))
        if count <= 0:
            raise ConfigError(
                where, f"must hold at least one number, but {text} is empty; its stop is exclusive"
            )
        found = cls(
            start, step, count, all(isinstance(number, int) for number in given), sweep.shuffle
        )
        low, high = found._bounds()
        if (
            Decimal(repr(high)) - Decimal(repr(low))
        ) % step != 0:  # Optuna would leave out the last number
            raise ConfigError(
                where,
                f"has more digits than a float holds in {text}: list the numbers, choice(...)",
            )
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
        return f"range({self._number(0)},{self._number(self.count)}" + (
            ")" if step == 1 else f",{step})"
        )

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
            ConfigError: The bounds are not in order, not finite, or not above 0 where the scale is
                logarithmic.
        """
        assert sweep.start is not None
        assert sweep.end is not None
        found = cls(sweep.start, sweep.end, "log" in sweep.tags)
        if not isfinite(found.low) or not isfinite(found.high) or not found.low < found.high:
            raise ConfigError(
                where, f"must have finite bounds, the lower one first, but got {found}"
            )
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
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not self.low <= value <= self.high
        ):
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
        value: Of a `src.sweep.overrides.Assignment`.
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
        if (
            value.shuffle
        ):  # mixed, but each time in the same way: Optuna refuses a study whose categories moved
            random.Random(",".join(map(text_of, values))).shuffle(values)
        return Categorical.of(values, where)
    return Categorical.of([value], where)


def listed(values: Sequence[Any], where: str) -> Categorical:
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
            raise ConfigError(
                where, f"cannot sweep {value!r}: an override would read it as {read!r}"
            )
    return Categorical.of(values, where)


def _category(value: Any) -> Category:
    if isinstance(value, float) and not isfinite(value):
        return text_of(value)
    return value if value is None or isinstance(value, str | int | float | bool) else text_of(value)


Clauses = Mapping[
    str, frozenset[Any]
]  # key -> what it may be, as `src.sweep.overrides.identity`; all must hold


@dataclass(frozen=True)
class Cell:
    """One configuration of a space. Two cells are the same if their overrides are.

    Attributes:
        overrides: What Hydra is given, "key=value", in the space's order; only the parameters that
            the cell has.
        params: The same for Optuna: name -> what its `suggest_*` gives; enqueued, they give this
            very cell.
    """

    overrides: tuple[str, ...]
    params: dict[str, Any] = field(compare=False)


@dataclass(frozen=True)
class Parameter:
    """What is swept under one name.

    Attributes:
        name: For Optuna: the key, "key@condition" or "key+key".
        overrides: What stands before the "=": the key, with "+" or "++" if need be; several of
            paired values.
        domain: Its values; of paired values the rows, each a tuple with a value for each key.
        when: Present only where these hold; empty: always.
        condition: The same as text.
        unless: Absent where one of these holds: there the key has a parameter of its own.
    """

    name: str
    overrides: tuple[str, ...]
    domain: Domain
    when: Clauses = field(default_factory=dict)
    condition: str = ""
    unless: tuple[Clauses, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The overrides without prefixes."""
        return tuple(override.lstrip("+") for override in self.overrides)

    @property
    def depends_on(self) -> frozenset[str]:
        """The keys that decide whether a cell has it."""
        return frozenset(self.when).union(*self.unless)

    def is_active(self, present: Mapping[str, Any]) -> bool:
        """Whether a cell has it that has these values (key -> identity)."""
        return holds(self.when, present) and not any(
            holds(clauses, present) for clauses in self.unless
        )

    def values(self, parameter: Any) -> tuple[Any, ...]:
        """The value of each key, for what Optuna suggested."""
        value = self.domain.value(parameter)
        return tuple(value) if len(self.overrides) > 1 else (value,)

    def may_be(self, key: str, allowed: Iterable[Any]) -> bool:
        """Whether `key` is one of its own and can have one of these values (identities)."""
        if key not in self.keys:
            return False
        if isinstance(self.domain, Categorical):
            place = self.keys.index(key)
            own = {
                identity(self.values(parameter)[place]) for parameter in self.domain.parameters()
            }
            return not own.isdisjoint(allowed)
        return any(self.domain.contains(value) for value in allowed)  # a number is its own identity

    def find(self, values: Sequence[Any]) -> tuple[Any, ...] | None:
        """What Optuna calls these values (one for each key), as a tuple of one; None if it has no name for them."""
        value = tuple(values) if len(self.overrides) > 1 else values[0]
        return (self.domain.parameter(value),) if self.domain.contains(value) else None

    def __str__(self) -> str:
        how = "" if self.overrides == self.keys else f" as {' '.join(self.overrides)}"
        return f"{self.domain}{how}" + (f" when {self.condition}" if self.condition else "")


@dataclass(frozen=True)
class Exclusion:
    """Cells that are left out: those in which all clauses hold."""

    text: str
    clauses: Clauses


def holds(clauses: Clauses, present: Mapping[str, Any]) -> bool:
    """Whether each key of `clauses` is present (key -> identity) with one of its values."""
    return all(key in present and present[key] in allowed for key, allowed in clauses.items())


class _Draft:
    """A cell that is being filled in."""

    def __init__(self, before: "_Draft | None" = None) -> None:
        self.overrides: list[str] = list(before.overrides) if before else []
        self.params: dict[str, Any] = dict(before.params) if before else {}
        self.present: dict[str, Any] = dict(before.present) if before else {}

    def add(self, parameter: Parameter, chosen: Any) -> "_Draft":
        self.params[parameter.name] = chosen
        for override, key, value in zip(
            parameter.overrides, parameter.keys, parameter.values(chosen), strict=True
        ):
            self.present[key] = identity(value)
            self.overrides.append(f"{override}={text_of(value)}")
        return self

    def cell(self) -> Cell:
        return Cell(tuple(self.overrides), self.params)


class Space:
    """What a sweep searches.

    Args:
        parameters: Each behind those that its conditions name.
        exclusions: Cells that are left out.
    """

    def __init__(
        self, parameters: Sequence[Parameter], exclusions: Sequence[Exclusion] = ()
    ) -> None:
        self.parameters = tuple(parameters)
        self.exclusions = tuple(exclusions)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is swept: there is exactly one cell, without overrides."""
        return not self.parameters

    def suggest(self, trial: "optuna.Trial") -> Cell:
        """The cell that a study suggests for `trial`; it may be one that is excluded."""
        draft = _Draft()
        for parameter in self.parameters:
            if parameter.is_active(draft.present):
                draft.add(parameter, parameter.domain.suggest(trial, parameter.name))
        return draft.cell()

    def cells(self) -> Iterator[Cell]:
        """All cells but the excluded ones, the last parameter fastest.

        Raises:
            ConfigError: A parameter is continuous.
        """
        for parameter in self.parameters:
            if parameter.domain.count is None:
                problem = f"a grid cannot list {parameter.domain}: set hydra.sweeper.n_trials, or list values"
                raise ConfigError(parameter.name, problem)
        return (
            draft.cell()
            for draft in self._drafts(0, _Draft())
            if not self._exclusion(draft.present)
        )

    @cached_property
    def n_cells(self) -> int | None:
        """How many cells there are without the excluded ones; None if a parameter is continuous."""
        if any(parameter.domain.count is None for parameter in self.parameters):
            return None
        named = {key for exclusion in self.exclusions for key in exclusion.clauses}
        return self._count(
            0, {}, named.union(*(parameter.depends_on for parameter in self.parameters))
        )

    def is_excluded(self, cell: Cell) -> str | None:
        """The exclusion that forbids `cell`, as it was written; None if none does."""
        draft = _Draft()
        for parameter in self.parameters:
            if parameter.name in cell.params:
                draft.add(parameter, cell.params[parameter.name])
        exclusion = self._exclusion(draft.present)
        return exclusion.text if exclusion else None

    def params_of(self, cell_overrides: Sequence[str]) -> dict[str, Any] | None:
        """Optuna's parameters for the cell of these overrides, in any order; None if it is not within the space."""
        try:
            read = {found.key: found for found in map(assignment, cell_overrides)}
        except ConfigError:
            return None
        draft = _Draft()
        for parameter in self.parameters:
            if parameter.is_active(draft.present):
                values = [read.pop(key).value for key in parameter.keys if key in read]
                found = parameter.find(values) if len(values) == len(parameter.keys) else None
                if found is None:
                    return None
                draft.add(parameter, found[0])
        return None if read or self._exclusion(draft.present) else draft.params

    def contains(self, cell_overrides: Sequence[str]) -> bool:
        """Whether the cell of these overrides, in any order, is one of the space's and not excluded."""
        return self.params_of(cell_overrides) is not None

    def describe(self) -> dict[str, Any]:
        """What makes this space, as JSON values; the same for spaces with the same cells in the same order."""
        return {
            "parameters": {parameter.name: str(parameter) for parameter in self.parameters},
            "order": [parameter.name for parameter in self.parameters],
            "exclude": sorted(exclusion.text for exclusion in self.exclusions),
        }

    @staticmethod
    def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
        """In what two descriptions differ, a line each; empty if they are the same.

        Args:
            old: As `describe` gave it, perhaps stored in between as JSON.
            new: The other one.
        """
        before, after = old["parameters"], new["parameters"]
        lines = [
            f"{name}: was {before[name]}, is no longer swept"
            for name in before
            if name not in after
        ]
        lines += [
            f"{name}: was not swept, is {after[name]}" for name in after if name not in before
        ]
        shared = [name for name in before if name in after]
        lines += [
            f"{name}: was {before[name]}, is {after[name]}"
            for name in shared
            if before[name] != after[name]
        ]
        lines += [
            f"no longer excluded: {text}" for text in old["exclude"] if text not in new["exclude"]
        ]
        lines += [
            f"newly excluded: {text}" for text in new["exclude"] if text not in old["exclude"]
        ]
        if not lines and old["order"] != new["order"]:
            lines.append(f"order: was {', '.join(old['order'])}, is {', '.join(new['order'])}")
        return lines

    def _drafts(self, start: int, draft: _Draft) -> Iterator[_Draft]:
        if start == len(self.parameters):
            yield draft
            return
        parameter = self.parameters[start]
        if not parameter.is_active(draft.present):
            yield from self._drafts(start + 1, draft)
            return
        for chosen in parameter.domain.parameters():
            yield from self._drafts(start + 1, _Draft(draft).add(parameter, chosen))

    def _count(self, start: int, present: dict[str, Any], named: set[str]) -> int:
        """Branches only where a condition or an exclusion names the key; all else is a factor."""
        factors: list[int] = []
        for number in range(start, len(self.parameters)):
            parameter = self.parameters[number]
            if not parameter.is_active(present):
                continue
            if named.isdisjoint(parameter.keys):
                factors.append(parameter.domain.count or 0)
                continue
            branches = 0
            for chosen in parameter.domain.parameters():
                values = zip(parameter.keys, map(identity, parameter.values(chosen)), strict=True)
                branches += self._count(number + 1, {**present, **dict(values)}, named)
            return prod(factors) * branches
        return 0 if self._exclusion(present) else prod(factors)

    def _exclusion(self, present: Mapping[str, Any]) -> Exclusion | None:
        return next((each for each in self.exclusions if holds(each.clauses, present)), None)


__all__ = ["Cell", "Parsed", "Space", "parse"]
_PARAMS = "hydra.sweeper.params"
_CONDITIONS = "hydra.sweeper.conditions"
_ZIP = "hydra.sweeper.zip"
_EXCLUDE = "hydra.sweeper.exclude"


@dataclass(frozen=True)
class Parsed:
    """A command line and a `sweeps/` file, taken apart.

    Attributes:
        space: What is swept.
        fixed: The command line's overrides that are not swept, in order, as typed.
    """

    space: Space
    fixed: list[str]


def parse(
    arguments: Sequence[str],
    params: Mapping[str, Any],
    conditions: Mapping[str, Mapping[str, Any]],
    zipped: Sequence[Mapping[str, Sequence[Any]]],
    exclude: Sequence[str],
) -> Parsed:
    """The search space, by Hydra's override grammar.

    A key on the command line wins over the file's: a fixed value takes the key out of the space, a
    sweep replaces the file's values where the file has the key (under its conditions, if it has
    any).

    Args:
        arguments: The command line's overrides but for `hydra.*`.
        params: Key -> text such as "choice(8,16)", or a list of the values as they are.
        conditions: "model=custom" -> parameters that only cells with this value have. Several are
            joined by " and "; `model=a,b` is either. A key that is in `params` too has these values
            there instead. A text or number that is no sweep is a single value.
        zipped: Groups of keys with lists of equal length, whose values go together.
        exclude: Such as "model.net.depth=4 model.image_size=32": cells in which all of it holds are
            left out.

    Raises:
        ConfigError: Something is not as above, or Hydra would silently read something else into it.
    """
    line = _CommandLine.read(arguments)
    builder = _Builder(line, [*params, *(key for group in conditions.values() for key in group)])
    builder.add_params(params)
    builder.add_zipped(zipped)
    builder.add_conditions(conditions)
    parameters = _ordered(_distinguished(_reachable(builder.parameters)))
    space = Space(parameters, builder.exclusions(exclude))
    if space.n_cells == 0:
        raise ConfigError(_EXCLUDE, "leaves no cell to run")
    return Parsed(space, line.fixed)


@dataclass
class _CommandLine:
    fixed: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(
        default_factory=dict
    )  # of the fixed keys; the last one wins, as in Hydra
    swept: dict[str, tuple[Assignment, Domain]] = field(default_factory=dict)

    @classmethod
    def read(cls, arguments: Iterable[str]) -> "_CommandLine":
        line = cls()
        for argument in arguments:
            read = assignment(argument)
            if read.key in line.swept or (read.is_sweep and read.key in line.values):
                raise ConfigError(read.key, f"is swept and given once more, by {argument}")
            if read.is_sweep:
                line.swept[read.key] = (read, domain_of(read.value, read.key))
            else:
                line.fixed.append(argument)
                line.values[read.key] = (
                    ... if read.prefix == "~" else read.value
                )  # a deleted key equals nothing
        return line


class _Builder:
    """Gathers the parameters; `declared` holds what each key may be by the file, whatever the command line says."""

    def __init__(self, line: _CommandLine, keys: Iterable[str]) -> None:
        self.line = line
        self.occurrences = Counter(key.lstrip("+") for key in keys)  # in the file, but for pairs
        self.parameters: list[Parameter] = []
        self.declared: dict[str, list[Domain]] = {
            key: [domain] for key, (_, domain) in line.swept.items()
        }

    def add_params(self, params: Mapping[str, Any]) -> None:
        """The file's parameters, then those that only the command line has."""
        for key, value in params.items():
            where, bare = f"{_PARAMS}.{key}", key.lstrip("+")
            self._refuse_doubles([bare], where)
            domain = self._declare(bare, _declared(key, value, where, may_be_fixed=False), where)
            if bare not in self.line.values:
                self.parameters.append(Parameter(bare, (key,), self._current(bare, domain)))
        for key, (read, domain) in self.line.swept.items():
            if not self.occurrences[key]:
                self.parameters.append(Parameter(key, (read.prefix + key,), domain))

    def add_zipped(self, zipped: Sequence[Mapping[str, Sequence[Any]]]) -> None:
        for number, group in enumerate(zipped):
            where = f"{_ZIP}[{number}]"
            keys = [key.lstrip("+") for key in group]
            given = [key for key in keys if key in self.line.swept or key in self.line.values]
            columns = {key: _column(key, values, where) for key, values in group.items()}
            if len({len(values) for values in columns.values()}) != 1 or len(columns) < 2:
                lengths = ", ".join(f"{key} has {len(values)}" for key, values in columns.items())
                raise ConfigError(
                    where, f"must pair lists of equal length, but {lengths or 'is empty'}"
                )
            for key, values in columns.items():
                different = list({identity(value): value for value in values}.values())
                self._declare(key.lstrip("+"), Categorical.of(different, where), where)
            if given and len(given) < len(keys):
                rest = ", ".join(key for key in keys if key not in given)
                raise ConfigError(
                    given[0], f"goes together with {rest} in {where}: give all of them, or none"
                )
            if doubled := [key for key in keys if self.occurrences[key]]:
                raise ConfigError(where, f"{doubled[0]} is swept twice")
            if not given:
                self._refuse_doubles(keys, where)
                rows = list(zip(*columns.values(), strict=True))
                texts = tuple("+".join(map(text_of, row)) for row in rows)
                domain = Categorical(Categorical.of(rows, where).values, texts)
                self.parameters.append(Parameter("+".join(keys), tuple(group), domain))

    def add_conditions(self, conditions: Mapping[str, Mapping[str, Any]]) -> None:
        read = {text: clauses(text, _CONDITIONS) for text in conditions}
        found = []
        for text, group in conditions.items():
            for key, value in group.items():
                where, bare = f"{_CONDITIONS}.{text}.{key}", key.lstrip("+")
                domain = self._declare(bare, _declared(key, value, where, may_be_fixed=True), where)
                name = f"{bare}@{text}" if self.occurrences[bare] > 1 else bare
                found.append((text, Parameter(name, (key,), self._current(bare, domain))))
        for text, needed in read.items():
            self._check(needed, text, _CONDITIONS)
        for text, parameter in found:
            rest = self._unsettled(read[text])
            if rest is not None and parameter.keys[0] not in self.line.values:
                self.parameters.append(
                    replace(parameter, when=rest, condition=text if rest else "")
                )

    def exclusions(self, exclude: Sequence[str]) -> list[Exclusion]:
        """The exclusions that a cell can meet."""
        found = []
        for number, text in enumerate(exclude):
            where = f"{_EXCLUDE}[{number}]"
            read = clauses(text, where)
            self._check(read, text, where)
            rest = self._unsettled(read)
            if rest is not None:
                found.append(Exclusion(text, rest))
        return found

    def _declare(self, key: str, domain: Domain, where: str) -> Domain:
        refuse_key(key, where)
        self.declared.setdefault(key, []).append(domain)
        return domain

    def _current(self, key: str, domain: Domain) -> Domain:
        return self.line.swept[key][1] if key in self.line.swept else domain

    def _refuse_doubles(self, keys: Sequence[str], where: str) -> None:
        taken = {key for parameter in self.parameters for key in parameter.keys}
        for key in keys:
            if key in taken or keys.count(key) > 1:
                raise ConfigError(where, f"{key} is swept twice")

    def _check(self, needed: Mapping[str, tuple[Any, ...]], text: str, where: str) -> None:
        for key, values in needed.items():
            if key in self.line.values and key not in self.declared:
                continue
            if key not in self.declared:
                raise ConfigError(where, f"{key} in {text!r} is no parameter of the space")
            for value in values:
                if not any(domain.contains(value) for domain in self.declared[key]):
                    domains = " or ".join(map(str, self.declared[key]))
                    raise ConfigError(
                        where, f"{key}={text_of(value)} in {text!r} is none of {domains}"
                    )

    def _unsettled(self, needed: Mapping[str, tuple[Any, ...]]) -> Clauses | None:
        """The clauses that the command line has not met; None if it contradicts one."""
        rest = {}
        for key, values in needed.items():
            allowed = frozenset(map(identity, values))
            if key not in self.line.values:
                rest[key] = allowed
            elif self.line.values[key] is ... or identity(self.line.values[key]) not in allowed:
                return None
        return rest


def _declared(key: str, value: Any, where: str, may_be_fixed: bool) -> Domain:
    """What the file gives for a key: a text of the grammar, a list, or a single value where that may be."""
    if key.lstrip("+") == key and key.startswith("~"):
        raise ConfigError(where, "a deletion cannot be swept")
    if isinstance(value, Mapping):
        raise ConfigError(
            where, f"must be a text such as choice(8,16) or a list of values, but got {value!r}"
        )
    if isinstance(value, str):
        read = assignment(f"{key}={value.strip()}", where)
        if read.is_sweep or may_be_fixed:
            return domain_of(read.value, where)
    elif isinstance(value, Sequence):
        return listed(value, where)
    elif may_be_fixed:
        return listed([value], where)
    raise ConfigError(
        where, f"must be a text such as choice(8,16) or a list of values, but got {value!r} alone"
    )


def _column(key: str, values: Any, where: str) -> list[Any]:
    domain = _declared(key, values, where, may_be_fixed=False) if isinstance(values, str) else None
    if domain is not None and domain.count is not None:
        return [domain.value(parameter) for parameter in domain.parameters()]
    if domain is not None or not isinstance(values, Sequence):
        raise ConfigError(where, f"{key} must be a list of values, but got {values!r}")
    for value in values:
        listed([value], where)  # the same value may be in several pairs
    return list(values)


def _reachable(parameters: list[Parameter]) -> list[Parameter]:
    """Without the parameters whose conditions no cell can meet."""
    while True:
        kept = [
            each
            for each in parameters
            if all(
                any(other.may_be(key, allowed) for other in parameters)
                for key, allowed in each.when.items()
            )
        ]
        if len(kept) == len(parameters):
            return kept
        parameters = kept


def _distinguished(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Of several parameters with the same key, let no two be in one cell: the one without a condition gives way."""
    found = []
    for parameter in parameters:
        others = [
            other
            for other in parameters
            if other is not parameter and set(other.keys) & set(parameter.keys)
        ]
        for other in others:
            both = parameter.when.keys() & other.when.keys()
            exclusive = any(parameter.when[key].isdisjoint(other.when[key]) for key in both)
            if not exclusive and bool(parameter.when) == bool(other.when):
                problem = f"{parameter.keys[0]} is swept twice where both {parameter.name} and {other.name} hold"
                raise ConfigError(_CONDITIONS, f"{problem}: make the conditions exclude each other")
        unless = () if parameter.when else tuple(other.when for other in others)
        found.append(replace(parameter, unless=unless))
    return found


def _ordered(parameters: Sequence[Parameter]) -> list[Parameter]:
    """In the order given, but each behind all those that its conditions name."""
    waiting, found = list(parameters), list[Parameter]()
    while waiting:
        open_keys = {key for parameter in waiting for key in parameter.keys}
        ready = next((each for each in waiting if each.depends_on.isdisjoint(open_keys)), None)
        if ready is None:
            raise ConfigError(
                _CONDITIONS, f"{', '.join(sorted(open_keys))} depend on each other in a circle"
            )
        waiting.remove(ready)
        found.append(ready)
    return found
