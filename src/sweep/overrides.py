"""Hydra override grammar for sweeps; overrides as typed -> columns."""

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

# Left to the config itself, for they are about the study as a whole.
_OF_THE_STUDY = ("hydra", "sweeps", "tracking", "objective", "study", "test", "repeats", "dry_run")
_PLAIN_TEXT = re.compile(
    r"[A-Za-z_][A-Za-z0-9_./-]*"
)  # what the grammar takes for a string without quotes ...
_NOT_PLAIN = ("null", "true", "false", "nan", "inf")  # ... but for these, in any case
_SWEEP_TEXT = re.compile(
    r"\s*((int|float|str|bool)\()?(choice|range|interval|glob|tag|sort|shuffle)\(.*\)\s*"
)
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
        ConfigError: It is not in the grammar, or the grammar reads something else into it than the
            writer meant.
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
        is_list = (
            read is not None and isinstance(read.value, ChoiceSweep) and not read.value.shuffle
        )
        if read is None or read.prefix or (read.is_sweep and not is_list):
            raise ConfigError(
                where, f'must be like "model=custom and model.net.depth=3,4", but got {text!r}'
            )
        if read.key in found:
            raise ConfigError(
                where, f"names {read.key} twice in {text!r}: write {read.key}=one,other"
            )
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
        raise ConfigError(
            where,
            "a sweep inside of a list, a mapping or another sweep is none: list the whole values",
        )
    if isinstance(value, str | QuotedString):
        text = value if isinstance(value, str) else value.text
        if _SWEEP_TEXT.fullmatch(text):
            raise ConfigError(
                where, f"{text!r} is a quoted text here, not a sweep: leave out the quotes"
            )
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
        return (
            "{" + ",".join(f"{_dict_key(key)}:{text_of(item)}" for key, item in value.items()) + "}"
        )
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
        raise ConfigError(
            where, f"{text} cannot be resolved in a sweep: list the options, {where}=one,other"
        )
    if not isinstance(value, Sweep):
        if value is not None:
            _refuse_in_element(value, where, text)
        return
    if isinstance(value, ChoiceSweep):
        if any(isinstance(item, IntervalSweep) for item in value.list):
            raise ConfigError(
                where, f"{text} would be a choice of intervals: give one interval(lowest,highest)"
            )
        for item in value.list:
            refuse_nested(item, where)
    if isinstance(value, BareInterval):
        low, high = int(value.start or 0), int(value.end or 0)
        problem = f"interval({low},{high}) is of floats: write int(interval({low},{high})) or interval({low}.0,{high}.0)"
        raise ConfigError(where, problem)
    if value.tags - {"log"}:
        raise ConfigError(
            where,
            f"the only tag is log, but got {', '.join(sorted(value.tags - {'log'}))} in {text}",
        )
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


REMOVED = "removed"  # what `~key` made of a parameter
BINS = 5
LOG_SPAN = 10.0  # positive values that span this factor belong on a logarithmic axis
_QUOTED = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
_STRUCTURE = re.compile(rf"\\.|{_QUOTED}|[\[({{]|[\])}}]|\s+", re.DOTALL)
_KEY = re.compile(r"\+{0,2}([A-Za-z_$][^\s=\[\]{}()'\",]*)=")
_INTEGER = re.compile(r"[+-]?(0|[1-9](_?\d)*)")
_FLOAT = re.compile(r"[+-]?(\d(_?\d)*\.?(\d(_?\d)*)?|\.\d(_?\d)*)([eE][+-]?\d+)?")
_PLAIN = re.compile(r"""(['"])([^'"\\]+)\1""")
_LIST_PARTS = re.compile(rf"({_QUOTED})|\s*([,\[\]{{}}])\s*", re.DOTALL)
NUMBER, LIST, TEXT = range(3)  # kinds of values, in the order of an axis
_Key = tuple[int, float, tuple[float, ...], str]


def scan(overrides: str) -> dict[str, str]:
    """Take the tag `overrides` of a trial apart.

    Blanks within brackets or quotes do not part overrides, nor does one that no key follows, as in
    `note=two words`.

    Args:
        overrides: As typed, parted by blanks, such as "model.net.dense=[128, 64] +loss='a b'
            ~callbacks.x".

    Returns:
        Values as typed, by key without "+"; of a deletion "removed". Of a key that stands there
        twice the last counts.
    """
    found: dict[str, str] = {}
    key = ""
    for piece in _pieces(overrides):
        head = _KEY.match(piece)
        if piece.startswith("~"):
            key = ""
            found[piece[1:].partition("=")[0]] = REMOVED
        elif head:
            key = head[1]
            found[key] = piece[head.end() :]
        elif key:
            found[key] += f" {piece}"
    return found


def parameters(table: pd.DataFrame) -> pd.DataFrame:
    """The parameters that differ between trials.

    Args:
        table: From `src.reporting.comparison.compare`: `run_id`, `overrides`.

    Returns:
        A row a row of the table, indexed by run_id; a column a parameter that takes at least two
        values, in the order of their first appearance: integers or floats where all values are
        numbers (floats, if some are missing), else text, lists written as "[128, 64]"; missing
        (NaN, None) where a trial does not have the parameter.
    """
    columns = {name: column for name, column in _columns(table).items() if column.nunique() > 1}
    return pd.DataFrame(columns, index=_index(table))


def is_numeric(column: pd.Series) -> bool:
    """Whether a column of `parameters` holds numbers."""
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def is_log(column: pd.Series) -> bool:
    """Whether a column belongs on a logarithmic axis: positive numbers that span at least a factor of ten."""
    known = column.dropna()
    return (
        is_numeric(column)
        and len(known) > 0
        and known.min() > 0
        and known.max() >= LOG_SPAN * known.min()
    )


def in_order(values: Iterable[Any]) -> list[Any]:
    """Different values as an axis shows them, none missing.

    Numbers by size; then lists of numbers, the shorter first, those of one length by their numbers
    from the first on: [], [32], [128], [64, 32], [128, 64]; then texts by the alphabet.
    """
    return sorted({value for value in values if not pd.isna(value)}, key=_sort_key)


def has_order(values: Iterable[Any]) -> bool:
    """Whether the values can be told smaller from larger: all are numbers, or all are lists of numbers."""
    return {kind for kind, *_ in map(_sort_key, values)} in ({NUMBER}, {LIST})


def levels(column: pd.Series, bins: int = BINS) -> pd.DataFrame:
    """The values of a parameter as few enough groups to compare.

    Numbers with more than 2 x `bins` different values are put into `bins` groups of about equally
    many trials; equal values are never parted, so there may be fewer groups. All else keeps a group
    a value.

    Args:
        column: Of `parameters`.
        bins: Groups of a continuous parameter, at least 2.

    Returns:
        A row a trial that has the parameter, indexed as the column: `value` (text; of a group its
        range, "0.1 to 0.3") and `position` (the number, of a group its median; of what is no number
        the place in `in_order`).
    """
    known = column.dropna()
    if is_numeric(column) and known.nunique() > 2 * bins:
        return _binned(known.astype(float), bins)
    values = in_order(known)
    places = {
        value: float(value if is_numeric(column) else place) for place, value in enumerate(values)
    }
    return pd.DataFrame(
        {"value": known.map(_text).astype(object), "position": known.map(places).astype(float)}
    )


def _binned(known: pd.Series, bins: int) -> pd.DataFrame:
    share = known.rank(method="average").sub(0.5) / len(
        known
    )  # equal values share the middle of their ranks
    group = (share * bins).astype(int)
    bounds = known.groupby(group).agg(["min", "max"])
    names: dict[Any, str] = {}
    for digits in (3, 4, 6, 17):  # as few as tell the groups apart
        names = {each: _range(row["min"], row["max"], digits) for each, row in bounds.iterrows()}
        if len(set(names.values())) == len(names):
            break
    return pd.DataFrame(
        {
            "value": group.map(names).astype(object),
            "position": known.groupby(group).transform("median"),
        }
    )


def _range(low: float, high: float, digits: int) -> str:
    first, last = (_text(end) if end == round(end) else f"{end:.{digits}g}" for end in (low, high))
    return first if first == last else f"{first} to {last}"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return str(int(value)) if value == round(value) and abs(value) < 1e15 else repr(float(value))


def _columns(table: pd.DataFrame) -> dict[str, pd.Series]:
    cells = [scan(text) if isinstance(text, str) else {} for text in table["overrides"]]
    names = {name: None for cell in cells for name in cell}  # a dict keeps their order
    return {name: _typed([cell.get(name) for cell in cells], _index(table)) for name in names}


def _typed(texts: list[str | None], index: pd.Index) -> pd.Series:
    numbers = [None if text is None else _number(text) for text in texts]
    if any(
        number is None and text is not None for number, text in zip(numbers, texts, strict=True)
    ):
        return pd.Series(
            [None if text is None else _tidy(text) for text in texts], index=index, dtype=object
        )
    whole = all(isinstance(number, int) and abs(number) < 2**63 for number in numbers)
    return pd.Series(
        [math.nan if number is None else number for number in numbers],
        index,
        int if whole else float,
    )


def _index(table: pd.DataFrame) -> pd.Index:
    return pd.Index(table["run_id"], name="run_id")


def _pieces(text: str) -> Iterator[str]:
    """What blanks outside of brackets and quotes part."""
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
    """One spelling of a value: blanks in lists as in "[128, 64]"; quotes only to tell a text from a number."""
    if text[:1] in ("[", "{"):
        return _LIST_PARTS.sub(lambda part: part[1] or {",": ", "}.get(part[2], part[2]), text)
    plain = _PLAIN.fullmatch(text)
    return plain[2] if plain and _number(plain[2]) is None else text


def _number(text: str) -> int | float | None:
    if _INTEGER.fullmatch(text):
        return int(text)
    if not _FLOAT.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _sort_key(value: Any) -> _Key:
    number = _number(value) if isinstance(value, str) else float(value)
    if number is not None:
        return NUMBER, number, (), ""
    parts = _numbers(value)
    return (TEXT, 0.0, (), value) if parts is None else (LIST, len(parts), parts, "")


def _numbers(text: str) -> tuple[float, ...] | None:
    """The numbers of a list of numbers; None if it is no such list."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    inside = text[1:-1].strip()
    found = [_number(part.strip()) for part in inside.split(",")] if inside else []
    return (
        None
        if any(part is None for part in found)
        else tuple(part for part in found if part is not None)
    )
