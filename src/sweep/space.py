"""Search space of a study: domains, conditions, paired values, exclusions, cells."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Decimal
from functools import cached_property
from math import isfinite
from typing import Any

import optuna
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from src.core.errors import ConfigError
from src.sweep.overrides import assignment, clauses, identity, literal, refuse_key, text_of

# Key -> allowed values, as `src.sweep.overrides.identity`; all keys must match.
Clauses = Mapping[str, frozenset[Any]]
_CONDITIONS = "hydra.sweeper.conditions"
_EXCLUDE = "hydra.sweeper.exclude"
_MOST_VALUES = 100_000  # of a range; they are listed


@dataclass(frozen=True)
class Domain:
    """The values of a parameter.

    "parameter" below is a value as Optuna stores it, "value" is the one in the config. A choice has
    a category for each value: the value itself where Optuna accepts and distinguishes it, else a
    text.
    """

    distribution: CategoricalDistribution | IntDistribution | FloatDistribution
    text: str  # as an override
    values: Sequence[Any] | None  # in the order of a grid; of paired keys tuples; None: continuous

    def value(self, parameter: Any) -> Any:
        """The value for a parameter: 0.3, where Optuna computes 0.30000000000000004."""
        if self.values is None:
            return float(parameter)
        if isinstance(self.distribution, CategoricalDistribution):
            return self.values[self.distribution.choices.index(parameter)]
        if isinstance(self.distribution, IntDistribution):
            return int(parameter)
        return min(self.values, key=lambda value: abs(value - parameter))

    def parameter(self, value: Any) -> Any:
        """The parameter for a value that the domain contains."""
        is_choice = isinstance(self.distribution, CategoricalDistribution)
        return self._categories[identity(value)] if is_choice else self.value(value)

    def contains(self, value: Any) -> bool:
        """Whether it is one of the values."""
        if isinstance(self.distribution, CategoricalDistribution):
            return identity(value) in self._categories
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_within = is_number and self.distribution._contains(value)
        return is_within and (self.values is None or value in self.values)

    @property
    def samples(self) -> Sequence[Any]:
        """All values of a choice; of a range its ends, of an interval two numbers close to them."""
        if isinstance(self.distribution, CategoricalDistribution):
            return self.values or ()
        if self.values is not None:
            return list(dict.fromkeys((self.values[0], self.values[-1])))
        low, high = self.distribution.low, self.distribution.high
        margin = (high - low) * 1e-6  # a bound itself may be impossible
        return low + margin, high - margin

    @cached_property
    def _categories(self) -> dict[Any, Any]:
        assert isinstance(self.distribution, CategoricalDistribution)
        return dict(zip(map(identity, self.values or ()), self.distribution.choices, strict=True))


def _choice(values: Sequence[Any], where: str, categories: Sequence[str] = ()) -> Domain:
    """The choice among `values`; ConfigError for no value, or one that is listed twice."""
    if not values:
        raise ConfigError(where, "must have at least one value, but has none")
    texts, identities = list(map(text_of, values)), list(map(identity, values))
    for number, text in enumerate(texts):
        if identities[number] in identities[:number]:
            raise ConfigError(where, f"must list each value once, but got {text} again")
    not_finite = ("nan", "inf", "-inf")
    names: Sequence[Any] = categories or [  # what Optuna accepts as a category
        value
        if isinstance(value, str | int | float | None) and str(value) not in not_finite
        else text
        for value, text in zip(values, texts, strict=True)
    ]
    if len(set(names)) < len(names):  # Optuna compares by ==: 1 equals true
        names = texts
    return Domain(CategoricalDistribution(names), f"choice({','.join(texts)})", tuple(values))


def _range(sweep: RangeSweep, where: str) -> Domain:
    """Hydra's range(); its stop is exclusive."""
    numbers = [sweep.start or 0, sweep.stop or 0, sweep.step]
    text = f"range({','.join(map(text_of, numbers))})"
    if not all(map(isfinite, numbers)) or sweep.step == 0:
        problem = f"must have finite bounds and a step other than 0, but got {text}"
        raise ConfigError(where, problem)
    start, stop, step = (Decimal(str(number)) for number in numbers)  # 0.1 + 0.2 is 0.3
    count = int(((stop - start) / step).to_integral_value(rounding=ROUND_CEILING))
    if count <= 0:
        problem = f"must hold at least one number, but {text} is empty; its stop is exclusive"
        raise ConfigError(where, problem)
    is_int = all(isinstance(number, int) for number in numbers)
    if count > _MOST_VALUES:
        way = f"take a larger step, or {'int(interval(...))' if is_int else 'interval(...)'}"
        most = f"must hold at most {_MOST_VALUES:,} numbers"
        raise ConfigError(where, f"{most}, but {text} holds {count:,}: {way}")
    number_of: type[int] | type[float] = int if is_int else float
    values: Sequence[Any] = range(int(start), int(stop), int(step)) if is_int else ()
    values = values or [float(start + position * step) for position in range(count)]
    low, high = sorted((values[0], values[-1]))
    if (Decimal(str(high)) - Decimal(str(low))) % step != 0:  # Optuna would omit the last number
        problem = f"has more digits than a float holds in {text}: list the numbers, choice(...)"
        raise ConfigError(where, problem)
    distance = "" if step == 1 else f",{number_of(step)}"
    text = f"range({values[0]},{number_of(start + count * step)}{distance})"
    if sweep.shuffle:
        values = random.Random(text).sample(values, count)
    distribution: Any = IntDistribution if is_int else FloatDistribution
    return Domain(distribution(low, high, step=number_of(abs(step))), text, values)


def _domain(value: Any, where: str) -> Domain:
    """The domain of a parsed value; a plain value is a choice of one."""
    if isinstance(value, RangeSweep):
        return _range(value, where)
    if isinstance(value, IntervalSweep):
        low: Any = value.start
        high: Any = value.end
        log = "log" in value.tags
        text = f"interval({low!r},{high!r})"
        if not isinstance(low, int):
            text = f"tag(log,{text})" if log else text
            return Domain(FloatDistribution(low, high, log=log), text, None)
        text = f"tag(log,int({text}))" if log else f"int({text})"
        return Domain(IntDistribution(low, high, log=log), text, range(low, high + 1))
    values = list(value.list) if isinstance(value, ChoiceSweep) else [value]
    if isinstance(value, ChoiceSweep) and value.shuffle:
        # Reproducible: Optuna refuses a study whose categories changed their order.
        random.Random(",".join(map(text_of, values))).shuffle(values)
    return _choice(values, where)


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
            return _domain(parsed.value, where)
    elif isinstance(value, Sequence) or allow_single:
        return _choice(literal(value if isinstance(value, Sequence) else [value], where), where)
    raise ConfigError(where, f"{problem} alone")


def _column(key: str, values: Any, where: str) -> list[Any]:
    """The values of one key of a pair; the same value may be in several pairs."""
    if isinstance(values, Sequence) and not isinstance(values, str):
        return literal(values, where)
    domain = _file_domain(key, values, where) if isinstance(values, str) else None
    if domain is None or domain.values is None:
        raise ConfigError(where, f"{key} must be a list of values, but got {values!r}")
    return list(domain.values)


@dataclass(frozen=True)
class Cell:
    """One configuration of a space. Cells with equal overrides are equal.

    Attributes:
        overrides: For Hydra, "key=value", in the space's order; only active parameters.
        params: For Optuna, name -> parameter; enqueued, they give this cell again.
        identities: Key -> identity of its value.
    """

    overrides: tuple[str, ...] = ()
    params: dict[str, Any] = field(default_factory=dict, compare=False)
    identities: dict[str, Any] = field(default_factory=dict, compare=False)

    def matches(self, clauses: Clauses) -> bool:
        """Whether every key has one of its allowed values."""
        present = self.identities
        return all(key in present and present[key] in allowed for key, allowed in clauses.items())

    def extended(self, parameter: "Parameter", value: Any) -> "Cell":
        """This cell with a value of one more parameter."""
        pairs = parameter.pairs(value)
        identities = {prefixed.lstrip("+"): identity(item) for prefixed, item in pairs}
        params = {**self.params, parameter.name: parameter.domain.parameter(value)}
        overrides = (*self.overrides, *parameter.overrides(value))
        return Cell(overrides, params, self.identities | identities)


@dataclass(frozen=True)
class Parameter:
    """What is swept under one name."""

    name: str  # for Optuna: the key, "key@condition", or "key+key" of paired values
    prefixed_keys: tuple[str, ...]  # as before "=", with "+" or "++"; several of paired values
    domain: Domain
    when: Clauses = field(default_factory=dict)  # active only where these hold; empty: always
    condition: str = ""  # the same as text
    unless: tuple[Clauses, ...] = ()  # inactive where one of these holds: another has the key there

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys without prefixes."""
        return tuple(key.lstrip("+") for key in self.prefixed_keys)

    @property
    def depends_on(self) -> frozenset[str]:
        """The keys that decide whether it is active."""
        return frozenset(self.when).union(*self.unless)

    def is_active(self, cell: Cell) -> bool:
        """Whether the cell, of all parameters that this one depends on, has this one."""
        return cell.matches(self.when) and not any(map(cell.matches, self.unless))

    def pairs(self, value: Any) -> list[tuple[str, Any]]:
        """Prefixed key and value of each key, for a value of the domain."""
        values = value if len(self.prefixed_keys) > 1 else (value,)
        return list(zip(self.prefixed_keys, values, strict=True))

    def overrides(self, value: Any) -> list[str]:
        """What a cell with a value of the domain has for Hydra."""
        return [f"{prefixed}={text_of(item)}" for prefixed, item in self.pairs(value)]

    def __str__(self) -> str:
        prefixed = f" as {' '.join(self.prefixed_keys)}" if self.prefixed_keys != self.keys else ""
        condition = f" when {self.condition}" if self.condition else ""
        return f"{self.domain.text}{prefixed}{condition}"


@dataclass(frozen=True)
class Space:
    """The search space of a study."""

    parameters: Sequence[Parameter]  # each after those that its conditions name
    exclusions: Mapping[str, Clauses]  # text -> clauses; where all of one hold, no cell is run

    def suggest(self, trial: "optuna.Trial") -> Cell:
        """The cell that a study suggests for `trial`; it may be excluded."""
        cell = Cell()
        for parameter in self.parameters:
            if parameter.is_active(cell):
                domain = parameter.domain
                suggested = trial._suggest(parameter.name, domain.distribution)
                cell = cell.extended(parameter, domain.value(suggested))
        return cell

    def with_value(self, parameter: Parameter, value: Any) -> "Space":
        """The part of the space in which a parameter, where it is active, has one value."""
        single = replace(parameter, domain=_choice([value], parameter.name))
        return replace(self, parameters=[single if p is parameter else p for p in self.parameters])

    def cells(self) -> Iterator[Cell]:
        """All cells that are not excluded; the last parameter varies fastest.

        Raises:
            ConfigError: A parameter that a cell can have is continuous.
        """
        self._count(0, Cell())
        return self._cells(0, Cell())

    @cached_property
    def n_cells(self) -> int | None:
        """Number of cells that are not excluded; None if they cannot be listed."""
        try:
            return self._count(0, Cell())
        except ConfigError:
            return None

    def is_excluded(self, cell: Cell) -> str | None:
        """The text of the exclusion that excludes `cell`; None if none does."""
        texts = (text for text, excluded in self.exclusions.items() if cell.matches(excluded))
        return next(texts, None)

    def params_of(self, overrides: Sequence[str]) -> dict[str, Any] | None:
        """Optuna's parameters of the cell with these overrides, in any order; None if outside."""
        try:
            values = {parsed.key: parsed.value for parsed in map(assignment, overrides)}
        except ConfigError:
            return None
        cell = Cell()
        for parameter in self.parameters:
            if not parameter.is_active(cell):
                continue
            if not values.keys() >= set(parameter.keys):
                return None
            row = tuple(values.pop(key) for key in parameter.keys)
            value = row if len(row) > 1 else row[0]
            if not parameter.domain.contains(value):
                return None
            cell = cell.extended(parameter, value)
        return None if values or self.is_excluded(cell) else cell.params

    def describe(self) -> dict[str, Any]:
        """JSON values; where they are equal, spaces have the same cells in the same order."""
        parameters = {parameter.name: str(parameter) for parameter in self.parameters}
        order, exclude = list(parameters), sorted(self.exclusions)
        return {"parameters": parameters, "order": order, "exclude": exclude}

    def _cells(self, start: int, cell: Cell) -> Iterator[Cell]:
        for number, parameter in enumerate(self.parameters[start:], start + 1):
            if parameter.is_active(cell):
                for value in parameter.domain.values or ():
                    yield from self._cells(number, cell.extended(parameter, value))
                return
        if not self.is_excluded(cell):
            yield cell

    @cached_property
    def _deciding(self) -> set[str]:
        """The keys that a condition or an exclusion names."""
        keys = {key for excluded in self.exclusions.values() for key in excluded}
        return keys.union(*(parameter.depends_on for parameter in self.parameters))

    def _count(self, start: int, cell: Cell) -> int:
        """Branches only on keys that decide about others; all others are factors."""
        factor = 1
        for number, parameter in enumerate(self.parameters[start:], start + 1):
            domain = parameter.domain
            if not parameter.is_active(cell):
                continue
            if domain.values is None:
                ways = "set hydra.sweeper.n_trials, or list values"
                raise ConfigError(parameter.name, f"a grid cannot list {domain.text}: {ways}")
            if not self._deciding.isdisjoint(parameter.keys):
                branches = (cell.extended(parameter, value) for value in domain.values)
                return factor * sum(self._count(number, branch) for branch in branches)
            factor *= len(domain.values)
        return 0 if self.is_excluded(cell) else factor


def parse(
    arguments: Sequence[str],
    params: Mapping[str, Any],
    conditions: Mapping[str, Mapping[str, Any]],
    zipped: Sequence[Mapping[str, Sequence[Any]]],
    exclude: Sequence[str],
) -> tuple[Space, list[str]]:
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

    Returns:
        The space, and the command line's overrides that are not swept, in order, as typed.

    Raises:
        ConfigError: Something is not as above, or Hydra would silently read something else into it.
    """
    keys = (key.lstrip("+") for group in (params, *conditions.values()) for key in group)
    builder = _Builder(Counter(keys), arguments)
    builder.add(params, "hydra.sweeper.params")
    for key, (prefixed, domain) in builder.swept.items():
        if not builder.counts[key]:
            builder.parameters.append(Parameter(key, (prefixed,), domain))
    for number, group in enumerate(zipped):
        builder.add_paired(group, f"hydra.sweeper.zip[{number}]")
    for text, group in conditions.items():
        builder.add(group, f"{_CONDITIONS}.{text}", text)
    when = {text: builder.open_clauses(text, _CONDITIONS) for text in conditions}
    active = []
    for parameter in builder.parameters:
        required = when.get(parameter.condition, {})
        if required is not None and parameter.keys[0] not in builder.values:
            condition = parameter.condition if required else ""
            active.append(replace(parameter, when=required, condition=condition))
    exclusions = {}
    for number, text in enumerate(exclude):
        if (required := builder.open_clauses(text, f"{_EXCLUDE}[{number}]")) is not None:
            exclusions[text] = required
    space = Space(_ordered(_exclusive(active)), exclusions)
    if space.n_cells == 0:
        raise ConfigError(_EXCLUDE, "leaves no cell to run")
    return space, builder.fixed


class _Builder:
    """Collects parameters; `counts` has how often the file has each key, those of pairs aside."""

    def __init__(self, counts: Counter[str], arguments: Iterable[str]) -> None:
        self.counts = counts
        self.parameters: list[Parameter] = []  # those of fixed keys and conditions included
        self.fixed: list[str] = []
        self.values: dict[str, Any] = {}  # of fixed keys; as in Hydra the last one counts
        self.swept: dict[str, tuple[str, Domain]] = {}  # key -> the same with its prefix, domain
        for argument in arguments:
            parsed = assignment(argument)
            key = parsed.key
            if key in self.swept or (parsed.is_sweep and key in self.values):
                raise ConfigError(key, f"is swept and given once more, by {argument}")
            if parsed.is_sweep:
                self.swept[key] = (parsed.prefix + key, _domain(parsed.value, key))
            else:
                self.fixed.append(argument)
                # A deleted key equals no value.
                self.values[key] = ... if parsed.prefix == "~" else parsed.value
        # All domains of a key in the file or on the command line, even if the latter fixes it.
        self.declared = {key: [domain] for key, (_, domain) in self.swept.items()}

    def add(self, group: Mapping[str, Any], where: str, condition: str = "") -> None:
        """Add parameters of the file, with the values that the command line sweeps."""
        for prefixed, value in group.items():
            path, key = f"{where}.{prefixed}", prefixed.lstrip("+")
            if not condition and any(key == parameter.name for parameter in self.parameters):
                raise ConfigError(path, f"{key} is swept twice")
            domain = _file_domain(prefixed, value, path, allow_single=bool(condition))
            self._declare(key, domain, path)
            domain = self.swept[key][1] if key in self.swept else domain
            name = f"{key}@{condition}" if condition and self.counts[key] > 1 else key
            self.parameters.append(Parameter(name, (prefixed,), domain, condition=condition))

    def _declare(self, key: str, domain: Domain, where: str) -> None:
        refuse_key(key, where)
        self.declared.setdefault(key, []).append(domain)

    def add_paired(self, group: Mapping[str, Any], where: str) -> None:
        """Add a group of paired keys, unless the command line has all of them."""
        columns = {key: _column(key, values, where) for key, values in group.items()}
        if len({len(values) for values in columns.values()}) != 1 or len(columns) < 2:
            lengths = ", ".join(f"{key} has {len(values)}" for key, values in columns.items())
            problem = f"must pair lists of equal length, but {lengths or 'is empty'}"
            raise ConfigError(where, problem)
        keys = [key.lstrip("+") for key in group]
        for key, values in zip(keys, columns.values(), strict=True):
            distinct = list({identity(value): value for value in values}.values())
            self._declare(key, _choice(distinct, where), where)
        typed = [key for key in keys if key in self.swept or key in self.values]
        if typed and len(typed) < len(keys):
            others = ", ".join(key for key in keys if key not in typed)
            problem = f"goes together with {others} in {where}: give all of them, or none"
            raise ConfigError(typed[0], problem)
        swept = set() if typed else {key for item in self.parameters for key in item.keys}
        for key in keys:
            if self.counts[key] or keys.count(key) > 1 or key in swept:
                raise ConfigError(where, f"{key} is swept twice")
        if not typed:
            rows = list(zip(*columns.values(), strict=True))
            domain = _choice(rows, where, ["+".join(map(text_of, row)) for row in rows])
            self.parameters.append(Parameter("+".join(keys), tuple(group), domain))

    def open_clauses(self, text: str, where: str) -> Clauses | None:
        """The clauses that the fixed values do not satisfy yet; None if they contradict one."""
        required = clauses(text, where)
        for key, values in required.items():
            domains = self.declared.get(key, [])
            if not domains and key not in self.values:
                raise ConfigError(where, f"{key} in {text!r} is no parameter of the space")
            for value in values:
                if domains and not any(domain.contains(value) for domain in domains):
                    options = " or ".join(domain.text for domain in domains)
                    problem = f"{key}={text_of(value)} in {text!r} is none of {options}"
                    raise ConfigError(where, problem)
        remaining = {}
        for key, values in required.items():
            allowed = frozenset(map(identity, values))
            if key not in self.values:
                remaining[key] = allowed
            elif self.values[key] is ... or identity(self.values[key]) not in allowed:
                return None
        return remaining


def _exclusive(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Make parameters with the same key exclusive: one without a condition yields to the others."""
    exclusive = []
    for parameter in parameters:
        keys = set(parameter.keys)
        others = [item for item in parameters if item is not parameter and keys & set(item.keys)]
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
        ready = next((item for item in waiting if item.depends_on.isdisjoint(open_keys)), None)
        if ready is None:
            names = ", ".join(sorted(open_keys))
            raise ConfigError(_CONDITIONS, f"{names} depend on each other in a circle")
        waiting.remove(ready)
        ordered.append(ready)
    return ordered
