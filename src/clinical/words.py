"""A clinical audit in plain words: the few sentences that come before any table."""

import numpy as np
import pandas as pd

from src.clinical.operating import Wish
from src.clinical.record import ClinicalAudit
from src.clinical.verdicts import span

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
    told = [_lowest(found, rows[rows["measure"] == measure], rule) for measure, rule in rules(found).items()]
    recall = rows[rows["measure"] == "recall"]
    silent = int(recall["estimate"].isna().sum())
    told += [f"{silent} of {len(recall)} subgroups are too small for a figure of recall."] if silent else []
    return [sentence for sentence in told if sentence]


def rules(found: ClinicalAudit) -> dict[str, str]:
    """By which rules the subgroups have a recall: the measure there, and what to call the rule."""
    names = {
        "recall": "the most probable class",
        "recall_at_threshold": f"val's threshold for {Wish('sensitivity', found.settings.sensitivity)}",
    }
    there = set() if found.subgroups.empty else set(found.subgroups["measure"])
    return {measure: rule for measure, rule in names.items() if measure in there}


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
