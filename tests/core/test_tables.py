"""One Table, five outputs: expected texts are written by hand."""

from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from src.core.tables import Table, escape_markdown, shorten_markdown

FRAME = pd.DataFrame(
    {"model": ["custom", "=1+1|<b>"], "acc": [0.6543, None], "latency": [1.25, 30.0]}
)
TABLE = Table(
    FRAME,
    title="Results_1",
    caption="higher is better",
    labels={"acc": "accuracy"},
    units={"latency": "ms"},
    formats={"acc": ".3f", "latency": lambda value: f"{value:.1f}"},
    bold=frozenset({0}),
)


def test_texts_have_headings_with_units_and_a_dash_for_missing_values() -> None:
    texts = TABLE.texts()
    assert list(texts) == ["model", "accuracy", "latency (ms)"]
    assert texts.to_numpy().tolist() == [["custom", "0.654", "1.2"], ["=1+1|<b>", "-", "30.0"]]


def test_markdown_and_latex_are_escaped() -> None:
    lines = TABLE.to_markdown().splitlines()
    assert lines[0] == "**Results_1**"
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == ["model", "accuracy", "latency (ms)"]
    assert r"=1+1\|&lt;b&gt;" in lines[5]
    assert lines[-1] == "higher is better"
    latex = TABLE.to_latex(label="results")
    caption = r"\caption{Results\_1 higher is better}"
    for text in (r"\toprule", caption, r"\label{tab:results}", "custom & 0.654 & 1.2"):
        assert text in latex


def test_terminal() -> None:
    console = Console(width=60, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(TABLE.to_rich())
    lines = console.export_text().splitlines()
    assert lines[0].strip() == "Results_1"
    assert next(line for line in lines if "custom" in line).split() == ["custom", "0.654", "1.2"]
    assert "=1+1|<b>" in "\n".join(lines)
    named = Table(FRAME.assign(model=["parameters_resnet50", "b"], text="many words " * 9))
    console.print(named.to_rich())
    assert "parameters_resnet50" in console.export_text()  # an id that somebody copies


def test_csv_holds_raw_values_and_no_formulas(tmp_path: Path) -> None:
    TABLE.to_csv(tmp_path / "table.csv")
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines == ["model,acc,latency", "custom,0.6543,1.25", "'=1+1|<b>,,30.0"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a\n b", "a b"), ("*x*", r"\*x\*"), ("a&b", "a&amp;b"), ("x" * 20, "x" * 9 + "…")],
)
def test_escape_markdown(text: str, expected: str) -> None:
    assert escape_markdown(text, longest=10) == expected


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (100, "# a\n\nb\n\n| c |\n|---|\n| 1 |\n| 2 |"),
        (30, "# a\n\nb\n\n| c |\n|---|\n| 1 | ..."),
        (20, "# a\n\nb ..."),
        (9, "# a ..."),
    ],
)
def test_markdown_is_shortened_by_paragraphs_and_rows(most: int, expected: str) -> None:
    text = "# a\n\nb\n\n| c |\n|---|\n| 1 |\n| 2 |\n"
    assert shorten_markdown(text, most, " ...") == expected
    assert len(expected) < most


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_terminal_breaks_words_only_where_it_is_too_narrow(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    numbers = {"estimate": "0.2781", "low": "0.1522", "high": "0.3939", "seed sd": "0.0132"}
    row = {"model": "custom #2", "metric": "recall of mel"} | numbers
    row |= {"verdict": "not kept, undecided", "more lesions": "31", "images": "50"}
    console = Console(width=width)
    with console.capture() as output:
        console.print(Table(pd.DataFrame([row])).to_rich())
    lines = output.get().splitlines()
    assert max(map(len, lines)) <= width
    letters = "".join(output.get().replace("─", "").split())
    assert sorted(letters) == sorted("".join("".join([*row, *row.values()]).split()))
    if width >= 80:
        words = {word for text in [*row, *row.values()] for word in text.split()}
        assert words <= {word for line in lines for word in line.split()}
