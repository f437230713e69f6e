"""The report as files for other programs: CSV for spreadsheets, LaTeX for papers, Markdown for MLflow's UI."""

import re
from pathlib import Path

import pandas as pd

from src.analysis.comparison import recorded_name
from src.reporting import layout, origins
from src.reporting.record import Report
from src.spreadsheets import harmless

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
    layout.NOTHING: "--",
    "∞": r"$\infty$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "±": r"$\pm$",
}


def write(report: Report, folder: Path) -> list[Path]:
    """Writes a CSV file of each table that has rows, front.tex and summary.md.

    Args:
        report: What is written.
        folder: Made if need be.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frames = {name: getattr(report, name) for name in FRAMES}
    frames |= {_file_name(name): frame for name, frame in report.tables.items()} | {"lost": origins.lost(report)}
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
    head = " & ".join(["Model", *(["Compression"] if kinds else []), *(_latex_head(report, name) for name in columns)])
    rows = []
    for _, row in layout.members(report).iterrows():
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
        Under 5,000 characters. What does not fit is left out from the end, whole paragraphs and rows, and it says so.
    """
    ending = "\n\n*Shortened; the whole report is report.html among this run's artifacts.*"
    rows = _markdown_front(report)
    cut = len(layout.members(report)) > _MOST_ROWS
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
        parts.append("\n".join(f"> **Note:** {_markdown(warning, 250)}  " for warning in report.warnings[:5]))
    commands = report.table.drop_duplicates("run_id").set_index("run_id").get("command", pd.Series(dtype=object))
    for answer in report.answers:
        run = f" Run `{answer.run_id}`." if answer.run_id else ""
        command = str(commands.get(answer.run_id) or "")
        # as code it cannot be escaped, so that one that could end the code is left to the page
        again = f"\n\n    {command}" if command and len(command) <= 400 and not set("`<\n") & set(command) else ""
        parts.append(f"**{_markdown(answer.question, 200)}** {_markdown(answer.text, 600)}{run}{again}")
    return parts


def _columns(report: Report) -> list[str]:
    """Quality, the other objectives, then the costs that are not among them; those that a member of the front has."""
    rows = layout.members(report)
    wanted = [report.quality, *(recorded_name(objective.metric) for objective in report.objectives), *report.costs]
    return [name for name in dict.fromkeys(wanted) if name in rows and rows[name].notna().any()]


def _compressions(report: Report) -> dict[str, str]:
    """How each member of the front was compressed, by its run id; empty where none was."""
    rows = layout.members(report)
    found = rows.set_index("run_id")["compression"] if len(origins.compressed(rows)) else pd.Series(dtype=object)
    return {str(run_id): str(kind) or layout.NOTHING for run_id, kind in found.items()}


def _latex_head(report: Report, name: str) -> str:
    lines = layout.wrapped(layout.heading(report, name), 18).split("\n")
    if len(lines) == 1:
        return _escape(lines[0])
    return r"\shortstack[r]{" + r" \\ ".join(map(_escape, lines)) + "}"


def _has_intervals(report: Report) -> bool:
    rows = layout.members(report)
    return "quality_low" in rows and bool(rows["quality_low"].notna().any())


def _interval(report: Report, row: pd.Series, name: str) -> tuple[float, float] | None:
    """How far the interval of the quality reaches below and above."""
    low, high = row.get("quality_low"), row.get("quality_high")
    if name != report.quality or pd.isna(low) or pd.isna(high):
        return None
    return row[name] - low, high - row[name]


def _latex_cell(report: Report, row: pd.Series, name: str) -> str:
    text = _escape(layout.number(row[name]))
    reach = _interval(report, row, name)
    if reach is None or pd.isna(row[name]):
        return text
    below, above = (f"{value:.3f}" for value in reach)
    return f"${row[name]:.3f} \\pm {above}$" if below == above else f"${row[name]:.3f}_{{-{below}}}^{{+{above}}}$"


def _markdown_front(report: Report) -> list[str]:
    """The lines of a Markdown table."""
    rows = layout.members(report)
    columns = _columns(report)
    if rows.empty:
        return []
    kinds = _compressions(report)
    head = [
        "model",
        *(["compression"] if kinds else []),
        *(_markdown(layout.heading(report, name), 80) for name in columns),
        "run",
    ]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for _, row in rows.head(_MOST_ROWS).iterrows():
        cells = [_markdown(str(row["label"]), 60) + (" (knee)" if row.get("knee") else "")]
        cells += [_markdown(kinds[row["run_id"]], 40)] if kinds else []
        for name in columns:
            reach = _interval(report, row, name)
            span = f" [{row['quality_low']:.3f}, {row['quality_high']:.3f}]" if reach else ""
            cells.append(layout.number(row[name]) + span)
        cells.append(f"`{str(row['run_id'])[:8]}`")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _counts(report: Report) -> str:
    parts = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in report.counts.items())
    volumes = ", ".join(f"{value:.4g} ({study})" for study, value in report.hypervolume.items())
    return f"{sum(report.counts.values())} trials: {parts}. Hypervolume: {volumes or layout.NOTHING}."


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
        safe[name] = safe[name].map(harmless)
    return safe
