"""Hydra's override grammar for sweeps, and recorded overrides as typed table columns."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
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

from src.core.errors import ConfigError

# Keys of the study as a whole: they cannot differ between trials.
STUDY_KEYS = ("hydra", "sweeps", "tracking", "objective", "study", "test", "repeats", "dry_run")
# Text that the grammar reads as a string without quotes, but for these words.
_UNQUOTED = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_RESERVED = ("null", "true", "false", "nan", "inf")
_SWEEP_TEXT = re.compile(
    r"\s*((int|float|str|bool)\()?(choice|range|interval|glob|tag|sort|shuffle)\(.*\)\s*"
)
# Between two clauses of a condition: a blank or " and " before a key, outside of quotes.
_CLAUSE_BREAK = re.compile(
    r"""\s+(?:and\s+)?(?=[\w./@]+=)(?=(?:[^']*'[^']*')*[^']*$)(?=(?:[^"]*"[^"]*")*[^"]*$)"""
)


class BareInterval(IntervalSweep):
    """`interval(1,10)` with integer bounds and no cast, of which the grammar makes floats."""


def _interval(start: float, end: float) -> IntervalSweep:
    is_bare = isinstance(start, int) and isinstance(end, int)
    return (BareInterval if is_bare else IntervalSweep)(start=float(start), end=float(end))


# A cast, as in int(interval(1,10)), turns a BareInterval into a plain IntervalSweep.
_FUNCTIONS = create_functions()
_FUNCTIONS.functions["interval"] = _interval
_PARSER = OverridesParser(_FUNCTIONS)


class Assignment(NamedTuple):
    """One parsed override."""

    prefix: str  # "", "+", "++" or "~"
    key: str  # without the prefix, with the package if there is one
    value: Any  # a plain value, or Hydra's ChoiceSweep, RangeSweep or IntervalSweep

    @property
    def is_sweep(self) -> bool:
        """Whether it stands for several values."""
        return isinstance(self.value, Sweep)


def assignment(text: str, where: str = "") -> Assignment:
    """Parse one override.

    Args:
        text: Such as "model.net.width=choice(8,16)", "+x=1,2" or "~callbacks.x".
        where: The key that an error names; the override's key if empty.

    Raises:
        ConfigError: A syntax error, or a text that Hydra reads as something else than it says.
    """
    where = where or text.partition("=")[0].lstrip("+~")
    try:
        override = _PARSER.parse_override(text)
    except HydraException as error:
        raise ConfigError(where, _syntax_problem(text, error)) from None
    key = override.get_key_element().lstrip("+~")
    prefix = override.get_key_element().removesuffix(key)
    value = override.value()
    if not isinstance(value, Sweep | Glob):
        refuse_nested(value, where)
        return Assignment(prefix, key, value)
    if problem := _misreading(value, where, text.partition("=")[2]):
        raise ConfigError(where, problem)
    if isinstance(value, ChoiceSweep):
        refuse_nested(value.list, where)
        value.list = [Override._convert_value(item) for item in value.list]
    refuse_key(key, where)
    if prefix == "~":
        raise ConfigError(where, f"a deletion cannot be swept, but got {text}")
    return Assignment(prefix, key, value)


def clauses(text: str, where: str) -> dict[str, tuple[Any, ...]]:
    """Parse a condition, such as "model=custom and model.net.depth=3,4": key -> allowed values.

    Spaces alone join clauses too. ConfigError, under the key `where`, for another kind of text, or
    for a key that is named twice.
    """
    allowed: dict[str, tuple[Any, ...]] = {}
    for part in _CLAUSE_BREAK.split(text.strip()):
        parsed = assignment(part, where) if "=" in part else Assignment("~", part, None)
        prefix, key, value = parsed
        is_list = isinstance(value, ChoiceSweep) and not value.shuffle
        if prefix or (isinstance(value, Sweep) and not is_list):
            example = '"model=custom and model.net.depth=3,4"'
            raise ConfigError(where, f"must be like {example}, but got {text!r}")
        if key in allowed:
            raise ConfigError(where, f"names {key} twice in {text!r}: write {key}=one,other")
        allowed[key] = tuple(value.list) if is_list else (value,)
    return allowed


def refuse_key(key: str, where: str) -> None:
    """Raise ConfigError if `key` cannot differ between trials."""
    root = re.split(r"[./@]", key)[0]
    if root in STUDY_KEYS:
        raise ConfigError(where, f"cannot be swept: {root} belongs to the study as a whole")


def refuse_nested(value: Any, where: str) -> None:
    """Raise ConfigError if a plain value contains a sweep, or a quoted text that looks like one."""
    if isinstance(value, Sweep | Glob):
        problem = "a sweep inside of a list, a mapping or another sweep has no effect in Hydra"
        way = "list the whole values, as in choice([64,64],[128,64])"
        raise ConfigError(where, f"{problem}: {way}")
    text = value.text if isinstance(value, QuotedString) else value
    if isinstance(text, str) and _SWEEP_TEXT.fullmatch(text):
        raise ConfigError(where, f"{text!r} is a quoted text here, not a sweep: omit the quotes")
    parts = value.values() if isinstance(value, Mapping) else value
    if isinstance(parts, Iterable) and not isinstance(parts, str):
        for part in parts:
            refuse_nested(part, where)


def literal(values: Sequence[Any], where: str) -> list[Any]:
    """The values of a YAML list, where no text is a sweep; refuses what no override can express."""
    for value in values:
        refuse_nested(value, where)
        try:
            parsed = assignment(f"key={text_of(value)}", where).value
        except TypeError as error:
            raise ConfigError(where, f"cannot sweep {value!r}: {error}") from None
        if identity(parsed) != identity(value):
            problem = f"cannot sweep {value!r}: an override would read it as {parsed!r}"
            raise ConfigError(where, problem)
    return list(values)


def text_of(value: Any) -> str:
    """`value` as an override: null, true, 0.5, plain, 'with, comma', [1,2], {a:1}; or TypeError."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        plain = _UNQUOTED.fullmatch(value) and value.lower() not in _RESERVED
        return value if plain else QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, Mapping):
        for key in value:
            if isinstance(key, str) and not _UNQUOTED.fullmatch(key):
                raise TypeError(f"the key {key!r} cannot be written in an override")
        items = (f"{text_of(key)}:{text_of(item)}" for key, item in value.items())
        return "{" + ",".join(items) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(text_of, value)) + "]"
    raise TypeError(f"{type(value).__name__} is no value of a config")


def identity(value: Any) -> Any:
    """Equal for values that a config treats alike: 4 and 4.0, but not 4 and '4', 1 and true."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ("[", *map(identity, value))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and value == value else text_of(value)


def _misreading(value: Any, where: str, text: str) -> str:
    """What is wrong with a value that Hydra reads as something else than `text` says; or ""."""
    if isinstance(value, Glob):
        return f"{text} cannot be resolved in a sweep: list the options, {where}=one,other"
    items = value.list if isinstance(value, ChoiceSweep) else []
    is_interval = isinstance(value, IntervalSweep)
    if any(isinstance(item, IntervalSweep) for item in items):
        return f"{text} would be a choice of intervals: give one interval(lowest,highest)"
    numbers = re.findall(r"\d*\.?\d+(?:[eE][-+]?\d+)?", text)
    cut_off = "int(" in text and any(float(number) % 1 for number in numbers)  # by Hydra, silently
    if is_interval and cut_off:
        return f"the bounds of integers must be integers, but got {text}"
    kind, limit = ("64-bit", 2.0**63) if "int(" in text else ("finite", math.inf)
    if is_interval and not -limit < value.start < value.end < limit:
        return f"must have {kind} bounds, the lower one first, but got {text}"
    if isinstance(value, BareInterval):
        bounds = f"{value.start:.0f},{value.end:.0f}"
        ways = f"int(interval({bounds})) or interval({bounds.replace(',', '.0,')}.0)"
        return f"interval({bounds}) is of floats: write {ways}"
    if unknown := value.tags - {"log"}:
        return f"the only tag is log, but got {', '.join(sorted(unknown))} in {text}"
    if value.tags and not is_interval:
        return f"only an interval can be tagged log, but got {text}"
    if value.tags and value.start <= 0:
        return f"must have bounds above 0 on a log scale, but got {text}"
    return ""


def _syntax_problem(text: str, error: HydraException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or ["syntax error"]
    value = text.partition("=")[2]
    if "NoneType" in lines[0] and "choice" in value:
        ways = "write the values with commas alone, null,1, or as a list"
        return f"choice() does not take null, as in {value}: {ways}"
    reason = lines[0].split(": ", 1)[-1] if "while evaluating" in lines[0] else lines[0]
    hint = f" ({lines[1].strip()})" if "Unknown function" in reason and len(lines) > 1 else ""
    return f"cannot read {text!r}: {reason}{hint}"


# Recorded overrides as columns

REMOVED = "removed"  # value of a deleted key (`~key`)
BINS = 5
LOG_SPAN = 10.0  # positive values that span this factor are shown on a logarithmic axis
_QUOTED = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
_STRUCTURE = re.compile(rf"\\.|{_QUOTED}|[\[({{]|[\])}}]|\s+", re.DOTALL)
_KEY = re.compile(r"\+{0,2}([A-Za-z_$][^\s=\[\]{}()'\",]*)=")
_QUOTED_PLAIN = re.compile(r"""(['"])([^'"\\]+)\1""")
NUMBER, LIST, TEXT = range(3)  # kinds of values, in the order of an axis
_LIST_PARTS = re.compile(rf"({_QUOTED})|\s*([,\[\]{{}}])\s*", re.DOTALL)


def scan(overrides: str) -> dict[str, str]:
    """Split the tag `overrides` of a trial into key -> value as typed, without "+".

    Blanks inside brackets or quotes do not separate overrides, nor does a blank that no key
    follows, as in `note=two words`. A deleted key has the value "removed". The last value of a
    repeated key counts.

    Args:
        overrides: Such as "model.net.dense=[128, 64] +loss='a b' ~callbacks.x".
    """
    values: dict[str, str] = {}
    key = ""
    for piece in _pieces(overrides):
        head = _KEY.match(piece)
        if piece.startswith("~"):
            key = ""
            values[piece[1:].partition("=")[0]] = REMOVED
        elif head:
            key = head[1]
            values[key] = piece[head.end() :]
        elif key:
            values[key] += f" {piece}"
    return values


def parameters(table: pd.DataFrame) -> pd.DataFrame:
    """The parameters that differ between trials.

    Args:
        table: From `src.reporting.comparison.compare`: `run_id`, `overrides`.

    Returns:
        A row for each row of the table, indexed by run_id; a column for each parameter with at
        least two values, in order of first appearance. Columns hold integers or floats where all
        values are numbers (floats, if some are missing), else text, lists written as "[128, 64]".
        NaN or None where a trial does not have the parameter.
    """
    cells = [scan(text) if isinstance(text, str) else {} for text in table["overrides"]]
    index = pd.Index(table["run_id"], name="run_id")
    columns = {}
    for name in {name: None for cell in cells for name in cell}:  # a dict keeps their order
        texts = [cell.get(name) for cell in cells]
        numbers = [None if text is None else _number(text) for text in texts]
        if numbers.count(None) > texts.count(None):
            column = pd.Series([text and _tidy(text) for text in texts], index, dtype=object)
        else:
            is_int = all(isinstance(number, int) and abs(number) < 2**63 for number in numbers)
            column = pd.Series(numbers, index, dtype=int if is_int else float)
        if column.nunique() > 1:
            columns[name] = column
    return pd.DataFrame(columns, index)


def is_numeric(column: pd.Series) -> bool:
    """Whether a column of `parameters` holds numbers."""
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def is_log(column: pd.Series) -> bool:
    """Whether a column gets a logarithmic axis: positive, spanning a factor of ten or more."""
    low, high = (column.min(), column.max()) if is_numeric(column) else (0, 0)
    return bool(low > 0 and high >= LOG_SPAN * low)


def in_order(values: Iterable[Any]) -> list[Any]:
    """The distinct values in the order of an axis, missing ones left out.

    Numbers by size; then lists of numbers, the shorter first, those of one length by their numbers
    from the first on: [], [32], [128], [64, 32], [128, 64]; then texts by the alphabet.
    """
    return sorted({value for value in values if not pd.isna(value)}, key=_sort_key)


def has_order(values: Iterable[Any]) -> bool:
    """Whether the values are ordered: all are numbers, or all are lists of numbers."""
    return {kind for kind, *_ in map(_sort_key, values)} in ({NUMBER}, {LIST})


def levels(column: pd.Series, bins: int = BINS) -> pd.DataFrame:
    """The values of a parameter in few enough groups to compare.

    Numbers with more than 2 x `bins` distinct values are divided into `bins` quantile groups.
    Equal values stay together, so there may be fewer groups. Otherwise each value is a group. Long
    numbers are written with as few digits as distinguish them.

    Args:
        column: Of `parameters`.
        bins: Groups of a continuous parameter, at least 2.

    Returns:
        A row for each trial that has the parameter, indexed as the column: `value` (text; the range
        of a group, "0.1 to 0.3") and `position` (the number, the median of a group, or the position
        of a value that is no number in `in_order`).
    """
    present = column.dropna()
    if not is_numeric(column):
        positions = {value: float(number) for number, value in enumerate(in_order(present))}
        return pd.DataFrame({"value": present.astype(object), "position": present.map(positions)})
    present = present.astype(float)
    if present.nunique() <= 2 * bins:
        # A short number stays as it was typed.
        group, short = present.rank(method="dense").astype(int), 8
    else:
        # Equal values share the middle of their ranks.
        quantile = present.rank(method="average").sub(0.5) / len(present)
        group, short = (quantile * bins).astype(int), 0
    bounds = present.groupby(group).agg(["min", "max"])
    for digits in (3, 4, 6, 17):  # as few as distinguish the groups
        ends = bounds.astype(object).map(lambda end, n=digits: _text(end, n, short))
        labels = (ends["min"] + " to " + ends["max"]).where(ends["min"] != ends["max"], ends["min"])
        if labels.is_unique:
            break
    position = present.groupby(group).transform("median")
    return pd.DataFrame({"value": group.map(labels).astype(object), "position": position})


def _text(number: float, digits: int, short: int) -> str:
    text = str(int(number)) if number % 1 == 0 and abs(number) < 1e15 else repr(number)
    return text if number % 1 == 0 or len(text) <= short else f"{number:.{digits}g}"


def _pieces(text: str) -> Iterator[str]:
    """The parts between blanks that are outside of brackets and quotes."""
    depth = start = 0
    for match in _STRUCTURE.finditer(text):
        token = match[0]
        if token in ("[", "(", "{"):
            depth += 1
        elif token in ("]", ")", "}"):
            depth = max(depth - 1, 0)
        elif token.isspace() and depth == 0:
            if match.start() > start:
                yield text[start : match.start()]
            start = match.end()
    if start < len(text):
        yield text[start:].rstrip()


def _tidy(text: str) -> str:
    """One spelling for a value: lists as "[128, 64]", quotes only around what reads as a number."""
    if text[:1] in ("[", "{"):
        return _LIST_PARTS.sub(lambda part: part[1] or {",": ", "}.get(part[2], part[2]), text)
    plain = _QUOTED_PLAIN.fullmatch(text)
    return plain[2] if plain and _number(plain[2]) is None else text


def _number(text: str) -> int | float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    return int(text) if re.fullmatch(r"[+-]?[\d_]+", text) else value


def _sort_key(value: Any) -> tuple[int, float, tuple[float, ...], str]:
    number = _number(value) if isinstance(value, str) else float(value)
    if number is not None:
        return NUMBER, number, (), ""
    if value.startswith("[") and value.endswith("]"):
        parts = value[1:-1].split(",") if value[1:-1].strip() else []
        numbers = tuple(n for part in parts if (n := _number(part)) is not None)
        if len(numbers) == len(parts):
            return LIST, len(numbers), numbers, ""
    return TEXT, 0.0, (), value
