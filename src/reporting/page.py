"""Writes a report as an HTML page, CSV files, a LaTeX table and a Markdown summary."""

import base64
import functools
import gzip
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from src.core.files import atomic_file
from src.core.tables import Table, escape_markdown, shorten_markdown
from src.metrics.formatting import interval
from src.metrics.registry import short_label
from src.reporting import charts, collect, plots_html, style
from src.reporting.charts import Chart
from src.reporting.record import Report
from src.sweep.overrides import is_numeric

FRAMES = ["table", "intervals", "pairs", "drops", "effects", "importance", "curves", "progress"]
FRAMES += ["recalls", "comparison"]
MOST_CHARACTERS = 5000  # of the Markdown summary
_MOST_ROWS = 12  # of the front in it
_MOST_FAILURES = 100
_FAILED = ("failed", "killed", "no value", "running")
_PAIRS = (
    "Tied: p adjusted is above 1 - level. It is the p-value of the paired bootstrap, which draws "
    "lesions or patients where they are known, corrected for the number of pairs. McNemar's p is "
    "of accuracy, for two single nets only, uncorrected and by image: it is too small where "
    "lesions have several images."
)
_LOST = (
    "Size, latency, FLOPs: shares of the origin. Lost: percentage points, above 0 the compressed "
    "model is worse; low and high: 95% interval, both models resampled on the same images."
)


def tables(report: Report) -> dict[str, Table]:
    """The tables that have rows, by key, in the order of the page."""
    failed = report.table[report.table["state"].isin(_FAILED)]
    shown = failed.head(_MOST_FAILURES)
    shown = shown.reindex(columns=["label", "run_id", "state", "failure", "overrides"]).fillna("")
    more = f"The first {len(shown)} of {len(failed)}; all are in table.csv."
    frames = [
        ("comparison", "Studies side by side", report.comparison, ""),
        ("lost", "What compression cost", collect.compression_costs(report.table), _LOST),
        ("intervals", "Intervals", report.intervals, ""),
        ("pairs", "Neighbours on the front", report.pairs, _PAIRS),
        ("drops", "From validation to test", report.drops, ""),
        *((f"more-{n}", *item, "") for n, item in enumerate(report.tables.items(), 1)),
        ("effects", "Effects of parameters", report.effects, ""),
        ("failures", "Trials without a result", shown, more if len(failed) > len(shown) else ""),
    ]
    shown_tables = {"table-front": front_table(report)}
    for key, title, frame, caption in frames:
        hidden = ["position"] if key == "effects" else ["run_id", "run_a", "run_b"]
        columns = frame if key == "failures" else frame.drop(columns=hidden, errors="ignore")
        shown_tables[f"table-{key}"] = _table(report, columns, title, caption)
    return {key: table for key, table in shown_tables.items() if len(table.frame)}


def _table(report: Report, frame: pd.DataFrame, title: str, caption: str) -> Table:
    frame = frame.set_axis([str(name) for name in frame], axis="columns")
    labels = {
        name: style.axis_title(report, name) if "/" in name else name.replace("_", " ")
        for name in map(str, frame)
    }
    numbers = [str(name) for name in frame.select_dtypes(["number", "bool"])]
    return Table(frame, title, caption, labels, formats=dict.fromkeys(numbers, style.number))


def front_table(report: Report) -> Table:
    """The front: objectives and costs, the interval of the quality, the choices, by cost."""
    rows = charts.members(report)
    metrics = [report.quality, *(one.metric for one in report.objectives)]
    metrics = [name for name in dict.fromkeys([*metrics, *report.costs]) if name in rows]
    compression = ["compression", "origin_label"] if len(collect.compressed(rows)) else []
    rest = ["knee", "chosen", "run_id", "contribution", "crowding"]
    frame = rows.reindex(columns=["label", *compression, *metrics, *rest])
    if rows[["quality_low", "quality_high"]].notna().any(axis=None):
        at = list(frame).index(report.quality) + 1
        frame.insert(at, "from", rows["quality_low"])
        frame.insert(at + 1, "to", rows["quality_high"])
    frame = frame.rename(columns={"origin_label": "made_from"})
    caption = "Contribution: to the hypervolume. Crowding: distance between the neighbours."
    return _table(report, frame, "The front", caption)


def short_front(report: Report, rows: int | None = None) -> Table:
    """The front for a paper, a terminal or MLflow: model, quality with interval, costs, run."""
    members, complete = charts.members(report), front_table(report).frame
    metrics = [name for name in map(str, complete) if "/" in name and members[name].notna().any()]
    frame = pd.DataFrame(
        {"model": members["label"] + members["knee"].map({True: " (knee)", False: ""})}
    )
    if len(collect.compressed(members)):
        frame["compression"] = members["compression"].replace("", None)
    for name in metrics:
        frame[name] = [style.number(value) for value in members[name]]
        if name == report.quality:
            frame[name] += list(map(interval, members["quality_low"], members["quality_high"]))
    frame["run"] = members["run_id"].str[:8]
    labels = {name: short_label(name) for name in metrics}
    parts = [f"Pareto front of {report.title}: {len(frame)} of {len(report.table)} trials"]
    parts[0] += "; with intervals" if "from" in complete else ""
    for better in ("higher is better", "lower is better"):
        if some := [labels[name] for name in metrics if style.direction(report, name) == better]:
            parts.append(f"{better.capitalize()}: {', '.join(some)}")
    caption = f"{'. '.join(parts)}. A multiply-add counts as one FLOP."
    formats: dict[str, Any] = dict.fromkeys(metrics, str)
    return Table(frame.head(rows or len(frame)), "", caption, labels, formats=formats)


def answers(report: Report) -> list[dict[str, str]]:
    """The answers, each with the label of its run and the command that trains it again."""
    runs = report.table.drop_duplicates("run_id").set_index("run_id")[["label", "command"]]
    runs = runs.reindex([answer.run_id for answer in report.answers]).fillna("")
    rows = zip(report.answers, runs["label"], runs["command"], strict=True)
    return [vars(answer) | {"label": label, "command": line} for answer, label, line in rows]


def render(report: Report, drawn: Sequence[Chart]) -> str:
    """The page: HTML5 with Plotly's script and the charts inside, both compressed."""
    figures = [plots_html.figure(picture) for chart in drawn for picture in chart.pictures]
    text = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    options: dict[str, Any] = {"autoescape": True, "undefined": jinja2.StrictUndefined}
    template = jinja2.Environment(trim_blocks=True, **options).from_string(text)
    return template.render(
        report=report,
        charts=drawn,
        tables={key: (table, _cells(table)) for key, table in tables(report).items()},
        answers=answers(report),
        counts={
            state.replace("over_limit", "ended early, over limit").replace("_", " "): number
            for state, number in report.counts.items()
        },
        plotly=_plotly(),
        data=_packed(json.dumps(figures, separators=(",", ":"), ensure_ascii=False)),
    )


def _cells(table: Table) -> list[list[tuple[str, str | None]]]:
    """Each cell's text, and the number by which it is sorted; None: by its text."""
    columns = []
    for (_, values), (_, texts) in zip(table.frame.items(), table.texts().items(), strict=True):
        keys: list[str | None] = [None] * len(values)
        if is_numeric(values):
            keys = ["" if pd.isna(value) else repr(float(value)) for value in values]
        columns.append(list(zip(texts, keys, strict=True)))
    return [list(row) for row in zip(*columns, strict=True)]


@functools.cache
def _plotly() -> str:
    script = resources.files("plotly").joinpath("package_data/plotly.min.js")
    return _packed(script.read_text(encoding="utf-8"))


def _packed(text: str) -> str:
    """Compressed, as base64: small, and no text can end the script element that it stands in."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def write(report: Report, drawn: Sequence[Chart], folder: Path) -> list[Path]:
    """Write report.html, a CSV file of each table that has rows, front.tex and summary.md.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frames = {name: getattr(report, name) for name in FRAMES}
    frames |= {_file_name(name): frame for name, frame in report.tables.items()}
    frames["lost"] = collect.compression_costs(report.table)
    if len(report.parameters.columns):
        frames["parameters"] = report.parameters.reset_index()
    files = []
    for name, frame in frames.items():
        if len(frame):
            files.append(folder / f"{name}.csv")
            Table(frame).to_csv(files[-1])
    latex = short_front(report).to_latex(f"{_file_name(report.title)}-front")
    needs = "% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}\n"
    documents = {"front.tex": needs + latex, "summary.md": markdown(report)}
    documents["report.html"] = render(report, drawn)
    for name, text in documents.items():
        files.append(folder / name)
        with atomic_file(files[-1], "the report") as draft:
            draft.write_text(text, encoding="utf-8")
    return files


def _file_name(text: str) -> str:
    """Letters, digits, hyphens and underscores only, so that no name leaves the folder."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:60] or "table"


def markdown(report: Report) -> str:
    """A summary for the description of an MLflow run: counts, warnings, answers, the front.

    Returns:
        Fewer than 5,000 characters. What does not fit is left out from the end, in paragraphs and
        table rows, and the last line says so.
    """
    ending = "\n\n*Shortened; the complete report is report.html among this run's artifacts.*\n"
    states = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in report.counts.items())
    volumes = ", ".join(f"{value:.4g} ({study})" for study, value in report.hypervolume.items())
    summary = f"{sum(report.counts.values())} trials: {states}. Hypervolume: {volumes or '-'}."
    environment = jinja2.Environment(trim_blocks=True)  # noqa: S701  the output is Markdown
    environment.filters["plain"] = escape_markdown
    environment.tests["search"] = lambda text, pattern: re.search(pattern, text)
    template = Path(__file__).with_name("summary.md.j2").read_text(encoding="utf-8")
    table, rows = short_front(report, _MOST_ROWS), ""
    if len(table.frame):
        rows = re.sub(r" {2,}", " ", table.to_markdown().rpartition("\n\n")[0])
    values = {"report": report, "answers": answers(report), "summary": summary, "table": rows}
    text = environment.from_string(template).render(values)
    short = shorten_markdown(text, MOST_CHARACTERS, ending)
    complete = short == text.strip() and len(charts.members(report)) <= _MOST_ROWS
    return short.removesuffix(ending) + ("\n" if complete else ending)
