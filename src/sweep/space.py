"""Search space of a study: domains, conditions, paired values, exclusions, cells."""

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
from src.sweep.overrides import (
    Assignment,
    assignment,
    clauses,
    identity,
    refuse_key,
    refuse_nested,
    text_of,
)

if TYPE_CHECKING:
    import optuna

Category = str | int | float | bool | None
# Key -> allowed values, as `src.sweep.overrides.identity`; all keys must match.
Clauses = Mapping[str, frozenset[Any]]
_PARAMS = "hydra.sweeper.params"
_CONDITIONS = "hydra.sweeper.conditions"
_ZIP = "hydra.sweeper.zip"
_EXCLUDE = "hydra.sweeper.exclude"


class Domain(Protocol):
    """The values of a parameter.

    "parameter" below is the value as Optuna knows it, "value" is the value in the config.
    """

    @property
    def count(self) -> int | None:
        """Number of values; None if continuous."""

    def suggest(self, trial: "optuna.Trial", name: str) -> Any:
        """Let Optuna suggest a parameter under `name`."""

    def value(self, parameter: Any) -> Any:
        """The config's value for a parameter."""

    def parameter(self, value: Any) -> Any:
        """The parameter for a value that the domain contains."""

    def contains(self, value: Any) -> bool:
        """Whether it is one of the values."""

    def parameters(self) -> Iterator[Any]:
        """All parameters of a finite domain in the grid's order."""


@dataclass(frozen=True)
class Categorical:
    """Listed values.

    Attributes:
        values: Of any type that a config has, in the order of the list.
        categories: Optuna's names for them: the values themselves where it accepts and
            distinguishes them, else texts.
    """

    values: tuple[Any, ...]
    categories: tuple[Category, ...]

    @classmethod
    def of(cls, values: Sequence[Any], where: str) -> "Categorical":
        """The choice among `values`.

        Raises:
            ConfigError: No value, or a value that is listed twice.
        """
        if not values:
            raise ConfigError(where, "must have at least one value, but has none")
        identities = [identity(value) for value in values]
        for number, value in enumerate(values):
            if identities[number] in identities[:number]:
                problem = f"must list each value once, but got {text_of(value)} again"
                raise ConfigError(where, problem)
        categories = [value if _is_category(value) else text_of(value) for value in values]
        if len(set(categories)) < len(categories):  # Optuna compares by ==: 1 equals true
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
        return self.categories[list(map(identity, self.values)).index(identity(value))]

    def contains(self, value: Any) -> bool:  # noqa: D102
        return identity(value) in map(identity, self.values)

    def parameters(self) -> Iterator[Category]:  # noqa: D102
        return iter(self.categories)

    def __str__(self) -> str:
        return f"choice({','.join(map(text_of, self.values))})"


@dataclass(frozen=True)
class Range:
    """Numbers at equal distances.

    Attributes:
        start: The first of them; decimal, so that 0.1 + 0.2 is 0.3.
        step: Not 0; negative in a descending range.
        count: Number of values.
        is_int: Whether they are ints, not floats.
        is_shuffled: Whether a grid lists them in a mixed, but reproducible order.
    """

    start: Decimal
    step: Decimal
    count: int
    is_int: bool
    is_shuffled: bool = False

    @classmethod
    def of(cls, sweep: RangeSweep, where: str) -> "Range":
        """Hydra's range(); its stop is exclusive.

        Raises:
            ConfigError: It is empty, its step is 0, or it has more digits than a float.
        """
        numbers = [sweep.start or 0, sweep.stop or 0, sweep.step]
        text = f"range({','.join(map(text_of, numbers))})"
        if not all(map(isfinite, numbers)) or sweep.step == 0:
            problem = f"must have finite bounds and a step other than 0, but got {text}"
            raise ConfigError(where, problem)
        start, stop, step = (Decimal(repr(number)) for number in numbers)
        count = int(((stop - start) / step).to_integral_value(rounding=ROUND_CEILING))
        if count <= 0:
            problem = f"must hold at least one number, but {text} is empty; its stop is exclusive"
            raise ConfigError(where, problem)
        is_int = all(isinstance(number, int) for number in numbers)
        made = cls(start, step, count, is_int, sweep.shuffle)
        low, high = map(Decimal, map(repr, made._bounds()))
        if (high - low) % step != 0:  # Optuna would omit the last number
            problem = f"has more digits than a float holds in {text}: list the numbers, choice(...)"
            raise ConfigError(where, problem)
        return made

    def suggest(self, trial: "optuna.Trial", name: str) -> int | float:  # noqa: D102
        low, high = self._bounds()
        if self.is_int:
            return trial.suggest_int(name, int(low), int(high), step=int(abs(self.step)))
        return self.value(trial.suggest_float(name, low, high, step=float(abs(self.step))))

    def value(self, parameter: Any) -> int | float:
        """0.3, where Optuna computes 0.30000000000000004."""
        return self._number(self._index(parameter))

    def parameter(self, value: Any) -> int | float:  # noqa: D102
        return self.value(value)

    def contains(self, value: Any) -> bool:  # noqa: D102
        if not _is_number(value) or not isfinite(value):
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
        end = ")" if step == 1 else f",{step})"
        return f"range({self._number(0)},{self._number(self.count)}{end}"

    def _bounds(self) -> tuple[float, float]:
        ends = self._number(0), self._number(self.count - 1)
        return min(ends), max(ends)

    def _number(self, index: int) -> int | float:
        return self._typed(self.start + index * self.step)

    def _typed(self, number: Decimal) -> int | float:
        return int(number) if self.is_int else float(number)

    def _index(self, number: float) -> int:
        return round((Decimal(repr(number)) - self.start) / self.step)


@dataclass(frozen=True)
class Interval:
    """All numbers between two bounds, both included; only integers if the bounds are ints."""

    low: int | float
    high: int | float
    log: bool

    @classmethod
    def of(cls, sweep: IntervalSweep, where: str) -> "Interval":
        """Hydra's interval().

        Raises:
            ConfigError: The bounds are not in order, not finite, or not above 0 on a log scale.
        """
        assert sweep.start is not None
        assert sweep.end is not None
        made = cls(sweep.start, sweep.end, "log" in sweep.tags)
        if not isfinite(made.low) or not isfinite(made.high) or not made.low < made.high:
            problem = f"must have finite bounds, the lower one first, but got {made}"
            raise ConfigError(where, problem)
        if made.log and made.low <= 0:
            raise ConfigError(where, f"must have bounds above 0 on a log scale, but got {made}")
        return made

    @property
    def is_int(self) -> bool:
        """Whether it contains only integers."""
        return isinstance(self.low, int)

    @property
    def count(self) -> int | None:  # noqa: D102
        return int(self.high) - int(self.low) + 1 if self.is_int else None

    def suggest(self, trial: "optuna.Trial", name: str) -> int | float:  # noqa: D102
        if self.is_int:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def value(self, parameter: Any) -> int | float:  # noqa: D102
        return int(parameter) if self.is_int else float(parameter)

    def parameter(self, value: Any) -> int | float:  # noqa: D102
        return self.value(value)

    def contains(self, value: Any) -> bool:  # noqa: D102
        inside = _is_number(value) and self.low <= value <= self.high
        return inside and (not self.is_int or value == int(value))

    def parameters(self) -> Iterator[int]:  # noqa: D102
        return iter(range(int(self.low), int(self.high) + 1))

    def __str__(self) -> str:
        text = f"interval({self.low!r},{self.high!r})"
        text = f"int({text})" if self.is_int else text
        return f"tag(log,{text})" if self.log else text


def _is_category(value: Any) -> bool:
    is_plain = value is None or isinstance(value, str | int | float)
    return is_plain and not (isinstance(value, float) and not isfinite(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def domain_of(value: Any, where: str) -> Domain:
    """The domain of a parsed value; a plain value is a choice of one.

    Args:
        value: Of a `src.sweep.overrides.Assignment`.
        where: The key that an error names.

    Raises:
        ConfigError: The values make no domain.
    """
    if isinstance(value, RangeSweep):
        return Range.of(value, where)
    if isinstance(value, IntervalSweep):
        return Interval.of(value, where)
    values = list(value.list) if isinstance(value, ChoiceSweep) else [value]
    if isinstance(value, ChoiceSweep) and value.shuffle:
        # Reproducible: Optuna refuses a study whose categories changed their order.
        random.Random(",".join(map(text_of, values))).shuffle(values)
    return Categorical.of(values, where)


def listed(values: Sequence[Any], where: str) -> Categorical:
    """The choice among values of a YAML list; texts are taken literally.

    Raises:
        ConfigError: A value that no override can express, or that is listed twice.
    """
    for value in values:
        refuse_nested(value, where)
        try:
            parsed = assignment(f"key={text_of(value)}", where).value
        except TypeError as error:
            raise ConfigError(where, f"cannot sweep {value!r}: {error}") from None
        if identity(parsed) != identity(value):
            problem = f"cannot sweep {value!r}: an override would read it as {parsed!r}"
            raise ConfigError(where, problem)
    return Categorical.of(values, where)


def holds(clauses: Clauses, present: Mapping[str, Any]) -> bool:
    """Whether every key has one of its allowed values in `present` (key -> identity)."""
    return all(key in present and present[key] in allowed for key, allowed in clauses.items())


@dataclass(frozen=True)
class Cell:
    """One configuration of a space. Cells with equal overrides are equal.

    Attributes:
        overrides: For Hydra, "key=value", in the space's order; only active parameters.
        params: For Optuna, name -> parameter; enqueued, they give this cell again.
    """

    overrides: tuple[str, ...]
    params: dict[str, Any] = field(compare=False)


@dataclass(frozen=True)
class Parameter:
    """What is swept under one name.

    Attributes:
        name: For Optuna: the key, "key@condition", or "key+key" of paired values.
        prefixed_keys: The keys before "=", with "+" or "++"; several of paired values.
        domain: Its values; of paired values tuples with a value for each key.
        when: Active only where these clauses hold; empty: always.
        condition: The same as text.
        unless: Inactive where one of these holds: the key has another parameter there.
    """

    name: str
    prefixed_keys: tuple[str, ...]
    domain: Domain
    when: Clauses = field(default_factory=dict)
    condition: str = ""
    unless: tuple[Clauses, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys without prefixes."""
        return tuple(key.lstrip("+") for key in self.prefixed_keys)

    @property
    def depends_on(self) -> frozenset[str]:
        """The keys that decide whether it is active."""
        return frozenset(self.when).union(*self.unless)

    def is_active(self, present: Mapping[str, Any]) -> bool:
        """Whether a cell with these values (key -> identity) has the parameter."""
        return holds(self.when, present) and not any(
            holds(clauses, present) for clauses in self.unless
        )

    def values(self, parameter: Any) -> tuple[Any, ...]:
        """The value of each key for Optuna's parameter."""
        value = self.domain.value(parameter)
        return tuple(value) if len(self.prefixed_keys) > 1 else (value,)

    def can_be(self, key: str, allowed: Iterable[Any]) -> bool:
        """Whether `key` is one of its keys and can have one of these values (identities)."""
        if key not in self.keys:
            return False
        if not isinstance(self.domain, Categorical):
            # A number is its own identity.
            return any(self.domain.contains(value) for value in allowed)
        position = self.keys.index(key)
        values = (self.values(parameter)[position] for parameter in self.domain.parameters())
        return not set(map(identity, values)).isdisjoint(allowed)

    def __str__(self) -> str:
        prefixes = self.prefixed_keys != self.keys
        prefixed = f" as {' '.join(self.prefixed_keys)}" if prefixes else ""
        condition = f" when {self.condition}" if self.condition else ""
        return f"{self.domain}{prefixed}{condition}"


@dataclass(frozen=True)
class Exclusion:
    """Excludes the cells in which all clauses hold."""

    text: str
    clauses: Clauses


class _PartialCell:
    """A cell to which parameters are added one by one."""

    def __init__(self, other: "_PartialCell | None" = None) -> None:
        self.overrides: list[str] = list(other.overrides) if other else []
        self.params: dict[str, Any] = dict(other.params) if other else {}
        self.present: dict[str, Any] = dict(other.present) if other else {}  # key -> identity

    def add(self, parameter: Parameter, chosen: Any) -> "_PartialCell":
        self.params[parameter.name] = chosen
        for prefixed, value in zip(parameter.prefixed_keys, parameter.values(chosen), strict=True):
            self.present[prefixed.lstrip("+")] = identity(value)
            self.overrides.append(f"{prefixed}={text_of(value)}")
        return self

    def cell(self) -> Cell:
        return Cell(tuple(self.overrides), self.params)


class Space:
    """The search space of a study.

    Args:
        parameters: Each after those that its conditions name.
        exclusions: Cells that are left out.
    """

    def __init__(
        self, parameters: Sequence[Parameter], exclusions: Sequence[Exclusion] = ()
    ) -> None:
        self.parameters = tuple(parameters)
        self.exclusions = tuple(exclusions)

    def suggest(self, trial: "optuna.Trial") -> Cell:
        """The cell that a study suggests for `trial`; it may be excluded."""
        partial = _PartialCell()
        for parameter in self.parameters:
            if parameter.is_active(partial.present):
                partial.add(parameter, parameter.domain.suggest(trial, parameter.name))
        return partial.cell()

    def cells(self) -> Iterator[Cell]:
        """All cells that are not excluded; the last parameter varies fastest.

        Raises:
            ConfigError: A parameter is continuous.
        """
        for parameter in self.parameters:
            if parameter.domain.count is None:
                ways = "set hydra.sweeper.n_trials, or list values"
                problem = f"a grid cannot list {parameter.domain}: {ways}"
                raise ConfigError(parameter.name, problem)
        partials = self._partial_cells(0, _PartialCell())
        return (each.cell() for each in partials if not self._exclusion(each.present))

    @cached_property
    def n_cells(self) -> int | None:
        """Number of cells that are not excluded; None if a parameter is continuous."""
        if any(parameter.domain.count is None for parameter in self.parameters):
            return None
        named = {key for exclusion in self.exclusions for key in exclusion.clauses}
        named = named.union(*(parameter.depends_on for parameter in self.parameters))
        return self._count(0, {}, named)

    def is_excluded(self, cell: Cell) -> str | None:
        """The text of the exclusion that excludes `cell`; None if none does."""
        partial = _PartialCell()
        for parameter in self.parameters:
            if parameter.name in cell.params:
                partial.add(parameter, cell.params[parameter.name])
        exclusion = self._exclusion(partial.present)
        return exclusion.text if exclusion else None

    def params_of(self, overrides: Sequence[str]) -> dict[str, Any] | None:
        """Optuna's parameters of the cell with these overrides, in any order; None if outside."""
        try:
            parsed = {each.key: each.value for each in map(assignment, overrides)}
        except ConfigError:
            return None
        partial = _PartialCell()
        for parameter in self.parameters:
            if not parameter.is_active(partial.present):
                continue
            if not parsed.keys() >= set(parameter.keys):
                return None
            values = tuple(parsed.pop(key) for key in parameter.keys)
            value = values if len(values) > 1 else values[0]
            if not parameter.domain.contains(value):
                return None
            partial.add(parameter, parameter.domain.parameter(value))
        return None if parsed or self._exclusion(partial.present) else partial.params

    def describe(self) -> dict[str, Any]:
        """JSON values that are equal for spaces with the same cells in the same order."""
        return {
            "parameters": {parameter.name: str(parameter) for parameter in self.parameters},
            "order": [parameter.name for parameter in self.parameters],
            "exclude": sorted(exclusion.text for exclusion in self.exclusions),
        }

    @staticmethod
    def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
        """The differences between two results of `describe`, a line each."""
        before, after = old["parameters"], new["parameters"]
        lines = [
            f"{name}: was {before[name]}, is no longer swept"
            for name in before
            if name not in after
        ]
        lines += [
            f"{name}: was not swept, is {after[name]}" for name in after if name not in before
        ]
        lines += [
            f"{name}: was {before[name]}, is {after[name]}"
            for name in before
            if name in after and before[name] != after[name]
        ]
        for label, one, other in (("no longer", old, new), ("newly", new, old)):
            texts = [text for text in one["exclude"] if text not in other["exclude"]]
            lines += [f"{label} excluded: {text}" for text in texts]
        if not lines and old["order"] != new["order"]:
            lines.append(f"order: was {', '.join(old['order'])}, is {', '.join(new['order'])}")
        return lines

    def _partial_cells(self, start: int, partial: _PartialCell) -> Iterator[_PartialCell]:
        if start == len(self.parameters):
            yield partial
            return
        parameter = self.parameters[start]
        if not parameter.is_active(partial.present):
            yield from self._partial_cells(start + 1, partial)
            return
        for chosen in parameter.domain.parameters():
            yield from self._partial_cells(start + 1, _PartialCell(partial).add(parameter, chosen))

    def _count(self, start: int, present: dict[str, Any], named: set[str]) -> int:
        """Branches only on keys that a condition or an exclusion names; others are factors."""
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


@dataclass(frozen=True)
class Parsed:
    """A parsed command line and `sweeps/` file.

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
    """Parse the search space by Hydra's override grammar.

    The command line takes precedence over the file: a fixed value removes the key from the space; a
    sweep replaces the file's values, under the file's conditions.

    Args:
        arguments: The command line's overrides without `hydra.*`.
        params: Key -> text such as "choice(8,16)", or a list of the values.
        conditions: "model=custom" -> parameters that only cells with this value have. Several are
            joined by " and "; `model=a,b` is either. A key that is in `params` too has these values
            there instead. A text or number that is no sweep is a single value.
        zipped: Groups of keys with lists of equal length, whose values go together.
        exclude: Such as "model.net.depth=4 model.image_size=32": cells in which all of it holds are
            left out.

    Raises:
        ConfigError: Something is not as above, or Hydra would silently read something else into it.
    """
    builder = _SpaceBuilder(arguments, [*params, *(key for c in conditions.values() for key in c)])
    builder.add_params(params)
    builder.add_zipped(zipped)
    builder.add_conditions(conditions)
    parameters = _ordered(_exclusive(_reachable(builder.parameters)))
    space = Space(parameters, builder.exclusions(exclude))
    if space.n_cells == 0:
        raise ConfigError(_EXCLUDE, "leaves no cell to run")
    return Parsed(space, builder.fixed)


class _SpaceBuilder:
    """Collects the parameters of the command line and of the file.

    Args:
        arguments: The command line's overrides.
        keys: The file's keys, except those of pairs.
    """

    def __init__(self, arguments: Iterable[str], keys: Iterable[str]) -> None:
        self.fixed: list[str] = []
        self.values: dict[str, Any] = {}  # of fixed keys; as in Hydra the last one counts
        self.swept: dict[str, tuple[Assignment, Domain]] = {}
        for argument in arguments:
            parsed = assignment(argument)
            if parsed.key in self.swept or (parsed.is_sweep and parsed.key in self.values):
                raise ConfigError(parsed.key, f"is swept and given once more, by {argument}")
            if parsed.is_sweep:
                self.swept[parsed.key] = (parsed, domain_of(parsed.value, parsed.key))
            else:
                self.fixed.append(argument)
                # A deleted key equals no value.
                self.values[parsed.key] = ... if parsed.prefix == "~" else parsed.value
        self.occurrences = Counter(key.lstrip("+") for key in keys)
        self.parameters: list[Parameter] = []
        # All domains of a key in the file or on the command line, even if the latter fixes it.
        self.declared = {key: [domain] for key, (_, domain) in self.swept.items()}

    def add_params(self, params: Mapping[str, Any]) -> None:
        """The file's parameters, then those that only the command line has."""
        for prefixed, value in params.items():
            where, key = f"{_PARAMS}.{prefixed}", prefixed.lstrip("+")
            self._refuse_repeated([key], where)
            domain = self._declare(key, _file_domain(prefixed, value, where), where)
            if key not in self.values:
                self.parameters.append(Parameter(key, (prefixed,), self._current(key, domain)))
        for key, (parsed, domain) in self.swept.items():
            if not self.occurrences[key]:
                self.parameters.append(Parameter(key, (parsed.prefix + key,), domain))

    def add_zipped(self, zipped: Sequence[Mapping[str, Sequence[Any]]]) -> None:
        for number, group in enumerate(zipped):
            where = f"{_ZIP}[{number}]"
            keys = [key.lstrip("+") for key in group]
            typed = [key for key in keys if key in self.swept or key in self.values]
            columns = {key: _column(key, values, where) for key, values in group.items()}
            if len({len(values) for values in columns.values()}) != 1 or len(columns) < 2:
                lengths = ", ".join(f"{key} has {len(values)}" for key, values in columns.items())
                problem = f"must pair lists of equal length, but {lengths or 'is empty'}"
                raise ConfigError(where, problem)
            for key, values in columns.items():
                different = list({identity(value): value for value in values}.values())
                self._declare(key.lstrip("+"), Categorical.of(different, where), where)
            if typed and len(typed) < len(keys):
                others = ", ".join(key for key in keys if key not in typed)
                problem = f"goes together with {others} in {where}: give all of them, or none"
                raise ConfigError(typed[0], problem)
            if repeated := [key for key in keys if self.occurrences[key]]:
                raise ConfigError(where, f"{repeated[0]} is swept twice")
            if not typed:
                self._refuse_repeated(keys, where)
                rows = list(zip(*columns.values(), strict=True))
                texts = tuple("+".join(map(text_of, row)) for row in rows)
                domain = Categorical(Categorical.of(rows, where).values, texts)
                self.parameters.append(Parameter("+".join(keys), tuple(group), domain))

    def add_conditions(self, conditions: Mapping[str, Mapping[str, Any]]) -> None:
        parsed = {text: clauses(text, _CONDITIONS) for text in conditions}
        conditional = []
        for text, group in conditions.items():
            for prefixed, value in group.items():
                where, key = f"{_CONDITIONS}.{text}.{prefixed}", prefixed.lstrip("+")
                domain = _file_domain(prefixed, value, where, allow_single=True)
                domain = self._current(key, self._declare(key, domain, where))
                name = f"{key}@{text}" if self.occurrences[key] > 1 else key
                conditional.append((text, Parameter(name, (prefixed,), domain)))
        for text, required in parsed.items():
            self._check(required, text, _CONDITIONS)
        for text, parameter in conditional:
            when = self._open_clauses(parsed[text])
            if when is not None and parameter.keys[0] not in self.values:
                condition = text if when else ""
                self.parameters.append(replace(parameter, when=when, condition=condition))

    def exclusions(self, exclude: Sequence[str]) -> list[Exclusion]:
        """The exclusions that a cell can match."""
        exclusions = []
        for number, text in enumerate(exclude):
            where = f"{_EXCLUDE}[{number}]"
            required = clauses(text, where)
            self._check(required, text, where)
            if (rest := self._open_clauses(required)) is not None:
                exclusions.append(Exclusion(text, rest))
        return exclusions

    def _declare(self, key: str, domain: Domain, where: str) -> Domain:
        refuse_key(key, where)
        self.declared.setdefault(key, []).append(domain)
        return domain

    def _current(self, key: str, domain: Domain) -> Domain:
        return self.swept[key][1] if key in self.swept else domain

    def _refuse_repeated(self, keys: Sequence[str], where: str) -> None:
        taken = {key for parameter in self.parameters for key in parameter.keys}
        for key in keys:
            if key in taken or keys.count(key) > 1:
                raise ConfigError(where, f"{key} is swept twice")

    def _check(self, required: Mapping[str, tuple[Any, ...]], text: str, where: str) -> None:
        """Refuse clauses about keys or values that no cell can have."""
        for key, values in required.items():
            domains = self.declared.get(key)
            if domains is None and key not in self.values:
                raise ConfigError(where, f"{key} in {text!r} is no parameter of the space")
            for value in values if domains else ():
                if not any(domain.contains(value) for domain in domains or ()):
                    options = " or ".join(map(str, domains or ()))
                    problem = f"{key}={text_of(value)} in {text!r} is none of {options}"
                    raise ConfigError(where, problem)

    def _open_clauses(self, required: Mapping[str, tuple[Any, ...]]) -> Clauses | None:
        """The clauses that the fixed values do not satisfy yet; None if they contradict one."""
        rest = {}
        for key, values in required.items():
            allowed = frozenset(map(identity, values))
            if key not in self.values:
                rest[key] = allowed
            elif self.values[key] is ... or identity(self.values[key]) not in allowed:
                return None
        return rest


def _file_domain(key: str, value: Any, where: str, allow_single: bool = False) -> Domain:
    """The domain of a key of the file: a text of the grammar, a list or, if allowed, one value."""
    if key.startswith("~"):
        raise ConfigError(where, "a deletion cannot be swept")
    problem = f"must be a text such as choice(8,16) or a list of values, but got {value!r}"
    if isinstance(value, Mapping):
        raise ConfigError(where, problem)
    if isinstance(value, str):
        parsed = assignment(f"{key}={value.strip()}", where)
        if parsed.is_sweep or allow_single:
            return domain_of(parsed.value, where)
    elif isinstance(value, Sequence):
        return listed(value, where)
    elif allow_single:
        return listed([value], where)
    raise ConfigError(where, f"{problem} alone")


def _column(key: str, values: Any, where: str) -> list[Any]:
    """The values of one key of a pair; the same value may be in several pairs."""
    domain = _file_domain(key, values, where) if isinstance(values, str) else None
    if domain is not None and domain.count is not None:
        return [domain.value(parameter) for parameter in domain.parameters()]
    if domain is not None or not isinstance(values, Sequence):
        raise ConfigError(where, f"{key} must be a list of values, but got {values!r}")
    for value in values:
        listed([value], where)
    return list(values)


def _reachable(parameters: list[Parameter]) -> list[Parameter]:
    """Without the parameters whose conditions no cell can meet."""

    def can_hold(clauses: Clauses) -> bool:
        return all(
            any(parameter.can_be(key, allowed) for parameter in parameters)
            for key, allowed in clauses.items()
        )

    while len(kept := [each for each in parameters if can_hold(each.when)]) < len(parameters):
        parameters = kept
    return parameters


def _exclusive(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Make parameters with the same key exclusive: one without a condition yields to the others."""
    exclusive = []
    for parameter in parameters:
        others = [
            other
            for other in parameters
            if other is not parameter and not set(other.keys).isdisjoint(parameter.keys)
        ]
        for other in others:
            shared = parameter.when.keys() & other.when.keys()
            disjoint = any(parameter.when[key].isdisjoint(other.when[key]) for key in shared)
            if not disjoint and bool(parameter.when) == bool(other.when):
                both = f"both {parameter.name} and {other.name} hold"
                problem = f"{parameter.keys[0]} is swept twice where {both}"
                raise ConfigError(_CONDITIONS, f"{problem}: make the conditions exclude each other")
        unless = () if parameter.when else tuple(other.when for other in others)
        exclusive.append(replace(parameter, unless=unless))
    return exclusive


def _ordered(parameters: Sequence[Parameter]) -> list[Parameter]:
    """In the same order, but each after all those that its conditions name."""
    waiting, ordered = list(parameters), list[Parameter]()
    while waiting:
        open_keys = {key for parameter in waiting for key in parameter.keys}
        ready = next((each for each in waiting if each.depends_on.isdisjoint(open_keys)), None)
        if ready is None:
            names = ", ".join(sorted(open_keys))
            raise ConfigError(_CONDITIONS, f"{names} depend on each other in a circle")
        waiting.remove(ready)
        ordered.append(ready)
    return ordered
