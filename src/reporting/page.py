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
from src.core.tables import Table, fill_markdown, shorten_markdown
from src.metrics import formatting
from src.metrics.registry import RECORDED, default_quality_metrics, melanoma_class, short_label
from src.reporting import charts, collect, plots_html, style
from src.reporting.charts import Chart
from src.reporting.decisions import budget_choices, cost_of, sentences
from src.reporting.record import Report
from src.reporting.uncertainty import tied_groups
from src.sweep.overrides import is_numeric

FRAMES = ["table", "intervals", "pairs", "drops", "effects", "importance", "curves", "progress"]
FRAMES += ["recalls", "roc", "layers", "comparison", "on_test"]
MOST_CHARACTERS = 5000  # of the Markdown summary
_MOST_ROWS = 12  # of the front in it
_MOST_FAILURES = 100
_HEADINGS = {"label": "model", "label_a": "model A", "label_b": "model B", "flops": "FLOPs"}
_HEADINGS |= {"params": "parameters", "p_mcnemar": "p (McNemar)"}
_FAILED = ("failed", "killed", "no value", "running")
# Keys of charts and tables, as patterns, in the order of the page; the front's chart comes first.
_ORDER = ["table-comparison", "table-front", "table-on_test", "table-pairs", "table-drops"]
_ORDER += ["table-lost", "effects", "table-more-.*", "curves", "table-failures", "recalls", "roc"]
_ORDER += ["layers", "table-layers", "importance", "parallel", "progress", "table-intervals"]


def tables(report: Report) -> dict[str, Table]:
    """The tables that have rows, by key.

    A page shows a column whose name ends in `seed_values` as the tooltip of its left neighbour.
    """
    failed = report.table[report.table["state"].isin(_FAILED)]
    shown = failed.head(_MOST_FAILURES)
    shown = shown.reindex(columns=["label", "run_id", "state", "failure", "overrides"]).fillna("")
    more = f"The first {len(shown)} of {len(failed)}; all are in table.csv."
    intervals, drops = report.intervals, report.drops
    if len(intervals):
        intervals = intervals[intervals["metric"].isin(_qualities(report))]
    if len(drops):
        sides = [f"{prefix}/{drops['metric'].iloc[0]}" for prefix in RECORDED.values()]
        drops = drops.drop(columns=["val", "test"]).join(figures(report, sides), on="run_id")
        drops = drops[["run_id", "label", "metric", *sides, "drop", "low", "high"]]
    columns = ["label", "layer", "type", "flops", "params"]
    layers = charts.largest_layers(report).reindex(columns=columns)
    frames = [
        ("comparison", "Studies side by side", report.comparison),
        ("lost", "What compression cost", collect.compression_costs(report.table)),
        ("on_test", "Chosen models on test", report.on_test),
        ("pairs", "Neighbours on the front", report.pairs),
        ("drops", "From validation to test", drops),
        *((f"more-{n}", *item) for n, item in enumerate(report.tables.items(), 1)),
        ("layers", "Layers of the chosen models", layers),
        ("intervals", "Intervals", intervals),
        ("failures", "Trials without a result", shown),
    ]
    shown_tables = {"table-front": front_table(report)}
    for key, title, frame in frames:
        hidden = [] if key == "failures" else ["run_id", "run_a", "run_b"]
        frame = frame.drop(columns=hidden, errors="ignore")
        caption = more if key == "failures" and len(failed) > len(shown) else ""
        shown_tables[f"table-{key}"] = _table(report, frame, title, caption)
    return {key: table for key, table in shown_tables.items() if len(table.frame)}


def _qualities(report: Report) -> list[str]:
    """The main qualities, without their split: the report's own, accuracy, melanoma recall."""
    classes = [melanoma_class(report.table, "best/val")]
    quality = report.quality.removeprefix("best/").partition("/")[2]
    return list(dict.fromkeys([quality, *default_quality_metrics(classes)]))


def _table(report: Report, frame: pd.DataFrame, title: str, caption: str) -> Table:
    frame = frame.set_axis([str(name) for name in frame], axis="columns")
    labels = {name: _HEADINGS.get(name, name.replace("_", " ")) for name in map(str, frame)}
    labels |= {name: style.axis_title(report, name) for name in labels if "/" in name}
    labels |= {name: "±" for name in labels if name.startswith("spread/")}
    formats: dict[Any, Any] = dict.fromkeys(frame.select_dtypes(["number", "bool"]), style.number)
    formats["metric"] = lambda name: style.metric(f"val/{name}").plain_label.removeprefix("val/")
    return Table(frame, title, caption, labels, formats=formats)


def front_table(report: Report) -> Table:
    """The front: objectives and costs, the interval of the quality, the choices, by cost."""
    rows = report.members
    metrics = [report.quality, *(objective.metric for objective in report.objectives)]
    metrics = [name for name in dict.fromkeys([*metrics, *report.costs]) if name in rows]
    compression = ["compression", "origin_label"] if len(collect.compressed(rows)) else []
    groups = enumerate(tied_groups(report.pairs) if len(report.pairs) else [])
    letters = {run_id: chr(ord("A") + number) for number, group in groups for run_id in group}
    rows = rows.assign(tied=rows["run_id"].map(letters), chosen=report.named["name"])
    columns = ["label", *compression]
    for name in metrics:
        columns.append(name)
        is_quality, spread = name == report.quality, f"spread/{name}"
        if is_quality and rows[["quality_low", "quality_high"]].notna().any(axis=None):
            columns += ["quality_low", "quality_high"]
        if spread in rows and (rows[spread] > 0).any():
            columns.append(spread)
            if is_quality and len(report.intervals):
                split, _, metric = name.removeprefix("best/").partition("/")
                some = report.intervals.query("split == @split and metric == @metric")
                seeds = some.set_index("run_id")["seed_values"]
                rows = rows.assign(seed_values=rows["run_id"].map(seeds))
                columns.append("seed_values")
    columns += ["tied", "knee", "chosen", "run_id", "contribution", "crowding"]
    names = {"origin_label": "made_from", "quality_low": "from", "quality_high": "to"}
    return _table(report, rows.reindex(columns=columns).rename(columns=names), "The front", "")


def short_front(report: Report, rows: int | None = None) -> Table:
    """The front for a paper, a terminal or MLflow: model, quality with interval, costs, run."""
    members, complete = report.members, front_table(report).frame
    metrics = [name for name in map(str, complete) if "/" in name and members[name].notna().any()]
    metrics = [name for name in metrics if not name.startswith("spread/")]
    names = members["label"] + members["knee"].map({True: " (knee)", False: ""})
    frame = pd.DataFrame({"model": names})
    if len(collect.compressed(members)):
        frame["compression"] = members["compression"].replace("", None)
    frame[metrics] = figures(report, metrics).loc[members["run_id"]].to_numpy()
    frame["run"] = members["run_id"].str[:8]
    labels = {name: short_label(name) for name in metrics}
    better = [(labels[name], style.direction(report, name)) for name in metrics]
    values = {"columns": list(map(str, complete)), "better": better}
    caption = " ".join(sentences("front", report=report, **values))
    formats: dict[str, Any] = dict.fromkeys(metrics, str)
    return Table(frame.head(rows or len(frame)), "", caption, labels, formats=formats)


def figures(report: Report, names: list[str]) -> pd.DataFrame:
    """Metrics of each run as text: the value with its interval and its deviation over the seeds.

    Returns:
        A row per run id, a column per name; "-" where nothing is recorded.
    """
    rows = report.table.drop_duplicates("run_id").set_index("run_id").reindex(columns=names)
    shown = pd.DataFrame({name: rows[name].map(style.number).astype(object) for name in rows})
    for row in report.intervals.to_dict("records"):
        name = f"{RECORDED[row['split']]}/{row['metric']}"
        if name in shown and row["run_id"] in shown.index:
            text = style.number(row["estimate"]) + formatting.interval(row["low"], row["high"])
            text += f" ± {row['seed_sd']:.3f}" if row["seed_sd"] > 0 else ""
            shown.loc[row["run_id"], name] = text
    return shown


def answers(report: Report) -> list[dict[str, Any]]:
    """The answers; each with label, quality, cost and command of its run, empty without one."""
    names = [report.quality, cost_of(report.objectives)]
    runs = report.table.drop_duplicates("run_id").set_index("run_id")[["label", "command"]]
    cells = figures(report, names).set_axis(["quality", "cost"], axis="columns")
    runs = runs.join(cells).reindex([answer.run_id for answer in report.answers]).fillna("")
    rows = zip(report.answers, runs.to_dict("records"), strict=True)
    return [vars(answer) | {str(key): text for key, text in run.items()} for answer, run in rows]


def choices(report: Report) -> dict[str, Any]:
    """What the page needs to find the best model under budgets: JSON values, all digits.

    Returns:
        bounds: What can be bounded: metric, label, operator; `values` that the runs have, from the
            strictest limit to the weakest, and their `texts`.
        costs: The metric on the x axis of each view of the front.
        runs: From `budget_choices`, in its order: `keeps` (the bounded metrics), `x` (the costs),
            `y` (the quality), and what their cards show: id, net, label, state, figures, command.
    """
    first = report.table[report.table["study"] == report.studies[0]]
    rows, bounded = budget_choices(first, report.objectives)
    bounds = []
    for item in bounded:
        is_budget = item.direction == "minimize"
        values = style.finite(rows[item.metric]).dropna().unique().tolist()
        values = sorted(values, reverse=not is_budget)
        bound = {"metric": item.metric, "operator": "<=" if is_budget else ">=", "values": values}
        bound |= {"texts": list(map(style.number, values))}
        bounds.append(bound | {"label": style.metric(item.metric).plain_label})
    costs = charts.drawn_costs(report)
    qualities = [(f"best/val/{name}", f"test/{name}") for name in _qualities(report)]
    columns = [*qualities, *((cost,) for cost in report.costs)]
    cells = figures(report, [name for row in columns for name in row])
    runs = []
    for row in rows.to_dict("records"):
        run = {"id": row["run_id"], "net": row.get("net") or row["run_id"], "y": row["quality"]}
        run |= {key: row[key] for key in ("label", "state", "command")}
        for key, metrics in (("keeps", [item.metric for item in bounded]), ("x", costs)):
            numbers = style.finite(pd.Series([row.get(name) for name in metrics], dtype=float))
            run[key] = [None if pd.isna(number) else number for number in numbers]
        texts = [[cells.at[row["run_id"], name] for name in names] for names in columns]
        titles = [short_label(names[0]) for names in columns]
        run["figures"] = [[a, *b] for a, b in zip(titles, texts, strict=True) if set(b) != {"-"}]
        runs.append(run)
    return {"bounds": bounds, "costs": costs, "runs": runs}


def render(report: Report, drawn: Sequence[Chart]) -> str:
    """The page: HTML5 with Plotly's script and the charts inside, both compressed."""
    pictures = [plots_html.figure(picture) for chart in drawn for picture in chart.pictures]
    template = Path(__file__).with_name("plotly_template.json").read_text(encoding="utf-8")
    figures = {"template": json.loads(template), "pictures": pictures}
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options: dict[str, Any] = {"autoescape": True, "undefined": jinja2.StrictUndefined}
    environment = jinja2.Environment(loader=loader, trim_blocks=True, **options)
    environment.filters |= {"bound": formatting.bound, "metric": style.metric}
    environment.tests["near"] = lambda name: name.startswith("cheapest within")
    shown = {key: (table, *_cells(table)) for key, table in tables(report).items()}
    starts = {chart.key: sum(len(c.pictures) for c in drawn[:n]) for n, chart in enumerate(drawn)}
    keys = [*starts, *shown]
    script = resources.files("plotly").joinpath("package_data/plotly.min.js")
    return environment.get_template("page.html.j2").render(
        report=report,
        charts={chart.key: chart for chart in drawn},
        starts=starts,
        tables=shown,
        order=[key for start in _ORDER for key in keys if re.fullmatch(start, key)],
        answers=answers(report),
        quality=style.metric(report.quality).plain_label,
        cost=style.metric(cost_of(report.objectives)).plain_label,
        choices=choices(report),
        sheet=base64.b64encode(report.sheet).decode(),
        plotly=_packed(script.read_text(encoding="utf-8")),
        data=_packed(json.dumps(figures, separators=(",", ":"), ensure_ascii=False)),
    )


def _cells(table: Table) -> tuple[list[str], list[list[tuple[str, str | None, str]]]]:
    """Headings; and each cell's text, the number that sorts it (None: its text), its tooltip."""
    heads, columns = list[str](), list[list[tuple[str, str | None, str]]]()
    texts = table.texts()
    for at, (name, values) in enumerate(table.frame.items()):
        shown = [str(text) for text in texts.iloc[:, at]]
        if str(name).endswith("seed_values"):
            rows = zip(columns[-1], shown, strict=True)
            columns[-1] = [(text, key, f"seeds: {tip}") for (text, key, _), tip in rows]
            continue
        keys: list[str | None] = [None] * len(values)
        if is_numeric(values):
            keys = ["" if pd.isna(value) else repr(float(value)) for value in values]
        heads.append(texts.columns[at])
        columns.append([(*pair, "") for pair in zip(shown, keys, strict=True)])
    return heads, [list(row) for row in zip(*columns, strict=True)]


@functools.cache
def _packed(text: str) -> str:
    """Compressed, as base64: small, and no text can end the script element that it stands in."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def write(report: Report, drawn: Sequence[Chart], folder: Path) -> list[Path]:
    """Write report.html, a CSV file of each table that has rows, front.tex, summary.md and a sheet.

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
    if report.sheet:
        files.append(folder / "augmentation_sheet.jpg")
        files[-1].write_bytes(report.sheet)
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
    table, rows = short_front(report, _MOST_ROWS), ""
    if len(table.frame):
        rows = re.sub(r" {2,}", " ", table.to_markdown().rpartition("\n\n")[0])
    summary = " ".join(sentences("counts", report=report))
    values = {"report": report, "answers": answers(report), "summary": summary, "table": rows}
    text = fill_markdown(Path(__file__).with_name("summary.md.j2"), **values)
    short = shorten_markdown(text, MOST_CHARACTERS, ending)
    complete = short == text.strip() and len(report.members) <= _MOST_ROWS
    return short.removesuffix(ending) + ("\n" if complete else ending)
