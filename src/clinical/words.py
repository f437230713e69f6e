"""A clinical audit in plain words: the few sentences that come before any table."""

import numpy as np

from src.clinical.record import ClinicalAudit

DISCLAIMER = "Research only: this is no medical device, and nothing here is a diagnosis or advice."


def summary(found: ClinicalAudit) -> list[str]:
    """Sentences: how much was looked at, the verdicts, what the chosen threshold means in people, calibration."""
    nets = f", by {found.seeds} nets (seeds)" if found.seeds > 1 else ""
    told = [
        f"{found.images} images of {found.lesions} lesions or patients ({found.split}){nets}; {found.positives} images "
        f"({found.positives / found.images:.1%}) are {found.positive}, the class that is looked for."
    ]
    told += [verdict.text for verdict in found.verdicts]
    return [*told, *_in_people(found), *_calibration(found), *_weakest(found), DISCLAIMER]


def _in_people(found: ClinicalAudit) -> list[str]:
    """What the threshold for sensitivity means, in whole images of a hundred."""
    rows = found.operating[found.operating["rule"].str.startswith("sensitivity")]
    if rows.empty or rows["estimate"].isna().any():
        return []
    reached = rows.iloc[0]
    figures = dict(zip(rows["measure"], rows["estimate"], strict=True))
    hundred = {measure: round(100 * value) for measure, value in figures.items()}
    return [
        f"The threshold for {reached['rule']} reached {reached['val']:.3f} on validation and {reached['estimate']:.3f} "
        f"here. Of 100 images of {found.positive} it finds {hundred['sensitivity']} and misses "
        f"{100 - hundred['sensitivity']}; of 100 others it alarms on {100 - hundred['specificity']}; of 100 alarms "
        f"{hundred['ppv']} are {found.positive}."
    ]


def _calibration(found: ClinicalAudit) -> list[str]:
    row = found.calibration.set_index("measure").loc["ece"]
    after = ""
    if np.isfinite(row["after"]):
        heat = ", ".join(f"{each:.2f}" for each in found.temperatures)
        after = f"; {row['after']:.3f} after temperature scaling (T = {heat})"
    return [f"Confidence and accuracy differ by {row['before']:.3f} on average (ECE){after}."]


def _weakest(found: ClinicalAudit) -> list[str]:
    """The subgroup with the lowest recall among those with a figure: where to look first, not a finding."""
    if found.subgroups.empty:
        return []
    rows = found.subgroups[(found.subgroups["measure"] == "recall") & (found.subgroups["by"] != "all")]
    known = rows[rows["estimate"].notna()]
    silent = len(rows) - len(known)
    left = f" {silent} of {len(rows)} subgroups are too small for a figure." if silent else ""
    if known.empty:
        return [left.strip()]
    worst = known.sort_values("estimate", kind="stable").iloc[0]
    return [
        f"Recall of {found.positive} is lowest for {worst['by']} {worst['subgroup']}: {worst['estimate']:.3f} "
        f"[{worst['low']:.3f}, {worst['high']:.3f}] on {worst['positives']} images, the worst of {len(known)} "
        f"subgroups (some are low by chance).{left}"
    ]
