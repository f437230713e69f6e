"""The overrides of trials as short texts that still tell the trials apart."""

import re
from collections.abc import Sequence

DOTS = "..."


def shortened(cells: Sequence[str], width: int) -> list[str]:
    """Fit texts like "model.net.width=8 optimizer.lr=0.001" into a column, so that what differs stays to be read.

    Each step is taken only if the texts do not fit without it: keys lose their path where the last word is enough;
    what is equal in all texts goes; keys are cut to their beginning, long values in their middle; the whole text is.

    Args:
        cells: Overrides with blanks between.
        width: Columns; at least 5.
    """
    parts = [_overrides(cell) for cell in cells]
    if _fit(parts, width):
        return [cell.strip() for cell in cells]
    parts = _without_paths(parts)
    if not _fit(parts, width) and len(parts) > 1:
        common = set.intersection(*map(set, parts))
        if common and any(set(part) - common for part in parts):
            parts = [[text for text in part if text not in common] + [DOTS] for part in parts]
    for key, value in ((5, 24), (3, 24), (3, 12), (3, 8)):
        if not _fit(parts, width):
            parts = [[_cut(text, key, value) for text in part] for part in parts]
    return [middle(" ".join(part), width) for part in parts]


def middle(text: str, width: int) -> str:
    """A text with its middle cut out, so that it takes at most `width` columns."""
    if len(text) <= width:
        return text
    kept = max(width - len(DOTS), 0)
    return text[: kept - kept // 2] + DOTS[:width] + text[len(text) - kept // 2 :]


def _overrides(cell: str) -> list[str]:
    return re.split(r"\s+(?=[\w.@/+~]+=)", cell.strip())  # a value may have blanks: dense=[64, 32]


def _fit(parts: Sequence[Sequence[str]], width: int) -> bool:
    return all(len(" ".join(part)) <= width for part in parts)


def _without_paths(parts: Sequence[Sequence[str]]) -> list[list[str]]:
    keys = {text.partition("=")[0] for part in parts for text in part}
    last = [re.split(r"[./]", key)[-1] for key in keys]
    short = {key: word for key, word in zip(keys, last, strict=True) if last.count(word) == 1}
    split = [[text.partition("=") for text in part] for part in parts]
    return [[f"{short.get(key, key)}{sign}{value}" for key, sign, value in part] for part in split]


def _cut(text: str, key_size: int, value_size: int) -> str:
    """The beginning of the key, and both ends of the value."""
    key, sign, value = text.partition("=")
    return f"{key[:key_size]}={middle(value, value_size)}" if sign else text
