import re
import shutil
import subprocess
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import COSTS, QUALITY

from src.reporting import style
from src.reporting.decisions import Answer
from src.reporting.page import MOST_CHARACTERS, latex, markdown, write_tables

SPECIAL = "a&b%c$d#e_f{g}h~i^j\\k<l>m|n[o]"


def test_csv_files_hold_the_frames_with_all_digits(report, tmp_path):
    files = {path.name: path for path in write_tables(report, tmp_path / "deep")}
    frames = [
        "table",
        "intervals",
        "pairs",
        "drops",
        "effects",
        "importance",
        "curves",
        "progress",
        "recalls",
    ]
    assert set(files) == {f"{name}.csv" for name in [*frames, "Losses", "parameters"]} | {
        "front.tex",
        "summary.md",
    }
    for name in frames:
        back = pd.read_csv(
            files[f"{name}.csv"], dtype={"value": str, "trial": str}, keep_default_na=True
        )
        assert list(back) == list(getattr(report, name))
        assert len(back) == len(getattr(report, name))
    table = pd.read_csv(files["table.csv"])
    pd.testing.assert_series_equal(table[QUALITY], report.table[QUALITY], check_exact=True)


def test_a_report_with_one_run_writes_what_there_is(bare, tmp_path):
    assert [path.name for path in write_tables(bare, tmp_path)] == [
        "table.csv",
        "front.tex",
        "summary.md",
    ]


def test_a_table_s_name_cannot_leave_the_folder(bare, tmp_path):
    report = replace(bare, tables={"../../out": pd.DataFrame({"x": [1]})})
    files = write_tables(report, tmp_path / "in")
    assert all(path.parent == tmp_path / "in" for path in files)
    assert (tmp_path / "in" / "out.csv").exists()


def test_spreadsheets_run_no_formula(bare, tmp_path):
    write_tables(replace(bare, table=bare.table.assign(failure="=HYPERLINK(1)")), tmp_path)
    assert "'=HYPERLINK(1)" in (tmp_path / "table.csv").read_text()


def test_the_latex_table_has_a_row_a_member_with_its_interval(report):
    members = style.members(report)
    text = latex(report)
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:-1]
    assert len(body) == len(members)
    for line, (_, row) in zip(body, members.iterrows(), strict=True):
        assert line.strip().startswith(row["label"].replace("_", r"\_").replace("#", r"\#"))
        half = row["quality_high"] - row[QUALITY]
        assert f"${row[QUALITY]:.3f} \\pm {half:.3f}$" in line
        assert line.count(" & ") == 5
    assert r"\label{tab:dense_size-front}" in text
    assert r"\caption{Pareto front of dense\_size: " in text


def test_lopsided_intervals_say_both_sides(bare):
    table = bare.table.assign(
        quality_low=bare.table[QUALITY] - 0.01, quality_high=bare.table[QUALITY] + 0.03
    )
    assert re.search(r"\$0\.\d{3}_\{-0\.010\}\^\{\+0\.030\}\$", latex(replace(bare, table=table)))


@given(st.text(alphabet=st.sampled_from("ab&%$#_{}~^\\<>|[]\"'é"), min_size=1))
def test_nothing_from_outside_is_a_latex_command(bare, label):
    text = latex(replace(bare, table=bare.table.assign(label=label), title=label))
    row = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    commands = set(re.findall(r"\\[A-Za-z]+", row))
    allowed = {r"\midrule", r"\pm", r"\textbackslash", r"\textasciitilde", r"\textasciicircum"}
    assert commands <= allowed | {r"\textless", r"\textgreater", r"\textbar", r"\textquotedbl"}
    bare_text = re.sub(r"\\[{}$&%#_]", "", text)
    assert bare_text.count("{") == bare_text.count("}")
    assert not re.search(r"(?<!\\)[%#]", row)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(report, tmp_path):
    table = report.table.assign(label=report.table["label"] + SPECIAL)
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}\begin{document}"
    (tmp_path / "x.tex").write_text(head + latex(replace(report, table=table)) + r"\end{document}")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "x.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0


def test_markdown_says_answers_front_and_warnings(report):
    text = markdown(report)
    commands = report.table.set_index("run_id")["command"]
    for answer in report.answers:
        assert answer.question in text
        assert answer.run_id in text
        assert not answer.run_id or f"\n\n    {commands[answer.run_id]}\n" in text
    assert report.warnings[0] in text
    assert text.startswith("# dense_size: which model to take")
    assert f"{len(report.table)} trials" in text
    members = style.members(report)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + min(len(members), 12)
    assert len({line.count("|") for line in lines}) == 1
    cheapest = members.iloc[0]
    assert f"{cheapest[COSTS[0]] / 1e6:.3g}M" in lines[2]
    assert f"[{cheapest['quality_low']:.3f}, {cheapest['quality_high']:.3f}]" in lines[2]


@pytest.mark.parametrize("count", [1, 7, 500])
def test_markdown_stays_short_and_says_when_it_was_cut(report, count):
    answers = [
        Answer(f"a{number}", "Which? " * 30, "0" * 32, "Long text. " * 100)
        for number in range(count)
    ]
    text = markdown(replace(report, answers=answers, warnings=["Beware. " * 200] * count))
    assert len(text) < MOST_CHARACTERS
    assert ("Shortened" in text) == (count > 1 or len(style.members(report)) > 12)


@given(st.text(max_size=300))
def test_nothing_from_outside_is_html_or_a_cell_in_markdown(bare, text):
    made = markdown(replace(bare, title=text, table=bare.table.assign(label=text), warnings=[text]))
    assert "<" not in made
    lines = [line for line in made.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert len(made) < MOST_CHARACTERS
