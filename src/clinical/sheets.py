"""The tables of a clinical audit as text, once for the terminal and for Markdown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.clinical import operating, words
from src.clinical.record import ClinicalAudit

NOTHING = "-"


@dataclass(frozen=True)
class Sheet:
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


def sheets(found: ClinicalAudit) -> list[Sheet]:
    """All tables that there is something for, the most important first."""
    made = [_operating(found), _per_class(found), _ranking(found), _overall(found), _fixed(found), _isic(found)]
    made += [_calibration(found), _subgroup_recall(found), _subgroup_ranking(found)]
    return [sheet for sheet in made if sheet.rows]


def span(row: Mapping[Any, Any]) -> str:
    """A figure with its interval, such as "0.59 [0.50-0.68]"; an asterisk marks one with an exact end."""
    if not np.isfinite(row["estimate"]):
        return NOTHING
    if not np.isfinite(row["low"]):
        return f"{row['estimate']:.2f}"
    return f"{row['estimate']:.2f} [{row['low']:.2f}-{row['high']:.2f}]{'*' if row['interval'] == 'exact' else ''}"


def _figure(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else NOTHING


def _operating(found: ClinicalAudit) -> Sheet:
    rows = []
    for rule, table in found.operating.groupby("rule", sort=False):
        by = {row["measure"]: row for row in table.to_dict("records")}
        names = ("sensitivity", "specificity", "ppv", "npv")
        if np.isfinite(table["val"]).any():
            rows.append((str(rule), "val", *(_figure(by[name]["val"], 2) for name in names)))
        rows.append((str(rule), found.split, *(span(by[name]) for name in names)))
    problems = [f" {rule}: {text}." for rule, text in _problems(found).items()]
    alone = set(found.operating["rule"]) == {operating.ARGMAX}
    return Sheet(
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


def _per_class(found: ClinicalAudit) -> Sheet:
    rows = []
    for name, table in found.per_class.groupby("class", sort=False):
        by = {row["measure"]: row for row in table.to_dict("records")}
        sizes = (str(by["recall"]["images"]), str(by["recall"]["groups"]))
        rows.append((str(name), *sizes, *(span(by[each]) for each in ("recall", "precision", "f1", "specificity"))))
    return Sheet(
        "Each class, by the most probable class",
        ("class", "images", "lesions", "recall", "precision", "F1", "specificity"),
        tuple(rows),
        "Each in [0, 1], higher is better; intervals by lesion. *: an exact end.",
    )


def _ranking(found: ClinicalAudit) -> Sheet:
    names = ("auroc", "average_precision", "auroc_above_80_sensitivity", "pauc_80")
    rows = []
    for name, table in found.ranking.groupby("class", sort=False):
        by = {row["metric"]: row for row in table.to_dict("records")}
        rows.append((str(name), *(span(by[each]) for each in names)))
    return Sheet(
        "Each class against the rest, over all thresholds",
        ("class", "AUROC", "average precision", "AUC above 80% sens.", "pAUC80 (2024)"),
        tuple(rows),
        "Higher is better. AUC above 80% sensitivity: as isic-challenge-scoring, at most 1. pAUC80: ISIC 2024's "
        "metric, at most 0.2, by chance 0.02. Average precision by chance: the share of the class.",
    )


def _overall(found: ClinicalAudit) -> Sheet:
    rows = [(str(row["metric"]).replace("_", " "), span(row)) for row in found.overall.to_dict("records")]
    return Sheet(
        "All classes",
        ("measure", found.split),
        tuple(rows),
        "Each in [0, 1], higher is better. isic: an image with several most probable classes is wrong.",
    )


def _fixed(found: ClinicalAudit) -> Sheet:
    rows = []
    for row in found.fixed.to_dict("records"):
        measure, _, at = str(row["metric"]).partition("/")[0].partition("_at_")
        other = {"spec": "specificity", "sens": "sensitivity"}[at[:4]]
        rows.append((f"{measure} at {other} >= {float(at[4:]) / 100:g}", span(row)))
    return Sheet(
        f"{found.positive}: what the ROC curve of these images offers",
        ("measure", found.split),
        tuple(rows),
        "Each in [0, 1], higher is better. No threshold was chosen beforehand, so that it flatters.",
    )


def _isic(found: ClinicalAudit) -> Sheet:
    names = [str(name) for name in found.isic if name != "class"]
    rows = [(str(row["class"]), *(_figure(row[name]) for name in names)) for row in found.isic.to_dict("records")]
    head = ["sens." if name == "sensitivity" else "spec." if name == "specificity" else name for name in names]
    return Sheet(
        "The ISIC challenges' table (isic-challenge-scoring: positive above a probability of 0.5)",
        ("class", *head),
        tuple(rows),
        "Each in [0, 1], higher is better; a rate of nothing counts as 1 there.",
    )


def _calibration(found: ClinicalAudit) -> Sheet:
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
    lacks = "Temperatures are fitted on these images" if found.split == "val" else "No validation predictions"
    fitted = f" T, one a net, fitted on validation: {heat}." if heat else f" {lacks}: not scaled."
    return Sheet("Calibration", ("measure", "as it is", "scaled"), tuple(rows), f"Lower is better.{fitted}")


def _subgroups(found: ClinicalAudit, measures: Mapping[str, str], title: str, caption: str) -> Sheet:
    """A line a subgroup: its size, and the measures, by their heads."""
    head = ("subgroup", "images", "lesions", f"{found.positive}: images", "lesions", *measures.values())
    if found.subgroups.empty:
        return Sheet(title, head, ())
    rows = []
    for (by, subgroup), table in found.subgroups.groupby(["by", "subgroup"], sort=False):
        of = {row["measure"]: row for row in table.to_dict("records")}
        first = table.iloc[0]
        sizes = tuple(str(first[key]) for key in ("images", "groups", "positives", "positive_lesions"))
        name = str(subgroup) if by == subgroup else f"{by}: {subgroup}"
        rows.append((name, *sizes, *(_withheld(of[measure]) for measure in measures)))
    few = f"In [0, 1], higher is better. too few: under {found.settings.smallest} lesions."
    return Sheet(title, head, tuple(rows), f"{few} {caption}")


def _subgroup_recall(found: ClinicalAudit) -> Sheet:
    there = words.rules(found)
    heads = {"recall": "recall, argmax", "recall_at_threshold": "recall, threshold"}
    told = " ".join(f"{heads[measure]}: by {rule}." for measure, rule in there.items())
    title = f"Subgroups: recall of {found.positive}"
    return _subgroups(found, {measure: heads[measure] for measure in there}, title, told)


def _subgroup_ranking(found: ClinicalAudit) -> Sheet:
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
    return span(row) + classes
