"""A search space and its cells: the same ones whether a sampler suggests them or a grid lists them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

from src.errors import ConfigError
from src.sweep.domains import Choice, Domain
from src.sweep.grammar import assignment, identity, text_of

if TYPE_CHECKING:
    import optuna

Clauses = Mapping[str, frozenset[Any]]  # key -> what it may be, as `src.sweep.grammar.identity`; all must hold


@dataclass(frozen=True)
class Cell:
    """One configuration of a space. Two cells are the same if their overrides are.

    Attributes:
        overrides: What Hydra is given, "key=value", in the space's order; only the parameters that the cell has.
        params: The same for Optuna: name -> what its `suggest_*` gives; enqueued, they give this very cell.
    """

    overrides: tuple[str, ...]
    params: dict[str, Any] = field(compare=False)


@dataclass(frozen=True)
class Parameter:
    """What is swept under one name.

    Attributes:
        name: For Optuna: the key, "key@condition" or "key+key".
        overrides: What stands before the "=": the key, with "+" or "++" if need be; several of paired values.
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
        return holds(self.when, present) and not any(holds(clauses, present) for clauses in self.unless)

    def values(self, parameter: Any) -> tuple[Any, ...]:
        """The value of each key, for what Optuna suggested."""
        value = self.domain.value(parameter)
        return tuple(value) if len(self.overrides) > 1 else (value,)

    def may_be(self, key: str, allowed: Iterable[Any]) -> bool:
        """Whether `key` is one of its own and can have one of these values (identities)."""
        if key not in self.keys:
            return False
        if isinstance(self.domain, Choice):
            place = self.keys.index(key)
            own = {identity(self.values(parameter)[place]) for parameter in self.domain.parameters()}
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
        for override, key, value in zip(parameter.overrides, parameter.keys, parameter.values(chosen), strict=True):
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

    def __init__(self, parameters: Sequence[Parameter], exclusions: Sequence[Exclusion] = ()) -> None:
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
        return (draft.cell() for draft in self._drafts(0, _Draft()) if not self._exclusion(draft.present))

    @cached_property
    def n_cells(self) -> int | None:
        """How many cells there are without the excluded ones; None if a parameter is continuous."""
        if any(parameter.domain.count is None for parameter in self.parameters):
            return None
        named = {key for exclusion in self.exclusions for key in exclusion.clauses}
        return self._count(0, {}, named.union(*(parameter.depends_on for parameter in self.parameters)))

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
        lines = [f"{name}: was {before[name]}, is no longer swept" for name in before if name not in after]
        lines += [f"{name}: was not swept, is {after[name]}" for name in after if name not in before]
        shared = [name for name in before if name in after]
        lines += [f"{name}: was {before[name]}, is {after[name]}" for name in shared if before[name] != after[name]]
        lines += [f"no longer excluded: {text}" for text in old["exclude"] if text not in new["exclude"]]
        lines += [f"newly excluded: {text}" for text in new["exclude"] if text not in old["exclude"]]
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
