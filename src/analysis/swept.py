"""What a study swept: the parameters of its trials, read from the overrides as typed, as columns."""

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

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

    Blanks within brackets or quotes do not part overrides, nor does one that no key follows, as in `note=two words`.

    Args:
        overrides: As typed, parted by blanks, such as "model.net.dense=[128, 64] +loss='a b' ~callbacks.x".

    Returns:
        Values as typed, by key without "+"; of a deletion "removed". Of a key that stands there twice the last counts.
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
        table: From `src.analysis.comparison.compare`: `run_id`, `overrides`.

    Returns:
        A row a row of the table, indexed by run_id; a column a parameter that takes at least two values, in the order
        of their first appearance: integers or floats where all values are numbers (floats, if some are missing), else
        text, lists written as "[128, 64]"; missing (NaN, None) where a trial does not have the parameter.
    """
    columns = {name: column for name, column in _columns(table).items() if column.nunique() > 1}
    return pd.DataFrame(columns, index=_index(table))


def is_numeric(column: pd.Series) -> bool:
    """Whether a column of `parameters` holds numbers."""
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def is_log(column: pd.Series) -> bool:
    """Whether a column belongs on a logarithmic axis: positive numbers that span at least a factor of ten."""
    known = column.dropna()
    return is_numeric(column) and len(known) > 0 and known.min() > 0 and known.max() >= LOG_SPAN * known.min()


def in_order(values: Iterable[Any]) -> list[Any]:
    """Different values as an axis shows them, none missing.

    Numbers by size; then lists of numbers, the shorter first, those of one length by their numbers from the first on:
    [], [32], [128], [64, 32], [128, 64]; then texts by the alphabet.
    """
    return sorted({value for value in values if not pd.isna(value)}, key=_sort_key)


def has_order(values: Iterable[Any]) -> bool:
    """Whether the values can be told smaller from larger: all are numbers, or all are lists of numbers."""
    return {kind for kind, *_ in map(_sort_key, values)} in ({NUMBER}, {LIST})


def levels(column: pd.Series, bins: int = BINS) -> pd.DataFrame:
    """The values of a parameter as few enough groups to compare.

    Numbers with more than 2 x `bins` different values are put into `bins` groups of about equally many trials; equal
    values are never parted, so there may be fewer groups. All else keeps a group a value.

    Args:
        column: Of `parameters`.
        bins: Groups of a continuous parameter, at least 2.

    Returns:
        A row a trial that has the parameter, indexed as the column: `value` (text; of a group its range, "0.1 to 0.3")
        and `position` (the number, of a group its median; of what is no number the place in `in_order`).
    """
    known = column.dropna()
    if is_numeric(column) and known.nunique() > 2 * bins:
        return _binned(known.astype(float), bins)
    values = in_order(known)
    places = {value: float(value if is_numeric(column) else place) for place, value in enumerate(values)}
    return pd.DataFrame({"value": known.map(_text).astype(object), "position": known.map(places).astype(float)})


def _binned(known: pd.Series, bins: int) -> pd.DataFrame:
    share = known.rank(method="average").sub(0.5) / len(known)  # equal values share the middle of their ranks
    group = (share * bins).astype(int)
    bounds = known.groupby(group).agg(["min", "max"])
    names: dict[Any, str] = {}
    for digits in (3, 4, 6, 17):  # as few as tell the groups apart
        names = {each: _range(row["min"], row["max"], digits) for each, row in bounds.iterrows()}
        if len(set(names.values())) == len(names):
            break
    return pd.DataFrame(
        {"value": group.map(names).astype(object), "position": known.groupby(group).transform("median")}
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
    if any(number is None and text is not None for number, text in zip(numbers, texts, strict=True)):
        return pd.Series([None if text is None else _tidy(text) for text in texts], index=index, dtype=object)
    whole = all(isinstance(number, int) and abs(number) < 2**63 for number in numbers)
    return pd.Series([math.nan if number is None else number for number in numbers], index, int if whole else float)


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
    return None if any(part is None for part in found) else tuple(part for part in found if part is not None)
