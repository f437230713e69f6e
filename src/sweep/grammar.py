"""Hydra's override grammar, read for a sweep: what it would silently misread is refused. Texts are parsed, not run."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    Sweep,
)
from hydra.errors import HydraException

from src.errors import ConfigError

# Left to the config itself, for they are about the study as a whole.
_OF_THE_STUDY = ("hydra", "sweeps", "tracking", "objective", "study", "test", "repeats", "dry_run")
_PLAIN_TEXT = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")  # what the grammar takes for a string without quotes ...
_NOT_PLAIN = ("null", "true", "false", "nan", "inf")  # ... but for these, in any case
_SWEEP_TEXT = re.compile(r"\s*((int|float|str|bool)\()?(choice|range|interval|glob|tag|sort|shuffle)\(.*\)\s*")

_BETWEEN_CLAUSES = re.compile(  # a blank or " and " before a key, with no quote open
    r"""\s+(?:and\s+)?(?=[\w./@]+=)(?=(?:[^']*'[^']*')*[^']*$)(?=(?:[^"]*"[^"]*")*[^"]*$)"""
)


@dataclass
class BareInterval(IntervalSweep):
    """`interval(1,10)`: bounds written as integers and not cast; the grammar makes floats of them."""


@dataclass(frozen=True)
class Assignment:
    """One override, parsed.

    Attributes:
        prefix: "", "+", "++" or "~".
        key: Without the prefix, with the package if it has one.
        value: A plain value, or a ChoiceSweep, RangeSweep or IntervalSweep of Hydra.
        text: As typed.
    """

    prefix: str
    key: str
    value: Any
    text: str

    @property
    def is_sweep(self) -> bool:
        """Whether it stands for several values."""
        return isinstance(self.value, Sweep)


def assignment(text: str, where: str = "") -> Assignment:
    """Read one override.

    Args:
        text: Such as "model.net.width=choice(8,16)", "+x=1,2" or "~callbacks.x".
        where: The key that an error names; the override's own if empty.

    Raises:
        ConfigError: It is not in the grammar, or the grammar reads something else into it than the writer meant.
    """
    where = where or text.partition("=")[0].lstrip("+~")
    try:
        override = _PARSER.parse_override(text)
    except HydraException as error:
        raise ConfigError(where, _syntax(text, error)) from None
    key = override.get_key_element().lstrip("+~")
    prefix = override.get_key_element().removesuffix(key)
    value = override.value()
    _refuse_misreadings(value, where, text.partition("=")[2])
    if isinstance(value, ChoiceSweep):
        value.list = [Override._convert_value(item) for item in value.list]
    if isinstance(value, Sweep):
        refuse_key(key, where)
        if prefix == "~":
            raise ConfigError(where, f"a deletion cannot be swept, but got {text}")
    return Assignment(prefix, key, value, text)


def clauses(text: str, where: str) -> dict[str, tuple[Any, ...]]:
    """Read a condition, such as "model=custom and model.net.depth=3,4", into what each key may be.

    Args:
        text: "key=value" or "key=value,other", several of them joined by " and " or by spaces.
        where: The key that an error names.

    Raises:
        ConfigError: It is no such text, or names a key twice.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for part in _BETWEEN_CLAUSES.split(text.strip()):
        read = assignment(part, where) if "=" in part else None
        is_list = read is not None and isinstance(read.value, ChoiceSweep) and not read.value.shuffle
        if read is None or read.prefix or (read.is_sweep and not is_list):
            raise ConfigError(where, f'must be like "model=custom and model.net.depth=3,4", but got {text!r}')
        if read.key in found:
            raise ConfigError(where, f"names {read.key} twice in {text!r}: write {read.key}=one,other")
        found[read.key] = tuple(read.value.list) if is_list else (read.value,)
    return found


def refuse_key(key: str, where: str) -> None:
    """Raise ConfigError if `key` cannot differ from trial to trial."""
    root = re.split(r"[./@]", key)[0]
    if root in _OF_THE_STUDY:
        raise ConfigError(where, f"cannot be swept: {root} belongs to the study as a whole")


def refuse_nested(value: Any, where: str) -> None:
    """Raise ConfigError if there is a sweep, or a text that was meant for one, within a plain value."""
    if isinstance(value, Sweep | Glob):
        raise ConfigError(where, "a sweep inside of a list, a mapping or another sweep is none: list the whole values")
    if isinstance(value, str | QuotedString):
        text = value if isinstance(value, str) else value.text
        if _SWEEP_TEXT.fullmatch(text):
            raise ConfigError(where, f"{text!r} is a quoted text here, not a sweep: leave out the quotes")
    parts = list(value.values()) if isinstance(value, Mapping) else value
    if isinstance(parts, Sequence) and not isinstance(parts, str):
        for part in parts:
            refuse_nested(part, where)


def text_of(value: Any) -> str:
    """`value` as the grammar reads it back: null, true, 0.5, plain, 'with, comma', [1,2], {a:1}.

    Raises:
        TypeError: No text of the grammar gives this value.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        plain = _PLAIN_TEXT.fullmatch(value) and value.lower() not in _NOT_PLAIN
        return value if plain else QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_dict_key(key)}:{text_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(text_of, value)) + "]"
    raise TypeError(f"{type(value).__name__} is no value of a config")


def identity(value: Any) -> Any:
    """What two values have in common if they are the same to a config: 4 and 4.0 are, 4 and '4', 1 and true are not."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ("[", *map(identity, value))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and value == value else text_of(value)


def _interval(start: float, end: float) -> IntervalSweep:
    kind = BareInterval if isinstance(start, int) and isinstance(end, int) else IntervalSweep
    return kind(start=float(start), end=float(end))


def _parser() -> OverridesParser:
    functions = create_functions()
    functions.functions["interval"] = _interval  # a cast makes a plain IntervalSweep of a bare one
    return OverridesParser(functions)


_PARSER = _parser()


def _dict_key(key: Any) -> str:
    if isinstance(key, str) and not _PLAIN_TEXT.fullmatch(key):
        raise TypeError(f"the key {key!r} cannot be written in an override")
    return text_of(key)


def _refuse_misreadings(value: Any, where: str, text: str) -> None:
    if isinstance(value, Glob):
        raise ConfigError(where, f"{text} cannot be resolved in a sweep: list the options, {where}=one,other")
    if not isinstance(value, Sweep):
        if value is not None:
            _refuse_in_element(value, where, text)
        return
    if isinstance(value, ChoiceSweep):
        if any(isinstance(item, IntervalSweep) for item in value.list):
            raise ConfigError(where, f"{text} would be a choice of intervals: give one interval(lowest,highest)")
        for item in value.list:
            refuse_nested(item, where)
    if isinstance(value, BareInterval):
        low, high = int(value.start or 0), int(value.end or 0)
        problem = (
            f"interval({low},{high}) is of floats: write int(interval({low},{high})) or interval({low}.0,{high}.0)"
        )
        raise ConfigError(where, problem)
    if value.tags - {"log"}:
        raise ConfigError(where, f"the only tag is log, but got {', '.join(sorted(value.tags - {'log'}))} in {text}")
    if value.tags and not isinstance(value, IntervalSweep):
        raise ConfigError(where, f"only an interval can be tagged log, but got {text}")


def _refuse_in_element(value: Any, where: str, text: str) -> None:
    """Of a value that is no sweep: a sweep inside of it is silently none."""
    try:
        refuse_nested(value, where)
    except ConfigError as error:
        if isinstance(value, str):
            raise
        problem = f"the sweep inside {text} is none to Hydra: list the whole values, choice([64,64],[128,64])"
        raise ConfigError(error.key, problem) from None


def _syntax(text: str, error: HydraException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or ["syntax error"]
    value = text.partition("=")[2]
    if "NoneType" in lines[0] and "choice" in value:
        return f"choice() does not take null, as in {value}: write the values with commas alone, null,1, or as a list"
    reason = lines[0].split(": ", 1)[-1] if "while evaluating" in lines[0] else lines[0]
    known = f" ({lines[1].strip()})" if "Unknown function" in reason and len(lines) > 1 else ""
    return f"cannot read {text!r}: {reason}{known}"
