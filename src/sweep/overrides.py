"""Hydra's override grammar for sweeps, and recorded overrides as typed table columns."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass
class BareInterval(IntervalSweep):
    """`interval(1,10)` with integer bounds and no cast, of which the grammar makes floats."""


def _interval(start: float, end: float) -> IntervalSweep:
    kind = BareInterval if isinstance(start, int) and isinstance(end, int) else IntervalSweep
    return kind(start=float(start), end=float(end))


# A cast, as in int(interval(1,10)), turns a BareInterval into a plain IntervalSweep.
_FUNCTIONS = create_functions()
_FUNCTIONS.functions["interval"] = _interval
_PARSER = OverridesParser(_FUNCTIONS)


@dataclass(frozen=True)
class Assignment:
    """One parsed override.

    Attributes:
        prefix: "", "+", "++" or "~".
        key: Without the prefix, with the package if there is one.
        value: A plain value, or Hydra's ChoiceSweep, RangeSweep or IntervalSweep.
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
    _refuse_misreadings(value, where, text.partition("=")[2])
    if isinstance(value, ChoiceSweep):
        value.list = [Override._convert_value(item) for item in value.list]
    if isinstance(value, Sweep):
        refuse_key(key, where)
        if prefix == "~":
            raise ConfigError(where, f"a deletion cannot be swept, but got {text}")
    return Assignment(prefix, key, value, text)


def clauses(text: str, where: str) -> dict[str, tuple[Any, ...]]:
    """Parse a condition, such as "model=custom and model.net.depth=3,4": key -> allowed values.

    Args:
        text: Clauses "key=value" or "key=value,other", joined by " and " or by spaces.
        where: The key that an error names.

    Raises:
        ConfigError: Another kind of text, or a key that is named twice.
    """
    allowed: dict[str, tuple[Any, ...]] = {}
    for part in _CLAUSE_BREAK.split(text.strip()):
        parsed = assignment(part, where) if "=" in part else None
        value: Any = parsed.value if parsed else None
        is_list = isinstance(value, ChoiceSweep) and not value.shuffle
        if parsed is None or parsed.prefix or (parsed.is_sweep and not is_list):
            example = '"model=custom and model.net.depth=3,4"'
            raise ConfigError(where, f"must be like {example}, but got {text!r}")
        key = parsed.key
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
        problem = "a sweep inside of a list, a mapping or another sweep has no effect"
        raise ConfigError(where, f"{problem}: list the whole values")
    if isinstance(value, str | QuotedString):
        text = value if isinstance(value, str) else value.text
        if _SWEEP_TEXT.fullmatch(text):
            problem = f"{text!r} is a quoted text here, not a sweep: leave out the quotes"
            raise ConfigError(where, problem)
    parts = list(value.values()) if isinstance(value, Mapping) else value
    if isinstance(parts, Sequence) and not isinstance(parts, str):
        for part in parts:
            refuse_nested(part, where)


def text_of(value: Any) -> str:
    """`value` in the grammar's notation: null, true, 0.5, plain, 'with, comma', [1,2], {a:1}.

    Raises:
        TypeError: The grammar has no notation for this value.
    """
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


def _refuse_misreadings(value: Any, where: str, text: str) -> None:
    problem = ""
    if isinstance(value, Glob):
        problem = f"{text} cannot be resolved in a sweep: list the options, {where}=one,other"
    elif isinstance(value, Sweep):
        problem = _sweep_problem(value, where, text)
    else:
        try:
            refuse_nested(value, where)
        except ConfigError:
            if isinstance(value, str):
                raise
            problem = f"the sweep inside {text} has no effect in Hydra: "
            problem += "list the whole values, choice([64,64],[128,64])"
    if problem:
        raise ConfigError(where, problem)


def _sweep_problem(value: Sweep, where: str, text: str) -> str:
    if isinstance(value, ChoiceSweep):
        if any(isinstance(item, IntervalSweep) for item in value.list):
            return f"{text} would be a choice of intervals: give one interval(lowest,highest)"
        for item in value.list:
            refuse_nested(item, where)
    if isinstance(value, BareInterval):
        low, high = int(value.start or 0), int(value.end or 0)
        ways = f"int(interval({low},{high})) or interval({low}.0,{high}.0)"
        return f"interval({low},{high}) is of floats: write {ways}"
    if unknown := value.tags - {"log"}:
        return f"the only tag is log, but got {', '.join(sorted(unknown))} in {text}"
    if value.tags and not isinstance(value, IntervalSweep):
        return f"only an interval can be tagged log, but got {text}"
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
_INTEGER = re.compile(r"[+-]?(0|[1-9](_?\d)*)")
_FLOAT = re.compile(r"[+-]?(\d(_?\d)*\.?(\d(_?\d)*)?|\.\d(_?\d)*)([eE][+-]?\d+)?")
_QUOTED_PLAIN = re.compile(r"""(['"])([^'"\\]+)\1""")
_LIST_PARTS = re.compile(rf"({_QUOTED})|\s*([,\[\]{{}}])\s*", re.DOTALL)
NUMBER, LIST, TEXT = range(3)  # kinds of values, in the order of an axis


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
    index = pd.Index(table["run_id"], name="run_id")
    cells = [scan(text) if isinstance(text, str) else {} for text in table["overrides"]]
    names = {name: None for cell in cells for name in cell}  # a dict keeps their order
    columns = {name: _typed([cell.get(name) for cell in cells], index) for name in names}
    return pd.DataFrame({name: c for name, c in columns.items() if c.nunique() > 1}, index=index)


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
    Equal values stay together, so there may be fewer groups. Otherwise each value is a group.

    Args:
        column: Of `parameters`.
        bins: Groups of a continuous parameter, at least 2.

    Returns:
        A row for each trial that has the parameter, indexed as the column: `value` (text; the range
        of a group, "0.1 to 0.3") and `position` (the number, the median of a group, or the position
        of a value that is no number in `in_order`).
    """
    present = column.dropna()
    if is_numeric(column) and present.nunique() > 2 * bins:
        return _binned(present.astype(float), bins)
    positions = {
        value: float(value if is_numeric(column) else number)
        for number, value in enumerate(in_order(present))
    }
    value = present.map(_text).astype(object)
    return pd.DataFrame({"value": value, "position": present.map(positions).astype(float)})


def _binned(numbers: pd.Series, bins: int) -> pd.DataFrame:
    # Equal values share the middle of their ranks.
    quantile = numbers.rank(method="average").sub(0.5) / len(numbers)
    group = (quantile * bins).astype(int)
    bounds = numbers.groupby(group).agg(["min", "max"])
    labels: dict[Any, str] = {}
    for digits in (3, 4, 6, 17):  # as few as distinguish the groups
        for number, row in bounds.iterrows():
            low, high = (
                _text(end) if end == round(end) else f"{end:.{digits}g}" for end in row.to_list()
            )
            labels[number] = low if low == high else f"{low} to {high}"
        if len(set(labels.values())) == len(labels):
            break
    position = numbers.groupby(group).transform("median")
    return pd.DataFrame({"value": group.map(labels).astype(object), "position": position})


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return str(int(value)) if value == round(value) and abs(value) < 1e15 else repr(float(value))


def _typed(texts: list[str | None], index: pd.Index) -> pd.Series:
    numbers = [None if text is None else _number(text) for text in texts]
    pairs = list(zip(numbers, texts, strict=True))
    if any(number is None and text is not None for number, text in pairs):
        tidy = [None if text is None else _tidy(text) for text in texts]
        return pd.Series(tidy, index=index, dtype=object)
    is_int = all(isinstance(number, int) and abs(number) < 2**63 for number in numbers)
    filled = [math.nan if number is None else number for number in numbers]
    return pd.Series(filled, index, int if is_int else float)


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
    if _INTEGER.fullmatch(text):
        return int(text)
    value = float(text) if _FLOAT.fullmatch(text) else math.inf
    return value if math.isfinite(value) else None


def _sort_key(value: Any) -> tuple[int, float, tuple[float, ...], str]:
    number = _number(value) if isinstance(value, str) else float(value)
    if number is not None:
        return NUMBER, number, (), ""
    if value.startswith("[") and value.endswith("]"):
        parts = [_number(part.strip()) for part in value[1:-1].split(",") if value[1:-1].strip()]
        numbers = tuple(part for part in parts if part is not None)
        if len(numbers) == len(parts):
            return LIST, len(numbers), numbers, ""
    return TEXT, 0.0, (), value
