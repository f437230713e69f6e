"""From what the user typed to the search space of a sweep: command line, ranges, conditions, pairs, exclusions."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from src.errors import ConfigError
from src.sweep.domains import Choice, Domain, domain_of, listed
from src.sweep.grammar import Assignment, assignment, clauses, identity, refuse_key, text_of
from src.sweep.parameters import Cell, Clauses, Exclusion, Parameter, Space

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

    A key on the command line wins over the file's: a fixed value takes the key out of the space, a sweep replaces the
    file's values where the file has the key (under its conditions, if it has any).

    Args:
        arguments: The command line's overrides but for `hydra.*`.
        params: Key -> text such as "choice(8,16)", or a list of the values as they are.
        conditions: "model=custom" -> parameters that only cells with this value have. Several are joined by " and ";
            `model=a,b` is either. A key that is in `params` too has these values there instead. A text or number that
            is no sweep is a single value.
        zipped: Groups of keys with lists of equal length, whose values go together.
        exclude: Such as "model.net.depth=4 model.image_size=32": cells in which all of it holds are left out.

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
    values: dict[str, Any] = field(default_factory=dict)  # of the fixed keys; the last one wins, as in Hydra
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
                line.values[read.key] = ... if read.prefix == "~" else read.value  # a deleted key equals nothing
        return line


class _Builder:
    """Gathers the parameters; `declared` holds what each key may be by the file, whatever the command line says."""

    def __init__(self, line: _CommandLine, keys: Iterable[str]) -> None:
        self.line = line
        self.occurrences = Counter(key.lstrip("+") for key in keys)  # in the file, but for pairs
        self.parameters: list[Parameter] = []
        self.declared: dict[str, list[Domain]] = {key: [domain] for key, (_, domain) in line.swept.items()}

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
                raise ConfigError(where, f"must pair lists of equal length, but {lengths or 'is empty'}")
            for key, values in columns.items():
                different = list({identity(value): value for value in values}.values())
                self._declare(key.lstrip("+"), Choice.of(different, where), where)
            if given and len(given) < len(keys):
                rest = ", ".join(key for key in keys if key not in given)
                raise ConfigError(given[0], f"goes together with {rest} in {where}: give all of them, or none")
            if doubled := [key for key in keys if self.occurrences[key]]:
                raise ConfigError(where, f"{doubled[0]} is swept twice")
            if not given:
                self._refuse_doubles(keys, where)
                rows = list(zip(*columns.values(), strict=True))
                texts = tuple("+".join(map(text_of, row)) for row in rows)
                domain = Choice(Choice.of(rows, where).values, texts)
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
                self.parameters.append(replace(parameter, when=rest, condition=text if rest else ""))

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
                    raise ConfigError(where, f"{key}={text_of(value)} in {text!r} is none of {domains}")

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
        raise ConfigError(where, f"must be a text such as choice(8,16) or a list of values, but got {value!r}")
    if isinstance(value, str):
        read = assignment(f"{key}={value.strip()}", where)
        if read.is_sweep or may_be_fixed:
            return domain_of(read.value, where)
    elif isinstance(value, Sequence):
        return listed(value, where)
    elif may_be_fixed:
        return listed([value], where)
    raise ConfigError(where, f"must be a text such as choice(8,16) or a list of values, but got {value!r} alone")


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
            if all(any(other.may_be(key, allowed) for other in parameters) for key, allowed in each.when.items())
        ]
        if len(kept) == len(parameters):
            return kept
        parameters = kept


def _distinguished(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Of several parameters with the same key, let no two be in one cell: the one without a condition gives way."""
    found = []
    for parameter in parameters:
        others = [other for other in parameters if other is not parameter and set(other.keys) & set(parameter.keys)]
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
            raise ConfigError(_CONDITIONS, f"{', '.join(sorted(open_keys))} depend on each other in a circle")
        waiting.remove(ready)
        found.append(ready)
    return found
