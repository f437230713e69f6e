"""The clinical audit and the evaluation as terminal output, Markdown pages, tables and figures."""

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.text import Text

from src.core.files import atomic_folder
from src.core.tables import MISSING, Table, fill_markdown
from src.metrics import thresholds
from src.metrics.curves import CURVES
from src.metrics.formatting import interval, label
from src.metrics.registry import PRIMARY, short_label
from src.reporting.clinical import subgroups
from src.reporting.clinical.results import ClinicalAudit, Evaluation, sentences

PAGE = "clinical.md"
EVALUATION_PAGE = "evaluation.md"
_PAGES = Path(__file__).with_name("pages.md.j2")
CLINICAL = "clinical"  # folder of the audits, within an evaluation's
MOST_LINES = 39  # of an evaluation on the terminal, without the line that says where to look
# columns of the first two tables there
SHORT: list[tuple[str, ...]] = [("rule", "on", "sensitivity", "specificity")]
SHORT += [("class", "images", "groups", "recall", "specificity")]
LABELS = {"groups": "lesions", "original_label": "original label", "counts_as": "counts as"}
STYLES = {
    "PASS": "bold green",
    "FAIL": "bold red",
    "UNDECIDED": "bold yellow",
    "Warning": "bold red",
}


def summary(result: ClinicalAudit) -> list[str]:
    """Sentences: warnings, sizes, verdicts, the threshold, calibration and weak subgroups."""
    rows = result.operating[result.operating["rule"].str.startswith("sensitivity")]
    rates = rows.set_index("measure")["estimate"]
    weakest, table = [], result.subgroups
    for measure, rule in result.rules.items():
        rows_by_rule = table[(table["by"] != "all") & (table["measure"] == measure)]
        measured = rows_by_rule.dropna(subset="estimate").sort_values("estimate", kind="stable")
        small, worst = len(rows_by_rule) - len(measured), measured.head(1).to_dict("records")
        row = worst[0] if worst else None
        weakest.append((rule, row, len(measured), small, len(rows_by_rule)))
    return sentences(
        "summary",
        audit=result,
        rates=rates.to_dict() if rates.notna().all() else {},
        rule=rows["rule"].max(),
        on_val=rows["val"].head(1).sum(),
        error=result.calibration.set_index("measure").loc["ece"].to_dict(),
        temperatures=", ".join(f"{temperature:.2f}" for temperature in result.temperatures),
        weakest=weakest,
    )


# ---- tables


def estimate_text(
    row: Mapping[Any, Any],
    names: tuple[str, str, str] = ("estimate", "low", "high"),
    sign: Literal["", "+"] = "",
) -> str:
    """A figure with its interval, such as "0.59 [0.50, 0.68]"; * marks an exact end."""
    estimate, low, high = (row[name] for name in names)
    if not np.isfinite(estimate):
        return MISSING
    show = f"{{:{sign}.2f}}".format
    span = interval(low, high, show)
    return f"{show(estimate)}{span}{'*' if span and row.get('interval') == 'exact' else ''}"


def _with_text(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(text=[estimate_text(row) for row in table.to_dict("records")])


def _wide(table: pd.DataFrame, index: str, columns: str) -> pd.DataFrame:
    """One row for each value of `index`, one column of texts for each value of `columns`."""
    table = table if "text" in table else _with_text(table)
    wide = table.pivot(index=index, columns=columns, values="text")
    return wide.loc[table[index].unique(), table[columns].unique()].reset_index()


def audit_tables(result: ClinicalAudit) -> list[Table]:
    """All tables with rows, the most important first."""
    name, split = result.positive, {"text": result.split}
    sizes = result.per_class.drop_duplicates("class")[["class", "images", "groups"]]
    classes = sizes.merge(_wide(result.per_class, "class", "measure"), on="class")
    overall, fixed, errors = (
        table.assign(**{key: [label(f"val/{metric}") for metric in table[key]]})
        for table, key in (
            (_with_text(result.overall), "metric"),
            (_with_text(result.fixed), "metric"),
            (result.calibration, "measure"),
        )
    )
    table = functools.partial(_table, audit=result)
    isic = {str(column): ".3f" for column in result.isic if column != "class"}
    sides = {"before": "as it is", "after": "scaled"}
    tables = [
        _operating_table(result),
        table("classes", classes, {"f1": "F1", "groups": "lesions"}),
        table(
            "ranking",
            _wide(result.ranking, "class", "metric"),
            {metric: short_label(f"val/{metric}/{name}") for metric in CURVES},
        ),
        table("overall", overall[["metric", "text"]], split),
        table("fixed", fixed[["metric", "text"]], split),
        table("isic", result.isic, {"sensitivity": "sens.", "specificity": "spec."}, isic),
        table("calibration", errors, sides, dict.fromkeys(sides, ".3f")),
        *(_subgroup_tables(result) if len(result.subgroups) else ()),
    ]
    return [table for table in tables if len(table.frame)]


def _table(
    key: str,
    frame: pd.DataFrame,
    labels: Mapping[str, str],
    formats: Mapping[str, str] | None = None,
    **values: Any,
) -> Table:
    """A table with its title and caption from the template."""
    title, caption = sentences(f"table {key}", **values)
    return Table(frame, title, caption, labels, formats=formats or {})


def _operating_table(result: ClinicalAudit) -> Table:
    operating = result.operating
    on_val = operating.assign(estimate=operating["val"], low=np.nan)
    on_val = on_val[on_val.groupby("rule")["val"].transform("count") > 0]
    sides = [(on_val, "val"), (operating, result.split)]
    parts = [_wide(table, "rule", "measure").assign(on=on) for table, on in sides if len(table)]
    order = list(operating["rule"].unique())
    rows = pd.concat(parts).sort_values(
        "rule", key=lambda rules: rules.map(order.index), kind="stable"
    )
    more = {(verdict.rule, result.split): verdict.more_lesions for verdict in result.verdicts}
    rows["more"] = list(map(more.get, zip(rows["rule"], rows["on"], strict=True)))
    columns = [
        "rule",
        "on",
        *thresholds.MEASURES,
        *(["more"] if rows["more"].notna().any() else []),
    ]
    problems = operating[operating["problem"] != ""].set_index("rule")["problem"].to_dict()
    labels = {"ppv": "PPV", "npv": "NPV", "more": "lesions needed"}
    values = {"audit": result, "chosen": len(order) > 1, "problems": problems}
    return _table("operating", rows[columns], labels, {"more": ",.0f"}, **values)


def _subgroup_tables(result: ClinicalAudit) -> list[Table]:
    """Recall by each rule, then balanced accuracy and AUROC; one row for each subgroup."""
    rows, name = _with_text(result.subgroups), result.positive
    names = map(subgroups.display_name, rows["by"], rows["subgroup"])
    classes = rows["classes"].map(" ({})".format).where(rows["measure"] == PRIMARY, "")
    texts = (rows["text"] + classes).where(rows["note"] == "", "too few")
    rows = rows.assign(subgroup=list(names), text=texts)
    sizes = ["subgroup", "images", "groups", "positives", "positive_lesions"]
    wide = rows[sizes].drop_duplicates().merge(_wide(rows, "subgroup", "measure"), on="subgroup")
    heads = {
        "recall": f"recall, {result.verdicts[0].rule}",
        "recall_at_threshold": "recall, threshold",
    }
    labels = {
        "groups": "lesions",
        "positives": f"{name}: images",
        "positive_lesions": f"{name}: lesions",
        **heads,
        **{measure: label(f"val/{measure}") for measure in (PRIMARY, "auroc")},
    }
    recalls, other_columns = wide[[*sizes, *result.rules]], wide[[*sizes, PRIMARY, "auroc"]]
    return [
        _table("recalls", recalls, labels, audit=result, heads=heads),
        _table("subgroups", other_columns, labels, audit=result),
    ]


def evaluation_tables(result: Evaluation) -> list[Table]:
    """The change from the run's to other data, and recall by original label, if there are."""
    drop, labels, source = result.drop, result.by_original_label, result.source
    tables = []
    if len(drop):
        sides = {source: ("own", "own_low", "own_high")}
        sides[result.data] = ("external", "external_low", "external_high")
        rows = drop.to_dict("records")
        columns = {
            "metric": drop["metric"].map(shift_label),
            **{side: [estimate_text(row, names) for row in rows] for side, names in sides.items()},
            "difference": [estimate_text(row, ("difference", "low", "high"), "+") for row in rows],
            "lesions": [f"{a:,} / {b:,}" for a, b in drop.filter(like="_groups").to_numpy()],
        }
        tables.append(_table("shift", pd.DataFrame(columns), {}, result=result))
    if len(labels):
        texts = [estimate_text(row, ("recall", "low", "high")) for row in labels.to_dict("records")]
        frame = labels.assign(recall=texts).drop(columns=["low", "high"])
        tables.append(_table("labels", frame, LABELS, result=result))
    return tables


def shift_label(metric: str) -> str:
    """A metric of the `drop` table for people, such as "recall/mel"."""
    return metric.removeprefix("chosen/").replace("_", " ")


# ---- terminal, pages, files


def render(result: ClinicalAudit) -> list[RenderableType]:
    """What to print: the summary with warnings first, the tables, then the notes."""
    notes = Group(*(Text(f"! {note}") for note in result.notes))
    tables = [table.to_rich() for table in audit_tables(result)]
    return [Group(*map(_styled, summary(result)), Text()), *tables, notes]


def _styled(sentence: str) -> Text:
    word = sentence.partition(":")[0]
    return Text.assemble((word, STYLES.get(word, "")), sentence[len(word) :])


def render_evaluation(
    result: Evaluation, console: Console, verbose: bool = False
) -> list[RenderableType]:
    """What to print of the first audit and the change to other data, the most important first.

    Without `verbose` at most `MOST_LINES` lines of the console: parts that do not fit are counted.
    """
    first = next(iter(result.audits.values()))
    notes: list[RenderableType] = [Text(f"- {note}") for note in result.notes]
    shift = [table.to_rich() for table in evaluation_tables(result)]
    title = Text(result.title, style="bold")
    if verbose:
        opening, *rest = render(first)
        return [title, opening, *notes, *shift, *rest]
    operating, classes = (
        replace(table, frame=table.frame[[name for name in columns if name in table.frame]])
        for table, columns in zip(audit_tables(first), SHORT, strict=False)
    )
    # those of a verdict repeat the audit's
    verdicts = [_styled(replace(verdict, warnings=()).text) for verdict in first.verdicts]
    lines = list(map(_styled, summary(first)))
    warned = lines[: len(first.warnings) + 1]  # and the number of images
    tables = [replace(classes, caption="").to_rich(), replace(operating, caption="").to_rich()]
    parts: list[RenderableType] = [title, *warned, *verdicts, lines[-1], *tables, *shift, *notes]
    renderables: list[RenderableType] = []
    free = MOST_LINES - 1
    for part in parts:
        height = len(console.render_lines(part, pad=False))
        if height <= free:
            renderables.append(part)
            free -= height
    hidden = len(parts) - len(renderables) + len(audit_tables(first)) - len(tables)
    more = f"{hidden} more tables and notes: verbose=true prints them; figures are in the folder."
    return [*renderables, Text(more)]


def figure_titles(result: ClinicalAudit) -> dict[str, str]:
    """The figures of an audit: file name -> what they show."""
    scaled = " before and after temperature scaling" if result.temperatures else ""
    names = {"reliability": f"Reliability{scaled}"}
    if len(result.roc):
        curves = {"roc": "ROC curves", "precision_recall": "Precision-recall curves"}
        names = {key: f"{what}, one panel per class" for key, what in curves.items()} | names
    if len(result.subgroups):
        names["subgroups"] = "Subgroups with intervals and sizes"
    return names


def markdown(result: ClinicalAudit) -> str:
    """The audit as a Markdown page; the figures are beside it."""
    values = {"audit": result, "summary": summary(result), "figures": figure_titles(result)}
    return fill_markdown(_PAGES, part="audit", tables=audit_tables(result), **values)


def evaluation_markdown(result: Evaluation) -> str:
    """The evaluation as a Markdown page; the audits have their own pages beside it."""
    summaries = {name: summary(audit) for name, audit in result.audits.items()}
    first = {name: audit_tables(audit)[:2] for name, audit in result.audits.items()}
    values = {"first": first, "folder": CLINICAL, "page": PAGE, "tables": evaluation_tables(result)}
    return fill_markdown(_PAGES, part="evaluation", result=result, summaries=summaries, **values)


def write(result: ClinicalAudit, folder: Path) -> None:
    """Write the page, figures (PNG and SVG) and tables (CSV): all of the folder, or nothing.

    Raises:
        UserError: The folder cannot be written.
    """
    from src.reporting.clinical import plots  # matplotlib

    with atomic_folder(folder, "the clinical audit") as draft:
        (draft / PAGE).write_text(markdown(result), encoding="utf-8")
        _write_tables(result.tables, draft)
        plots.write(result, draft)


def write_evaluation(result: Evaluation, folder: Path) -> None:
    """Write pages, figures (PNG and SVG) and tables (CSV): all of the folder, or nothing.

    Raises:
        UserError: The folder cannot be written.
    """
    from src.reporting.clinical import plots
    from src.reporting.plots_static import save

    with atomic_folder(folder, "the evaluation") as draft:
        (draft / CLINICAL).mkdir()
        for name, audit in result.audits.items():
            write(audit, draft / CLINICAL / name)
        (draft / EVALUATION_PAGE).write_text(evaluation_markdown(result), encoding="utf-8")
        _write_tables(result.tables, draft)
        for seed, frame in result.predictions.items():
            (draft / "predictions").mkdir(exist_ok=True)
            frame.to_csv(draft / "predictions" / f"seed_{seed}.csv", index=False)
        if len(result.drop):
            save(plots.shift(result), draft / "drop")
        if result.examples:
            save(plots.examples(result), draft / "examples")


def _write_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    for name, table in tables.items():
        Table(table).to_csv(folder / f"{name}.csv")
