"""How text and tables are put into Markdown."""

import pytest

from src.carding.costs import listed, with_references
from src.carding.page import WIDTH, item, paragraph, table
from src.carding.publish import MOST_CHARACTERS, shortened
from src.reporting.clinical.page import AuditTable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b, tf_net and [0.5, 0.6]", "a_b, tf_net and [0.5, 0.6]"),
        ("<script>alert(1)</script>", r"\<script>alert(1)\</script>"),
        ("[here](http://x)", r"[here\](http://x)"),
        ("**loud** `code` | cell", r"\*\*loud\*\* \`code\` \| cell"),
        ("_whispered_", r"\_whispered\_"),
        ("two\nlines", "two lines"),
    ],
)
def test_text_from_outside_is_words_of_one_line(text: str, shown: str) -> None:
    assert paragraph(text) == shown


@pytest.mark.parametrize("sign", [">", "-", "#", "+", "1."])
def test_no_line_of_a_sentence_begins_a_quotation_or_a_list(sign: str) -> None:
    text = " ".join(["words"] * 19) + f" {sign} 0.8 and more words that follow"
    lines = item(text).splitlines()
    assert len(lines) == 2
    assert len(lines[0]) <= WIDTH
    assert not any(line.lstrip().startswith(f"{sign} ") for line in lines[1:])


def test_the_columns_of_a_table_stand_below_each_other() -> None:
    drawn = table(
        AuditTable("", ("class", "recall"), (("mel", "0.5"), ("a|b", "0.25 [0.1-0.3]")))
    ).splitlines()
    assert drawn == [
        "| class |         recall |",
        "| ----- | -------------: |",
        "| mel   |            0.5 |",
        r"| a\|b  | 0.25 [0.1-0.3] |",
    ]


def test_exports_are_a_line_each_and_benchmarks_show_what_is_wanted() -> None:
    exports = {
        "onnx/max_difference": [1e-7],
        "onnx/agreement": [1.0],
        "litert/agreement": [1.0, 0.5],
    }
    sheet = listed(exports, "Exports")
    assert sheet.head == ("of", "agreement", "max difference") or sheet.head == (
        "of",
        "max difference",
        "agreement",
    )
    assert {row[0] for row in sheet.rows} == {"onnx", "litert"}
    assert {cell for row in sheet.rows for cell in row} >= {"1e-07", "1", "0.75 (2 nets)", "-"}
    benchmark = {"vm/onnx/t1/b1/p50_ms": [0.37], "vm/onnx/t1/b1/queries": [2000.0]}
    assert listed(benchmark, "Benchmarks", ("p50_ms", "p90_ms")).rows == (
        ("vm, onnx, t1, b1", "0.37"),
    )


def test_a_ratio_says_beside_what() -> None:
    sheet = listed({"vm/onnx/t1/b1/ratio": [0.3], "vm/litert/t1/b1/ratio": [0.4]}, "Benchmarks")
    same = with_references(sheet, {"vm/onnx/t1/b1": "a in eager", "vm/litert/t1/b1": "a in eager"})
    assert same.caption.endswith(
        "Ratio: the median over the median of a in eager; below 1 is faster."
    )
    two = with_references(sheet, {"vm/onnx/t1/b1": "a in eager", "vm/litert/t1/b1": "b in onnx"})
    assert (
        "over the median of a in eager (vm, onnx, t1, b1) and the median of b in onnx (vm, litert"
        in two.caption
    )
    assert with_references(sheet, {}) == sheet


def test_a_version_s_description_keeps_what_stood_before_and_ends_in_time() -> None:
    card = (
        "---\nlicense: other\n---\n\n# Model card: x\n\n"
        + "\n\n".join(["A paragraph of words."] * 400)
        + "\n"
    )
    text = shortened(card, "Which is the best? This.", "r1")
    assert len(text) <= MOST_CHARACTERS
    assert text.startswith("Which is the best? This.\n\n# Model card: x\n\nA paragraph")
    assert text.endswith(
        "*Shortened: the whole card is `card/card.md` among the artifacts of run r1.*"
    )
    short = "---\na: b\n---\n\n# Model card: x\n\nAll of it.\n"
    assert shortened(short, "", "r1") == "# Model card: x\n\nAll of it."
