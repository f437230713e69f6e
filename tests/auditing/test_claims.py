"""Claims as data: what is refused, and that the message names the place."""

from copy import deepcopy
from typing import Any

import pytest

from src.auditing.claims import parse
from src.core.errors import ConfigError

GOOD: dict[str, Any] = {
    "name": "x2025",
    "title": "T",
    "citation": "X, 2025.",
    "source": "somewhere",
    "read": "all of it",
    "command": "python -m src.train",
    "systems": {"net": {"preset": "x/net", "data": "synthetic", "split": "grouped"}},
    "figures": {"a": {"printed": "12"}},
    "claims": [
        {
            "id": "b",
            "claim": "It is 12.",
            "where": "abstract",
            "printed": "12",
            "readings": [{"name": "own", "figure": "a"}],
        }
    ],
}


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    plain = deepcopy(GOOD)
    node: Any = plain
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return plain


def test_a_good_paper_is_taken() -> None:
    paper = parse(GOOD)
    assert paper.claims[0].readings[0].kind == "figure"
    assert paper.figures["a"].kind == "printed"


READING = ("claims", 0, "readings", 0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("claims",), 3, "paper.claims: input should be a valid list, but got 3"),
        (("claims", 0, "id"), "a", r"paper.claims\[0\].id: a is taken"),
        (
            ("claims", 0, "readings"),
            [],
            r"paper.claims\[0\]: b needs readings, or a reason why it is untestable",
        ),
        (
            ("claims", 0, "relation"),
            "about",
            r"paper.claims\[0\].relation: input should be 'equal', 'below' or 'above'",
        ),
        (
            ("claims", 0, "printed"),
            12,
            r"paper.claims\[0\].printed: input should be a valid string, but got 12",
        ),
        (
            ("claims", 0, "colour"),
            "red",
            r"paper.claims\[0\].colour: extra inputs are not permitted",
        ),
        (
            READING,
            {"name": "own"},
            r"paper.claims\[0\].readings\[0\]: must have one of .*, but has none",
        ),
        (READING, {"name": "x", "figure": "a", "published": 1}, "but has figure and published"),
        (READING, {"name": "x", "operation": "ratio"}, r"readings\[0\]: operation needs of"),
        (READING, {"name": "x", "published": 1}, r"readings\[0\]: published needs source"),
        (
            READING,
            {"name": "x", "operation": "ratoi", "of": ["a", 2]},
            "does not know 'ratoi'; did you mean ratio",
        ),
        (
            READING,
            {"name": "x", "operation": "ratio", "of": ["z", 2]},
            "of: does not know 'z'; there are a, b",
        ),
        (READING, {"name": "x", "figure": "aa"}, "figure: does not know 'aa'; did you mean a"),
        (READING, {"name": "x", "count": "weights", "net": "n"}, "count: does not know 'weights'"),
        (
            READING,
            {"name": "x", "count": "flops", "net": "n"},
            "net: does not know 'n'; there is none",
        ),
        (
            READING,
            {"name": "x", "measured": {"system": "nett", "metric": "auroc"}},
            "measured: does not know 'nett'",
        ),
        (("figures", "a"), {"figure": "q"}, "paper.figures.a.figure: does not know 'q'"),
        (
            ("systems", "net", "requires"),
            [{"column": "c", "otherwise": "o"}],
            "must have either equals or at_least",
        ),
    ],
)
def test_a_broken_paper_names_the_place(path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        parse(changed(path, value))
    assert "\n" not in str(refused.value)
