import io
from pathlib import Path

import pytest
from rich.console import Console

from src.core.errors import UserError
from src.headline.document import WIDTH, markdown, show, write
from src.headline.part import Grid, Missing, Origin, Part

LONG = "efficientnet_lite0, 224 px, loss=weighted_focal, an_override_that_is_rather_long=0.123"
COLUMNS = (
    "system",
    "split",
    "weights",
    "parameters",
    "FLOPs",
    "x latency",
    "seeds",
    *["melanoma specificity"] * 6,
)
VALUE = ("0.774", "[0.750, 0.798]", "printed 0.8705")
ROW = (
    (LONG,),
    ("image (leaking)",),
    ("RANDOM",),
    ("23,522,375",),
    ("4,109.47M",),
    ("40.12",),
    ("3",),
    *[VALUE] * 6,
)
PART = Part(
    "A | paper",
    "Folded\ntext.",
    [Grid(COLUMNS, [ROW], (3, 4))],
    ["It is <b>so</b>."],
    ["[bold]Note[/bold]."],
    [Missing("a", "0 of 3 seeds", "train x"), Missing("b", "1 of 3 seeds", "train x")],
    Origin(
        ("train x",), ("Abacus",), ("aaaaaaa (3 runs)",), ("val/auroc (3 runs)",), "then to now", 3
    ),
)


def test_the_page_holds_every_figure_as_a_markdown_table() -> None:
    lines = markdown([PART], ["All of it."], "2026-11-21").splitlines()
    assert lines[0] == "# Results"
    assert "2026-11-21" in lines[2]
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 3
    assert {line.count(" | ") for line in rows} == {len(COLUMNS) - 1}
    assert "0.774<br>[0.750, 0.798]<br>printed 0.8705" in rows[2]
    assert "Folded text." in lines
    assert "- It is &lt;b&gt;so&lt;/b&gt;." in lines
    assert "- `train x`<br>a: 0 of 3 seeds; b: 1 of 3 seeds" in lines
    assert "- Command, less hydra.* options, which are not recorded: `train x`" in lines
    assert "- Chosen by: val/auroc (3 runs)" in lines
    assert "- Recorded: then to now, 3 trained runs" in lines


def test_a_terminal_of_100_columns_shows_it_whole() -> None:
    screen = io.StringIO()
    show([PART], Console(file=screen, width=WIDTH))
    text = screen.getvalue()
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text.count("0.774") == 6
    assert text.count("0.798]") == 6
    assert "[bold]Note[/bold]" in text
    assert "record it: train x" in text


def test_what_was_there_stays_if_the_page_cannot_be_written(tmp_path: Path) -> None:
    write("first", tmp_path / "docs" / "results.md")
    assert [each.name for each in (tmp_path / "docs").iterdir()] == ["results.md"]
    with pytest.raises(UnicodeEncodeError):
        write("second \ud800", tmp_path / "docs" / "results.md")
    assert (tmp_path / "docs" / "results.md").read_text() == "first"
    assert len(list((tmp_path / "docs").iterdir())) == 1
    with pytest.raises(UserError, match="file="):
        write("third", tmp_path / "docs" / "results.md" / "below")
