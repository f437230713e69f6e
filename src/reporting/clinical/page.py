"""The audit as page, tables and sentences."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from src.core.files import atomic_folder, spreadsheet
from src.metrics import thresholds
from src.reporting.clinical import plots
from src.reporting.clinical.audit import rules
from src.reporting.clinical.record import ClinicalAudit, Evaluation, span

DISCLAIMER = "Research only: this is no medical device, and nothing here is a diagnosis or advice."


def summary(found: ClinicalAudit) -> list[str]:
    """Sentences: warnings, how much was looked at, the verdicts, what the threshold means in people, calibration."""
    nets = f", by {found.seeds} nets (seeds)" if found.seeds > 1 else ""
    told = [f"Beware: {warning}" for warning in found.warnings]
    told.append(
        f"{found.images} images of {found.lesions} lesions or patients ({found.split}){nets}; {found.positives} images "
        f"({found.positives / found.images:.1%}) are {found.positive}, the class that is looked for."
    )
    told += [verdict.text for verdict in found.verdicts]
    return [*told, *_in_people(found), *_calibration(found), *_weakest(found), DISCLAIMER]


def _in_people(found: ClinicalAudit) -> list[str]:
    """What the threshold for sensitivity means, in whole images of a hundred."""
    rows = found.operating[found.operating["rule"].str.startswith("sensitivity")]
    if rows.empty or rows["estimate"].isna().any():
        return []
    reached = rows.iloc[0]
    figures = dict(zip(rows["measure"], rows["estimate"], strict=True))
    finds, misses = _of_hundred(figures["sensitivity"])
    _, alarms = _of_hundred(figures["specificity"])
    return [
        f"The threshold for {reached['rule']} reached {reached['val']:.3f} on validation and {reached['estimate']:.3f} "
        f"here. Of 100 images of {found.positive} it finds {finds} and misses {misses}; of 100 others it alarms on "
        f"{alarms}; of 100 alarms {_of_hundred(figures['ppv'])[0]} are {found.positive}."
    ]


def _of_hundred(share: float) -> tuple[str, str]:
    """How many of a hundred, and how many not; none and all are said only where it is so."""
    part = round(100 * share)
    return _count(part, share), _count(100 - part, 1 - share)


def _count(number: int, share: float) -> str:
    if 0 < share < 1:
        return {0: "fewer than 1", 100: "more than 99"}.get(number, str(number))
    return str(number)


def _calibration(found: ClinicalAudit) -> list[str]:
    row = found.calibration.set_index("measure").loc["ece"]
    after = ""
    if np.isfinite(row["after"]):
        heat = ", ".join(f"{each:.2f}" for each in found.temperatures)
        after = f"; {row['after']:.3f} after temperature scaling (T = {heat})"
    return [f"Confidence and accuracy differ by {row['before']:.3f} on average (ECE){after}."]


def _weakest(found: ClinicalAudit) -> list[str]:
    """The subgroup with the lowest recall by each rule: where to look first, not a finding."""
    if found.subgroups.empty:
        return []
    rows = found.subgroups[found.subgroups["by"] != "all"]
    told = [
        _lowest(found, rows[rows["measure"] == measure], rule)
        for measure, rule in rules(found).items()
    ]
    recall = rows[rows["measure"] == "recall"]
    silent = int(recall["estimate"].isna().sum())
    told += (
        [f"{silent} of {len(recall)} subgroups are too small for a figure of recall."]
        if silent
        else []
    )
    return [sentence for sentence in told if sentence]


def _lowest(found: ClinicalAudit, rows: pd.DataFrame, rule: str) -> str:
    known = rows[rows["estimate"].notna()]
    if known.empty:
        return ""
    worst = known.sort_values("estimate", kind="stable").iloc[0]
    return (
        f"Recall of {found.positive} by {rule} is lowest for {worst['by']} {worst['subgroup']}: "
        f"{worst['estimate']:.3f} {span(worst['low'], worst['high'])} on {worst['positives']} images of "
        f"{worst['positive_lesions']} lesions, the worst of {len(known)} subgroups (some are low by chance)."
    )


NOTHING = "-"


@dataclass(frozen=True)
class AuditTable:
    """One table of texts.

    Attributes:
        title: Above it.
        head: A column each; the first is a name, the others are figures.
        rows: As many texts each as `head`.
        caption: Below it: units, directions, what to beware of.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


def audit_tables(found: ClinicalAudit) -> list[AuditTable]:
    """All tables that there is something for, the most important first."""
    made = [
        _operating(found),
        _per_class(found),
        _ranking(found),
        _overall(found),
        _fixed(found),
        _isic(found),
    ]
    made += [_calibration_table(found), _subgroup_recall(found), _subgroup_ranking(found)]
    return [sheet for sheet in made if sheet.rows]


def estimate_text(row: Mapping[Any, Any]) -> str:
    """A figure with its interval, such as "0.59 [0.50-0.68]"; an asterisk marks one with an exact end."""
    if not np.isfinite(row["estimate"]):
        return NOTHING
    if not np.isfinite(row["low"]):
        return f"{row['estimate']:.2f}"
    return f"{row['estimate']:.2f} [{row['low']:.2f}-{row['high']:.2f}]{'*' if row['interval'] == 'exact' else ''}"


def _figure(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else NOTHING


def _operating(found: ClinicalAudit) -> AuditTable:
    rows = []
    for rule, table in found.operating.groupby("rule", sort=False):
        by = {row["measure"]: row for row in table.to_dict("records")}
        names = ("sensitivity", "specificity", "ppv", "npv")
        if np.isfinite(table["val"]).any():
            rows.append((str(rule), "val", *(_figure(by[name]["val"], 2) for name in names)))
        rows.append((str(rule), found.split, *(estimate_text(by[name]) for name in names)))
    problems = [f" {rule}: {text}." for rule, text in _problems(found).items()]
    alone = set(found.operating["rule"]) == {thresholds.ARGMAX}
    return AuditTable(
        f"Finding {found.positive}: the most probable class{'' if alone else ', and thresholds chosen on validation'}",
        ("rule", "on", "sensitivity", "specificity", "PPV", "NPV"),
        tuple(rows),
        f"Each in [0, 1], higher is better. *: an exact end."
        f"{'' if alone else ' val: reached where the threshold was chosen.'}{''.join(problems)}",
    )


def _problems(found: ClinicalAudit) -> dict[str, str]:
    """What is wrong with a rule's thresholds, by rule."""
    rows = found.operating[found.operating["problem"] != ""].drop_duplicates("rule")
    return dict(zip(rows["rule"], rows["problem"], strict=True))


def _per_class(found: ClinicalAudit) -> AuditTable:
    rows = []
    for name, table in found.per_class.groupby("class", sort=False):
        by = {row["measure"]: row for row in table.to_dict("records")}
        sizes = (str(by["recall"]["images"]), str(by["recall"]["groups"]))
        rows.append(
            (
                str(name),
                *sizes,
                *(estimate_text(by[each]) for each in ("recall", "precision", "f1", "specificity")),
            )
        )
    return AuditTable(
        "Each class, by the most probable class",
        ("class", "images", "lesions", "recall", "precision", "F1", "specificity"),
        tuple(rows),
        "Each in [0, 1], higher is better; intervals by lesion. *: an exact end.",
    )


def _ranking(found: ClinicalAudit) -> AuditTable:
    names = ("auroc", "average_precision", "auroc_above_80_sensitivity", "pauc_80")
    rows = []
    for name, table in found.ranking.groupby("class", sort=False):
        by = {row["metric"]: row for row in table.to_dict("records")}
        rows.append((str(name), *(estimate_text(by[each]) for each in names)))
    return AuditTable(
        "Each class against the rest, over all thresholds",
        ("class", "AUROC", "average precision", "AUC above 80% sens.", "pAUC80 (2024)"),
        tuple(rows),
        "Higher is better. AUC above 80% sensitivity: as isic-challenge-scoring, at most 1. pAUC80: ISIC 2024's "
        "metric, at most 0.2, by chance 0.02. Average precision by chance: the share of the class.",
    )


def _overall(found: ClinicalAudit) -> AuditTable:
    rows = [
        (str(row["metric"]).replace("_", " "), estimate_text(row))
        for row in found.overall.to_dict("records")
    ]
    return AuditTable(
        "All classes",
        ("measure", found.split),
        tuple(rows),
        "Each in [0, 1], higher is better. isic: an image with several most probable classes is wrong.",
    )


def _fixed(found: ClinicalAudit) -> AuditTable:
    rows = []
    for row in found.fixed.to_dict("records"):
        measure, _, at = str(row["metric"]).partition("/")[0].partition("_at_")
        other = {"spec": "specificity", "sens": "sensitivity"}[at[:4]]
        rows.append((f"{measure} at {other} >= {float(at[4:]) / 100:g}", estimate_text(row)))
    return AuditTable(
        f"{found.positive}: what the ROC curve of these images offers",
        ("measure", found.split),
        tuple(rows),
        "Each in [0, 1], higher is better. No threshold was chosen beforehand, so that it flatters.",
    )


def _isic(found: ClinicalAudit) -> AuditTable:
    names = [str(name) for name in found.isic if name != "class"]
    rows = [
        (str(row["class"]), *(_figure(row[name]) for name in names))
        for row in found.isic.to_dict("records")
    ]
    head = [
        "sens." if name == "sensitivity" else "spec." if name == "specificity" else name
        for name in names
    ]
    return AuditTable(
        "The ISIC challenges' table (isic-challenge-scoring: positive above a probability of 0.5)",
        ("class", *head),
        tuple(rows),
        "Each in [0, 1], higher is better; a rate of nothing counts as 1 there.",
    )


def _calibration_table(found: ClinicalAudit) -> AuditTable:
    names = {
        "ece": "ECE, 15 bins of equal width",
        "adaptive_ece": "ECE, 15 bins of equal content",
        "brier": "Brier score (half the squared distance)",
        "nll": "negative log-likelihood (nats)",
    }
    rows = [
        (names[row["measure"]], _figure(row["before"]), _figure(row["after"]))
        for row in found.calibration.to_dict("records")
    ]
    heat = ", ".join(f"{each:.3f}" for each in found.temperatures)
    lacks = (
        "Temperatures are fitted on these images"
        if found.split == "val"
        else "No validation predictions"
    )
    fitted = f" T, one a net, fitted on validation: {heat}." if heat else f" {lacks}: not scaled."
    return AuditTable(
        "Calibration", ("measure", "as it is", "scaled"), tuple(rows), f"Lower is better.{fitted}"
    )


def _subgroups(
    found: ClinicalAudit, measures: Mapping[str, str], title: str, caption: str
) -> AuditTable:
    """A line a subgroup: its size, and the measures, by their heads."""
    head = (
        "subgroup",
        "images",
        "lesions",
        f"{found.positive}: images",
        "lesions",
        *measures.values(),
    )
    if found.subgroups.empty:
        return AuditTable(title, head, ())
    rows = []
    for (by, subgroup), table in found.subgroups.groupby(["by", "subgroup"], sort=False):
        of = {row["measure"]: row for row in table.to_dict("records")}
        first = table.iloc[0]
        sizes = tuple(
            str(first[key]) for key in ("images", "groups", "positives", "positive_lesions")
        )
        name = str(subgroup) if by == subgroup else f"{by}: {subgroup}"
        rows.append((name, *sizes, *(_withheld(of[measure]) for measure in measures)))
    few = f"In [0, 1], higher is better. too few: under {found.settings.smallest} lesions."
    return AuditTable(title, head, tuple(rows), f"{few} {caption}")


def _subgroup_recall(found: ClinicalAudit) -> AuditTable:
    there = rules(found)
    heads = {"recall": "recall, argmax", "recall_at_threshold": "recall, threshold"}
    told = " ".join(f"{heads[measure]}: by {rule}." for measure, rule in there.items())
    title = f"Subgroups: recall of {found.positive}"
    return _subgroups(found, {measure: heads[measure] for measure in there}, title, told)


def _subgroup_ranking(found: ClinicalAudit) -> AuditTable:
    return _subgroups(
        found,
        {"balanced_accuracy": "balanced accuracy", "auroc": "AUROC"},
        f"Subgroups: balanced accuracy, and AUROC of {found.positive} against the rest",
        "Balanced accuracy is by the most probable class, over the classes (number behind it) with at least so many: "
        "it does not compare between unlike numbers of classes.",
    )


def _withheld(row: Mapping[Any, Any]) -> str:
    if row["note"]:
        return "too few"
    classes = f" ({row['classes']})" if row["measure"] == "balanced_accuracy" else ""
    return estimate_text(row) + classes


PAGE = "clinical.md"
_STYLES = {
    "PASS": "bold green",
    "FAIL": "bold red",
    "UNDECIDED": "bold yellow",
    "Beware": "bold red",
}


def render(found: ClinicalAudit) -> list[RenderableType]:
    """What to print, one after the other: the summary (warnings first), the tables, then how they are to be read."""
    summary_ = Group(*(_outcome(sentence) for sentence in summary(found)), Text())
    tables = [Group(as_table(sheet), Text(sheet.caption), Text()) for sheet in audit_tables(found)]
    return [summary_, *tables, Group(*(Text(f"! {note}") for note in _notes(found)))]


def markdown(found: ClinicalAudit, linked: bool = True) -> str:
    """The audit as a page of Markdown.

    Args:
        found: What is told.
        linked: Whether the pictures lie beside the page.
    """
    parts = [
        f"# Clinical audit: {plain(found.split)}",
        "\n".join(f"- {plain(sentence)}" for sentence in summary(found)),
        "\n".join(f"> {plain(note)}  " for note in _notes(found)),
    ]
    for sheet in audit_tables(found):
        parts += [f"## {plain(sheet.title)}", as_markdown(sheet), plain(sheet.caption)]
    if linked:
        parts += [f"![{title}]({name}.png)" for name, title in plots.titles(found).items()]
    return "\n\n".join(parts) + "\n"


def write(found: ClinicalAudit, folder: Path) -> list[Path]:
    """Write the page, the pictures (PNG and SVG) and the tables (CSV): all of the folder, or nothing.

    Args:
        found: What is written.
        folder: What was in it goes.

    Returns:
        The files.

    Raises:
        UserError: The folder cannot be written.
    """
    with atomic_folder(folder, "the clinical audit") as draft:
        (draft / PAGE).write_text(markdown(found), encoding="utf-8")
        for name, table in found.tables.items():
            spreadsheet(table).to_csv(draft / f"{name}.csv", index=False)
        plots.write(found, draft)
    return sorted(folder.iterdir())


def _notes(found: ClinicalAudit) -> tuple[str, ...]:
    """Those that do not stand in the summary already."""
    return found.notes[len(found.warnings) :]


def _outcome(sentence: str) -> Text:
    word = sentence.partition(":")[0]
    text = Text(sentence)
    text.stylize(_STYLES.get(word, ""), 0, len(word))
    return text


def as_table(sheet: AuditTable) -> Table:
    """A sheet for the terminal: the first column to the left, figures to the right."""
    drawn = Table(
        title=Text(sheet.title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for number, name in enumerate(sheet.head):
        figures = all(
            row[number][:1] in "0123456789-" for row in sheet.rows
        )  # names give way, figures are not torn
        drawn.add_column(
            Text(name), justify="right" if number else "left", overflow="fold", no_wrap=figures
        )
    for row in sheet.rows:
        drawn.add_row(*map(Text, row))
    return drawn


def as_markdown(sheet: AuditTable) -> str:
    """A sheet as a table of Markdown, without its title and caption."""
    head, *rows = ([plain(cell) for cell in line] for line in (sheet.head, *sheet.rows))
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text from outside as words of one line: no tags, no table cells, no emphasis, no links."""
    text = re.sub(r"([\\`*_\[\]|#])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


EVALUATION_PAGE = "evaluation.md"
SHOWN = 2  # tables of a clinical audit that the terminal is given: operating points, and each class
CLINICAL = "clinical"  # folder of the audits, within an evaluation's


def render_evaluation(found: Evaluation) -> list[RenderableType]:
    """What to print, one after the other: the summary, the drop, then the clinical audit."""
    first = next(iter(found.audits.values()))
    summary, *tables, beware = render(first)
    own = [as_table(sheet) for sheet in _sheets(found)]
    notes = [Text(f"- {note}") for note in found.notes]
    left = f"{max(0, len(tables) - SHOWN)} more tables, the pictures and the figures as CSV are in the folder below."
    return [
        Text(found.title, style="bold"),
        summary,
        *notes,
        *own,
        *tables[:SHOWN],
        beware,
        Text(left),
    ]


def evaluation_markdown(found: Evaluation) -> str:
    """The evaluation as a page of Markdown; the clinical audits have pages of their own beside it."""
    parts = [f"# {plain(found.title)}"]
    for name, audit in found.audits.items():
        lines = [f"- {plain(sentence)}" for sentence in summary(audit)]
        link = f"All of it: [{CLINICAL}/{name}/{PAGE}]({CLINICAL}/{name}/{PAGE})"
        parts += [f"## {plain(name)}", "\n".join(lines), link]
    if found.notes:
        parts += ["## What to know", "\n".join(f"- {plain(note)}" for note in found.notes)]
    for sheet in _sheets(found):
        parts += [f"## {plain(sheet.title)}", as_markdown(sheet), plain(sheet.caption)]
    if len(found.drop):
        parts.append("![Own and external figures with intervals](drop.png)")
    if found.examples:
        parts.append("![Some own and some external images](examples.png)")
    return "\n\n".join(parts) + "\n"


def write_evaluation(found: Evaluation, folder: Path) -> None:
    """Write pages, pictures (PNG and SVG) and tables (CSV): the whole folder, or nothing; what was in it goes.

    Raises:
        UserError: The folder cannot be written.
    """
    with atomic_folder(folder, "the evaluation") as draft:
        (draft / CLINICAL).mkdir()
        for name, audit in found.audits.items():
            write(audit, draft / CLINICAL / name)
        (draft / EVALUATION_PAGE).write_text(evaluation_markdown(found), encoding="utf-8")
        for name, table in found.tables.items():
            spreadsheet(table).to_csv(draft / f"{name}.csv", index=False)
        for seed, frame in found.predictions.items():
            (draft / "predictions").mkdir(exist_ok=True)
            frame.to_csv(draft / "predictions" / f"seed_{seed}.csv", index=False)
        _draw(found, draft)


def _draw(found: Evaluation, folder: Path) -> None:
    if len(found.drop):
        for kind in ("png", "svg"):
            plots.drop(found).savefig(folder / f"drop.{kind}")
    if found.examples:
        plots.examples(found).savefig(folder / "examples.png")


def _sheets(found: Evaluation) -> list[AuditTable]:
    made = [_drop(found), _by_original_label(found)]
    return [sheet for sheet in made if sheet.rows]


def _drop(found: Evaluation) -> AuditTable:
    rows = tuple(
        (
            plots.named(str(row["metric"])),
            _span(row["own"], row["own_low"], row["own_high"]),
            _span(row["external"], row["external_low"], row["external_high"]),
            _span(row["difference"], row["low"], row["high"], sign="+"),
            f"{row['own_groups']:,} / {row['external_groups']:,}",
        )
        for row in found.drop.to_dict("records")
    )
    return AuditTable(
        f"From own {found.compared_with} to {found.data}",
        ("metric", f"own {found.compared_with}", found.data, "difference", "lesions"),
        rows,
        "In [0, 1], higher is better; below 0 the difference is a loss. Over the classes that both have. Sensitivity "
        "and specificity: at the threshold that was chosen on own val.",
    )


def _by_original_label(found: Evaluation) -> AuditTable:
    rows = tuple(
        (
            str(row["original_label"]),
            str(row["counts_as"]),
            f"{row['images']:,}",
            f"{row['groups']:,}",
            _span(row["recall"], row["low"], row["high"]),
        )
        for row in found.by_original_label.to_dict("records")
    )
    return AuditTable(
        f"Recall by the labels of {found.data} themselves",
        ("label", "counts as", "images", "lesions", "recall"),
        rows,
        "In [0, 1], higher is better; intervals by lesion.",
    )


def _span(value: float, low: float, high: float, sign: str = "") -> str:
    if np.isnan(value):
        return "-"
    return f"{value:{sign}.2f}" + (
        f" [{low:{sign}.2f}, {high:{sign}.2f}]" if np.isfinite(low) else ""
    )
