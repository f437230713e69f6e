"""How good a model is, on val and test and for whom: sections of a card that the clinical audit fills."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from src.carding.record import CardPart, Fact, facts
from src.metrics.formatting import joined
from src.reporting.clinical import page
from src.reporting.clinical.page import NOTHING, AuditTable
from src.reporting.clinical.record import ClinicalAudit

ORDER = ("test", "val")  # the one that is reported first
# what the first table shows of all classes, and of the class that is looked for
_OVERALL = {
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
}
_LOOKED_FOR = ("recall", "specificity", "precision", "f1")
_RANKED = {"auroc": "AUROC", "average_precision": "average precision"}
# the clinical audit's own tables that a card takes over, by how their titles begin
_CHOSEN = ("Finding ", "Each class, by ", "Calibration")
_SUBGROUPS = ("Subgroups: ",)


def quality(audits: Mapping[str, ClinicalAudit], notes: tuple[str, ...]) -> CardPart:
    """Figures with intervals, verdicts, the threshold and what it reaches, calibration.

    Args:
        audits: Of val and test, those that have been predicted.
        notes: What the evaluation says of what is absent.
    """
    if not audits:
        return CardPart(told=("No predictions are recorded: nothing is known of how good it is.",))
    first = audits[_first(audits)]
    told = [
        each
        for each in page.summary(first)
        if not each.startswith("Beware") and each != page.DISCLAIMER
    ]
    chosen = [sheet for sheet in page.audit_tables(first) if sheet.title.startswith(_CHOSEN)]
    return CardPart(_chosen(first), (*told, *notes, *_how(first)), (overall(audits), *chosen))


def subgroups(audits: Mapping[str, ClinicalAudit]) -> CardPart:
    """The same on parts of the people, with their sizes; why there are none where there are none."""
    if not audits:
        return CardPart(
            told=("No predictions are recorded: nothing is known of parts of the people.",)
        )
    first = audits[_first(audits)]
    told = [note for note in first.notes if "metadata" in note.lower()]
    if len(first.subgroups):
        told.insert(
            0,
            f"On {first.split}. Subgroups overlap between age, sex and site, and the worst of many is low by chance.",
        )
    return CardPart(
        told=tuple(told),
        sheets=tuple(
            each for each in page.audit_tables(first) if each.title.startswith(_SUBGROUPS)
        ),
    )


def overall(audits: Mapping[str, ClinicalAudit]) -> AuditTable:
    """The figures that a card starts with: a column a split, each with its interval."""
    shown = {split: _figures(audits[split]) for split in ORDER if split in audits}
    names = list(dict.fromkeys(name for figures in shown.values() for name in figures))
    first = audits[_first(audits)]
    rows = tuple(
        (name, *(figures.get(name, NOTHING) for figures in shown.values())) for name in names
    )
    images = tuple(f"{audits[split].images:,} / {audits[split].lesions:,}" for split in shown)
    return AuditTable(
        "Figures with 95% intervals" if first.settings.level == 0.95 else "Figures with intervals",
        ("measure", *shown),
        (("images / lesions or patients", *images), *rows),
        "Each in [0, 1], higher is better. Intervals: bootstrap by lesion or patient"
        f"{' and by seed' if first.seeds > 1 else ''}; *: an exact end.",
    )


def _chosen(found: ClinicalAudit) -> tuple[Fact, ...]:
    """The thresholds and temperatures themselves, one a net."""
    points = found.operating[found.operating["threshold"] != ""].drop_duplicates("rule")
    told = [
        (
            f"Threshold for {row['rule']}, chosen on val",
            f"{found.positive} from a probability of {_each(row['threshold'].split())}",
        )
        for row in points.to_dict("records")
    ]
    heat = _each([f"{each:.3f}" for each in found.temperatures])
    return facts(*told, ("Temperature, fitted on val", heat))


def _each(values: Sequence[str]) -> str:
    return joined(values) + (" (one a net)" if len(values) > 1 else "")


def _first(audits: Mapping[str, ClinicalAudit]) -> str:
    return next(split for split in ORDER if split in audits)


def _figures(found: ClinicalAudit) -> dict[str, str]:
    figures = {
        _OVERALL[name]: span for name, span in _spans(found.overall, "metric") if name in _OVERALL
    }
    figures = {name: figures[name] for name in _OVERALL.values() if name in figures}
    own = dict(_spans(_of(found.per_class, found), "measure"))
    figures |= {
        f"{name.replace('f1', 'F1')} of {found.positive}": own[name]
        for name in _LOOKED_FOR
        if name in own
    }
    ranked = dict(_spans(_of(found.ranking, found), "metric"))
    return figures | {
        f"{told} of {found.positive}": ranked[name]
        for name, told in _RANKED.items()
        if name in ranked
    }


def _of(table: pd.DataFrame, found: ClinicalAudit) -> pd.DataFrame:
    return table[table["class"] == found.positive]


def _spans(table: pd.DataFrame, name: str) -> list[tuple[str, str]]:
    rows: list[dict[Any, Any]] = table.to_dict("records")
    return [(str(row[name]), page.estimate_text(row)) for row in rows]


def _how(found: ClinicalAudit) -> list[str]:
    """How the intervals were made, as the audit says it."""
    return [note for note in found.notes if "Intervals:" in note or "PPV and NPV hold" in note]
