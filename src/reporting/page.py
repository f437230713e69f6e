"""Page.html.j2, CSV, LaTeX, Markdown."""

import base64
import gzip
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from plotly.offline import get_plotlyjs

from src.core.files import escape_formula
from src.metrics.registry import recorded_name
from src.reporting import collect, style
from src.reporting.plots_html import Section, sections
from src.reporting.record import Report

_FAILED = ("failed", "killed", "no value", "running")
_MOST_FAILURES = 100
_LONGEST_FAILURE = 300
_PAIRS = (
    "Tied goes by p adjusted: the p-value of the paired bootstrap, which draws lesions or patients where they are "
    "known, corrected for the number of pairs. McNemar's p is of accuracy (each image right or wrong by the mean of "
    "the seeds' probabilities), uncorrected and by image, so that it is too sure where lesions have several images."
)
_LOST = (
    "Size, latency, FLOPs: as shares of the origin's. Lost: percentage points, above 0 the compressed model is worse; "
    "low and high: the 95% interval of that difference, both models resampled together on the same images."
)
_SHORT = 34  # characters that need not be broken; a run id has 32


@dataclass(frozen=True)
class HtmlCell:
    """One cell: what is shown, by what it sorts, and its kind: n a figure, s a short text, t a long one."""

    text: str
    key: str
    kind: str


@dataclass(frozen=True)
class HtmlTable:
    """A table under a heading; `note` says what was left out or how to read it."""

    key: str
    title: str
    head: list[str]
    rows: list[list[HtmlCell]]
    note: str = ""


def tables(report: Report) -> list[HtmlTable]:
    """Those that have rows, in the order of the page."""
    pairs = report.pairs.drop(columns=["run_a", "run_b"], errors="ignore")
    found = [
        _front(report),
        _of(
            "table-comparison", "Studies side by side", _metrics_in_head(report, report.comparison)
        ),
        _of("table-lost", "What compression cost", collect.lost(report), _LOST),
        _of(
            "table-intervals", "Intervals", report.intervals.drop(columns="run_id", errors="ignore")
        ),
        _of("table-pairs", "Neighbours on the front", pairs, _PAIRS),
        _of(
            "table-drops",
            "From validation to test",
            report.drops.drop(columns="run_id", errors="ignore"),
        ),
        *(
            _of(f"table-more-{place}", name, frame)
            for place, (name, frame) in enumerate(report.tables.items(), 1)
        ),
        _of(
            "table-effects",
            "Effects of parameters",
            report.effects.drop(columns="position", errors="ignore"),
        ),
        _failures(report),
    ]
    return [table for table in found if table.rows]


def answers(report: Report) -> list[dict[str, str]]:
    """The decisions, each with its run's label and the command that trains it again."""
    table = report.table.drop_duplicates("run_id").set_index("run_id")
    found = []
    for answer in report.answers:
        run = table.loc[answer.run_id] if answer.run_id in table.index else None
        found.append(
            {
                "question": answer.question,
                "text": answer.text,
                "run_id": answer.run_id,
                "label": "" if run is None else str(run.get("label") or ""),
                "command": "" if run is None else str(run.get("command") or ""),
            }
        )
    return found


def counts(report: Report) -> list[tuple[str, int]]:
    """How many trials ended how, in words."""
    return [
        (state.replace("over_limit", "ended early, over limit"), count)
        for state, count in report.counts.items()
    ]


def _front(report: Report) -> HtmlTable:
    rows = style.members(report)
    metrics = dict.fromkeys(
        [
            report.quality,
            *(recorded_name(objective.metric) for objective in report.objectives),
            *report.costs,
        ]
    )
    columns = {name: style.heading(report, name) for name in metrics if name in rows}
    frame = rows[["label"]].copy()
    if len(collect.compressed(rows)):
        frame["compression"], frame["made from"] = rows["compression"], rows["origin_label"]
    for name, title in columns.items():
        frame[title] = rows[name]
        if name == report.quality and rows.get("quality_low", pd.Series(dtype=float)).notna().any():
            frame["from"], frame["to"] = rows["quality_low"], rows["quality_high"]
    for name in ("knee", "chosen", "run_id", "contribution", "crowding"):
        if name in rows:
            frame[name] = rows[name]
    note = "↑: higher is better, ↓: lower is better. Contribution: to the hypervolume; crowding: room among neighbours."
    return _of("table-front", "The front", frame, note)


def _failures(report: Report) -> HtmlTable:
    table = report.table
    rows = table[table["state"].isin(_FAILED)] if "state" in table else table.iloc[:0]
    shown = rows.head(_MOST_FAILURES)
    frame = shown.reindex(columns=["label", "run_id", "state", "failure", "overrides"]).fillna("")
    frame["failure"] = frame["failure"].astype(str).str.slice(0, _LONGEST_FAILURE)
    note = (
        f"The first {len(shown)} of {len(rows)}; all are in table.csv."
        if len(rows) > len(shown)
        else ""
    )
    return _of("table-failures", "Trials without a result", frame, note)


def _metrics_in_head(report: Report, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.rename(
        columns=lambda name: style.heading(report, str(name)) if "/" in str(name) else name
    )


def _of(key: str, title: str, frame: pd.DataFrame, note: str = "") -> HtmlTable:
    head = [str(name).replace("_", " ") for name in frame]
    rows = [[_cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    return HtmlTable(key, title, head, rows, note)


def _cell(value: object) -> HtmlCell:
    numeric = isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)
    text = style.number(value)
    if not numeric:
        return HtmlCell(text, text, "s" if len(text) <= _SHORT else "t")
    return HtmlCell(text, "" if text == style.NOTHING else repr(float(value)), "n")  # type: ignore[arg-type]


_TEMPLATE = Path(__file__).with_name("page.html.j2")


def write(report: Report, path: Path) -> Path:
    """Writes the page, whole or not at all.

    Args:
        report: What it says.
        path: The file; its folder is made if need be.

    Returns:
        The path.
    """
    text = render(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def render(report: Report) -> str:
    """The page as text: HTML5, with Plotly's script and the figures' data inside, both compressed."""
    found = sections(report)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        report=report,
        sections=found,
        tables=tables(report),
        answers=answers(report),
        counts=counts(report),
        plotly=packed(get_plotlyjs()),
        data=packed(drawings(found)),
    )


def packed(text: str) -> str:
    """Compressed, as base64: small, and no text from outside can end the script element that it stands in."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def drawings(found: list[Section]) -> str:
    """The figures and their views as JSON."""
    data: list[dict[str, Any]] = []
    for section in found:
        for picture in section.pictures:
            figure = json.loads(picture.figure.to_json())
            views = [
                {"traces": view.traces, "layout": view.layout, "note": view.note}
                for view in picture.views
            ]
            data.append({"data": figure["data"], "layout": figure["layout"], "views": views})
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False)


FRAMES = (
    "table",
    "intervals",
    "pairs",
    "drops",
    "effects",
    "importance",
    "curves",
    "progress",
    "recalls",
    "comparison",
)
MOST_CHARACTERS = 5000
_MOST_ROWS = 12
_LATEX = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "[": "{[}",  # behind a line's end it would be an option
    "]": "{]}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    style.NOTHING: "--",
    "∞": r"$\infty$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "±": r"$\pm$",
}


def write_tables(report: Report, folder: Path) -> list[Path]:
    """Writes a CSV file of each table that has rows, front.tex and summary.md.

    Args:
        report: What is written.
        folder: Made if need be.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frames = {name: getattr(report, name) for name in FRAMES}
    frames |= {_file_name(name): frame for name, frame in report.tables.items()} | {
        "lost": collect.lost(report)
    }
    files = []
    for name, frame in frames.items():
        if len(frame):
            files.append(folder / f"{name}.csv")
            _spreadsheet(frame).to_csv(files[-1], index=False)
    if len(report.parameters.columns):
        files.append(folder / "parameters.csv")
        _spreadsheet(report.parameters.reset_index()).to_csv(files[-1], index=False)
    for name, text in (("front.tex", latex(report)), ("summary.md", markdown(report))):
        files.append(folder / name)
        files[-1].write_text(text, encoding="utf-8")
    return files


def latex(report: Report) -> str:
    """The front as a table environment with booktabs' rules; the preamble needs booktabs and T1 fonts."""
    columns = _columns(report)
    kinds = _compressions(report)
    head = " & ".join(
        [
            "Model",
            *(["Compression"] if kinds else []),
            *(_latex_head(report, name) for name in columns),
        ]
    )
    rows = []
    for _, row in style.members(report).iterrows():
        cells = [_escape(str(row["label"])) + (r" (knee)" if row.get("knee") else "")]
        cells += [_escape(kinds[row["run_id"]])] if kinds else []
        cells += [_latex_cell(report, row, name) for name in columns]
        rows.append(" & ".join(cells) + r" \\")
    caption = f"Pareto front of {report.title}: {len(rows)} of {len(report.table)} trials"
    intervals = "; with intervals" if _has_intervals(report) else ""
    return "\n".join(
        [
            r"% needs \usepackage{booktabs} and \usepackage[T1]{fontenc}",
            r"\begin{table}",
            r"  \centering",
            f"  \\caption{{{_escape(caption + intervals)}. A multiply-add counts as one FLOP.}}",
            f"  \\label{{tab:{_file_name(report.title)}-front}}",
            f"  \\begin{{tabular}}{{l{'l' if kinds else ''}{'r' * len(columns)}}}",
            r"    \toprule",
            f"    {head} \\\\",
            r"    \midrule",
            *(f"    {row}" for row in rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def markdown(report: Report) -> str:
    """A summary for a run's description: counts, warnings, answers with their commands, the front.

    Returns:
        Under 5,000 characters. What does not fit is left out from the end, whole paragraphs and
        rows, and it says so.
    """
    ending = "\n\n*Shortened; the whole report is report.html among this run's artifacts.*"
    rows = _markdown_front(report)
    cut = len(style.members(report)) > _MOST_ROWS
    text = f"# {_markdown(report.title, 200)}: which model to take"
    parts = [("\n\n", part) for part in _markdown_parts(report)]
    parts += [("\n" if place else "\n\n", row) for place, row in enumerate(rows)]
    for glue, part in parts:
        if len(text) + len(glue) + len(part) + len(ending) + 1 >= MOST_CHARACTERS:
            cut = True
            break
        text += glue + part
    return text + (ending if cut else "") + "\n"


def _markdown_parts(report: Report) -> list[str]:
    parts = [_markdown(_counts(report), 600)]
    if report.warnings:
        parts.append(
            "\n".join(f"> **Note:** {_markdown(warning, 250)}  " for warning in report.warnings[:5])
        )
    commands = (
        report.table.drop_duplicates("run_id")
        .set_index("run_id")
        .get("command", pd.Series(dtype=object))
    )
    for answer in report.answers:
        run = f" Run `{answer.run_id}`." if answer.run_id else ""
        command = str(commands.get(answer.run_id) or "")
        # as code it cannot be escaped, so that one that could end the code is left to the page
        again = (
            f"\n\n    {command}"
            if command and len(command) <= 400 and not set("`<\n") & set(command)
            else ""
        )
        parts.append(
            f"**{_markdown(answer.question, 200)}** {_markdown(answer.text, 600)}{run}{again}"
        )
    return parts


def _columns(report: Report) -> list[str]:
    """Quality, the other objectives, then the costs that are not among them; those that a member of the front has."""
    rows = style.members(report)
    wanted = [
        report.quality,
        *(recorded_name(objective.metric) for objective in report.objectives),
        *report.costs,
    ]
    return [name for name in dict.fromkeys(wanted) if name in rows and rows[name].notna().any()]


def _compressions(report: Report) -> dict[str, str]:
    """How each member of the front was compressed, by its run id; empty where none was."""
    rows = style.members(report)
    found = (
        rows.set_index("run_id")["compression"]
        if len(collect.compressed(rows))
        else pd.Series(dtype=object)
    )
    return {str(run_id): str(kind) or style.NOTHING for run_id, kind in found.items()}


def _latex_head(report: Report, name: str) -> str:
    lines = style.wrapped(style.heading(report, name), 18).split("\n")
    if len(lines) == 1:
        return _escape(lines[0])
    return r"\shortstack[r]{" + r" \\ ".join(map(_escape, lines)) + "}"


def _has_intervals(report: Report) -> bool:
    rows = style.members(report)
    return "quality_low" in rows and bool(rows["quality_low"].notna().any())


def _interval(report: Report, row: pd.Series, name: str) -> tuple[float, float] | None:
    """How far the interval of the quality reaches below and above."""
    low, high = row.get("quality_low"), row.get("quality_high")
    if name != report.quality or pd.isna(low) or pd.isna(high):
        return None
    return row[name] - low, high - row[name]


def _latex_cell(report: Report, row: pd.Series, name: str) -> str:
    text = _escape(style.number(row[name]))
    reach = _interval(report, row, name)
    if reach is None or pd.isna(row[name]):
        return text
    below, above = (f"{value:.3f}" for value in reach)
    return (
        f"${row[name]:.3f} \\pm {above}$"
        if below == above
        else f"${row[name]:.3f}_{{-{below}}}^{{+{above}}}$"
    )


def _markdown_front(report: Report) -> list[str]:
    """The lines of a Markdown table."""
    rows = style.members(report)
    columns = _columns(report)
    if rows.empty:
        return []
    kinds = _compressions(report)
    head = [
        "model",
        *(["compression"] if kinds else []),
        *(_markdown(style.heading(report, name), 80) for name in columns),
        "run",
    ]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for _, row in rows.head(_MOST_ROWS).iterrows():
        cells = [_markdown(str(row["label"]), 60) + (" (knee)" if row.get("knee") else "")]
        cells += [_markdown(kinds[row["run_id"]], 40)] if kinds else []
        for name in columns:
            reach = _interval(report, row, name)
            span = f" [{row['quality_low']:.3f}, {row['quality_high']:.3f}]" if reach else ""
            cells.append(style.number(row[name]) + span)
        cells.append(f"`{str(row['run_id'])[:8]}`")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _counts(report: Report) -> str:
    parts = ", ".join(
        f"{count} {state.replace('_', ' ')}" for state, count in report.counts.items()
    )
    volumes = ", ".join(f"{value:.4g} ({study})" for study, value in report.hypervolume.items())
    return (
        f"{sum(report.counts.values())} trials: {parts}. Hypervolume: {volumes or style.NOTHING}."
    )


def _markdown(text: str, most: int) -> str:
    """Text from outside as plain words of one line: no tags, no table cells, no emphasis."""
    text = " ".join(text.split())
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    for letter in "\\`*[]|#":
        text = text.replace(letter, f"\\{letter}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _escape(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _file_name(text: str) -> str:
    """Letters, digits, hyphens and underscores only, so that no name leaves the folder."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:60] or "table"


def _spreadsheet(frame: pd.DataFrame) -> pd.DataFrame:
    """Text that a spreadsheet would run as a formula is put behind an apostrophe."""
    texts = [name for name in frame if not pd.api.types.is_numeric_dtype(frame[name])]
    safe = frame.copy()
    for name in texts:
        safe[name] = safe[name].map(escape_formula)
    return safe
