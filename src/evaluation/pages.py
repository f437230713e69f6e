"""An evaluation for people: on a terminal of 100 columns, and as a folder with a page, pictures and tables."""

from pathlib import Path

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from src.clinical import pages as clinical
from src.clinical import words
from src.clinical.sheets import Sheet
from src.evaluation import figures
from src.evaluation.record import Evaluation
from src.whole import whole_folder

PAGE = "evaluation.md"
SHOWN = 2  # tables of a clinical audit that the terminal is given: operating points, and each class
CLINICAL = "clinical"  # folder of the audits, within an evaluation's


def render(found: Evaluation) -> list[RenderableType]:
    """What to print, one after the other: the summary, the drop, then the clinical audit."""
    first = next(iter(found.audits.values()))
    summary, *tables, beware = clinical.render(first)
    own = [clinical.as_table(sheet) for sheet in _sheets(found)]
    notes = [Text(f"- {note}") for note in found.notes]
    left = f"{max(0, len(tables) - SHOWN)} more tables, the pictures and the figures as CSV are in the folder below."
    return [Text(found.title, style="bold"), summary, *notes, *own, *tables[:SHOWN], beware, Text(left)]


def markdown(found: Evaluation) -> str:
    """The evaluation as a page of Markdown; the clinical audits have pages of their own beside it."""
    parts = [f"# {clinical.plain(found.title)}"]
    for name, audit in found.audits.items():
        lines = [f"- {clinical.plain(sentence)}" for sentence in words.summary(audit)]
        link = f"All of it: [{CLINICAL}/{name}/{clinical.PAGE}]({CLINICAL}/{name}/{clinical.PAGE})"
        parts += [f"## {clinical.plain(name)}", "\n".join(lines), link]
    if found.notes:
        parts += ["## What to know", "\n".join(f"- {clinical.plain(note)}" for note in found.notes)]
    for sheet in _sheets(found):
        parts += [f"## {clinical.plain(sheet.title)}", clinical.as_markdown(sheet), clinical.plain(sheet.caption)]
    if len(found.drop):
        parts.append("![Own and external figures with intervals](drop.png)")
    if found.examples:
        parts.append("![Some own and some external images](examples.png)")
    return "\n\n".join(parts) + "\n"


def write(found: Evaluation, folder: Path) -> None:
    """Write pages, pictures (PNG and SVG) and tables (CSV): the whole folder, or nothing; what was in it goes.

    Raises:
        UserError: The folder cannot be written.
    """
    with whole_folder(folder, "the evaluation") as draft:
        (draft / CLINICAL).mkdir()
        for name, audit in found.audits.items():
            clinical.write(audit, draft / CLINICAL / name)
        (draft / PAGE).write_text(markdown(found), encoding="utf-8")
        for name, table in found.tables.items():
            clinical.spreadsheet(table).to_csv(draft / f"{name}.csv", index=False)
        for seed, frame in found.predictions.items():
            (draft / "predictions").mkdir(exist_ok=True)
            frame.to_csv(draft / "predictions" / f"seed_{seed}.csv", index=False)
        _draw(found, draft)


def _draw(found: Evaluation, folder: Path) -> None:
    if len(found.drop):
        for kind in ("png", "svg"):
            figures.drop(found).savefig(folder / f"drop.{kind}")
    if found.examples:
        figures.examples(found).savefig(folder / "examples.png")


def _sheets(found: Evaluation) -> list[Sheet]:
    made = [_drop(found), _by_original_label(found)]
    return [sheet for sheet in made if sheet.rows]


def _drop(found: Evaluation) -> Sheet:
    rows = tuple(
        (
            figures.named(str(row["metric"])),
            _span(row["own"], row["own_low"], row["own_high"]),
            _span(row["external"], row["external_low"], row["external_high"]),
            _span(row["difference"], row["low"], row["high"], sign="+"),
            f"{row['own_groups']:,} / {row['external_groups']:,}",
        )
        for row in found.drop.to_dict("records")
    )
    return Sheet(
        f"From own {found.compared_with} to {found.data}",
        ("metric", f"own {found.compared_with}", found.data, "difference", "lesions"),
        rows,
        "In [0, 1], higher is better; below 0 the difference is a loss. Over the classes that both have. Sensitivity "
        "and specificity: at the threshold that was chosen on own val.",
    )


def _by_original_label(found: Evaluation) -> Sheet:
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
    return Sheet(
        f"Recall by the labels of {found.data} themselves",
        ("label", "counts as", "images", "lesions", "recall"),
        rows,
        "In [0, 1], higher is better; intervals by lesion.",
    )


def _span(value: float, low: float, high: float, sign: str = "") -> str:
    if np.isnan(value):
        return "-"
    return f"{value:{sign}.2f}" + (f" [{low:{sign}.2f}, {high:{sign}.2f}]" if np.isfinite(low) else "")
